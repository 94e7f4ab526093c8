"""Execute notebooks of nbs/experiments or nbs/tutorials in place, clean them, and stamp them as run.

    python .ci/rerun.py nbs/experiments/batch.ipynb [...]
    python .ci/rerun.py --as-it-is nbs/experiments/speed.ipynb      no run: its outputs are of another machine, or of other parameters

Each runs with its own defaults, in an empty folder that has nothing but this clone's nbs/; what it leaves there is
removed. The stamp, in the notebook's metadata, is a hash of its code, of the committed rows that the code names, and of
its outputs. Nothing else writes it, and tests/test_packaging.py compares it: whoever changes code or rows runs again.
Comments, white space, links and the version may change without that.
"""

import hashlib, json, os, re, subprocess, sys, tempfile
from pathlib import Path
import nbformat
from sync import ROOT, facts, link

ROWS = ROOT / "nbs/experiments/results"
EXPECTED = ROOT / "semissl/run/expected.csv"


def rows_read(code: str) -> list[Path]:
    'The committed rows that code names: `f"{name}-ablation.json"` is all of ablation.'
    patterns = {re.sub(r"\{[^}]*\}", "*", word) for word in re.findall(r"[\w{}*-]+\.json", code)}
    return sorted({p for pattern in patterns for p in ROWS.glob(pattern)}) + [EXPECTED] * ("semissl.run.expect" in code)


def stamp(path: Path) -> str:
    "The hash of what a notebook runs, reads and shows."
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    code = "\n".join(cell.source for cell in cells)
    shown = json.dumps([[o.get("text"), o.get("data")] for c in cells for o in c.outputs], sort_keys=True)
    bare = re.sub(r"\s", "", re.sub(r"(?m)(^|\s)#.*$", "", code))
    told = link(bare + shown, facts() | dict(slug="-/semissl", version="0", site="-"))
    return hashlib.sha256(b"\0".join([told.encode(), *(p.read_bytes() for p in rows_read(code))])).hexdigest()


def put_stamp(path: Path) -> None:
    "Clean a notebook and write its stamp."
    for command in (["nbdev-clean", "--fname", str(path)], [sys.executable, str(ROOT / ".ci/sync.py")]):
        subprocess.run(command, cwd=ROOT, check=True)
    cleaned = json.loads(path.read_text(encoding="utf-8"))
    cleaned["metadata"]["executed"] = stamp(path)
    path.write_text(json.dumps(cleaned, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def rerun(path: Path) -> None:
    "Execute one notebook and put its outputs into it; RuntimeError when it fails or complains."
    from semissl.many.attempt import execute

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "nbs").symlink_to(ROOT / "nbs")
        os.chdir(folder)
        out = Path(folder) / "out.ipynb"
        code, error = execute(str(path), str(out), {}, 0)
        os.chdir(ROOT)
        if code:
            raise RuntimeError(f"{path.name}: {error}")
        done = nbformat.read(out, as_version=4)
    for cell in done.cells:  # W&B complains that it is offline
        complaints = [o for o in cell.get("outputs", []) if o.get("name") == "stderr"]
        if said := [o.text for o in complaints if "wandb" not in o.text]:
            raise RuntimeError(f"{path.name}: expected no warning and no progress bar, got {said[0]!r}")
        cell["outputs"] = [o for o in cell.get("outputs", []) if o not in complaints]
        for output in cell["outputs"]:  # a widget without its kernel is an error message; its text stays
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    nb = nbformat.read(path, as_version=4)  # its cells, without what papermill notes in them
    for mine, ran in zip(nb.cells, done.cells, strict=True):
        if mine.cell_type == "code":
            mine.outputs = ran.outputs
    nbformat.write(nb, path)


if __name__ == "__main__":
    os.environ |= dict(TQDM_DISABLE="1", PYTHONPATH=str(ROOT), MPLBACKEND="module://matplotlib_inline.backend_inline")
    os.environ |= dict(PYTHONWARNINGS="ignore", WANDB_MODE="offline")  # a warning names a path of this machine
    sys.path.insert(0, str(ROOT))
    as_it_is, paths = "--as-it-is" in sys.argv, [Path(w).resolve() for w in sys.argv[1:] if not w.startswith("--")]
    for path in paths:
        if not as_it_is:
            rerun(path)
        put_stamp(path)
        print("stamped:", path.relative_to(ROOT), flush=True)
