"""Tensors that are filled piece by piece, as their pieces laid end to end.

``out[:, k] = head(x)`` writes into a slice of what was there before. Once all of it is written to, nothing of that is
left, and the pieces stand side by side, as `torch.cat` lays them; followed as slices, each would have an axis of its
own.
"""

from __future__ import annotations

import torch

from lightning_symmetry.tracing.layout import stretch
from lightning_symmetry.tracing.tape import Operation, Value, made

aten = torch.ops.aten


def with_pieces_joined(operations: list[Operation]) -> list[Operation]:
    """What is written into all slices of a tensor as laid end to end; what is written to a position as to a slice."""
    written: list[Operation] = []
    for operation in operations:
        written += _to_slice(operation) if operation.name == "select_scatter" else [operation]
        pieces = _pieces(written[-1])
        if pieces:
            output, (dim, _) = written[-1].outputs[0], _written_to(written[-1])
            assert output is not None
            written[-1] = made(output, aten.cat.default, pieces, dim)
    return written


def _to_slice(operation: Operation) -> list[Operation]:
    """What is written to a position, as written to the slice of that position alone."""
    (output,) = operation.outputs
    assert output is not None
    given, piece, dim, position = operation.args
    dim, position = dim % len(given.shape), position % given.shape[dim]
    kept = Value((*piece.shape[:dim], 1, *piece.shape[dim:]), piece.dtype)
    return [
        made(kept, aten.unsqueeze.default, _itself(piece), dim),
        made(output, aten.slice_scatter.default, given, kept, dim, position, position + 1),
    ]


def _pieces(operation: Operation) -> list[Value]:
    """The tensors that were written into the slices of one, in order; empty where they do not fill it side by side."""
    pieces: dict[range, Value] = {}
    writing: Operation | None = operation
    while writing is not None and writing.operation == aten.slice_scatter.default:
        dim, positions = _written_to(writing)
        before = [other for other in pieces if other.start < positions.stop and positions.start < other.stop]
        if dim != _written_to(operation)[0] or positions.step != 1 or before not in ([], [positions]):
            return []
        pieces.setdefault(positions, _itself(writing.args[1]))  # the last that is written stays
        if sum(map(len, pieces)) == writing.args[0].shape[dim]:
            return [pieces[each] for each in sorted(pieces, key=lambda each: each.start)]
        writing = writing.args[0].source
    return []


def _written_to(writing: Operation) -> tuple[int, range]:
    """The dimension and the positions along it to which an operation writes."""
    return stretch(writing.args[0], writing.args[2:])


def _itself(piece: Value) -> Value:
    """What was written over a slice, without the slice: `copy` gives its second input, whatever the first was."""
    if piece.source is None or piece.source.operation != aten.copy.default:
        return piece
    written: Value = piece.source.args[1]
    return written if (written.shape, written.dtype) == (piece.shape, piece.dtype) else piece
