"""What a group does to a tensor.

An axis of a model is seldom a whole dimension of a parameter: the rows of a fused query-key-value map are three
segments, each of heads times coordinates. A `Block` is a view of a part of one tensor in which every axis *is* one
dimension; the blocks of a tensor partition it. On blocks every action is one line: a permutation gathers along the
axis, and may be a different one at each position along other axes of the block, its *rows* (units within each head).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lightning_symmetry.symmetry.axes import Atom, Axis, Concatenation, Place, resolve, size

Unflatten = tuple[int, tuple[int, ...]]
Narrow = tuple[int, int, int]
View = Unflatten | Narrow


@dataclass(frozen=True)
class Block:
    """A part of a tensor, seen so that each of its axes is one dimension.

    Attributes:
        tensor: The name of the parameter or buffer.
        views: The views that lead to it, in order: ``(dim, sizes)`` splits a dimension, ``(dim, start, length)``
            narrows it.
        axes: The name of the axis that each dimension is; empty where its positions are told apart.
        numel: The number of its entries.
    """

    tensor: str
    views: tuple[View, ...]
    axes: tuple[str, ...]
    numel: int

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor, as a view that shares its memory."""
        for view in self.views:
            tensor = tensor.unflatten(*view) if len(view) == 2 else tensor.narrow(*view)
        return tensor

    def dims(self, axis: str) -> tuple[int, ...]:
        """The dimensions that are the axis: more than one where a matrix maps the axis to itself."""
        return tuple(dim for dim, name in enumerate(self.axes) if name == axis)


def blocks_of(tensor: str, axes: Sequence[Axis], names: Mapping[Atom, str]) -> Iterator[Block]:
    """Partition a tensor into blocks, given its axes and the names of their atoms."""
    yield from _blocks(tensor, (), list(axes), names)


def _blocks(tensor: str, views: tuple[View, ...], axes: list[Axis], names: Mapping[Atom, str]) -> Iterator[Block]:
    for dim, axis in enumerate(map(resolve, axes)):
        if len(axis) > 1:
            sizes = tuple(factor.size for factor in axis)
            factors: list[Axis] = [(factor,) for factor in axis]
            yield from _blocks(tensor, (*views, (dim, sizes)), axes[:dim] + factors + axes[dim + 1 :], names)
            return
        if (
            axis
            and isinstance(axis[0], Concatenation)
            and any(map(size, axis[0].segments))
            and not _of_single_positions(axis[0])
        ):
            start = 0
            for segment in axis[0].segments:
                length = size(segment)
                narrowed = (*views, (dim, start, length))
                yield from _blocks(tensor, narrowed, [*axes[:dim], segment, *axes[dim + 1 :]], names)
                start += length
            return
    numel = math.prod(map(size, axes))
    yield Block(tensor, views, tuple(_name(resolve(axis), names) for axis in axes), numel)


def _of_single_positions(concatenation: Concatenation) -> bool:
    return all(size(segment) == 1 for segment in concatenation.segments)


def _name(axis: Axis, names: Mapping[Atom, str]) -> str:
    return names.get(axis[0].atom, "") if axis and isinstance(axis[0], Place) else ""


def permute(tensor: Tensor, block: Block, axis: str, rows: Sequence[str], permutations: Tensor) -> None:
    """Permute one block of a tensor in place along an axis.

    Args:
        tensor: The tensor to change.
        block: The block of it.
        axis: The axis to permute.
        rows: The axes at whose every position the permutation is another one.
        permutations: The positions to read from, ``(*row_sizes, n)``.
    """
    part = block.of(tensor)
    for dim in block.dims(axis):
        index = permutations.to(part.device)
        if rows:
            order = [block.dims(row)[0] for row in rows] + [dim]
            shape = [part.shape[k] if k in order else 1 for k in range(part.dim())]
            ranks = sorted(range(len(order)), key=order.__getitem__)
            part.copy_(part.gather(dim, index.permute(ranks).reshape(shape).expand(part.shape)))
        else:
            part.copy_(part.index_select(dim, index))


def random_permutations(row_sizes: Sequence[int], n: int, generator: Generator | None = None) -> Tensor:
    """Random permutations, one a row: no identity where there is one row; of more rows, half stay as they are.

    So an element never is the identity, and tells apart a group that acts on each row by itself from one that moves all
    rows alike.

    Returns:
        The positions to read from, ``(*row_sizes, n)``.
    """
    n_rows = torch.Size(row_sizes).numel()
    permutations = torch.arange(n).repeat(n_rows, 1)
    for row in torch.randperm(n_rows, generator=generator)[: (n_rows + 1) // 2].tolist():
        cycle = torch.randperm(n, generator=generator)
        permutations[row, cycle] = cycle.roll(1)
    return permutations.reshape(*row_sizes, n)
