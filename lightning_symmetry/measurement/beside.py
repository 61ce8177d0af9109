"""What is measured beside a step: from its beginning until an optimizer changes the parameters that are read.

Where the device lets a thread work beside the training, a piece may take as long as the forward and backward passes of
a step before anything waits for it. Where it does not, what takes long is done in slices, at several steps, on copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_symmetry.measurement.device import Host
from lightning_symmetry.measurement.slices import Slices

_TRAINERS = ("lightning", "pytorch_lightning")


class Beside:
    """Works beside steps, at one thing at a time.

    Args:
        host: Where it works.
        timed: What to wait in.
        fenced: What keeps a failure from the training where an optimizer steps that no Trainer tells of.
    """

    def __init__(
        self,
        host: Host,
        timed: Callable[[], AbstractContextManager[None]] = nullcontext,
        fenced: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._host = host
        self._timed = timed
        self._fenced = fenced
        self._wait: Callable[[], None] | None = None
        self._slices: Slices | None = None
        self._watch: RemovableHandle | None = None

    @property
    def works(self) -> bool:
        """Whether something is at work, so that it must `join` before parameters change."""
        return self._wait is not None and self._host.lag > 0

    def begin(self, work: Callable[[], None], seconds: float = math.inf) -> None:
        """Begin to work, once what was begun before is done.

        Args:
            work: What to do.
            seconds: After how many to pause, for work that need not `join`, since it reads copies.
        """
        self.join()
        self.go_on()
        if seconds < math.inf:
            self._slices = Slices(work)
            self.go_on(seconds)
            return
        self._wait = self._host.beside(work)
        if self.works and self._watch is None:  # to be removed in the end: torch goes through its hooks as they are
            self._watch = register_optimizer_step_pre_hook(self._before_a_step)

    def join(self) -> None:
        """Wait for the end of the work: what it reads is about to change."""
        wait, self._wait = self._wait, None
        if wait is not None:
            with self._timed():
                wait()

    def go_on(self, seconds: float = math.inf) -> None:
        """Go on for so long with work that has paused, or until it is done."""
        if self._slices is not None and self._slices.go_on(seconds):
            self._slices = None

    def give_up(self) -> None:
        """Do not go on with work that has paused, and wait for the end of any other."""
        slices, self._slices = self._slices, None
        if slices is not None:
            slices.give_up()
        self.join()

    def close(self) -> None:
        """Give up, and leave no thread."""
        try:
            self.give_up()
        finally:
            self._host.close()
            if self._watch is not None:
                self._watch.remove()

    def _before_a_step(self, optimizer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Join, but for a step by a Trainer's closure: that has not computed gradients yet, and the Trainer tells."""
        closure = (*args[1:], kwargs.get("closure"))[0]
        module: str | None = getattr(getattr(closure, "func", closure), "__module__", None)
        if (module or "").partition(".")[0] not in _TRAINERS:
            with self._fenced():
                self.join()
