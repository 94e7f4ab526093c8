"""The rows of `.ci/gpu`, each written as soon as it is known: `tests`, `look`, `speed` and `accuracy`; a dry run makes them small.

python .ci/gpu_rows.py PART [SECONDS]      one part, in at most so many seconds
python .ci/gpu_rows.py --keep FILE         what came back, into nbs/experiments/results/proof-*-gpu.json
"""

import gc, json, os, re, sys, time, traceback
import xml.etree.ElementTree as tree
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT, DATA, DRY = (
    Path(os.environ.get("SEMISSL_GPU_OUT", "runs/gpu")),
    Path(os.environ.get("SEMISSL_GPU_DATA", "runs/gpu")),
    bool(os.environ.get("SEMISSL_DRY")),
)
SHARE, DEVICE = (0.01, "cpu") if DRY else (1.0, "cuda")
BEGAN = time.perf_counter()


def amount(n, least=1):
    return max(least, round(n * SHARE))


def emit(part, what, **values):
    "One more row, on the disk before anything else happens."
    from semissl.run.machine import commit, device_name, versions

    # a copy of the tree has no git
    stamp = (ROOT / ".gpu/commit").read_text().strip() if (ROOT / ".gpu/commit").exists() else commit()
    row = dict(part=part, what=what, **values, device=device_name(), versions=versions(), commit=stamp, share=SHARE)
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / "rows.jsonl", "a") as file:
        print(json.dumps(row), file=file, flush=True)
    print("ROW", what, {k: v for k, v in values.items() if k != "curve"}, flush=True)


FAILED = []


@contextmanager
def going_on(part, what):
    "A failure is a row too, and the next measurement runs."
    try:
        yield
    except Exception as err:
        FAILED.append(what)
        traceback.print_exc()
        emit(part, what, failed=f"{type(err).__name__}: {str(err).splitlines()[0] if str(err) else ''}")
    finally:
        gc.collect()


def tests(path):
    "What pytest told, test by test: one that was cut off by the limit counts as neither passed nor failed."
    told = re.findall(r"^(passed|failed) [\d.]+ s (\S+)", Path(path).with_suffix(".log").read_text(), re.M)
    cases = {c.get("name"): c.find("skipped") is not None for c in tree.parse(path).getroot().iter("testcase")}
    known = {name for _, name in told}
    emit(
        "tests",
        "pytest -m cuda",
        passed=sum(how == "passed" for how, _ in told),
        skipped=sum(cases.values()),
        failures=[name for how, name in told if how == "failed"],
        # pytest has no name for it
        unfinished=sum(name not in known and not skipped for name, skipped in cases.items()),
    )


def settle():
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()


def rate(work, n, turns=5, warm=2):
    "Median seconds of one call, over n calls a turn, and the spread."
    for _ in range(warm):
        work()
    found = []
    for _ in range(turns):
        settle()
        began = time.perf_counter()
        for _ in range(n):
            work()
        settle()
        found.append((time.perf_counter() - began) / n)
    found.sort()
    return found[len(found) // 2], found[0], found[-1]


# ---- speed ---------------------------------------------------------------------------------------------------------


def speed(seconds):
    import torch
    from semissl.method.augment import two_views
    from semissl.method.policy import policy
    from semissl.data.images import ImageSet
    from semissl.data.split import hide_labels, label_split
    from semissl.data.loader import FewLabelLoader
    from semissl.method.encoder import encoder
    from semissl.method.propagate import propagate
    from semissl.run.evaluate import encode, fit_head
    from semissl.run.build import build
    from semissl.run.config import TrainConfig
    from semissl.run.machine import precision

    U, L = amount(512, 16), amount(128, 8)
    n = amount(20_000, 200)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.arange(n) % 10, tuple("abcdefghij"), tuple(map(str, range(n))), "noise")
    images = hide_labels(images, label_split(images.labels, 4, 0))
    name = "small" if DRY else "resnet18"
    config = TrainConfig(
        encoder=name,
        weights="none",
        augmentation="photos",
        batch_size=U,
        labelled_batch_size=L,
        wandb_project="",
        correlate_from=0.0,
    )
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision(config), torch.bfloat16)
    turn = amount(20, 1)
    with going_on("speed", "two views"):
        x, dice = pixels[:U].to(DEVICE), torch.Generator(DEVICE).manual_seed(0)
        t, *spread = rate(lambda: two_views(x, (policy("photos", "view1"), policy("photos", "view2")), dice), turn)
        emit(
            "speed",
            "two views of 32 px",
            batch=U,
            views_per_second=round(2 * U / t),
            spread=[round(2 * U / s) for s in reversed(spread)],
        )
    alone = {}

    def step_of(stage, compiled=False):
        model = build(replace(config, self_train_from=0.0 if stage == 3 else 1.0), 10, 32, 10**6).to(DEVICE).train()
        if compiled:
            model.encoder.compile()
        optimizer, batches, at = (
            model.configure_optimizers()["optimizer"],
            FewLabelLoader(images, U, L, 0, device=DEVICE),
            [],
        )

        def step():
            if not at:
                at.append(iter(batches))
            batch = next(at[0], None)
            if batch is None:
                at[0] = iter(batches)
                batch = next(at[0])
            with torch.autocast(DEVICE, dtype=mixed, enabled=DEVICE == "cuda"):
                loss = model.training_step(batch, 0)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.on_train_batch_end(None, batch, 0)

        return step

    def encoder_of(compiled=False):
        net = encoder(name, 32).to(DEVICE, memory_format=torch.channels_last).train()
        if compiled:
            net.compile()
        ready = torch.randn(2 * (U + L), 3, 32, 32, device=DEVICE).contiguous(memory_format=torch.channels_last)

        def passes():
            with torch.autocast(DEVICE, dtype=mixed, enabled=DEVICE == "cuda"):
                h = net(ready)
            h.float().square().mean().backward()

        return passes, net, ready

    with going_on("speed", "encoder alone"):
        from torch.utils.flop_counter import FlopCounterMode

        passes, net, ready = encoder_of()
        with FlopCounterMode(display=False) as counter:
            net(ready).float().sum().backward()
        tera = counter.get_total_flops() / 1e12
        t, *spread = rate(passes, turn)
        alone["off"] = t
        a = torch.randn(amount(8192, 256), amount(8192, 256), device=DEVICE, dtype=torch.bfloat16)
        product, *_ = rate(lambda: a @ a, turn)
        peak = 2 * len(a) ** 3 / product / 1e12
        emit(
            "speed",
            f"{name}, forward and backward alone",
            rows=2 * (U + L),
            ms=round(1e3 * t, 3),
            spread=[round(1e3 * s, 3) for s in spread],
            tflops=round(tera / t, 2),
            measured_peak_tflops=round(peak, 1),
            share_of_peak=round(tera / t / peak, 4),
        )
    for stage in (1, 3):
        with going_on("speed", f"step of stage {stage}"):
            t, *spread = rate(step_of(stage), turn, warm=4)
            emit(
                "speed",
                f"whole step of stage {2 if stage == 1 else 3}",
                encoder=name,
                batch=U,
                labelled=L,
                ms=round(1e3 * t, 3),
                spread=[round(1e3 * s, 3) for s in spread],
                views_per_second=round(2 * (U + L) / t),
                over_encoder=round(t / alone["off"], 3),
            )
    with going_on("speed", "propagation"):
        h, y = torch.randn(amount(15_000, 300), 512, generator=generator), torch.full((amount(15_000, 300),), -1)
        y[:40] = torch.arange(40) % 10
        h[:, :10] += 6 * torch.nn.functional.one_hot(torch.arange(len(h)) % 10, 10)

        def flow(device):
            settle()
            began = time.perf_counter()
            fit_head(h.to(device), propagate(h.to(device), y, 10, prior=torch.full((10,), 0.1)))
            settle()
            return round(time.perf_counter() - began, 3)

        flow(DEVICE)
        emit(
            "speed",
            "propagation and its head",
            rows=len(h),
            width=512,
            seconds=flow(DEVICE),
            seconds_on_its_cpu=flow("cpu"),
        )
    with going_on("speed", "encode at 224"):
        model = build(replace(config, image_size=224), 10, 224, 10).to(DEVICE).eval()
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        big = torch.randint(0, 256, (amount(2048, 16), 3, 224, 224), dtype=torch.uint8)
        encode(model, big[:64], device=DEVICE)
        settle()
        began = time.perf_counter()
        encode(model, big, device=DEVICE)
        settle()
        emit(
            "speed",
            f"encode {name} at 224 px, float32",
            images_per_second=round(len(big) / (time.perf_counter() - began)),
            peak_mib=round(torch.cuda.max_memory_allocated() / 2**20) if DEVICE == "cuda" else None,
        )
        del model, big
    if not find_spec("lightly"):
        print("no lightly here: its loop is left out")
    else:
        with going_on("speed", "lightly"):
            from PIL import Image
            from lightly.loss import NTXentLoss
            from lightly.models.modules import SimCLRProjectionHead
            from lightly.transforms import SimCLRTransform

            class Pictures(torch.utils.data.Dataset):
                pictures, transform = (
                    [Image.fromarray(p) for p in pixels.permute(0, 2, 3, 1).numpy()],
                    SimCLRTransform(32, gaussian_blur=0.0),
                )

                def __len__(self):
                    return len(self.pictures)

                def __getitem__(self, i):
                    return self.transform(self.pictures[i])

            loader = torch.utils.data.DataLoader(
                Pictures(),
                U + L,
                shuffle=True,
                drop_last=True,
                num_workers=0 if DRY else os.cpu_count(),
                pin_memory=DEVICE == "cuda",
            )
            backbone = encoder(name, 32).to(DEVICE, memory_format=torch.channels_last)
            head, criterion = SimCLRProjectionHead(backbone.feature_dim, 256, 256).to(DEVICE), NTXentLoss(0.2)
            sgd, marks = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.06), []
            for x1, x2 in loader:
                x1, x2 = x1.to(DEVICE, non_blocking=True), x2.to(DEVICE, non_blocking=True)
                with torch.autocast(DEVICE, dtype=mixed, enabled=DEVICE == "cuda"):
                    z1, z2 = head(backbone(x1)), head(backbone(x2))
                criterion(z1.float(), z2.float()).backward()
                sgd.step()
                sgd.zero_grad()
                settle()
                marks.append(time.perf_counter())
                if len(marks) > 25 or time.perf_counter() - BEGAN > seconds - 30:
                    break
            late = marks[len(marks) // 3 :]
            emit(
                "speed",
                "lightly's loop, SimCLR without blur",
                workers=loader.num_workers,
                batch=U + L,
                views_per_second=round(2 * (U + L) * (len(late) - 1) / (late[-1] - late[0])) if len(late) > 1 else None,
            )
    if DEVICE == "cuda":
        with going_on("speed", "compiled step"):
            began = time.perf_counter()
            step = step_of(3, compiled=True)
            step()
            settle()
            first = time.perf_counter() - began
            t, *spread = rate(step, turn, warm=3)
            emit(
                "speed",
                "whole step of stage 3, compiled",
                ms=round(1e3 * t, 3),
                spread=[round(1e3 * s, 3) for s in spread],
                first_step_seconds=round(first, 1),
                views_per_second=round(2 * (U + L) / t),
            )


# ---- the look ------------------------------------------------------------------------------------------------------


def look(seconds):
    "How fast images are looked at, how near to float32 on a CPU, and what learning on that takes and gives."
    import shutil, tempfile
    import numpy as np, torch
    from semissl.data.split import hide_labels, label_split
    from semissl.method.load import ready
    from semissl.method.recipe import recipe
    from semissl.method.weights import Recipe
    from semissl.run.engine import Looker, torch_engine
    from semissl.run.features import look as look_at
    from semissl.run.sight import looker_of
    from semissl.run.config import TrainConfig
    from semissl.run.fit import run
    from semissl.run.folder import open_run_dir
    from semissl.run.task import Task

    train_set, test_set = cifar10()
    size, n = (64, 200) if DRY else (224, 10_240)
    some = train_set.images[:n]

    def speed_of(looker, compiled):
        see = torch_engine(looker, DEVICE, compiled)
        began = time.perf_counter()
        list(see(iter(some[: see.block].split(see.block))))
        settle()
        first = time.perf_counter() - began
        list(see(iter(some[: 2 * see.block].split(see.block))))
        began = time.perf_counter()
        rows = np.concatenate(list(see(iter((some if see.resizes else looker.resize(some)).split(see.block)))))
        settle()
        return (
            see.name,
            rows,
            dict(
                size=looker.size,
                images=len(some),
                images_per_second=round(len(some) / (time.perf_counter() - began)),
                first_block_seconds=round(first, 1),
            ),
        )

    chosen = recipe("tf_efficientnet_lite0")
    for compiled in (False,) if DRY else (False, True):
        with going_on("look", f"lite0, compiled={compiled}"):
            name, rows, values = speed_of(looker_of(chosen, size), compiled)
            few = looker_of(chosen, size)
            wanted = np.concatenate(list(torch_engine(few, "cpu")(iter([few.resize(some[:64])]))))
            near = torch.nn.functional.cosine_similarity(torch.from_numpy(rows[:64]), torch.from_numpy(wanted))
            emit(
                "look",
                f"{chosen.encoder}, {name}",
                **values,
                cosine_to_cpu_float32=[round(near.min().item(), 5), round(near.mean().item(), 5)],
            )
    if not DRY:
        for compiled in (False, True):
            with going_on("look", f"dinov2 small, compiled={compiled}"):
                r = Recipe("vit_small_patch14_reg4_dinov2.lvd142m", "none", 224)
                name, _, values = speed_of(Looker(ready(r, 224), 224, r.mean, r.std), compiled)
                emit("look", f"ViT-S/14 with registers (its weights are not here), {name}", **values)
    cache = Path(tempfile.mkdtemp())
    os.environ["SEMISSL_CACHE"] = str(cache)
    for turn in range(2):
        with going_on("look", "all of CIFAR-10"):
            began = time.perf_counter()
            seen = look_at(train_set.images, looker_of(chosen, size), ["plain"], cache / "looks")
            emit(
                "look",
                ("a second look at" if turn else "a look at") + " all of CIFAR-10: named, looked at, kept",
                images=len(train_set),
                fresh=seen.fresh,
                seconds=round(time.perf_counter() - began, 2),
            )
    left = lambda: seconds - (time.perf_counter() - BEGAN)
    for seed in range(1 if DRY else 3):
        for k in (4,) if DRY else (1, 4, 25):
            if left() < 25 and not DRY:
                continue
            with going_on("look", f"learnt, {k} labels, seed {seed}"):
                config = TrainConfig(
                    data="cifar10",
                    encoder="tf_efficientnet_lite0",
                    augmentation="photos",
                    learn_on="features",
                    image_size=size,
                    views="plain",
                    labels_per_class=k,
                    seed=seed,
                    rounds=1 if DRY else 3,
                    round_steps=10 if DRY else 0,
                    wandb_project="",
                    run_dir=str(cache / f"{k}-{seed}"),
                )
                split = label_split(train_set.labels, k, seed, 0, train_set.classes)
                result = run(
                    config,
                    Task(hide_labels(train_set, split), test_set, None, split),
                    None,
                    None,
                    open_run_dir(config),
                    True,
                )
                emit(
                    "look",
                    f"CIFAR-10, {k} labels a class, seed {seed}, on features of {size} px",
                    cost=result.cost,
                    metrics={m: v for m, v in result.metrics.items() if m.endswith("accuracy") and v},
                    plain={b: v["test_accuracy"] for b, v in result.baselines.items()},
                )
    shutil.rmtree(cache)


# ---- accuracy ------------------------------------------------------------------------------------------------------


def cifar10():
    "CIFAR-10 from the loads; noise in its shape where there is none."
    import torch
    from semissl.data.images import ImageSet

    sys.path.insert(0, str(ROOT / ".ci"))
    from gpu_pack import unpack

    loads = sorted(DATA.glob("load-*"))
    if loads:
        return unpack(loads, "train"), unpack(loads, "test")
    if not DRY:
        raise FileNotFoundError(
            f"expected .gpu/load-1 and .gpu/load-2 as the head of .ci/gpu says, got neither in {DATA}"
        )
    classes, generator = tuple(f"class {k}" for k in range(10)), torch.Generator().manual_seed(0)

    def some(n):
        y = torch.arange(n) % 10
        x = (torch.rand(n, 3, 32, 32, generator=generator) * 90 + 16 * y.view(-1, 1, 1, 1)).byte()
        return ImageSet(x, y, classes, tuple(map(str, range(n))), "cifar10")

    return some(500), some(100)


def from_nothing(train_set, test_set, seconds):
    """ResNet-18 at 32 px, 4 labels a class, all stages: test accuracy against seconds of training, measured on the way
    and used for nothing."""
    import torch
    from semissl.data.split import hide_labels, label_split
    from semissl.run.evaluate import encode
    from semissl.run.build import build
    from semissl.run.compare import measure
    from semissl.run.config import TrainConfig
    from semissl.run.machine import precision
    from semissl.run.record import Recorder
    from semissl.run.task import Task
    from semissl.run.train import steps_of, train

    config = TrainConfig(
        data="cifar10",
        encoder="small" if DRY else "resnet18",
        weights="none",
        augmentation="photos",
        budget=f"{seconds} s",
        batch_size=amount(512, 32),
        labelled_batch_size=amount(64, 16),
        baselines=False,
        wandb_project="",
        lr=2e-3,
    )
    split = label_split(train_set.labels, 4, 0, 0, train_set.classes)
    task = Task(hide_labels(train_set, split), test_set, None, split)
    model = build(config, 10, 32, steps_of(config, task))
    recorder, curve, paused, last = Recorder(None), [], [0.0], [0.0]

    def look():
        at = recorder.elapsed - paused[0]
        if at - last[0] < seconds / 10:
            return
        began, last[0] = time.perf_counter(), at
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda"):
            logits = encode(model, test_set.images, device=model.device)[1]
        curve.append([round(at, 1), round((logits.argmax(1) == test_set.labels).float().mean().item(), 4)])
        paused[0] += time.perf_counter() - began

    model.on_train_epoch_end = look
    began = time.perf_counter()
    train(model, config, task, recorder)
    took, metrics = time.perf_counter() - began, measure(model, task)[0]
    emit(
        "accuracy",
        "CIFAR-10, 4 labels a class, from nothing",
        encoder=config.encoder,
        image_size=32,
        train_images=len(train_set),
        budget=seconds,
        seconds=round(took, 1),
        measuring=round(paused[0], 1),
        steps=model.total_steps,
        image_passes=model.total_steps * (config.batch_size + config.labelled_batch_size),
        precision=precision(config),
        metrics={k: v for k, v in metrics.items() if k.endswith("accuracy") and v},
        curve=curve,
    )


def accuracy(seconds):
    train_set, test_set = cifar10()
    with going_on("accuracy", "from nothing"):
        from_nothing(
            train_set, test_set, 3 if DRY else max(30, min(180, int(seconds - (time.perf_counter() - BEGAN) - 30)))
        )


def keep(file):
    "Rows that came back, by part; the newest of each name stands."
    rows = {}
    for line in Path(file).read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["part"], {})[row["what"]] = row
    for part, found in rows.items():
        path = ROOT / "nbs/experiments/results" / f"proof-{part}-gpu.json"
        old = {r["what"]: r for r in json.loads(path.read_text())} if path.exists() else {}
        path.write_text("[\n" + ",\n".join(json.dumps(r) for r in (old | found).values()) + "\n]\n")
        print(f"{path.relative_to(ROOT)}: {len(old | found)} rows")


if __name__ == "__main__":
    part, *rest = sys.argv[1:]
    if part == "--keep":
        keep(rest[0])
    elif part == "tests":
        tests(rest[0])
    else:
        dict(look=look, speed=speed, accuracy=accuracy)[part](float(rest[0]) if rest else 120)
    sys.exit(bool(FAILED))
