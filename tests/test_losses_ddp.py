"""Every loss under DDP: two processes on the halves of a batch have the gradient of one process on the whole of it.

What is required: each process brings the same number of rows to `gather_rows`. How many of them are labelled is free:
here the first process has 7 labelled rows and the second 3. Everything is float64, so equal means 1e-12.
"""

import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from semissl.method.losses import barlow_twins, class_correlation, cross_entropy, gather_rows, nt_xent, vicreg

WORLD, ROWS = 2, 8  # processes, rows of each
LABELS = torch.tensor([0, 1, 2, 0, 1, -1, 2, 0] + [-1, 0, -1, -1, 1, -1, -1, 2])
# two images come twice, one on both
IMAGE = torch.tensor([0, 1, 2, 3, 4, 5, 6, 3] + [8, 0, 10, 11, 12, 13, 14, 15])
WEIGHT = torch.linspace(0.2, 1, WORLD * ROWS, dtype=torch.float64)
NOBODY = torch.full_like(LABELS, -1)

# name: a function of the outputs of two views and of (labels, weight, image), all of them gathered
LOSSES = {
    "barlow_twins": lambda a, b, y, w, i: barlow_twins(a, b, lambd=0.1),
    "vicreg": lambda a, b, y, w, i: vicreg(a, b),
    "nt_xent": lambda a, b, y, w, i: nt_xent(a, b),
    "sample form": lambda a, b, y, w, i: class_correlation(a, y, "sample", 0.5),
    "feature form": lambda a, b, y, w, i: class_correlation(a, y, "feature", 0.5),
    "sample form, weighted": lambda a, b, y, w, i: class_correlation(a, y, "sample", 0.5, w, i),
    "feature form, weighted": lambda a, b, y, w, i: class_correlation(a, y, "feature", 0.5, w, i),
    "cross_entropy": lambda a, b, y, w, i: cross_entropy(a, y),
    "cross_entropy, weighted": lambda a, b, y, w, i: cross_entropy(a, y, w),
    "a sum of three": lambda a, b, y, w, i: barlow_twins(a, b) + cross_entropy(b, y) + class_correlation(a, y),
    "a user's own": lambda a, b, y, w, i: (a.T @ b).square().mean().sqrt(),
}


def detached(x):
    "The trap: `all_gather` has no gradient."
    parts = [torch.empty_like(x) for _ in range(WORLD)]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts) + 0 * x.sum()  # the last term only lets `backward` run


def own_rows_only(x):
    "The trap's usual repair: one's own rows pasted back, the gradient WORLD times too small."
    parts = list(detached(x).detach().chunk(WORLD))
    parts[dist.get_rank()] = x
    return torch.cat(parts)


GATHERS = {"ours": gather_rows, "detached": detached, "own rows only": own_rows_only, "none": lambda x: x}


def network():
    torch.manual_seed(0)
    return nn.Linear(5, 6).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, WORLD * ROWS, 5, dtype=torch.float64, generator=generator)


def gradient(net, x1, x2, loss, gather, labels):
    "Gradient of the loss of two views with respect to the weights, as one vector."
    net.zero_grad()
    a, b = net(torch.cat([x1, x2])).chunk(2)
    loss(gather(a), gather(b), *labels).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()]).clone()


def process(rank, folder):
    "One DDP process: all losses with all ways to gather; every process writes the gradients it ended with."
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    net, (x1, x2) = DistributedDataParallel(network()), batch()[:, mine]
    result = {"labels": gather_rows(LABELS[mine])}
    for how, gather in GATHERS.items():
        labels = [t[mine] if how == "none" else gather_rows(t[mine]) for t in (LABELS, WEIGHT, IMAGE)]
        for name, loss in LOSSES.items():
            result[how, name] = gradient(net, x1, x2, loss, gather, labels)
    labels = [gather_rows(t[mine]) for t in (NOBODY, WEIGHT, IMAGE)]
    for name, loss in LOSSES.items():
        result["no label", name] = gradient(net, x1, x2, loss, gather_rows, labels)
    for name in ("cross_entropy", "sample form", "feature form"):
        result["no row", name] = gradient(
            net, x1, x2, LOSSES[name], lambda x: gather_rows(x[:0]), [t[:0] for t in labels]
        )
    torch.save(result, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    mp.spawn(process, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def one_process(name, labels=LABELS):
    x1, x2 = batch()
    return gradient(network(), x1, x2, LOSSES[name], lambda x: x, (labels, WEIGHT, IMAGE))


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_one_process(results, name):
    expected = one_process(name)
    assert expected.abs().max() > 1e-3  # there is a gradient to compare
    for result in results:
        torch.testing.assert_close(result["ours", name], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_comparison_can_fail(results, name):
    expected = one_process(name)
    for result in results:
        assert result["detached", name].abs().max() == 0
        torch.testing.assert_close(result["own rows only", name] * WORLD, expected, rtol=0, atol=1e-12)
        assert (result["none", name] - expected).abs().max() > 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_without_labels(results, name):
    "No process has a label: DDP must still find a gradient for every weight, here that of the label-free part."
    expected = one_process(name, NOBODY)
    for result in results:
        torch.testing.assert_close(result["no label", name], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["cross_entropy", "sample form", "feature form"])
def test_a_step_without_rows(results, name):
    "The labelled batch is empty on every process: a gradient of 0 for every weight, not a missing one."
    for result in results:
        assert result["no row", name].abs().max() == 0


def test_integers_are_gathered_in_the_order_of_ranks(results):
    for result in results:
        torch.testing.assert_close(result["labels"], LABELS)
