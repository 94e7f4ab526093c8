"What CONTRIBUTING says of adding things: one of each kind, added at run time and used."

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
