"What CONTRIBUTING says of adding things: one of each kind, added at run time and used."

import json

import matplotlib.figure
import pytest
import torch
from torch import nn

import semissl
from semissl import TrainConfig, fit, from_arrays, load_images, run_figures


@pytest.fixture
def added(monkeypatch):
    "An entry of a table that is gone after the test."
    return lambda table, name, entry: monkeypatch.setitem(table, name, entry)


def one_run(tmp_path, **fields):
    "A run of two epochs on digits, in this process."
    settings = dict(epochs=2, batch_size=256, baselines=False, wandb_project="", run_dir=str(tmp_path / "run"))
    return fit(TrainConfig(**settings | fields))


def test_an_objective_a_rule_a_form_and_an_encoder(tmp_path, added):
    from semissl.method.correlation import FORMS
    from semissl.method.encoder import ENCODERS
    from semissl.method.losses import OBJECTIVES
    from semissl.method.pseudo import RULES

    asked = []

    def agreement(z1, z2, lambd_times_dim):
        asked.append(("objective", lambd_times_dim))
        return (z1 - z2).square().mean()

    def half(means, p):
        asked.append(("rule", tuple(p.shape)))
        return torch.full((len(p),), 0.5)

    def spread(h, q, weight, image=None):
        asked.append(("form", tuple(q.shape)))
        return (h - q.T.mean() * h).square().mean()

    def tiny():
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU())
        net.feature_dim = 16
        return net

    for table, entry in ((OBJECTIVES, agreement), (RULES, half), (FORMS, spread), (ENCODERS, tiny)):
        added(table, "mine", entry)
    names = dict(objective="mine", rule="mine", correlation_form="mine", encoder="mine")
    done = one_run(tmp_path, **names, lambd_times_dim=3.0, correlate_from=0.0, self_train_from=0.2)
    assert {kind for kind, _ in asked} == {"objective", "rule", "form"} and ("objective", 3.0) in asked
    assert done.config["encoder"] == "mine" and done.metrics["test_accuracy"] > 0.1


def test_unknown_entries_are_named():
    for name in ("objective", "rule", "correlation_form"):
        with pytest.raises(ValueError, match=f"expected {name} to be one of"):
            TrainConfig(**{name: "mine"})


def test_a_source(tmp_path, added):
    from semissl.data.sources import SOURCES

    def stripes(name, size, part, fit, root):
        images = torch.arange(40)[:, None, None, None].expand(-1, 3, 8, 8).to(torch.uint8) * 6
        return from_arrays(images, torch.arange(40) % 2, size=size, source=f"stripes:{name}:{part}")

    added(SOURCES, "stripes", stripes)
    images = load_images("stripes:grey")
    assert (len(images), images.source) == (40, "stripes:grey:train")
    done = one_run(tmp_path, data="stripes:grey", encoder="small", augmentation="digits", batch_size=20)
    assert done.data["test_images"] == 40


def test_weights(tmp_path, added):
    from semissl.method.load import WEIGHTS, Source
    from semissl.method.recipe import recipe
    from semissl.method.weights import Recipe

    asked = []

    def about(encoder, weights):
        return Recipe(encoder, weights, size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), licence="CC0-1.0")

    def load(net, recipe):
        asked.append((recipe.weights, recipe.size))
        for p in net.parameters():
            nn.init.constant_(p, float(recipe.weights.removeprefix("mine:")))
        return net

    added(WEIGHTS, "mine:", Source(about, load))
    fields = dict(encoder="small", weights="mine:0.01", learn_on="pixels", lr=0.0, weight_decay=0.0)
    assert recipe("small", "mine:0.01").licence == "CC0-1.0"
    done = one_run(tmp_path, **fields)
    assert ("mine:0.01", 8) in asked and done.config["weights"] == "mine:0.01"
    learnt = done.model()
    assert all((p == 0.01).all() for p in learnt.encoder.parameters())  # no step has changed them
    # normalised as the source says
    assert learnt.prepare(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)).allclose(torch.tensor(2.0))
    with pytest.raises(ValueError, match="expected weights of .*'mine:'.* got 'others:0.01'"):
        TrainConfig(encoder="small", weights="others:0.01")


@pytest.fixture
def features(tmp_path):
    "A run on features: digits, looked at by weights that are at hand."
    cached = dict(learn_on="features", encoder="tf_efficientnet_lite0", image_size=32, views="plain", rounds=1)
    return lambda **fields: one_run(tmp_path, **cached, round_steps=50, **fields)


def test_a_reader(tmp_path, added, features, monkeypatch):
    from semissl.run.readers import READERS
    from semissl.use.predictor import load_predictor

    monkeypatch.setenv("SEMISSL_CACHE", str(tmp_path / "cache"))
    shapes = []

    def mine(u, q, x, y):
        "The class means, on features and representations side by side."
        shapes.append((tuple(u.shape), tuple(q.shape), tuple(x.shape), tuple(y.shape)))
        m = (q / q.sum(0)).T @ torch.cat([x, u], 1)
        return 20 * m, -10 * m.square().sum(1)

    added(READERS, "mine", mine)
    done = features(labels_per_class=4)
    (N, D), (_, K), (_, d), _ = shapes[0]
    assert (N, K) == (1297, 10) and done.metrics["mine_accuracy"] > 0.5
    assert list(done.metrics)[2:7] == [f"{r}_accuracy" for r in READERS]
    assert done.data["readers"]["mine"] > 0.3  # on the labels alone: it was asked whether it shall answer
    state = load_predictor(done.run_dir).answer.state_dict()
    assert state["A"].shape == (3, K, d + D) and len(state["mix"]) == 5
    del READERS["mine"]  # another process: what answers lies in the file
    there = load_predictor(done.run_dir)
    assert all(torch.equal(there.answer.state_dict()[name], t) for name, t in state.items())


def test_a_reader_of_a_frozen_representation(tmp_path, added):
    from semissl.run.evaluate import PROBES

    added(PROBES, "always_one", lambda h, y, h_all, h_test, classes: torch.eye(classes)[torch.ones(len(h_test)).long()])
    added(PROBES, "silent", lambda h, y, h_all, h_test, classes: None)
    done = one_run(tmp_path)
    assert 0.05 < done.metrics["always_one_accuracy"] < 0.15 and done.metrics["silent_accuracy"] is None


def test_a_metric(tmp_path, added):
    from semissl.run.metrics import METRICS

    added(METRICS, "mine", lambda probabilities, labels: probabilities[range(len(labels)), labels].mean().item())
    added(METRICS, "lacking", lambda no_such_array: 1.0)
    done = one_run(tmp_path)
    written = json.loads((done.run_dir / "result.json").read_text())["metrics"]
    assert 0.1 < written["mine"] < 1 and written["lacking"] is None and done.metrics == written


# what other programs read
KEYS = (
    "test_accuracy test_accuracy_interval linear_head_accuracy correlation_accuracy logistic_regression_accuracy "
    "self_training_accuracy linear_probe_accuracy knn_accuracy class_means_accuracy gaussian_mixture_accuracy "
    "label_propagation_accuracy accuracy_at_50 accuracy_at_80 accuracy_at_95 temperature calibration_error "
    "same_class_correlation different_class_correlation effective_rank validation_accuracy cross_validated_accuracy"
)


def test_the_keys_of_a_result(tmp_path):
    "And what is recorded where something else ran than was asked for."
    if torch.cuda.is_available():
        pytest.skip("float16 runs on a GPU")
    with pytest.warns(UserWarning, match="16-mixed needs a GPU, and there is none: the run computes in bf16-mixed"):
        done = one_run(tmp_path, precision="16-mixed")
    assert list(done.metrics) == KEYS.split()
    assert (done.config["precision"], done.cost["precision"]) == ("16-mixed", "bf16-mixed")


def test_a_figure(tmp_path, added):
    from semissl.many.example import example_run
    from semissl.many.figures import FIGURES, Drawing

    added(FIGURES, "mine", Drawing(lambda run: matplotlib.figure.Figure()))
    added(FIGURES, "nothing", Drawing(lambda run: None))
    added(FIGURES, "lacking", Drawing(lambda run: None, needs=("no such array",)))
    with pytest.warns(UserWarning, match="lacking .no no such array."):
        drawn = run_figures(example_run(tmp_path / "run").run_dir)
    assert "mine" in drawn and "nothing" not in drawn


def test_the_public_names_are_there():
    assert 70 <= len(semissl.__all__) <= 90
    for name in semissl.__all__:
        assert getattr(semissl, name) is not None
