"""Modules that are alike, as far as the tape tells: whether they can be exchanged is found after."""

import pytest
import torch
from torch import nn

from lightning_symmetry.labelling.alike import joined_lists
from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tracing import trace
from tests.module_lists import Ensemble, Factors, Heads, NamedBranches, RoutedExperts, Towers


class InTurn(nn.Module):
    """Layers, one after the other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs)))


class ManyInTwoWays(nn.Module):
    """Members of which half are subtracted."""

    def __init__(self, n_members):
        super().__init__()
        self.members = nn.ModuleList(nn.Linear(4, 3) for _ in range(n_members))

    def forward(self, inputs):
        return sum(member(inputs).sin() if k % 2 else member(inputs).exp() for k, member in enumerate(self.members))


LISTS = {
    "a list": (Ensemble, (8, 4), ["members.*"]),
    "heads, whose maps are not joined in any order": (Heads, (3, 7, 6), ["heads.*"]),
    "experts": (RoutedExperts, (32, 4), ["experts.*"]),
    "names": (NamedBranches, (8, 4), ["{left,right}"]),
    "factors": (Factors, (8, 4), ["{one,two}"]),
    "factors in two ways": (lambda: Factors(both=False), (8, 4), []),
    "inputs of their own": (Towers, (9, 3, 4), []),
    "one after the other": (InTurn, (8, 4), []),
    "some of a list": (lambda: ManyInTwoWays(4), (8, 4), ["members.{0,2}", "members.{1,3}"]),
    "too many to look for some of them": (lambda: ManyInTwoWays(10), (8, 4), []),
}


@pytest.mark.parametrize("name", LISTS)
def test_modules_that_are_joined_in_any_order_are_told(name):
    torch.manual_seed(0)
    build, shape, expected = LISTS[name]
    tape = trace(Step(build(), (torch.randn(shape),)))
    found = joined_lists(tape)
    assert list(found) == expected
    for modules in found.values():
        assert {leaf for module in modules for leaf in module.values()} <= tape.leaves.keys()
    assert joined_lists(tape, left=expected) == {}
