"""What a group does to a tensor.

An axis of a model is seldom a whole dimension of a parameter: the rows of a fused query-key-value map are three
segments, each of heads times coordinates. A `Block` is a view of a part of one tensor in which every axis *is* one
dimension; the blocks of a tensor partition it. Brought into the form ``(n_rows, n, rest)``, on which a group element
may be another one in each row (units within each head), it is acted on as `lightning_symmetry.symmetry.kinds` says.

A translation may be *carried* on: what is added along one axis becomes, through linear maps ``W``, a vector ``W t``
along another one, where a bias takes it up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_symmetry.labelling.axes import Atom, Axis, Concatenation, Place, resolve, size
from lightning_symmetry.labelling.charges import Unknown
from lightning_symmetry.stacks import n_stacked
from lightning_symmetry.symmetry.kinds import KINDS, Kind

Unflatten = tuple[int, tuple[int, ...]]
Narrow = tuple[int, int, int]
View = Unflatten | Narrow
_PIECE = 2**20
"""How many entries are acted on at once."""


@dataclass(frozen=True)
class Block:
    """A part of a tensor, seen so that each of its axes is one dimension.

    Attributes:
        tensor: The name of the parameter or buffer.
        views: The views that lead to it, in order: ``(dim, sizes)`` splits a dimension, ``(dim, start, length)``
            narrows it.
        axes: The name of the axis that each dimension is; empty where its positions are told apart.
        numel: The number of its entries.
        offset: A number that the model adds to it wherever it reads it, as to a gain kept as its difference from one:
            it is acted on with that added.
    """

    tensor: str
    views: tuple[View, ...]
    axes: tuple[str, ...]
    numel: int
    offset: float = 0.0

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor as the model reads it."""
        return self.view(tensor) + self.offset if self.offset else self.view(tensor)

    def view(self, tensor: Tensor) -> Tensor:
        """The part of a tensor, as a view that shares its memory; a number has one position."""
        tensor = tensor.reshape(1) if self.views and not tensor.ndim else tensor
        for view in self.views:
            tensor = tensor.unflatten(*view) if len(view) == 2 else tensor.narrow(*view)
        return tensor

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the part, from that of the tensor."""
        return tuple(self.view(torch.empty(shape, device="meta")).shape)

    @property
    def named(self) -> tuple[str, ...]:
        """The axes that it has by name."""
        return tuple(axis for axis in self.axes if axis)

    def along_named(self, tensor: Tensor) -> Tensor:
        """The part of a tensor as the model reads it, without dimensions of no name, each of one position."""
        part = self.of(tensor)
        return part.reshape([length for axis, length in zip(self.axes, part.shape, strict=True) if axis])

    def dims(self, axis: str) -> tuple[int, ...]:
        """The dimensions that are the axis: more than one where a matrix maps the axis to itself."""
        return tuple(dim for dim, name in enumerate(self.axes) if name == axis)


Places = tuple[Place | None, ...]
"""The place in each dimension of a block; None where positions are told apart one by one."""
Blocks = Sequence[tuple[Block, Places]]


def blocks_of(leaves: Mapping[str, Sequence[Axis]], names: Mapping[Atom, str], offsets: Mapping[str, float]) -> Blocks:
    """Partition tensors into blocks, given the axes of each, the names of their atoms, and what is added to which."""
    return [
        (replace(block, offset=offsets.get(name, 0.0)), places)
        for name, axes in leaves.items()
        for block, places in _blocks(name, (), list(axes), names)
    ]


def _blocks(
    tensor: str, views: tuple[View, ...], axes: list[Axis], names: Mapping[Atom, str]
) -> Iterator[tuple[Block, Places]]:
    for dim, axis in enumerate(map(resolve, axes)):
        before, after = axes[:dim], axes[dim + 1 :]
        if len(axis) > 1:
            sizes = tuple(factor.size for factor in axis)
            factors: list[Axis] = [(factor,) for factor in axis]
            yield from _blocks(tensor, (*views, (dim, sizes)), [*before, *factors, *after], names)
            return
        if axis and isinstance(axis[0], Concatenation) and any(size(segment) > 1 for segment in axis[0].segments):
            start = 0
            for segment in axis[0].segments:
                length = size(segment)
                yield from _blocks(tensor, (*views, (dim, start, length)), [*before, segment, *after], names)
                start += length
            return
    places = tuple(axis[0] if axis and isinstance(axis[0], Place) else None for axis in map(resolve, axes))
    named = tuple(names.get(place.atom, "") if place is not None else "" for place in places)
    yield Block(tensor, views, named, math.prod(map(size, axes))), places


@dataclass(frozen=True)
class Action:
    """What a group does to one block: the degree in each dimension that is its axis, 0 in the others."""

    block: Block
    degrees: tuple[float, ...]


def actions_on(blocks: Blocks, degrees: Mapping[Unknown, float]) -> tuple[Action, ...]:
    """What a group does to those of some blocks that it moves, given the degree of each unknown."""
    acting = (
        Action(block, tuple(0 if place is None else degrees.get(place.key, 0) for place in places))
        for block, places in blocks
    )
    return tuple(action for action in acting if any(action.degrees))


@dataclass(frozen=True)
class Map:
    """A linear map that a part of a parameter is, from the axes of some of its dimensions to those of others.

    Attributes:
        block: The part; its dimensions are `reads`, `writes`, and such as are summed over, as the taps of a kernel.
        reads: The dimensions that are summed with the vector's.
        writes: The dimensions of the result.
    """

    block: Block
    reads: tuple[int, ...]
    writes: tuple[int, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """The axes of the lists of modules each of which has a map of its own: those of a stack come first."""
        return self.block.axes[: n_stacked(self.block.tensor)]


@dataclass(frozen=True)
class Carried:
    """What a translation does to a block of another axis: the multiple of its vector, gone through linear maps."""

    block: Block
    factor: float
    maps: tuple[Map, ...]


@dataclass(frozen=True)
class Fold:
    """A change of parameters that is made before a group acts, and undone after: a gain or a bias folded into others.

    What stands behind a gain of zero is out of reach: it is left as it is, since nothing could be unfolded from it.

    Attributes:
        kind: ``"rescaling"``, which multiplies by the pivot, or ``"translation"``, which takes the pivot away.
        pivot: The gain or the bias: one dimension, of stacks behind those of the modules, each with its own; beside
            such as have one position.
        actions: What it does to blocks along the axis of the pivot.
        carried: What it does to those of other axes.
    """

    kind: str
    pivot: Block
    actions: tuple[Action, ...]
    carried: tuple[Carried, ...] = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors that it changes, if only for a time."""
        return tuple(block.tensor for block in (*(a.block for a in self.actions), *(c.block for c in self.carried)))

    def element(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """By what it multiplies, or what it adds: ``(n_rows, n)``, a row for each module of a list."""
        pivot = self.pivot.along_named(tensors[self.pivot.tensor])
        pivot = pivot.reshape(-1, pivot.shape[-1])
        return -pivot if self.kind == "translation" else torch.where(pivot == 0, 1, pivot)

    def reached(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Which units it can unfold again, ``(n,)``."""
        pivot = self.pivot.along_named(tensors[self.pivot.tensor])
        reached = torch.ones_like(pivot, dtype=torch.bool) if self.kind == "translation" else pivot != 0
        return reached.reshape(-1, pivot.shape[-1]).all(0)

    def apply(self, tensors: Mapping[str, Tensor], element: Tensor) -> None:
        """Change the tensors in place."""
        for action in self.actions:
            transform(tensors[action.block.tensor], action, self.pivot.named[:-1], KINDS[self.kind], element)
        for each in self.carried:
            vector = element.reshape(self.pivot.along_named(tensors[self.pivot.tensor]).shape)
            carry(tensors[each.block.tensor], each, tensors, self.pivot.named, vector)

    def inverse(self, element: Tensor) -> Tensor:
        """What undoes an element."""
        return -element if self.kind == "translation" else 1 / element


class Misfit(ValueError):
    """A group acts on a block of another length: what was proposed is no group."""


def transform(tensor: Tensor, action: Action, rows: Sequence[str], kind: Kind, element: Tensor) -> None:
    """Let a group element act on one block of a tensor, in place.

    Raises:
        Misfit: The block has another length than the element.
    """
    for part, degree in along(tensor, action, rows):
        if part.entries.shape[1] != element.shape[1]:
            raise Misfit(f"{part.entries.shape[1]} entries of {action.block.tensor}, for {element.shape[1]} of a group")
        for piece in part.pieces():
            if element.dtype == torch.long:
                piece.write(kind.act(piece.entries, element.to(tensor.device), degree))
            else:
                piece.write(kind.act(*_of_one_type(piece.entries, element), degree))


def _of_one_type(entries: Tensor, element: Tensor) -> tuple[Tensor, Tensor]:
    """Both where the entries are, in numbers that hold either."""
    numbers = torch.promote_types(entries.dtype, element.dtype)
    return entries.to(numbers), element.to(entries.device, numbers)


def derive(
    tensor: Tensor, derivative: Tensor, action: Action, rows: Sequence[str], kind: Kind, direction: Tensor
) -> None:
    """Add the derivative of the action along a direction of the Lie algebra to one block of a derivative, in place."""
    assert kind.derive is not None
    pairs = zip(along(tensor, action, rows), along(derivative, action, rows), strict=True)
    for (part, degree), (change, _) in pairs:
        moved = kind.derive(*_of_one_type(part.contents, direction), degree)
        change.write(change.contents + moved)


def carry(tensor: Tensor, carried: Carried, tensors: Mapping[str, Tensor], axes: Sequence[str], vector: Tensor) -> None:
    """Add a vector, gone through linear maps, to a block of a tensor, in place.

    Of stacked modules each has a map of its own: what comes of them is taken up by each, or by all together.

    Args:
        tensor: The tensor that takes it up.
        carried: Which block of it, and through which maps.
        tensors: The parameters that are the maps, by name.
        axes: The axis of each dimension of the vector.
        vector: What is added where the translation starts, on any device.
    """
    names, vector = list(axes), vector.to(tensor.device)
    for each in carried.maps:
        matrix = each.block.of(tensors[each.block.tensor]).to(vector)
        vector, names = _through(each, matrix, vector, names)
    for name in {name for each in carried.maps for name in each.modules} - set(carried.block.axes):
        if name in names:  # all modules of a list add to it, each an equal share of the factor
            vector = vector.mean(names.index(name))
            names.remove(name)
    block = carried.block.view(tensor)
    if not set(names) <= set(carried.block.axes):
        raise Misfit(f"what goes on to {carried.block.tensor} is along {names}, and that is along {block.shape}")
    order = sorted(range(len(names)), key=lambda place: carried.block.axes.index(names[place]))
    shape = [length if name in names else 1 for name, length in zip(carried.block.axes, block.shape, strict=True)]
    block += carried.factor * vector.permute(order).reshape(shape)


def _through(each: Map, matrix: Tensor, vector: Tensor, names: list[str]) -> tuple[Tensor, list[str]]:
    """A vector gone through a linear map, and the axes of its dimensions."""
    axes, beside = each.block.axes, range(len(each.modules))
    known = {dim: names.index(axes[dim]) for dim in (*each.reads, *beside) if axes[dim] in names}
    letters = [known.get(dim, len(names) + dim) for dim in range(matrix.ndim)]
    read = {known[dim] for dim in each.reads if dim in known}
    kept = [letter for letter in range(len(names)) if letter not in read]
    written = [dim for dim in dict.fromkeys((*beside, *each.writes)) if letters[dim] not in kept]
    result = [*kept, *(letters[dim] for dim in written)]
    gone = torch.einsum(vector, list(range(len(names))), matrix, letters, result)
    return gone, [*(names[letter] for letter in kept), *(axes[dim] for dim in written)]


@dataclass(frozen=True)
class Part:
    """A block in the form ``(n_rows, n, ...)``, with the way back."""

    block: Tensor
    dims: tuple[int, ...]
    offset: float

    @property
    def _in_front(self) -> Tensor:
        return self.block.movedim(self.dims, tuple(range(len(self.dims))))

    @property
    def entries(self) -> Tensor:
        """The block in this form, its other dimensions as they are: a view, but for rows of several axes."""
        rows = len(self.dims) - 1
        entries = self._in_front.flatten(0, rows - 1) if rows else self._in_front[None]
        return entries + self.offset if self.offset else entries

    @property
    def contents(self) -> Tensor:
        """The block as ``(n_rows, n, rest)``, a copy where its memory has another order."""
        return self.entries.reshape(*self.entries.shape[:2], -1)

    def pieces(self) -> Iterator[Part]:
        """Parts of it, whole along the rows and the units, that are small enough not to ask for memory in large."""
        others = [dim for dim in range(self.block.ndim) if dim not in self.dims]
        longest = max(others, key=lambda dim: self.block.shape[dim], default=None)
        if longest is None or self.block.numel() <= _PIECE:
            yield self
            return
        length = max(_PIECE * self.block.shape[longest] // self.block.numel(), 1)
        for piece in self.block.split(length, longest):
            yield Part(piece, self.dims, self.offset)

    def write(self, contents: Tensor) -> None:
        """Put contents in the place of the block."""
        contents = contents - self.offset if self.offset else contents
        self._in_front.copy_(contents.reshape(self._in_front.shape))


def along(tensor: Tensor, action: Action, rows: Sequence[str]) -> Iterator[tuple[Part, float]]:
    """The block of an action, once for each dimension that is the axis of its group, with the degree there."""
    block = action.block.view(tensor)
    row_dims = tuple(action.block.dims(row)[0] for row in rows)
    for dim, degree in enumerate(action.degrees):
        if degree:
            yield Part(block, (*row_dims, dim), action.block.offset), degree
