"""What several ranks have heard, joined, against what one rank would have heard of all."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_symmetry.functional import canonical_alignment, effective_rank
from lightning_symmetry.measurement.layers import mixing_layers
from lightning_symmetry.measurement.listening import MOST_CLASSES, MOST_CLASSIFIER_WIDTH, Listener, why_no_classes
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


def listener_to(model, layers=("body.0", "body.1", "body.2"), kept=1024):
    return Listener(
        layers={name: model.get_submodule(name) for name in layers},
        classifier=("head", model.head),
        gradients=True,
        similarity=True,
        labels=None,
        conv_features="pooled",
        max_samples=1000,
        kept=kept,
        readers={name: model.get_submodule(name) for name in mixing_layers(model)},
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
    assert first[0] == ["body.0", "body.1", "body.2"]


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


def aligned(model, layer, batches):
    """What is measured of the alignment of a layer, and its twin for activations, their gradients and a weight."""
    (values,) = measured(model, batches, 1)
    model, kept = copy.deepcopy(model), []
    module = model.get_submodule(layer)
    module.register_forward_hook(lambda module, args, output: kept.append(output) or output.retain_grad())
    for inputs, labels in batches:
        nn.functional.cross_entropy(model(inputs), labels, reduction="sum").backward()
    found = {name: values.get(f"representation/{name}_alignment/{layer.replace('.', '_')}") for name in ALIGNMENTS}
    activations, gradients = torch.cat(kept), torch.cat([one.grad for one in kept])
    twin = partial(canonical_alignment, activations, gradients)
    return found, lambda weight: {name: value.item() for name, value in twin(weight).items()}


ALIGNMENTS = ("activation_gradient", "activation_weight", "gradient_weight")


def test_what_no_matrix_writes_is_aligned_with_the_one_that_reads_it():
    """W^T W of the layer that is given the very tensor; W W^T where one writes the features."""
    torch.manual_seed(0)
    model = Classifier()
    found, twin = aligned(model, "body.1", uneven_batches())
    assert found == pytest.approx(twin(model.body[2].weight.T), rel=1e-6)
    found, twin = aligned(model, "body.2", uneven_batches())
    assert found == pytest.approx(twin(model.body[2].weight), rel=1e-6)


class Forked(Classifier):
    """Two layers read the features, one more a view of them, and one their norm."""

    def __init__(self):
        super().__init__()
        self.other, self.view, self.normed = (nn.Linear(7, size) for size in (3, 5, 4))
        self.norm = nn.LayerNorm(7)

    def forward(self, inputs):
        features = self.body[1](self.body[0](inputs))
        left_out = self.view(features.view(-1, 7)).sum() + self.normed(self.norm(features)).sum()
        return self.head(self.body[3](self.body[2](features))) + self.other(features) + 1e-3 * left_out


def test_several_that_read_the_same_are_taken_together_and_those_behind_a_norm_or_a_view_are_not():
    torch.manual_seed(0)
    model = Forked()
    found, twin = aligned(model, "body.1", uneven_batches())
    assert found == pytest.approx(twin(torch.cat([model.body[2].weight, model.other.weight]).T), rel=1e-6)


def test_channels_are_aligned_with_the_convolution_that_reads_them():
    torch.manual_seed(0)
    model = Classifier()
    model.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten())
    batches = [(inputs.new_zeros(len(inputs), 1, 5, 5).normal_(), labels) for inputs, labels in uneven_batches()]
    listener = listener_to(model, ["body.1"])
    for batch in batches:
        hear(listener, model, batch)
    heard = agree(listener, model, Ranks())
    assert heard.layers[0].read_by == ("body.2.weight",)
    (piece,) = representation_pieces(heard, ["canonical_alignment"], listener.projected)
    sums = take_sums(heard, listener, Ranks())
    weight = model.body[2].weight.detach()
    values = dict(zip(piece.keys, piece.measure({**snapshot(model), **sums}), strict=True))
    by_hand = sum(weight[:, :, i, j].T @ weight[:, :, i, j] for i in range(3) for j in range(3)).double()
    outer = sums["body.1/outer"]
    cosine = (outer * by_hand).sum() / outer.norm() / by_hand.norm()
    assert values["representation/activation_weight_alignment/body_1"].item() == pytest.approx(cosine.item())


def test_readers_are_looked_for_until_sums_are_taken():
    torch.manual_seed(0)
    model = Classifier()
    listener = listener_to(model)
    for batch in uneven_batches((4, 4)):
        hear(listener, model, batch)
    assert listener.read_by == {"body.1": {"body.2"}}
    listener.clear()
    listener.listen(uneven_batches((4,))[0])
    assert not any(module._forward_pre_hooks for module in model.modules())
    listener.stop()


@pytest.mark.parametrize(
    ("given", "labels", "n_classes", "why"),
    [
        ((8, 6), (8,), 3, None),
        ((8, 5, 6), (8, 5), 3, None),
        ((8, 6), (8, 2), 3, "labels of shape (8, 2) are not one for each of the (8,) samples that head reads"),
        ((8, 5, 6), (8,), 3, "labels of shape (8,) are not one for each of the (8, 5) samples that head reads"),
        ((8, 6), (8,), MOST_CLASSES + 1, "head decides between 2,049 classes, more than 2,048"),
        ((8, MOST_CLASSIFIER_WIDTH + 1), (8,), 3, "head reads 4,097 features, more than 4,096"),
    ],
    ids=str,
)
def test_it_is_known_why_features_are_not_summed_by_class(given, labels, n_classes, why):
    assert why_no_classes("head", given, labels, n_classes) == why
