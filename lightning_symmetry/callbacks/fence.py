"""The fence around the hooks of a monitor: what fails within is told and counted, and never reaches the training.

An interrupt is no failure: what is not an `Exception` passes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from lightning_symmetry.callbacks.session import PATIENCE


class Fenced(Protocol):
    """What has hooks to be fenced: how it tells of failures, and how many hooks have failed."""

    on_error: Any
    failures: int

    def fail(self, trainer: Any, error: Exception) -> None:
        """Count a failure, and tell of it."""


DURING_TRAINING = ("on_train", "on_before", "on_after", "on_validation")
"""How the names of the hooks begin that are left out once a monitor has failed; the others tidy up."""

P = ParamSpec("P")
F = TypeVar("F", bound=Fenced)
Hook = Callable[Concatenate[F, Any, P], None]


def fenced(hook: Hook[F, P]) -> Hook[F, P]:
    """Keep what a hook raises from the trainer; during training, after two failures, do not call it any more.

    Where several processes train each goes on calling it, since the others wait for what it has to say.
    """

    @wraps(hook)
    def guarded(self: F, trainer: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.failures >= PATIENCE and hook.__name__.startswith(DURING_TRAINING) and trainer.world_size == 1:
            return
        try:
            hook(self, trainer, *args, **kwargs)
        except Exception as error:
            if self.on_error == "raise":
                raise
            with suppress(Exception):  # nothing is left that could be told
                self.fail(trainer, error)

    return guarded
