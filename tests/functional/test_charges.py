"""What gradient flow conserves, and how finite steps and weight decay move it (arXiv:2012.04728)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_symmetry.functional import (
    angular_speed,
    effective_learning_rate,
    mean_component,
    rescaling_charges,
    rescaling_imbalance,
    rotation_charges,
    rotation_imbalance,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def descended(build, charge, rate, decay=0.0, time=0.5):
    """By how much a charge moved along gradient descent on a fixed batch, over a time of flow."""
    torch.manual_seed(0)
    model = build().double()
    inputs, labels = drawn(16, 4, seed=1), torch.arange(16) % 3
    before = charge(model).detach()
    for _ in range(round(time / rate)):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * (gradient + decay * parameter)
    return before, charge(model).detach()


def relu():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def of_units(model):
    return rescaling_charges(torch.cat([model[0].weight, model[0].bias[:, None]], 1), model[2].weight.T)


def linear():
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False))


def of_maps(model):
    return rotation_charges(model[0].weight, model[1].weight.T)


class Rotary(nn.Module):
    """Queries and keys of two tokens, of which the planes of coordinates (j, j + 2) turn as far as they are apart."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(2, 4, bias=False), nn.Linear(2, 4, bias=False)
        self.head = nn.Linear(1, 3)

    def forward(self, inputs):
        query, key = self.query(inputs[:, :2]), self.key(inputs[:, 2:])
        angles = torch.tensor([1.0, 0.3], dtype=torch.float64)
        first, second = query.chunk(2, -1)
        turned = torch.cat(
            [first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], 1
        )
        return self.head((turned * key).sum(1, keepdim=True))


def of_planes(model):
    """The trace over each plane, of which those of the two turned coordinates are rows j and j + 2."""
    return rotation_charges(model.query.weight, model.key.weight).diagonal().view(2, 2).sum(0)


def of_planes_as_units(model):
    """A plane as one unit, which the same number scales in queries and divides in keys."""
    return rescaling_charges(
        *(side.weight.view(2, 2, 2).transpose(0, 1).flatten(1) for side in (model.query, model.key))
    )


def normed():
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5, eps=1e-30), nn.Tanh(), nn.Linear(5, 3))


def of_scales(model):
    return model[0].weight.square().sum(1)


def of_classes(model):
    """The mean of the logits' weights, and of their biases."""
    return torch.cat([model[-1].weight, model[-1].bias[:, None]], 1).mean(0)


CHARGES = [(relu, of_units, 2), (linear, of_maps, 2), (Rotary, of_planes, 2), (normed, of_scales, 2)]


@pytest.mark.parametrize(("build", "charge", "power"), CHARGES)
def test_charges_drift_in_proportion_to_the_step(build, charge, power):
    drifts = []
    for rate in (1e-2, 1e-3):
        before, after = descended(build, charge, rate)
        drifts.append(float((after - before).norm()))
    assert 1e-6 < drifts[0] < 0.1
    assert drifts[0] / drifts[1] == pytest.approx(10, rel=0.2)


def test_the_mean_of_the_classes_does_not_drift_at_any_step():
    """Of a symmetry that adds, the gradient is orthogonal to one direction everywhere."""
    before, after = descended(relu, of_classes, 1e-1)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("build", "charge", "power"), [*CHARGES, (relu, of_classes, 1)])
def test_weight_decay_takes_the_quadratic_ones_away_at_twice_its_rate_and_the_mean_at_its_rate(build, charge, power):
    before, after = descended(build, charge, 2e-4, decay=0.7)
    torch.testing.assert_close(after, before * math.exp(-power * 0.7 * 0.5), rtol=4e-3, atol=4e-4)


def test_the_trace_over_a_plane_is_the_charge_of_the_plane_as_a_unit():
    torch.testing.assert_close(of_planes(model := Rotary().double()), of_planes_as_units(model))


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_imbalances_are_what_is_written(n, m, p, seed):
    a, b = drawn(n, m, seed=seed), drawn(n, p, seed=seed + 100)
    left, right = np.asarray(a), np.asarray(b)
    q = [(x @ x - y @ y) / (x @ x + y @ y) for x, y in zip(left, right, strict=True)]
    assert float(rescaling_imbalance(a, b)) == pytest.approx(np.sqrt(np.mean(np.square(q))))
    c = np.linalg.norm(left @ left.T - right @ right.T)
    total = np.linalg.norm(left @ left.T) + np.linalg.norm(right @ right.T)
    assert float(rotation_imbalance(a, b)) == pytest.approx(c / total)
    np.testing.assert_allclose(rotation_charges(a, b), left @ left.T - right @ right.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation_charges(a[None], b[None])[0], rotation_charges(a, b))
    assert 0 <= float(rotation_imbalance(a, b)) <= 1


def test_at_the_balanced_point_nothing_is_left():
    a = drawn(4, 3)
    assert float(rescaling_imbalance(a, a)) == 0
    assert float(rotation_imbalance(a, a)) == 0
    zero = torch.zeros(4, 3)
    assert float(rescaling_imbalance(zero, zero)) == float(rotation_imbalance(zero, zero)) == 0
    assert float(rescaling_imbalance(a, zero)) == float(rotation_imbalance(a, zero)) == pytest.approx(1)


def test_a_squared_relu_balances_two_outgoing_against_one_incoming():
    """(l a)^2 l^-2 b: the flow keeps |a|^2 - 2 |b|^2."""
    charges = rescaling_charges(torch.tensor([[2.0]]), torch.tensor([[1.0]]), degree=2)
    assert charges.tolist() == [2.0]


def test_the_mean_component_of_logits():
    weights = drawn(5, 3)
    expected = np.linalg.norm(np.asarray(weights).mean(0)) * math.sqrt(5) / np.linalg.norm(np.asarray(weights))
    assert float(mean_component(weights)) == pytest.approx(expected)
    assert float(mean_component(weights - weights.mean(0))) == pytest.approx(0, abs=1e-12)
    assert float(mean_component(torch.zeros(4, 2))) == 0


def test_rates_of_turning():
    assert effective_learning_rate(torch.tensor([[3.0, 4.0]]), 1.0, adaptive=True).tolist() == [0.2]
    assert angular_speed(torch.eye(2), 5 * torch.eye(2)).tolist() == [0.0, 0.0]
    small = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    assert float(angular_speed(*small)) == pytest.approx(1e-9)
    assert float(angular_speed(torch.tensor([[1.0]]), torch.tensor([[-2.0]]))) == pytest.approx(math.pi)
    assert angular_speed(torch.zeros(1, 2), torch.ones(1, 2)).tolist() == [0.0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: rescaling_imbalance(torch.ones(3, 2), torch.ones(4, 2)),
        lambda: rotation_imbalance(torch.ones(3), torch.ones(3)),
        lambda: rotation_charges(torch.ones(3, 2), torch.ones(4, 2)),
        lambda: mean_component(torch.ones(3)),
        lambda: effective_learning_rate(torch.ones(1, 2), -1.0),
        lambda: angular_speed(torch.ones(1, 2), torch.ones(2, 2)),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ValueError, match=r"shape|learning_rate"):
        call()
