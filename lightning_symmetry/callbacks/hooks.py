"""Hooks that have nothing to do cost next to nothing.

For each callback and each hook a Trainer makes a name and enters its profiler, which takes some three microseconds:
three callbacks with six hooks in each step would take 6 % of a step of a millisecond, idle. It passes over a hook that
is not callable. So one that has nothing to do is hidden from it by a None, and the one that begins a step is None by
itself until a step comes in which there is something to do.
"""

from __future__ import annotations

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


class _Wakeful:
    """A hook that is None while its callback sleeps."""

    def __init__(self, hook: Callable[..., None]) -> None:
        self._hook = hook
        self.__doc__ = hook.__doc__

    def __get__(self, callback: Any, kind: type | None = None) -> Any:
        if callback is None:
            return self._hook
        steps, until = callback.__dict__.get(_ALARM, _AWAKE)
        return None if steps is not None and steps._batches_that_stepped < until else MethodType(self._hook, callback)


Hook = TypeVar("Hook", bound=Callable[..., None])

_ALARM = "_alarm"
_AWAKE = (None, 0)


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
        setattr(callback, _ALARM, (trainer.fit_loop.epoch_loop, until))


def _is_called_by(trainer: Any, callback: Callback) -> bool:
    return any(each is callback for each in trainer.callbacks)


def _is_ours(callback: Callback, hook: str) -> bool:
    return getattr(type(callback), hook).__module__.partition(".")[0] in ("lightning", "lightning_symmetry")


def attend(callback: Callback, hooks: Iterable[str] = EACH_STEP) -> None:
    """Let a Trainer call hooks again."""
    for hook in hooks:
        vars(callback).pop(_ALARM if hook == BEGINNING else hook, None)
