"""Permutation groups: one for each axis that no operation tells apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain

from lightning_symmetry.symmetry.actions import Block, blocks_of
from lightning_symmetry.symmetry.axes import Atom, Axis, Concatenation, atoms, resolve
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.labelling import Labelling
from lightning_symmetry.symmetry.naming import axis_names
from lightning_symmetry.symmetry.tracing import Tape


def permutation_groups(
    tape: Tape, parameters: Collection[str]
) -> tuple[list[SymmetryGroup], tuple[Block, ...], Labelling]:
    """Propose a permutation group for every axis of the parameters whose positions nothing tells apart.

    Returns:
        The groups in the order of the parameters that they move first, the partition of all leaves into blocks, and the
        labelling that both were read from.
    """
    labelling = Labelling(tape)
    leaves = {name: labelling.leaf(value) for name, value in tape.leaves.items() if value.depends}
    free = dict.fromkeys(
        atom for name in parameters for axis in leaves[name] for atom in atoms(axis) if not atom.pinned
    )
    rows = {atom: row for atom, row in _rows(labelling.tensors(), leaves.values()).items() if atom in free}
    names = axis_names(dict.fromkeys(chain.from_iterable((*rows.get(atom, ()), atom) for atom in free)), leaves)
    blocks = tuple(chain.from_iterable(blocks_of(name, axes, names) for name, axes in leaves.items()))
    groups = []
    for atom in free:
        moved = tuple(block for block in blocks if block.dims(names[atom]))
        tensors = dict.fromkeys(block.tensor for block in moved)
        rows_of_group = [row for row in rows[atom] if all(len(block.dims(names.get(row, ""))) == 1 for block in moved)]
        groups.append(
            SymmetryGroup(
                kind="permutation",
                name=names[atom],
                size=atom.size,
                rows=tuple((names[row], row.size) for row in rows_of_group),
                blocks=moved,
                parameters=tuple(name for name in tensors if name in parameters),
                buffers=tuple(name for name in tensors if name not in parameters),
            )
        )
    return groups, blocks, labelling


def _rows(tensors: Iterable[list[Axis]], leaves: Iterable[list[Axis]]) -> dict[Atom, list[Atom]]:
    """The rows of each atom: those that are there in every tensor that holds it, so that it may be permuted by row."""
    rows: dict[Atom, dict[Atom, None]] = {}
    for axes in chain(tensors, leaves):
        per_dim = [list(_alternatives(axis)) for axis in axes]
        always = [set.intersection(*map(set, alternatives)) for alternatives in per_dim]
        for dim, alternatives in enumerate(per_dim):
            elsewhere = set().union(*always[:dim], *always[dim + 1 :])
            for together in alternatives:
                for atom in together:
                    beside = (set(together) - {atom}) | elsewhere - {atom}
                    known = rows.setdefault(atom, dict.fromkeys(other for other in _in_order(axes) if other in beside))
                    rows[atom] = {other: None for other in known if other in beside}
    return {atom: list(found) for atom, found in rows.items()}


def _in_order(axes: list[Axis]) -> Iterable[Atom]:
    return chain.from_iterable(map(atoms, axes))


def _alternatives(axis: Axis) -> Iterable[tuple[Atom, ...]]:
    """The atoms of an axis, once for each choice of segments of its concatenations."""
    axis = resolve(axis)
    place = next((place for place, factor in enumerate(axis) if isinstance(factor, Concatenation)), None)
    if place is None:
        yield tuple(atoms(axis))
        return
    for segment in axis[place].segments:  # type: ignore[union-attr]
        yield from _alternatives(axis[:place] + segment + axis[place + 1 :])
