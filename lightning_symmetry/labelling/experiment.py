"""Ask an operation that has no axis rule by experiment which dimensions of its tensors are one axis.

The call is run again on random numbers in float64, with the positions along some dimensions of its inputs permuted, all
alike. Where every output comes out permuted along some of its dimensions, and unchanged otherwise, all these dimensions
are one axis: of ``custom_matmul(x, w)`` the columns of ``x`` and the rows of ``w``, which leave the output as it was.
The fewest dimensions that pass are tied. A transposition and a cycle generate every permutation, so these are tried,
and at two points. What passes in no company is told apart: the steps of a recurrence, the parts of a fused map.

The answer is a rule in the language of all others, and a part of what one who knows the operation would write: it has
no products, no concatenations and no indices; dimensions that are such are told apart.

No answer comes from an operation that is random, that writes into its inputs, or that gives no numbers at random
inputs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_symmetry.tracing.step import undisturbed
from lightning_symmetry.tracing.tape import Operation, Value

Dimension = tuple[int, int]
"""The number of a tensor, outputs counted on after inputs, and one of its dimensions."""
Letter = tuple[Dimension, ...]
"""The dimensions that are one axis."""
Draw = Callable[..., Tensor]

LARGE, TOO_LARGE = 2**16, 2**22
"""With more entries in all inputs than the first a call is tried shrunk; with more than the second only so."""
RUNS = 500
"""How often one call is run at most; what was not found out by then is told apart."""


def rule_by_experiment(operation: Operation) -> str | None:
    """The axis rule that a call of an operation keeps, as far as it can be found out; None where it gives no answer."""
    shapes = [value.shape for value in operation.inputs]
    entries = sum(map(math.prod, shapes))
    sizes = [shrunk for shrunk in [_shrunk(shapes)] if entries > LARGE] + [{} for _ in range(entries <= TOO_LARGE)]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = [torch.device("cpu"), *([accelerator] if accelerator is not None else [])]
    with undisturbed():
        for shrunk, device, draw in product(sizes, devices, (torch.randn, torch.rand, _above_one)):
            try:
                return _Experiment(operation, draw, shrunk, device).rule()
            except Exception:  # whatever an operation raises: it does not take these numbers
                continue
    return None


def _above_one(*shape: Sequence[int], **settings: Any) -> Tensor:
    return 1 + torch.rand(*shape, **settings)


def _shrunk(shapes: Sequence[Sequence[int]]) -> Mapping[int, int]:
    """Small sizes to stand for large ones, none of which is another size already."""
    sizes = sorted(set(chain.from_iterable(shapes)))
    small = (size for size in range(5, 5 + 2 * len(sizes)) if size not in sizes)
    return {size: next(small) for size in sizes if size > 5 + 2 * len(sizes)}


@dataclass(frozen=True)
class _Point:
    """Inputs of a call, and its outputs there."""

    inputs: list[Tensor]
    outputs: list[Tensor]


class _Experiment:
    """A call that is run at two points, with its inputs permuted.

    Args:
        operation: The call.
        draw: What draws numbers: not every function is defined below zero, or above one.
        sizes: What some sizes are shrunk to.
        device: Where the call is run.

    Raises:
        ValueError: The operation is random, writes into its inputs, or gives no numbers.
    """

    def __init__(self, operation: Operation, draw: Draw, sizes: Mapping[int, int], device: torch.device) -> None:
        if operation.operation._schema.is_mutable:
            raise ValueError("it writes into its inputs")
        self._operation = operation
        self._sizes = sizes
        self._device = device
        self._generator = Generator().manual_seed(0)
        self._runs = 0
        self._points = [self._point(draw), self._point(draw)]
        self._shapes = [tensor.shape for tensor in (*self._points[0].inputs, *self._points[0].outputs)]
        self._n_inputs = len(operation.inputs)
        expected = [self._resized(output.shape) for output in operation.outputs if output is not None]
        if list(map(tuple, self._shapes[self._n_inputs :])) != expected or not all(map(math.prod, self._shapes)):
            raise ValueError("no entries, or outputs of another shape")

    def rule(self) -> str:
        """The rule that the call keeps."""
        letters = list(self._letters())
        names = {dimension: f"a{number}" for number, letter in enumerate(letters) for dimension in letter}
        patterns = [
            " ".join("1" if size == 1 else names.get((number, dim), "_") for dim, size in enumerate(shape))
            for number, shape in enumerate(self._shapes)
        ]
        hidden = dict.fromkeys(filter(None, (self._within(letter, letters, names) for letter in letters)))
        within = f"; {', '.join(hidden)}" if hidden else ""
        return f"{', '.join(patterns[: self._n_inputs])} -> {', '.join(patterns[self._n_inputs :])}{within}"

    def _letters(self) -> Iterator[Letter]:
        """The axes: of each size, the fewest dimensions of the inputs that may be permuted together."""
        free = defaultdict(list)
        for number, shape in enumerate(self._shapes[: self._n_inputs]):
            for dim, size in enumerate(shape):
                free[size].append((number, dim))
        free.pop(1, None)
        for size, dimensions in free.items():
            for count in range(1, len(dimensions) + 1):
                for together in combinations(tuple(dimensions), count):
                    if set(together) <= set(dimensions) and self._runs < RUNS:
                        came_out = self._came_out(together, size)
                        if came_out is not None:
                            free[size] = dimensions = [one for one in dimensions if one not in together]
                            yield (*together, *came_out)

    def _came_out(self, together: Letter, size: int) -> Letter | None:
        """The dimensions along which the outputs come out permuted; None where no permutation explains them.

        An output that is the same along a dimension does not tell whether it is permuted along it: that is no answer.
        """
        options = [
            list(_subsets([dim for dim, length in enumerate(shape) if length == size]))
            for shape in self._shapes[self._n_inputs :]
        ]
        for point, order in product(self._points, self._orders(size)):
            outputs = self._run([_permuted(tensor, _dims(together, k), order) for k, tensor in enumerate(point.inputs)])
            for possible, before, after in zip(options, point.outputs, outputs, strict=True):
                possible[:] = [dims for dims in possible if _same(_permuted(before, dims, order), after)]
            if not all(options):
                return None
        if any(len(possible) > 1 for possible in options):
            return None
        return tuple((self._n_inputs + k, dim) for k, (dims,) in enumerate(options) for dim in dims)

    def _within(self, letter: Letter, letters: Sequence[Letter], names: Mapping[Dimension, str]) -> str | None:
        """A tensor within the call that holds an axis, and beside it only those by whose positions it may be permuted.

        None where these are all that are beside it in every tensor that holds it.
        """
        holding = {number for number, _ in letter}
        beside = [other for other in letters if other != letter and holding <= {number for number, _ in other}]
        rows = [other for other in beside if self._permutes_by_row(letter, other)]
        own = [(k, dim) for k in holding if len(holding) == 1 for dim, size in enumerate(self._shapes[k]) if size > 1]
        alone = any(dimension not in names for dimension in own)  # what is told apart is an axis of one tensor only
        return None if rows == beside and not alone else " ".join(sorted(names[one[0]] for one in (letter, *rows)))

    def _permutes_by_row(self, letter: Letter, row: Letter) -> bool:
        """Whether an axis may be permuted at the first position of another by itself."""
        number, dim = letter[0]
        tensors = {number for number, _ in letter}
        if self._runs > RUNS or any(len(_dims(one, k)) != 1 for one in (letter, row) for k in tensors):
            return False
        for point, order in product(self._points, self._orders(self._shapes[number][dim])):
            before = [*point.inputs, *point.outputs]
            after = [_permuted(tensor, _dims(letter, k), order, *_dims(row, k)[:1]) for k, tensor in enumerate(before)]
            outputs = self._run(after[: self._n_inputs])
            if not all(map(_same, after[self._n_inputs :], outputs)):
                return False
        return True

    def _orders(self, size: int) -> list[Tensor]:
        """A random order, which most fail, and a transposition and a cycle, which generate all."""
        cycle = torch.arange(size).roll(1)
        transposition = torch.tensor([1, 0, *range(2, size)])
        shuffled = torch.randperm(size, generator=self._generator)
        return [order.to(self._device) for order in ([cycle] if size == 2 else [shuffled, transposition, cycle])]

    def _point(self, draw: Draw) -> _Point:
        inputs = [self._input(value, draw) for value in self._operation.inputs]
        outputs = self._run(inputs)
        if not all(map(_same, outputs, self._run(inputs))) or any(bool(output.isnan().any()) for output in outputs):
            raise ValueError("random, or no numbers")
        return _Point(inputs, outputs)

    def _input(self, value: Value, draw: Draw) -> Tensor:
        """Random numbers for what a parameter reaches; what it does not reach stays what it was."""
        shape = self._resized(value.shape)
        if value.constant is not None:
            tensor = value.constant[tuple(map(slice, shape))].to(self._device)
            return tensor.double() if tensor.is_floating_point() else tensor.clone()
        if not (value.dtype.is_floating_point or value.dtype.is_complex):
            raise ValueError("whole numbers that depend on parameters")
        dtype = torch.complex128 if value.dtype.is_complex else torch.float64
        return draw(shape, generator=self._generator, dtype=dtype).to(self._device)

    def _resized(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._sizes.get(size, size) for size in shape)

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that the call returns."""
        self._runs += 1
        copies = [tensor.clone() for tensor in inputs]
        rest = iter(copies)
        args, kwargs = tree_map(
            lambda leaf: next(rest) if isinstance(leaf, Value) else self._argument(leaf),
            (self._operation.args, dict(self._operation.kwargs)),
        )
        returned = self._operation.operation(*args, **kwargs)
        if not all(map(torch.equal, copies, inputs)):
            raise ValueError("it writes into its inputs")
        return [leaf.clone() for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]

    def _argument(self, leaf: object) -> object:
        return self._sizes.get(leaf, leaf) if isinstance(leaf, int) and not isinstance(leaf, bool) else leaf


def _dims(letter: Letter, number: int) -> list[int]:
    """The dimensions of one tensor that are an axis."""
    return [dim for of, dim in letter if of == number]


def _permuted(tensor: Tensor, dims: Sequence[int], order: Tensor, row: int | None = None) -> Tensor:
    """A tensor with its positions along some dimensions in another order; at the first position of a row alone."""
    permuted = tensor
    for dim in dims:
        permuted = permuted.index_select(dim, order)
    if row is None or not dims:
        return permuted
    mixed = tensor.clone()
    mixed.select(row, 0).copy_(permuted.select(row, 0))
    return mixed


def _same(left: Tensor, right: Tensor) -> bool:
    if not (left.is_floating_point() or left.is_complex()):
        return torch.equal(left, right)
    scale = left[left.isfinite()].abs().max() if bool(left.isfinite().any()) else torch.ones(())
    return left.shape == right.shape and torch.allclose(left, right, rtol=0.0, atol=1e-10 * float(scale))


def _subsets(dims: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(dims, count) for count in range(len(dims) + 1))
