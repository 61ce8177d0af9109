"""Tensors that are filled piece by piece are what their pieces give that are laid end to end."""

import pytest
import torch
from torch import nn

from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tracing import trace
from tests.tracing.replay import replayed


class Filling(nn.Module):
    def __init__(self, fill):
        super().__init__()
        self.tensor = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
        self.fill = fill

    def forward(self, batch):
        return self.fill(self.tensor.exp()) * batch


def columns(x):
    out = torch.empty(4, 6)
    for k in (3, 0, 5, 1, 4, 2):
        out[:, k] = x[:, k].sin()
    return out


def stretches(x):
    out = x.new_zeros(4, 6)
    out[:, :4], out[:, 4:] = x[:, 2:], x[:, :2]
    return out


def rows_of_matrices(x):
    out = torch.full((2, 3, 4), torch.nan)
    for k, rows in enumerate(x.t().chunk(2)):
        out[k] = rows
    return out


def written_twice(x):
    out = torch.ones(4, 2)
    out[:, 0], out[:, 1] = x[:, 0], x[:, 1]
    out[:, 0] = x[:, 2]
    return out


def broadcast(x):
    out = torch.zeros(4, 2, 6)
    out[:, 0], out[:, 1] = x[0], x[1]
    return out


def in_place(x):
    out = torch.zeros(4, 2)
    for k in range(2):
        out[:, k] += x[:, k]
    return out


def left_over(x):
    out = torch.ones(4, 3)
    out[:, 0], out[:, 2] = x[:, 0], x[:, 1]
    return out


def overlapping(x):
    out = torch.ones(4, 3)
    out[:, :2], out[:, 1:] = x[:, :2], x[:, 2:4]
    return out


def every_second(x):
    out = torch.ones(4, 4)
    out[:, ::2], out[:, 1::2] = x[:, :2], x[:, 2:4]
    return out


def along_two_dimensions(x):
    out = torch.ones(2, 4)
    out[:, 0], out[0], out[1] = x[:2, 0], x[1, :4], x[2, :4]
    return out


def rounded(x):
    out = torch.zeros(4, 2, dtype=torch.bfloat16)
    out[:, 0], out[:, 1] = x[:, 0], x[:, 1]
    return out.float()


FILLED = (columns, stretches, broadcast, along_two_dimensions)
IN_ANOTHER_WAY = (rows_of_matrices, written_twice, in_place, rounded)  # as a view, or reading what was there before
NOT_FILLED = (left_over, overlapping, every_second)


@pytest.mark.parametrize("fill", [*FILLED, *IN_ANOTHER_WAY, *NOT_FILLED], ids=lambda fill: fill.__name__)
def test_what_is_written_is_the_same_and_is_laid_end_to_end_where_it_fills_all(fill):
    model = Filling(fill)
    step = Step(model, (torch.ones(()),))
    tape = trace(step)
    (output,) = replayed(tape, step.parameters)
    torch.testing.assert_close(output, model(torch.ones(())), rtol=0, atol=0)
    names = {operation.name for operation in tape.operations}
    assert "select_scatter" not in names
    if fill not in IN_ANOTHER_WAY:
        assert ("cat" in names, "slice_scatter" in names) == (fill in FILLED, fill in NOT_FILLED)
