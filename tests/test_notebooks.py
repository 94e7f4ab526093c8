"Every notebook outside a .notest folder, executed as nbdev-test does, one test each."

import os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [
    p
    for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
    if not (p.parent / ".notest").exists() and ".ipynb_checkpoints" not in p.parts
]


def nbdev_test(path: Path) -> subprocess.CompletedProcess:
    "Run one notebook, and only it, in a process of its own, without a terminal."
    code = "import sys; from nbdev.test import nbdev_test; nbdev_test.__wrapped__(path=sys.argv[1], do_print=True)"
    return subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3000,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_notebook(path):
    run = nbdev_test(path)
    assert run.returncode == 0 and "Success." in run.stdout, f"{run.stdout[-3000:]}\n{run.stderr[-6000:]}"
    assert run.stdout.count("- Completed") == 1, run.stdout


def test_a_failing_cell_fails(tmp_path):
    "The runner above does notice: a notebook of this project whose last cell is false."
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "nbs").mkdir()
    path = tmp_path / "nbs" / "wrong.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("x = 1"), new_code_cell("assert x == 2, 'x is one'")]), path)
    run = nbdev_test(path)
    assert run.returncode == 1 and "x is one" in run.stderr
