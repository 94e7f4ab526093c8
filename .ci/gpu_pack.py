"""CIFAR-10 in sheets of lossless WebP, three quarters of its PNGs' size, in two loads that fit 64 MiB with the code.

    python .ci/gpu_pack.py TRAIN_ZIPS TEST_ZIP [SHARE]      (TRAIN_ZIPS joined by commas; SHARE of the images, 1 by default)

Writes .gpu/load-1 (31,500 training images) and .gpu/load-2 (the others, and the test images), decodes every sheet again
and compares it with the source pixel by pixel: a difference is an error. `unpack` gives the two `ImageSet`s back.
"""

import io, json, sys, time
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from semissl.data.images import ImageSet
from semissl.data.sources import load_images

ROOT = Path(__file__).resolve().parents[1]
SHEET, FIRST = 900, 31_500  # images in a sheet of 30 x 30; training images in the first load


def sheet(pixels: np.ndarray) -> bytes:  # (n, 3, S, S) uint8, n <= SHEET
    "Some images side by side, black where none is."
    n, _, side, _ = pixels.shape
    whole = np.zeros((SHEET, side, side, 3), np.uint8)
    whole[:n] = pixels.transpose(0, 2, 3, 1)
    out = io.BytesIO()
    Image.fromarray(
        whole.reshape(30, 30, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(30 * side, 30 * side, 3)
    ).save(out, "WEBP", lossless=True, quality=100, method=4, exact=True)
    return out.getvalue()


def cut(data: bytes, n: int) -> np.ndarray:  # (n, 3, S, S) uint8
    "The images of a sheet."
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    side = len(whole) // 30
    return whole.reshape(30, side, 30, side, 3).transpose(0, 2, 4, 1, 3).reshape(SHEET, 3, side, side)[:n]


def pack(images: ImageSet, part: str) -> int:
    "Write and check the sheets of one part; bytes written."
    size, pixels = 0, images.images.numpy()
    for start in range(0, len(images), SHEET):
        folder = ROOT / ".gpu" / ("load-1" if part == "train" and start < FIRST else "load-2")
        folder.mkdir(parents=True, exist_ok=True)
        rows = slice(start, start + SHEET)
        data = sheet(pixels[rows])
        assert (cut(data, len(pixels[rows])) == pixels[rows]).all(), (
            f"{part} from {start}: the sheet differs from its source"
        )
        (folder / f"{part}-{start:05}.webp").write_bytes(data)
        (folder / f"{part}-{start:05}.json").write_text(
            json.dumps(dict(labels=images.labels[rows].tolist(), classes=images.classes))
        )
        size += len(data)
    return size


def unpack(folders: list[Path], part: str) -> ImageSet:  # of loads that are there
    "The images of one part."
    files = sorted((p for f in folders for p in f.glob(f"{part}-*.webp")), key=lambda p: p.name)
    about = [json.loads(p.with_suffix(".json").read_text()) for p in files]
    pixels = np.concatenate([cut(p.read_bytes(), len(a["labels"])) for p, a in zip(files, about)])
    labels = torch.tensor([y for a in about for y in a["labels"]])
    return ImageSet(
        torch.from_numpy(pixels), labels, tuple(about[0]["classes"]), tuple(map(str, range(len(labels)))), "cifar10"
    )


if __name__ == "__main__":
    train, test, share = sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 1.0
    began, written = time.perf_counter(), {}
    for part, source in dict(train=train, test=test).items():
        images = load_images(source, size=32)
        if share < 1:
            images = images.select(torch.linspace(0, len(images) - 1, int(share * len(images))).long())
        written[part] = pack(images, part), len(images)
    for part, (size, n) in written.items():
        print(f"{part}: {n} images, {size / n:.0f} bytes each, {size / 2**20:.1f} MiB, every pixel as in the source")
    print(f"{time.perf_counter() - began:.0f} s")
