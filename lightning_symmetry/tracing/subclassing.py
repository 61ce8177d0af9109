"""Tensors of classes of their own, as images with metadata or points with labels, made so that they can be followed.

Torch makes one with its modes turned off: what comes out is unknown to whoever follows what goes in. And of a tensor
that a mode has seen `Tensor.__new__` refuses to make one. Here both are a view, which is seen, that then changes its
class.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunctionSubclass, TensorBase


def has_own_class(tensor: Tensor) -> bool:
    """Whether it is of a class whose tensors hold their numbers as any other does, and have attributes beside."""
    kind = type(tensor)
    return kind not in (Tensor, nn.Parameter) and kind.__torch_dispatch__ is Tensor.__torch_dispatch__


def with_class(tensor: Tensor, kind: type[Tensor]) -> Tensor:
    """A view of a class, without the attributes of the tensor."""
    with DisableTorchFunctionSubclass():
        view: Tensor = torch.ops.aten.alias(tensor)
    view.__class__ = kind
    return view


@contextmanager
def followed_subclasses() -> Iterator[None]:
    """Let tensors change their class by operations that modes see."""
    Tensor.as_subclass = with_class  # type: ignore[assignment, method-assign]
    Tensor.__new__ = _new  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del Tensor.as_subclass, Tensor.__new__


def _new(kind: type[Tensor], *args: Any, **kwargs: Any) -> Tensor:
    if kind is not Tensor and args and isinstance(args[0], Tensor):
        return with_class(args[0], kind)
    return TensorBase.__new__(kind, *args, **kwargs)
