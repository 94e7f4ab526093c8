"""Whatever people bring: random layouts, names, tables, pictures and labels, from a seed. Each case is loaded, or refused in one sentence;
no label changes, no image is lost without being counted. SEMISSL_CASES is how many of each kind (the gate: 60; once: 700)."""

import io, os, random, unicodedata, warnings, zipfile
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from semissl import load_images
from semissl.data.labels import label_rows
from semissl.data.sources import load_images
from semissl.use.labeller import Labeller

CASES = int(os.environ.get("SEMISSL_CASES", "60"))
WORDS = [
    "cat",
    "dog",
    "Bär",
    "猫",
    "a b",
    "10",
    "2",
    "thumbs",
    "train set",
    "x.y",
    "été",
    "O'Neil",
    "🐸",
    "no-1",
    "under_score",
]


def png(colour: int, size=(8, 8)) -> bytes:
    Image.new("L", size, colour % 256).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def saved(r: random.Random, colour: int) -> tuple[bytes, str]:
    "A picture in one of the ways people save them, and its suffix: right, in capitals, of a browser, or none."
    form, suffix = r.choice(
        [
            ("PNG", ".png"),
            ("JPEG", ".jpg"),
            ("JPEG", ".JPG"),
            ("JPEG", ".jfif"),
            ("JPEG", ".jpe"),
            ("WEBP", ".webp"),
            ("BMP", ".bmp"),
            ("GIF", ".gif"),
            ("TIFF", ".tif"),
            ("JPEG", ""),
            ("PNG", ".jpeg_large"),
        ]
    )
    mode = r.choice(
        ["RGB", "L", "P", "1"] if form in ("PNG", "GIF", "BMP", "TIFF") else ["RGB", "L"] if form == "JPEG" else ["RGB"]
    )
    Image.new("RGB", (r.randint(4, 20), r.randint(4, 20)), (colour % 256, 80, 9)).convert(mode).save(
        file := io.BytesIO(), form
    )
    return file.getvalue(), suffix


def sentence(err: Exception) -> bool:
    return isinstance(err, (ValueError, OSError)) and str(err).startswith("expected")


def tree(r: random.Random) -> tuple[dict[str, bytes], dict[str, tuple[str, str]], int]:
    "Files by name; (part, class) of every picture by the rules of `data.layout`; how many other files there are."
    classes = r.sample(WORDS, r.randint(2, 4))
    if r.random() < 0.3:
        classes[0] = unicodedata.normalize("NFD", classes[0])
    kind = r.choice(["classes", "parts", "parts and validation", "flat", "class called train"])
    if kind == "class called train":
        classes[0] = r.choice(["train", "Test"])
    outer = "/".join(r.sample(["photos", "repo-main", "data"], r.choice([0, 0, 1, 2]))) if kind != "flat" else ""
    outer += "/" if outer else ""
    truth, files, n = {}, {}, 0

    def add(folder, part, name):
        nonlocal n
        data, suffix = saved(r, n)
        path = f"{outer}{folder}{n}{suffix}"
        files[path], truth[path] = data, (part, unicodedata.normalize("NFC", name))
        n += 1

    if kind == "flat":
        for _ in range(r.randint(2, 6)):
            add("", "train", "")
    elif kind in ("classes", "class called train"):
        for c in classes:
            for _ in range(r.randint(1, 3)):
                add(f"{c}/" + ("deep/" if r.random() < 0.1 else "") if kind == "classes" else f"{c}/", "train", c)
    else:
        spelt = r.choice([str.lower, str.title, str.upper])
        for c in classes:
            for part in ["train", "test"] + (["valid"] if kind == "parts and validation" else []):
                add(f"{spelt(part)}/{c}/", "train" if part == "valid" else part, c)
    if kind != "flat" and not kind.startswith("class called"):
        for _ in range(r.choice([0, 1, 2])):
            add(r.choice(["unlabelled/", "Unlabeled/", ""]), "train", "")
    others = r.choice([0, 0, 1, 2])
    for i in range(others):
        files[
            f"{outer}{r.choice(['notes.txt', 'meta.json', 'raw.xyz'])[:-4]}{i}{r.choice(['.txt', '.json', '.xyz'])}"
        ] = b"no picture at all, whatever it is called"
    return files, truth, others


@pytest.mark.parametrize("seed", range(CASES))
def test_a_layout_is_read_as_a_person_would(seed, tmp_path, capsys):
    r = random.Random(seed)
    files, truth, others = tree(r)
    if r.random() < 0.5:
        source = tmp_path / "box.zip"
        with zipfile.ZipFile(source, "w") as z:
            for name, data in files.items():
                z.writestr(name, data)
    else:
        source = tmp_path / "box"
        for name, data in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
    counted = 0
    for part in sorted({p for p, _ in truth.values()}):
        images = load_images(source, 8, part=part, cache=False)
        found = {p: images.classes[y] if y >= 0 else "" for p, y in zip(images.paths, images.labels.tolist())}
        assert found == {p: c for p, (where, c) in truth.items() if where == part}, (files.keys(), images)
        counted += len(images) + len(images.skipped)
    assert counted == len(truth)
    said = capsys.readouterr().out
    assert ("left aside" in said) == bool(others) and (not others or f"{others} files left aside" in said), said


def table(r: random.Random, names: list[str], labels: dict[str, str], where: Path, folder: Path) -> Path:
    "A CSV as some program writes it."
    way = r.choice(["as they stand", "absolute", "wrapped", "windows", "dotted", "capitals of the suffix"])
    spelt = {
        "as they stand": lambda p: p,
        "absolute": lambda p: f"{folder.resolve()}/{p}",
        "wrapped": lambda p: f"{folder.name}/{p}",
        "windows": lambda p: p.replace("/", "\\"),
        "dotted": lambda p: f"./{p}",
        "capitals of the suffix": lambda p: p[:-3] + p[-3:].upper(),
    }[way]
    form = r.choice([unicodedata.normalize, lambda _, t: t])
    head = r.choice([("path", "label"), ("Path", " Label"), ("image", "choice"), ("filename", "class")])
    rows = [(form("NFD", spelt(p)), labels[p]) for p in names if p in labels]
    separator, encoding, end = (
        r.choice([",", ";", "\t"]),
        r.choice(["utf-8", "utf-8-sig", "utf-16"]),
        r.choice(["\n", "\r\n"]),
    )
    quoted = lambda t: f'"{t}"' if separator in t else t
    text = (
        end.join(separator.join(map(quoted, row)) for row in [head, *rows]) + end + r.choice(["", end, separator + end])
    )
    where.write_bytes(text.encode(encoding))
    return where


@pytest.mark.parametrize("seed", range(CASES))
def test_a_table_gives_each_image_its_label(seed, tmp_path):
    r = random.Random(1000 + seed)
    folder, names = tmp_path / "my photos, 2024 #2", []
    for i in range(r.randint(3, 8)):
        name = r.choice(["", "", "day 1/", "tägliche/"]) + f"{i} é.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(i))
        names.append(name)
    classes = r.sample([w for w in WORDS if w not in ("10", "2")], 2)
    labels = {p: classes[i % 2] if i < 2 else r.choice([*classes, ""]) for i, p in enumerate(names)}
    if r.random() < 0.3:
        labels.pop(names[-1])
    csv = table(r, names, labels, tmp_path / "labels.csv", folder)
    images = load_images(folder, 8, labels=csv, cache=False)
    found = {p: images.classes[y] if y >= 0 else "" for p, y in zip(images.paths, images.labels.tolist())}
    wanted = {p: unicodedata.normalize("NFC", labels.get(p, "")) for p in names}
    assert {unicodedata.normalize("NFC", p): c for p, c in found.items()} == {
        unicodedata.normalize("NFC", p): c for p, c in wanted.items()
    }, csv.read_bytes()[:300]
    labeller = Labeller(folder, tmp_path / "new.csv").answer(csv)  # the labeller reads it alike
    assert {p: c for p, c in labeller.table.items() if c} == {p: c for p, c in found.items() if c}


HOLDERS = {
    "list": list,
    "tuple": tuple,
    "objects": lambda v: np.array(v, dtype=object),
    "Series": lambda v: pd.Series(v, dtype=object),
    "Index": lambda v: pd.Index(v, dtype=object),
    "generator": lambda v: (x for x in v),
    "category": lambda v: pd.Series(v, dtype="category"),
    "frame": lambda v: pd.DataFrame({"y": pd.Series(v, dtype=object)}),
}
VALUES = {
    "names": (["cat", "dog", "eel"], [None, "", float("nan"), -1, pd.NA, np.nan]),
    "numbers": ([0, 3, 7], [None, -1, float("nan"), pd.NA, -1.0]),
    "floats": ([0.5, 1.5, 2.5], [None, float("nan"), -1]),
    "truth": ([True, False], [None, float("nan"), pd.NA]),
    "bytes": ([b"cat", b"dog"], [None, b""]),
    "dates": ([np.datetime64("2024-01-01"), np.datetime64("2024-01-02")], [None, np.datetime64("NaT")]),
}


@pytest.mark.parametrize("seed", range(CASES))
def test_labels_with_gaps(seed):
    r = random.Random(2000 + seed)
    what, holder = r.choice(sorted(VALUES)), r.choice(sorted(HOLDERS))
    known, gaps = VALUES[what]
    values = [*known, *(r.choice([r.choice(known), r.choice(gaps)]) for _ in range(r.randint(2, 12)))]
    r.shuffle(values)
    try:
        given = HOLDERS[holder](values)
    except (TypeError, ValueError):
        pytest.skip(f"{holder} cannot hold {what}")
    rows, classes = label_rows(given, len(values))
    for value, row in zip(values, rows.tolist()):
        gap = not any(type(value) is type(k) and value == k for k in known)
        assert (row < 0) if gap else classes[row] == value, (what, holder, values, rows, classes)


ODD = ["empty", "cut", "text", "directory", "link", "nothing"]


@pytest.mark.parametrize("seed", range(CASES))
def test_damaged_files_are_counted(seed, tmp_path):
    r = random.Random(3000 + seed)
    n, bad = r.randint(8, 30), r.randint(0, 3)
    for i in range(n):
        (tmp_path / f"{i:02}.png").write_bytes(png(i))
    for i in r.sample(range(n), bad):
        path, odd = tmp_path / f"{i:02}.png", r.choice(ODD)
        path.unlink()
        if odd in ("empty", "cut", "text"):
            path.write_bytes(dict(empty=b"", cut=png(i)[:40], text=b"no picture")[odd])
        elif odd == "directory":
            path.mkdir()
        elif odd == "link":
            path.symlink_to(tmp_path / "nowhere.png")
    there = sum(p.is_file() for p in tmp_path.glob("*.png"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            images = load_images(tmp_path, 8, cache=False)
        except ValueError as err:
            assert sentence(err) and "max_bad_share" in str(err)
            images = load_images(tmp_path, 8, cache=False, max_bad_share=1)
    assert len(images) + len(images.skipped) == there and bool(images.skipped) == any(
        "did not decode" in str(w.message) for w in said
    )


@pytest.mark.parametrize("seed", range(CASES))
def test_arrays_of_any_kind(seed):
    "A batch of pictures in a random layout and type is what it was, or refused in a sentence."
    r, g = random.Random(4000 + seed), np.random.default_rng(seed)
    n, h, w, c = r.randint(1, 6), r.randint(1, 9), r.randint(1, 9), r.choice([1, 3, 4])
    pixels = g.integers(0, 256, (n, h, w, c), dtype=np.uint8)
    layout = r.choice(["last", "first", "grey", "list", "reversed", "fortran"])
    x = {
        "last": pixels,
        "first": pixels.transpose(0, 3, 1, 2),
        "grey": pixels[..., 0],
        "list": list(pixels),
        "reversed": pixels[:, ::-1][:, ::-1],
        "fortran": np.asfortranarray(pixels),
    }[layout]
    kind = r.choice(["uint8", "int64", "float32", "float64", "tensor", "double tensor"])

    def typed(a):
        if kind in ("uint8", "int64"):
            return a.astype(kind)
        if kind in ("float32", "float64"):
            return (a / 255).astype(kind)
        a = torch.from_numpy(np.ascontiguousarray(a))
        return a if kind == "tensor" else a.double() / 255

    x = [typed(a) for a in x] if layout == "list" else typed(x)
    try:
        images = load_images(x, 12)
    except ValueError as err:
        assert sentence(err), err
    else:
        assert images.images.shape == (n, 3, 12, 12)
        plain = load_images(pixels[..., :1] if layout == "grey" else pixels, 12) if min(h, w) > 4 else images
        assert (images.images.int() - plain.images.int()).abs().max() <= 1
