"The notebooks of curves as papermill runs them: from committed rows, and a hundredth of a long command."

import json
from pathlib import Path
import executed
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "nbs" / "experiments"


def outputs(notebook: str, out: Path, **parameters) -> list:
    "What the cells of an executed notebook show."
    # figures are shown in the notebook, whatever the caller draws with
    done = executed.papermill(EXPERIMENTS / notebook, out, ROOT, {"MPLBACKEND": None}, **parameters)
    assert done.returncode == 0, done.stderr[-4000:]
    return [o for c in nbformat.read(out, 4).cells if c.cell_type == "code" for o in c.outputs]


def words_of(shown: list) -> str:
    return "\n".join(o.get("text", "") + o.get("data", {}).get("text/markdown", "") for o in shown)


def pictures_of(shown: list) -> int:
    return sum("image/png" in o.get("data", {}) for o in shown)


FIGURES = {"label_efficiency.ipynb": 2, "ablation.ipynb": 3, "peers.ipynb": 1}
COMMITTED = sorted(
    p.stem for p in (EXPERIMENTS / "results").glob("*.json") if p.stem.endswith(("-label-efficiency", "-ablation"))
)


@pytest.mark.parametrize("stem", COMMITTED)
def test_committed_rows_are_drawn(stem, tmp_path):
    "Every file of rows that is there: a table with its mean accuracy, and the figures."
    before = (EXPERIMENTS / "results" / f"{stem}.json").read_bytes()
    kind = next(k for k in ("label-efficiency", "ablation") if stem.endswith(k))
    shown = outputs(kind.replace("-", "_") + ".ipynb", tmp_path / "out.ipynb", name=stem.removesuffix(f"-{kind}"))
    rows = json.loads(before)
    arm, count = rows[0]["arm"], rows[0]["labels_per_class"]
    mine = [r["test_accuracy"] for r in rows if (r["arm"], r["labels_per_class"]) == (arm, count)]
    trained = count - rows[0]["validation_per_class"]
    assert (
        f"| {trained} | {arm} | {len(mine)} | {100 * sum(mine) / len(mine):.1f} ±" in words_of(shown)
        and pictures_of(shown) == FIGURES[kind.replace("-", "_") + ".ipynb"]
    )
    assert (EXPERIMENTS / "results" / f"{stem}.json").read_bytes() == before


@pytest.mark.parametrize(
    "name,given,told,runs",
    [
        (
            "label_efficiency.ipynb",
            dict(name="digits", counts=1, up_to=3, peers="freematch,label_spreading"),
            ["FreeMatch (re-implementation)", "label spreading", "labels only"],
            1,
        ),
        (
            "peers.ipynb",
            dict(name="digits", counts=1, peers="fixmatch,pixels_propagation"),
            ["FixMatch (re-implementation)", "pixels, our label propagation", "stages 1+2+3"],
            1,
        ),
        ("ablation.ipynb", dict(name="digits", only="no class correlation"), ["no class correlation"], 2),
    ],
)
def test_a_hundredth_of_a_long_command(name, given, told, runs, tmp_path):
    "It runs through, is drawn, and leaves no rows."
    shown = outputs(
        name,
        tmp_path / "out.ipynb",
        seeds=0,
        share=0.01,
        settings="budget=1e5 images",
        run_root=tmp_path / "runs",
        results=tmp_path / "results",
        **given,
    )
    assert all(word in words_of(shown) for word in told) and pictures_of(shown) == FIGURES[name]
    assert not (tmp_path / "results").exists() and len(list((tmp_path / "runs").rglob("result.json"))) == runs


def test_peers_of_committed_rows_are_drawn(tmp_path):
    "The method and each peer, in words and in a table; a file without a peer says so."
    shown = outputs("peers.ipynb", tmp_path / "out.ipynb", name="digits,cifar10-cpu")
    said = words_of(shown)
    assert pictures_of(shown) == FIGURES["peers.ipynb"] and "- FreeMatch (re-implementation): +13.3 ± 25.4" in said
    assert "| digits | 10 | pixels, our label propagation | 3 | 97.5 ± 0.3" in said and "| cifar10-cpu | 25 |" in said
    assert "No peer is among the rows." in words_of(outputs("peers.ipynb", tmp_path / "none.ipynb", name="digits-2min"))


def test_a_peer_that_is_not_there(tmp_path):
    done = executed.papermill(EXPERIMENTS / "peers.ipynb", tmp_path / "out.ipynb", ROOT, peers="fixmach")
    assert done.returncode != 0 and "expected peers among fixmatch" in done.stderr


def test_a_batch_and_its_report(tmp_path):
    "Two runs of an epoch, their table and figures; a second call finds them done; the report reads the same directory."
    given = dict(
        grid="epochs: 1, baselines: False, labels_per_class: [2, 4], wandb_project: ''", root=tmp_path / "batch"
    )
    shown = outputs("batch.ipynb", tmp_path / "out.ipynb", **given)
    assert "| 2 | " in words_of(shown) and pictures_of(shown) == 6 and (tmp_path / "batch" / "report.html").exists()
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "batch").rglob("result.json")}
    outputs("batch.ipynb", tmp_path / "again.ipynb", **given)
    assert len(made) == 2 and {p: p.stat().st_mtime_ns for p in made} == made
    shown = outputs("report.ipynb", tmp_path / "report.ipynb", root=tmp_path / "batch")
    assert "2 finished runs; varied: labels_per_class" in words_of(shown) and pictures_of(shown) == 6
