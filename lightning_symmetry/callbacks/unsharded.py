"""A model whose parameters are spread over processes, as one process would hold it.

To find symmetries one process runs steps by itself. It cannot run a model of which it holds parts, in which every layer
waits for other processes. So it runs a copy on the CPU: every parameter whole, and nothing left of what spreads it, the
classes that FSDP2 puts in place of a module's own, and the hooks by which FSDP2 and tensor parallelism gather, spread
and convert.

Where it has no room for that, the copy has parameters without memory, of which only the shapes are known. Its steps
compute nothing, but do say which operations they consist of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.distributed.fsdp import FSDPModule

from lightning_symmetry.tracing.copying import deep_copy, tensors_copied, uncompiled
from lightning_symmetry.tracing.silence import silence, stand_in

_CPU = torch.device("cpu")


def unsharded(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model on the CPU that can be run by one process alone.

    Args:
        model: The model; it is not changed.
        tensors: Its parameters and buffers by name, whole. They are read one after the other, in the model's order.

    Returns:
        The copy. Its trainer, if it has one, answers nothing back to the real one.
    """
    shared: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        shared[id(parameter)] = nn.Parameter(tensors[name].detach().to(_CPU), parameter.requires_grad)
    for name, buffer in model.named_buffers():
        shared[id(buffer)] = tensors[name].detach().to(_CPU)
    spread = [module for module in model.modules() if isinstance(module, FSDPModule)]
    bare: list[nn.Module] = [own_class(module).__new__(own_class(module)) for module in spread]
    for module, instead in zip(spread, bare, strict=True):
        shared |= {id(module): instead, id(module._get_fsdp_state()): module._get_fsdp_state()}
    mesh = getattr(model, "_device_mesh", None)
    shared |= {id(mesh): mesh}
    trainer = getattr(model, "_trainer", None)
    silent = None if trainer is None else stand_in(trainer)
    optimizers, schedulers = ([], []) if trainer is None else (trainer.optimizers, trainer.lr_scheduler_configs)
    states = {id(state): state for optimizer in optimizers for state in optimizer.state.values()}
    whole: Any
    with tensors_copied(lambda tensor: tensor.detach().to(_CPU, copy=True)):
        whole, attributes, optimizers, schedulers = deep_copy(
            (model, [_attributes(module) for module in spread], optimizers, schedulers),
            shared,
            {**states, **({} if trainer is None else {id(trainer): silent})},
        )
    for instead, own in zip(bare, attributes, strict=True):
        vars(instead).update(own)
    for part in whole.modules():
        _forget_other_processes(part)
    if trainer is not None:
        silence(silent, whole, optimizers, schedulers)
        whole.trainer = silent
    plain: nn.Module = uncompiled(whole)
    return plain


def shapes_alone(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters and buffers of a model by name, the parameters without memory.

    Args:
        model: The model.
        tensors: Its buffers by name.
    """
    without_memory = FakeTensorMode(allow_non_fake_inputs=True)
    with without_memory:
        shapes = {name: torch.empty(each.shape, dtype=each.dtype) for name, each in model.named_parameters()}
    return shapes | {name: tensors[name] for name, _ in model.named_buffers()}


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, or that which it had before FSDP2 gave it another."""
    kind: type[nn.Module] = type(module)
    return next(kind for kind in kind.__mro__ if not issubclass(kind, FSDPModule))  # type: ignore[return-value]


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not str(name).startswith("__composable_api")}


def _forget_other_processes(module: nn.Module) -> None:
    """Take away the hooks of torch's own parallelism, and say that the module is on the CPU."""
    for name, hooks in vars(module).items():
        if name.endswith("_hooks") and isinstance(hooks, dict):
            for key in [key for key, hook in hooks.items() if _module_of(hook).startswith("torch.distributed")]:
                del hooks[key]
    if "_device" in vars(module):
        module._device = _CPU  # type: ignore[assignment]


def _module_of(hook: Any) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", None))
