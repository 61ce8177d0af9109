"""The symmetry groups of a model."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from itertools import chain
from typing import Any, cast, get_args, get_type_hints, overload

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor
from torch.autograd import forward_ad

from lightning_symmetry.stacks import Stacked, first_of, unstacked
from lightning_symmetry.symmetry.actions import Action, Block, Carried, Fold, carry, derive, transform
from lightning_symmetry.symmetry.kinds import FORMS, KINDS, Kind


@dataclass(frozen=True)
class SymmetryGroup:
    """A group of transformations of a model's parameters that leave what the model computes unchanged.

    Attributes:
        kind: What its elements do: ``"permutation"`` exchanges units, ``"sign"`` flips them, ``"rescaling"`` multiplies
            them by positive numbers, ``"rotation"`` mixes them linearly, all of GL(n), ``"scale"`` multiplies what a
            norm divides by its size, ``"translation"`` adds what a norm or another bias takes away
            (arXiv:2502.05300).
        name: Where it acts, after the first parameter that it moves; unique within a model.
        axis: The axis that it acts on.
        size: The number of units n along the axis.
        rows: The axes at whose every position it acts by itself, with their sizes: units within each head.
        actions: What it does to each part of the parameters and buffers that it moves.
        parameters: The names of the parameters that it moves.
        buffers: The names of the buffers that move with them: running statistics.
        preserves: What it leaves as it was: ``"output"``; ``"loss"`` where what `forward` returns changes (of a mapping
            its ``"logits"``, if it holds any), or where the step did not call it.
        form: Which mixtures a rotation is, all of GL(n) where it is empty: ``"orthogonal"``, SO(n), or ``"orthogonal,
            mean kept"``, those of SO(n) that keep the mean over the units.
        carried: What a translation does, through linear maps, to parameters of other axes.
        folds: What is folded into other parameters before it acts, and unfolded after.
        exact: False where it holds only as far as the small constant of a norm is zero.
        verified: True where a random element was tried on the model in float64; None where it was too large to try.
    """

    kind: str
    name: str
    axis: str
    size: int
    rows: tuple[tuple[str, int], ...]
    actions: tuple[Action, ...] = field(repr=False)
    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()
    form: str = ""
    carried: tuple[Carried, ...] = field(default=(), repr=False)
    folds: tuple[Fold, ...] = field(default=(), repr=False)
    preserves: str = "output"
    exact: bool = True
    verified: bool | None = None

    @property
    def dimension(self) -> int:
        """The dimension of its Lie algebra; 0 for a discrete group."""
        return self.n_rows * self.acts_as.dimension(self.size)

    @property
    def acts_as(self) -> Kind:
        """How its elements are drawn, and act on a block."""
        return FORMS[self.form] if self.form else KINDS[self.kind]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The parts of the parameters and buffers that it moves."""
        return tuple(action.block for action in self.actions)

    @property
    def actions_on_parameters(self) -> tuple[Action, ...]:
        """What it does to parts of parameters, and not of buffers."""
        return tuple(action for action in self.actions if first_of(action.block.tensor) not in self.buffers)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all tensors that it changes, if only for a time; stacks by names of their own."""
        changed = (*self.blocks, *(each.block for each in self.carried))
        folded = (name for fold in self.folds for name in fold.tensors)
        return tuple(dict.fromkeys((*(block.tensor for block in changed), *folded)))

    @property
    def n_rows(self) -> int:
        """In how many rows it acts by itself."""
        return math.prod(length for _, length in self.rows)

    def transform(self, tensors: Mapping[str, Tensor], generator: Generator | None = None) -> dict[str, Tensor]:
        """Apply one random element, never the identity where it may move something.

        A gain of zero that is folded hides what stands behind it: the element is one that leaves this as it is.

        Args:
            tensors: The model's parameters and buffers by name; those that the group does not move may be missing.
            generator: The source of randomness, on the CPU.

        Returns:
            The same mapping with the tensors that moved replaced; none is changed in place.

        Raises:
            KeyError: A tensor that the group moves is missing.
        """
        given, tensors = tensors, Stacked(tensors)
        element = self._element(tensors, generator)
        moved, folded = self._folded(tensors)
        for action in self.actions:
            transform(moved[action.block.tensor], action, [row for row, _ in self.rows], self.acts_as, element)
        self._carry(moved, moved, element)
        self._unfold(moved, folded)
        return {**given, **self._by_name(moved)}

    def tangent(self, tensors: Mapping[str, Tensor], generator: Generator | None = None) -> dict[str, Tensor]:
        """One random direction of the Lie algebra at a point: zeros for a discrete group.

        Args:
            tensors: The model's parameters and buffers by name.
            generator: The source of randomness, on the CPU.

        Returns:
            A tensor of the same shape for each parameter and buffer that the group moves.
        """
        kind = self.acts_as
        if kind.direction is None:
            return {name: torch.zeros_like(tensors[name]) for name in (*self.parameters, *self.buffers)}
        return self.tangent_along(tensors, kind.direction(self.n_rows, self.size, generator))

    def tangent_along(self, tensors: Mapping[str, Tensor], direction: Tensor) -> dict[str, Tensor]:
        """How the tensors begin to move along a direction of the Lie algebra of a continuous group: linear in it.

        What lies outside of the Lie algebra, and what would move something behind a gain of zero, is left out.

        Args:
            tensors: The model's parameters and buffers by name.
            direction: A number for each unit, ``(n_rows, n)``, or a matrix, ``(n_rows, n, n)``, of a rotation.

        Returns:
            As `tangent`.
        """
        tensors = Stacked(tensors)
        free = self._free(tensors)
        direction = self.acts_as.nearest(direction.to(free.device), free)
        moved, folded = self._folded(tensors) if self.folds else (tensors, [])
        tangent = {name: torch.zeros_like(moved[name]) for name in self.tensors}
        for action in self.actions:
            name = action.block.tensor
            derive(moved[name], tangent[name], action, [row for row, _ in self.rows], self.acts_as, direction)
        self._carry(tangent, moved, direction)
        if folded:
            with forward_ad.dual_level():
                dual = {name: forward_ad.make_dual(moved[name].clone(), change) for name, change in tangent.items()}
                self._unfold(Stacked({**moved, **dual}), folded)
                tangent = {name: forward_ad.unpack_dual(tensor).tangent for name, tensor in dual.items()}
        return self._by_name(tangent)

    def _by_name(self, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters and buffers among tensors of its own, those of stacks apart."""
        by_name = dict(chain.from_iterable(unstacked(name, changed[name]) for name in self.tensors))
        return {name: by_name[name] for name in (*self.parameters, *self.buffers)}

    def _element(self, tensors: Mapping[str, Tensor], generator: Generator | None) -> Tensor:
        """A random element of those that move no unit but such as are free."""
        kind = self.acts_as
        free = self._free(tensors).nonzero().flatten().cpu()
        if len(free) == self.size:
            return kind.element(self.n_rows, self.size, generator)
        element = kind.identity(self.n_rows, self.size)
        if len(free) and kind.dimension(len(free)):
            among = (free,) if kind.order == 1 else (free[:, None], free)
            element[:, *among] = kind.element(self.n_rows, len(free), generator)
        return element

    def _free(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Which units may move, ``(n,)``: a rotation spares those behind a gain of zero, a mean is fixed by any."""
        free = torch.ones(self.size, dtype=torch.bool)
        for fold in self.folds:
            reached = fold.reached(tensors)
            free = free.to(reached.device) & (reached if self.acts_as.order == 2 else reached.all())
        return free

    def _folded(self, tensors: Mapping[str, Tensor]) -> tuple[Stacked, list[Tensor]]:
        """The tensors, those that change copied and folded, and the elements of the folds."""
        moved = Stacked({**tensors, **{name: tensors[name].clone() for name in self.tensors}})
        elements = [fold.element(tensors) for fold in self.folds]
        for fold, element in zip(self.folds, elements, strict=True):
            fold.apply(moved, element)
        return moved, elements

    def _unfold(self, moved: Mapping[str, Tensor], elements: Sequence[Tensor]) -> None:
        for fold, element in zip(reversed(self.folds), reversed(elements), strict=True):
            fold.apply(moved, fold.inverse(element))

    def _carry(self, moved: Mapping[str, Tensor], tensors: Mapping[str, Tensor], element: Tensor) -> None:
        """Add to the tensors of other axes what the vectors of a translation become through linear maps."""
        axes = [*(row for row, _ in self.rows), self.axis]
        for each in self.carried:
            vector = element.reshape(*(length for _, length in self.rows), self.size)
            carry(moved[each.block.tensor], each, tensors, axes, vector)

    def to_dict(self) -> dict[str, Any]:
        """The group in plain types, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SymmetryGroup:
        """The group that `to_dict` wrote, also after a way through JSON."""
        return cast(SymmetryGroup, _read(cls, plain))


_hints = cache(get_type_hints)


def _read(kind: Any, plain: Any) -> Any:
    """What `asdict` wrote of a value of this type: JSON knows neither dataclasses nor tuples."""
    if isinstance(kind, type) and is_dataclass(kind):
        return kind(**{key: _read(_hints(kind)[key], value) for key, value in plain.items()})
    if isinstance(plain, (list, tuple)):
        of_each = next(iter(get_args(kind)), None)
        return tuple(_read(of_each, each) for each in plain)
    return plain


@dataclass(frozen=True)
class Symmetries(Sequence[SymmetryGroup]):
    """The symmetry groups that were found in a model; prints as a table.

    Attributes:
        groups: The groups, in the order of the parameters that they move first.
        blocks: The partition of every parameter along the model's axes, those included that no group acts on.
        share: The share of the parameters' entries that at least one group moves, from 0 to 1.
        rejected: The names of groups that were proposed, but changed what the model computes, or could not be told from
            such in as many runs as are made.
        without_rule: The operations whose axes could not be followed, with how many axes each leaves out: what they
            touch is taken to have no symmetry.
        one_batch: Why the groups were verified on one batch alone; None where they were on a second one too.
    """

    groups: tuple[SymmetryGroup, ...]
    blocks: tuple[Block, ...] = ()
    share: float = 0.0
    rejected: tuple[str, ...] = ()
    without_rule: Mapping[str, int] = field(default_factory=dict)
    one_batch: str | None = None

    @overload
    def __getitem__(self, index: int) -> SymmetryGroup: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SymmetryGroup, ...]: ...
    def __getitem__(self, index: int | slice) -> SymmetryGroup | tuple[SymmetryGroup, ...]:
        return self.groups[index]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[SymmetryGroup]:
        return iter(self.groups)

    def select(self, keep: Sequence[SymmetryGroup]) -> Symmetries:
        """The same findings with only some of the groups."""
        return replace(self, groups=tuple(keep))

    def __repr__(self) -> str:
        table = Table(box=box.SIMPLE, pad_edge=False)
        for heading in ("kind", "name", "units", "moves", "verified"):
            table.add_column(heading, justify="right" if heading == "units" else "left", no_wrap=True)
        for group in self.groups:
            units = " x ".join(str(length) for length in (*(length for _, length in group.rows), group.size))
            moves = "1 parameter" if len(group.parameters) == 1 else f"{len(group.parameters)} parameters"
            table.add_row(group.kind, group.name, units, moves, _verdict(group))
        lines = io.StringIO()
        Console(file=lines, width=200).print(table)
        count = "1 group moves" if len(self) == 1 else f"{len(self)} groups move"
        lines.write(f"{count} {self.share:.1%} of the parameters")
        if self.rejected:
            lines.write(f"; {len(self.rejected)} proposed and rejected: {_listed(self.rejected)}")
        if self.without_rule:
            left_out = [f"no rule for {name}: {count} axes left out" for name, count in self.without_rule.items()]
            lines.write(f"; {_listed(left_out)}")
        if self.one_batch is not None:
            lines.write(f"; verified on one batch alone: {self.one_batch}")
        return lines.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """The findings in plain types, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Symmetries:
        """The findings that `to_dict` wrote, also after a way through JSON."""
        return cast(Symmetries, _read(cls, plain))


def _verdict(group: SymmetryGroup) -> str:
    """Whether a group was verified, and what to keep in mind of it."""
    loss, small = ["loss only"] * (group.preserves == "loss"), ["at eps = 0"] * (not group.exact)
    return ", ".join(["yes" if group.verified else "not tried", *loss, *small])


def _listed(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
