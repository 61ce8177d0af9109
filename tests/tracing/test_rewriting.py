"""What stands on a tape instead of an operation gives what the operation gave."""

import pytest
import torch
from torch import nn

from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tracing import trace
from tests.tracing.replay import replayed


class Of(nn.Module):
    """A function of one parameter."""

    def __init__(self, shape, function):
        super().__init__()
        self.tensor = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        self.function = function

    def forward(self, batch):
        return self.function(self.tensor.exp()) * batch


def tape_and_outputs(shape, function):
    model = Of(shape, function)
    step = Step(model, (torch.ones(()),))
    tape = trace(step)
    return tape, replayed(tape, step.parameters), model(torch.ones(()))


TWO = torch.tensor([[True, False, True], [False, True, False]])
LOOKUPS = {
    "a column of the rows that are sent": ((6, 4), lambda x: x[TWO.flatten()][:, 2], "select"),
    "the same, kept as a column": ((6, 4), lambda x: x[TWO.flatten(), 2, None], "select"),
    "a stretch of the rows that are sent": ((6, 4), lambda x: x[TWO.flatten()][:, 1:3], "slice"),
    "every second": ((6, 5), lambda x: x[torch.tensor([3, 1])][:, ::2], "slice"),
    "behind a mask of two dimensions": ((2, 3, 4), lambda x: x[TWO][:, 1], "select"),
    "behind a table of places": ((3, 4, 5), lambda x: x[torch.tensor([[2, 0], [1, 1]])][..., 3], "select"),
    "parts": ((6, 4), lambda x: x[TWO.flatten()].split(2, 1)[1], "slice"),
}


def test_what_is_computed_again_from_the_same_is_computed_once():
    def twice(x):
        return x.sin() + (x.sin() * 2.0).cos() + (x.sin() * 2).cos() + (x.sin() * 3.0).cos()

    tape, (output,), expected = tape_and_outputs((6, 4), twice)
    assert torch.equal(output, expected)
    names = [operation.name for operation in tape.operations]
    assert names.count("sin") == 1
    assert names.count("cos") == 3  # numbers of two types are not the same


def test_an_output_that_is_computed_twice_is_one():
    class Twice(Of):
        def forward(self, batch):
            return self.tensor.exp(), self.tensor.exp()

    model = Twice((6, 4), None)
    step = Step(model, (torch.ones(()),))
    tape = trace(step)
    assert tape.outputs[0] is tape.outputs[1]
    for output, expected in zip(replayed(tape, step.parameters), model(torch.ones(())), strict=True):
        assert torch.equal(output, expected)


def test_what_is_drawn_twice_is_two_draws():
    def drawn(x):
        one, other = (torch.multinomial(x.flatten(), 4) for _ in range(2))
        return x.flatten()[one] + x.flatten()[other]

    tape, _, _ = tape_and_outputs((6, 4), drawn)
    assert [operation.name for operation in tape.operations].count("index") == 2


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_a_slice_of_what_was_looked_up_is_looked_up_in_a_slice(lookup):
    shape, function, slicing = LOOKUPS[lookup]
    tape, (output,), expected = tape_and_outputs(shape, function)
    assert torch.equal(output, expected)
    names = [operation.name for operation in tape.operations]
    assert names.index(slicing) < names.index("index")


@pytest.mark.parametrize(
    "function",
    [lambda x: x[TWO.flatten()][1], lambda x: x[torch.tensor([3, 1])][:1], lambda x: x[:, torch.tensor([0, 2])][0]],
)
def test_what_is_along_the_rows_that_were_looked_up_stays_behind(function):
    tape, (output,), expected = tape_and_outputs((6, 4), function)
    assert torch.equal(output, expected)
    names = [operation.name for operation in tape.operations]
    assert names.index("index") < max(names.index(name) for name in ("select", "slice") if name in names)


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_the_largest_written_back_are_all_with_the_others_hidden(dim):
    def largest(x):
        values, places = x.topk(2, dim)
        return torch.full_like(x, -1e9).scatter(dim, places, values).softmax(dim)

    tape, (output,), expected = tape_and_outputs((3, 4), largest)
    assert torch.equal(output, expected)
    assert "where" in [operation.name for operation in tape.operations]


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_the_softmax_of_the_largest_is_that_of_all_with_the_others_hidden(dim):
    tape, (output,), expected = tape_and_outputs((3, 4), lambda x: x.topk(2, dim).values.softmax(dim))
    torch.testing.assert_close(output, expected)
    assert "where" in [operation.name for operation in tape.operations]


def test_a_softmax_along_another_dimension_is_left_as_it_is():
    tape, (output,), expected = tape_and_outputs((3, 4), lambda x: x.topk(2, 0).values.softmax(1))
    assert torch.equal(output, expected)
    assert "where" not in [operation.name for operation in tape.operations]


def test_what_is_written_elsewhere_is_not_the_largest():
    def turned(x):
        values, places = x.topk(2, -1)
        return torch.zeros_like(x).scatter(-1, 3 - places, values)

    tape, (output,), expected = tape_and_outputs((3, 4), turned)
    assert torch.equal(output, expected)
    assert "where" not in [operation.name for operation in tape.operations]
