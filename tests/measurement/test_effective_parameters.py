"""The number of effective parameters, against counts by hand of states made by hand."""

import pytest
import torch
from torch import nn

from lightning_symmetry import find_symmetries
from lightning_symmetry.measurement.indicators import symmetry_aggregates, symmetry_pieces
from lightning_symmetry.measurement.snapshot import snapshot
from tests.models import mlp
from tests.test_theory import Products
from tests.zoo import ZOO


def effective(model, symmetries):
    tensors, values = snapshot(model), {}
    for piece in symmetry_pieces(symmetries, 1e-2):
        values |= dict(zip(piece.keys, map(float, piece.measure(tensors)), strict=True))
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return symmetry_aggregates(symmetries, numel, values)["complexity/effective_parameters"], values


def generic(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def numel(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_an_mlp_with_two_units_equal_up_to_scale_and_one_dead():
    """Widths 5, 11, 9, 4: in the first hidden layer 9 units are left, in the second 8."""
    torch.manual_seed(0)
    model = generic(mlp())
    symmetries = find_symmetries(model, torch.randn(6, 5))
    assert effective(model, symmetries)[0] == pytest.approx(numel(model))
    with torch.no_grad():
        for tensor, factor in ((model[0].weight, 3), (model[0].bias, 3), (model[2].weight.T, 1 / 3)):
            tensor[7] = factor * tensor[2]
        model[0].weight[4] = model[0].bias[4] = 0  # nothing comes in
        model[4].weight[:, 5] = 0  # nothing goes out
    count = 9 * (5 + 1) + 8 * (9 + 1) + 4 * (8 + 1)
    assert effective(model, symmetries)[0] == pytest.approx(count)


def test_an_mlp_with_two_units_equal_up_to_sign():
    torch.manual_seed(0)
    model = generic(nn.Sequential(nn.Linear(5, 11), nn.Tanh(), nn.Linear(11, 4)))
    symmetries = find_symmetries(model, torch.randn(6, 5))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[2].weight.T):
            tensor[7] = -tensor[2]
    value, values = effective(model, symmetries)
    assert values["symmetry/distinct_units/0"] == 10
    assert values["symmetry/nearest_distance_min/0"] == pytest.approx(0, abs=1e-7)
    assert value == pytest.approx(10 * (5 + 1) + 4 * (10 + 1))


class Scales(nn.Module):
    """Units that are told apart by the inputs that are added to their outputs."""

    def __init__(self):
        super().__init__()
        self.stream, self.u, self.w = nn.Linear(5, 5), nn.Parameter(torch.rand(5)), nn.Parameter(torch.rand(5))

    def forward(self, inputs):
        stream = self.stream(inputs)
        return stream + self.w * torch.relu(self.u * stream)


def test_dead_units_of_an_axis_that_no_permutation_acts_on():
    """Of w_i relu(u_i x_i) nothing is left at u_i = 0; the map that gives x_i is read by what is added, too."""
    torch.manual_seed(0)
    products, scales = Products(5), Scales()
    for model, before, inputs in ((products, 10, torch.ones(1, 5)), (scales, 40, torch.randn(6, 5))):
        symmetries = find_symmetries(model, inputs)
        assert "permutation" not in {group.kind for group in symmetries}
        assert effective(model, symmetries)[0] == pytest.approx(before)
        with torch.no_grad():
            model.u[2] = 0
        assert effective(model, symmetries)[0] == pytest.approx(before - 2)


def test_maps_through_more_directions_than_they_carry_count_no_more_than_there_are():
    """Of 5 directions between maps of 3 dimensions 3 are used, whatever the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 3, bias=False))
    value, values = effective(model, find_symmetries(model, torch.randn(6, 3)))
    assert values["symmetry/product_rank/0_rotation"] == 3
    assert value == pytest.approx(numel(model) * 3 / 5)


def test_a_resnet_with_two_channels_equal_up_to_scale_and_one_dead():
    """In the first block's hidden axis of 8 channels, between two 3 x 3 convolutions with 8 channels on either side."""
    model = generic(ZOO["resnet basic"].build())
    symmetries = find_symmetries(model, ZOO["resnet basic"].batch())
    assert effective(model, symmetries)[0] == pytest.approx(numel(model))
    first, second = (model.resnet.encoder.stages[0].layers[1].layer[k] for k in (0, 1))
    with torch.no_grad():
        first.convolution.weight[6] = 5 * first.convolution.weight[1]  # its size is normalized away
        for vector in (first.normalization.weight, first.normalization.bias):
            vector[6] = 2 * vector[1]
            vector[3] = 0
        second.convolution.weight[:, 6] = second.convolution.weight[:, 1] / 2
    lost = 2 * (8 * 9 + 2 + 8 * 9)  # a filter, gain and bias of its norm, and what the next filters read
    assert effective(model, symmetries)[0] == pytest.approx(numel(model) - lost)


def test_a_gpt2_with_dead_hidden_units():
    """A unit through GELU is dead when nothing comes in and nothing goes out: 3 of 22, that read and write 15."""
    model = generic(ZOO["gpt2"].build())
    symmetries = find_symmetries(model, ZOO["gpt2"].batch())
    hidden = model.transformer.h[1].mlp
    with torch.no_grad():
        for tensor in (hidden.c_fc.weight.T, hidden.c_fc.bias, hidden.c_proj.weight):
            tensor[[2, 3, 20]] = 0
    value, values = effective(model, symmetries)
    assert values["symmetry/distinct_units/transformer_h_1_mlp_c_fc"] == 20
    assert values["symmetry/distinct_alive_units/transformer_h_1_mlp_c_fc"] == 19
    assert value == pytest.approx(numel(model) - 3 * (15 + 1 + 15), rel=1e-6)


def test_a_gpt2_with_heads_of_low_rank_two_equal_heads_and_equal_hidden_units():
    """Stream of 15, 3 heads of 5 coordinates, 22 hidden units."""
    model = generic(ZOO["gpt2"].build())
    symmetries = find_symmetries(model, ZOO["gpt2"].batch())
    assert effective(model, symmetries)[0] == pytest.approx(numel(model))
    low, equal = model.transformer.h[0], model.transformer.h[1]
    mixture = torch.eye(5) + 0.1 * torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        query_key_value = low.attn.c_attn.weight.view(15, 3, 3, 5)
        query_key_value[:, 0, 0, 3:] = 0  # the first of three heads: of its 5 directions 3 are left between Q and K,
        low.attn.c_attn.bias.view(3, 3, 5)[0, 0, 3:] = 0
        query_key_value[:, 2, 1, 1] = query_key_value[:, 2, 1, 0]  # and 4 of the second between V and O
        low.attn.c_attn.bias.view(3, 3, 5)[2, 1, 1] = low.attn.c_attn.bias.view(3, 3, 5)[2, 1, 0]
        for tensor in (equal.attn.c_attn.weight.view(15, 3, 3, 5), equal.attn.c_attn.bias.view(3, 3, 5)):
            tensor[..., 0, 2, :] = tensor[..., 0, 0, :] @ mixture.T  # heads that are the same but for their bases
            tensor[..., 1, 2, :] = tensor[..., 1, 0, :] @ torch.linalg.inv(mixture)
            tensor[..., 2, 2, :] = tensor[..., 2, 0, :] @ mixture
        out = equal.attn.c_proj.weight.view(3, 5, 15)
        out[2] = torch.linalg.inv(mixture) @ out[0]
        for tensor in (low.mlp.c_fc.weight.T, low.mlp.c_fc.bias, low.mlp.c_proj.weight):
            tensor[20] = tensor[8]
    value, values = effective(model, symmetries)
    assert values["symmetry/distinct_units/transformer_h_1_attn_c_attn_heads"] == 2

    def share(ranks, width):  # of two maps with 5 directions between, of each of three heads
        return sum(rank * (width - rank) / (5 * (width - 5)) for rank in ranks) / 3

    of_qk, of_vo = 2 * 15 * (15 + 1), 15 * (15 + 1) + 15 * 15  # with biases
    lost = of_qk * (1 - share((3, 5, 5), 32)) + of_vo * (1 - share((5, 4, 5), 31))
    lost += (of_qk + of_vo) / 3 + (15 + 1 + 15)
    assert value == pytest.approx(numel(model) - lost, rel=1e-6)
