"""Hooks that have nothing to do cost nothing.

For each callback and each hook a Trainer makes a name and enters its profiler, which takes some two microseconds: three
callbacks with six hooks in each step would take 4 % of a step of a millisecond, idle. It passes over a hook that is not
callable, so that one that has nothing to do is hidden from it by a None.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback

EACH_STEP = (
    "on_train_batch_start",
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
            if getattr(type(callback), hook).__module__.partition(".")[0] in ("lightning", "lightning_symmetry"):
                setattr(callback, hook, None)


def attend(callback: Callback, hooks: Iterable[str] = EACH_STEP) -> None:
    """Let a Trainer call hooks again."""
    for hook in hooks:
        vars(callback).pop(hook, None)
