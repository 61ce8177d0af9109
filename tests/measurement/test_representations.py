"""What several ranks have heard, joined, against what one rank would have heard of all."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_symmetry.functional import effective_rank
from lightning_symmetry.measurement.listening import Listener
from lightning_symmetry.measurement.measure import Ranks, join
from lightning_symmetry.measurement.representations import (
    REPRESENTATION_INDICATORS,
    agree,
    representation_aggregates,
    representation_pieces,
    take_sums,
)
from lightning_symmetry.measurement.snapshot import snapshot


class Classifier(nn.Module):
    def __init__(self, width=7):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.head(self.body(inputs))


def listener_to(model, layers=("body.0", "body.2"), kept=1024):
    return Listener(
        layers={name: model.get_submodule(name) for name in layers},
        classifier=("head", model.head),
        gradients=True,
        similarity=True,
        labels=None,
        conv_features="pooled",
        max_samples=1000,
        kept=kept,
    )


def hear(listener, model, batch):
    listener.listen(batch)
    nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum").backward()
    listener.stop()
    assert listener.error is None


def together(world_size, of_rank):
    """Run one function on each rank, a thread for each: a sum is there when all have given their part."""
    everyone, given = threading.Barrier(world_size, timeout=60), [None] * world_size

    def total(rank, tensor):
        given[rank] = tensor
        everyone.wait()
        result = sum(given)
        everyone.wait()
        return result

    def run(rank):
        try:
            return of_rank(rank, Ranks(rank, world_size, sum=lambda tensor: total(rank, tensor)))
        except BaseException:
            everyone.abort()
            raise

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(run, range(world_size)))


def measured(model, batches, world_size):
    """The values of every rank, of which each hears every so many batches."""

    def of_rank(rank, ranks):
        own = copy.deepcopy(model)
        listener = listener_to(own, kept=1024 // world_size)
        for batch in batches[rank::world_size]:
            hear(listener, own, batch)
        heard = agree(listener, own, ranks)
        tensors = {**snapshot(own), **join(take_sums(heard, listener, ranks), ranks)}
        assert not listener.sums and not listener.of_classes and not listener.hsics.any()
        values = {}
        for piece in representation_pieces(heard, REPRESENTATION_INDICATORS, listener.projected):
            values |= dict(zip(piece.keys, map(float, piece.measure(tensors)), strict=True))
        return {**values, **representation_aggregates(heard, values)}

    return [of_rank(0, Ranks())] if world_size == 1 else together(world_size, of_rank)


def uneven_batches(sizes=(9, 4, 12, 5, 7)):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 5, generator=generator), torch.randint(0, 3, (size,), generator=generator)) for size in sizes
    ]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_with_uneven_batches_know_what_one_would(world_size):
    torch.manual_seed(0)
    model = Classifier()
    (alone,) = measured(model, uneven_batches(), 1)
    assert {key.split("/")[1] for key in alone} >= {"effective_rank", "nc1", "nc4", "linear_cka"}
    for values in measured(model, uneven_batches(), world_size):
        assert values == pytest.approx(alone, rel=1e-6, abs=1e-9)


def test_a_layer_that_one_rank_alone_has_heard_is_measured_on_all():
    torch.manual_seed(0)
    model = Classifier()
    whole, part = uneven_batches((8, 8))

    def of_rank(rank, ranks):
        own = copy.deepcopy(model)
        listener = listener_to(own)
        if rank == 0:
            hear(listener, own, whole)
        else:
            listener.listen(part)
            own.body[0](part[0]).sum().backward()
            listener.stop()
        heard = agree(listener, own, ranks)
        sums = join(take_sums(heard, listener, ranks), ranks)
        return [layer.name for layer in heard.layers], {name: tensor.shape for name, tensor in sums.items()}

    first, second = together(2, of_rank)
    assert first == second
    assert first[0] == ["body.0", "body.2"]


def test_wide_features_are_projected_and_their_sums_stay_small():
    torch.manual_seed(0)
    model = Classifier(width=3000)
    listener = listener_to(model)
    for batch in uneven_batches((40, 40)):
        hear(listener, model, batch)
    assert listener.sums["body.0"]["outer"].shape == (1024, 1024)
    assert listener.sums["body.0"]["activity"].shape == (3000,)
    (values,) = measured(model, uneven_batches((40, 40)), 1)
    rows = torch.cat([model.body[0](batch[0]) for batch in uneven_batches((40, 40))])
    assert values["representation/effective_rank/body_0"] == pytest.approx(effective_rank(rows).item(), rel=0.02)
    assert values["representation/activation_weight_alignment/body_0"] > 0.5


def test_many_samples_are_kept_in_sums_of_one_size():
    torch.manual_seed(0)
    model = Classifier()
    listener = listener_to(model, kept=16)
    shapes = []
    for batch in uneven_batches((9, 30, 400)):
        hear(listener, model, batch)
        shapes.append({name: tensor.shape for name, tensor in listener.sums["body.2"].items()})
        assert len(listener.of_classes["sample"]) <= 2 * 16 and listener.of_classes["sample"].shape[1] == 1 + 1 + 6
    assert shapes[0] == shapes[1] == shapes[2]


def test_a_copy_a_trace_and_an_evaluation_are_not_heard():
    torch.manual_seed(0)
    model = Classifier()
    ((inputs, labels),) = uneven_batches((8,))
    listener = listener_to(model)
    listener.listen((inputs, labels))
    copy.deepcopy(model)(inputs)
    make_fx(model)(inputs)
    assert not listener.sums and not listener.of_classes
    model(inputs)
    listener.stop()
    model(inputs)
    assert listener.sums["body.0"]["samples"] == 8
