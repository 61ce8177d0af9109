"""Which memory a step writes to.

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
    """Notes the memory that operations write to, and tells of which tensors it is, or was.

    Args:
        tensors: Tensors by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = tensors
        self._before = {name: _memory(tensor) for name, tensor in tensors.items()}
        self._written: set[int | None] = set()

    def __torch_dispatch__(
        self, operation: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if operation._schema.is_mutable:
            self._written.update(map(_memory, written_by(operation, args, kwargs)))
        return operation(*args, **kwargs)

    @property
    def written(self) -> set[str]:
        """The names of the tensors that were written to, or were given other memory."""
        written = self._written - {None}
        return {
            name for name, memory in self._before.items() if memory in written or memory != _memory(self._tensors[name])
        }


def _memory(tensor: Tensor) -> int | None:
    """What tells the memory of a tensor from others, also of one that has a shape alone; None where it is sparse."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None
