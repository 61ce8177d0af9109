"""Means that nothing sees: what may be added that is the same all along an axis.

A norm or a softmax takes the mean along its axis away, so whatever *writes* to that axis may have anything added that
is the same all along it; what writes through a gain ``g`` of its own may become ``W + g^-1 1 u^T``. Whatever *reads* a
LayerNorm ``y = g x + b`` meets an ``x`` whose mean is zero: its map ``W`` may become ``W + u (1 / g)^T``, while what is
to take the bias ``b`` up does so with the new map.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from lightning_symmetry.labelling.axes import Atom, Place
from lightning_symmetry.labelling.charges import Key
from lightning_symmetry.labelling.factors import leaf_of, readers_of_leaves
from lightning_symmetry.labelling.gains import Gain
from lightning_symmetry.labelling.labelling import Labelling
from lightning_symmetry.labelling.operation_laws import is_zero
from lightning_symmetry.stacks import n_stacked
from lightning_symmetry.symmetry.actions import Action, Block, Blocks, Fold, Places, actions_on, blocks_of
from lightning_symmetry.symmetry.translations import Shift, wholes
from lightning_symmetry.tracing.tape import Operation, Tape, Value

Mean = tuple[Block, int, tuple[Fold, ...]]
"""A block, the dimension along which its mean is free, and what is folded into it before the mean changes."""


class Means:
    """Where the mean of a leaf along an axis is free."""

    def __init__(
        self, tape: Tape, labelling: Labelling, blocks: Blocks, shifts: Mapping[Atom, Sequence[Shift]]
    ) -> None:
        self._blocks = blocks
        self._first_of = {block.tensor: (block, places) for block, places in reversed(blocks)}
        self._shifts = [shift for along in shifts.values() for shift in along]
        self._read_centred = labelling.read_centred
        self._readers = readers_of_leaves(tape)

    def along(self, atom: Atom) -> Iterator[Mean]:
        """Every block with a mean along the axis that is free."""
        for block, places in self._blocks:
            for dim, place in enumerate(places):
                if place is not None and place.atom is atom and block.numel and mean_is_free(place):
                    folds = self._folds(block, dim, place.key)
                    if folds is not None:
                        yield block, dim, folds

    def _folds(self, block: Block, dim: int, key: Key) -> tuple[Fold, ...] | None:
        """What is to be folded into a map before its mean is free; None where it reads more than one norm."""
        norms = [norm for whole in wholes(key) for norm in self._read_centred.get(whole, ())]
        if not norms:
            return ()
        affine = {_affine(norm) for norm in norms}
        gain, bias = affine.pop()
        if len(norms) != len(self._readers[block.tensor]) or affine or not {gain, bias} <= {None, *self._first_of}:
            return None
        folds = []
        if bias is not None:
            taken_away = self._fold_of_bias(*self._first_of[bias])
            if taken_away is None:
                return None
            folds.append(taken_away)
        if gain is not None:
            degrees = tuple(int(place == dim) for place in range(len(block.axes)))
            folds.append(Fold("rescaling", self._first_of[gain][0], (Action(block, degrees),)))
        return tuple(folds)

    def _fold_of_bias(self, vector: Block, places: Places) -> Fold | None:
        """The fold that takes a bias away, and has it taken up where it goes; None where nothing takes it up."""
        key = places[-1].key if places[-1] is not None else None
        if len(places) != 1 + n_stacked(vector.tensor) or key is None:
            return None
        for shift in self._shifts:
            turn = shift.degrees.get(key, 0)
            if abs(turn) == 1:
                degrees = {leaf: turn * degree for leaf, degree in shift.degrees.items()}
                carried = tuple(replace(each, factor=turn * each.factor) for each in shift.carried)
                return Fold("translation", vector, actions_on(self._blocks, degrees), carried)
        return None


def means_behind_gains(tape: Tape, gains: Collection[Gain], blocks: Blocks) -> Iterator[Mean]:
    """Every block that is written through a gain of its own to an axis whose mean nothing sees, once that is folded."""
    if not gains:
        return
    labelling = Labelling(tape, {each.name for each in gains})
    own = {(block.tensor, block.views): block for block, _ in blocks}
    for each in gains:
        vectors = [block for block, _ in blocks if block.tensor == each.name]
        leaves = {name: labelling.leaf(tape.leaves[name]) for name in each.maps}
        for block, places in blocks_of(leaves, {}, tape.offsets):
            for dim, place in enumerate(places):
                written = place is not None and labelling.read_by_maps.isdisjoint(wholes(place.key))
                if written and mean_is_free(place) and len(vectors) == 1 and (block.tensor, block.views) in own:
                    degrees = tuple(int(k == dim) for k in range(len(places)))
                    moved = own[block.tensor, block.views]
                    yield moved, dim, (Fold("rescaling", vectors[0], (Action(moved, degrees),)),)


def mean_is_free(place: Place | None) -> bool:
    """Whether anything may be added to a leaf that is the same all along the axis that it has at this place."""
    return place is not None and all(place.charge.mean.isdisjoint(form.mean) for form in place.atom.vanishing)


def _affine(norm: Operation | None) -> tuple[str | None, str | None]:
    """The names of the gain and the bias of a LayerNorm, as far as it has them."""
    assert norm is not None
    gain, bias = norm.args[2:4]
    if bias is not None and bias.constant is not None and is_zero(bias.constant):
        bias = None
    return _name(gain), _name(bias)


def _name(value: Value | None) -> str | None:
    """The name of a leaf; that of what is computed is empty."""
    return None if value is None else leaf_of(value) or ""
