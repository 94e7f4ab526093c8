"A batch through Google's command-line client: the real client, a Jupyter server on this machine in place of Colab's, taken away in the middle."

import json, os, shutil, sys, time
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook
from work import FAULTS

CLIENT = os.environ.get("COLAB_CLIENT") or shutil.which("colab")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CLIENT, reason="google-colab-cli is not installed (it needs Python 3.12)"),
    pytest.mark.skipif(
        os.name == "nt" or os.geteuid() != 0, reason="the client works in /content, which only root can make here"
    ),
]

# `new` starts a Jupyter server as Colab would, `stop` ends it, everything else is the client's own; its session file is
# all that is made up
STAND_IN = """#!{python}
import json, os, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path
home, client = Path({home!r}), {client!r}
state, pid = home/"sessions.json", home/"server.pid"
verb, name = sys.argv[1], sys.argv[3]
(home/"calls").open("a").write(verb + "\\n")
def answers(port):
    try: return urllib.request.urlopen(f"http://127.0.0.1:{{port}}/api", timeout=2).status == 200
    except OSError: return False
if verb == "new":
    if state.exists() and answers(json.loads(state.read_text())[name]["url"].rsplit(":", 1)[1]): sys.exit(1)
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    server = subprocess.Popen([{python!r}, "-m", "jupyter_server", "--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={{port}}", "--IdentityProvider.token=", 
                               "--ServerApp.root_dir=/", "--ServerApp.disable_check_xsrf=True"], stdout=subprocess.DEVNULL, stderr=open(home/"server.log", "a"), start_new_session=True, env=dict(os.environ, JUPYTER_RUNTIME_DIR=str(home/"runtime")))
    pid.write_text(str(server.pid))
    end = time.monotonic() + 60
    while not answers(port) and time.monotonic() < end: time.sleep(.2)
    state.write_text(json.dumps({{name: dict(name=name, token="secret", url=f"http://127.0.0.1:{{port}}", endpoint="here", token_expires_at="2100-01-01T00:00:00Z")}}))
elif verb == "stop":
    os.kill(int(pid.read_text()), signal.SIGTERM)
else: os.execv(client, [client, "--config", str(state), *sys.argv[1:]])
"""


@pytest.fixture
def colab(tmp_path, monkeypatch):
    "The folder of the stand-in, which is first in PATH."
    home = tmp_path / "colab"
    home.mkdir()
    (home / "colab").write_text(STAND_IN.format(python=sys.executable, home=str(home), client=str(CLIENT)))
    (home / "colab").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
    yield home
    if (home / "server.pid").exists():
        end(home)
    shutil.rmtree("/content/semissl-faults", ignore_errors=True)


def end(home: Path):
    "Take the runtime away: the server, its kernels, the batch, and all files."
    import psutil

    try:
        server = psutil.Process(int((home / "server.pid").read_text()))
    except psutil.NoSuchProcess:
        return
    marks = [
        p
        for p in psutil.process_iter(["cmdline", "cwd"])
        if "semissl.many" in " ".join(p.info["cmdline"] or []) and (p.info["cwd"] or "").startswith("/content")
    ]
    for p in [
        *server.children(recursive=True),
        *marks,
        *[c for m in marks for c in m.children(recursive=True)],
        server,
    ]:
        if p.is_running():
            p.kill()
    shutil.rmtree("/content/semissl-faults", ignore_errors=True)


def counting(path: Path) -> Path:
    "A notebook that counts to 8 and keeps its count as a checkpoint."
    head = new_code_cell('seed = 0  # of the run\nrun_dir = "runs"  # where it goes', metadata={"tags": ["parameters"]})
    body = new_code_cell("""
import json, time
from pathlib import Path
count = Path(run_dir, "count.json")
begun = json.loads(count.read_text()) if count.exists() else 0
for k in range(begun, 8):
    time.sleep(1)
    count.write_text(str(k + 1))
Path(run_dir, "config.json").write_text("{}")
Path(run_dir, "result.json").write_text(json.dumps(dict(config=dict(seed=seed), metrics=dict(test_accuracy=seed / 10), begun=begun)))""")
    nbformat.write(
        new_notebook(cells=[head, body], metadata={"kernelspec": {"name": "python3", "display_name": "python3"}}), path
    )
    return path


def test_the_runtime_is_taken_away(tmp_path, colab):
    from semissl.many.colab import on_colab
    from semissl.many.work import run_batch
    import threading

    root, took = tmp_path / "grid", []

    def take_away():
        while not list(root.glob("*/count.json")):
            time.sleep(0.2)  # something has come back
        end(colab)
        took.append(time.monotonic())

    threading.Thread(target=take_away, daemon=True).start()
    states = run_batch(
        dict(seeds=2),
        counting(tmp_path / "count.ipynb"),
        root,
        cluster=on_colab("faults", gpu="", every=2.0, patience=20),
    )
    results = [json.loads((d / "result.json").read_text()) for d in sorted(root.glob("seed*"))]
    calls = (colab / "calls").read_text().split()
    assert took and set(states.values()) == {"done"} and [r["metrics"]["test_accuracy"] for r in results] == [0.0, 0.1]
    assert results[0]["begun"] > 0, "expected the second runtime to go on, it began anew"
    assert calls.count("new") >= 2 and calls[-1] == "stop"
    FAULTS.append(
        (
            "a Colab runtime taken away (a Jupyter server, the real client)",
            1,
            f"went on at {results[0]['begun']} of 8 on the next",
        )
    )
