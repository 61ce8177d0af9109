"""What operations of a tape are instead, where their own rules would say less: repeats, picked maps, lengths, ..."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from itertools import chain
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from lightning_symmetry.tracing.layout import SLICED, sliced
from lightning_symmetry.tracing.tape import Operation, Value, made

aten = torch.ops.aten

_SUMMED = {aten.sum.dim_IntList, aten.mean.dim}


def without_repeats(operations: list[Operation], outputs: list[Value]) -> tuple[list[Operation], list[Value]]:
    """What is computed again and again from the same, as a gate in a loop over its experts, computed once.

    Constants stay apart: zeros are scaled as what they are added to, which may be two things.

    Returns:
        The operations, and the values that the outputs are.
    """
    first: dict[tuple[Any, ...], Operation] = {}
    instead: dict[Value, Value] = {}
    written: list[Operation] = []
    for operation in operations:
        changed = _with(operation, instead)
        leaves, structure = tree_flatten((changed.args, changed.kwargs))
        earlier = first.setdefault(
            (changed.operation, str(structure), *((type(leaf), leaf) for leaf in leaves)), changed
        )
        if earlier is not changed and _gives_the_same(earlier, changed):
            pairs = zip(changed.outputs, earlier.outputs, strict=True)
            instead.update((again, once) for again, once in pairs if again is not None and once is not None)
        else:
            written.append(changed)
    return written, [instead.get(output, output) for output in outputs]


def _gives_the_same(earlier: Operation, later: Operation) -> bool:
    """Whether two calls with the same arguments give the same, and the first all that is used of the second."""
    drawn = torch.Tag.nondeterministic_seeded in later.operation.tags
    pairs = zip(earlier.outputs, later.outputs, strict=True)
    return not drawn and all(again is None or (once is not None and again.depends) for once, again in pairs)


def with_picked_maps(operations: list[Operation]) -> list[Operation]:
    """Products of tokens, sorted by their experts, with the map of each expert as those with the map each picks."""
    written: list[Operation] = []
    for operation in operations:
        experts, (output, *_) = _experts(operation), operation.outputs or [None]
        if experts is None or output is None:
            written.append(operation)
            continue
        rows, maps = operation.inputs[:2]
        n_rows, width = rows.shape
        shapes = ((n_rows, *maps.shape[1:]), (n_rows, 1, width), (n_rows, 1, maps.shape[-1]))
        picked, row, product = (Value(shape, rows.dtype) for shape in shapes)
        written.append(made(picked, aten.index.Tensor, maps, [experts]))
        written.append(made(row, aten.unsqueeze_copy.default, rows, 1))
        written.append(made(product, aten.bmm.default, row, picked))
        written.append(made(output, aten.squeeze_copy.dim, product, 1))
    return written


def _experts(operation: Operation) -> Value | None:
    """The experts by which tokens are sorted, of which an operation multiplies each stretch with a map of its own."""
    if "grouped_mm" not in operation.name or len(operation.inputs) != 3:
        return None
    value, way = operation.inputs[2], []
    while value.source is not None and value.source.name in ("_to_copy", "cumsum", "histc"):
        way.append(value.source.name)
        value = value.source.args[0]
    return value if [name for name in way if name != "_to_copy"] == ["cumsum", "histc"] else None


def with_slices_looked_up(operations: list[Operation]) -> list[Operation]:
    """Slices of what was looked up along other dimensions as lookups in slices, as of the weights of an expert.

    ``weights[sent][:, e]`` is ``weights[:, e][sent]``: all experts then are slices of one tensor.
    """
    written: list[Operation] = []
    for operation in operations:
        outputs = operation.outputs if operation.name in SLICED else []
        instead = [each for output in outputs if output is not None for each in _looked_up(operation, output)]
        written += instead or [operation]
    return written


def _looked_up(slicing: Operation, output: Value) -> list[Operation]:
    """A slice of a table, and what is looked up in it; empty where the slice is along what was looked up."""
    picked: Value = slicing.args[0]
    lookup = picked.source
    if lookup is None or lookup.operation != aten.index.Tensor or None in lookup.args[1] or not picked.depends:
        return []
    table, indices = lookup.args
    looked_at = sum(len(index.shape) if index.dtype == torch.bool else 1 for index in indices)
    dim, start, stop, step, kept = sliced(slicing, output)
    dim += len(table.shape) - len(picked.shape)
    if dim < looked_at:
        return []
    shape = list(table.shape)
    shape[dim : dim + 1] = [len(range(start, stop, step))] if kept else []
    part = Value(tuple(shape), table.dtype)
    where = (
        (aten.slice_copy.Tensor, table, dim, start, stop, step) if kept else (aten.select_copy.int, table, dim, start)
    )
    return [made(part, *where), made(output, aten.index.Tensor, part, indices)]


def with_sums(operations: list[Operation], outputs: Iterable[Value]) -> list[Operation]:
    """Sums and means of tensors that were stacked for it, as one added to the other: they share what is added."""
    uses = _uses(operations, outputs)
    written: list[Operation] = []
    for operation in operations:
        stacking = _stacking(operation) if operation.operation in _SUMMED else []
        if stacking and all(uses[each.outputs[0]] == 1 for each in stacking):
            written = [each for each in written if each not in stacking]
            written += _added(stacking[-1].inputs, operation)
        else:
            written.append(operation)
    return written


def _uses(operations: Iterable[Operation], outputs: Iterable[Value]) -> Counter[Value | None]:
    """How often each tensor is read; once more where it is an output."""
    return Counter(chain(outputs, *(operation.inputs for operation in operations)))


def _stacking(total: Operation) -> list[Operation]:
    """The operations that stack the tensors of which a sum is made, the last first; empty where none do.

    Along the first dimension they are laid side by side and viewed apart, along another each has one position.
    """
    stack, dims = total.args[:2]
    last = stack.source
    first = last.args[0].source if last is not None and last.name == "view" else last
    if first is None or first.operation != aten.cat.default or dims is None or len(dims) != 1 or not stack.shape:
        return []
    shapes = {value.shape for value in first.inputs}
    dim, along = dims[0] % len(stack.shape), (*first.args[1:], 0)[0]
    if first is last:
        stacked = dim == along % len(stack.shape) and all(shape[dim] == 1 for shape in shapes)
    else:
        stacked = (dim, along) == (0, 0) and shapes == {stack.shape[1:]}
    return list(dict.fromkeys([last, first])) if stacked else []


def _added(values: list[Value], total: Operation) -> list[Operation]:
    """The sum or the mean of tensors, one added to the other."""
    (output,) = total.outputs
    assert output is not None
    written: list[Operation] = []
    for value in values[1:]:
        so_far = written[-1].outputs[0] if written else values[0]
        written.append(made(Value(value.shape, value.dtype), aten.add.Tensor, so_far, value))
    if total.operation == aten.mean.dim:
        mean = Value(values[0].shape, values[0].dtype)
        written.append(made(mean, aten.mul.Tensor, written[-1].outputs[0], 1 / len(values)))
    return [*written, made(output, aten.view.default, written[-1].outputs[0], list(output.shape))]


def with_lengths(operations: list[Operation], outputs: Iterable[Value]) -> list[Operation]:
    """Sums and means of squares by way of lengths, and those of products as contractions.

    What is summed over all of an axis at once is looked at together.
    """
    uses = _uses(operations, outputs)
    written: list[Operation] = []
    for operation in operations:
        alone = operation.operation in _SUMMED and operation.inputs and uses[operation.inputs[0]] == 1
        product = operation.inputs[0].source if alone else None
        instead = _in_one(product, operation) if product is not None and operation.outputs[0] is not None else []
        if instead:
            written.remove(product)  # type: ignore[arg-type]
        written += instead or [operation]
    return written


def without_offsets(
    operations: list[Operation], leaves: Mapping[str, Value], outputs: Set[Value]
) -> tuple[list[Operation], dict[str, float]]:
    """Leaves with the number that is added to each wherever it is read, as to a gain kept as its difference from one.

    Returns:
        The operations without those that add the numbers, and the numbers by the names of leaves.
    """
    names = {value: name for name, value in leaves.items() if value.depends}
    added: defaultdict[str, set[float | None]] = defaultdict(set)
    for operation in operations:
        for value in operation.inputs:
            if value in names and operation.name == "_to_copy":
                names.update((output, names[value]) for output in operation.outputs if output is not None)
            elif value in names:
                added[names[value]].add(_number_added(operation) if outputs.isdisjoint(operation.outputs) else None)
    offsets = {name: number for name, (number, *others) in added.items() if number is not None and not others}
    instead: dict[Value, Value] = {}
    written = []
    for operation in operations:
        output = operation.outputs[0] if operation.outputs else None
        given = names.get(operation.inputs[0]) if operation.inputs else None
        if output is not None and output not in names and given in offsets:
            instead[output] = operation.inputs[0]
        else:
            written.append(_with(operation, instead))
    return written, offsets


def _with(operation: Operation, instead: Mapping[Value, Value]) -> Operation:
    """An operation that reads other values instead of some."""
    if instead.keys().isdisjoint(operation.inputs):
        return operation
    given = (operation.args, dict(operation.kwargs))
    args, kwargs = tree_map(lambda leaf: instead.get(leaf, leaf) if isinstance(leaf, Value) else leaf, given)
    changed = Operation(operation.operation, args, kwargs, operation.outputs)
    for output in operation.outputs:
        if output is not None:
            output.source = changed
    return changed


def _number_added(operation: Operation) -> float | None:
    """The number that an operation adds to a tensor, if that is all that it does."""
    is_sum = operation.operation == aten.add.Tensor and not operation.kwargs and len(operation.inputs) == 1
    number = operation.args[1] if is_sum else None
    return float(number) if isinstance(number, (int, float)) else None


def _in_one(product: Operation, total: Operation) -> list[Operation]:
    """A product and its sum or mean as a length or a contraction; empty where it is neither."""
    (output,) = total.outputs
    assert output is not None
    square = _squared(product)
    if square is not None and square.depends:
        length = Value(output.shape, output.dtype)
        norm = made(length, aten.linalg_vector_norm.default, square, 2, *total.args[1:3])
        return [norm, made(output, aten.pow.Tensor_Scalar, length, 2)]
    factors = product.inputs if product.operation == aten.mul.Tensor else []
    alike = len(factors) == 2 and factors[0].shape == factors[1].shape and all(value.depends for value in factors)
    if alike and total.args[1] in ([-1], [len(factors[0].shape) - 1]) and not total.args[2:]:
        return [made(output, aten.linalg_vecdot.default, *factors)]
    return []


def _squared(operation: Operation) -> Value | None:
    """The tensor that an operation squares."""
    first, second = (*operation.args, None, None)[:2]
    is_square = operation.operation == aten.pow.Tensor_Scalar and second == 2
    return first if is_square or (operation.operation == aten.mul.Tensor and first is second) else None
