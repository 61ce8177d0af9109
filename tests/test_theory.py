"""Trainings whose end, or whose course, is known exactly: what the symmetries found on them must say, as numbers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_symmetry import find_symmetries
from lightning_symmetry.measurement.indicators import SharedGauge, symmetry_pieces
from lightning_symmetry.measurement.snapshot import snapshot
from tests.reference.linear_networks import mode, time_to_reach


def pieces_of(model, batch, kind, tolerance=1e-2):
    """What is measured of the groups of one kind."""
    symmetries = find_symmetries(model, batch)
    groups = [group for group in symmetries if group.kind == kind]
    assert groups and all(group.verified for group in groups)
    return symmetry_pieces(symmetries.select(groups), tolerance, SharedGauge(symmetries))


def measured(pieces, model):
    """The order parameters by name, the name of the group left out."""
    tensors = snapshot(model)
    return {
        key.split("/")[1]: float(value)
        for piece in pieces
        for key, value in zip(piece.keys, piece.measure(tensors), strict=True)
    }


def minimised(model, loss):
    """The model at a minimum of the loss, by L-BFGS from where it was made."""
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=20_000,
        history_size=20,
        tolerance_grad=1e-13,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    optimizer.step(closure)
    return model


def weight(model):
    """The sum of squares of all parameters, which weight decay holds small."""
    return sum(parameter.square().sum() for parameter in model.parameters())


@pytest.mark.parametrize("decay", [0.1, 0.25, 0.5, 1.2, 2.5])
def test_under_weight_decay_the_singular_values_above_it_survive(decay):
    """The least of |UV - Y|^2 + g (|U|^2 + |V|^2) has singular values max(s_k - g, 0): broken = #{s_k > g} / d."""
    torch.manual_seed(0)
    strengths = torch.tensor([3.0, 2.0, 1.0, 0.3, 0.2], dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q for _ in range(2))
    target = left @ torch.diag(strengths) @ right
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)).double()
    inputs = torch.eye(5, dtype=torch.float64)
    pieces = pieces_of(model, inputs, "rotation")
    minimised(model, lambda net: (net(inputs).T - target).square().sum() + decay * weight(net))
    left_over = torch.linalg.svdvals(model[1].weight @ model[0].weight).detach()
    torch.testing.assert_close(left_over, (strengths - decay).clamp(min=0), rtol=0, atol=1e-6)
    assert measured(pieces, model)["broken_fraction"] == pytest.approx(int((strengths > decay).sum()) / 5, abs=1e-12)


class Products(nn.Module):
    """Units that each read one number and write one: w_i relu(u_i x_i)."""

    def __init__(self, n):
        super().__init__()
        self.u, self.w = nn.Parameter(torch.full((n,), 0.5)), nn.Parameter(torch.full((n,), 0.7))

    def forward(self, inputs):
        return self.w * torch.relu(self.u * inputs)


@pytest.mark.parametrize(("decay", "alive"), [(0.0, 5), (0.29, 5), (0.3, 4), (0.5, 3), (0.75, 1), (0.89, 1), (1.0, 0)])
def test_under_weight_decay_a_unit_dies_where_its_strength_does_not_exceed_it(decay, alive):
    """The least of (u w - c)^2 + g (u^2 + w^2) has |u w| = max(c - g, 0): the unit dies at g >= c."""
    strengths = torch.tensor([0.3, 0.45, 0.6, 0.75, 0.9], dtype=torch.float64)
    model = Products(5).double()
    inputs = torch.ones(1, 5, dtype=torch.float64)
    pieces = pieces_of(model, inputs, "rescaling")
    minimised(model, lambda net: (net(inputs) - strengths).square().sum() + decay * weight(net))
    products = (model.u * model.w).detach().abs()
    torch.testing.assert_close(products, (strengths - decay).clamp(min=0), rtol=0, atol=1e-5)
    if alive:
        assert measured(pieces, model)["alive_units"] == alive
        assert measured(pieces, model)["broken_fraction"] == pytest.approx(alive / 5)
    else:  # all shrink together, and are compared with each other: none is dead before all are zero
        assert products.max() < 1e-5
        with torch.no_grad():
            model.u.zero_()
        assert measured(pieces, model)["alive_units"] == measured(pieces, model)["broken_fraction"] == 0


def test_a_deep_linear_network_learns_its_modes_one_by_one_at_the_known_times():
    """Mode k of strength s_k follows u(t) = s e^(2st) / (e^(2st) - 1 + s / u0), and breaks when it stands out."""
    strengths, start, rate, tolerance = (4.0, 2.0, 1.0, 0.5), 1e-4, 5e-3, 0.05
    torch.manual_seed(0)
    left, within, right = (torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q for _ in range(3))
    target = left @ torch.diag(torch.tensor(strengths, dtype=torch.float64)) @ right
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(math.sqrt(start) * within @ right)
        model[1].weight.copy_(math.sqrt(start) * left @ within.T)
    inputs = torch.eye(4, dtype=torch.float64)
    pieces = pieces_of(model, inputs, "rotation", tolerance)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    broken, modes = [], []
    for _ in range(round(12 / rate)):
        if len(broken) % 5 == 0:
            state = measured(pieces, model)["broken_fraction"]
            with torch.no_grad():
                modes.append(torch.diagonal(left.T @ model[1].weight @ model[0].weight @ right.T).tolist())
        broken.append(state)
        optimizer.zero_grad()
        ((model(inputs).T - target).square().sum() / 2).backward()
        optimizer.step()
    times = rate * 5 * np.arange(len(modes))
    for k, strength in enumerate(strengths):
        course = np.array(modes)[:, k]
        half = times[np.argmax(course > strength / 2)]
        assert half == pytest.approx(math.log(strength / start) / (2 * strength), rel=0.05)
        assert np.abs(course - mode(times, strength, start)).max() < 0.05 * strength
    for k, strength in enumerate(strengths[1:], start=2):  # of the first one all others were of its size
        after_first = round(time_to_reach(strengths[0] / 2, strengths[0], start) / rate)
        stood_out = rate * (after_first + np.argmax(np.array(broken[after_first:]) >= k / 4))
        assert stood_out == pytest.approx(time_to_reach(tolerance * strengths[0], strength, start), rel=0.05)


def test_units_that_start_equal_stay_equal_without_noise():
    """At width 8 in float64, at each of 1,000 steps: the gradient has no part that tells them apart."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:1].expand(8, 4))
        model[0].bias.fill_(0.1)
        model[2].weight.copy_(model[2].weight[:, :1].expand(3, 8))
    inputs, targets = torch.randn(32, 4, dtype=torch.float64), torch.randn(32, 3, dtype=torch.float64)
    pieces = pieces_of(model, inputs, "permutation")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = weight(model).item()
    for _ in range(1000):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        values = measured(pieces, model)
        assert values["broken_fraction"] == 0
        assert values["distinct_units"] == 1
    assert abs(weight(model).item() - before) > 0.1  # it did learn
