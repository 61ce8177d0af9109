"""A trainer that answers nothing back: its loggers swallow what they are given, its optimizers move nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cache
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves


def silence(trainer: Any, module: nn.Module, optimizers: list[Any], schedulers: list[Any]) -> None:
    """Make of a stand-in for a trainer one that a step may read, and that it cannot reach the real one through."""
    trainer.loggers = [DummyLogger() for _ in trainer.loggers]
    trainer._accelerator_connector = stand_in(trainer._accelerator_connector)
    strategy = trainer._accelerator_connector.strategy = stand_in(trainer.strategy)
    strategy._lightning_module = strategy.model = module
    strategy._optimizers = strategy._lightning_optimizers = optimizers
    strategy.lr_scheduler_configs = schedulers
    trainer.fit_loop = stand_in(trainer.fit_loop)
    loop = trainer.fit_loop.epoch_loop = stand_in(trainer.fit_loop.epoch_loop)
    loop._results = type(loop._results)(training=True)


def stand_in(original: Any) -> Any:
    """What is read as the original is, and keeps what is written to it to itself.

    A shallow copy would do, but for this: whoever has looked at the dictionary of an object's attributes, as copying
    does, leaves that object slower for good; those of a trainer are looked up a hundred times in each step.
    """
    kind = type(original)
    answer = {"__getattr__": lambda self, name: getattr(original, name), "__module__": kind.__module__}
    return object.__new__(type(kind.__name__, (kind,), answer))


def lend_optimizers(module: Any) -> None:
    """Let a module without a trainer have its optimizers and schedulers, made when the step asks for them."""
    configured: Callable[[], list[Any]] = cache(lambda: tree_leaves(module.configure_optimizers()))
    module.optimizers = lambda *args, **kwargs: _one_or_all(
        [idle(leaf) for leaf in configured() if isinstance(leaf, Optimizer)]
    )
    module.lr_schedulers = lambda: _one_or_all(
        [leaf for leaf in configured() if hasattr(leaf, "step") and not isinstance(leaf, Optimizer)] or [None]
    )


def with_wrapped(optimizers: Iterable[Any]) -> list[Any]:
    """The optimizers, and after them those that one of them wraps."""
    found = list(optimizers)
    for optimizer in found:
        wrapped = getattr(optimizer, "optimizer", None)
        if hasattr(wrapped, "step") and all(wrapped is not other for other in found):
            found.append(wrapped)
    return found


def idle(optimizer: Any) -> Any:
    """A copy of an optimizer as Lightning hands it out, made to move nothing; those that it wraps likewise."""
    for each in with_wrapped([optimizer]):
        each.step = lambda closure=None, **kwargs: None if closure is None else closure()
        each.zero_grad = nothing
        each.toggle_model = lambda *args, **kwargs: nullcontext()
        if not hasattr(each, "optimizer"):
            each.optimizer = each
    return optimizer


def _one_or_all(items: list[Any]) -> Any:
    return items[0] if len(items) == 1 else items


def nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing."""
