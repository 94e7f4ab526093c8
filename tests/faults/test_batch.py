"A batch that is killed, shared and badly treated ends with the table of one that nothing happened to."

import json, os, random, signal, subprocess, sys, time
import pandas as pd
import pytest
from work import FAULTS, FULL, KILLS, SECRET, TRAIN, batch, table

pytestmark = pytest.mark.slow


def test_a_killed_batch_has_the_table_of_an_undisturbed_one(undisturbed, tmp_path):
    "kill -9 of the batch at a random instant, then the same command again."
    dice, root, kills = random.Random(time.time_ns()), tmp_path / "grid", 0
    while kills < KILLS:
        process = batch(root)
        time.sleep(dice.uniform(4, 45 if FULL else 25))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    process = batch(root)
    told = process.communicate(timeout=3000)[0]
    assert process.returncode == 0, told[-3000:]
    again = pd.read_parquet(root / "results.parquet").attempts.sum() - len(table(root))
    assert kills, "expected a batch that was killed, got one that had ended"
    pd.testing.assert_frame_equal(table(root), table(undisturbed))
    FAULTS.append(
        (
            f"kill -9 of a batch of {len(table(root))} runs",
            kills,
            f"{again} runs started again, the same table as undisturbed",
        )
    )


def test_two_batches_on_one_directory(undisturbed, tmp_path):
    two = [batch(tmp_path / "grid") for _ in range(2)]
    told = [p.communicate(timeout=3000)[0] for p in two]
    assert [p.returncode for p in two] == [0, 0], told
    found = pd.read_parquet(tmp_path / "grid" / "results.parquet")
    assert set(found.attempts) == {1} and sum(t.count("done  ") for t in told) == len(found)
    pd.testing.assert_frame_equal(table(tmp_path / "grid"), table(undisturbed))
    FAULTS.append(
        (
            "two batches on one directory",
            1,
            f"{told[0].count('done  ')} and {told[1].count('done  ')} runs, none twice, the same table",
        )
    )


def test_a_batch_sees_that_labels_have_changed(tmp_path):
    """Done; touched; a label corrected: the same command says so, trains that run anew and keeps the earlier result.
    The first line of trial 43, for batches."""
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(40):
        Image.fromarray(dice.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")

    def label(n):
        (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(n)))

    words = [
        f"data={tmp_path / 'photos'}",
        f"labels={tmp_path / 'labels.csv'}",
        "image_size=16",
        "batch_size=16",
        "budget=400 images",
        "wandb_project=",
        "seeds=1",
        "--root",
        str(tmp_path / "grid"),
        "--notebook",
        str(TRAIN),
    ]

    def run():
        return subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from semissl.many.command import main; sys.exit(main(sys.argv[1:]))",
                *words,
            ],
            capture_output=True,
            text=True,
            timeout=600,
        )

    label(8)
    first = run()
    assert first.returncode == 0, first.stderr[-2000:]
    place = next((tmp_path / "grid").glob("*/result.json")).parent
    labelled = lambda: json.loads((place / "result.json").read_text())["data"]["labelled"]
    attempts = lambda: json.loads((place / "status.json").read_text())["attempts"]
    assert (labelled(), attempts()) == (8, 1)
    os.utime(tmp_path / "labels.csv", (1, 1))
    assert run().returncode == 0 and attempts() == 1  # touched, not changed
    label(12)
    again = run()
    assert again.returncode == 0 and "other images or labels than there are now" in again.stderr, again.stderr[-2000:]
    assert (labelled(), attempts()) == (12, 2) and json.loads((place / "earlier-1" / "result.json").read_text())[
        "data"
    ]["labelled"] == 8
    FAULTS.append(("a label more for a batch that was done", 1, "said, trained anew, the earlier result kept"))


def test_the_key_is_in_no_file(undisturbed):
    left = [p for p in undisturbed.rglob("*") if p.is_file()]
    assert len(left) > 50 and not [p for p in left if SECRET.encode() in p.read_bytes()]
    FAULTS.append(("WANDB_API_KEY in the environment of a batch", 1, f"in none of the {len(left)} files left behind"))


def test_wandb_knows_the_batch(undisturbed):
    "Grouped by the batch, named by the slug."
    run = next(p for p in sorted(undisturbed.iterdir()) if p.is_dir())
    (segment,) = (run / "wandb").glob("offline-run-*")
    told = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    first = next(json.loads(line) for line in told.splitlines() if "run_group" in line or "runGroup" in line)
    assert '"grid"' in json.dumps(first) and run.name in json.dumps(first)


def test_every_run_is_one_that_wandb_agent_would_start(tmp_path):
    "The command of the sweep, filled in by W&B's own agent, is one run of the batch."
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
    from semissl.many.command import parser, sweep
    from semissl.many.grid import read_grid, runs_of

    definition = sweep(dict(lr=[1e-3, 2e-3], validation_per_class=1), TRAIN, tmp_path)
    macros = create_sweep_command_args({"args": {"lr": {"value": 0.002}, "validation_per_class": {"value": 1}}})
    words = [
        w
        for word in definition["command"]
        for w in (macros["args_no_hyphens"] if word == "${args_no_hyphens}" else [word])
    ]
    assert words[0] == "semissl-batch"
    options = parser().parse_args(words[1:])
    (run,) = runs_of(read_grid(options.grid), options.notebook, options.root)
    assert (run.parameters["lr"], run.parameters["validation_per_class"]) == (0.002, 1)
