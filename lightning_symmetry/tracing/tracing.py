"""Tracing: the operations of one real step, and which of their tensors depend on the parameters.

Operations run as they are, on real tensors, so that Python control flow and `.item()` work; they are decomposed to core
ATen, but for norms and pooling, which are ruled whole. Views and mutations are made functional. A random operation acts
by its mean, so that dropout is the identity: the mask that it would draw tells positions apart that the model does not.

The batch is traced with other numbers of floating point in place of its own, where the step accepts them: pixels that
are zero in all of it, as in the corners of pictures, are no less told apart than others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from lightning_symmetry.tracing.centred import with_centring
from lightning_symmetry.tracing.decompositions import DECOMPOSITIONS, KEPT_WHOLE
from lightning_symmetry.tracing.filled import with_pieces_joined
from lightning_symmetry.tracing.functionalization import functional, functionalized, plain, written_by
from lightning_symmetry.tracing.largest import with_largest_kept
from lightning_symmetry.tracing.norms import WRITTEN_OUT, statistics_are_read, without_running_statistics
from lightning_symmetry.tracing.parts import with_parts_viewed
from lightning_symmetry.tracing.rewriting import (
    with_lengths,
    with_picked_maps,
    with_slices_looked_up,
    with_sums,
    without_offsets,
    without_repeats,
)
from lightning_symmetry.tracing.second_batch import with_other_floats
from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tape import Operation, Tape, Value, packets

aten = torch.ops.aten


def trace(step: Step) -> Tape:
    """Run one step and write down its operations.

    Buffers that the step reads and changes move with a symmetry, as statistics of what the parameters give do.
    """
    try:
        return _traced(step, with_other_floats(step.batch))
    except Exception:
        return _traced(step, step.batch)


def _traced(step: Step, batch: Any) -> Tape:
    step.rehearse(batch)
    operations, leaves, returned = _recorded(step, batch, DECOMPOSITIONS)
    living = _living(operations, returned)
    if statistics_are_read(living):
        living, leaves, returned = _recorded(step, batch, {**DECOMPOSITIONS, **WRITTEN_OUT})
    operations = _living(without_running_statistics(living, returned), returned)
    operations, returned = without_repeats(operations, returned)
    operations = with_parts_viewed(with_pieces_joined(operations))
    operations = with_centring(with_picked_maps(operations))
    operations = _living(with_largest_kept(with_slices_looked_up(operations)), returned)
    operations, offsets = without_offsets(operations, leaves, set(returned))
    tape = Tape(with_lengths(with_sums(operations, returned), returned), leaves, returned, offsets)
    for name, value in leaves.items():
        if name in step.buffers and value.depends and value not in tape.readers:
            value.constant = step.buffers[name]
    return tape


def _recorded(
    step: Step, batch: Any, decompositions: Mapping[OpOverload, Callable[..., Any]]
) -> tuple[list[Operation], dict[str, Value], list[Value]]:
    """The operations of a step, the parameters and buffers that it starts from by name, and what it returns."""
    recorder = _Recorder(decompositions)
    parameters, buffers = (
        {name: tensor.clone() if name in step.written else tensor.detach() for name, tensor in tensors.items()}
        for tensors in (step.parameters, step.buffers)
    )
    moving = {name for name in step.written.intersection(buffers) if buffers[name].is_floating_point()}
    with step.alone(lambda tensor: functional(tensor.clone())), enable_python_dispatcher(), recorder:
        leaves = {name: recorder.depending(tensor, name) for name, tensor in parameters.items()}
        for name, tensor in buffers.items():
            leaves[name] = recorder.depending(tensor, name) if name in moving else recorder.value(tensor, name)
        with functionalized():
            inputs = [{name: functional(tensor) for name, tensor in some.items()} for some in (parameters, buffers)]
            outputs = step(inputs[0], inputs[1], batch)
            returned = [recorder.value(plain(output)) for output in outputs.preserved]
    return recorder.operations, leaves, returned


def _living(operations: list[Operation], outputs: Iterable[Value]) -> list[Operation]:
    """The operations that an output needs: dead ones tie axes that nothing uses."""
    needed = set(outputs)
    living = []
    for operation in reversed(operations):
        if not needed.isdisjoint(operation.outputs):
            living.append(operation)
            needed.update(operation.inputs)
    return living[::-1]


_FROM_SHAPE_ALONE = packets("empty_like full_like new_empty new_full new_ones new_zeros ones_like zeros_like")
_UNWRITTEN = packets("empty empty_like empty_strided new_empty new_empty_strided")
_OF_SPARSE = packets("_indices_copy _values_copy indices_copy values_copy crow_indices_copy col_indices_copy")
_NOISE = packets("exponential normal_functional rand rand_like randn randn_like uniform")


class _Recorder(TorchDispatchMode):
    def __init__(self, decompositions: Mapping[OpOverload, Callable[..., Any]]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._decompositions = decompositions
        self._values: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def value(self, tensor: Tensor, name: str | None = None) -> Value:
        """The value of a tensor: a constant where it was not seen before."""
        if tensor not in self._values:
            self._values[tensor] = Value(tuple(tensor.shape), tensor.dtype, constant=tensor, name=name)
        value: Value = self._values[tensor]
        return value

    def depending(self, tensor: Tensor, name: str | None = None) -> Value:
        """A new value that a symmetry may move."""
        value = self._values[tensor] = Value(tuple(tensor.shape), tensor.dtype, name=name)
        return value

    def __torch_dispatch__(
        self, operation: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Tensor, plain, (args, kwargs or {}))
        if operation.namespace == "prim":  # a question about a tensor without memory
            return operation(*args, **kwargs)
        if operation.overloadpacket in _FROM_SHAPE_ALONE:
            args = tree_map(_with_memory, args)
        if operation.overloadpacket in _UNWRITTEN:
            return operation(*args, **kwargs).zero_()  # whatever is in memory would tell positions apart
        with self:
            drawn = typical_draw(operation, args, kwargs)
        if drawn is not None:
            if operation.overloadpacket in _NOISE:
                self.depending(drawn)
            return drawn
        composite = operation._can_decompose() and operation.overloadpacket not in KEPT_WHOLE
        decomposition = self._decompositions.get(operation, operation.decompose if composite else None)
        if decomposition is not None:
            with self:
                result = decomposition(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if operation.overloadpacket in _OF_SPARSE:  # of which there is no kernel
            result = getattr(aten, operation.overloadpacket.__name__.removesuffix("_copy"))(*args).clone()
        else:
            result = operation(*args, **kwargs)
        self._record(operation, args, kwargs, result)
        return result

    def _record(self, operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        given = tree_map(lambda leaf: self.value(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        node = _as_slice(Operation(operation, *given))
        if "batch_norm" in node.name:
            self._move_running_statistics(node)
        depends = operation.overloadpacket not in _FROM_SHAPE_ALONE and any(value.depends for value in node.inputs)
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if not isinstance(tensor, Tensor):
                node.outputs.append(None)
            elif any(tensor is leaf for leaf in tree_leaves((args, kwargs))):
                node.outputs.append(self.value(tensor))
            else:
                value = self.depending(tensor) if depends else self.value(tensor)
                value.source = node
                node.outputs.append(value)
        if depends and operation.namespace != "aten":
            for tensor in written_by(operation, args, kwargs):
                value = self.depending(tensor)
                value.source = node
                node.outputs.append(value)
        self.operations.append(node)

    @staticmethod
    def _move_running_statistics(node: Operation) -> None:
        """Of the buffers only the running statistics of a batch norm move with a symmetry."""
        for value in node.args[3:5]:
            if isinstance(value, Value) and value.name is not None:
                value.constant = None


def _as_slice(lookup: Operation) -> Operation:
    """A lookup by constant indices that follow one another, as the slice that it is; any other as it is."""
    given, indices = (*lookup.args, None, None)[:2]
    if lookup.operation != aten.index.Tensor or len(lookup.inputs) != 2:
        return lookup
    last = lookup.inputs[1].constant
    if last is None or last.dtype != torch.int64 or last.dim() != 1 or not len(last):
        return lookup
    dim = indices.index(lookup.inputs[1])
    numbers = last % given.shape[dim]
    start, stop = int(numbers[0]), int(numbers[0]) + len(numbers)
    follow = torch.equal(numbers, torch.arange(start, stop, device=numbers.device))
    return Operation(aten.slice_copy.Tensor, (given, dim, start, stop), {}) if follow else lookup


def _with_memory(leaf: Any) -> Any:
    """A tensor of the same shape and type whose entries can be read, where they cannot."""
    return torch.zeros((), dtype=leaf.dtype).expand(leaf.shape) if isinstance(leaf, FakeTensor) else leaf


def typical_draw(operation: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What stands for the draw of a random operation: its mean; None for an operation that is not random.

    Normal noise is one standard deviation above its mean: zeros would hide whatever they are multiplied with. Whole
    numbers drawn at random (permutations, indices) have no mean of use and are left as they fall.
    """
    match operation.overloadpacket:
        case aten.native_dropout:
            return args[0], torch.ones_like(args[0], dtype=torch.bool)
        case aten.bernoulli if operation is aten.bernoulli.default:
            return args[0].clone()
        case aten.bernoulli | aten.bernoulli_:
            probability = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            if isinstance(probability, Tensor):
                return args[0].copy_(probability)
            return _filled(operation, args[0], probability)
        case aten.uniform | aten.uniform_:
            low, high = (*args[1:], *(0.0, 1.0)[len(args) - 1 :])[:2]
            return _filled(operation, args[0], (low + high) / 2)
        case aten.normal_ | aten.normal_functional:
            mean, deviation = (*args[1:], *(0.0, 1.0)[len(args) - 1 :])[:2]
            return _filled(operation, args[0], mean + deviation)
        case aten.normal if isinstance(args[0], Tensor) or isinstance(args[1], Tensor):
            return args[0] + args[1]
        case aten.exponential | aten.exponential_:
            return _filled(operation, args[0], 1 / (*args[1:], 1.0)[0])
        case aten.rand_like:
            return torch.full_like(args[0], 0.5)
        case aten.randn_like:
            return torch.ones_like(args[0])
        case aten.rand | aten.randn:
            options = {name: kwargs[name] for name in ("dtype", "device") if kwargs.get(name) is not None}
            return torch.full(args[0], 0.5 if operation.overloadpacket is aten.rand else 1.0, **options)
    return None


def _filled(operation: OpOverload, tensor: Tensor, number: float) -> Tensor:
    return tensor.fill_(number) if operation._schema.is_mutable else torch.full_like(tensor, number)
