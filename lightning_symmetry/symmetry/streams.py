"""Rotations of a residual stream: O(n), or what of it keeps the mean where a LayerNorm reads the stream.

A norm without gain looks at nothing but the length of a vector, and at its mean. All that writes to the stream may be
rotated by ``Q``, all that reads it by ``Q^T``. Its gain tells the stream apart, but can be folded into the maps that
read it: ``W (g x + b)`` is ``(W g) (x + b / g)``. A map behind a gain ``g`` becomes ``W g Q^T g^-1``, the bias behind
it ``g Q g^-1 b``, so that their product stays what it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from lightning_symmetry.symmetry.actions import Action, Block, Blocks, Fold, actions_on, blocks_of
from lightning_symmetry.symmetry.axes import Atom, Axis, atoms, places
from lightning_symmetry.symmetry.charges import Key, scalings
from lightning_symmetry.symmetry.factors import leaf_of, looks_at_others, readers_of_leaves
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.labelling import Labelling
from lightning_symmetry.symmetry.laws import LENGTH, MEAN
from lightning_symmetry.symmetry.layout import LAYOUT
from lightning_symmetry.symmetry.operation_laws import CONTRACTIONS
from lightning_symmetry.symmetry.rows import rows_of
from lightning_symmetry.symmetry.tape import Operation, Tape, Value
from lightning_symmetry.symmetry.translations import wholes

aten = torch.ops.aten


@dataclass(frozen=True)
class _Affine:
    """A gain, the bias added after it, if any, and the maps that alone read them, by name."""

    gain: str
    bias: str | None
    readers: frozenset[str]


def streams(
    tape: Tape,
    labelling: Labelling,
    parameters: Collection[str],
    names: Mapping[Atom, str],
    leaves: Mapping[str, list[Axis]],
    blocks_before: Blocks,
) -> Iterator[SymmetryGroup]:
    """The rotations of axes once gains are folded away, still without names; what has degree -1 reads its axis."""
    folds = _foldable(tape)
    gains = {fold.gain for fold in folds}
    if folds:
        labelling = Labelling(tape, gains)
    rest = {name: labelling.leaf(value) for name, value in tape.leaves.items() if value.depends and name not in gains}
    found = dict.fromkeys(atom for name in rest if name in parameters for axis in rest[name] for atom in atoms(axis))
    same = _named_alike(rest, leaves, names)
    beside = rows_of(labelling.tensors(), rest.values())
    blocks = blocks_of(rest, same, tape.offsets)
    for atom in found:
        held = [place for _, places in blocks for place in places if place is not None and place.atom is atom]
        turns = LENGTH in atom.keeps or _meets_itself(atom, [place.key for place in held])
        if turns and not atom.rigid and not atom.pinned and atom.size > 1 + (MEAN in atom.keeps):
            reads = {place.key: not labelling.read_by_maps.isdisjoint(wholes(place.key)) for place in held}
            actions = actions_on(blocks, {key: -1 if is_read else 1 for key, is_read in reads.items()})
            rows = tuple(
                (same[row], row.size) for row in beside[atom] if all(_has(each.block, same[row]) for each in actions)
            )
            vectors = [b for b, _ in blocks_before if same[atom] in b.axes and b.numel == atom.size]
            own = _folds(folds, actions, vectors)
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


def _folds(folds: list[_Affine], actions: Sequence[Action], vectors: Sequence[Block]) -> list[Fold] | None:
    """The folds of gains into the maps that read the stream behind them, and out of the biases after them.

    A norm of several positions of the stream end to end has a gain for each. None where a gain is no vector along it.
    """
    found = []
    for fold in folds:
        reads = [_read(each) for each in actions if each.block.tensor in fold.readers and min(each.degrees) < 0]
        biases = [
            Action(each.block, tuple(-d for d in each.degrees)) for each in actions if each.block.tensor == fold.bias
        ]
        gains = [vector for vector in vectors if vector.tensor == fold.gain]
        if reads and not gains:
            return None
        for gain in gains if reads else ():
            folded = tuple(each for each in (*reads, *biases) if _is_of_part(each.block, gain))
            found.append(Fold("rescaling", gain, folded))
    return found


def _is_of_part(block: Block, vector: Block) -> bool:
    """Whether a block is of the part of its tensor that a vector is of its own."""
    return {view[1:] for view in vector.views} <= {view[1:] for view in block.views}


def _read(action: Action) -> Action:
    """The dimensions of a map along which it reads a stream, to which it may write along others."""
    return Action(action.block, tuple(int(degree < 0) for degree in action.degrees))


def _has(block: Block, row: str) -> bool:
    return len(block.dims(row)) == 1


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


def _foldable(tape: Tape) -> list[_Affine]:
    """The gains that can be folded into maps that read nothing else."""
    consumers: defaultdict[Value, list[Operation]] = defaultdict(list)
    for operation in tape.operations:
        for value in dict.fromkeys(operation.inputs):
            consumers[value].append(operation)
    uses = readers_of_leaves(tape, picked=True)
    found: dict[tuple[str, str | None], list[tuple[Operation, Collection[Operation]]]] = defaultdict(list)
    for operation in tape.operations:
        affine = _affine(operation, consumers)
        if affine is not None:
            gain, bias, output = affine
            found[gain, bias].append((operation, list(_readers(output, consumers))))
    folds = []
    for (gain, bias), norms in found.items():
        reading = [reader for _, readers in norms for reader in readers]
        maps = frozenset(filter(None, map(_map_of, reading)))
        alone = all(map(_map_of, reading)) and all(uses[name] <= set(reading) for name in maps)
        if maps and alone and uses[gain] == {operation for operation, _ in norms}:
            folds.append(_Affine(gain, bias, maps))
    return folds


def _affine(operation: Operation, consumers: Mapping[Value, list[Operation]]) -> tuple[str, str | None, Value] | None:
    """The gain that an operation applies, the bias after it, and the tensor that comes out."""
    output = operation.outputs[0] if operation.outputs else None
    if output is None or not output.depends:
        return None
    if operation.operation == aten.native_layer_norm.default:
        gain, bias = map(leaf_of, operation.args[2:4])
        return (gain, bias, output) if gain is not None else None
    if operation.operation != aten.mul.Tensor:
        return None
    gains = [leaf_of(arg) for arg in operation.args if isinstance(arg, Value) and _is_vector(arg)]
    if len(gains) != 1 or gains[0] is None or len(operation.inputs) != 2:
        return None
    after = consumers[output]
    if len(after) == 1 and after[0].operation == aten.add.Tensor:
        added = [
            leaf_of(arg) for arg in after[0].args if isinstance(arg, Value) and arg is not output and _is_vector(arg)
        ]
        if added and added[0] is not None:
            return gains[0], added[0], after[0].outputs[0]  # type: ignore[return-value]
    return gains[0], None, output


def _is_vector(value: Value) -> bool:
    return len(value.shape) >= 1 and value.shape[-1] > 1 and all(length == 1 for length in value.shape[:-1])


def _readers(value: Value, consumers: Mapping[Value, list[Operation]]) -> Iterable[Operation]:
    """The operations that read a tensor, laid out anew or not."""
    for operation in consumers[value]:
        if not any(output is not None and output.depends for output in operation.outputs):
            continue
        if operation.name in LAYOUT or looks_at_others(operation):
            for output in operation.outputs:
                if output is not None:
                    yield from _readers(output, consumers)
        else:
            yield operation


def _map_of(operation: Operation) -> str | None:
    """The name of the parameter by which an operation multiplies what it is given."""
    if operation.operation.overloadpacket not in CONTRACTIONS or not operation.inputs:
        return None
    factors = operation.inputs[-2:] if operation.operation != aten.convolution.default else operation.inputs[:2]
    return leaf_of(factors[-1], picked=True) or leaf_of(factors[0], picked=True)
