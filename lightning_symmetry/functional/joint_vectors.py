"""The joint vectors of interchangeable units, as the tensors that they come from: held, or read when wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_symmetry.functional.matching import Inner


@dataclass(frozen=True, eq=False)
class Deferred:
    """A part of units that is computed whenever it is read, and not held.

    Args:
        read: Computes it, the same each time.
        shape: ``(n_units, dim)``.
        like: Any tensor of its dtype, on its device.

    Example:
        >>> import torch
        >>> weight = torch.ones(4, 3)
        >>> Units(parts=(Deferred(lambda: 2 * weight, (4, 3), weight),)).n_units
        4
    """

    read: Callable[[], Tensor]
    shape: tuple[int, int]
    like: Tensor


@dataclass(frozen=True, eq=False)
class Units:
    """The joint vectors of n interchangeable units, left in the tensors they come from.

    Args:
        parts: Each ``(n_units, dim)``: slices that move with their unit, dim free to differ; held, or computed anew
            whenever they are read.
        coupled: Each ``(n_units, n_units, dim)``: parameters that hold the axis of the units twice, as a recurrent
            matrix does.
        inner: Each an `Inner`, or ``(n_units, n_inner, dim)``: slices whose rows may also be permuted within each unit,
            as the hidden rows of an expert; each by a permutation of its own. Costs an assignment of n_inner rows per
            pair.
        signs: By which signs of its own a unit flips each of the parts; none of them if empty.
        coupled_signs: The same of the coupled tensors, for the unit of the row and for that of the column.

    Raises:
        ValueError: If there is no tensor or no unit, or if shapes disagree.

    Example:
        >>> import torch
        >>> Units(parts=(torch.zeros(4, 3), torch.zeros(4, 1)), coupled=(torch.zeros(4, 4, 1),)).n_units
        4
    """

    parts: tuple[Tensor | Deferred, ...] = ()
    coupled: tuple[Tensor, ...] = ()
    inner: tuple[Tensor | Inner, ...] = ()
    signs: tuple[int, ...] = ()
    coupled_signs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        shapes = self._shapes
        if not shapes:
            raise ValueError("Units needs at least one tensor: give parts=(tensor,), one row per unit.")
        n_units = shapes[0][0] if shapes[0] else 0
        rows = [tensor for tensor in self.inner if isinstance(tensor, Tensor)]
        agree = (
            n_units > 0
            and all(len(part.shape) == 2 for part in self.parts)
            and all(tensor.ndim == 3 and tensor.shape[:2] == (n_units, n_units) for tensor in self.coupled)
            and all(tensor.ndim == 3 for tensor in rows)
            and all(shape[0] == n_units for shape in shapes)
        )
        if not agree:
            given = {
                "parts": [tuple(tensor.shape) for tensor in self.parts],
                "coupled": [tuple(tensor.shape) for tensor in self.coupled],
                "inner": [tuple(tensor.shape) for inner in self.inner for tensor in _tensors_of(inner)],
            }
            raise ValueError(
                "units must agree on n_units >= 1 in all tensors: parts (n_units, dim), coupled (n_units, n_units, "
                f"dim), inner (n_units, n_inner, dim); got {given}. Move the axis of the units to the front and "
                "flatten the others."
            )
        for name, count in (("signs", len(self.parts)), ("coupled_signs", len(self.coupled))):
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(f"{name} must be empty, or one for each of {count} tensors: {getattr(self, name)}")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors: parts, or what those are like that are not held, coupled, inner."""
        parts = (part.like if isinstance(part, Deferred) else part for part in self.parts)
        return (*parts, *self.coupled, *self._inner_tensors)

    @property
    def n_units(self) -> int:
        """The number of units."""
        return self._shapes[0][0]

    @property
    def _inner_tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for inner in self.inner for tensor in _tensors_of(inner))

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [tuple(each.shape) for each in (*self.parts, *self.coupled, *self._inner_tensors)]


def _tensors_of(inner: Tensor | Inner) -> tuple[Tensor, ...]:
    return inner.tensors if isinstance(inner, Inner) else (inner,)
