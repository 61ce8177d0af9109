"""One step of an unmodified model as a pure function of its parameters and buffers.

What the model keeps besides (metric states, counters, caches) is fenced off: the step runs on a copy of the module tree
that shares every large tensor, and whose parameters and buffers are swapped for those given. The copy's trainer answers
nothing back: no logger, no optimizer. Random streams of Python, NumPy and torch are put back where they were.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch.loggers.logger import DummyExperiment, DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Outputs:
    """What a step returned: the tensors that a symmetry must preserve, and those of the model's `forward` within it."""

    preserved: list[Tensor]
    forward: list[Tensor]


class Step:
    """A model and one batch of its data, to be run at any parameters.

    A LightningModule is run by its `training_step`, any other module by a call: ``model(batch)``, ``model(*batch)`` for
    a tuple, ``model(**batch)`` for a mapping. Neither is changed, nor is the batch.

    Attributes:
        parameters: The model's parameters by name, tied ones once, detached from the model's graph but not copied.
        buffers: Its buffers by name.
        batch: The batch.

    Raises:
        ValueError: The model has no parameters.
    """

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self.parameters: Tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.buffers: Tensors = {name: buffer.detach() for name, buffer in model.named_buffers()}
        if not self.parameters:
            raise ValueError(f"model {type(model).__name__} has no parameters, so it has no parameter symmetries")
        self.batch = batch
        self._call = _TrainingStep(model) if hasattr(model, "training_step") else _Call(model)

    def __call__(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Any) -> Outputs:
        """Run the step. Of what it returns only tensors of floating point count.

        Raises:
            ValueError: The step returned no such tensor.
        """
        tensors = {f"module.{name}": tensor for name, tensor in {**parameters, **buffers}.items()}
        returned, forward = functional_call(self._call, tensors, (tree_map(_own, batch),))
        outputs = Outputs(_floating(returned), _floating(forward))
        if not outputs.preserved:
            name = type(self._call.module).__name__
            raise ValueError(f"one step of {name} returned no tensor of floating point to compare: {returned!r}")
        return outputs


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run a step with no gradient, in plain operations without fused shortcuts, and leave no trace of it."""
    with ExitStack() as stack:
        random_streams = isolate_rng()
        random_streams.__enter__()
        stack.callback(random_streams.__exit__, None, None, None)  # alone it would forget them at an exception
        for library in (torch.backends.mkldnn, torch.backends.cudnn):
            enabled, *_ = library.set_flags(False)
            stack.callback(library.set_flags, enabled)
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        yield


class _Call(nn.Module):
    """Calls a module as its user would."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = _fenced(model)

    def forward(self, batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, Mapping):
            output = self.module(**batch)
        else:
            output = self.module(*batch) if isinstance(batch, tuple) else self.module(batch)
        loss = output.get("loss") if isinstance(output, Mapping) else None
        return output if loss is None else loss, output


class _TrainingStep(nn.Module):
    """Calls the training step of a LightningModule whose trainer answers nothing."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        module: Any = _fenced(model)
        self.module = module
        self._losses: list[Tensor] = []
        self._forward: list[Any] = []
        if getattr(model, "_trainer", None) is not None:
            module.trainer = _silent(model.trainer)
        for name in ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer", "clip_gradients"):
            setattr(module, name, _nothing)
        module.manual_backward = lambda loss, *args, **kwargs: self._losses.append(loss)
        module.optimizers = module.lr_schedulers = self._idle
        self._original_forward = module.forward
        module.forward = self._recorded_forward

    def forward(self, batch: Any) -> tuple[Any, Any]:
        self._losses.clear()
        self._forward.clear()
        accepted = inspect.signature(self.module.training_step).parameters
        arguments = (batch, 0, 0) if "dataloader_idx" in accepted else (batch, 0)[: max(len(accepted), 1)]
        returned = self.module.training_step(*arguments)
        return [returned, *self._losses], list(self._forward)

    def _recorded_forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self._original_forward(*args, **kwargs)
        self._forward.append(output)
        return output

    @cached_property
    def _optimizers(self) -> list[Optimizer]:
        if getattr(self.module, "_trainer", None) is not None:
            return list(self.module.trainer.optimizers)
        return [leaf for leaf in tree_leaves(self.module.configure_optimizers()) if isinstance(leaf, Optimizer)]

    def _idle(self, *args: Any, **kwargs: Any) -> Any:
        """As many optimizers as the user has, which do nothing."""
        count = len(self._optimizers)
        return DummyExperiment() if count == 1 else [DummyExperiment() for _ in range(count)]


def _fenced(model: nn.Module) -> nn.Module:
    """A copy of the module tree that shares its parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _silent(trainer: Any) -> Any:
    """The trainer as a step may read it, with loggers that swallow what they are given."""
    silent = copy.copy(trainer)
    silent.loggers = [DummyLogger() for _ in trainer.loggers]
    return silent


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing."""


def _own(leaf: Any) -> Any:
    """A copy of a part of the batch, that the step may change."""
    return leaf.clone() if isinstance(leaf, Tensor) else copy.copy(leaf)


def _floating(returned: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
