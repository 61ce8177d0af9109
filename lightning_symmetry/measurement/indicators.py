"""The indicators that are logged, as pure functions of a model's symmetries and tensors.

What a monitor measures is cut into pieces that need nothing of one another: a symmetry group, a layer. Ranks share the
pieces out among them. A piece says its keys beforehand, so that every rank knows where each value goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import ref

import torch
from torch import Tensor

from lightning_symmetry.functional.complexity import effective_parameters
from lightning_symmetry.functional.continuous import living_units, product_rank
from lightning_symmetry.functional.order_parameters import PERMUTATION_INDICATORS, permutation_indicators
from lightning_symmetry.gauge.gauge import Gauge
from lightning_symmetry.gauge.mixing import sides_of_rotation
from lightning_symmetry.gauge.representative import find_gauge
from lightning_symmetry.keys import key_names
from lightning_symmetry.measurement.snapshot import held
from lightning_symmetry.measurement.units import in_front, sides_of, units_of
from lightning_symmetry.symmetry.actions import Block
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup

Tensors = Mapping[str, Tensor]

NONE_YET = -math.inf
"""The value of what cannot be known before the next measurement, as a change is: it is left out of the row."""


@dataclass(frozen=True)
class Piece:
    """A part of a measurement.

    Attributes:
        keys: The keys of its values.
        measure: From the model's tensors to the values, in the order of the keys; `NONE_YET` where there is none.
        reads: The names of the parameters that the values are of, where nothing else changes them; else none.
        remembers: Whether the values depend on what was measured before: it is then always measured by one rank.
    """

    keys: tuple[str, ...]
    measure: Callable[[Tensors], Sequence[Tensor]]
    reads: tuple[str, ...] = ()
    remembers: bool = False


class SharedGauge:
    """The gauge that the pieces of one measurement share, found when the first asks; the next search starts from it.

    Args:
        symmetries: All groups of the model.
    """

    def __init__(self, symmetries: Symmetries) -> None:
        self.symmetries = symmetries
        self._gauge: Gauge | None = None
        self._found_at: list[ref[Tensor]] = []  # not held: they may be copies of the whole model
        self._versions: list[int] = []

    def at(self, tensors: Tensors) -> Gauge:
        """The gauge of a model's parameters, found once for these tensors as they are."""
        now = tuple(held(tensors).values())
        versions = [tensor._version for tensor in now]
        found = [tensor() for tensor in self._found_at]
        same = len(found) == len(now) and all(one is other for one, other in zip(found, now, strict=True))
        if self._gauge is None or not same or self._versions != versions:
            self._gauge = find_gauge(self.symmetries, tensors, self._gauge)
            self._found_at, self._versions = [ref(tensor) for tensor in now], versions
        return self._gauge


def symmetry_pieces(symmetries: Symmetries, tolerance: float, gauge: SharedGauge | None = None) -> list[Piece]:
    """One piece for each group that has a symmetric state: its order parameters, in the gauge of the model.

    Where a group acts by itself in each of several rows, they are means over the rows.

    Args:
        symmetries: The groups to measure.
        tolerance: The relative size up to which units count as equal, or as zero.
        gauge: The gauge, of all groups of the model: those within a unit tell how two are compared.
    """
    keys = key_names(group.name for group in symmetries)
    gauge = gauge or SharedGauge(symmetries)
    pieces = []
    for group in symmetries:
        if has_order_parameters(group, symmetries):
            indicators, measure = _ORDER_PARAMETERS[group.kind]
            pieces.append(
                Piece(
                    keys=tuple(f"symmetry/{indicator}/{keys[group.name]}" for indicator in indicators),
                    measure=partial(measure, group, gauge, tolerance),
                    reads=read_with(group, gauge.symmetries),
                )
            )
    return pieces


def read_with(group: SymmetryGroup, symmetries: Symmetries) -> tuple[str, ...]:
    """The parameters that the order parameters of a group depend on.

    These are those that it moves, those that groups on the same axis move, and through the gauge those of all
    continuous groups that move any of these, and so on.
    """
    names = set(group.parameters)
    others = {other.name: other for other in symmetries if other.dimension or other.axis == group.axis}
    while reached := [
        name for name, other in others.items() if other.axis == group.axis or not names.isdisjoint(other.parameters)
    ]:
        for name in reached:
            names.update(others.pop(name).parameters)
    return tuple(sorted(names))


def _permutation(group: SymmetryGroup, shared: SharedGauge, tolerance: float, tensors: Tensors) -> Sequence[Tensor]:
    gauge = shared.at(tensors)
    rows = [
        permutation_indicators(units, tolerance, _living(group, shared, row, tolerance, tensors))
        for row, units in enumerate(units_of(group, shared.symmetries, gauge, tensors))
    ]
    values = {indicator: torch.stack([row[indicator] for row in rows]) for indicator in PERMUTATION_INDICATORS}
    return [value.amin() if indicator.endswith("_min") else value.mean() for indicator, value in values.items()]


def _living(group: SymmetryGroup, shared: SharedGauge, row: int, tolerance: float, tensors: Tensors) -> Tensor | None:
    """Which units something lets live of what rescales them, or else of what flips them; None where nothing does."""
    for kind in ("rescaling", "sign"):
        of_kind = [each for each in shared.symmetries if each.kind == kind and each.axis == group.axis]
        alive = [
            _alive(each, shared.at(tensors), row, tolerance, tensors) for each in of_kind if each.rows == group.rows
        ]
        if alive:
            return torch.stack(alive).any(0)
    return None


def _alive(group: SymmetryGroup, gauge: Gauge, row: int, tolerance: float, tensors: Tensors) -> Tensor:
    """Which units are alive: a sign leaves the norm of a unit as it was, a rescaling the product of its two sides'."""
    outgoing = sides_of(group, gauge, tensors, row, -1) if group.kind == "rescaling" else None
    return living_units(sides_of(group, gauge, tensors, row, 1), outgoing, tolerance)


def _death(group: SymmetryGroup, shared: SharedGauge, tolerance: float, tensors: Tensors) -> Sequence[Tensor]:
    gauge = shared.at(tensors)
    finite = torch.stack([tensors[name].isfinite().all() for name in group.parameters]).all()
    alive = torch.stack([_alive(group, gauge, row, tolerance, tensors).sum() for row in range(group.n_rows)])
    mean = torch.where(finite, alive.double().mean(), torch.nan)
    return [mean / group.size, mean]


def _rank(group: SymmetryGroup, shared: SharedGauge, tolerance: float, tensors: Tensors) -> Sequence[Tensor]:
    """The rank of the product; and the share of the parameters of two maps that maps of this rank have."""
    if group.form:
        return _stream_rank(group, shared.at(tensors), tolerance, tensors)
    left, right = (
        side.reshape(group.n_rows, group.size, -1) for side in sides_of_rotation(shared.at(tensors), group, tensors)
    )
    ranks = torch.stack([product_rank(*sides, tolerance) for sides in zip(left, right, strict=True)])
    width = left.shape[-1] + right.shape[-1]
    shares = (
        ranks * (width - ranks) / (group.size * (width - group.size)) if width >= 2 * group.size else ranks / group.size
    )
    return [ranks.mean() / group.size, ranks.mean(), shares.mean()]


def _stream_rank(group: SymmetryGroup, gauge: Gauge, tolerance: float, tensors: Tensors) -> Sequence[Tensor]:
    """The rank of all that writes to a stream, side by side; of one whose mean nothing sees, at most n - 1."""
    gram = torch.zeros(group.n_rows, group.size, group.size, dtype=torch.float64)
    for action in group.actions_on_parameters:
        for dim, degree in enumerate(action.degrees):
            if degree > 0:
                writes = in_front(gauge.of(action.block, tensors), action.block, group, [dim])
                gram += (writes @ writes.mH).real.double().cpu()
    if not bool(gram.isfinite().all()):
        return [torch.full((), torch.nan)] * 3
    values = torch.linalg.eigvalsh(gram)
    ranks = (values > tolerance**2 * values.amax(-1, keepdim=True)).sum(-1).double()
    broken = ranks.mean() / (group.size - (group.form == "orthogonal, mean kept"))
    return [broken, ranks.mean(), ranks.mean() / group.size]


def has_order_parameters(group: SymmetryGroup, symmetries: Symmetries) -> bool:
    """Whether a group has a symmetric state of its own.

    A rotation of planes has none but that of their scales, and a sign of whole tensors only zero. Units of an axis that
    may be rotated as a whole are dead in one basis alone: that axis is judged by its rank.
    """
    is_axis = any(group.axis in block.axes for block in symmetries.blocks)
    if group.kind == "sign" and not is_axis:
        return False
    if group.kind in ("rescaling", "sign") and is_axis:
        return not any(other.kind == "rotation" and other.form and other.axis == group.axis for other in symmetries)
    return group.kind in _ORDER_PARAMETERS and (is_axis or not group.form)


_ORDER_PARAMETERS: Mapping[str, tuple[Sequence[str], Callable[..., Sequence[Tensor]]]] = {
    "permutation": (PERMUTATION_INDICATORS, _permutation),
    "sign": (("broken_fraction", "alive_units"), _death),
    "rescaling": (("broken_fraction", "alive_units"), _death),
    "rotation": (("broken_fraction", "product_rank", "effective_share"), _rank),
}


def symmetry_aggregates(
    symmetries: Symmetries, numel: Mapping[str, int], values: Mapping[str, float]
) -> dict[str, float]:
    """The mean broken fraction, and the number of parameters that are effective.

    Every block of a parameter counts its entries times, for each of its axes, the share of units that are distinct and
    alive; for the axis of a rotation (d, between maps of m and p) the share (m r + r p - r^2) / (m d + d p - d^2) that
    maps of rank r have of the parameters of such maps. Where an axis has neither permutation nor rotation, a rescaling
    of the block along it, or else a sign, says how many units are alive: what it does not move may be of use elsewhere.

    Args:
        symmetries: The groups that were measured.
        numel: The number of entries of each parameter.
        values: What the pieces measured.
    """
    keys = key_names(group.name for group in symmetries)
    broken = [
        values[f"symmetry/broken_fraction/{keys[group.name]}"]
        for group in symmetries
        if has_order_parameters(group, symmetries)
    ]
    if not broken:
        return {}
    shares = {
        group.axis: values[f"symmetry/distinct_alive_units/{keys[group.name]}"] / group.size
        for group in symmetries
        if group.kind == "permutation"
    }
    shares |= {
        group.axis: values[f"symmetry/effective_share/{keys[group.name]}"]
        for group in symmetries
        if group.kind == "rotation" and has_order_parameters(group, symmetries)
    }
    living: dict[tuple[Block, str], float] = {}
    for kind in ("rescaling", "sign"):
        of_kind: dict[tuple[Block, str], float] = {}
        for group in symmetries:
            if group.kind == kind and has_order_parameters(group, symmetries):
                alive = values[f"symmetry/alive_units/{keys[group.name]}"] / group.size
                for block in group.blocks:
                    of_kind[block, group.axis] = max(alive, of_kind.get((block, group.axis), 0.0))
        living = of_kind | living
    blocks = [block for block in symmetries.blocks if block.tensor in numel]
    of_blocks = effective_parameters(
        [block.numel for block in blocks],
        [[shares.get(axis, living.get((block, axis), 1.0)) for axis in block.axes] for block in blocks],
    )
    others = sum(numel.values()) - sum(block.numel for block in blocks)
    return {
        "symmetry/broken_fraction": sum(broken) / len(broken),
        "complexity/effective_parameters": others + float(of_blocks),
    }


def nonfinite(tensors: Tensors) -> list[str]:
    """The names of those tensors that hold a NaN or an infinity."""
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
