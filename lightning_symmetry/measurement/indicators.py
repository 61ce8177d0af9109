"""The indicators that are logged, as pure functions of a model's symmetries and tensors.

What a monitor measures is cut into pieces that need nothing of one another: a symmetry group, a layer. Ranks share the
pieces out among them. A piece says its keys beforehand, so that every rank knows where each value goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_symmetry.functional.continuous import alive_units, product_rank
from lightning_symmetry.functional.order_parameters import PERMUTATION_INDICATORS, permutation_indicators
from lightning_symmetry.functional.spectrum import spectral_indicators
from lightning_symmetry.measurement.units import sides_of, units_of
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


def key_names(names: Iterable[str]) -> dict[str, str]:
    """Names of groups or layers as parts of keys, in which W&B would take dots for nesting; no two alike."""
    keys: dict[str, str] = {}
    for name in names:
        stem = key = name.removesuffix(".weight").replace(".", "_")
        number = 1
        while key in keys.values():
            number += 1
            key = f"{stem}_{number}"
        keys[name] = key
    return keys


def symmetry_pieces(symmetries: Symmetries, tolerance: float, among: Symmetries | None = None) -> list[Piece]:
    """One piece for each group that has a symmetric state: its order parameters.

    Where a group acts by itself in each of several rows, they are means over the rows.

    Args:
        symmetries: The groups to measure.
        tolerance: The relative size up to which units count as equal, or as zero.
        among: All groups of the model: those within a unit tell how two units are compared.
    """
    keys = key_names(group.name for group in symmetries)
    pieces = []
    for group in symmetries:
        if group.kind in _ORDER_PARAMETERS:
            indicators, measure = _ORDER_PARAMETERS[group.kind]
            pieces.append(
                Piece(
                    keys=tuple(f"symmetry/{indicator}/{keys[group.name]}" for indicator in indicators),
                    measure=partial(measure, group, among or symmetries, tolerance),
                )
            )
    return pieces


def _permutation(group: SymmetryGroup, symmetries: Symmetries, tolerance: float, tensors: Tensors) -> Sequence[Tensor]:
    rows = [permutation_indicators(units, tolerance) for units in units_of(group, symmetries, tensors)]
    values = {indicator: torch.stack([row[indicator] for row in rows]) for indicator in PERMUTATION_INDICATORS}
    return [value.amin() if indicator.endswith("_min") else value.mean() for indicator, value in values.items()]


def _death(group: SymmetryGroup, symmetries: Symmetries, tolerance: float, tensors: Tensors) -> Sequence[Tensor]:
    """A sign leaves the norm of a unit as it was, a rescaling the product of the norms of its two sides."""
    alive = []
    for row in range(group.n_rows):
        outgoing = sides_of(group, tensors, row, -1) if group.kind == "rescaling" else None
        alive.append(alive_units(sides_of(group, tensors, row, 1), outgoing, tolerance))
    mean = torch.stack(alive).mean()
    return [mean / group.size, mean]


def _rank(group: SymmetryGroup, symmetries: Symmetries, tolerance: float, tensors: Tensors) -> Sequence[Tensor]:
    ranks = [
        product_rank(sides_of(group, tensors, row, 1), sides_of(group, tensors, row, -1), tolerance)
        for row in range(group.n_rows)
    ]
    mean = torch.stack(ranks).mean()
    return [mean / group.size, mean]


_ORDER_PARAMETERS: Mapping[str, tuple[Sequence[str], Callable[..., Sequence[Tensor]]]] = {
    "permutation": (PERMUTATION_INDICATORS, _permutation),
    "sign": (("broken_fraction", "alive_units"), _death),
    "rescaling": (("broken_fraction", "alive_units"), _death),
    "rotation": (("broken_fraction", "product_rank"), _rank),
}


def symmetry_aggregates(
    symmetries: Symmetries, numel: Mapping[str, int], values: Mapping[str, float]
) -> dict[str, float]:
    """The mean broken fraction, and the number of parameters that the distinct units leave.

    Every block of a parameter counts its entries times, for each of its axes, the share of units that are distinct.

    Args:
        symmetries: The groups that were measured.
        numel: The number of entries of each parameter.
        values: What the pieces measured.
    """
    keys = key_names(group.name for group in symmetries)
    broken = [
        values[f"symmetry/broken_fraction/{keys[group.name]}"]
        for group in symmetries
        if group.kind in _ORDER_PARAMETERS
    ]
    if not broken:
        return {}
    distinct = {
        group.axis: values[f"symmetry/distinct_units/{keys[group.name]}"] / group.size
        for group in symmetries
        if group.kind == "permutation"
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
    keys = key_names(layers)
    return [
        Piece(
            keys=tuple(f"spectrum/{indicator}/{keys[layer]}" for indicator in indicators),
            measure=lambda tensors, layer=layer: list(spectral_indicators(tensors[layer], indicators).values()),  # type: ignore[misc]
        )
        for layer in layers
    ]


def spectrum_aggregates(layers: Mapping[str, torch.Size], values: Mapping[str, float]) -> dict[str, float]:
    """The mean over layers of the effective rank as a fraction of the largest possible."""
    keys = key_names(layers)
    fractions = [
        values[f"spectrum/effective_rank/{keys[layer]}"] / full_rank(shape)
        for layer, shape in layers.items()
        if f"spectrum/effective_rank/{keys[layer]}" in values
    ]
    return {"complexity/effective_rank_fraction": sum(fractions) / len(fractions)} if fractions else {}


def full_rank(shape: torch.Size) -> int:
    """The largest rank of a matrix of this shape, a convolution read as ``out x (in kh kw)``."""
    return min(shape[0], shape[1:].numel())


def nonfinite(tensors: Tensors) -> list[str]:
    """The names of those tensors that hold a NaN or an infinity."""
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
