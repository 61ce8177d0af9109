"""Charges of the groups that are found, on states made by hand, and as their formulas say they change."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_symmetry import find_symmetries
from lightning_symmetry.functional import mean_component, rescaling_imbalance, rotation_imbalance
from lightning_symmetry.keys import key_names
from lightning_symmetry.measurement.charges import CHARGE_INDICATORS, charge_pieces
from lightning_symmetry.measurement.indicators import NONE_YET
from lightning_symmetry.measurement.snapshot import snapshot
from lightning_symmetry.stacks import Stacked
from tests.zoo import ZOO, found


class Classifier(nn.Module):
    """A convolution before a batch norm, ReLU units, a linear map through a narrow space, and a loss."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4)
        self.hidden, self.narrow, self.head = nn.Linear(4, 6), nn.Linear(6, 3, bias=False), nn.Linear(3, 5)

    def forward(self, inputs, labels):
        hidden = torch.relu(self.hidden(torch.tanh(self.norm(self.conv(inputs))).mean(-1)))
        return {"loss": nn.functional.cross_entropy(self.head(self.narrow(hidden)), labels)}


def built():
    torch.manual_seed(0)
    model = Classifier()
    batch = {"inputs": torch.randn(16, 2, 8), "labels": torch.arange(16) % 5}
    return model, find_symmetries(model, batch)


def pieces_of(symmetries, rate=(0.1, False), steps_done=lambda: 0):
    return charge_pieces(symmetries, CHARGE_INDICATORS, lambda name: rate, steps_done)


def measured(pieces, model):
    tensors = snapshot(model)
    return {
        key: float(value) for piece in pieces for key, value in zip(piece.keys, piece.measure(tensors), strict=True)
    }


def test_each_is_its_function_of_the_parameters_as_they_are():
    model, symmetries = built()
    values = measured(pieces_of(symmetries), model)
    incoming = torch.cat([model.hidden.weight, model.hidden.bias[:, None]], 1)
    of_units = rescaling_imbalance(incoming, model.narrow.weight.T)
    assert values["symmetry/imbalance/hidden_rescaling"] == pytest.approx(float(of_units))
    of_maps = rotation_imbalance(model.narrow.weight, model.head.weight.T)
    assert values["symmetry/imbalance/narrow_rotation"] == pytest.approx(float(of_maps))
    of_logits = mean_component(model.head.weight)
    assert values["symmetry/mean_component/head_weight_translation"] == pytest.approx(float(of_logits), rel=1e-6)
    squares = model.conv.weight.detach().flatten(1).square().sum(1)
    assert values["symmetry/effective_lr/conv_scale"] == pytest.approx(float((0.1 / squares).median()), rel=1e-6)
    adaptive = measured(pieces_of(symmetries, (0.1, True)), model)
    assert adaptive["symmetry/effective_lr/conv_scale"] == pytest.approx(
        float((0.1 / squares.sqrt()).median()), rel=1e-6
    )


def test_a_rescaling_changes_the_imbalance_as_its_formula_says():
    model, symmetries = built()
    with torch.no_grad():
        for side in (model.hidden.weight, model.hidden.bias, model.narrow.weight.T):
            side /= side.norm() if side.ndim == 1 else side.norm(dim=1, keepdim=True)
        model.hidden.bias.zero_()
        balanced = measured(pieces_of(symmetries), model)["symmetry/imbalance/hidden_rescaling"]
        model.hidden.weight *= 2
        model.narrow.weight /= 2
        scaled = measured(pieces_of(symmetries), model)["symmetry/imbalance/hidden_rescaling"]
    assert balanced == pytest.approx(0, abs=1e-6)
    assert scaled == pytest.approx((4 - 1 / 4) / (4 + 1 / 4), rel=1e-6)


def test_weights_turn_by_an_angle_a_step():
    model, symmetries = built()
    step = 0
    pieces = pieces_of(symmetries, steps_done=lambda: step)
    key = "symmetry/angular_speed/conv_scale"
    with torch.no_grad():
        model.conv.weight.zero_()
        model.conv.weight[:, 0, 0] = 2.0
        assert measured(pieces, model)[key] == NONE_YET
        model.conv.weight.mul_(3)
        model.conv.weight[:2, 0, 1] = model.conv.weight[:2, 0, 0]
        step = 10
        assert measured(pieces, model)[key] == pytest.approx(math.pi / 4 / 2 / 10)
        step = 20
        assert measured(pieces, model)[key] == 0


def test_a_filter_that_is_zero_has_no_learning_rate():
    model, symmetries = built()
    with torch.no_grad():
        model.conv.weight.zero_()
        model.conv.weight[1, 0, 0] = 0.5
    assert measured(pieces_of(symmetries), model)["symmetry/effective_lr/conv_scale"] == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["mlp relu", "resnet basic", "gpt2", "llama", "mixtral eager", "lora", "t5"])
def test_of_every_group_they_are_in_their_range(name):
    symmetries = find_symmetries(model := ZOO[name].build(), ZOO[name].batch())
    pieces = pieces_of(symmetries)
    for first in (True, False):
        values = measured(pieces, model)
        assert {key.split("/")[1] for key in values} <= set(CHARGE_INDICATORS)
        for key, value in values.items():
            if first and "angular_speed" in key:
                assert value == NONE_YET
            else:
                assert 0 <= value <= (1 if "effective_lr" not in key else math.inf), key
    assert len(values) == len(pieces) > 0


def by_noether(group, tensors, sign):
    """The charge along every direction xi of a Lie algebra, <theta, T_xi theta>, of what has degrees of one sign.

    Of a gain that is kept as its difference from one, theta is the gain.
    """
    one_sided = [
        replace(action, degrees=tuple(degree if degree * sign > 0 else 0.0 for degree in action.degrees))
        for action in group.actions
    ]
    shape = (group.n_rows, *[group.size] * group.acts_as.order)
    direction = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    tangent = replace(group, actions=tuple(one_sided)).tangent_along(tensors, direction)
    added = {action.block.tensor: action.block.offset for action in group.actions}
    total = sum(((tensors[name] + added.get(name, 0.0)) * tangent[name]).sum() for name in group.parameters)
    return torch.autograd.grad(total, direction)[0]


def imbalance_by_noether(group, tensors):
    above, below = (by_noether(group, tensors, sign) for sign in (1, -1))
    if group.kind == "rescaling":
        return ((above + below) / (above - below)).square().mean().sqrt()
    norms = [matrices.flatten(1).norm(dim=1) for matrices in (above + below, above, below)]
    return (norms[0] / (norms[1] + norms[2])).mean()


@pytest.mark.parametrize("name", ZOO)
def test_they_are_those_of_noethers_theorem_also_after_a_group_has_moved_the_model(name):
    """An independent way to them: by the tangents of the groups, not by their sides."""
    symmetries, model = found(name), ZOO[name].build()
    keys = key_names(group.name for group in symmetries)
    pieces = {piece.keys[0]: piece for piece in pieces_of(symmetries)}
    generator = torch.Generator().manual_seed(4)
    tensors = {
        key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for key, tensor in snapshot(model).items()
        if tensor.is_floating_point()
    }
    for group in symmetries:
        if group.kind == "rescaling" or (group.kind == "rotation" and not group.form):
            piece = pieces[f"symmetry/imbalance/{keys[group.name]}"]
            for state in (tensors, group.transform(tensors, generator)):
                (value,) = piece.measure(Stacked(state))
                assert float(value) == pytest.approx(float(imbalance_by_noether(group, state)), rel=1e-9, abs=1e-12)
