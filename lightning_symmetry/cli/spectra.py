"""The spectra of a checkpoint's matrices, and how two checkpoints differ in them.

Of every matrix `effective_rank_fraction` is known, effective rank / min(m, n), in [0, 1]: near 1 for random weights,
1 / min(m, n) for a matrix of rank one, 0 for zero. By it layers of any size compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_symmetry.cli.checkpoint import Stored
from lightning_symmetry.functional.spectrum import spectral_indicators
from lightning_symmetry.measurement.spectra import full_rank

MEASURED = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
"""The dtypes that are measured: others are counts and flags, or the codes of a quantisation."""


@dataclass(frozen=True)
class Layer:
    """The spectrum of one matrix.

    Attributes:
        name: The name of the tensor.
        shape: Its shape.
        values: Indicator to value; NaN where the matrix is not finite.
    """

    name: str
    shape: tuple[int, ...]
    values: Mapping[str, float]

    @property
    def finite(self) -> bool:
        """Whether the matrix is free of NaN and infinities."""
        return not math.isnan(self.values["effective_rank_fraction"])


@dataclass(frozen=True)
class Change:
    """How one matrix differs between two checkpoints.

    Attributes:
        name: The name of the tensor.
        shape: Its shape.
        before: Indicator to value in the first.
        after: Indicator to value in the second.
        distance: |W_B - W_A| / |W_A|, Frobenius norms: 0 for equal ones, about 1.4 for unrelated ones.
    """

    name: str
    shape: tuple[int, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    distance: float

    @property
    def finite(self) -> bool:
        """Whether both matrices are free of NaN and infinities."""
        return not math.isnan(self.distance)

    def change(self, indicator: str) -> float:
        """(after - before) / before: -0.5 where it has halved; 0 where both are equal."""
        return _relative(self.after[indicator] - self.before[indicator], self.before[indicator])

    @property
    def values(self) -> dict[str, float]:
        """What conditions are looked for in: the second checkpoint's indicators, and the changes."""
        changes = {f"{indicator}_change": self.change(indicator) for indicator in self.before}
        return {**self.after, **changes, "relative_distance": self.distance}


def _relative(difference: float, to: float) -> float:
    if difference == 0 or math.isnan(difference):
        return difference
    return difference / to if to else math.copysign(math.inf, difference)


@dataclass(frozen=True)
class Scan:
    """What was found in a checkpoint, or in the second of two.

    Attributes:
        layers: The spectra of its matrices, worst first: what is not finite, then the lowest effective rank fraction.
        changes: Or how they differ from those of the first checkpoint, the largest change first.
        nonfinite: The names of all tensors that hold a NaN or an infinity, vectors too.
        tied: Name to the name of the tensor that it is, and is measured as.
        unmeasured: Why, to the names of the tensors that have no spectrum.
        only_in_first: The names of matrices that the second checkpoint lacks.
        only_in_second: The names of matrices that the first lacks.
        reshaped: The names of those of another shape, with both shapes.
    """

    layers: Sequence[Layer] = ()
    changes: Sequence[Change] = ()
    nonfinite: Sequence[str] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    unmeasured: Mapping[str, Sequence[str]] = field(default_factory=dict)
    only_in_first: Sequence[str] = ()
    only_in_second: Sequence[str] = ()
    reshaped: Mapping[str, tuple[Sequence[int], Sequence[int]]] = field(default_factory=dict)


def measure(tensors: Mapping[str, Stored], indicators: Sequence[str], advance: Callable[[int], object]) -> Scan:
    """The spectra of all matrices of a checkpoint.

    Args:
        tensors: Its tensors by name.
        indicators: What to measure, out of `SPECTRAL_INDICATORS`.
        advance: Told after each matrix what it cost, see `cost`.
    """
    layers = []
    for name, stored in matrices(tensors).items():
        layers.append(Layer(name, tuple(stored.shape), _values(stored.read(), indicators)))
        advance(cost(stored))
    layers.sort(key=lambda layer: (layer.finite, layer.values["effective_rank_fraction"], layer.name))
    broken = [layer.name for layer in layers if not layer.finite]
    return Scan(layers=layers, **_rest(tensors, broken))


def compare(
    first: Mapping[str, Stored],
    second: Mapping[str, Stored],
    indicators: Sequence[str],
    advance: Callable[[int], object],
) -> Scan:
    """How the matrices of one checkpoint differ from those of another; arguments as of `measure`."""
    old, new = matrices(first), matrices(second)
    both = [name for name in old if name in new]
    shapes = {name: (tuple(old[name].shape), tuple(new[name].shape)) for name in both}
    changes = []
    for name, (one, other) in shapes.items():
        if one == other:
            before, after = old[name].read(), new[name].read()
            changes.append(
                Change(
                    name,
                    tuple(before.shape),
                    _values(before, indicators),
                    _values(after, indicators),
                    _distance(before, after),
                )
            )
            advance(cost(old[name]) + cost(new[name]))
    changes.sort(key=lambda change: (change.finite, -abs(change.change(indicators[0])), -change.distance, change.name))
    broken = [change.name for change in changes if math.isnan(change.after["effective_rank_fraction"])]
    return Scan(
        changes=changes,
        only_in_first=[name for name in old if name not in new],
        only_in_second=[name for name in new if name not in old],
        reshaped={name: (one, other) for name, (one, other) in shapes.items() if one != other},
        **_rest(second, broken),
    )


def matrices(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Those tensors that are measured: not tied to another, and with a spectrum, as for `SpectrumMonitor`."""
    return {
        name: stored
        for name, stored in tensors.items()
        if _why_unmeasured(stored) is None and stored.same_as not in tensors
    }


def cost(stored: Stored) -> int:
    """What the spectrum of a matrix costs, up to a factor: its entries times its smaller side."""
    return stored.shape.numel() * full_rank(stored.shape)


def _why_unmeasured(stored: Stored) -> str | None:
    if stored.dtype not in MEASURED:
        return stored.dtype
    if len(stored.shape) < 2 or full_rank(stored.shape) < 2:
        return "vectors and scalars"
    return None


def _rest(tensors: Mapping[str, Stored], nonfinite_matrices: Sequence[str]) -> dict[str, Any]:
    """What a scan tells of the tensors that have no spectrum."""
    unmeasured: dict[str, list[str]] = {}
    nonfinite = list(nonfinite_matrices)
    for name, stored in tensors.items():
        if why := _why_unmeasured(stored):
            unmeasured.setdefault(why, []).append(name)
            if stored.dtype in MEASURED and not bool(stored.read().isfinite().all()):
                nonfinite.append(name)
    tied = {name: stored.same_as for name, stored in tensors.items() if stored.same_as in tensors}
    return {"nonfinite": nonfinite, "tied": tied, "unmeasured": unmeasured}


def _values(matrix: Tensor, indicators: Sequence[str]) -> dict[str, float]:
    names = dict.fromkeys(["effective_rank", *(each for each in indicators if each != "effective_rank_fraction")])
    values = {name: value.item() for name, value in spectral_indicators(matrix, names).items()}
    return {"effective_rank_fraction": values["effective_rank"] / full_rank(matrix.shape), **values}


def _distance(before: Tensor, after: Tensor) -> float:
    """|after - before| / |before|, in float32 at least."""
    dtype = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    return _relative(_norm(after.to(dtype) - before.to(dtype)), _norm(before.to(dtype)))


def _norm(matrix: Tensor) -> float:
    dtype = torch.complex128 if matrix.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(matrix, dtype=dtype))
