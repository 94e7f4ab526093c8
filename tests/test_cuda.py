"""What only a GPU can show. Every test is marked `cuda`: skipped, and counted, where there is none.

SEMISSL_DRY=1 runs those that a CPU can on the CPU, at the same sizes: a dry run of the file itself.
"""

import copy, gc, json, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
import pandas as pd

from semissl.method.augment import apply, draw
from semissl.method.policy import policy
from semissl.use.classifier import FewLabelClassifier
from semissl.data.sources import load_images
from semissl.data.split import hide_labels, label_split
from semissl.data.loader import FewLabelLoader
from semissl.method.propagate import propagate
from semissl.run.evaluate import encode, fit_head
from semissl.method.encoder import encoder
from semissl.method.losses import barlow_twins, class_correlation, cross_entropy, nt_xent, vicreg
from semissl.use.export import export
from semissl.use.predictor import load_predictor
from semissl.run.engine import Looker, torch_engine
from semissl.run.build import build
from semissl.run.config import TrainConfig
from semissl.run.fit import check_processes, fit
from semissl.run.record import Recorder
from semissl.run.task import load_task
from semissl.run.train import steps_of, train

DRY = os.environ.get("SEMISSL_DRY") == "1"
DEVICE = "cpu" if DRY else "cuda"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not DRY and not torch.cuda.is_available(), reason="no GPU")]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SHORT = dict(baselines=False, wandb_project="", epochs=6, propagate=1, seed=0)


@pytest.fixture(scope="module")
def digits():
    images = load_images("digits")
    return hide_labels(images, label_split(images.labels, 4, 0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run on the GPU with all stages, as a user starts it."
    return fit(
        TrainConfig(**{**SHORT, "epochs": 6 if DRY else 20}, run_dir=str(tmp_path_factory.mktemp("gpu") / "run"))
    )


def photos(n=32, side=32):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["photos", "digits"])
@pytest.mark.parametrize("strength", ["view1", "view2", "weak", "strong", "none"])
def test_views_are_those_of_a_cpu(kind, strength):
    "The same dice give the same pixels, to what float32 rounds."
    p, images = policy(kind, strength), photos()
    dice = draw(p, 32, 32, 32, torch.Generator().manual_seed(1))
    there = apply(images.to(DEVICE), type(dice)(*(t.to(DEVICE) for t in dice)), p).cpu()
    torch.testing.assert_close(there, apply(images, dice, p), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name, loss", [("barlow", barlow_twins), ("vicreg", vicreg), ("nt_xent", nt_xent)])
def test_losses_of_views(name, loss):
    "Value and gradient under bfloat16 autocast are those of float64 on a CPU."
    z = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(2))

    def both(z):
        z = z.clone().requires_grad_()
        with torch.autocast(z.device.type, dtype=torch.bfloat16):
            value = loss(*z)
        value.backward()
        return value.detach().cpu().double(), z.grad.cpu().double()

    for a, b in zip(both(z.to(DEVICE)), both(z.double())):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["sample", "feature"])
def test_losses_of_labels(form):
    h, y = torch.randn(64, 32, generator=torch.Generator().manual_seed(3)), torch.arange(64) % 5 - 1
    weight, image = torch.linspace(0, 1, 64), torch.arange(64) // 2
    for f in (
        lambda h, y, w, i: class_correlation(h, y, form, weight=w, image=i),
        lambda h, y, w, i: cross_entropy(h[:, :4], y, w),
    ):
        there = f(*(t.to(DEVICE) for t in (h, y, weight, image))).cpu().double()
        torch.testing.assert_close(there, f(h.double(), y, weight.double(), image), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["32-true"] if DRY else ["32-true", "bf16-mixed", "16-mixed"])
def test_training_in_each_precision(tmp_path, precision):
    "All three stages: finite, learning, every step counted although float16 skips some, statistics and average finite."
    config = TrainConfig(**SHORT, precision=precision, run_dir=str(tmp_path))
    task = load_task(config)
    model = build(config, 10, 8, steps_of(config, task))
    model.card = dict(config={})
    train(model, config, task, recorder := Recorder(None), tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == model.total_steps == 60
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 60
    assert all(t.isfinite().all() for t in model.state_dict().values() if t.is_floating_point())
    rows = pd.DataFrame(recorder.rows)
    assert set(rows["stage"]) >= {1, 3} and rows["cross_entropy"].iloc[-1] < 0.8 * rows["cross_entropy"].iloc[0]


@needs_gpu
def test_an_overflow_in_float16_leaves_nothing_infinite(tmp_path):
    """One batch whose activations overflow: the step is skipped, weights stay, running statistics and the average are
    finite."""
    config = TrainConfig(**{**SHORT, "epochs": 2}, precision="16-mixed", run_dir=str(tmp_path))
    task = load_task(config)
    model = build(config, 10, 8, steps_of(config, task))
    model.card, views, calls = dict(config={}), model.views, []

    def sometimes(images, generator, part):
        calls.append(1)
        # the two calls of step 10
        return tuple(v * (1e6 if len(calls) in (21, 22) else 1) for v in views(images, generator, part))

    model.views = sometimes
    train(model, config, task, Recorder(None), tmp_path)
    assert len(calls) == 40
    assert all(t.isfinite().all() for t in model.state_dict().values() if t.is_floating_point())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 20


@pytest.mark.parametrize("resident", [True, False])
def test_the_loader_lives_on_the_device(digits, resident):
    there, here = (
        FewLabelLoader(digits, 64, 16, 3, device=d, resident=r) for d, r in ((DEVICE, resident), ("cpu", True))
    )
    for a, b in zip(there, here):
        assert a.unlabelled.device.type == a.labels.device.type == a.rows.device.type == DEVICE
        for x, y in zip(a[:4], b[:4]):
            torch.testing.assert_close(x.cpu(), y, rtol=0, atol=0)


def test_encode_and_propagate(digits):
    "Representations, the labels that flow over their graph and the head fitted to them: as on a CPU."
    model = build(TrainConfig(**SHORT), 10, 8, 10).eval()
    h, _ = encode(model, digits.images)
    there, _ = encode(model.to(DEVICE), digits.images, device=DEVICE)
    torch.testing.assert_close(there, h, rtol=1e-2, atol=1e-2)
    p, q = propagate(h, digits.labels, 10), propagate(h.to(DEVICE), digits.labels, 10)
    assert (p.argmax(1) == q.argmax(1)).float().mean() > 0.99
    torch.testing.assert_close(q, p, rtol=0, atol=1e-2)
    for a, b in zip(fit_head(h.to(DEVICE), p), fit_head(h, p)):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory):
    "A file of weights, so that runs of this file learn on features."
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    torch.manual_seed(0)
    save_file(encoder("small", 16).state_dict(), path)
    return path


@pytest.mark.parametrize("compiled", [False] if DRY else [False, True])
def test_a_look_is_that_of_a_cpu(small_weights, compiled):
    "Half precision, resampled on the device, the last block short: the cosine to float32 on a CPU."
    looker, images = Looker(encoder("small", 48), 48, (0.5,) * 3, (0.5,) * 3), photos(530)
    (wanted, there), blocks = (
        (torch_engine(looker, "cpu"), torch_engine(copy.deepcopy(looker), DEVICE, compiled)),
        images.split(512),
    )
    a, b = (
        torch.from_numpy(np.concatenate(list(see(iter(part)))))
        for see, part in ((wanted, [looker.resize(x) for x in blocks]), (there, blocks))
    )
    assert a.shape == b.shape and nn.functional.cosine_similarity(a, b).min() > 0.99


def test_a_run_on_features(small_weights, tmp_path, monkeypatch):
    "Looked at, learnt in rounds, answered and read again where there is no GPU: the same answers."
    monkeypatch.setenv("SEMISSL_CACHE", str(tmp_path / "cache"))
    result = fit(
        TrainConfig(
            encoder="small",
            weights=str(small_weights),
            learn_on="features",
            rounds=2,
            round_steps=30,
            wandb_project="",
            run_dir=str(tmp_path / "run"),
        )
    )
    test = load_images("digits", part="test")
    with torch.no_grad():
        there = load_predictor(result.run_dir)(test.images)[1].argmax(1)
    assert ((there == test.labels).float().mean() - result.metrics["test_accuracy"]).abs() < 0.03
    assert result.metrics["test_accuracy"] > 0.4 and result.data["learn_on"] == "features"


@needs_gpu
@pytest.mark.parametrize("stage, mode", [(1, "bf16"), (3, "bf16"), (3, "fp16")])
def test_no_step_waits_for_the_gpu(digits, stage, mode):
    """Views, forward, losses, backward, optimizer and average under `set_sync_debug_mode`: whatever makes the host wait
    is an error."""
    kind = dict(bf16=torch.bfloat16, fp16=torch.float16)[mode]
    config = TrainConfig(**SHORT, cutmix="on", correlate_from=0.0, self_train_from=0.0 if stage == 3 else 1.0)
    model = build(config, 10, 8, 100).cuda().train()
    optimizer = model.configure_optimizers()["optimizer"]
    batches = iter(FewLabelLoader(digits, 128, 40, 0, device="cuda"))

    def step(batch):
        with torch.autocast("cuda", dtype=kind):
            loss = model.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.on_train_batch_end(None, batch, 0)
        return loss

    for _ in range(3):
        step(next(batches))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@needs_gpu
def test_memory_is_free_after_each_training(tmp_path):
    """The run, both baselines and a fold: afterwards next to nothing is left on the device, and the peak is that of the
    run."""
    torch.ones(2**27, device="cuda")  # half a GiB that came before and is not this run's
    fit(TrainConfig(**{**SHORT, "baselines": True, "calibration_folds": 2}, run_dir=str(tmp_path / "run")))
    gc.collect()
    assert torch.cuda.memory_allocated() < 2**26
    assert 10 < json.loads((tmp_path / "run" / "result.json").read_text())["cost"]["peak_memory_mib"] < 500


@needs_gpu
def test_compiled_training_is_the_same_training(tmp_path):
    config = TrainConfig(
        **{
            **SHORT,
            "epochs": 2,
            "encoder": "resnet18",
            "weights": "none",
            "self_train_from": 1.0,
            "precision": "32-true",
        }
    )
    losses, seconds = [], []
    for compiled in ("off", "on", "on"):
        config = replace(config, compile=compiled, run_dir=str(tmp_path / compiled))
        task = load_task(config)
        model = build(config, 10, 8, steps_of(config, task))
        began = time.perf_counter()
        train(model, config, task, recorder := Recorder(None))
        seconds.append(time.perf_counter() - began)
        losses.append([r["loss"] for r in recorder.rows])
    print(f"off {seconds[0]:.1f} s, compiled {seconds[1]:.1f} s, compiled again {seconds[2]:.1f} s")
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert seconds[2] < 0.8 * seconds[1], "a second training compiles no less than the first"


def test_its_files_open_without_a_gpu(trained, tmp_path):
    "safetensors and ONNX of a model trained here, in a process that sees no GPU: the same answers."
    test = load_images("digits", part="test").images[:64]
    model = load_predictor(trained.run_dir)
    with torch.no_grad():
        torch.save(dict(images=test, logits=model(test)[1]), tmp_path / "wanted.pt")
    code = """
import sys, torch, numpy as np, onnxruntime
from pathlib import Path
from semissl.use.predictor import load_predictor
assert not torch.cuda.is_available()
here = Path(sys.argv[1]); wanted = torch.load(here/"wanted.pt")
with torch.no_grad(): found = load_predictor(here/"model.safetensors")(wanted["images"])[1]
torch.testing.assert_close(found, wanted["logits"], rtol=1e-4, atol=1e-4)
session = onnxruntime.InferenceSession(str(here/"model.onnx"), providers=["CPUExecutionProvider"])
answers = session.run(None, {session.get_inputs()[0].name: wanted["images"].numpy()})
p = wanted["logits"].softmax(1).numpy()
assert any(a.shape == p.shape and (np.allclose(a, p, atol=1e-3) or np.allclose(a, wanted["logits"].numpy(), atol=1e-2)) for a in answers), [a.shape for a in answers]
"""
    for name in ("model.safetensors", "model.onnx"):
        export(model, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_result_says_what_ran(trained):
    cost = trained.cost
    if not DRY:
        assert cost["device"] == torch.cuda.get_device_name() and cost["precision"] in ("bf16-mixed", "16-mixed")
    assert trained.metrics["test_accuracy"] > (0.7 if DRY else 0.9) and {"python", "semissl", "torch"} <= set(
        trained.versions
    )


def test_few_label_classifier_in_five_lines():
    images = load_images("digits")
    split = label_split(images.labels, 4, 0)
    classifier = FewLabelClassifier(epochs=4 if DRY else 10, augmentation="digits").fit(
        images.images, hide_labels(images, split).labels.numpy()
    )
    test = load_images("digits", part="test")
    assert classifier.score(test.images, test.labels.numpy()) > (0.7 if DRY else 0.85)


@needs_gpu
def test_several_processes_after_the_gpu_was_used_are_one_sentence(monkeypatch):
    torch.zeros(1, device="cuda")
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(RuntimeError, match="expected a kernel that has not used the GPU yet for devices=2"):
        check_processes(TrainConfig(devices=2))


@needs_gpu  # on a CPU tests/faults kill runs, and compare them to the bit
def test_a_killed_run_goes_on(tmp_path):
    """SIGKILL in the middle, the same command again: the curve of an undisturbed run, with torch's deterministic
    algorithms."""

    def start(name, **more):
        words = {**SHORT, "epochs": 40, "precision": "32-true", "run_dir": tmp_path / name, **more}
        exactly = (
            "import torch; torch.use_deterministic_algorithms(True, warn_only=True); from semissl.run.command "
            "import main; main()"
        )
        return subprocess.Popen(
            [sys.executable, "-c", exactly, *(f"--{k}={v}" for k, v in words.items())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            },
        )

    whole, killed = start("whole"), start("killed")
    until = time.monotonic() + 120
    while time.monotonic() < until and killed.poll() is None:
        file = tmp_path / "killed" / "metrics.csv"
        if (tmp_path / "killed" / "last.ckpt").exists() and file.exists() and len(file.read_text().splitlines()) > 12:
            break
        time.sleep(0.02)
    assert killed.poll() is None, killed.communicate()[1][-2000:]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    again = start("killed")
    try:
        for process in (whole, again):
            told = process.communicate(timeout=60)[1]
            assert process.returncode == 0, told[-2000:]
    finally:
        for process in (whole, again):
            process.kill()
    one, two = (pd.read_csv(tmp_path / n / "metrics.csv") for n in ("whole", "killed"))
    assert one["step"].tolist() == two["step"].tolist()
    gap = ((one["loss"] - two["loss"]).abs() / one["loss"]).max()
    print(f"largest relative difference of the losses after a kill: {gap:.2e}")
    assert gap < 1e-2
    a, b = (
        json.loads((tmp_path / n / "result.json").read_text())["metrics"]["test_accuracy"] for n in ("whole", "killed")
    )
    assert a == pytest.approx(b, abs=0.03) and a > 0.9
