"own_images.ipynb in a real JupyterLab, clicked and typed through in headless Chromium: what no notebook cell can show."

import contextlib, csv, json, os, shutil, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import nbformat
import pytest
from pictures import photos

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here: apt-get install chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
QUICK = {
    "images": "photos",
    "classes": "temple,flower",
    "image_size": 24,
    "look_budget": "1500 images",
    "budget": "12000 images",
    "more_budget": "1200 images",
    "corrections": 6,
    "folder": "mine",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on loopback whose folder holds the notebook and 200 photos; its address, folder and the photos'
    classes."""
    folder, secret = tmp_path_factory.mktemp("lab"), "t" + os.urandom(8).hex()
    truth = photos(folder / "photos", 200)
    nb = nbformat.read(ROOT / "nbs" / "tutorials" / "own_images.ipynb", 4)
    (cell,) = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source += "".join(f"\n{k} = {v!r}" for k, v in QUICK.items())
    for c in nb.cells:
        if c.cell_type == "code":
            c.outputs, c.execution_count = [], None
    nbformat.write(nb, folder / "own_images.ipynb")
    settings = folder / "settings" / "@jupyterlab"
    for name, value in {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }.items():
        path = settings / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(value))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {
        **os.environ,
        "JUPYTERLAB_SETTINGS_DIR": str(settings.parent),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": str(ROOT),
    }
    env.pop("MPLBACKEND", None)
    words = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={secret}",
        f"--ServerApp.root_dir={folder}",
    ]
    server = subprocess.Popen(
        words,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=open(folder / "server.log", "w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api?token={secret}", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
            assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
        yield f"{address}/lab/tree/own_images.ipynb?token={secret}", folder, truth
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def browser():
    "One Chromium for all: Playwright can be started once in a process."
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def window(browser, width, height):
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    return page


@pytest.fixture(scope="module")
def page(lab, browser):
    "The notebook, opened in a window of a laptop's size."
    page = window(browser, 1200, 1000)
    page.goto(lab[0])
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.get_by_text("| Idle").wait_for(timeout=120_000)  # before that, JupyterLab asks which kernel to take
    return page


def menu(page, *names):
    "Choose from JupyterLab's menu bar."
    page.locator(".lm-MenuBar-item", has_text=names[0]).first.click()
    page.locator(".lm-Menu-item", has_text=names[1]).first.click()


def idle(page, seconds=400):
    "Wait until no cell is running or waiting."
    running = "[...document.querySelectorAll('.jp-InputPrompt')].some(e => e.textContent.includes('*'))"
    # it may have ended already
    with contextlib.suppress(Exception):
        page.wait_for_function(f"() => {running}", timeout=10_000)
    page.wait_for_function(f"() => !{running}", timeout=seconds * 1000)


def rows(folder):
    path = folder / "mine" / "labels.csv"
    return (
        {r["path"]: r["label"] for r in csv.DictReader(open(path, newline="", encoding="utf-8"))}
        if path.exists()
        else {}
    )


def shown(widget):
    return widget.locator("figure.here img").get_attribute("alt")


def saved(page, widget, n):
    "The widget says that n are labelled and saved."
    page.wait_for_function(
        "([e, n]) => { const t = e.querySelector('.status').textContent; return t.startsWith(`${n} labelled`) && "
        "t.endsWith('saved') }",
        arg=[widget.element_handle(), n],
    )


def keep(widget, name):
    "A picture for a person to look at, where one is asked for."
    if folder := os.environ.get("SEMISSL_SCREENSHOTS"):
        widget.screenshot(path=Path(folder) / name)


def test_label_forty_restart_half_way_train_and_predict(page, lab):
    _, folder, truth = lab
    menu(page, "Run", "Run All Cells")
    widget = page.locator(".semissl").first
    widget.wait_for(timeout=300_000)
    idle(page)
    # the cell that trains has said so
    assert "there is no label yet" in page.locator(".jp-Notebook").inner_text() and not rows(folder)
    seen = []
    for n in range(20):  # ten clicks, ten keys, and a class that was not foreseen
        path = shown(widget)
        kind, names = (
            truth[path],
            [b.split("\n")[1] if "\n" in b else b for b in widget.locator(".classes button").all_inner_texts()],
        )
        button = widget.locator(".classes button", has_text=kind)
        if not button.count():
            widget.focus()
            page.keyboard.press("n")
            page.keyboard.type(kind)
            page.keyboard.press("Enter")
        elif n % 2:
            button.click()
        else:
            widget.focus()
            page.keyboard.press(button.locator("kbd").inner_text())
        saved(page, widget, n + 1)
        assert rows(folder)[path] == kind, f"not on disk: {path}"
        seen.append(path)
        if n > 9 and truth[shown(widget)] == "temple":
            keep(widget, "labeller.png")
    assert len(set(seen)) == 20 and page.locator(".jp-Notebook.jp-mod-editMode").count() == 0
    # JupyterLab took no key for a heading
    assert page.locator(".jp-MarkdownCell:has-text('# photo')").count() == 0

    widget.focus()
    page.keyboard.press("u")
    saved(page, widget, 19)
    assert seen[-1] not in rows(folder) and shown(widget) == seen[-1]
    page.keyboard.press("s")  # skipped: decided, but no label
    page.wait_for_function(
        "e => e.querySelector('.status').textContent.includes('1 skipped')", arg=widget.element_handle()
    )
    page.keyboard.press("u")
    saved(page, widget, 19)

    page.evaluate("() => document.querySelectorAll('.semissl').forEach(e => e.dataset.old = 1)")
    menu(page, "Kernel", "Restart Kernel…")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    time.sleep(3)
    before = rows(folder)
    menu(page, "Run", "Run All Cells")
    page.wait_for_function(
        "() => { const s = document.querySelector('.semissl:not([data-old]) .status'); return s && "
        "s.textContent.startsWith('19 labelled') }",
        timeout=300_000,
    )
    idle(page)
    assert rows(folder) == before and len(before) == 19  # nothing lost
    widget = page.locator(".semissl:not([data-old])").first
    for n in range(19, 40):
        path = shown(widget)
        assert path not in before
        button = widget.locator(".classes button", has_text=truth[path])
        # without a mouse: Tab reaches it, Enter presses it
        if n % 2:
            button.focus()
            page.keyboard.press("Enter")
        else:
            widget.focus()
            page.keyboard.press(button.locator("kbd").inner_text())
        saved(page, widget, n + 1)
    assert {p: v for p, v in rows(folder).items()} == {p: truth[p] for p in rows(folder)} and len(rows(folder)) == 40
    widget.focus()
    page.keyboard.press("g")
    keep(widget, "grid.png")

    page.locator(".jp-CodeCell", has_text="model.set_params(budget=budget)").first.locator(".jp-InputPrompt").click()
    menu(page, "Run", "Run Selected Cell and All Below")
    idle(page)
    text = page.locator(".jp-Notebook").inner_text()
    assert "200 predictions, 0 files that could not be read" in text and "Traceback" not in text, text[-3000:]
    table = list(csv.DictReader(open(folder / "mine" / "predictions.csv", newline="", encoding="utf-8")))
    assert {r["path"] for r in table} == set(truth)
    right = sum(r["label"] == truth[r["path"]] for r in table) / 200
    assert right > 0.6, f"expected a classifier well above a third, got {right}"
    assert (folder / "mine" / "model.safetensors").exists()


def test_the_widget_fits_a_phone(page, lab):
    "At 360 pixels nothing is cut off, and every button is large enough for a finger."
    page.set_viewport_size({"width": 360, "height": 780})
    widget = page.locator(".semissl").first
    widget.evaluate("e => { document.body.replaceChildren(e); document.body.style.overflow = 'auto' }")
    box = widget.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 361
    for button in widget.locator("button").all():
        inside = button.bounding_box()
        assert inside["height"] >= 44 and inside["x"] + inside["width"] <= 361, button.inner_text()
    keep(widget, "phone.png")


def test_label_from_a_shell_killed_half_way(tmp_path, browser):
    """`semissl-label`: keys in a browser, the command killed and called again, a class of a hostile name; every answer
    is in the file."""
    truth = photos(tmp_path / "photos", 30)
    names = [*sorted(set(truth.values())), "</script><b>x"]

    def called(*more):
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from semissl.use.page import main; main()",
                "photos",
                "--classes",
                ",".join(names),
                "--no-browser",
                *more,
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return process, next(
            word for line in process.stdout for word in line.split() if word.startswith("http://127.0.0.1:")
        )

    def answers():
        return {
            r["path"]: r["label"] for r in csv.DictReader(open(tmp_path / "labels.csv", newline="", encoding="utf-8"))
        }

    wrong = []
    for how, end, n in ((["--in-order"], signal.SIGKILL, 10), ([], signal.SIGTERM, 12)):
        process, address = called(*how)
        try:
            page = window(browser, 900, 800)
            page.on("pageerror", lambda err: wrong.append(str(err)))
            page.goto(address)
            widget = page.locator(".semissl")
            widget.wait_for()
            before = len(answers()) if (tmp_path / "labels.csv").exists() else 0
            page.wait_for_selector("figure.here img")
            assert page.locator(".status").inner_text().startswith(f"{before} labelled, 0 skipped, of 30")
            for i in range(n):
                path = shown(widget)
                # no click before: the keys are the labeller's
                page.keyboard.press(str(len(names)) if i == 9 and not before else str(names.index(truth[path]) + 1))
                saved(page, widget, before + i + 1)
                assert len(answers()) == before + i + 1
            if before:
                keep(widget, "page.png")
        finally:
            process.send_signal(end)
        told = process.communicate(timeout=60)
        assert end == signal.SIGKILL or process.returncode == 0 and "22 labels in labels.csv" in told[1], told
    page.keyboard.press("1")  # nobody is there any more: the window says that it is not saved
    page.get_by_text("1 not saved yet").wait_for(timeout=15_000)
    found = answers()
    assert (
        not wrong
        and len(found) == 22
        and sum(found[p] == truth[p] for p in found) == 21
        and names[-1] in found.values()
    )


def test_a_model_learns_beside(tmp_path, browser):
    """Answers by keys while a model looks and learns: its guess comes and is accepted, a grid is confirmed and taken
    back, and the file has every answer."""
    truth = photos(tmp_path / "photos", 60)
    names = sorted(set(truth.values()))
    code = "from semissl.use.page import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "photos", "--classes", ",".join(names), "--no-browser"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    def table():
        return {r["path"]: r for r in csv.DictReader(open(tmp_path / "labels.csv", newline="", encoding="utf-8"))}

    try:
        address = next(w for line in process.stdout for w in line.split() if w.startswith("http://127.0.0.1:"))
        page, wrong, given = window(browser, 900, 900), [], {}
        page.on("pageerror", lambda err: wrong.append(str(err)))
        page.goto(address)
        widget = page.locator(".semissl")
        page.wait_for_selector("figure.here img")
        for n in range(24):  # the look may still go on: nobody waits for it
            path = shown(widget)
            page.keyboard.press(str(names.index(truth[path]) + 1))
            saved(page, widget, n + 1)
            given[path] = truth[path]
        page.wait_for_function("() => document.querySelector('.good').textContent.includes('learnt from')")
        for n in range(24, 40):
            path, said = shown(widget), page.locator(".guess").inner_text()
            right = said.startswith("Guess") and truth[path] in said
            page.keyboard.press(" " if right else str(names.index(truth[path]) + 1))
            given |= {path: truth[path]}
            saved(page, widget, n + 1)
        found = table()
        assert {p: r["label"] for p, r in found.items()} == given and len(found) == 40
        assert sum(r["origin"] == "checked" for r in found.values()) == 8  # one in five, blind
        page.keyboard.press("g")
        page.wait_for_selector(".tile")
        tiles = [t.get_attribute("title") for t in page.locator(".tile").all()]
        page.locator(".tile").first.click()  # not of this class
        page.keyboard.press(" ")
        page.wait_for_function(f"() => document.querySelector('.status').textContent.startsWith('{39 + len(tiles)} ')")
        assert sum(r["origin"] == "confirmed" for r in table().values()) == len(tiles) - 1
        page.keyboard.press("u")  # a grid is one step
        saved(page, widget, 40)
        assert {p: r["label"] for p, r in table().items()} == given and not wrong
        assert tiles[0] not in table()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
