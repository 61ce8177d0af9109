"""Copies of functions that have enclosed a module: a lambda that calls a layer, or a forward that was wrapped.

`copy.deepcopy` takes a function for one that refers to nothing, so that the copy of what keeps it calls the original.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


@contextmanager
def enclosed_modules_copied() -> Iterator[None]:
    """Let `copy.deepcopy` copy functions with the modules that they have enclosed, whoever keeps them."""
    copiers: dict[type, Any] = copy._deepcopy_dispatch  # type: ignore[attr-defined]
    of_functions = copiers[FunctionType]
    copiers.update({FunctionType: _copied_function, CellType: _copied_cell})
    try:
        yield
    finally:
        copiers[FunctionType] = of_functions
        del copiers[CellType]


def _copied_function(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """A copy, of what leads to a module too; the function itself where nothing does."""
    if not _leads_to_a_module(function):
        return function
    defaults, cells = (
        held and tuple(copy.deepcopy(each, memo) if _leads_to_a_module(each) else each for each in held)
        for held in (function.__defaults__, function.__closure__)
    )
    copied = FunctionType(function.__code__, function.__globals__, function.__name__, defaults, cells)
    copied.__kwdefaults__ = function.__kwdefaults__
    vars(copied).update(vars(function))
    return copied


def _copied_cell(cell: CellType, memo: dict[int, Any]) -> CellType:
    copied = memo[id(cell)] = CellType()  # before its contents, which may be the function that has enclosed it
    copied.cell_contents = copy.deepcopy(cell.cell_contents, memo)
    return copied


def enclosed_modules(held: Any, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The module that it is, or is a method of; of a function the modules to which what it has enclosed leads."""
    seen = set() if seen is None else seen
    if isinstance(held, nn.Module):
        yield held
    elif isinstance(held, MethodType):
        yield from enclosed_modules(held.__self__, seen)
    elif isinstance(held, CellType):
        with suppress(ValueError):  # an empty one
            yield from enclosed_modules(held.cell_contents, seen)
    elif isinstance(held, FunctionType) and id(held) not in seen:
        seen.add(id(held))
        for each in (*(held.__defaults__ or ()), *(held.__closure__ or ())):
            yield from enclosed_modules(each, seen)


def _leads_to_a_module(held: Any) -> bool:
    return any(True for _ in enclosed_modules(held))
