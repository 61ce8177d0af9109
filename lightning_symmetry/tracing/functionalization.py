"""Functionalization: views and mutations become operations that return what they would have changed.

It is done below autograd, so that the backward passes of a step are made functional too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


@contextmanager
def functionalized() -> Iterator[None]:
    """Where operations on functional tensors are made functional."""
    torch._enable_functionalization(reapply_views=False)
    try:
        with _Reading():
            yield
    finally:
        torch._disable_functionalization()


class _Reading(TorchFunctionMode):
    """Lets NumPy and Python read functional tensors, and custom operations write to them.

    A functional tensor has no memory of its own, and torch does not know what a custom operation would write to it.
    """

    _READS = (Tensor.numpy, Tensor.tolist, Tensor.__array__)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = getattr(function, "default", None) if isinstance(function, OpOverloadPacket) else function
        if isinstance(operation, OpOverload) and operation.namespace != "aten" and operation._schema.is_mutable:
            return _written_back(operation, args, kwargs)
        if getattr(function, "__name__", "") == "_pad_packed_sequence":  # it writes the lengths to memory
            return _padded(*args, **kwargs)
        if getattr(function, "__name__", "") == "ctc_loss":  # it makes tensors of lengths, and reads their memory
            args = tuple(torch.tensor(arg) if isinstance(arg, (tuple, list)) else arg for arg in args)
        given = map(plain, args) if function in self._READS else args
        return function(*given, **kwargs)


def _padded(data: Tensor, batch_sizes: Tensor, batch_first: bool, value: float, length: int) -> tuple[Tensor, Tensor]:
    """Sequences of several lengths, packed step by step, laid side by side and filled up; and their lengths."""
    sizes = plain(batch_sizes).tolist()
    steps = [torch.nn.functional.pad(x.mT, (0, sizes[0] - len(x)), value=value).mT for x in data.split(sizes)]
    steps += [torch.full_like(steps[0], value)] * (length - len(steps))
    lengths = [sum(size > row for size in sizes) for row in range(sizes[0])]
    return torch.stack(steps, int(batch_first)), torch.tensor(lengths)


def _written_back(operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on copies, and write to its arguments what it has written to these."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)):
        copies = tree_map(lambda leaf: plain(leaf).clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        result = operation(*copies[0], **copies[1])
    for original, copy in zip(written_by(operation, args, kwargs), written_by(operation, *copies), strict=True):
        original.copy_(functional(copy))
    return tree_map(lambda leaf: functional(leaf) if isinstance(leaf, Tensor) else leaf, result)


def written_by(operation: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among the arguments that an operation changes in place."""
    arguments = operation._schema.arguments
    given = {**dict(zip((argument.name for argument in arguments), args, strict=False)), **kwargs}
    written = tree_leaves([given.get(argument.name) for argument in arguments if argument.is_write])
    return [leaf for leaf in written if isinstance(leaf, Tensor)]


def functional(tensor: Tensor) -> Tensor:
    """A tensor whose views and mutations are followed."""
    return tensor if torch._is_functional_tensor(tensor) else torch._to_functional_tensor(tensor)


def plain(tensor: Tensor) -> Tensor:
    """What a functional tensor has become; any other as it is."""
    if not torch._is_functional_tensor(tensor):
        return tensor
    torch._sync(tensor)  # type: ignore[attr-defined]
    return torch._from_functional_tensor(tensor)
