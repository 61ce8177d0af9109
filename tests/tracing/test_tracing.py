"""What is written down of a step, and what is made of noise, of changes in place, and of what a step returns."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tracing import trace, typical_draw

VECTORS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Calling(nn.Module):
    """A hidden layer and a map of what comes of it."""

    def __init__(self, function):
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 7), nn.Linear(7, 3)
        self.function = function

    def forward(self, inputs):
        return self.function(self, inputs)


def found(function):
    torch.manual_seed(0)
    symmetries = find_symmetries(Calling(function), VECTORS, kinds=["permutation"])
    assert not symmetries.rejected
    assert not symmetries.without_rule
    return {group.name: (*(length for _, length in group.rows), group.size) for group in symmetries}


@pytest.mark.parametrize(
    "step",
    [
        lambda model, inputs: F.cosine_similarity(model.hidden(inputs), model.hidden(inputs.flip(0))),
        lambda model, inputs: nn.LSTM(7, 7, batch_first=True)(model.hidden(inputs)[None])[0],
        lambda model, inputs: model.hidden(inputs).clone().mul_(2).add_(1).relu_(),
    ],
    ids=["in a composite operation", "in a decomposition", "by the model"],
)
def test_nothing_on_the_tape_changes_a_tensor_in_place(step):
    tape = trace(Step(Calling(step), VECTORS))
    assert tape.operations
    assert not [operation.name for operation in tape.operations if operation.operation._schema.is_mutable]


def test_what_this_batch_leaves_unused_has_no_symmetry():
    """As the later rows of a table of positions: another batch may use them."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Parameter(torch.randn(20, 5)), nn.Linear(5, 3)
            self.unused = nn.Linear(4, 4)

        def forward(self, inputs):
            return self.out(inputs + self.table[: len(inputs)])

    assert not len(find_symmetries(Positions(), VECTORS, kinds=["permutation"]))


@pytest.mark.parametrize(
    "noise",
    [
        torch.randn_like,
        torch.rand_like,
        lambda hidden: torch.randn(hidden.shape),
        lambda hidden: torch.empty(hidden.shape).normal_(),
        lambda hidden: torch.empty(hidden.shape).uniform_(-1, 2),
        lambda hidden: torch.normal(torch.zeros_like(hidden), torch.ones_like(hidden)),
        lambda hidden: torch.distributions.Normal(hidden, hidden.exp()).rsample(),
    ],
)
def test_noise_tells_no_units_apart(noise):
    def noisy(model, inputs):
        hidden = model.hidden(inputs)
        return model.out(hidden + noise(hidden))

    assert found(noisy) == {"hidden": (7,)}


def test_inputs_that_are_noise_may_be_permuted_but_not_for_each_unit_by_itself():
    """The sum of a unit's weights is all that a constant would show; the law of noise tells more."""
    assert found(lambda model, inputs: model.out(F.relu(model.hidden(torch.randn(6, 5))))) == {
        "hidden": (7,),
        "hidden.2": (5,),
    }


def test_of_outputs_with_a_loss_the_loss_is_to_be_preserved():
    def step(model, inputs):
        hidden = model.hidden(inputs)
        return {"loss": F.gelu(model.out(F.relu(hidden))).sum(), "hidden": hidden}

    torch.manual_seed(0)
    symmetries = find_symmetries(Calling(step), VECTORS, kinds=["permutation"])
    assert [(group.name, group.size, group.preserves) for group in symmetries] == [
        ("hidden", 7, "loss"),
        ("out", 3, "output"),
    ]


@pytest.mark.parametrize(("limits", "mean"), [((), 0.5), ((0.5,), 0.75), ((-1.0, 2.0), 0.5)])
def test_uniform_noise_lies_between_the_limits_that_are_given_and_0_and_1(limits, mean):
    drawn = typical_draw(torch.ops.aten.uniform_.default, (torch.empty(3), *limits), {})
    assert drawn.tolist() == [mean] * 3


class Both(nn.Module):
    """Returns what it sums up as well as the sum."""

    def __init__(self, summed):
        super().__init__()
        self.members, self.summed = nn.ModuleList(nn.Linear(4, 3) for _ in range(3)), summed

    def forward(self, inputs):
        return self.summed([member(inputs) for member in self.members])


def stacked_first(outputs):
    stack = torch.stack(outputs)
    return stack.mean(0), stack


def stacked_last(outputs):
    stack = torch.stack(outputs, -1)
    return stack.sum(-1), stack


def squares(outputs):
    products = outputs[0] * outputs[0]
    return products.sum(-1), products


def dot_products(outputs):
    products = outputs[0] * outputs[1]
    return products.sum(-1), products


def one_number(outputs):
    return torch.cat([outputs[0].sum().reshape(1)]).view(()).sum(0)


@pytest.mark.parametrize("summed", [stacked_first, stacked_last, squares, dot_products, one_number])
def test_what_is_returned_beside_its_sum_stays_on_the_tape(summed):
    tape = trace(Step(Both(summed), (torch.randn(5, 4),)))
    made = {output for operation in tape.operations for output in operation.outputs}
    assert made.issuperset(tape.outputs)
    assert find_symmetries(Both(summed), (torch.randn(5, 4),)).rejected == ()


@pytest.mark.parametrize("brightest", [1.0, 16.0], ids=["fractions", "whole numbers"])
def test_pixels_that_are_dark_in_the_whole_batch_are_told_apart(brightest):
    digits = torch.from_numpy(load_digits().data[:32]).float() / 16 * brightest
    dark = (digits == 0).all(0)
    assert (dark[1:] & dark[:-1]).any()
    torch.manual_seed(0)
    symmetries = find_symmetries(nn.Sequential(nn.Linear(64, 7), nn.Tanh(), nn.Linear(7, 3)), digits)
    assert [(group.kind, group.size) for group in symmetries] == [("permutation", 7), ("sign", 7)]
    assert not symmetries.rejected


def test_a_step_that_refuses_other_numbers_is_traced_on_its_own():
    def step(model, inputs):
        if not torch.equal(inputs, VECTORS):
            raise ValueError("these are not the numbers that this step knows")
        return model.out(model.hidden(inputs).relu())

    assert found(step) == {"hidden": (7,)}
    traced = Step(Calling(step), VECTORS)
    trace(traced)
    assert not traced.gradients  # which is what a step that fails is tried with next
