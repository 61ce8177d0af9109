"""All that a function given a model could disturb, taken before and after.

A fingerprint maps names to what was there. Values of tensors are compared bit by bit; objects, by identity where a
replacement by an equal one would show.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves


class Same:
    """Equal to itself alone; keeps its object alive, so that no other one takes its address."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    __hash__ = None  # type: ignore[assignment]


def fingerprint(model: nn.Module, batch: Any) -> dict[str, Any]:
    """The state of a model, of a batch, and of what all models of a process share."""
    return {
        **{f"{module or 'model'}.{key}": value for module, key, value in _of_modules(model)},
        **{f"{name} {key}": value for name, key, value in _of_tensors(model, batch)},
        **dict(_of_the_process()),
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is there in only one of two fingerprints, or differs."""
    missing = object()
    return sorted(key for key in before.keys() | after.keys() if before.get(key, missing) != after.get(key, missing))


def _of_modules(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """The attributes of each module and of its class; hooks, parameters and buffers are entries of attributes."""
    for name, module in model.named_modules(remove_duplicate=False):
        for owner, attributes in (("", vars(module)), ("class ", vars(type(module)))):
            yield name, f"{owner}attributes", list(attributes)
            for attribute, value in attributes.items():
                yield name, f"{owner}{attribute}", _shallow(value)


def _shallow(value: Any) -> Any:
    """An object, and what it holds if it is a container."""
    if isinstance(value, Mapping):
        return Same(value), list(value.keys()), [Same(entry) for entry in value.values()]
    if isinstance(value, (list, tuple)):
        return Same(value), [Same(entry) for entry in value]
    if isinstance(value, (bool, int, float, str, set, frozenset)):
        return type(value)(value)
    return Same(value)


def _of_tensors(model: nn.Module, batch: Any) -> Iterator[tuple[str, str, Any]]:
    tensors: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **{f"batch {place}": leaf for place, leaf in enumerate(tree_leaves(batch)) if isinstance(leaf, Tensor)},
    }
    tensors |= {f"{name}.grad": tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}
    for name, tensor in tensors.items():
        yield name, "identity", Same(tensor)
        yield name, "memory", (tensor.data_ptr(), tensor.stride(), tensor.dtype, tensor.device)
        yield name, "bits", tensor.detach().cpu().numpy().tobytes()
        yield name, "version", tensor._version
        yield name, "gradient", (tensor.requires_grad, tensor.is_leaf, Same(tensor.grad), Same(tensor.grad_fn))
        yield name, "attributes", [(key, Same(value)) for key, value in vars(tensor).items()]
        for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            yield name, hooks, _shallow(getattr(tensor, hooks))


def _of_the_process() -> Iterator[tuple[str, Any]]:
    """Random streams, the flags of torch, its hooks on all modules, and what Python's standard library keeps."""
    name, keys, *place = np.random.get_state()
    yield "random state of NumPy", (name, keys.tobytes(), *place)
    yield "random state of Python", random.getstate()
    yield "random state of torch", torch.get_rng_state().numpy().tobytes()
    for function in (
        torch.is_grad_enabled,
        torch.is_inference_mode_enabled,
        torch.is_anomaly_enabled,
        torch.is_autocast_cache_enabled,
        torch.are_deterministic_algorithms_enabled,
        torch.is_deterministic_algorithms_warn_only_enabled,
        torch.get_default_dtype,
        torch.get_default_device,
        torch.get_float32_matmul_precision,
        torch.get_num_threads,
        torch._C._get_mkldnn_enabled,
        torch._C._get_cudnn_enabled,
        torch._C._get_cudnn_benchmark,
        torch._C._get_cudnn_deterministic,
        torch.backends.mha.get_fastpath_enabled,
        torch.backends.cuda.flash_sdp_enabled,
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.math_sdp_enabled,
        torch.backends.cuda.cudnn_sdp_enabled,
    ):
        yield f"torch: {function.__name__}", function()
    for device in ("cpu", "cuda"):
        yield f"autocast on {device}", (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
    yield "function modes", [Same(mode) for mode in _get_current_function_mode_stack()]
    yield "dispatch modes", [Same(mode) for mode in _get_current_dispatch_mode_stack()]
    for attribute, value in vars(modules).items():
        if attribute.startswith("_global"):
            yield f"hooks on all modules: {attribute}", _shallow(value)
    yield "environment", dict(os.environ)
    yield "warning filters", list(warnings.filters)
