"""Copies of modules, and of what they keep, as far as it can be copied."""

from __future__ import annotations

import copy
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_symmetry.tracing.enclosed import enclosed_modules_copied
from lightning_symmetry.tracing.subclassing import has_own_class, with_class

_MAX_SHARED = 100
"""How many things of a module that cannot be copied are shared with its copies."""


@contextmanager
def tensors_copied(copied: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Lets `copy.deepcopy` copy any tensor, also one with a gradient's history, or without memory of its own.

    In this thread alone; but no mode of torch sees to it, since a tensor of a class of its own may be copied where
    modes are off.
    """
    before: Callable[..., Tensor] = Tensor.__deepcopy__
    thread = get_ident()

    def deep_copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        if get_ident() != thread:
            return before(tensor, memo)
        if tensor.requires_grad and tensor.is_leaf:  # so is its copy, for an optimizer to take
            return deep_copied(tensor.detach(), memo).detach().requires_grad_()
        if not has_own_class(tensor):
            return copied(tensor)
        made = with_class(copied(with_class(tensor, Tensor)), type(tensor))
        vars(made).update(copy.deepcopy(vars(tensor), memo))
        return made

    Tensor.__deepcopy__ = deep_copied  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.__deepcopy__ = before  # type: ignore[method-assign]


def _copied_whole(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """A copy of an optimizer with all but its hooks, and with the `step` and `zero_grad` of its class.

    Torch's own has three attributes, which is too few of one that wraps another, and makes the class itself call hooks.
    """
    copied = memo[id(optimizer)] = object.__new__(type(optimizer))
    attributes = {
        name: OrderedDict() if name.startswith("_optimizer_") and name.endswith("_hooks") else value
        for name, value in vars(optimizer).items()
        if name not in ("step", "zero_grad")
    }
    vars(copied).update(copy.deepcopy(attributes, memo))
    return copied


@contextmanager
def _optimizers_copied_whole() -> Iterator[None]:
    """Lets `copy.deepcopy` copy every optimizer so, whoever keeps it."""
    Optimizer.__deepcopy__ = _copied_whole  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del Optimizer.__deepcopy__  # type: ignore[attr-defined]


@enclosed_modules_copied()
@_optimizers_copied_whole()
def deep_copy(original: Any, shared: dict[int, Any], swapped: Mapping[int, Any] | None = None) -> Any:
    """A deep copy, but for what is shared, or swapped, by its id.

    What cannot be copied, as a lock, is shared from then on.

    Raises:
        RuntimeError: What cannot be copied would be changed by being used, as an optimizer would.
    """
    for _ in range(_MAX_SHARED):
        try:
            return copy.deepcopy(original, {**shared, **(swapped or {})})
        except Exception as error:
            stuck = _last_deepcopied(error)
            if isinstance(stuck, (Iterator, Tensor, nn.Module)) or hasattr(stuck, "param_groups"):
                raise RuntimeError(
                    f"the module keeps a {type(stuck).__name__}, which cannot be copied, so that a step run beside the "
                    f"training would change it ({error}). Make it anew in each step; to draw numbers, keep a "
                    "torch.Generator, which can be copied"
                ) from error
            shared[id(stuck)] = stuck
    return copy.deepcopy(original, {**shared, **(swapped or {})})


def uncompiled(copied: Any) -> Any:
    """A copy of a module without what `torch.compile` and Lightning keep in it, which run the module itself."""
    for module in copied.modules():
        vars(module).pop("_compiled_call_impl", None)
        context: Mapping[str, Any] = getattr(module, "_compiler_ctx", None) or {}
        for name in ("forward", "training_step"):
            if f"original_{name}" in context:
                setattr(module, name, context[f"original_{name}"])
    return copied


def _last_deepcopied(error: Exception) -> Any:
    """What `copy.deepcopy` was given when it failed, the innermost."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code is copy.deepcopy.__code__]
    return frames[-1].f_locals["x"]
