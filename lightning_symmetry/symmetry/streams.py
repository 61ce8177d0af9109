"""Rotations of a residual stream: O(n), or what of it keeps the mean where a LayerNorm reads the stream.

A norm without gain looks at nothing but the length of a vector, and at its mean. All that writes to the stream may be
rotated by ``Q``, all that reads it by ``Q^T``. Its gain ``g`` tells the stream apart, but can be folded into the maps
that read it: a map ``W`` behind it becomes ``W g Q^T g^-1``, the bias behind it ``g Q g^-1 b``, so that their product
stays what it was. A map that writes to the stream through a gain of its own becomes ``g^-1 Q g W``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from lightning_symmetry.labelling.axes import Atom, Axis, atoms, places
from lightning_symmetry.labelling.charges import Key, scalings
from lightning_symmetry.labelling.gains import Gain, read_gains
from lightning_symmetry.labelling.labelling import Labelling
from lightning_symmetry.labelling.laws import LENGTH, MEAN
from lightning_symmetry.labelling.rows import rows_of
from lightning_symmetry.symmetry.actions import Action, Block, Blocks, Fold, actions_on, blocks_of
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.translations import wholes
from lightning_symmetry.tracing.tape import Tape


def streams(
    tape: Tape,
    labelling: Labelling,
    written: Iterable[Gain],
    parameters: Collection[str],
    names: Mapping[Atom, str],
    leaves: Mapping[str, list[Axis]],
    blocks_before: Blocks,
) -> Iterator[SymmetryGroup]:
    """The rotations of axes once gains are folded away, still without names; what has degree -1 reads its axis."""
    foldable = [*read_gains(tape), *written]
    gains = {gain.name for gain in foldable}
    if gains:
        labelling = Labelling(tape, gains)
    rest = {name: labelling.leaf(value) for name, value in tape.leaves.items() if value.depends and name not in gains}
    found = dict.fromkeys(atom for name in rest if name in parameters for axis in rest[name] for atom in atoms(axis))
    same = _named_alike(rest, leaves, names)
    beside = rows_of(labelling.tensors(), rest.values())
    blocks = blocks_of(rest, same, tape.offsets)
    for atom in found:
        held = [place.key for _, places in blocks for place in places if place is not None and place.atom is atom]
        turns = LENGTH in atom.keeps or _meets_itself(atom, held)
        if turns and not atom.rigid and not atom.pinned and atom.size > 1 + (MEAN in atom.keeps):
            reads = {key: not labelling.read_by_maps.isdisjoint(wholes(key)) for key in held}
            actions = actions_on(blocks, {key: -1 if is_read else 1 for key, is_read in reads.items()})
            rows = tuple(
                (same[row], row.size)
                for row in beside[atom]
                if all(len(each.block.dims(same[row])) == 1 for each in actions)
            )
            vectors = [b for b, _ in blocks_before if same[atom] in b.axes and b.numel == atom.size]
            own = _folds(foldable, actions, vectors)
            if own is not None:
                form = "orthogonal, mean kept" if MEAN in atom.keeps else "orthogonal"
                yield SymmetryGroup(
                    "rotation", "", same[atom], atom.size, rows, actions, (), form=form, folds=tuple(own)
                )


def _meets_itself(atom: Atom, unknowns: Sequence[Key]) -> bool:
    """Whether what is along an axis meets in products only what is scaled alike, as dot products of one kind do.

    Then nothing can be scaled, and all may be flipped together, and so rotated.
    """
    forms = (*atom.vanishing, *atom.nearly)
    even = all(len(form.sign) % 2 == 0 for form in atom.vanishing)
    return even and not atom.keeps and not scalings((form.scale for form in forms), unknowns)


def _folds(gains: Iterable[Gain], actions: Sequence[Action], vectors: Sequence[Block]) -> list[Fold] | None:
    """The folds of gains into the maps on their side of the stream, and of those of norms out of the biases after them.

    A norm of several positions of the stream end to end has a gain for each. None where a gain is no vector along it.
    """
    found = []
    for gain in gains:
        own = [_on_side(each, gain.side) for each in actions if each.block.tensor in gain.maps]
        folded = [each for each in own if any(each.degrees)]
        biases = [
            Action(each.block, tuple(-d for d in each.degrees)) for each in actions if each.block.tensor == gain.bias
        ]
        pivots = [vector for vector in vectors if vector.tensor == gain.name]
        if folded and not pivots:
            return None
        for pivot in pivots if folded else ():
            parts = tuple(each for each in (*folded, *biases) if _is_of_part(each.block, pivot))
            found.append(Fold("rescaling", pivot, parts))
    return found


def _is_of_part(block: Block, vector: Block) -> bool:
    """Whether a block is of the part of its tensor that a vector is of its own."""
    return {view[1:] for view in vector.views} <= {view[1:] for view in block.views}


def _on_side(action: Action, side: int) -> Action:
    """The dimensions of a map along which it reads a stream, -1, or writes to it, 1."""
    return Action(action.block, tuple(int(degree * side > 0) for degree in action.degrees))


def _named_alike(
    rest: Mapping[str, list[Axis]], leaves: Mapping[str, list[Axis]], names: Mapping[Atom, str]
) -> dict[Atom, str]:
    """The names of axes, once gains are gone, as they were before."""
    same: dict[Atom, str] = {}
    for name, axes in rest.items():
        for axis, before in zip(axes, leaves[name], strict=True):
            ones, others = places(axis), places(before)
            if [one.size for one in ones] == [other.size for other in others]:
                for one, other in zip(ones, others, strict=True):
                    if other.atom in names:  # not if buffers alone have it
                        same.setdefault(one.atom, names[other.atom])
    return same
