"""Work that takes longer than one step may: done a while at each of several steps, without changing a line of it.

It has a stack of its own, a greenlet, in the thread of the training: a thread would come with threads of its own for
torch's products, and these would slow the training's down for as long as it is there. Before each of torch's functions
that the work calls it looks whether its time is up, and if so leaves the stack until the next step. So a slice is
longer than it should be by one function at the most. What it reads must not change in between: it reads copies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

# What follows is of a greenlet: each has a context of its own.
_WAITED = ContextVar("_WAITED", default=0.0)
_WITHIN_ONE = ContextVar("_WITHIN_ONE", default=False)


def clock() -> float:
    """Seconds that pass while the work that asks is done, and not while it waits for its next slice."""
    return time.perf_counter() - _WAITED.get()


def within_one(act: Callable[[], T]) -> T:
    """Act within one slice, however long it takes: to copy what is about to change."""
    before = _WITHIN_ONE.set(True)
    try:
        return act()
    finally:
        _WITHIN_ONE.reset(before)


class Slices:
    """Work that is done in slices, all in one thread. It has to be done, or given up, in the end.

    Args:
        work: What to do, once.

    Example:
        >>> import torch
        >>> slices = Slices(lambda: print(sum(torch.eye(2).trace() for _ in range(3))))
        >>> slices.go_on(seconds=0.0), slices.go_on(seconds=0.0)
        (False, False)
        >>> slices.go_on()
        tensor(6.)
        True
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._until = -math.inf
        self._stack = greenlet(self._run)

    def go_on(self, seconds: float = math.inf) -> bool:
        """Work for so long, or until it is done; returns whether it is.

        Raises:
            Exception: What the work raised.
        """
        self._until = time.perf_counter() + seconds
        self._enter(self._stack.switch)
        return self._stack.dead

    def give_up(self) -> None:
        """End the work where it is."""
        self._until = math.inf  # what tidies up does not wait for another slice
        self._enter(self._stack.throw)

    def _enter(self, stack: Callable[[], object]) -> None:
        self._stack.parent = getcurrent()
        with _same_gradient_mode():
            stack()

    def _run(self) -> None:
        with _Pauses(self._look):
            self._work()

    def _look(self) -> None:
        if time.perf_counter() >= self._until and not _WITHIN_ONE.get():
            began, outside = time.perf_counter(), self._stack.parent
            assert outside is not None
            with _same_gradient_mode():
                outside.switch()
            _WAITED.set(_WAITED.get() + time.perf_counter() - began)


def _same_gradient_mode() -> AbstractContextManager[object]:
    """Leaves the gradient mode as it is, which is of the thread, and not of a stack."""
    return torch.set_grad_enabled(torch.is_grad_enabled())


class _Pauses(TorchFunctionMode):
    """Looks at the time before each function of torch."""

    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self._look = look

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._look()
        return func(*args, **(kwargs or {}))
