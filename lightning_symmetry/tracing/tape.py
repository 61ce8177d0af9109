"""The tape of one step: its operations, in order, and the tensors that they read and give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


@dataclass(eq=False)
class Value:
    """A tensor on the tape.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        constant: The tensor itself where no parameter reaches it, else None.
        name: The name of the parameter or buffer that it is.
        source: The operation that made it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    constant: Tensor | None = None
    name: str | None = None
    source: Operation | None = None

    @property
    def depends(self) -> bool:
        """Whether a symmetry may move it: it is a parameter, a running statistic, noise, or made from one.

        Noise has neither name nor source. Its law is the same at all of its positions, so that they may be permuted.
        """
        return self.constant is None


@dataclass(eq=False)
class Operation:
    """One call of an operation, with values in place of tensors."""

    operation: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: list[Value | None] = field(default_factory=list)

    @cached_property
    def inputs(self) -> list[Value]:
        """The tensors among the arguments, in order."""
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Value)]

    @property
    def name(self) -> str:
        """The operation's name without its overload, and without the mark of a functional view."""
        name = self.operation._schema.name.split("::")[1]
        return name if name == "_to_copy" else name.removesuffix("_copy")


@dataclass
class Tape:
    """The operations that lead to the outputs, in order; the parameters and buffers they start from, by name.

    To some leaves a number is added wherever they are read: they stand on the tape with it added.
    """

    operations: list[Operation]
    leaves: dict[str, Value]
    outputs: list[Value]
    offsets: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def readers(self) -> Mapping[Value, Sequence[Operation]]:
        """The operations that read each of the tensors that any reads, in order."""
        readers: defaultdict[Value, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            for value in dict.fromkeys(operation.inputs):
                readers[value].append(operation)
        return dict(readers)

    @cached_property
    def places(self) -> Mapping[Operation, int]:
        """How many operations come before each."""
        return {operation: place for place, operation in enumerate(self.operations)}

    @property
    def used(self) -> Set[Value]:
        """The tensors that an operation reads, and those that are outputs."""
        return self.readers.keys() | set(self.outputs)


def made(output: Value, operation: OpOverload, *args: Any) -> Operation:
    """An operation of which a value is the output."""
    output.source = Operation(operation, args, {}, [output])
    return output.source


def packets(names: str) -> frozenset[Any]:
    """Operations of ATen, whatever their overloads."""
    return frozenset(getattr(aten, name) for name in names.split())
