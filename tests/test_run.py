"Whole runs as users start them: papermill in a process of its own, the real wandb offline, two processes that share a batch."
import json, os, subprocess, sys
from pathlib import Path
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT/"nbs"/"experiments"/"train.ipynb"
SECRET = "0123456789abcdef0123456789abcdef01234567"   # looks like a key and opens nothing
QUICK = {"epochs": 2, "baselines": False}

def papermill(tmp_path, env=None, **parameters):
    "Run train.ipynb as a user does, outside the repository, without a terminal."
    words = [w for k, v in parameters.items() for w in ("-p", k, str(v))]
    return subprocess.run([sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", str(TRAIN), str(tmp_path/"out.ipynb"), *words],
                          cwd=tmp_path, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A short run with a W&B key in the environment and W&B told to stay offline."
    folder = tmp_path_factory.mktemp("run")
    done = papermill(folder, {"WANDB_API_KEY": SECRET, "WANDB_MODE": "offline"}, **QUICK)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder

def test_the_run_leaves_everything(run):
    found = {p.name for p in (run/"runs"/"digits").iterdir()}
    assert {"result.json", "last.ckpt", "metrics.csv", "predictions.csv", "evaluation.npz", "figures"} <= found
    assert {p.suffix for p in (run/"runs"/"digits"/"figures").iterdir()} == {".png"}
    result = json.loads((run/"runs"/"digits"/"result.json").read_text())
    assert set(result) == {"config", "data", "metrics", "baselines", "cost", "versions", "commit"}
    assert len((run/"runs"/"digits"/"predictions.csv").read_text().splitlines()) == 1 + result["data"]["test_images"] == 501

def test_the_notebook_shows_its_pictures(run):
    outputs = [o for c in nbformat.read(run/"out.ipynb", 4).cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 9
    assert not any(o.output_type == "error" for o in outputs)

def test_wandb_kept_the_run_offline(run):
    "The run is read back from wandb's own files, by wandb."
    folders = list((run/"runs"/"digits"/"wandb").glob("offline-run-*"))
    assert len(folders) == 1
    told = "".join(o.get("text", "") for c in nbformat.read(run/"out.ipynb", 4).cells if c.cell_type == "code" for o in c.outputs)
    assert f"wandb sync runs/digits/wandb/{folders[0].name}" in told
    shown = subprocess.run([sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folders[0])], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    for word in ("labelled_accuracy", "cross_entropy", "figures/class_correlation_pair", "test_accuracy"): assert word in shown.stdout, word

def test_the_key_is_in_no_file(run):
    leaked = [p for p in run.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert leaked == []

@pytest.mark.parametrize("parameter, told", [({"epoch": 3}, "got 'epoch' (did you mean 'epochs'?); known are data,"),
                                             ({"lr": "fast"}, "expected lr to be float, got 'fast' (str)"),
                                             ({"data": "nowhere.zip"}, "nowhere.zip")])
def test_a_wrong_parameter_stops_the_run(tmp_path, parameter, told):
    done = papermill(tmp_path, **parameter)
    assert done.returncode != 0 and told in done.stderr.replace("\n", " ")
    assert not (tmp_path/"runs"/"digits"/"result.json").exists()

def test_two_processes_share_the_batch(tmp_path):
    "Lightning's DDP on two CPU processes: one result, written once, and it has learnt."
    script = tmp_path/"two.py"
    script.write_text("from semissl.train import TrainConfig, fit\n"
                      "if __name__ == '__main__':\n"
                      "    print('accuracy', fit(TrainConfig(epochs=6, devices=2, baselines=False, wandb_project='', run_dir='two')).metrics['test_accuracy'])\n")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path/"two"/"result.json").read_text())["metrics"]["test_accuracy"] > 0.5
    rows = (tmp_path/"two"/"metrics.csv").read_text().splitlines()
    assert len(rows) == len({r.split(",")[0] for r in rows})
