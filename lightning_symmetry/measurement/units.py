"""The joint vectors of the units that a group acts on, read off the blocks of a model's parameters in its gauge.

Each block gives a part of every unit. What other groups permute, flip or rotate within each unit is told apart, to be
matched: the rows within an expert, the coordinates within a head. Running statistics move with the units, but are no
part of them. A part is read in the gauge whenever it is wanted, and not held: those of a residual stream are all of
the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lightning_symmetry.functional.matching import Inner, Product
from lightning_symmetry.functional.units import Deferred, Units
from lightning_symmetry.gauge.gauge import Gauge
from lightning_symmetry.symmetry.actions import Action, Block
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.planes import coordinates, turns_planes

MOST_MATCHING = 1e9
"""The largest n_units^2 x n_inner^3 at which the inner parts of two units are matched to one another."""

Tensors = Mapping[str, Tensor]


def units_of(
    group: SymmetryGroup, symmetries: Iterable[SymmetryGroup], gauge: Gauge, tensors: Tensors
) -> Iterator[Units]:
    """The units that a permutation group exchanges, for each row in which it acts by itself.

    Args:
        group: The permutation group.
        symmetries: All groups of the model.
        gauge: The gauge of the parameters.
        tensors: The model's parameters and buffers by name.
    """
    symmetries = list(symmetries)
    own_signs = [sign for sign in _signs_on(group.axis, symmetries, gauge) if sign.rows == group.rows]
    within = _within(group, symmetries)
    inner: dict[str, _Inner] = {}
    parts: list[tuple[Sequence[Tensor | Deferred] | Tensor, int]] = []
    coupled: list[tuple[Tensor, tuple[int, int]]] = []
    halves: dict[tuple[str, Action], dict[int, Tensor]] = {}
    where_of: dict[tuple[str, Action], tuple[SymmetryGroup, list[str]]] = {}
    for block in (action.block for action in group.actions_on_parameters):
        if block in gauge.folded:
            continue
        entries = partial(gauge.of, block, tensors)
        own = block.dims(group.axis)[:2]
        signs = tuple(_flips(own_signs, block, dim) for dim in own)
        rows = [other.axis for other in within if other.kind == "permutation" and len(block.dims(other.axis)) == 1]
        products = _told(block, [_Side(other, degree) for other, degree in _products(within, rows, block)])
        plane = _plane_of(within, block)
        if len(signs) == 2:
            coupled.append((in_front(entries(), block, group, own), (signs[0], signs[1])))
        elif plane is not None and len(rows) <= 1:
            turning, action, held = plane
            component = action.block.dims(turning.axis) if len(held) == 2 else ()
            dims = [*own, *(block.dims(row)[0] for row in rows), block.dims(turning.rows[-1][0])[0], *component]
            part = in_front(entries(), block, group, dims)
            part = part if rows else part.unsqueeze(2)
            found = part.unbind(-2) if component else (part,)
            halves.setdefault((turning.name, action), {}).update(zip(held, found, strict=True))
            where_of[turning.name, action] = (turning, rows)
        elif len(rows) <= 1 and len(products) == 1:
            (product,) = products
            dims = [*own, *(block.dims(row)[0] for row in rows), block.dims(product.group.axis)[0]]
            side = in_front(entries(), block, group, dims)
            where = inner.setdefault(rows[0] if rows else product.name, _Inner())
            where.add(product, side if rows else side.unsqueeze(2))
        elif len(rows) == 1:
            flips = _flips(_signs_on(rows[0], within, gauge), block, block.dims(rows[0])[0])
            dims = [*own, block.dims(rows[0])[0]]
            where = inner.setdefault(rows[0], _Inner())
            where.rows.setdefault((signs[0], flips), []).append(in_front(entries(), block, group, dims))
        else:
            parts.append((_part(group, block, own[0], gauge, tensors), signs[0]))
    for (name, action), both in halves.items():
        turning, rows = where_of[name, action]
        side = torch.stack([both[0], both[1]], -1)
        inner.setdefault(rows[0] if rows else name, _Inner()).add(_Side(turning, max(action.degrees, key=abs)), side)
    joined = _of_whole_products(inner)
    for row in range(group.n_rows):
        yield Units(
            parts=tuple(part[row] for part, _ in parts),
            coupled=tuple(part[row] for part, _ in coupled),
            inner=tuple(each.at(row) for each in joined),
            signs=tuple(sign for _, sign in parts),
            coupled_signs=tuple(signs for _, signs in coupled),
        )


def _part(group: SymmetryGroup, block: Block, own: int, gauge: Gauge, tensors: Tensors) -> Sequence[Deferred] | Tensor:
    """A part of the units of each row: in one row read when wanted, else of one layer, and held, to be read once."""

    def read() -> Tensor:
        return in_front(gauge.of(block, tensors), block, group, [own])

    if group.n_rows > 1:
        return read()
    return [Deferred(lambda: read()[0], (group.size, block.numel // group.size), tensors[block.tensor])]


def sides_of(group: SymmetryGroup, gauge: Gauge, tensors: Tensors, row: int, sign: int) -> Tensor:
    """The parts of all units in which their axis has degrees of one sign: ``(n_units, dim)``, in the gauge."""
    parts = [
        in_front(gauge.of(action.block, tensors), action.block, group, [dim])[row]
        for action in group.actions_on_parameters
        for dim, degree in enumerate(action.degrees)
        if degree * sign > 0
    ]
    some = tensors[group.parameters[0]]
    return torch.cat(parts, dim=1) if parts else some.new_zeros(group.size, 0)


def _within(group: SymmetryGroup, symmetries: Iterable[SymmetryGroup]) -> list[SymmetryGroup]:
    """The groups that act within each unit; not those on rows of the group, where the two are rows of one another."""
    rows = dict(group.rows)
    return [other for other in symmetries if group.axis in dict(other.rows) and other.axis not in rows]


def why_not_matched(group: SymmetryGroup, symmetries: Iterable[SymmetryGroup]) -> str | None:
    """Why the units of a group are not compared under the permutations within each; None where they are."""
    if group.kind != "permutation":
        return None
    permuted = [other for other in _within(group, symmetries) if other.kind == "permutation"]
    if any(group.size**2 * other.size**3 > MOST_MATCHING for other in permuted):
        return "too many units within each"
    axes = {other.axis for other in permuted}
    for block in (action.block for action in group.actions_on_parameters):
        if len(block.dims(group.axis)) == 1 and sum(len(block.dims(axis)) for axis in axes) > 1:
            return "maps from units to units within each"
    return None


@dataclass(frozen=True)
class _Side:
    """That a block is on one side of a product: a rotation, or signs each of a position of its own."""

    group: SymmetryGroup
    degree: float
    alone: Block | None = None

    @property
    def name(self) -> str:
        """What those have in common of which only the product is told."""
        return self.group.name if self.alone is None else f"{self.alone}"


@dataclass
class _Inner:
    """What is inside the units along one axis: rows by the signs that flip them, and the sides of products."""

    rows: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)
    sides: dict[str, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict)
    mixed: dict[str, bool] = field(default_factory=dict)

    def add(self, product: _Side, side: Tensor) -> None:
        """One side of a product, ``(n_rows, n_units, n_inner or 1, d, dim)``; ``(..., dim, 2)`` of planes.

        What is on both sides, since directions keep their lengths, counts half on each.
        """
        self.mixed[product.name] = product.group.kind == "rotation" and not turns_planes(product.group)
        both = self.sides.setdefault(product.name, ([], []))
        side = side if product.degree else side / math.sqrt(2)
        if product.degree >= 0:
            both[0].append(side)
        if product.degree <= 0:
            both[1].append(side)

    def at(self, row: int) -> Inner:
        """What is inside the units of one row."""
        return Inner(
            rows=tuple(torch.cat([each[row] for each in several], -1) for several in self.rows.values()),
            signs=tuple(self.rows),
            products=tuple(
                Product(_joined(left, row), _joined(right, row), self.mixed[name])
                for name, (left, right) in self.sides.items()
                if left and right
            ),
        )


def _joined(sides: Sequence[Tensor], row: int) -> tuple[Tensor, ...]:
    """Those with rows of their own side by side, and those that all rows share."""
    by_rows: dict[int, list[Tensor]] = {}
    for side in sides:
        by_rows.setdefault(side.shape[2], []).append(side[row])
    return tuple(torch.cat(several, 3) for several in by_rows.values())


def _of_whole_products(inner: Mapping[str, _Inner]) -> list[_Inner]:
    """A product with rows on one of its sides belongs to these rows."""
    for name, each in inner.items():
        for axis, other in inner.items():
            if name in other.sides and axis != name:
                for mine, theirs in zip(each.sides.pop(name, ([], [])), other.sides[name], strict=True):
                    theirs.extend(mine)
    return [each for each in inner.values() if each.rows or any(left and right for left, right in each.sides.values())]


def _products(
    within: Sequence[SymmetryGroup], rows: Sequence[str], block: Block
) -> Iterator[tuple[SymmetryGroup, float]]:
    """The rotations within a unit that act on a block, and the signs of positions that no permutation moves."""
    for other in within:
        if other.kind == "rotation" and not turns_planes(other) and len(block.dims(other.axis)) == 1:
            degree = _degree(other, block)
            if degree:
                yield other, 0 if other.form else degree
        elif other.kind == "sign" and other.axis not in rows and len(block.dims(other.axis)) == 1:
            permuted = any(each.kind == "permutation" and each.axis == other.axis for each in within)
            if _degree(other, block) and not permuted:
                scaling = [each for each in within if each.kind == "rescaling" and each.axis == other.axis]
                yield other, next((degree for each in scaling if (degree := _degree(each, block))), 0)


def _told(block: Block, products: list[_Side]) -> list[_Side]:
    """Of a block that several signs flip no sign is told beside those of others, but by itself up to one."""
    several = len(products) > 1 and all(each.group.kind == "sign" for each in products)
    return [_Side(products[0].group, 0, alone=block)] if several else products


def _plane_of(within: Sequence[SymmetryGroup], block: Block) -> tuple[SymmetryGroup, Action, Sequence[int]] | None:
    """The rotation of planes, with the action, of which a block holds coordinates: the first (0), the second (1)."""
    for turning in filter(turns_planes, within):
        for action in turning.actions:
            if coordinates(action, [block]):
                both = block.views == action.block.views
                return turning, action, (0, 1) if both else (int(block.views[-1][1] != action.block.views[-2][1]),)
    return None


def _degree(group: SymmetryGroup, block: Block) -> float:
    return next((max(action.degrees, key=abs) for action in group.actions if action.block == block), 0)


def _signs_on(axis: str, symmetries: Iterable[SymmetryGroup], gauge: Gauge) -> list[SymmetryGroup]:
    return [
        each for each in symmetries if each.kind == "sign" and each.axis == axis and each.name not in gauge.resolved
    ]


def _flips(signs: Sequence[SymmetryGroup], block: Block, dim: int) -> int:
    """Which of the signs flip a block along a dimension, as bits."""
    return sum(
        1 << place
        for place, sign in enumerate(signs)
        if any(action.block == block and action.degrees[dim] % 2 for action in sign.actions)
    )


def in_front(entries: Tensor, block: Block, group: SymmetryGroup, own: Sequence[int]) -> Tensor:
    """A block with its rows as one dimension in front, then dimensions of its own, then all others as one."""
    rows = [block.dims(row)[0] for row, _ in group.rows]
    part = entries.movedim([*rows, *own], list(range(len(rows) + len(own))))
    return part.reshape(group.n_rows, *part.shape[len(rows) : len(rows) + len(own)], -1)
