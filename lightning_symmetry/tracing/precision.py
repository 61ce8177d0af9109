"""A step in double precision, with the small constants of norms as they are or as good as zero.

Random operations act by their mean: see `typical_draw`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_symmetry.tracing.tracing import typical_draw

SMALL, ROUNDING = 1e-3, 1e-20
"""Constants between these are taken for those that norms add; below, for zero."""


class InFloat64(TorchDispatchMode):
    """Computes in float64 whatever floating type is given or asked for; random operations act by their mean.

    Args:
        exact: False to take the small constants of norms as good as zero.
    """

    def __init__(self, exact: bool = True) -> None:
        super().__init__()
        self._exact = exact

    def __torch_dispatch__(
        self, operation: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = lifted(args), {name: lifted(value) for name, value in (kwargs or {}).items()}
        if operation is torch.ops.aten._grouped_mm.default and _is_by_expert(*args, **kwargs):
            return by_expert(*args, **kwargs)
        drawn = typical_draw(operation, args, kwargs)
        if drawn is None:
            drawn = operation(*(args if self._exact else _with_least_constant(operation, args)), **kwargs)
        return lifted(drawn)


def _is_by_expert(rows: Tensor, maps: Tensor, offs: Tensor | None = None, **options: Any) -> bool:
    return offs is not None and rows.dim() == 2 and maps.dim() == 3


def by_expert(rows: Tensor, maps: Tensor, offs: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """The product of each stretch of rows with a map of its own, which torch's own kernel refuses in float64."""
    ends = offs.tolist()
    parts = [rows[start:end] @ maps[k] for k, (start, end) in enumerate(pairwise([0, *ends]))]
    product = torch.cat([*parts, rows.new_zeros(len(rows) - ends[-1], maps.shape[-1])])
    return product if bias is None else product + bias


def _with_least_constant(operation: OpOverload, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with the small constant of a norm as good as zero, at which a norm of zeros still is zero."""
    names = [argument.name for argument in operation._schema.arguments]
    if operation.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
        small = isinstance(args[1], float) and 0 < args[1] <= SMALL
        return (args[0], ROUNDING, *args[2:]) if small else args
    place = names.index("eps") if "eps" in names and "norm" in operation.name() else len(args)
    return (*args[:place], ROUNDING, *args[place + 1 :]) if place < len(args) else args


def lifted(given: Any) -> Any:
    """A tensor, or a type, of the same numbers in double precision, or several of them."""
    if isinstance(given, Tensor):
        return Tensor.to(given, lifted(given.dtype))
    if isinstance(given, (tuple, list)):
        return type(given)(map(lifted, given))
    if isinstance(given, torch.dtype):
        if given.is_complex:
            return torch.complex128
        return torch.float64 if given.is_floating_point else given
    return given
