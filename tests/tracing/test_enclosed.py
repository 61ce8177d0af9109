"""A function that has enclosed a module is copied with it, whoever keeps the function."""

import copy
import functools

import pytest
import torch
from torch import nn

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.tracing.enclosed import enclosed_modules_copied


class Keeping(nn.Module):
    """Calls its layers by a function that it keeps."""

    def __init__(self, make):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
        self.function = make(self)

    def forward(self, inputs):
        return self.function(inputs)


def by_itself(module):
    def call(inputs, left=2):
        return call(inputs, left - 1) if left else module.net(inputs)

    return call


KEPT = {
    "a lambda": lambda module: lambda inputs: module.net(inputs),
    "a default": lambda module: lambda inputs, net=module.net: net(inputs),
    "a decorator": lambda module: torch.enable_grad()(module.net.forward),
    "a compiled method": lambda module: torch.compile(module.net.forward, backend="eager"),
    "within others": lambda module: functools.partial(lambda call, x: call(x), lambda inputs: module.net(inputs)),
    "itself": by_itself,
}


@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_the_symmetries_of_what_it_calls_are_found_and_its_statistics_stay(make):
    model = Keeping(make)
    before = copy.deepcopy(model.state_dict())
    groups = find_symmetries(model, torch.randn(6, 3))
    assert [group.name for group in groups if group.kind == "permutation"] == ["net.0"]
    assert not groups.rejected
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_hooks_see_the_copy():
    class Listening(nn.Module):
        def __init__(self):
            super().__init__()
            self.heard, self.layer = [], nn.Linear(3, 2)
            self.layer.register_forward_hook(lambda layer, inputs, outputs: self.heard.append(outputs))

        def forward(self, inputs):
            self.layer(inputs)
            return self.heard[-1]

    model = Listening()
    assert not len(find_symmetries(model, torch.randn(6, 3)))
    assert not model.heard


def test_functions_that_share_what_they_have_enclosed_share_its_copy():
    layer = nn.Linear(2, 2)

    def read():
        return layer

    def replace(other):
        nonlocal layer
        layer = other

    with enclosed_modules_copied():
        read_copy, replace_copy = copy.deepcopy((read, replace))
    assert read_copy() is not layer
    replace_copy("another")
    assert read_copy() == "another"
    assert read() is layer


def test_a_function_that_has_enclosed_no_module_is_not_copied_and_copies_are_as_before_afterwards():
    count, layer = [0], nn.Linear(2, 2)
    alone, enclosing = (lambda: count), (lambda: (layer, count))
    with enclosed_modules_copied():
        assert copy.deepcopy(alone) is alone
        copied_layer, copied_count = copy.deepcopy(enclosing)()
    assert copied_layer is not layer
    assert copied_count is count
    assert copy.deepcopy(enclosing) is enclosing


def test_what_a_copy_says_of_itself_is_what_the_function_says():
    layer = nn.Linear(2, 2)

    @functools.wraps(layer.forward)
    def forward(inputs, *, scale=2.0):
        return scale * layer(inputs)

    with enclosed_modules_copied():
        copied = copy.deepcopy(forward)
    assert copied.__name__ == "forward"
    assert copied.__kwdefaults__ == {"scale": 2.0}
    assert copied.__wrapped__ is forward.__wrapped__
    assert copied(torch.ones(1, 2)).equal(forward(torch.ones(1, 2)))
