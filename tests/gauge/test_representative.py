"""The gauge of small models, against what it must be by hand."""

import multiprocessing

import pytest
import torch
from torch import nn

from lightning_symmetry import find_symmetries
from lightning_symmetry.gauge.mixing import sides_of_rotation
from lightning_symmetry.gauge.representative import find_gauge
from lightning_symmetry.measurement.charges import charge_pieces
from lightning_symmetry.measurement.indicators import SharedGauge, symmetry_pieces
from lightning_symmetry.measurement.snapshot import snapshot
from tests.memory import STATUS, peak_beyond
from tests.models import mlp
from tests.zoo import ZOO


def found(model, batch):
    symmetries = find_symmetries(model, batch)
    tensors = {name: tensor.double() for name, tensor in snapshot(model).items()}
    return symmetries, tensors, find_gauge(symmetries, tensors)


def read(gauge, symmetries, tensors, name):
    """A parameter at the representative, where it is one block."""
    (block,) = (block for block in symmetries.blocks if block.tensor == name)
    return gauge.of(block, tensors)


def test_hidden_units_are_balanced_and_the_function_is_the_same():
    torch.manual_seed(0)
    model, inputs = mlp(), torch.randn(6, 5)
    symmetries, tensors, gauge = found(model, inputs)
    at = {name: read(gauge, symmetries, tensors, name) for name in tensors}
    for incoming, outgoing in (("0", "2"), ("2", "4")):
        rows = at[f"{incoming}.weight"].square().sum(1) + at[f"{incoming}.bias"].square()
        torch.testing.assert_close(rows, at[f"{outgoing}.weight"].square().sum(0))
    outputs = torch.func.functional_call(model.double(), at, inputs.double())
    torch.testing.assert_close(outputs, model(inputs.double()))


def test_the_model_is_neither_changed_nor_copied_where_nothing_acts():
    model = mlp()
    symmetries, tensors, gauge = found(model, torch.randn(6, 5))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    (block,) = (block for block in symmetries.blocks if block.tensor == "4.bias")
    assert gauge.of(block, tensors).data_ptr() == tensors["4.bias"].data_ptr()
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def test_the_gain_and_the_bias_of_a_norm_are_folded_into_the_next_map():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    with torch.no_grad():
        model[1].weight.normal_()
        model[1].bias.normal_()
    symmetries, tensors, gauge = found(model, torch.randn(6, 5))
    gain, bias, weight = tensors["1.weight"], tensors["1.bias"], tensors["2.weight"]
    assert torch.equal(read(gauge, symmetries, tensors, "1.bias"), torch.zeros(7).double())
    torch.testing.assert_close(read(gauge, symmetries, tensors, "1.weight"), torch.ones(7).double())
    folded = weight * gain
    centred = folded - folded.mean(1, keepdim=True)  # what reads a centred input has no mean
    torch.testing.assert_close(read(gauge, symmetries, tensors, "2.weight"), centred)
    torch.testing.assert_close(read(gauge, symmetries, tensors, "2.bias"), tensors["2.bias"] + weight @ bias)


def test_the_mean_that_a_norm_hides_is_taken_away_behind_a_gain_that_stays():
    """Post-norm: the norm is read by a map and by the stream, so that its gain cannot be folded, but its bias can."""
    case = ZOO["encoder post-norm"]
    symmetries, tensors, gauge = found(case.build(), case.batch())
    gain = tensors["encoder.layers.0.norm1.weight"]
    weight = read(gauge, symmetries, tensors, "encoder.layers.0.linear1.weight")
    torch.testing.assert_close((weight * gain).mean(1), torch.zeros(22).double())
    assert torch.equal(read(gauge, symmetries, tensors, "encoder.layers.0.norm1.bias"), torch.zeros(12).double())


def test_a_gain_that_is_zero_leaves_nothing_of_what_reads_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    with torch.no_grad():
        model[1].weight[2] = 0
    symmetries, _, gauge = found(model, torch.randn(6, 5))
    group = next(group for group in symmetries if group.kind == "rescaling")
    assert gauge.living[group.name].tolist() == [unit != 2 for unit in range(7)]


def test_two_maps_with_nothing_between_are_balanced():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 6))
    symmetries, tensors, gauge = found(model, torch.randn(6, 5))
    first, second = (read(gauge, symmetries, tensors, f"{k}.weight") for k in (0, 1))
    torch.testing.assert_close(first @ first.T, second.T @ second)
    torch.testing.assert_close(second @ first, tensors["1.weight"] @ tensors["0.weight"])


def test_maps_of_low_rank_are_balanced_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 6))
    symmetries, tensors, _ = found(model, torch.randn(6, 5))
    tensors["1.weight"][:, 3] = tensors["1.weight"][:, 0]
    gauge = find_gauge(symmetries, tensors)
    first, second = (read(gauge, symmetries, tensors, f"{k}.weight") for k in (0, 1))
    torch.testing.assert_close(first @ first.T, second.T @ second)
    torch.testing.assert_close(second @ first, tensors["1.weight"] @ tensors["0.weight"])
    assert int(torch.linalg.matrix_rank(first)) == 3


def test_three_linear_maps_have_singular_values_in_common():
    """At the balanced point of a deep linear net every map has the k-th roots of those of the product."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    symmetries, tensors, gauge = found(model, torch.randn(6, 4))
    maps = [read(gauge, symmetries, tensors, f"{k}.weight") for k in range(3)]
    values = torch.linalg.svdvals(tensors["2.weight"] @ tensors["1.weight"] @ tensors["0.weight"]) ** (1 / 3)
    for each in maps:
        torch.testing.assert_close(torch.linalg.svdvals(each), values, rtol=1e-6, atol=0)


def relu_net(depth, width):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def test_a_deep_net_is_balanced_within_50_steps():
    torch.manual_seed(0)
    _, tensors, gauge = found(relu_net(48, 12), torch.randn(6, 12))
    assert 0 < gauge.steps < 50
    norms = {name: tensor.square() for name, tensor in tensors.items()}
    squares = {name: (2 * logarithms).exp() for name, logarithms in gauge.logarithms.items()}
    for k in range(1, 46):  # the layers between the first and the last
        before, own, after = (squares[f"{2 * layer}.rescaling"] for layer in (k - 1, k, k + 1))
        incoming = (norms[f"{2 * k}.weight"] / before).sum(1) + norms[f"{2 * k}.bias"]
        outgoing = (norms[f"{2 * k + 2}.weight"] * after[:, None]).sum(0)
        torch.testing.assert_close(incoming * own, outgoing / own, rtol=1e-6, atol=0)


def peak_of_search(small, large):
    """The memory that the search for a gauge takes beyond the model, in sizes of the model."""
    generator = torch.Generator().manual_seed(0)
    for symmetries, shapes in (small, large):  # the first brings in all libraries and their workspaces
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        peak = peak_beyond(lambda symmetries=symmetries, tensors=tensors: find_gauge(symmetries, tensors))
    return peak / sum(4 * tensor.numel() for tensor in tensors.values())


@pytest.mark.skipif(not STATUS.exists(), reason="the memory is read from /proc")
def test_the_search_holds_no_second_model():
    """Of 24 MiB of parameters the squares alone, in float64 and all at once, would be two more models."""
    models = [relu_net(6, 16), relu_net(6, 1024)]
    given = [
        (
            find_symmetries(model, torch.randn(2, width), verify_up_to=0),
            {n: p.shape for n, p in model.named_parameters()},
        )
        for model, width in zip(models, (16, 1024), strict=True)
    ]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        sizes = pool.apply(peak_of_search, given)
    assert sizes < 0.5


@pytest.mark.parametrize("name", ["unet", "mamba"])
def test_the_next_search_starts_from_the_last_one(name):
    symmetries, tensors, gauge = found(ZOO[name].build(), ZOO[name].batch())
    nearby = {key: tensor * (1 + 1e-4 * torch.randn(tensor.shape)) for key, tensor in tensors.items()}
    cold, warm = find_gauge(symmetries, nearby), find_gauge(symmetries, nearby, gauge)
    assert warm.steps < gauge.steps
    for key, logarithms in cold.logarithms.items():
        torch.testing.assert_close(warm.logarithms[key], logarithms, rtol=0, atol=1e-6)


def test_the_sides_of_a_rotation_are_read_without_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 6))
    symmetries, tensors, gauge = found(model, torch.randn(6, 5))
    (group,) = (group for group in symmetries if group.kind == "rotation")
    first, second = sides_of_rotation(gauge, group, tensors)
    assert torch.equal(first, tensors["0.weight"])
    assert torch.equal(second, tensors["1.weight"].T)


def test_what_is_not_finite_has_no_gauge():
    model = mlp()
    symmetries, tensors, _ = found(model, torch.randn(6, 5))
    tensors["2.weight"][0, 0] = torch.nan
    gauge = find_gauge(symmetries, tensors)
    assert gauge.logarithms["0.rescaling"].isnan().all()


class TwoNorms(nn.Module):
    """A stream that is normed, mapped, and normed, with biases of zero."""

    def __init__(self):
        super().__init__()
        self.read, self.first = nn.Linear(5, 8), nn.LayerNorm(8)
        self.inner, self.second, self.out = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 6)
        for layer in (self.inner, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, inputs):
        stream = self.first(self.read(inputs))
        stream = stream + self.second(self.inner(stream))
        return nn.functional.layer_norm(self.out(stream), (6,))


def test_scales_come_to_rest_at_one_point_of_the_orbit_also_where_biases_that_they_act_on_are_zero():
    torch.manual_seed(0)
    symmetries, tensors, gauge = found(TwoNorms(), torch.randn(7, 5))
    assert all(values.abs().max() < 10 for values in gauge.logarithms.values())
    scale = next(group for group in symmetries if group.name == "first.scale")
    moved = scale.transform(tensors, torch.Generator().manual_seed(0))
    there = find_gauge(symmetries, moved)
    for block in symmetries.blocks:
        torch.testing.assert_close(there.of(block, moved), gauge.of(block, tensors), rtol=1e-6, atol=1e-9)


class HalfThrownAway(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.both, self.head = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, inputs):
        kept, _ = self.both(self.read(inputs).tanh()).chunk(2, -1)
        return self.head(kept)


def test_what_nothing_reads_has_a_rotation_with_one_side():
    torch.manual_seed(0)
    model = HalfThrownAway()
    symmetries, tensors, gauge = found(model, torch.randn(7, 5))
    thrown = next(group for group in symmetries if group.name == "both.1.rotation")
    assert [side.shape[-1] for side in sides_of_rotation(gauge, thrown, tensors)] == [7, 0]
    charges = charge_pieces(symmetries, ("imbalance",), lambda name: (0.1, False), lambda: 0)
    for piece in (*symmetry_pieces(symmetries, 1e-2, SharedGauge(symmetries)), *charges):
        assert all(bool(value.isfinite()) for value in piece.measure(tensors))
