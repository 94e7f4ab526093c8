"Photographs for tests: crops of scikit-learn's two sample pictures, and a pattern, in the formats, sizes and modes that people's folders have."

from pathlib import Path
import numpy as np
from PIL import Image

KINDS = ("temple", "flower", "pattern")


def photos(folder: Path, n: int, seed: int = 0) -> dict[str, str]:
    "n photos in a flat folder, no label in any name; the truth by path."
    from sklearn.datasets import load_sample_image

    rng, truth = np.random.default_rng(seed), {}
    scenes = [Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        kind, side = KINDS[i % 3], int(rng.integers(70, 200))
        if kind == "pattern":
            image = Image.fromarray(
                np.kron(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8), np.ones((side // 4, side // 4, 1), np.uint8))
            )
        else:
            scene = scenes[KINDS.index(kind)]
            left, top = (int(rng.integers(0, room)) for room in (scene.width - side, scene.height - side))
            image = scene.crop((left, top, left + side, top + side - side // (3 + i % 5)))
        suffix, mode = (("jpg", "RGB"), ("png", "RGBA"), ("webp", "RGB"), ("png", "L"), ("jpg", "CMYK"), ("png", "P"))[
            i % 6 if kind != "pattern" else 0
        ]
        name = f"photo-{rng.integers(0, 10**9):09}.{suffix}"
        image.convert(mode).save(folder / name)
        truth[name] = kind
    return truth
