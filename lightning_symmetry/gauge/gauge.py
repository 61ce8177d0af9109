"""The gauge: one representative of all parameters that the continuous symmetries of a model make equivalent.

Distances between units depend on how units elsewhere are scaled, shifted and mixed, which changes nothing that the
model computes. So they are taken at one point of the orbit. A `Gauge` says which: a number for each unit and a small
matrix for each rotation, applied to a block of a parameter when that is read. It changes no tensor of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_symmetry.symmetry.actions import Action, Block, along

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Acting:
    """That a group acts along some dimensions of a tensor: by exp(degree x l), or by a matrix for each row.

    Attributes:
        by: The name of the group.
        degree: The degree.
        dims: The dimensions of the tensor: the rows of the group, then its units; none for tensors scaled as wholes.
    """

    by: str
    degree: float
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Centred:
    """A mean taken away along a dimension: of the entries, or of them times a gain that is not folded away."""

    dim: int
    gain: Block | None


@dataclass(frozen=True)
class Gauge:
    """How to read the representative off the parameters. Made by `find_gauge`.

    Attributes:
        scaled: By what each block is scaled.
        mixed: Which rotations in GL(n) act on each block.
        centred: The means that are taken away from a block.
        translations: The translations that move each tensor.
        shifts: What each translation adds, ``(n_rows, n)``.
        received: Biases with all that others have folded into them.
        absorbed: The blocks of biases that are folded away.
        levels: To what the scales of each group are balanced, ``(*rows, n)``.
        logarithms: Of the scale of each unit of a group, ``(*rows, n)``.
        signs: The sign of each unit that a fold brings.
        living: Which units of a group are not dead.
        mixtures: For each rotation, by what to multiply from the left in blocks of degree 1 and -1, ``(*rows, n, n)``.
        folded: The blocks of gains that are folded away.
        resolved: The names of the sign groups that folds have left nothing of.
        steps: How many steps of Newton's method it took to find.
    """

    scaled: Mapping[Block, tuple[Acting, ...]] = field(default_factory=dict)
    mixed: Mapping[Block, tuple[Acting, ...]] = field(default_factory=dict)
    centred: Mapping[Block, tuple[Centred, ...]] = field(default_factory=dict)
    translations: Mapping[str, tuple[tuple[str, Action, tuple[str, ...]], ...]] = field(default_factory=dict)
    shifts: Mapping[str, Tensor] = field(default_factory=dict)
    received: Mapping[str, Tensor] = field(default_factory=dict)
    absorbed: frozenset[Block] = frozenset()
    levels: Mapping[str, Tensor] = field(default_factory=dict)
    logarithms: Mapping[str, Tensor] = field(default_factory=dict)
    signs: Mapping[str, Tensor] = field(default_factory=dict)
    living: Mapping[str, Tensor] = field(default_factory=dict)
    mixtures: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    folded: frozenset[Block] = frozenset()
    resolved: frozenset[str] = frozenset()
    steps: int = 0

    def of(self, block: Block, tensors: Tensors, unmixed: str = "") -> Tensor:
        """A block of the parameters at the representative; the model's own memory where nothing acts on it.

        Args:
            block: The block.
            tensors: The model's parameters and buffers by name.
            unmixed: The name of a rotation to leave out.
        """
        tensor, own = self._shifted(block.tensor, tensors)
        part, centred = block.of(tensor), self.centred.get(block, ())
        scaled = [(factors, each.dims) for each in self.scaled.get(block, ()) for factors in self._factors(each)]
        if not own and (centred or scaled):
            part = part.clone()  # one copy, and all else in place: of an embedding each is a good part of a model
        for mean in centred:
            if mean.gain is not None:
                dims = (*(block.dims(row)[0] for row in mean.gain.named[:-1]), mean.dim)
                gain = spread(mean.gain.along_named(tensors[mean.gain.tensor]).to(part), dims, part.ndim)
                part -= (part * gain).mean(mean.dim, keepdim=True) * torch.where(gain == 0, 0.0, 1 / gain)
        for factors, dims in scaled:
            part *= spread(factors.to(part), dims, part.ndim)
        for mean in centred:
            if mean.gain is None:
                part -= part.mean(mean.dim, keepdim=True)
        for each in self.mixed.get(block, ()):
            if each.by in self.mixtures and each.by != unmixed:
                in_front = tuple(range(len(each.dims)))
                front = part.movedim(each.dims, in_front)
                matrices = self.mixtures[each.by][each.degree < 0].to(part)
                mixed = matrices @ front.reshape(*front.shape[: len(each.dims)], -1)
                part = mixed.reshape(front.shape).movedim(in_front, each.dims)
        return part

    def _factors(self, each: Acting) -> Iterator[Tensor]:
        if each.by in self.logarithms:
            yield (each.degree * self.logarithms[each.by]).exp()
        if each.by in self.living:
            yield self.living[each.by]
        if each.by in self.signs:
            yield self.signs[each.by]

    def _shifted(self, name: str, tensors: Tensors) -> tuple[Tensor, bool]:
        """A tensor after all shifts, and whether its memory is its own."""
        if name in self.received:
            return self.received[name].to(tensors[name].dtype), False
        acting = [each for each in self.translations.get(name, ()) if each[0] in self.shifts]
        shifted = tensors[name].clone() if acting else tensors[name]
        for group, action, rows in acting:
            for part, degree in along(shifted, action, rows):
                shift = self.shifts[group].to(shifted).reshape([part.block.shape[dim] for dim in part.dims])
                part.block.add_(spread(shift, part.dims, part.block.ndim), alpha=degree)
        return shifted, bool(acting)


def spread(values: Tensor, dims: Sequence[int], ndim: int) -> Tensor:
    """Values along some dimensions, in the order of these, for broadcasting over a tensor."""
    order = sorted(range(len(dims)), key=dims.__getitem__)
    shape = [1] * ndim
    for place in order:
        shape[dims[place]] = values.shape[place]
    return values.permute(order).reshape(shape)


def gather(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """The sum over all dimensions but some, in the order of these: the adjoint of `spread`."""
    others = [dim for dim in range(tensor.ndim) if dim not in dims]
    kept = tensor.sum(others) if others else tensor
    ascending = sorted(dims)
    return kept.permute([ascending.index(dim) for dim in dims])
