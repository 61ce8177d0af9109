"""Hooks that have nothing to do cost next to nothing.

For each callback and each hook a Trainer makes a name and enters its profiler, which takes some two microseconds: three
callbacks with six hooks in each step would take 4 % of a step of a millisecond, idle. It passes over a hook that is not
callable, so that one that has nothing to do is hidden from it by a None; the one that begins a step, by a comparison.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from lightning.pytorch import Callback

from lightning_symmetry.callbacks.run import steps_done

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


def inherited(callback: Callback) -> list[str]:
    """The hooks that a callback does nothing in."""
    return [hook for hook in EACH_STEP if getattr(type(callback), hook) is getattr(Callback, hook)]


def pass_over(callback: Callback, trainer: Any, hooks: Iterable[str]) -> None:
    """Hide hooks of a callback from its Trainer; not those of a class of the user's own, nor from who else calls it."""
    if any(each is callback for each in trainer.callbacks):
        for hook in hooks:
            if _is_ours(callback, hook):
                setattr(callback, hook, None)


def sleep(callback: Callback, trainer: Any, until: float) -> None:
    """Do no more than count steps when a step begins, until so many are done; not of a class of the user's own."""
    if until > steps_done(trainer) + 1 and _is_ours(callback, BEGINNING):
        setattr(callback, BEGINNING, partial(_asleep, callback, until))


def _asleep(callback: Callback, until: float, trainer: Any, *args: Any) -> None:
    if steps_done(trainer) >= until:
        attend(callback, [BEGINNING])
        getattr(callback, BEGINNING)(trainer, *args)


def _is_ours(callback: Callback, hook: str) -> bool:
    return getattr(type(callback), hook).__module__.partition(".")[0] in ("lightning", "lightning_symmetry")


def attend(callback: Callback, hooks: Iterable[str] = EACH_STEP) -> None:
    """Let a Trainer call hooks again."""
    for hook in hooks:
        vars(callback).pop(hook, None)
