"""Heads that are split off and joined again, in the ways that people write it, against one view."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tracing import trace
from tests.tracing.replay import replayed


class Attention(nn.Module):
    """Attention whose three heads are split off and joined by functions given."""

    def __init__(self, split, join):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.split, self.join = split, join

    def forward(self, tokens):
        queries, keys, values = (self.split(part(tokens)) for part in (self.query, self.key, self.value))
        return self.out(self.join(torch.softmax(queries @ keys.mT / math.sqrt(4), -1) @ values))


WAYS = {
    "by a view": (lambda x: x.unflatten(-1, (3, 4)).transpose(1, 2), lambda x: x.transpose(1, 2).flatten(2)),
    "along the batch, as the Set Transformer": (
        lambda x: torch.cat(x.split(4, 2), 0),
        lambda x: torch.cat(x.split(len(x) // 3, 0), 2),
    ),
    "stacked, as AutoInt": (
        lambda x: torch.stack(torch.split(x, 4, dim=2)),
        lambda x: torch.cat(torch.split(x, 1), -1).squeeze(0),
    ),
    "chunks beside the batch": (
        lambda x: torch.stack(x.chunk(3, -1), 1),
        lambda x: torch.cat([head.squeeze(1) for head in x.chunk(3, 1)], -1),
    ),
    "unbound": (lambda x: torch.stack(x.chunk(3, -1)), lambda x: torch.cat(x.unbind(0), -1)),
}


@pytest.mark.parametrize("way", WAYS)
def test_heads_are_found_however_they_are_split_off(way):
    torch.manual_seed(0)
    symmetries = find_symmetries(Attention(*WAYS[way]), (torch.randn(2, 5, 12),))
    found = {(group.kind, *(length for _, length in group.rows), group.size) for group in symmetries}
    assert found == {("permutation", 3), ("rotation", 3, 4), ("translation", 3, 4)}
    assert len(symmetries) == 5
    assert not symmetries.rejected


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_view_comes_to_the_same_as_parts_laid_end_to_end(data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    dim = data.draw(st.integers(0, len(shape) - 1))
    along = data.draw(st.integers(0, len(shape)))
    n_parts, stacked, single = data.draw(st.tuples(st.integers(2, 3), st.booleans(), st.booleans()))
    shape[dim] *= 1 if single else n_parts
    assume(not single or len(shape) > 2)

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = nn.Parameter(torch.randn(shape))

        def forward(self, batch):
            whole = self.whole.exp()
            parts = whole.unbind(dim) if single else whole.chunk(n_parts, dim)
            join = torch.stack if stacked else torch.cat
            return join(parts, along % (parts[0].dim() + stacked)) * batch

    model = Parts()
    step = Step(model, (torch.ones(()),))
    tape = trace(step)
    n_parts = shape[dim] if single else n_parts
    left_over = {operation.name for operation in tape.operations} & {"cat", "split", "unbind", "select", "slice"}
    assert n_parts == 1 or not left_over
    (output,) = replayed(tape, step.parameters)
    assert torch.equal(output, model(torch.ones(())))
