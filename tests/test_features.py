"What no notebook cell can show of the look: killed in the middle, twice at once, a full disk, and how much memory it takes."

import os, signal, subprocess, sys, time
import numpy as np, pytest, torch
from semissl.run.engine import Looker
from semissl.run.features import look

CODE = """
import sys, resource, torch
from pathlib import Path
from semissl.method.encoder import small_resnet
from semissl.run.engine import Looker; from semissl.run.features import look
torch.set_num_threads(1); torch.manual_seed(0)
looker = Looker(small_resnet(8), 32, (.5,) * 3, (.5,) * 3)
import numpy as np
pixels = torch.from_numpy(np.load(sys.argv[2], mmap_mode="c"))[:int(sys.argv[3])]
seen = look(pixels, looker, ["plain", "mirror"], Path(sys.argv[1]))
print(seen.fresh, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    path = tmp_path_factory.mktemp("pixels") / "pixels.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (4000, 3, 64, 64), dtype=np.uint8))
    return path


def start(folder, pixels, n=4000):
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder), str(pixels), str(n)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return tuple(map(int, out.split()))


def rows(folder):
    "Features of each view by the name of the pixels."
    found = {}
    for view in ("plain", "mirror"):
        (place,) = folder.glob(f"*/{view}")
        names = np.fromfile(place / "names.bin", "V16")
        h = np.fromfile(place / "rows.f16", np.float16).reshape(len(names), 64)
        found[view] = {n.tobytes(): r for n, r in zip(names, h)}
    return found


def test_a_killed_look_goes_on(tmp_path, pixels):
    first = start(tmp_path / "a", pixels)
    while not any(p.stat().st_size > 16 * 300 for p in (tmp_path / "a").glob("*/plain/names.bin")):
        assert first.poll() is None, first.communicate()[1][-2000:]
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    for torn in (tmp_path / "a").glob("*/plain/rows.f16"):
        with open(torn, "ab") as file:
            file.write(b"\0" * 77)  # as a kill inside a write leaves it
    fresh, _ = finished(start(tmp_path / "a", pixels))
    assert fresh == 4000  # of the mirrored view all; of the plain one what was missing
    assert finished(start(tmp_path / "a", pixels))[0] == 0
    finished(start(tmp_path / "b", pixels))
    a, b = rows(tmp_path / "a"), rows(tmp_path / "b")
    for view in a:
        assert a[view].keys() == b[view].keys() and len(a[view]) == 4000
        for name, h in b[view].items():
            np.testing.assert_allclose(a[view][name].astype(float), h.astype(float), rtol=2e-3, atol=2e-3)


def test_two_at_once_look_once(tmp_path, pixels):
    both = [start(tmp_path, pixels, 1500) for _ in range(2)]
    [finished(p) for p in both]
    assert {len(v) for v in rows(tmp_path).values()} == {1500}
    for view in ("plain", "mirror"):
        names = np.fromfile(next(tmp_path.glob(f"*/{view}/names.bin")), "V16")
        assert len(np.unique(names)) == len(names), "an image was looked at twice"


def test_two_processes_share_a_look(tmp_path, pixels):
    """Started by Lightning's Fabric as GPUs would be: each looks at about half, none at what the other has; what `look`
    then has to do is nothing."""
    script = tmp_path / "look.py"
    script.write_text(
        CODE.replace("features import look", "features import look, look_together")
        .replace(
            "seen = look(",
            'mine = look_together(pixels, looker, ["plain", "mirror"], Path(sys.argv[1]), devices=2)\nseen = look(',
        )
        .replace("print(", "print(mine, ")
    )
    began = subprocess.run(
        [sys.executable, script, tmp_path / "a", pixels, "1500"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert began.returncode == 0, began.stderr[-3000:]
    (mine, left, _), (others, left_too, _) = (
        map(int, line.split()) for line in began.stdout.splitlines() if line[:1].isdigit()
    )
    assert mine + others == 1500 and 600 < mine < 900 and left == left_too == 0
    finished(start(tmp_path / "b", pixels, 1500))
    a, b = rows(tmp_path / "a"), rows(tmp_path / "b")
    for view in a:
        names = np.fromfile(next((tmp_path / "a").glob(f"*/{view}/names.bin")), "V16")
        assert a[view].keys() == b[view].keys() and len(names) == 1500
        for name, h in b[view].items():
            np.testing.assert_allclose(a[view][name].astype(float), h.astype(float), rtol=2e-3, atol=2e-3)


def test_memory_does_not_grow_with_the_images(tmp_path, pixels):
    few, many = (finished(start(tmp_path / str(n), pixels, n))[1] for n in (400, 4000))
    assert many - few < 60, f"{few} MiB for 400 images, {many} for 4,000, whose pixels are 47 MiB and features 1 MiB"


def test_memory_of_what_learning_sees(tmp_path):
    """Every second of up to 2,000 images of 147 kB, by `seen_by`: no copy of them, though the run's pictures come from
    there."""
    np.save(tmp_path / "pixels.npy", np.random.default_rng(0).integers(0, 256, (2000, 3, 224, 224), np.uint8))
    code = """
import sys, resource, numpy as np, torch
from semissl.data.images import ImageSet
from semissl.data.split import LabelSplit
from semissl.run.answer import seen_by; from semissl.run.config import TrainConfig; from semissl.run.task import Task
import semissl.run.answer
torch.set_num_threads(1)
n = int(sys.argv[2])
pixels, rows, plan = torch.from_numpy(np.load(sys.argv[1], mmap_mode="c"))[:n], torch.arange(4), semissl.run.answer.new_sight
def fewer(*given, **more): sight = plan(*given, **more); sight.most = n // 2; return sight
semissl.run.answer.new_sight = fewer
images = ImageSet(pixels, torch.where(torch.arange(n) < 4, torch.arange(n) % 2, -1), ("a", "b"), tuple(map(str, range(n))), "made")
task, sight = seen_by(TrainConfig(data="images", encoder="tf_efficientnet_lite0", image_size=32, views="plain"), Task(images, None, None, LabelSplit(rows, rows[:0], "")))
some = task.train.select(range(100))
assert len(task.train) == n // 2 and some.pictures[torch.tensor([1, 7])].shape == (2, 3, 224, 224)
torch.testing.assert_close(some.pictures[7], pixels[task.train.pictures.rows[7]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

    def peak(n):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "pixels.npy", str(n)],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "", "SEMISSL_CACHE": str(tmp_path / str(n))},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return int(done.stdout.splitlines()[-1])

    few, many = peak(600), peak(2000)
    assert many - few < 60, (
        f"{few} MiB for 600 images, {many} for 2,000, of which half are looked at: a copy has 100 MiB more"
    )


def test_a_folder_that_cannot_be_written(tmp_path, pixels):
    from semissl.method.encoder import small_resnet

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        look(
            torch.from_numpy(np.load(pixels)[:4]),
            Looker(small_resnet(8), 32, (0.5,) * 3, (0.5,) * 3),
            ["plain"],
            tmp_path / "file",
        )


def test_fine_tuning_in_what_a_budget_leaves(tmp_path, monkeypatch, capsys):
    from semissl.data.sources import load_images
    from semissl.data.split import hide_labels, label_split
    from semissl.run.config import TrainConfig
    from semissl.run.fit import fit
    from semissl.run.task import Task

    monkeypatch.setenv("SEMISSL_CACHE", str(tmp_path / "cache"))
    all_digits = load_images("digits")
    train, test = all_digits.select(range(0, 300)), all_digits.select(range(300, 360))
    split = label_split(train.labels, 4, seed=0)
    task = Task(hide_labels(train, split), test, None, split)
    config = dict(
        learn_on="features",
        encoder="tf_efficientnet_lite0",
        image_size=32,
        views="plain",
        wandb_project="",
        round_steps=10,
    )
    began = time.monotonic()
    result = fit(TrainConfig(budget="60 s", run_dir=str(tmp_path / "long"), **config), task)
    assert time.monotonic() - began < 75
    assert set(result.baselines) == {"logistic_regression", "class_means", "fine_tuning"}
    tuned = result.baselines["fine_tuning"]
    assert tuned["test_accuracy"] > 0.4 and 1 < tuned["seconds"] < 55
    monkeypatch.setattr("semissl.run.answer.LEARN_FROM", 120)
    # no budget, no GPU: nobody asked for the time
    result = fit(TrainConfig(run_dir=str(tmp_path / "free"), **config), task)
    assert "fine_tuning" not in result.baselines or torch.cuda.is_available()
    assert (result.data["train_images"], result.data["left_aside"], result.data["labelled"]) == (120, 180, 40)
    assert "180 unlabelled ones are left aside, for no more than 120 are learnt from" in capsys.readouterr().out
    result = fit(TrainConfig(budget="0.1 s", run_dir=str(tmp_path / "short"), **config), task)
    assert (
        "fine_tuning" not in result.baselines
        and "Fine-tuning is left out: the budget is used up." in capsys.readouterr().out
    )
