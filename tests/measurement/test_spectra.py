"""Spectra of the layers of whole models, with states made by hand."""

import pytest
import torch
from torch import nn

from lightning_symmetry.functional import effective_rank, spectral_norm
from lightning_symmetry.measurement.snapshot import snapshot
from lightning_symmetry.measurement.spectra import full_rank, fused_dim, spectrum_aggregates, spectrum_pieces
from tests.models import mlp


def test_the_effective_rank_fraction_is_the_mean_over_layers():
    model = mlp()
    with torch.no_grad():
        for layer, rank in ((0, 2), (2, 3), (4, 1)):
            shape = model[layer].weight.shape
            model[layer].weight.copy_(torch.zeros(shape))
            model[layer].weight[range(rank), range(rank)] = 1.0
    layers = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.dim() > 1}
    values = {}
    for piece in spectrum_pieces(layers, ("effective_rank", "spectral_norm")):
        values |= dict(zip(piece.keys, map(float, piece.measure(snapshot(model))), strict=True))
    assert values["spectrum/effective_rank/0"] == pytest.approx(2)
    assert values["spectrum/spectral_norm/4"] == pytest.approx(1)
    expected = (2 / 5 + 3 / 9 + 1 / 4) / 3
    assert spectrum_aggregates(layers, values) == {"complexity/effective_rank_fraction": pytest.approx(expected)}


def test_the_full_rank_of_a_convolution_is_that_of_its_matrix():
    assert full_rank(torch.Size([16, 3, 5, 5])) == 16
    assert full_rank(torch.Size([64, 3, 3, 3])) == 27


def measured(tensors, indicators=("effective_rank", "spectral_norm")):
    values = {}
    for piece in spectrum_pieces({name: tensor.shape for name, tensor in tensors.items()}, indicators):
        values |= dict(zip(piece.keys, map(float, piece.measure(tensors)), strict=True))
    return values


@pytest.mark.parametrize(("name", "dim"), [("attn.c_attn.weight", 1), ("blocks.0.qkv.weight", 0)])
def test_fused_queries_keys_and_values_are_measured_whole_and_one_by_one(name, dim):
    generator = torch.Generator().manual_seed(0)
    parts = [scale * torch.randn(8, 8, generator=generator) for scale in (1.0, 2.0, 3.0)]
    values = measured({name: torch.cat(parts, dim)})
    key = name.removesuffix(".weight").replace(".", "_")
    assert len(values) == 8
    for part, weight in zip(("query", "key", "value"), parts, strict=True):
        assert values[f"spectrum/effective_rank/{key}_{part}"] == pytest.approx(effective_rank(weight).item())
        assert values[f"spectrum/spectral_norm/{key}_{part}"] == pytest.approx(spectral_norm(weight).item())


def test_what_is_fused_is_told_by_name_and_shape():
    attention = nn.MultiheadAttention(6, 2)
    fused = {name: fused_dim(name, parameter.shape) for name, parameter in attention.named_parameters()}
    assert fused == {"in_proj_weight": 0, "in_proj_bias": None, "out_proj.weight": None, "out_proj.bias": None}
    assert fused_dim("mlp.fc1.weight", torch.Size([18, 6])) is None
    assert fused_dim("attention.query_key_value.weight", torch.Size([18, 6])) is None  # alternating
    assert fused_dim("attn.qkv.weight", torch.Size([10, 6])) is None  # fewer keys than queries
