"""Verification: rerun the model with its parameters moved by a group, in float64, and compare what it computes.

The labelling only proposes. A proposal is right when a random element of the group, applied at *generic* parameters,
moves them and changes nothing that the model returns. Generic means that every parameter is perturbed by independent
noise: at initialisation much is zero, one or equal, and would let false groups pass. The model itself is rerun, not the
tape, so that routing and control flow are live; whatever in it asks for float32 is given float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Generator, Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.laws import SMALL
from lightning_symmetry.symmetry.step import Outputs, Step, Tensors, cloned, undisturbed
from lightning_symmetry.symmetry.tracing import typical_draw

TOLERANCE = 1e-8
"""The largest change of an output, relative to the largest entry of that output, that passes as rounding."""
MOVEMENT = 1e-2
"""The least relative distance that an element of a group must move the parameters by."""


def verify(
    step: Step, groups: Sequence[SymmetryGroup], seed: int = 0
) -> tuple[list[SymmetryGroup], list[SymmetryGroup]]:
    """Sort proposed groups into those that leave the step as it was, and those that do not.

    All are tried jointly; only where that fails, halves are tried until the culprits are alone. Groups that hold only
    as far as the small constant of a norm is zero are tried with that constant at zero.

    Returns:
        The groups that passed, each with `verified` and `preserves` set, and those that failed.
    """
    generator = Generator().manual_seed(seed)
    parameters = _generic(step.parameters, generator)
    buffers = {name: _lifted(buffer) for name, buffer in step.buffers.items()}
    passed: dict[str, SymmetryGroup] = {}
    for exact in (True, False):
        some = [group for group in groups if group.exact is exact]
        if some:
            trial = _Trial(step, parameters, buffers, _InFloat64(exact), generator)
            kept = _passing(some, trial.preserves)
            with_output = {group.name for group in trial.preserving_forward(kept)}
            for group in kept:
                preserves = "output" if group.name in with_output else "loss"
                passed[group.name] = replace(group, verified=True, preserves=preserves)
    return (
        [passed[group.name] for group in groups if group.name in passed],
        [group for group in groups if group.name not in passed],
    )


class _Trial:
    """A step at generic parameters, to be compared with itself at parameters that groups have moved."""

    def __init__(
        self, step: Step, parameters: Tensors, buffers: Tensors, precision: _InFloat64, generator: Generator
    ) -> None:
        self._step = step
        self._parameters = parameters
        self._buffers = buffers
        self._precision = precision
        self._generator = generator
        self._reference = self._run(parameters, buffers)
        moved = {**parameters, **buffers}.items()
        self._squared_norms = {name: _squared_norm(tensor) for name, tensor in moved if not _is_whole(tensor)}
        self._last: tuple[list[SymmetryGroup], Outputs] | None = None

    def preserves(self, groups: Sequence[SymmetryGroup]) -> bool:
        """Whether random elements of all groups move their tensors, and leave what the step returns as it was."""
        moved = self._moved(groups)
        return moved is not None and _same(moved.preserved, self._reference.preserved)

    def preserving_forward(self, groups: Sequence[SymmetryGroup]) -> list[SymmetryGroup]:
        """Those that leave what the model's `forward` returned as it was; none where the step did not call it."""
        forward = self._reference.forward

        def preserves_forward(some: Sequence[SymmetryGroup]) -> bool:
            moved = self._moved(some)
            return moved is not None and _same(moved.forward, forward)

        return _passing(groups, preserves_forward) if forward else []

    def _moved(self, groups: Sequence[SymmetryGroup]) -> Outputs | None:
        """What the step gives at parameters that random elements have moved; None where one of them moves nothing."""
        if self._last is not None and list(groups) == self._last[0]:
            return self._last[1]
        tensors = {**self._parameters, **self._buffers}
        for group in groups:
            before, tensors = tensors, group.transform(tensors, self._generator)
            if not self._has_moved(group, before, tensors):
                return None
        parameters = {name: tensors[name] for name in self._parameters}
        moved = self._run(parameters, {name: tensors[name] for name in self._buffers})
        self._last = (list(groups), moved)
        return moved

    def _has_moved(self, group: SymmetryGroup, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
        """Whether an element moved the tensors of its group far enough; most have with the first tensor."""
        names = (*group.parameters, *group.buffers)
        enough = max(MOVEMENT**2 * sum(self._squared_norms[name] for name in names), 1e-300)
        moved = accumulate(_squared_norm(after[name] - before[name]) for name in names)
        return any(distance >= enough for distance in moved)

    def _run(self, parameters: Tensors, buffers: Tensors) -> Outputs:
        default = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float64)
            with undisturbed(), self._precision:
                return self._step(cloned(parameters), cloned(buffers), self._step.batch)
        finally:
            torch.set_default_dtype(default)


def _passing(
    groups: Sequence[SymmetryGroup], passes: Callable[[Sequence[SymmetryGroup]], object]
) -> list[SymmetryGroup]:
    if not groups or passes(groups):
        return list(groups)
    middle = len(groups) // 2
    return [*_passing(groups[:middle], passes), *_passing(groups[middle:], passes)] if middle else []


def relative_change(moved: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest change of a tensor relative to its largest entry; infinite where shapes or infinities differ."""
    worst = 0.0
    for left, right in zip(moved, reference, strict=True):
        if left.shape != right.shape:
            return torch.inf
        if right.numel() == 0:
            continue
        change = torch.where(left == right, 0.0, (left - right).abs())
        scale = right[right.isfinite()].abs().max() if right.isfinite().any() else torch.ones(())
        change = change.max() / scale if bool(scale > 0) else change.max()
        worst = max(worst, float(change)) if bool(change.isfinite()) else torch.inf
    return worst


def _same(moved: Sequence[Tensor], reference: Sequence[Tensor]) -> bool:
    return len(moved) == len(reference) and relative_change(moved, reference) <= TOLERANCE


def _squared_norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor)) ** 2


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _generic(parameters: Tensors, generator: Generator) -> Tensors:
    """Perturb every parameter by noise of a tenth of its own size, or of 0.1 where it is smaller than 1."""
    generic = {}
    for name, parameter in parameters.items():
        lifted = _lifted(parameter)
        if not _is_whole(lifted):
            noise = torch.randn(lifted.shape, generator=generator, dtype=lifted.dtype).to(lifted.device)
            lifted = lifted + 0.1 * noise * lifted.abs().square().mean().sqrt().clamp(min=0.1, max=1.0)
        generic[name] = lifted
    return generic


class _InFloat64(TorchDispatchMode):
    """Computes in float64 whatever floating type is given or asked for; random operations act by their mean.

    Args:
        exact: False to take the small constants of norms for zero.
    """

    def __init__(self, exact: bool = True) -> None:
        super().__init__()
        self._exact = exact

    def __torch_dispatch__(
        self, operation: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(_lifted, (args, kwargs or {}))
        drawn = typical_draw(operation, args, kwargs)
        if drawn is None:
            drawn = operation(*(args if self._exact else _without_small_constant(operation, args)), **kwargs)
        return tree_map(_lifted, drawn)


def _without_small_constant(operation: OpOverload, args: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [argument.name for argument in operation._schema.arguments]
    if operation.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
        small = isinstance(args[1], float) and 0 < args[1] <= SMALL
        return (args[0], 0.0, *args[2:]) if small else args
    place = names.index("eps") if "eps" in names and "norm" in operation.name() else len(args)
    return (*args[:place], 0.0, *args[place + 1 :]) if place < len(args) else args


def _lifted(leaf: Any) -> Any:
    """A tensor, or a type, of the same numbers in double precision."""
    if isinstance(leaf, torch.dtype):
        if leaf.is_complex:
            return torch.complex128
        return torch.float64 if leaf.is_floating_point else leaf
    return leaf.to(_lifted(leaf.dtype)) if isinstance(leaf, Tensor) else leaf
