"What no notebook cell can show of the data: a decode that is killed, two that start together, places that cannot be written."

import os, signal, subprocess, sys, time, warnings, zipfile
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from semissl.data.sources import load_images

SIDE, COUNT = 24, 4000


@pytest.fixture
def archive(tmp_path):
    "4,000 small pictures of noise in two classes."
    noise = np.random.default_rng(0).integers(0, 255, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "noise.zip", "w") as file:
        for i, pixels in enumerate(noise):
            Image.fromarray(pixels).save(picture := tmp_path / "one.png")
            file.write(picture, f"{'ab'[i % 2]}/{i:05}.png")
    picture.unlink()
    return tmp_path / "noise.zip", noise


def start(archive: Path, slow: float = 0) -> subprocess.Popen:
    "Decode in a process of its own; `slow` seconds more for each picture, so that there is time to kill it."
    code = (
        "import os, sys, time, torch; from semissl import load_images; from semissl.data import blocks; os.setpgid(0, 0)\n"
        "plain = blocks.decode_image\n"
        f"blocks.decode_image = lambda *a, **k: (time.sleep({slow}), plain(*a, **k))[1]\n"
        "x = load_images(sys.argv[1]); print(len(x), int(x.images.long().sum()))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(archive)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def in_order(noise):
    return np.concatenate([noise[0::2], noise[1::2]]).transpose(0, 3, 1, 2)  # class a, then class b


def test_a_killed_decode_goes_on_where_it_was(archive):
    file, noise = archive
    first, deadline, log = start(file, slow=0.002), time.monotonic() + 120, []
    while len(log) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
        log = [
            line
            for f in file.parent.glob(".semissl-cache/noise-*/unfinished-*.log")
            for line in f.read_text().splitlines()
        ]
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL and len(log) >= 3
    assert not list(file.parent.glob(".semissl-cache/noise-*/cache.json"))  # half a cache is no cache
    rows = next(file.parent.glob(".semissl-cache/noise-*/unfinished-*.npy"))
    inode = rows.stat().st_ino
    images = load_images(file)
    assert (images.images.numpy() == in_order(noise)).all()
    # the same file, finished
    assert next(file.parent.glob(".semissl-cache/noise-*/images-*.npy")).stat().st_ino == inode
    assert not list(file.parent.glob(".semissl-cache/noise-*/unfinished-*"))


def test_workers_end_with_the_process_that_asked():
    code = (
        "import os, time; from semissl.data.blocks import worker_pool\n"
        "pool = worker_pool(2); jobs = [pool.submit(time.sleep, 300) for _ in range(2)]; time.sleep(2)\n"
        "print(*pool._processes, flush=True); time.sleep(300)"
    )
    asked = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in asked.stdout.readline().split()]
    assert len(workers) == 2 and all(Path(f"/proc/{pid}").exists() for pid in workers)
    asked.kill()
    asked.wait()

    def alive(pid):
        # a zombie waits for init
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_two_that_start_together_decode_once(archive):
    file, noise = archive
    both = [start(file), start(file)]
    said = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert {out.split()[-2:] == [str(COUNT), str(int(noise.astype(int).sum()))] for out, _ in said} == {True}
    assert len(list(file.parent.glob(".semissl-cache/noise-*/images-*.npy"))) == 1


def test_a_source_that_cannot_be_written_beside(archive, tmp_path, monkeypatch):
    file, noise = archive
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / ".semissl-cache").mkdir()
    (tmp_path / ".semissl-cache").chmod(0o555)
    assert len(load_images(file)) == COUNT
    assert list((home / ".cache" / "semissl").glob("noise-*/cache.json")) and not list(
        (tmp_path / ".semissl-cache").iterdir()
    )


def test_a_bomb_and_a_liar(tmp_path):
    """A member that unpacks to far more than it says, and a picture that claims a billion pixels: named, counted, not
    obeyed."""
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    huge = good[:16] + (40_000).to_bytes(4, "big") * 2 + good[24:]
    with zipfile.ZipFile(tmp_path / "odd.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/good.png", good)
        file.writestr("b/good.png", good)
        file.writestr("a/huge.png", huge)
        file.writestr("a/bomb.png", bytes(50_000_000))
    data = (tmp_path / "odd.zip").read_bytes()
    (tmp_path / "odd.zip").write_bytes(data.replace((50_000_000).to_bytes(4, "little"), (5_000).to_bytes(4, "little")))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = load_images(tmp_path / "odd.zip", max_bad_share=0.5, cache=False)
    assert images.paths == ("a/good.png", "b/good.png")
    assert [s.split(":")[0] for s in images.skipped] == ["a/bomb.png", "a/huge.png"]
    assert "2 of 4 images did not decode" in str(said[-1].message)


@pytest.mark.parametrize("fit", ["crop", "whole"])
def test_a_picture_is_made_square_in_one_way_wherever_it_comes_from(tmp_path, fit):
    "A file, an archive, an opened picture, an array, and what a saved model is shown: the same pixels."
    import zipfile
    from PIL import Image
    from semissl import FewLabelClassifier
    from semissl import load_images
    from semissl.data.sources import listed
    from semissl.use.predict import blocks

    rng = np.random.default_rng(0)
    # 48 high, 64 wide
    rows = [np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(12)]
    (tmp_path / "photos").mkdir()
    for i, row in enumerate(rows):
        Image.fromarray(row).save(tmp_path / "photos" / f"{i:02}.png")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted((tmp_path / "photos").iterdir()):
            archive.write(file, file.name)
    wanted = load_images(rows, 24, fit=fit).images
    found = dict(
        folder=load_images(tmp_path / "photos", 24, fit=fit),
        zip=load_images(tmp_path / "photos.zip", 24, fit=fit),
        opened=load_images([Image.fromarray(r) for r in rows], 24, fit=fit),
        array=load_images(np.stack(rows), 24, fit=fit),
        again=load_images(tmp_path / "photos", 24, fit=fit),
    )
    for name, images in found.items():
        assert (images.images.int() - wanted.int()).abs().max() <= 2, name
    # its cache is another
    assert (
        load_images(tmp_path / "photos", 24, fit="crop" if fit == "whole" else "whole").images.int() - wanted.int()
    ).abs().float().mean() > 10
    model = FewLabelClassifier(image_size=24, epochs=1, settings=dict(fit=fit)).fit(tmp_path / "photos", [0, 1] * 6)
    again = FewLabelClassifier.load(model.save(tmp_path / "model.safetensors"))
    assert again.model_.fit == fit and np.allclose(
        again.predict_proba(tmp_path / "photos"), model.predict_proba(rows), atol=0.02
    )
    (block,) = blocks(listed(tmp_path / "photos"), 24, fit=again.model_.fit)
    assert (block.images.int() - wanted.int()).abs().max() <= 2
