"""One step of an unmodified model as a pure function of its parameters and buffers.

What the model keeps besides (metric states, counters, caches) is fenced off: each run is of a fresh copy of the module
tree that shares every parameter and buffer, until they are swapped for those given. The copy's trainer answers nothing
back: its loggers swallow what they are given, its optimizers and schedulers are copies that move nothing. Random
streams of Python, NumPy and torch are put back where they were.

Gradients are recorded only for a step that asks for some, as one with a gradient penalty does: they cost the memory of
all activations. What a step that asks for none differentiates by itself is a loss, and no more is done about it.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Generator, Tensor, nn
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_symmetry.tracing.copying import deep_copy, tensors_copied, uncompiled
from lightning_symmetry.tracing.silence import idle, lend_optimizers, nothing, silence, stand_in, with_wrapped
from lightning_symmetry.tracing.subclassing import followed_subclasses
from lightning_symmetry.tracing.writing import Writing

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
        gradients: Whether the step asks for gradients; known once it is rehearsed.
        written: The names of the parameters and buffers that the step changes in place; known once it is rehearsed.

    Raises:
        ValueError: The model has no parameters.
    """

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self.parameters: Tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.buffers: Tensors = {name: buffer.detach() for name, buffer in model.named_buffers()}
        if not self.parameters:
            raise ValueError(f"model {type(model).__name__} has no parameters, so it has no parameter symmetries")
        self.batch = batch
        self.gradients = False
        self.written: frozenset[str] = frozenset()
        self._model = model
        self._trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._shared: dict[int, Any] = {
            id(tensor): tensor.detach() for tensor in (*model.parameters(), *model.buffers())
        }

    def __call__(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Any) -> Outputs:
        """Run the step. Of what it returns only tensors of real or complex numbers count.

        Raises:
            ValueError: The step returned no such tensor.
        """
        call = (_TrainingStep if hasattr(self._model, "training_step") else _Call)(self._model, self._shared)
        tensors = {f"module.{name}": tensor for name, tensor in {**parameters, **buffers}.items()}
        if self.gradients:
            tensors |= {f"module.{name}": parameters[name].detach().requires_grad_() for name in self._trained}
        with _Differentiating(self.gradients) as differentiating:
            returned, forward = functional_call(call, tensors, (copy.deepcopy(batch),))
        outputs = Outputs(_numbers([returned, differentiating.losses]), _numbers(forward))
        if not outputs.preserved:
            name = type(self._model).__name__
            raise ValueError(f"one step of {name} returned no tensor of floating point to compare: {returned!r}")
        return outputs

    def alone(self, copied: Callable[[Tensor], Tensor] = Tensor.clone) -> AbstractContextManager[None]:
        """Where to run the step: `undisturbed`, with gradients if it asks for them."""
        return undisturbed(self.gradients, copied)

    def rehearse(self, batch: Any) -> None:
        """Run the step once as it is, to learn what it asks for and what it changes.

        What it keeps outside of its model is then kept before anything is traced: a table that a function caches must
        hold an ordinary tensor. A step that reaches its model from outside, past the copy that it is run on, is found
        out here.

        Raises:
            RuntimeError: The step changed parameters or buffers of the model itself; they have their values again.
        """
        kept = {**self.parameters, **self.buffers}
        before = cloned(kept)
        self.gradients = False
        try:
            try:
                given, written = self._try(before, batch)
            except Exception:
                self.gradients = True
                given, written = self._try(before, batch)
        finally:
            changed = [name for name, tensor in kept.items() if not _identical(tensor, before[name])]
            for name in changed:
                kept[name].copy_(before[name])
        if changed:
            raise RuntimeError(
                f"one step of {type(self._model).__name__} changed parameters or buffers of the model itself, not of "
                f"the copy that it was run on: {', '.join(changed)}. They have their values again. The step reaches "
                "the model by a global variable or a weak reference, where it should by `self`; or it calls a method "
                "of an optimizer that changes parameters, beside `step`"
            )
        changed_in_place = (name for name, tensor in given.items() if not _identical(tensor, before[name]))
        self.written = frozenset([*written, *changed_in_place])

    def _try(self, tensors: Tensors, batch: Any) -> tuple[Tensors, set[str]]:
        """Run the step; return the parameters and buffers that it was given, as it left them, and those written to."""
        given = cloned(tensors)
        writing = Writing(given)
        with self.alone(), writing:
            self(
                {name: given[name] for name in self.parameters},
                {name: given[name] for name in self.buffers},
                batch,
            )
        return given, writing.written


def cloned(tensors: Mapping[str, Tensor]) -> Tensors:
    """A copy that the step may change in place, as it does running statistics, and moving averages of parameters."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


@contextmanager
def undisturbed(gradients: bool = False, copied: Callable[[Tensor], Tensor] = Tensor.clone) -> Iterator[None]:
    """Run a step alone, in plain operations without fused shortcuts, and leave no trace of it, not even a warning.

    Args:
        gradients: Whether gradients are recorded.
        copied: What `copy.deepcopy` makes of a tensor.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        random_streams = isolate_rng()
        random_streams.__enter__()
        stack.callback(random_streams.__exit__, None, None, None)  # alone it would forget them at an exception
        for enabled, enable in (
            (torch._C._get_mkldnn_enabled(), torch._C._set_mkldnn_enabled),
            (torch._C._get_cudnn_enabled(), torch._C._set_cudnn_enabled),
            (torch.backends.mha.get_fastpath_enabled(), torch.backends.mha.set_fastpath_enabled),
        ):
            stack.callback(enable, enabled)
            enable(False)
        stack.callback(setattr, torch._C, "_InferenceMode", torch._C._InferenceMode)
        torch._C._InferenceMode = _without_gradients  # type: ignore[assignment, misc]
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # modes hold for one thread
        stack.enter_context(followed_subclasses())
        stack.enter_context(tensors_copied(copied))
        alone = stack.enter_context(_Alone())
        stack.callback(alone.put_back)
        yield


def _without_gradients(mode: bool) -> AbstractContextManager[None]:
    """What stands for inference mode, whose tensors cannot be followed: gradients are not recorded."""
    return torch.no_grad() if mode else nullcontext()


class _Alone(TorchDispatchMode):
    """Refuses to talk to other processes, which run no step now and would keep this one waiting.

    It notes the state of each generator that is drawn from, to put it back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._states: dict[Generator, Tensor] = {}

    def __torch_dispatch__(
        self, operation: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if "c10d" in operation.namespace:
            raise RuntimeError(
                f"the step talks to other processes ({operation.name()}), so it cannot be run by one of them alone: "
                "symmetries are found in steps that leave communication to the strategy"
            )
        generator = kwargs.get("generator")
        if generator is not None and generator not in self._states:
            self._states[generator] = generator.get_state()
        return operation(*args, **kwargs)

    def put_back(self) -> None:
        """Put the generators back to where they were."""
        for generator, state in self._states.items():
            generator.set_state(state)


class _Differentiating(TorchFunctionMode):
    """Keeps the losses that a step differentiates by itself; it does so only where gradients are recorded."""

    def __init__(self, gradients: bool) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self._gradients = gradients

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.backward:
            self.losses.append(args[0].detach())
            if not self._gradients:
                return None
        return function(*args, **(kwargs or {}))


class _Call(nn.Module):
    """Calls a copy of a module as its user would; the copy holds aliases of its parameters and buffers."""

    def __init__(self, model: nn.Module, shared: dict[int, Any]) -> None:
        super().__init__()
        self.module = uncompiled(deep_copy(model, shared))

    def forward(self, batch: Any) -> tuple[Any, Any]:
        try:
            if isinstance(batch, Mapping):
                output = self.module(**batch)
            else:
                output = self.module(*batch) if isinstance(batch, tuple) else self.module(batch)
        except TypeError as error:
            if isinstance(batch, list):
                error.add_note("batch is a list, and was given as one argument: tuple(batch) is given as several")
            raise
        loss = output.get("loss") if isinstance(output, Mapping) else None
        return output if loss is None else loss, _predicted(output)


class _TrainingStep(nn.Module):
    """Calls the training step of a copy of a LightningModule, whose trainer answers nothing."""

    def __init__(self, model: Any, shared: dict[int, Any]) -> None:
        super().__init__()
        trainer = getattr(model, "_trainer", None)
        silent = None if trainer is None else stand_in(trainer)
        module: Any
        if trainer is None:
            module = deep_copy(model, shared)
            lend_optimizers(module)
        else:
            held = tree_leaves([vars(optimizer) for optimizer in with_wrapped(trainer.optimizers)])
            large = {id(leaf): leaf for leaf in held if isinstance(leaf, Tensor) and id(leaf) not in shared}
            module, optimizers, schedulers = deep_copy(
                (model, trainer.optimizers, trainer.lr_scheduler_configs), shared, {**large, id(trainer): silent}
            )
            silence(silent, module, list(map(idle, optimizers)), schedulers)
            module.trainer = silent
        self.module = uncompiled(module)
        self._silent = silent
        self._forward: list[Any] = []
        for name in ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer", "clip_gradients"):
            setattr(module, name, nothing)
        module.manual_backward = lambda loss, *args, **kwargs: loss.backward(*args, **kwargs)
        self._original_forward = module.forward
        module.forward = self._recorded_forward

    def forward(self, batch: Any) -> tuple[Any, Any]:
        accepted = inspect.signature(self.module.training_step).parameters
        arguments = (batch, 0, 0) if "dataloader_idx" in accepted else (batch, 0)[: max(len(accepted), 1)]
        with self._precision():
            returned = self.module.training_step(*arguments)
        return returned, list(self._forward)

    def _precision(self) -> AbstractContextManager[Any]:
        """The types of numbers in which the trainer runs its steps."""
        return nullcontext() if self._silent is None else self._silent.precision_plugin.forward_context()

    def _recorded_forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self._original_forward(*args, **kwargs)
        self._forward.append(_predicted(output))
        return output


def _predicted(output: Any) -> Any:
    """What a model predicts, as far as it says: the logits, and not what it returns of its layers beside."""
    return output["logits"] if isinstance(output, Mapping) and "logits" in output else output


def _identical(left: Tensor, right: Tensor) -> bool:
    if left.layout != torch.strided:  # sparse ones cannot be compared, but what they keep can
        ones, others = (each.to_sparse_coo().coalesce() for each in (left, right))
        return torch.equal(ones.indices(), others.indices()) and _identical(ones.values(), others.values())
    if isinstance(left, FakeTensor):  # it has no entries: a copy that nothing was written to is of its first version
        return left._version == 0
    return torch.equal(left, right) or bool(torch.isclose(left, right, rtol=0.0, atol=0.0, equal_nan=True).all())


def _numbers(returned: Any) -> list[Tensor]:
    leaves = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
    numbers = [leaf for leaf in leaves if leaf.is_floating_point() or leaf.is_complex()]
    return [leaf.detach() if leaf.requires_grad else leaf for leaf in numbers]
