"""The noise equilibrium of SGD: at which the noise of both sides of every unit is the same (arXiv:2402.07193)."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_symmetry.functional import noise_imbalance
from lightning_symmetry.metrics import NoiseImbalance


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_what_is_written():
    incoming, outgoing = drawn(50, 4, 3) + 2, 3 * drawn(50, 4, 2, seed=1)
    traces = [
        np.array([np.trace(np.cov(side[:, unit].T, bias=True)) for unit in range(4)])
        for side in (incoming.numpy(), outgoing.numpy())
    ]
    expected = np.abs(traces[0] - traces[1]).sum() / (traces[0] + traces[1]).sum()
    assert float(noise_imbalance(incoming, outgoing)) == pytest.approx(expected)


def test_a_gradient_that_is_the_same_at_every_step_has_no_noise():
    same = drawn(1, 4, 3).expand(10, 4, 3)
    assert noise_imbalance(same, 5 * same) == 0
    assert noise_imbalance(0 * same, 0 * same) == 0


def test_sgd_with_label_noise_comes_to_the_equilibrium():
    """Two linear layers, made unbalanced: label noise balances the noise of both, without weight decay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(1.5 * drawn(3, 2, seed=3))
        model[1].weight.copy_(0.2 * drawn(1, 3, seed=4))
    true = torch.tensor([1.0, -0.5], dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    windows = {"first": (0, 100), "last": (500, 1500)}
    metrics = {name: NoiseImbalance(3, 2, 1) for name in windows}
    for step in range(1500):
        inputs = torch.randn(4, 2, dtype=torch.float64)
        labels = inputs @ true + torch.randn(4, dtype=torch.float64)
        optimizer.zero_grad()
        (model(inputs)[:, 0] - labels).square().mean().backward()
        for name, (first, last) in windows.items():
            if first <= step < last:
                metrics[name].update(model[0].weight.grad, model[1].weight.grad.T)
        optimizer.step()
    assert metrics["first"].compute() > 0.4
    assert metrics["last"].compute() < 0.05


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(3, 2\): expected \(n_steps, n_units, dim\)"):
        noise_imbalance(torch.ones(3, 2), torch.ones(3, 2))
    metric = NoiseImbalance(3, 2, 1)
    with pytest.raises(ValueError, match=r"outgoing must be \(3, 1\) or .*got shape \(1, 3\)"):
        metric.update(torch.ones(3, 2), torch.ones(1, 3))
    with pytest.raises(ValueError, match="incoming is of 2 steps, outgoing of 1"):
        metric.update(torch.ones(2, 3, 2), torch.ones(3, 1))
