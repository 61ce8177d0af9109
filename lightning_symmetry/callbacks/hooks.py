"""Hooks that have nothing to do cost next to nothing.

For each callback and each hook a Trainer makes a name and enters its profiler, which takes some three microseconds:
three callbacks with six hooks in each step would take 6 % of a step of a millisecond, idle. It passes over a hook that
is not callable. So one that has nothing to do is hidden from it by a None, and the one that begins a step is None by
itself until a step comes in which there is something to do.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, TypeVar, cast

from lightning.pytorch import Callback

IDLE = 2e-6
"""The seconds that the hooks of an idle monitor cost a step, looked up where other work has emptied the caches."""

BEGINNING = "on_train_batch_start"
EACH_STEP = (
    BEGINNING,
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
"""The hooks that a Trainer calls in each step."""
OF_MEASURED_STEPS = ("on_before_optimizer_step", "on_train_batch_end")
"""Those that are of use in steps at which something is measured, or heard, alone."""


def inherited(callback: Callback) -> list[str]:
    """The hooks that a callback does nothing in."""
    return [hook for hook in EACH_STEP if getattr(type(callback), hook) is getattr(Callback, hook)]


class _Alarm:
    """Who sleeps until how many steps are done; one of them, the first that the Trainer looks at, wakes them all.

    Args:
        loop: What counts the steps of a Trainer.
    """

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.until: dict[Callback, float] = {}
        self.next = math.inf

    def set(self, callback: Callback, until: float) -> None:
        """Let a callback sleep."""
        self.until[callback] = until
        self.next = min(self.until.values())

    def stop(self, callback: Callback) -> None:
        """Let it sleep no more."""
        self.until.pop(callback, None)
        self.next = min(self.until.values(), default=math.inf)

    def silences(self, callback: Callback) -> bool:
        """Whether a callback sleeps, once those are awake whose step has come; by nothing that could fail."""
        if self.loop._batches_that_stepped >= self.next:
            for each in [each for each, until in self.until.items() if until <= self.loop._batches_that_stepped]:
                del self.until[each]
                vars(each).pop(BEGINNING, None)
            self.next = min(self.until.values(), default=math.inf)
        return callback in self.until


class _Wakeful:
    """A hook that is None while its callback sleeps."""

    def __init__(self, hook: Callable[..., None]) -> None:
        self._hook = hook
        self.__doc__ = hook.__doc__

    def __get__(self, callback: Any, kind: type | None = None) -> Any:
        if callback is None:
            return self._hook
        alarm = callback.__dict__.get(_ALARM)
        return None if alarm is not None and alarm.silences(callback) else MethodType(self._hook, callback)


Hook = TypeVar("Hook", bound=Callable[..., None])

_ALARM = "_alarm"


def wakeful(hook: Hook) -> Hook:
    """Let a hook be None while its callback sleeps: it is looked up in each step, which costs less than a call."""
    return cast(Hook, _Wakeful(hook))


def pass_over(callback: Callback, trainer: Any, hooks: Iterable[str]) -> None:
    """Hide hooks of a callback from its Trainer; not those of a class of the user's own, nor from who else calls it."""
    if _is_called_by(trainer, callback):
        for hook in hooks:
            if _is_ours(callback, hook):
                setattr(callback, hook, None)


def sleep(callback: Callback, trainer: Any, until: float) -> None:
    """Do nothing when a step begins, until so many are done; not of a class of the user's own."""
    if _is_called_by(trainer, callback) and _is_ours(callback, BEGINNING):
        loop = trainer.fit_loop.epoch_loop
        first = next(each for each in trainer.callbacks if _is_wakeful(each) and _is_ours(each, BEGINNING))
        alarm = vars(first).get(_ALARM)
        if alarm is None or alarm.loop is not loop:
            alarm = vars(first)[_ALARM] = _Alarm(loop)
        vars(callback)[_ALARM] = alarm
        alarm.set(callback, until)
        if callback is not first:
            setattr(callback, BEGINNING, None)


def _is_called_by(trainer: Any, callback: Callback) -> bool:
    return any(each is callback for each in trainer.callbacks)


def _is_wakeful(callback: Callback) -> bool:
    return isinstance(inspect.getattr_static(type(callback), BEGINNING, None), _Wakeful)


def _is_ours(callback: Callback, hook: str) -> bool:
    return getattr(type(callback), hook).__module__.partition(".")[0] in ("lightning", "lightning_symmetry")


def attend(callback: Callback, hooks: Iterable[str] = EACH_STEP) -> None:
    """Let a Trainer call hooks again."""
    for hook in hooks:
        vars(callback).pop(hook, None)
        if hook == BEGINNING and _ALARM in vars(callback):
            vars(callback)[_ALARM].stop(callback)


def let_go(callback: Callback) -> None:
    """Let a Trainer call all hooks again, and keep nothing of it."""
    attend(callback)
    vars(callback).pop(_ALARM, None)
