"""Verification: rerun the model with its parameters moved by a group, in float64, and compare what it computes.

The labelling only proposes. A proposal is right when a random element of the group, applied at *generic* parameters,
moves them and changes nothing that the model returns. Generic means that every parameter is perturbed by independent
noise: at initialisation much is zero, one or equal, and would let false groups pass. The model itself is rerun, not the
tape, so that routing and control flow are live; whatever in it asks for float32 is given float64.

The step is run on two batches, the second made of the first: see `second_batch`. A group must pass on both.

One copy of the parameters in float64 is all that is held. Groups move it one after the other as long as all pass; what
fails, or must be told apart, is put back by making it anew from the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from lightning_symmetry.stacks import n_stacked, stack_of, unstacked
from lightning_symmetry.symmetry.actions import Misfit, transform
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.halving import passing
from lightning_symmetry.tracing.precision import InFloat64, lifted
from lightning_symmetry.tracing.second_batch import second_batches
from lightning_symmetry.tracing.step import Outputs, Step, Tensors

TOLERANCE = 1e-8
"""The largest change of an output, relative to the largest entry of that output, that passes as rounding."""
MOVEMENT = 1e-2
"""The least relative distance that an element of a group must move the parameters by."""
_STRETCH = 2**18
"""How many entries get their noise at once: so many stay in a processor's cache."""


@dataclass(frozen=True)
class Verified:
    """What became of proposed groups.

    Attributes:
        groups: Those that passed, each with `verified` and `preserves` set.
        rejected: Those that failed, or could not be told from such in as many trials as are made.
        one_batch: Why they were tried on the batch given alone; None where they were tried on a second one too.
    """

    groups: list[SymmetryGroup]
    rejected: list[SymmetryGroup] = field(default_factory=list)
    one_batch: str | None = None


def verify(step: Step, groups: Sequence[SymmetryGroup], seed: int = 0) -> Verified:
    """Sort proposed groups into those that leave the step as it was, and those that do not.

    All are tried jointly; only where that fails, halves are tried until the culprits are alone. Groups that hold only
    as far as the small constant of a norm is zero are tried with that constant as good as zero, and translations that
    may change what `forward` returns, though not the loss, apart from all others. Culprits tend to be of one kind, so
    that sorted by kind fewer halves hold one.
    """
    trials = _Trials(step, groups, seed)
    passed: dict[int, SymmetryGroup] = {}
    one_batch = None
    for exact in (False, True):
        some = sorted((k for k, group in enumerate(groups) if group.exact is exact), key=lambda k: groups[k].kind)
        if some:
            one_batch = trials.begin(exact) or one_batch
            on_first: dict[int, str] = {}
            for suspect in (True, False) if trials.preserves_itself() else ():
                kept = passing([k for k in some if trials.may_move_forward(groups[k]) is suspect], trials.preserves)
                with_output = trials.preserving_forward(kept)
                on_first |= {k: "output" if k in with_output else "loss" for k in kept}
            for k in passing(list(on_first), trials.preserves_on_second):
                passed[k] = replace(groups[k], preserves=on_first[k], verified=True)
    return Verified(
        [passed[k] for k in range(len(groups)) if k in passed],
        [group for k, group in enumerate(groups) if k not in passed],
        one_batch,
    )


@dataclass
class _Trial:
    """What became of groups that were tried together.

    Attributes:
        groups: Which of all groups.
        batch: On which of the batches.
        preserved: Whether they left what the step returns as it was.
        forward: Whether they did what the model's `forward` returned, on the batch given.
    """

    groups: set[int]
    batch: int
    preserved: bool = False
    forward: bool = False


class _Trials:
    """A step at generic parameters, compared with itself at parameters that groups have moved.

    Groups are told by their numbers.
    """

    def __init__(self, step: Step, groups: Sequence[SymmetryGroup], seed: int) -> None:
        self._step = step
        self._groups = groups
        self._seed = seed
        self._elements = Generator().manual_seed(seed)
        self._tensors: Tensors = {
            name: torch.empty_like(tensor, dtype=lifted(tensor.dtype))
            for name, tensor in {**step.parameters, **step.buffers}.items()
        }
        for name in dict.fromkeys(name for group in groups for name in group.tensors if n_stacked(name)):
            stack = self._tensors[name] = stack_of(name, self._tensors)  # its tensors share the memory with it
            self._tensors.update(unstacked(name, stack))
        self._touched = set(self._tensors)
        self._make_generic()
        self._squared_norms = {
            name: _squared_norm(tensor)
            for name, tensor in self._tensors.items()
            if tensor.layout == torch.strided and not _is_whole(tensor)
        }

    def begin(self, exact: bool) -> str | None:
        """Run the step as it is, on the batch given and on the first second one that it accepts.

        Args:
            exact: False to take the small constants of norms as good as zero.

        Returns:
            Why there is no second batch; None where there is one.
        """
        self._precision = InFloat64(exact)
        self._make_generic()
        self._batches = [self._step.batch]
        self._reference = [_kept(self._run(self._step.batch))]
        self._moved: set[int] = set()
        self._forward = self._reference[0].forward
        self._last: _Trial | None = None
        why = None
        for second in second_batches(self._step.batch):
            try:
                reference = _kept(self._run(second))
            except Exception as error:
                why = f"the step fails on another one: {type(error).__name__}: {error}"
                continue
            outputs, others = self._reference[0].preserved, reference.preserved
            if _finite(outputs) and not _finite(others):
                why = "what the step returns is not finite on another one"
            elif _same(others, outputs):
                why = "what the step returns is the same on another one"
            else:
                self._reference.append(reference)
                self._batches.append(second)
                return None
        return why

    def preserves_itself(self) -> bool:
        """Whether the step as it is passes; not where it returns no number at all, and no group could."""
        return all(_same(reference.preserved, reference.preserved) for reference in self._reference)

    def preserves(self, groups: Sequence[int]) -> bool:
        """Whether random elements of all groups move their tensors, and leave what the step returns as it was."""
        return self._try(groups).preserved

    def preserves_on_second(self, groups: Sequence[int]) -> bool:
        """Whether they do on the second batch, where there is one."""
        return len(self._batches) == 1 or self._try(groups, batch=1).preserved

    def preserving_forward(self, groups: Sequence[int]) -> list[int]:
        """Those that leave what the model's `forward` returned as it was; none where the step did not call it."""
        lengths = {length for tensor in self._forward for length in tensor.shape}
        likely_last = sorted(groups, key=lambda k: self._groups[k].size in lengths)
        return passing(likely_last, lambda some: self._try(some).forward) if self._forward else []

    def may_move_forward(self, group: SymmetryGroup) -> bool:
        """Whether it may be a translation of what `forward` returned, as of logits under a softmax."""
        lengths = {tensor.shape[-1] for tensor in self._reference[0].forward if tensor.dim()}
        shapes = (self._tensors[name].shape for name in group.parameters)
        return group.kind == "translation" and any(not lengths.isdisjoint(shape) for shape in shapes)

    def _try(self, groups: Sequence[int], batch: int = 0) -> _Trial:
        """Let random elements move the parameters, and run the step on one of the batches.

        Groups are moved on top of those that have passed, so that nothing is put back as long as all pass: on the first
        batch on top of others, and on the second of some of the same.
        """
        trial = _Trial(set(groups), batch)
        if self._last is not None and (self._last.groups, self._last.batch) == (trial.groups, batch):
            return self._last
        if not (trial.groups >= self._moved if batch else trial.groups.isdisjoint(self._moved)):
            self._put_back()
        if self._move([self._groups[k] for k in groups if k not in self._moved]):
            outputs = _kept(self._run(self._batches[batch]))
            trial.preserved = _same(outputs.preserved, self._reference[batch].preserved)
            trial.forward = not batch and trial.preserved and _same(outputs.forward, self._forward)
            self._forward = self._forward if batch else outputs.forward
        if trial.preserved:
            self._moved |= trial.groups
        else:
            self._put_back()
        self._last = trial
        return trial

    def _move(self, groups: Sequence[SymmetryGroup]) -> bool:
        """Let random elements act; false where one moves nothing, or fits no tensor."""
        self._touched.update(name for group in groups for name in (*group.parameters, *group.buffers))
        try:
            return all(_move(group, self._tensors, self._squared_norms, self._elements) for group in groups)
        except Misfit:
            return False

    def _put_back(self) -> None:
        self._make_generic()
        self._moved.clear()
        self._forward = self._reference[0].forward

    def _make_generic(self) -> None:
        """Make those tensors anew that were touched since they were made."""
        for number, name in enumerate((*self._step.parameters, *self._step.buffers)):
            if name in self._touched:
                original = self._step.parameters.get(name)
                if original is None:
                    self._tensors[name].copy_(self._step.buffers[name])
                else:
                    _make_generic(self._tensors[name], original, self._seed + number)
        self._touched.clear()

    def _run(self, batch: Any) -> Outputs:
        default = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float64)
            return self._run_on(batch)
        finally:
            torch.set_default_dtype(default)

    def _run_on(self, batch: Any) -> Outputs:
        parameters, buffers = (
            {name: self._tensors[name].clone() if name in self._step.written else self._tensors[name] for name in names}
            for names in (self._step.parameters, self._step.buffers)
        )
        with self._step.alone(), self._precision:
            return self._step(parameters, buffers, batch)


def _kept(outputs: Outputs) -> Outputs:
    """The same in memory of its own: a step may return a parameter, or write to the same memory again."""
    own = {id(tensor): tensor.clone() for tensor in (*outputs.preserved, *outputs.forward)}
    return Outputs([own[id(tensor)] for tensor in outputs.preserved], [own[id(tensor)] for tensor in outputs.forward])


def _move(group: SymmetryGroup, tensors: Tensors, squared_norms: Mapping[str, float], generator: Generator) -> bool:
    """Let a random element of a group act, in place: whether it moved the group's tensors far enough.

    Where it acts on each tensor by itself they are moved one after the other, and copied only until it has moved far
    enough, which most have with the smallest. Where the change of one depends on another, all are copied.
    """
    named = (*group.parameters, *group.buffers)
    enough = max(MOVEMENT**2 * sum(squared_norms[name] for name in named), 1e-300)
    distance = 0.0
    if group.folds or group.carried:
        moved = group.transform(tensors, generator)
        for name in named:
            distance += _squared_norm(tensors[name].sub_(moved[name]))
            tensors[name].copy_(moved[name])
        return distance >= enough
    element = group.acts_as.element(group.n_rows, group.size, generator)
    for name in sorted(group.tensors, key=lambda name: tensors[name].numel()):
        before = tensors[name].clone() if distance < enough else None
        for action in group.actions:
            if action.block.tensor == name:
                transform(tensors[name], action, [row for row, _ in group.rows], group.acts_as, element)
        if before is not None:
            distance += _squared_norm(before.sub_(tensors[name]))
    return distance >= enough


def relative_change(moved: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest change of a tensor relative to its largest entry.

    Infinite where shapes, infinities or what is no number differ, and where a tensor holds nothing that is a number.
    """
    worst = 0.0
    for left, right in zip(moved, reference, strict=True):
        if left.shape != right.shape:
            return math.inf
        if right.numel():
            change, scale = _largest(left - right), _largest(right)
            if not math.isfinite(change + scale):
                change, scale = _change_of_numbers(left, right)
            worst = max(worst, change / scale if scale > 0 else change)
    return worst


def _largest(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, math.inf))


def _change_of_numbers(left: Tensor, right: Tensor) -> tuple[float, float]:
    """The largest change of the numbers in a tensor, and the largest of them, where not all of its entries are finite.

    The change is infinite where an infinity changes, or what is no number, and where there are no numbers to change.
    """
    finite = right.isfinite()
    same = left == right
    if finite.any():
        same |= left.isnan() & right.isnan()
    change = _largest(torch.where(same, 0.0, left - right))
    return change if math.isfinite(change) else math.inf, _largest(right[finite]) if finite.any() else 1.0


def _same(moved: Sequence[Tensor], reference: Sequence[Tensor]) -> bool:
    return len(moved) == len(reference) and relative_change(moved, reference) <= TOLERANCE


def _squared_norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor)) ** 2


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _make_generic(generic: Tensor, parameter: Tensor, seed: int) -> None:
    """Fill with a parameter and noise of a tenth of its own size, which is taken to be between 0.3 and 1.

    What is small at initialisation would let false groups pass that change little.
    """
    if _is_whole(parameter):
        generic.copy_(parameter)
        return
    if generic.is_complex():
        generic, parameter = torch.view_as_real(generic), torch.view_as_real(parameter)
    generator = Generator(generic.device).manual_seed(seed)
    size = float(torch.linalg.vector_norm(parameter)) / max(parameter.numel(), 1) ** 0.5
    generic.copy_(parameter)
    for part in generic.as_strided((generic.numel(),), (1,)).split(_STRETCH):
        noise = torch.empty_like(part, dtype=torch.float32).uniform_(-1, 1, generator=generator)
        part.add_(noise, alpha=0.1 * 3**0.5 * min(max(size, 0.3), 1.0))
