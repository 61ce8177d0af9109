"""The indicators that are logged, as pure functions of a model's symmetries and tensors.

What a monitor measures is cut into pieces that need nothing of one another: a symmetry group, a layer. Ranks share the
pieces out among them. A piece says its keys beforehand, so that every rank knows where each value goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_symmetry.functional.order_parameters import PERMUTATION_INDICATORS, permutation_indicators
from lightning_symmetry.functional.spectrum import spectral_indicators
from lightning_symmetry.functional.units import Units
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Piece:
    """A part of a measurement.

    Attributes:
        keys: The keys of its values.
        measure: From the model's tensors to the values, in the order of the keys.
    """

    keys: tuple[str, ...]
    measure: Callable[[Tensors], Sequence[Tensor]]


def key_name(name: str) -> str:
    """A name of a group or a layer as a part of a key, in which W&B would take dots for nesting."""
    return name.removesuffix(".weight").replace(".", "_")


def symmetry_pieces(symmetries: Symmetries, tolerance: float) -> list[Piece]:
    """One piece for each group: its order parameters, the mean over the rows in which the group acts by itself."""
    return [
        Piece(
            keys=tuple(f"symmetry/{indicator}/{key_name(group.name)}" for indicator in PERMUTATION_INDICATORS),
            measure=lambda tensors, group=group: _permutation(group, symmetries, tensors, tolerance),  # type: ignore[misc]
        )
        for group in symmetries
    ]


def _permutation(group: SymmetryGroup, symmetries: Symmetries, tensors: Tensors, tolerance: float) -> list[Tensor]:
    rows = [permutation_indicators(units, tolerance) for units in units_of(group, symmetries, tensors)]
    values = {indicator: torch.stack([row[indicator] for row in rows]) for indicator in PERMUTATION_INDICATORS}
    return [value.amin() if indicator.endswith("_min") else value.mean() for indicator, value in values.items()]


def units_of(group: SymmetryGroup, symmetries: Iterable[SymmetryGroup], tensors: Tensors) -> Iterator[Units]:
    """The joint vectors of the units that a permutation group exchanges, for each row in which it acts by itself.

    Each block of a parameter gives a part of every unit. Running statistics move with the units, but are no part of
    them.
    """
    rows = [row for row, _ in group.rows]
    inner_axes = [other.name for other in symmetries if group.name in dict(other.rows)]
    parts: list[Tensor] = []
    coupled: list[Tensor] = []
    inner: dict[str, list[Tensor]] = {}
    for block in group.blocks:
        if block.tensor not in group.parameters:
            continue
        leading = [block.dims(row)[0] for row in rows]
        units = block.dims(group.name)[:2]
        within = [axis for axis in inner_axes if len(block.dims(axis)) == 1]
        own = [*units, *(block.dims(within[0]) if len(within) == len(units) == 1 else ())]
        part = block.of(tensors[block.tensor])
        part = part.movedim([*leading, *own], list(range(len(leading) + len(own))))
        part = part.flatten(0, len(leading) - 1) if leading else part.unsqueeze(0)
        part = part.flatten(1 + len(own)) if part.dim() > 1 + len(own) else part.unsqueeze(-1)
        if len(units) == 2:
            coupled.append(part)
        elif len(own) == 2:
            inner.setdefault(within[0], []).append(part)
        else:
            parts.append(part)
    joined = [torch.cat(several, dim=-1) for several in inner.values()]
    for row in range(math.prod(length for _, length in group.rows)):
        yield Units(
            parts=tuple(part[row] for part in parts),
            coupled=tuple(part[row] for part in coupled),
            inner=tuple(part[row] for part in joined),
        )


def symmetry_aggregates(
    symmetries: Symmetries, numel: Mapping[str, int], values: Mapping[str, float]
) -> dict[str, float]:
    """The mean broken fraction, and the number of parameters that the distinct units leave.

    Every block of a parameter counts its entries times, for each of its axes, the share of units that are distinct.

    Args:
        symmetries: The symmetries of the model.
        numel: The number of entries of each parameter.
        values: What the pieces measured.
    """
    if not symmetries:
        return {}
    broken = [values[f"symmetry/broken_fraction/{key_name(group.name)}"] for group in symmetries]
    distinct = {
        group.name: values[f"symmetry/distinct_units/{key_name(group.name)}"] / group.size for group in symmetries
    }
    lost = sum(
        block.numel * (1 - math.prod(distinct.get(axis, 1.0) for axis in block.axes))
        for block in symmetries.blocks
        if block.tensor in numel
    )
    return {
        "symmetry/broken_fraction": sum(broken) / len(broken),
        "complexity/effective_parameters": sum(numel.values()) - lost,
    }


def spectrum_pieces(layers: Mapping[str, torch.Size], indicators: Sequence[str]) -> list[Piece]:
    """One piece for each layer: indicators of the spectrum of its weights."""
    return [
        Piece(
            keys=tuple(f"spectrum/{indicator}/{key_name(layer)}" for indicator in indicators),
            measure=lambda tensors, layer=layer: list(spectral_indicators(tensors[layer], indicators).values()),  # type: ignore[misc]
        )
        for layer in layers
    ]


def spectrum_aggregates(layers: Mapping[str, torch.Size], values: Mapping[str, float]) -> dict[str, float]:
    """The mean over layers of the effective rank as a fraction of the largest possible."""
    fractions = [
        values[f"spectrum/effective_rank/{key_name(layer)}"] / full_rank(shape)
        for layer, shape in layers.items()
        if f"spectrum/effective_rank/{key_name(layer)}" in values
    ]
    return {"complexity/effective_rank_fraction": sum(fractions) / len(fractions)} if fractions else {}


def full_rank(shape: torch.Size) -> int:
    """The largest rank of a matrix of this shape, a convolution read as ``out x (in kh kw)``."""
    return min(shape[0], shape[1:].numel())


def nonfinite(tensors: Tensors) -> list[str]:
    """The names of those tensors that hold a NaN or an infinity."""
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
