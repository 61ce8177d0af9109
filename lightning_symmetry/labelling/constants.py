"""The axes of constants, which tell positions apart only where their entries differ from one to the next."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from lightning_symmetry.labelling.axes import Axis, Concatenation, fresh, resolve
from lightning_symmetry.labelling.charges import UNIFORM, unknown
from lightning_symmetry.labelling.operation_laws import is_zero
from lightning_symmetry.tracing.tape import Value


def axes_of_constant(value: Value) -> list[Axis]:
    """New axes for a constant, which tell positions apart but where the next ones hold the same entries."""
    tensor = value.constant
    assert tensor is not None
    if tensor.layout != torch.strided:
        return [fresh(length, "data") for length in tensor.shape]
    key = (id(tensor), tensor._version)
    if key not in _STRETCHES:
        _STRETCHES[key] = [_stretches(tensor.movedim(dim, 0)) for dim in range(tensor.dim())]
        weakref.finalize(tensor, _STRETCHES.pop, key, None)
    return [_laid_end_to_end(some) for some in _STRETCHES[key]]


_STRETCHES: dict[tuple[int, int], list[list[tuple[int, bool | None]]]] = {}
"""Of constants that were looked at, the stretches along each dimension: several labellings of a tape see the same."""


def _laid_end_to_end(stretches: Sequence[tuple[int, bool | None]]) -> Axis:
    """Stretches as an axis: pairs, as of the angles by which the two coordinates of planes are turned, as a product."""
    if len(stretches) > 1 and set(stretches) == {(2, False)}:
        return fresh(len(stretches), "data") + fresh(2, charge=UNIFORM)
    return resolve((Concatenation([_as_axis(*each) for each in stretches]),))


def _as_axis(length: int, zero: bool | None) -> Axis:
    if zero is None:
        return fresh(length, "data")
    return fresh(length, charge=unknown().unshifted if zero else UNIFORM)


def _stretches(tensor: Tensor) -> list[tuple[int, bool | None]]:
    """The first axis in stretches: their lengths, and whether all there is zero; None where told apart."""
    if not tensor.numel():
        return [(len(tensor), None)]
    differ = (tensor[1:] != tensor[:-1]).unsqueeze(-1).flatten(1).any(1)
    parts = tensor.tensor_split((differ.nonzero().flatten() + 1).tolist())
    stretches: list[tuple[int, bool | None]] = []
    for alone, some in groupby(parts, key=lambda part: len(part) == 1):
        if alone:
            stretches.append((sum(map(len, some)), None))
        else:
            stretches += [(len(part), is_zero(part)) for part in some]
    return stretches
