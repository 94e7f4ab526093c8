"What the processes of these tests do, and what they are compared by."

import csv, json, os, signal, subprocess, sys
from multiprocessing import get_context
from pathlib import Path
import pandas as pd

FAULTS = []  # (fault, how often, what came of it), printed by conftest.py at the end
FULL = os.environ.get("SEMISSL_FAULTS") == "full"
# 30 steps of the digits, through all three stages
QUICK = dict(epochs=3, baselines=False, precision="32-true", wandb_project="")
SECRET = "0123456789abcdef0123456789abcdef01234567"  # looks like a key and opens nothing

# one process imports torch and Lightning; each training is a fork of it, so that it begins at once
processes = get_context("forkserver")
processes.set_forkserver_preload(["semissl.run.fit", "wandb"])


def training(run_dir: str, options: dict, every: float, prepare=None) -> None:
    "One training in this process; `prepare` may put something in its way."
    import torch
    from semissl import TrainConfig, fit
    from semissl.run.checkpoints import Checkpoints

    torch.set_num_threads(1)
    os.environ.update(CUDA_VISIBLE_DEVICES="", WANDB_MODE="offline", WANDB_API_KEY=SECRET)
    Checkpoints.EVERY, Checkpoints.SHARE = every, 1e9
    log = open(log_of(Path(run_dir)), "a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    # a shell that starts this in the background has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if prepare:
        prepare()
    try:
        fit(TrainConfig(**QUICK | options, run_dir=run_dir))
    finally:
        print("Ctrl-C as before" if signal.getsignal(signal.SIGINT) is signal.default_int_handler else "Ctrl-C changed")


def begin(run_dir: Path, options: dict = {}, every: float = 0.2, prepare=None):
    "A training under way."
    process = processes.Process(target=training, args=(str(run_dir), options, every, prepare))
    process.start()
    return process


def finish(run_dir: Path, options: dict = {}, prepare=None) -> str:
    "Train to the end; what was said."
    process = begin(run_dir, options, prepare=prepare)
    process.join(300)
    assert process.exitcode == 0, said(run_dir)[-3000:]
    return said(run_dir)


# not on a disk that is full
def log_of(run_dir: Path) -> Path:
    return (run_dir.parents[1] if run_dir.parent.name == "disk" else run_dir.parent) / f"{run_dir.name}.log"


def said(run_dir: Path) -> str:
    return log_of(run_dir).read_text(errors="replace")


def kill(process) -> bool:
    "Kill it, this very instant; False when it had ended."
    alive = process.is_alive()
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive


def weights(run_dir: Path) -> dict:
    "Bytes of every tensor of the last checkpoint: weights, average, optimizer."
    import torch

    checkpoint = torch.load(run_dir / "last.ckpt", weights_only=True)
    states = {
        f"optimizer {k} {n}": v for k, s in checkpoint["optimizer_states"][0]["state"].items() for n, v in s.items()
    }
    return {k: v.numpy().tobytes() for k, v in (checkpoint["state_dict"] | states).items()}


def rows(run_dir: Path) -> list[dict]:
    "metrics.csv without the seconds."
    with open(run_dir / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def history(run_dir: Path) -> list[dict]:
    "What W&B keeps of the curves, read by W&B, without times."
    segments = list((run_dir / "wandb").glob("offline-run-*"))
    assert len(segments) == 1, segments
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segments[0])],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = [
        record["history"]["item"] for record in map(json.loads, done.stdout.splitlines()) if record["type"] == "history"
    ]
    return [
        {k: v for k, v in item.items() if k not in ("seconds", "_runtime", "_timestamp")}
        for item in found
        if "loss" in item
    ]


def metrics(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text())["metrics"]


def same(run_dir: Path, reference: Path) -> None:
    "Bit for bit the run that nothing happened to."
    assert weights(run_dir) == weights(reference)
    assert rows(run_dir) == rows(reference)
    assert metrics(run_dir) == metrics(reference)
    assert not list(run_dir.glob(".*")) or {p.name for p in run_dir.glob(".*")} <= {".lock"}, (
        "something half-written is left"
    )


# ---- batches --------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "nbs" / "experiments" / "train.ipynb"
# 24 runs or 4
GRID = [
    "epochs=1",
    "baselines=false",
    "precision=32-true",
    "image_size=0",
    "objective=[nt_xent,vicreg]",
    *(["lr=[1e-3,2e-3]", "seeds=6"] if FULL else ["seeds=2"]),
]
KILLS = 5 if FULL else 2


def batch(root: Path, *words: str):
    "The command, as from a shell, in a process group of its own."
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": SECRET,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [
        sys.executable,
        "-c",
        "import sys; from semissl.many.command import main; sys.exit(main())",
        *GRID,
        "--notebook",
        str(TRAIN),
        "--root",
        str(root),
        "--jobs",
        "2",
        *words,
    ]
    return subprocess.Popen(
        command,
        cwd=root.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def table(root: Path) -> pd.DataFrame:
    "What a batch has come to, without times and places."
    t = pd.read_parquet(root / "results.parquet").set_index("run").sort_index()
    return t[[c for c in t if c.startswith(("config.", "metrics.", "data.")) and c != "config.run_dir"]]
