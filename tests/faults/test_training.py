"A training that is killed, interrupted, starved of disk and lied to ends as one that nothing happened to: bit for bit."

import json, os, random, signal, subprocess, time, zipfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
import pytest
from work import FAULTS, FULL, SECRET, begin, finish, history, kill, rows, said, same

pytestmark = pytest.mark.slow
WANDB = {"wandb_project": "faults"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    "The run that nothing happens to."
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    finish(run_dir, WANDB)
    assert [int(r["step"]) for r in rows(run_dir)] == [9, 19, 29] and len(history(run_dir)) == 3
    return run_dir


def test_the_comparison_can_fail(reference, tmp_path):
    finish(tmp_path / "run", {"seed": 1})
    with pytest.raises(AssertionError):
        same(tmp_path / "run", reference)


def test_killed_at_random_instants(reference, tmp_path):
    "kill -9, again and again; every run is then brought to its end."
    dice, wanted, kills, runs, resumed = random.Random(time.time_ns()), 24 if FULL else 8, 0, 0, 0
    while kills < wanted:
        run_dir, runs = tmp_path / f"run-{runs}", runs + 1
        while not (run_dir / "result.json").exists() and kills < wanted:
            process, patient = begin(run_dir, WANDB), kills % 2
            # every second one after a checkpoint, however slow the machine
            while patient and process.is_alive() and not (run_dir / "last.ckpt").exists():
                time.sleep(0.02)
            time.sleep(dice.uniform(0, 1) if patient else dice.uniform(0.2, 5))
            kills += kill(process)
        resumed += (run_dir / "last.ckpt").exists()
        finish(run_dir, WANDB)
        same(run_dir, reference)
        assert history(run_dir) == history(reference)
    FAULTS.append(
        (
            "kill -9 at a random instant, then started again",
            kills,
            f"{runs} runs, weights, optimizer, rows, metrics and W&B history bit for bit",
        )
    )
    assert resumed, "expected checkpoints to go on from, got none: every run began anew"


# ---- in the middle of a write ---------------------------------------------------------------------------------------


def die_in_write(phase, nth):
    "End this process by kill -9 in the nth write of a checkpoint."
    import torch

    count, save, replace = [0], torch.save, os.replace

    def end():
        os.kill(os.getpid(), signal.SIGKILL)

    def half(content, file):
        count[0] += 1
        if count[0] < nth or phase != "half":
            return save(content, file)
        save(content, whole := Path(file.name + ".whole"))
        file.write(whole.read_bytes()[:20000])
        file.flush()
        whole.unlink()
        end()

    def moving(source, target):
        if Path(target).name == "previous.ckpt" and count[0] >= nth and phase == "before the rotation":
            end()
        replace(source, target)
        if Path(target).name == "previous.ckpt" and count[0] >= nth and phase == "after the rotation":
            end()

    torch.save, os.replace = half, moving


@pytest.mark.parametrize("phase", ["half", "before the rotation", "after the rotation"])
def test_killed_in_the_write_of_a_checkpoint(reference, tmp_path, phase):
    run_dir = tmp_path / "run"
    process = begin(run_dir, every=0.0, prepare=partial(die_in_write, phase, 4))
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, said(run_dir)
    left = {p.name for p in run_dir.iterdir()}
    assert ("last.ckpt" in left) == (phase != "after the rotation") and "previous.ckpt" in left
    finish(run_dir)
    same(run_dir, reference)
    FAULTS.append((f"kill -9 in the write of a checkpoint, {phase}", 1, "bit for bit"))


# ---- damage ---------------------------------------------------------------------------------------------------------


def stop_at(step):
    "An exception after a step, as a lost connection gives."
    from semissl.run.record import Recorder

    before = Recorder.on_train_batch_end

    def after(self, trainer, module, outputs, batch, batch_idx):
        before(self, trainer, module, outputs, batch, batch_idx)
        if batch.step == step:
            raise ConnectionAbortedError("gone")

    Recorder.on_train_batch_end = after


DAMAGE = {
    "cut": lambda b: b[: len(b) // 2],
    "one bit": lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :],
    "zeros": lambda b: bytes(len(b)),
    "empty": lambda b: b"",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_falls_back_and_says_so(reference, tmp_path, kind):
    run_dir = tmp_path / "run"
    process = begin(run_dir, every=0.0, prepare=partial(stop_at, 17))
    process.join(120)
    assert process.exitcode == 1 and (run_dir / "previous.ckpt").exists()
    (run_dir / "last.ckpt").write_bytes(DAMAGE[kind]((run_dir / "last.ckpt").read_bytes()))
    with open(run_dir / "metrics.csv", "a") as file:
        file.write("19,1,1.0")  # and a line that was cut
    assert "last.ckpt is damaged" in finish(run_dir)
    same(run_dir, reference)
    FAULTS.append((f"newest checkpoint damaged ({kind})", 1, "named, the one before it taken, bit for bit"))


def test_both_checkpoints_damaged_begins_anew(reference, tmp_path):
    run_dir = tmp_path / "run"
    begin(run_dir, every=0.0, prepare=partial(stop_at, 17)).join(120)
    for name in ("last.ckpt", "previous.ckpt"):
        (run_dir / name).write_bytes(b"no checkpoint")
    told = finish(run_dir)
    assert "last.ckpt is damaged" in told and "previous.ckpt is damaged" in told
    same(run_dir, reference)
    FAULTS.append(("both checkpoints damaged", 1, "named, trained from the beginning, bit for bit"))


def die_in_a_baseline(step):
    from semissl.run.record import Recorder

    before = Recorder.on_train_batch_end

    def after(self, trainer, module, outputs, batch, batch_idx):
        before(self, trainer, module, outputs, batch, batch_idx)
        if module.objective is None and batch.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Recorder.on_train_batch_end = after


def test_killed_in_a_baseline(tmp_path):
    "It goes on in the baseline, and trains nothing twice that was finished."
    options = {"baselines": True, "epochs": 2}
    finish(tmp_path / "whole", options)
    process = begin(tmp_path / "run", options, every=0.0, prepare=partial(die_in_a_baseline, 13))
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and (tmp_path / "run" / "labels_only" / "last.ckpt").exists()
    finish(tmp_path / "run", options)
    same(tmp_path / "run", tmp_path / "whole")
    compared = [json.loads((tmp_path / name / "result.json").read_text())["baselines"] for name in ("run", "whole")]
    for one in compared:
        for values in one.values():
            values.pop("seconds")
    assert compared[0] == compared[1] and not (tmp_path / "run" / "labels_only").exists()
    FAULTS.append(("kill -9 in a baseline", 1, "goes on there, all metrics the same"))


def die_at_the_end():
    from semissl.run.track import Tracker

    Tracker.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def test_killed_between_the_result_and_the_end_of_wandb(reference, tmp_path):
    run_dir = tmp_path / "run"
    process = begin(run_dir, WANDB, prepare=die_at_the_end)
    process.join(120)
    assert (
        process.exitcode == -signal.SIGKILL
        and (run_dir / "result.json").exists()
        and not json.loads((run_dir / "wandb.json").read_text())["finished"]
    )
    finish(run_dir, WANDB)
    assert json.loads((run_dir / "wandb.json").read_text())["finished"] and history(run_dir) == history(reference)
    same(run_dir, reference)
    FAULTS.append(("kill -9 after result.json, before the end of the W&B run", 1, "the W&B run is completed"))


# ---- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_asked_to_stop(reference, tmp_path, name):
    "Ctrl-C in the notebook, the end of a Slurm job: the step is finished and kept."
    run_dir = tmp_path / "run"
    process = begin(run_dir, every=60.0, prepare=partial(ask_at, name, 13))
    process.join(120)
    assert process.exitcode not in (0, None)
    import torch

    assert torch.load(run_dir / "last.ckpt", weights_only=True)["global_step"] in (14, 15)  # nothing was lost
    assert name != "SIGINT" or "training was interrupted; the same call goes on" in said(run_dir)
    assert "Ctrl-C as before" in said(run_dir) and "Ctrl-C changed" not in said(run_dir)
    finish(run_dir)
    same(run_dir, reference)
    FAULTS.append((f"{name} in the middle of an epoch", 1, "no step lost, bit for bit"))


def ask_at(name, step):
    from semissl.run.record import Recorder

    before = Recorder.on_train_batch_end

    def after(self, trainer, module, outputs, batch, batch_idx):
        before(self, trainer, module, outputs, batch, batch_idx)
        if batch.step == step:
            os.kill(os.getpid(), getattr(signal, name))

    Recorder.on_train_batch_end = after


def jump():
    "The wall clock goes back a day, and then forward a year, every few calls."
    real, calls = time.time, [0]

    def false():
        calls[0] += 1
        return real() + (-86400, 0, 31536000)[calls[0] // 3 % 3]

    time.time = false


def test_a_clock_that_jumps(reference, tmp_path):
    run_dir = tmp_path / "run"
    process = begin(run_dir, every=0.2, prepare=jump)
    time.sleep(2.5)
    kill(process)
    finish(run_dir, prepare=jump)
    same(run_dir, reference)
    assert all(0 <= float(r["lr"]) for r in rows(run_dir))
    FAULTS.append(("the wall clock jumps by a day and a year", 1, "bit for bit"))


# ---- a full disk ----------------------------------------------------------------------------------------------------


@contextmanager
def disk(folder: Path, size: str):
    "A small file system in memory."
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_full_at_a_checkpoint(reference, tmp_path):
    "No room for a second checkpoint: training goes on and says so, the last one is an error; with room, it goes on."
    size = (reference / "last.ckpt").stat().st_size
    with disk(tmp_path / "disk", str(int(size * 1.5))) as folder:
        run_dir = folder / "run"
        process = begin(run_dir, every=0.0)
        process.join(120)
        told = said(run_dir)
        assert (
            process.exitcode == 1
            and "training goes on, and the checkpoint before it stays" in told
            and "expected room for the last checkpoint" in told
        ), told[-3000:]
        assert (
            zipfile.ZipFile(run_dir / "last.ckpt").testzip() is None
            and not (run_dir / "result.json").exists()
            and not list(run_dir.glob(".last*"))
        )
        subprocess.run(["mount", "-o", f"remount,size={size * 4}", str(folder)], check=True)
        finish(run_dir)
        same(run_dir, reference)
    FAULTS.append(("disk full at a checkpoint", 1, "said, the one before it kept, then bit for bit"))


def fill_before(what, folder):
    "Fill the disk just before something is written."
    do = getattr(*what())

    def full(*args, **kwargs):
        with open(Path(folder) / "filler", "ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 12))
            except OSError:
                pass
        return do(*args, **kwargs)

    setattr(*what(), full)


def result():
    import semissl.run.fit

    return semissl.run.fit, "write_result"


def last_rows():
    from semissl.run.record import MetricsFile

    return MetricsFile, "append"


@pytest.mark.parametrize("what", [result, last_rows], ids=lambda f: f.__name__)
def test_disk_full_at(reference, tmp_path, what):
    with disk(tmp_path / "disk", str((reference / "last.ckpt").stat().st_size * 4)) as folder:
        run_dir = folder / "run"
        process = begin(run_dir, every=60.0, prepare=partial(fill_before, what, str(folder)))
        process.join(120)
        assert process.exitcode == 1 and not (run_dir / "result.json").exists(), said(run_dir)[-3000:]
        (folder / "filler").unlink()
        finish(run_dir)
        same(run_dir, reference)
    FAULTS.append((f"disk full at the {what.__name__.replace('_', ' ')}", 1, "no half result, then bit for bit"))


def test_disk_full_at_the_cache(tmp_path):
    "Decoding stops in words; with room, it gives the pixels of a decoding that was never stopped."
    import numpy as np
    from PIL import Image
    from semissl.data.sources import load_images

    for k in range(64):
        path = tmp_path / "images" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    wanted = load_images(tmp_path / "images", cache=False).images
    with disk(tmp_path / "disk", "600k") as folder:  # of 786 kB
        with pytest.raises(OSError):
            load_images(tmp_path / "images", cache=folder, workers=1)
        subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
        assert (load_images(tmp_path / "images", cache=folder, workers=1).images == wanted).all()
        assert (load_images(tmp_path / "images", cache=folder, workers=1).images == wanted).all()
    FAULTS.append(("disk full while images are decoded", 1, "an OSError, then every pixel right"))


# ---- two at once, and secrets ---------------------------------------------------------------------------------------


def test_two_trainings_in_one_run_dir(reference, tmp_path):
    run_dir = tmp_path / "run"
    one = begin(run_dir)
    while not (run_dir / "metrics.csv").exists():
        time.sleep(0.05)
        assert one.is_alive(), said(run_dir)
    two = begin(run_dir)
    two.join(60)
    one.join(120)
    assert (one.exitcode, two.exitcode) == (0, 1) and "expected a run_dir that no other process works in" in said(
        run_dir
    )
    same(run_dir, reference)
    FAULTS.append(("a second training in the same run_dir", 1, "refused, the first one bit for bit"))


def test_the_key_is_in_no_file(reference):
    left = [p for p in reference.parent.rglob("*") if p.is_file()]
    assert left and not [p for p in left if SECRET.encode() in p.read_bytes()]
    FAULTS.append(("WANDB_API_KEY in the environment", 1, f"in none of the {len(left)} files left behind"))
