"What no notebook cell can show of predictions: a killed run, bounded memory, files made to hurt, exports for a model of timm."

import io, json, os, pickle, signal, subprocess, sys, time, zipfile
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from semissl.use.export import export
from semissl.use.predict import predict_table
from semissl.use.predictor import Predictor, load_predictor

CARD = dict(
    encoder="small",
    large=False,
    image_size=16,
    classes=["cat", "dog", "🐸"],
    mean=[0.5] * 3,
    std=[0.5] * 3,
    temperature=1.5,
)


def model(**changes):
    torch.manual_seed(0)
    found = Predictor(CARD | changes)
    torch.nn.init.normal_(found.head.weight)
    return found


def pictures(path: Path, n: int) -> Path:
    "An archive of n small pictures of noise."
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        for i in range(n):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(picture, "PNG")
            file.writestr(f"photos/{i:05}.png", picture.getvalue())
    return path


def start(folder: Path, slow: float, **options) -> subprocess.Popen:
    "Predict in a process of its own."
    code = (
        "import json, sys, time; from semissl import load_predictor; from semissl.use import predict\nplain = predict.write_part\n"
        f"predict.write_part = lambda *a: (time.sleep({slow}), plain(*a), print('part', flush=True))\n"
        "found = predict.predict_table(load_predictor('model.safetensors'), 'photos.zip', 'table', "
        "**json.loads(sys.argv[1]))\nprint(found.rows)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(options)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_killed_table_goes_on_where_it_was(tmp_path):
    pictures(tmp_path / "photos.zip", 2000)
    export(model(), tmp_path / "model.safetensors")
    first = start(tmp_path, slow=0.3, rows=100)
    while len(list(tmp_path.glob(".table-*/0*.npz"))) < 3:
        time.sleep(0.05)
        assert first.poll() is None, first.communicate()
    os.killpg(first.pid, signal.SIGKILL)  # its readers too: they would hold the pipe
    first.communicate()
    done = len(list(tmp_path.glob(".table-*/0*.npz")))
    assert 3 <= done < 20 and not list(tmp_path.glob("table.*"))
    said, error = start(tmp_path, slow=0, rows=100).communicate(timeout=300)
    assert said.split() == ["part"] * (20 - done) + ["2000"], error  # only what was missing
    whole = predict_table(model(), tmp_path / "photos.zip", tmp_path / "whole", rows=512, workers=1)
    assert (tmp_path / "table.csv").read_text() == whole.csv.read_text()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), pd.read_parquet(whole.parquet))
    assert not list(tmp_path.glob(".table-*"))


def test_memory_does_not_grow_with_the_images(tmp_path):
    "Twenty times as many images of 3 x 64 x 64 cost no more than the list of their names and one block."
    code = (
        "import resource, sys, torch, numpy as np; from semissl import ImageSet; from semissl.use import predict; "
        "from semissl import *; from semissl.use.predict import *\n"
        "from semissl.data.files import Entry; n = int(sys.argv[1]); torch.manual_seed(0)\n"
        "entries = [Entry(f'{i:07}.png', 'photos.png', 1, 1) for i in range(n)]\npredict.listed = lambda source: "
        "entries\n"
        "predict.decode_block = lambda part, size, side, fit: (np.zeros((len(part), 3, size, size), np.uint8), {}, "
        "False)\n"
        "class Quick(Predictor):\n    def forward(self, x): return torch.zeros(len(x), 256), torch.zeros(len(x), 3)\n"
        f"predict_table(Quick({CARD | dict(image_size=64)!r}), '', sys.argv[2], workers=1, embedding=True)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    peak = {
        n: float(
            subprocess.run(
                [sys.executable, "-c", code, str(n), str(tmp_path / f"t{n}")],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()[-1]
        )
        for n in (5_000, 100_000)
    }
    names = 95_000 * 500 / 2**20  # MiB, 500 bytes a name
    assert peak[100_000] - peak[5_000] < names + 40, peak  # the pixels alone are 1,100 MiB
    assert sum(1 for _ in open(tmp_path / "t100000.csv")) == 100_001


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_hostile_model_files_run_nothing(tmp_path, suffix):
    "Every one is a ValueError in one sentence, and the marker file is never made."
    ran, good = tmp_path / "ran", export(model(), tmp_path / "good.safetensors").read_bytes()

    def saved(what, **kw):
        torch.save(what, f := io.BytesIO(), **kw)
        return f.getvalue()

    def packed(data):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as a, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as b:
            for m in a.infolist():
                b.writestr(m.filename, a.read(m))
        return out.getvalue()

    weights = load_file(tmp_path / "good.safetensors")

    def tensors(card, **metadata):
        save_file(weights, tmp_path / "t", {"semissl": card, "sha256": "0" * 64, **metadata})
        return (tmp_path / "t").read_bytes()

    ours = dict(semissl=dict(config={}, classes=["a", "b"], image_size=8), state_dict={})
    corpus = [
        b"",
        b"PK\3\4",
        pickle.dumps(Touch(ran)),
        saved(Touch(ran)),
        saved({"semissl": Touch(ran), "state_dict": {}}),
        saved(Touch(ran), _use_new_zipfile_serialization=False),
        saved([1, 2]),
        saved({"state_dict": {}}),
        saved(ours),
        saved(ours | {"semissl": ours["semissl"] | {"config": {"encoder": "../../x"}}}),
        saved(ours | {"semissl": ours["semissl"] | {"image_size": 10**9}}),
        saved(ours | {"semissl": ours["semissl"] | {"config": {"data": 3}}}),
        saved(ours | {"semissl": ours["semissl"] | {"config": {"unheard_of": 1}}}),
        packed(saved(ours)),
        good[:100],
        good[:8] + b"x" + good[9:],
        (2**62).to_bytes(8, "little") + good[8:],
        tensors("not json"),
        tensors("[]"),
        tensors(json.dumps({})),
        tensors(json.dumps(CARD | {"classes": ["a"] * 3})),
        tensors(json.dumps(CARD | {"encoder": "resnet18"})),
        tensors(json.dumps(CARD | {"std": [1.0, 1.0, 0.0]})),
        tensors(json.dumps(CARD | {"temperature": float("nan")})),
        tensors(json.dumps(CARD)),
    ]
    for i, content in enumerate(corpus):
        path = tmp_path / f"odd{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^expected ") as said:
            load_predictor(path)
        assert "\n" not in str(said.value) and len(str(said.value)) < 500, i
    assert not ran.exists()
    (tmp_path / "trap.pt").write_bytes(saved(Touch(ran)))
    torch.load(tmp_path / "trap.pt", weights_only=False)  # the trap is live: who loads it without care runs it
    assert ran.exists()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    m = model()
    m.head.bias.data[1] = float("nan")
    export(m, tmp_path / "nan.safetensors")
    with pytest.raises(
        ValueError, match="expected finite weights in nan.safetensors, got infinite ones or none in \\['head.bias'\\]"
    ):
        load_predictor(tmp_path / "nan.safetensors")


@pytest.mark.parametrize(
    "name, size",
    [("resnet18", 96), ("resnet18", 32), ("regnetx_002", 64), ("vit_tiny_patch16_224", 32), ("convnext_atto", 64)],
)
def test_plain_weights_fill_the_librarys_own_model(tmp_path, name, size):
    "strict=True, encoder alone and with its classifier, and the same numbers."
    import timm, torchvision

    m, x = model(encoder=name, image_size=size), torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    own = {"img_size": size} if name.startswith("vit") else {}
    for head in (False, True):
        weights = torch.load(export(m, tmp_path / "plain.pt", head=head), weights_only=True)
        if name == "resnet18":
            net = torchvision.models.resnet18(num_classes=3)
            if size <= 64:
                net.conv1, net.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
            if not head:
                net.fc = torch.nn.Identity()
        else:
            net = timm.create_model(name, num_classes=3 if head else 0, **own)
        net.load_state_dict(weights, strict=True)
        with torch.no_grad():
            torch.testing.assert_close(net.eval()((x / 255 - 0.5) / 0.5), m(x)[int(head)], rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "plain.json").read_text())["classes"] == CARD["classes"]


@pytest.mark.parametrize("name, size", [("small", 16), ("resnet18", 32), ("vit_tiny_patch16_224", 32)])
def test_exports_compute_the_same_elsewhere(tmp_path, name, size):
    "ONNX and torch.export, opened in a process that cannot import this package; any number of images."
    m, x = (
        model(encoder=name, image_size=size),
        np.random.default_rng(0).integers(0, 256, (7, 3, size, size), dtype=np.uint8),
    )
    for suffix in (".onnx", ".pt2"):
        export(m, tmp_path / f"model{suffix}")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys; sys.modules['semissl'] = None; import json, numpy as np, onnxruntime, torch; x = "
        "np.load('x.npy')\n"
        "s = onnxruntime.InferenceSession('model.onnx'); a = [s.run(None, {'images': x[:n]})[0] for n in (1, 7)]\n"
        "about = {'semissl.json': ''}; p = torch.export.load('model.pt2', extra_files=about).module(); b = "
        "[p(torch.from_numpy(x[:n]))[0].detach().numpy() for n in (1, 7)]\n"
        "np.savez('out.npz', *a, *b); print(json.dumps([json.loads(s.get_modelmeta().custom_metadata_map['semissl']), "
        "json.loads(about['semissl.json'])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for card in json.loads(done.stdout):
        assert card["classes"] == CARD["classes"] and card["image_size"] == size and "centre square" in card["input"]
    with torch.no_grad():
        wanted = m(torch.from_numpy(x))[1].softmax(1).numpy()
    found = np.load(tmp_path / "out.npz")
    for key, n in zip(found.files, (1, 7, 1, 7)):
        assert np.abs(found[key] - wanted[:n]).max() < 1e-4


def test_an_export_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    from semissl.use import export as predict

    monkeypatch.setattr(
        predict.Program,
        "forward",
        lambda self, images: (
            self.model(images)[1].softmax(1) + (0 if torch.compiler.is_exporting() else 1e-3),
            self.model(images)[0],
        ),
    )
    with pytest.raises(ValueError, match="expected the exported program to agree with the model within 0.0001"):
        export(model(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
