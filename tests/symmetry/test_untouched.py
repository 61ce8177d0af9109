"""A search leaves a model, its batch and its process as it found them."""

import pytest
import torch
from torch import nn

from tests.fingerprint import differences, fingerprint
from tests.zoo import ZOO, search, use

BATCH = torch.zeros(2, 3)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ZOO)
def test_a_search_disturbs_nothing(name, training):
    assert not search(name, training).disturbed


def small():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    use(model)
    return model


def test_nothing_that_is_left_alone_differs():
    model = small()
    assert not differences(fingerprint(model, BATCH), fingerprint(model, BATCH))


def renew(model):
    model[0].weight = nn.Parameter(model[0].weight.detach())


DISTURBANCES = {
    "0.bias bits": lambda model: model[0].bias.data.add_(1e-6),
    "0.bias version": lambda model: model[0].bias.detach().mul_(1),
    "0.weight identity": renew,
    "0.weight gradient": lambda model: model[0].weight.requires_grad_(True),
    "0.bias.grad bits": lambda model: model[0].bias.grad.data.zero_(),
    "0.bias _backward_hooks": lambda model: model[0].bias.register_hook(lambda gradient: None),
    "1.running_mean bits": lambda model: model(torch.ones(2, 3)),
    "1.training": lambda model: model[1].eval(),
    "0.class forward": lambda model: setattr(nn.Linear, "forward", lambda self, inputs: inputs),
    "model.note": lambda model: setattr(model, "note", 1),
    "0._forward_hooks": lambda model: model[0].register_forward_hook(lambda *arguments: None),
    "0._backward_hooks": lambda model: model[0]._backward_hooks.clear(),
    "random state of torch": lambda model: torch.rand(1),
    "torch: is_grad_enabled": lambda model: torch.set_grad_enabled(False),
    "autocast on cpu": lambda model: torch.set_autocast_enabled("cpu", True),
    "torch: are_deterministic_algorithms_enabled": lambda model: torch.use_deterministic_algorithms(True),
}


@pytest.mark.parametrize("key", DISTURBANCES)
def test_a_disturbance_shows(key):
    model, forward = small(), nn.Linear.forward
    before = fingerprint(model, BATCH)
    try:
        with torch.random.fork_rng():
            DISTURBANCES[key](model)
            assert key in differences(before, fingerprint(model, BATCH))
    finally:
        nn.Linear.forward = forward
        torch.set_grad_enabled(True)
        torch.set_autocast_enabled("cpu", False)
        torch.use_deterministic_algorithms(False)
