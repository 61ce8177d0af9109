"""Which memory a step writes to, and what it held before.

What a step writes need not be another value: a moving average of parameters begins as these, and is changed by no more
than rounding. So what counts is that it is written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_symmetry.tracing.functionalization import written_by


class Writing(TorchDispatchMode):
    """Notes which of some tensors operations write to.

    An operation that does not say what it writes, as batch norm's, is not noted.

    Args:
        tensors: Tensors by name.

    Attributes:
        before: What those held that were written to, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = tensors
        self._memories = {name: _memory(tensor) for name, tensor in tensors.items()}
        self._names: dict[int | None, list[str]] = {}
        for name, memory in self._memories.items():
            self._names.setdefault(memory, []).append(name)
        self.before: dict[str, Tensor] = {}

    def __torch_dispatch__(
        self, operation: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if operation._schema.is_mutable:
            for memory in {_memory(tensor) for tensor in written_by(operation, args, kwargs)} - {None}:
                for name in self._names.get(memory, ()):
                    if name not in self.before:
                        self.before[name] = self._tensors[name].clone()
        return operation(*args, **kwargs)

    @property
    def written(self) -> set[str]:
        """The names of the tensors that were written to, or were given other memory."""
        moved = {name for name, memory in self._memories.items() if memory != _memory(self._tensors[name])}
        return moved.union(self.before)


def _memory(tensor: Tensor) -> int | None:
    """What tells the memory of a tensor from others, also of one that has a shape alone; None where it is sparse."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None
