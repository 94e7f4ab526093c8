"Whole runs as users start them: papermill in a process of its own, the real wandb offline, several processes that share a batch."

import json, os, subprocess, sys
from pathlib import Path
import executed
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "nbs" / "experiments" / "train.ipynb"
SECRET = "0123456789abcdef0123456789abcdef01234567"  # looks like a key and opens nothing
QUICK = {"epochs": 2, "baselines": False}


def papermill(tmp_path, env=None, **parameters):
    "Run train.ipynb as a user does, outside the repository."
    return executed.papermill(TRAIN, tmp_path / "out.ipynb", tmp_path, env, 600, **parameters)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A short run with a W&B key in the environment and W&B told to stay offline."
    folder = tmp_path_factory.mktemp("run")
    done = papermill(folder, {"WANDB_API_KEY": SECRET, "WANDB_MODE": "offline"}, **QUICK)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_the_run_leaves_everything(run):
    found = {p.name for p in (run / "runs" / "digits").iterdir()}
    assert {"result.json", "last.ckpt", "metrics.csv", "predictions.csv", "evaluation.npz", "figures"} <= found
    assert {p.suffix for p in (run / "runs" / "digits" / "figures").iterdir()} == {".png"}
    result = json.loads((run / "runs" / "digits" / "result.json").read_text())
    assert set(result) == {"config", "data", "metrics", "baselines", "cost", "versions", "commit"}
    assert (
        len((run / "runs" / "digits" / "predictions.csv").read_text().splitlines())
        == 1 + result["data"]["test_images"]
        == 501
    )


def test_the_notebook_shows_its_pictures(run):
    outputs = [o for c in nbformat.read(run / "out.ipynb", 4).cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 9
    assert not any(o.output_type == "error" for o in outputs)


def test_wandb_kept_the_run_offline(run):
    "The run is read back from wandb's own files, by wandb."
    folders = list((run / "runs" / "digits" / "wandb").glob("offline-run-*"))
    assert len(folders) == 1
    told = "".join(
        o.get("text", "") for c in nbformat.read(run / "out.ipynb", 4).cells if c.cell_type == "code" for o in c.outputs
    )
    assert f"wandb sync runs/digits/wandb/{folders[0].name}" in told
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folders[0])],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    for word in ("labelled_accuracy", "cross_entropy", "figures/class_correlation_pair", "test_accuracy"):
        assert word in shown.stdout, word


def test_the_key_is_in_no_file(run):
    leaked = [p for p in run.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert leaked == []


@pytest.mark.parametrize(
    "parameter, told",
    [
        ({"epoch": 3}, "got 'epoch' (did you mean 'epochs'?); known are data,"),
        ({"lr": "fast"}, "expected lr to be float, got 'fast' (str)"),
        ({"data": "nowhere.zip"}, "nowhere.zip"),
    ],
)
def test_a_wrong_parameter_stops_the_run(tmp_path, parameter, told):
    done = papermill(tmp_path, **parameter)
    assert done.returncode != 0 and told in done.stderr.replace("\n", " ")
    assert not (tmp_path / "runs" / "digits" / "result.json").exists()


# ---- several processes ----------------------------------------------------------------------------------------------

CURVE = "loss ssl cross_entropy correlation labelled_accuracy".split()
# float32: what differs is rounding
SHARED = {"--baselines": False, "--wandb_project": "", "--precision": "32-true"}


def train(folder, *launcher, **options):
    "`semissl-train` in a process of its own, or in several under a launcher; its curves."
    words = [
        f"{k}={v}" for k, v in {**SHARED, **{f"--{k}": v for k, v in options.items()}, "--run_dir": folder}.items()
    ]
    done = subprocess.run(
        [*launcher, "semissl-train", *words],
        cwd=folder.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return pd.read_csv(folder / "metrics.csv"), done


def torchrun(n):
    return "torchrun", "--standalone", "--nproc-per-node", str(n), "--no-python"


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """One process and two on the same batches, dice and weights; a small rate keeps rounding from growing. Without a
    second stage and a third, and with."""
    folder = tmp_path_factory.mktemp("processes")
    slow = dict(epochs=3, lr=1e-5, cutmix="on")
    plain, stages = (
        {**slow, "correlate_from": 1.0, "self_train_from": 1.0},
        dict(epochs=3, lr=2e-4, cutmix="on", propagate=0),
    )
    return {
        name: train(folder / name, *launcher, **options)[0]
        for name, launcher, options in [
            ("one", (), plain),
            ("two", torchrun(2), {**plain, "devices": 2}),
            ("other seed", (), {**plain, "seed": 1}),
            ("one, all stages", (), stages),
            ("two, all stages", torchrun(2), {**stages, "devices": 2}),
            ("one, propagated", (), slow),
            ("two, propagated", torchrun(2), {**slow, "devices": 2}),
        ]
    }


def test_two_processes_have_the_curve_of_one(curves):
    "Every term, batch statistics and views included, to 1e-4; another seed is a hundred times as far off."
    gap = lambda name: ((curves[name][CURVE] - curves["one"][CURVE]).abs() / curves["one"][CURVE]).max().max()
    assert curves["two"]["step"].tolist() == curves["one"]["step"].tolist() == [9, 19, 29]
    assert gap("two") < 1e-4 < 1e-2 < gap("other seed")


@pytest.mark.parametrize("what", ["all stages", "propagated"])
def test_two_processes_stay_close_through_all_stages(curves, what):
    """AdamW makes rounding grow with the rate, here a tenth of the full one, and a pseudo-label may tip over; a head
    fitted to running statistics of a dozen steps has large weights: a few percent."""
    one, two = curves[f"one, {what}"], curves[f"two, {what}"]
    assert two["stage"].tolist() == one["stage"].tolist() and two["stage"].iloc[-1] == 3
    for column in [*CURVE[:-1], "pseudo_weight"]:
        assert two[column].to_numpy() == pytest.approx(one[column].to_numpy(), rel=0.1), column


def test_the_notebook_starts_two_processes(tmp_path):
    """`devices` in train.ipynb, nothing else: one result, written once, with its pictures; one whole checkpoint of the
    last step, one live W&B run."""
    done = papermill(
        tmp_path, {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}, **QUICK, devices=2
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # by those who trained: the parent has no step and no optimizer
    checkpoint = torch.load(tmp_path / "runs" / "digits" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == checkpoint["semissl"]["total_steps"] == 20 and checkpoint["optimizer_states"]
    # one W&B run, which no child has taken for an old one
    (live,) = (tmp_path / "runs" / "digits" / "wandb").glob("offline-run-*")
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(live)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    for word in ("labelled_accuracy", "test_accuracy", "figures/class_correlation_pair"):
        assert word in shown.stdout, word
    result = json.loads((tmp_path / "runs" / "digits" / "result.json").read_text())
    assert result["config"]["devices"] == 2 and result["metrics"]["test_accuracy"] > 0.4
    assert len(pd.read_csv(tmp_path / "runs" / "digits" / "metrics.csv")["step"].unique()) == 2
    assert len(list((tmp_path / "runs" / "digits" / "figures").glob("*.png"))) >= 9


def test_the_notebook_looks_and_learns_in_two_processes(tmp_path):
    """Features: the look is shared, the rounds are those of one run, and what the processes found reaches the result
    and its figures."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_MODE": "disabled",
        "SEMISSL_CACHE": str(tmp_path / "cache"),
    }
    chosen = dict(
        data="digits",
        learn_on="features",
        encoder="tf_efficientnet_lite0",
        image_size=32,
        views="plain",
        labels_per_class=2,
        round_steps=5,
        wandb_project="",
        devices=2,
    )
    done = papermill(tmp_path, environment, **chosen)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Unable to parse" not in done.stderr
    result = json.loads((tmp_path / "runs" / "digits" / "result.json").read_text())
    data, names = result["data"], np.fromfile(next((tmp_path / "cache" / "looks").glob("*/plain/names.bin")), "V16")
    assert (
        data["learn_on"] == "features"
        and len(names) == len(np.unique(names))
        and result["metrics"]["test_accuracy"] > 0.5
    )
    assert (
        len(data["frequencies"]["prior"]) == len(data["frequencies"]["deviation"]) == 10
        and (tmp_path / "runs" / "digits" / "figures" / "class_frequencies.png").exists()
    )


def test_compile_without_a_compiler_is_a_warning(tmp_path):
    environment = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        for k, v in environment.items():
            patch.setenv(k, v)
        curve, done = train(tmp_path / "run", epochs=1, compile="on")
    assert "torch.compile is not possible here" in done.stderr and len(curve) == 1


def test_a_budget_is_divided_before_training_and_not_again(tmp_path, monkeypatch):
    """Slow encoders get smaller batches and no third stage, baselines go before the training does; a run that goes on
    keeps that, and several processes change nothing."""
    import torch
    from dataclasses import asdict, replace
    from semissl import TrainConfig
    from semissl.run import pace as room
    from semissl.run.evaluate import READ
    from semissl.run.task import load_task

    config = TrainConfig(budget="60 s", wandb_project="", run_dir=str(tmp_path / "run"))
    task = load_task(config)
    asked = []

    def pace(*words):
        asked.append(words)
        return cost, 3.5 * cost

    monkeypatch.setattr(room, "pace", pace)
    cost = 1e-5
    fast, training, read = room.in_time(config, task, 3.0, tmp_path / "run", True)
    assert (fast, read) == (config, READ) and 20 < training < 57  # with both baselines
    cost = 0.05
    slow, training, read = room.in_time(config, task, 3.0, tmp_path / "run", True)
    assert (slow.batch_size, slow.labelled_batch_size, slow.self_train_from, slow.baselines) == (
        16,
        8,
        1.0,
        False,
    ) and read == 60
    (tmp_path / "run").mkdir()
    torch.save({"semissl": {"config": asdict(slow)}}, tmp_path / "run" / "last.ckpt")
    cost = 1e-5  # faster today: a run that goes on stays what it was
    assert room.in_time(config, task, 3.0, tmp_path / "run", True)[0] == slow
    (tmp_path / "run" / "last.ckpt").unlink()
    asked.clear()
    two = replace(config, devices=2)
    # nothing is tried where a GPU must stay untouched
    assert room.in_time(two, task, 3.0, tmp_path / "run", True)[0] == two and not asked
