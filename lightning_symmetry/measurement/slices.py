"""Work that takes longer than one step may: done a while at each of several steps, without changing a line of it.

It is done by a thread of its own, which runs only while the training waits for it. Before each of torch's functions
that it calls it looks whether its time is up, and if so waits for the next step. So a slice is longer than it should be
by one function at the most. What it reads must not change in between: it reads copies.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch.overrides import TorchFunctionMode

T = TypeVar("T")

_OF_THREAD = threading.local()


def clock() -> float:
    """Seconds that pass while the thread that asks is at work, and not while its work waits for the next slice."""
    return time.perf_counter() - float(getattr(_OF_THREAD, "waited", 0.0))


def within_one(act: Callable[[], T]) -> T:
    """Act within one slice, however long it takes: to copy what is about to change."""
    _OF_THREAD.within_one = True
    try:
        return act()
    finally:
        _OF_THREAD.within_one = False


class _GivenUp(BaseException):
    """Ends the work: no failure, which it might catch."""


class Slices:
    """Work that is done in slices. It has to be done, or given up, in the end.

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
        self._turn, self._pause = threading.Semaphore(0), threading.Semaphore(0)
        self._until = -math.inf
        self._given_up = self._done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lightning_symmetry", daemon=True)
        self._thread.start()

    def go_on(self, seconds: float = math.inf) -> bool:
        """Work for so long, or until it is done; returns whether it is.

        Raises:
            Exception: What the work raised.
        """
        self._until = time.perf_counter() + seconds
        self._turn.release()
        self._pause.acquire()
        if self._done:
            self._thread.join()
            if self._error is not None:
                raise self._error
        return self._done

    def give_up(self) -> None:
        """End the work where it is, and its thread; also where an interrupt has come while it was waited for."""
        self._given_up, self._until = True, -math.inf
        self._turn.release()
        self._thread.join()

    def _run(self) -> None:
        _OF_THREAD.waited = 0.0
        try:
            self._wait()
            with _Pauses(self._look):
                self._work()
        except _GivenUp:
            pass
        except BaseException as error:
            self._error = error
        self._done = True
        self._pause.release()

    def _look(self) -> None:
        if time.perf_counter() >= self._until and not getattr(_OF_THREAD, "within_one", False):
            self._pause.release()
            self._wait()

    def _wait(self) -> None:
        began = time.perf_counter()
        self._turn.acquire()
        _OF_THREAD.waited += time.perf_counter() - began
        if self._given_up:
            self._until = math.inf  # what tidies up does not wait for another slice
            raise _GivenUp


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
