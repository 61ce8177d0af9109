"""Indicators of whole models with states made by hand."""

import math
from weakref import ref

import pytest
import torch
from torch import nn

from lightning_symmetry import find_symmetries
from lightning_symmetry.functional.order_parameters import nearest_distances
from lightning_symmetry.gauge.gauge import Gauge
from lightning_symmetry.keys import key_names
from lightning_symmetry.measurement.indicators import (
    SharedGauge,
    nonfinite,
    symmetry_aggregates,
    symmetry_pieces,
)
from lightning_symmetry.measurement.snapshot import snapshot
from lightning_symmetry.measurement.units import units_of
from tests.minis import MINIS
from tests.models import ConvNet, Transformer, mlp
from tests.reference.completeness import generic


def measured(model, symmetries, tolerance=1e-2):
    tensors = snapshot(model)
    values = {}
    for piece in symmetry_pieces(symmetries, tolerance):
        values |= dict(zip(piece.keys, map(float, piece.measure(tensors)), strict=True))
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return {**values, **symmetry_aggregates(symmetries, numel, values)}


def trained_mlp():
    torch.manual_seed(0)
    model = mlp()
    inputs, targets = torch.randn(64, 5), torch.randint(0, 4, (64,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model, inputs


def make_equal(model, first, second):
    """Make two units of the first hidden layer of the MLP equal: incoming row, bias, and outgoing column."""
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[2].weight.T):
            tensor[second] = tensor[first]


def test_two_units_of_a_trained_net_made_equal():
    model, inputs = trained_mlp()
    symmetries = find_symmetries(model, inputs)
    before = measured(model, symmetries)
    assert before["symmetry/distinct_units/0"] == 11
    assert before["symmetry/broken_fraction/0"] == 1
    assert before["symmetry/nearest_distance_min/0"] > 0.1
    make_equal(model, 3, 7)
    after = measured(model, symmetries)
    assert after["symmetry/distinct_units/0"] == 10
    assert after["symmetry/broken_fraction/0"] == pytest.approx(1 - math.log(2) / math.lgamma(12))
    assert after["symmetry/nearest_distance_min/0"] == 0
    assert after["symmetry/distinct_units/2"] == 9  # the other layer is as it was
    lost = (11 * 5 + 11 + 9 * 11) / 11
    assert after["complexity/effective_parameters"] == pytest.approx(before["complexity/effective_parameters"] - lost)


def test_units_are_the_slices_of_every_parameter_that_moves_with_them():
    model, inputs = trained_mlp()
    group = find_symmetries(model, inputs)[0]
    (units,) = units_of(group, [], Gauge(), snapshot(model))
    by_hand = torch.cat([model[0].weight, model[0].bias[:, None], model[2].weight.T], dim=1).detach()
    assert torch.equal(torch.cat([part.read() for part in units.parts], dim=1), by_hand)
    assert torch.allclose(nearest_distances(units), nearest_distances(by_hand))


def test_heads_are_compared_under_the_permutations_within_each():
    """Two heads that are the same but for the order of their coordinates are at distance 0."""
    torch.manual_seed(0)
    model = Transformer()
    symmetries = find_symmetries(model, torch.randint(0, 13, (2, 7)))
    assert measured(model, symmetries)["symmetry/nearest_distance_min/blocks_0_attn_qkv_heads"] > 0.1
    order_qk, order_v = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 3, 2, 0])
    attention = model.blocks[0].attn
    with torch.no_grad():
        for tensor in (attention.qkv.weight, attention.qkv.bias):
            query, key, value = tensor.view(3, 3, 4, -1)
            query[2], key[2], value[2] = query[0][order_qk], key[0][order_qk], value[0][order_v]
        out = attention.out.weight.view(12, 3, 4)
        out[:, 2] = out[:, 0][:, order_v]
    values = measured(model, symmetries)
    assert values["symmetry/nearest_distance_min/blocks_0_attn_qkv_heads"] == pytest.approx(0, abs=1e-6)
    assert values["symmetry/distinct_units/blocks_0_attn_qkv_heads"] == 2
    assert values["symmetry/nearest_distance_min/blocks_1_attn_qkv_heads"] > 0.1


def test_the_directions_between_query_and_key_are_counted_head_by_head():
    torch.manual_seed(0)
    model = Transformer()
    symmetries = find_symmetries(model, torch.randint(0, 13, (2, 7)))
    key = "blocks_0_attn_qkv_qk_head_dims_rotation"
    assert measured(model, symmetries)[f"symmetry/product_rank/{key}"] == 4
    attention = model.blocks[0].attn
    with torch.no_grad():  # in the first of three heads, two of the four coordinates of query and key are one
        for tensor in (attention.qkv.weight, attention.qkv.bias):
            query, key_part, _ = tensor.view(3, 3, 4, -1)
            query[0, 1], key_part[0, 1] = query[0, 3], key_part[0, 3]
    values = measured(model, symmetries)
    assert values[f"symmetry/product_rank/{key}"] == pytest.approx((3 + 4 + 4) / 3)
    assert values[f"symmetry/broken_fraction/{key}"] == pytest.approx((3 + 4 + 4) / 12)


def test_a_unit_is_dead_when_nothing_comes_in_or_nothing_goes_out():
    model, inputs = trained_mlp()
    symmetries = find_symmetries(model, inputs)
    assert measured(model, symmetries)["symmetry/alive_units/0_rescaling"] == 11
    with torch.no_grad():
        model[2].weight[:, 4] = 0
        model[0].weight[7] = model[0].bias[7] = 0
    values = measured(model, symmetries)
    assert values["symmetry/alive_units/0_rescaling"] == 9
    assert values["symmetry/broken_fraction/0_rescaling"] == pytest.approx(9 / 11)
    assert values["symmetry/distinct_units/0"] == 10  # both are zero in the gauge
    assert values["symmetry/distinct_alive_units/0"] == 9


class Rows(nn.Module):
    """Two heads of four units, each head of which permutes its own."""

    def __init__(self):
        super().__init__()
        self.read, self.write = nn.Parameter(torch.randn(2, 4, 5)), nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, inputs):
        hidden = nn.functional.gelu(torch.einsum("hui,bi->bhu", self.read, inputs))
        return torch.einsum("huo,bhu->bho", self.write, hidden)


def test_the_nearest_distance_is_the_least_over_rows_and_all_else_their_mean():
    """One pair of equal units in one of two heads: of 4 units there 3 are distinct, of the other head's 4 all."""
    torch.manual_seed(0)
    model = Rows()
    symmetries = find_symmetries(model, torch.randn(6, 5))
    (group,) = symmetries
    assert (group.kind, group.size, group.n_rows) == ("permutation", 4, 2)
    with torch.no_grad():
        model.read[0, 3], model.write[0, 3] = model.read[0, 1], model.write[0, 1]
    values = measured(model, symmetries)
    rows = [nearest_distances(torch.cat([model.read[row], model.write[row]], 1)) for row in (0, 1)]
    assert values["symmetry/nearest_distance_min/read"] == 0 < float(rows[1].min())
    assert values["symmetry/distinct_units/read"] == 3.5
    mean = sum(float(row.quantile(0.5)) for row in rows) / 2
    assert values["symmetry/nearest_distance_median/read"] == pytest.approx(mean)


def test_a_stream_whose_mean_nothing_sees_is_fully_broken_at_rank_n_minus_1():
    model = generic(MINIS["residual"].make())
    symmetries = find_symmetries(model, MINIS["residual"].batch())
    (stream,) = (group for group in symmetries if group.form == "orthogonal, mean kept")
    values = measured(model, symmetries)
    (key,) = key_names([stream.name]).values()
    assert values[f"symmetry/product_rank/{key}"] == stream.size - 1
    assert values[f"symmetry/broken_fraction/{key}"] == 1


def test_leaving_groups_out_changes_no_number_of_the_others():
    torch.manual_seed(0)
    model = Transformer()
    symmetries = find_symmetries(model, torch.randint(0, 13, (2, 7)))
    heads = symmetries.select([group for group in symmetries if group.name == "blocks.0.attn.qkv.heads"])
    (piece,) = symmetry_pieces(heads, 1e-2, SharedGauge(symmetries))
    every = measured(model, symmetries)
    for key, value in zip(piece.keys, piece.measure(snapshot(model)), strict=True):
        assert float(value) == every[key]


@pytest.mark.parametrize(
    ("build", "batch"),
    [(ConvNet, torch.randn(4, 3, 8, 8)), (Transformer, torch.randint(0, 13, (2, 7)))],
    ids=["convnet", "transformer"],
)
def test_a_permutation_of_the_model_changes_no_indicator(build, batch):
    """Of the other kinds a group leaves its own order parameters unchanged: those of others depend on its gauge."""
    torch.manual_seed(0)
    model = build()
    symmetries = find_symmetries(model, batch)
    before = measured(model, symmetries)
    start = tensors = snapshot(model)
    for group in symmetries:
        if group.kind == "permutation":
            tensors = group.transform(tensors, torch.Generator().manual_seed(5))
    model.load_state_dict(tensors)
    after = measured(model, symmetries)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key
    for group in symmetries:
        for piece in symmetry_pieces(symmetries.select([group]), 1e-2) if group.kind != "permutation" else ():
            moved = group.transform(start, torch.Generator().manual_seed(5))
            for value, other in zip(piece.measure(moved), piece.measure(start), strict=True):
                assert float(value) == pytest.approx(float(other), rel=1e-5), group.name


def test_a_nan_gives_nan_values_and_is_traced_to_its_parameter():
    model, inputs = trained_mlp()
    symmetries = find_symmetries(model, inputs)
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    values = measured(model, symmetries)
    assert math.isnan(values["symmetry/broken_fraction/0"])
    assert math.isnan(values["symmetry/broken_fraction"])
    assert nonfinite(snapshot(model)) == ["2.weight"]


def test_the_gauge_is_found_once_and_keeps_none_of_the_tensors():
    """They may be copies of a whole model."""
    model, inputs = trained_mlp()
    shared = SharedGauge(find_symmetries(model, inputs))
    copies = snapshot(model).copied()
    first = shared.at(copies)
    assert shared.at(copies) is first
    held = [ref(tensor) for tensor in copies.values()]
    del copies
    assert all(tensor() is None for tensor in held)
    again = snapshot(model)
    assert shared.at(again) is not first
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    second = shared.at(again)
    assert shared.at(again) is second is not first
