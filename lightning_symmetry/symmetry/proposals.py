"""The groups that the axes of a model allow: one permutation group and any number of scalings for each axis.

An axis whose positions nothing tells apart is permuted. The solutions of its charges are rescalings, or, where nothing
along the axis forbids linear mixtures, all of GL(n); over GF(2) they are signs. Solutions that hold only up to the
small constant of a norm are scales.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import chain
from typing import TypeVar

from lightning_symmetry.labelling.axes import Atom, Place, atoms
from lightning_symmetry.labelling.charges import Echelon, Key, Unknown, scalings, signs
from lightning_symmetry.labelling.gains import written_gains
from lightning_symmetry.labelling.labelling import Labelling
from lightning_symmetry.labelling.naming import axis_names, unlike
from lightning_symmetry.labelling.rows import rows_of
from lightning_symmetry.labelling.whole import Wholes, of_whole_tensors
from lightning_symmetry.stacks import members
from lightning_symmetry.symmetry.actions import Action, Block, Blocks, Carried, Fold, actions_on, blocks_of
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.kinds import KINDS
from lightning_symmetry.symmetry.means import Means, mean_is_free, means_behind_gains
from lightning_symmetry.symmetry.planes import rotation_of_planes
from lightning_symmetry.symmetry.streams import streams
from lightning_symmetry.symmetry.translations import Shift, shifts_along
from lightning_symmetry.tracing.tape import Tape

Degrees = Mapping[Unknown, float]
K = TypeVar("K")


@dataclass(frozen=True)
class Proposals:
    """What was read off a tape: groups to be verified, the partition of all leaves, what had no rule."""

    groups: list[SymmetryGroup]
    blocks: tuple[Block, ...]
    without_rule: Mapping[str, int]


def propose(tape: Tape, parameters: Collection[str], kinds: Collection[str] = tuple(KINDS)) -> Proposals:
    """Label the axes of a tape, and read off the groups of some kinds that they allow."""
    labelling = Labelling(tape)
    leaves = {name: labelling.leaf(value) for name, value in tape.leaves.items() if value.depends}
    found = dict.fromkeys(
        atom for name in parameters if name in leaves for axis in leaves[name] for atom in atoms(axis)
    )
    tensors = labelling.tensors()
    rows = rows_of(tensors, leaves.values())
    wanted = dict.fromkeys(chain.from_iterable((*rows.get(atom, ()), atom) for atom in found))
    names = axis_names(sorted(wanted, key=lambda atom: atom.pinned is not None), leaves)
    blocks = blocks_of(leaves, names, tape.offsets)
    everywhere = dict.fromkeys(atom for axes in tensors for axis in axes for atom in atoms(axis))
    shifts = shifts_along(blocks, everywhere, labelling.singled_out)
    model = _Model(tape, blocks, names, rows, parameters, shifts)
    groups = [group for atom in found for group in model.groups_on(atom, kinds)]
    written = written_gains(tape)
    along_axes = chain.from_iterable(map(Means(tape, labelling, blocks, shifts).along, found))
    means = [*along_axes, *means_behind_gains(tape, written, blocks)]
    means = [mean for mean in means if mean[0].tensor in parameters]
    groups += [model.mean(*mean) for mean in means]
    for rotation in streams(tape, labelling, written, parameters, names, leaves, blocks) if "rotation" in kinds else ():
        groups = [group for group in groups if not _is_within(group, rotation)]
        groups.append(model.completed(rotation))
    groups += model.groups_of_whole_tensors(of_whole_tensors(tape), found, [block for block, *_ in means])
    groups = [group for group in groups if group.kind in kinds and group.parameters]
    order = {name: number for number, name in enumerate(leaves)}
    return Proposals(
        sorted(groups, key=lambda group: next(order[name] for name in group.tensors if name in parameters)),
        tuple(block for block, _ in blocks),
        dict(labelling.without_rule),
    )


class _Model:
    """The blocks of a model, and the groups that act on one of its axes."""

    def __init__(
        self,
        tape: Tape,
        blocks: Blocks,
        names: Mapping[Atom, str],
        rows: Mapping[Atom, Sequence[Atom]],
        parameters: Collection[str],
        shifts: Mapping[Atom, Sequence[Shift]],
    ) -> None:
        self._leaves, self._offsets = tape.leaves, tape.offsets
        self._blocks = blocks
        self._places: defaultdict[Atom, defaultdict[int, list[Place]]] = defaultdict(lambda: defaultdict(list))
        for number, (_, places) in enumerate(blocks):
            for place in filter(None, places):
                self._places[place.atom][number].append(place)
        self._shifts = shifts
        self._names = names
        self._rows = rows
        self._parameters = parameters
        self._taken: set[str] = set()
        self._spanned = cache(self._solutions_by_block)

    def groups_on(self, atom: Atom, kinds: Collection[str]) -> Iterator[SymmetryGroup]:
        """The groups that act on an axis, none of which is within another of these kinds."""
        unknowns = self._unknowns(atom)
        exact = self._own("rescaling", atom, self._solutions("rescaling", atom))
        linear = [
            degrees for degrees in exact if not atom.rigid and not atom.keeps and set(degrees.values()) <= {1, -1}
        ]
        mixed = linear if "rotation" in kinds else []
        if not atom.pinned and not any(len(degrees) == len(unknowns) for degrees in mixed):
            yield self._group("permutation", atom, dict.fromkeys(unknowns, 1))
        for degrees in exact:
            group = self._group("rotation" if degrees in linear else "rescaling", atom, degrees)
            yield group
            of_all = atom.pinned and group.kind == "rescaling" and len(degrees) == len(unknowns)
            planes = rotation_of_planes(group) if of_all else None
            if planes is not None:
                yield self.completed(planes)
        for degrees in self._own("scale", atom, _beyond(self._solutions("scale", atom), exact)):
            yield self._group("scale", atom, degrees)
        own = self._own("translation", atom, self._solutions("translation", atom))
        for shift in self._shifts.get(atom, ()):
            if (shift.carried or shift.degrees in own) and not self._within_means(atom, shift):
                yield self._group("translation", atom, shift.degrees, shift.carried)
        for degrees in self._own("sign", atom, self._solutions("sign", atom)):
            if not any(degrees.keys() == other.keys() for other in mixed):
                yield self._group("sign", atom, degrees)

    def mean(self, block: Block, dim: int, folds: tuple[Fold, ...]) -> SymmetryGroup:
        """The translation of a block along one dimension: it has one position, and all other dimensions are rows."""
        name = self._name("translation", block.tensor, block.tensor)
        shape = block.shape(self._leaves[block.tensor].shape)
        axes = ["" if k == dim else f"{name}[{k}]" for k in range(len(shape))]
        seen = replace(block, views=(*block.views, (0, (1, shape[0]))), axes=(name, *axes))
        rows = tuple((axis, size) for axis, size in zip(axes, shape, strict=True) if axis)
        action = Action(seen, (1, *[0] * len(shape)))
        moved = dict.fromkeys((block.tensor, *_unfolded_otherwise(folds, {block})))
        parameters = tuple(self._members(tensor for tensor in moved if tensor in self._parameters))
        return SymmetryGroup("translation", name, name, 1, rows, (action,), parameters, folds=folds)

    def completed(self, group: SymmetryGroup, parameter: str = "") -> SymmetryGroup:
        """A group with the tensors that it moves, and with a name after one of its parameters, else after the first."""
        tensors = dict.fromkeys(block.tensor for block in (*group.blocks, *(each.block for each in group.carried)))
        parameters = [name for name in tensors if name in self._parameters]
        return replace(
            group,
            name=group.name or self._name(group.kind, group.axis, parameter or [*parameters, *tensors][0]),
            parameters=tuple(self._members(parameters)),
            buffers=tuple(self._members(name for name in tensors if name not in self._parameters)),
        )

    def _members(self, names: Iterable[str]) -> Iterator[str]:
        return chain.from_iterable(members(name, self._leaves[name].shape) for name in names)

    def groups_of_whole_tensors(
        self, wholes: Wholes, atoms: Iterable[Atom], means: Collection[Block]
    ) -> Iterator[SymmetryGroup]:
        """The scales, signs and shifts of whole tensors that are none of all positions along some axis alike.

        Args:
            wholes: The degrees of tensors.
            atoms: The axes.
            means: The blocks of which a mean is free.
        """
        of_means = ({number: 1} for number, (block, _) in enumerate(self._blocks) if block in means)
        scales = Echelon(chain(*(self._spanned("scale", atom) for atom in atoms)))
        signs = Echelon(chain(*(self._spanned("sign", atom) for atom in atoms)), modulus=2)
        shifts = Echelon(chain(of_means, *(self._spanned("translation", atom) for atom in atoms)))
        for kind, solutions, known, exact in (
            ("scale", wholes.scales, scales, True),
            ("scale", wholes.nearly_scales, scales, False),
            ("sign", wholes.signs, signs, True),
            ("translation", wholes.shifts, shifts, True),
        ):
            for degrees in map(_whole, solutions):
                named = enumerate(block.tensor for block, _ in self._blocks)
                moved = {number: degrees[tensor] for number, tensor in named if tensor in degrees}
                if any(tensor in self._parameters for tensor in degrees) and known.add(moved):
                    yield self._of_wholes(kind, degrees, exact)

    def _of_wholes(self, kind: str, degrees: Mapping[str, int], exact: bool) -> SymmetryGroup:
        """A group that acts on whole tensors, seen with a dimension of one position in front."""
        parameter = next(tensor for tensor in degrees if tensor in self._parameters)
        name = self._name(kind, parameter.rpartition(".")[0] or parameter, parameter)
        actions = []
        for tensor, degree in degrees.items():
            shape = self._leaves[tensor].shape
            axes, offset = (name, *[""] * len(shape)), self._offsets.get(tensor, 0.0)
            block = Block(tensor, ((0, (1, *shape[:1])),), axes, math.prod(shape), offset)
            actions.append(Action(block, (degree, *[0] * len(shape))))
        return self.completed(SymmetryGroup(kind, name, name, 1, (), tuple(actions), (), exact=exact))

    def _group(self, kind: str, atom: Atom, degrees: Degrees, carried: tuple[Carried, ...] = ()) -> SymmetryGroup:
        actions = actions_on([self._blocks[number] for number in self._places[atom]], degrees)
        vectors = (action.block.tensor for action in actions if len(action.block.axes) == 1)
        eponym = next((name for name in vectors if name in self._parameters), actions[0].block.tensor)
        rows = [
            row
            for row in self._rows.get(atom, ())
            if all(len(action.block.dims(self._names[row])) == 1 for action in actions)
            and all(_goes_through(self._names[row], each) for each in carried)
        ]
        group = SymmetryGroup(
            kind=kind,
            name=self._names[atom] if kind == "permutation" else "",
            axis=self._names[atom],
            size=atom.size,
            rows=tuple((self._names[row], row.size) for row in rows),
            actions=actions,
            parameters=(),
            carried=carried,
            exact=kind != "scale",
        )
        return self.completed(group, eponym)

    def _name(self, kind: str, stem: str, parameter: str) -> str:
        """A name that no other group has: an axis within its parameter, or the parameter's module, and the kind."""
        if not f"{stem}.".startswith(f"{parameter.rpartition('.')[0]}."):
            stem = parameter.rpartition(".")[0] or parameter
        name = unlike(self._taken, f"{stem}.{kind}")
        self._taken.add(name)
        return name

    def _unknowns(self, atom: Atom) -> list[Key]:
        """The unknown charges of an axis, those of vectors first: a norm's gain goes with all that reads it."""
        places = self._places[atom]
        vectors_first = sorted(places, key=lambda number: len(self._blocks[number][0].axes) > 1)
        return list(dict.fromkeys(place.key for number in vectors_first for place in places[number]))

    def _within_means(self, atom: Atom, shift: Shift) -> bool:
        """Whether a shift is of one block, along whose other axis anything may be added that is the same all along."""
        moved = list(self._by_block(atom, shift.degrees))
        if len(moved) != 1 or shift.carried:
            return False
        others = (place for place in self._blocks[moved[0]][1] if place is not None and place.atom is not atom)
        return any(map(mean_is_free, others))

    def _solutions(self, kind: str, atom: Atom) -> list[Degrees]:
        """The degrees that an axis allows; of scales also those that hold but for the small constant of a norm."""
        match kind:
            case "translation":
                return [shift.degrees for shift in self._shifts.get(atom, ()) if not shift.carried]
            case "sign":
                flips = signs((form.sign for form in atom.vanishing), self._unknowns(atom))
                return [dict.fromkeys(flip, 1) for flip in flips]
        forms = atom.vanishing if kind == "scale" else (*atom.vanishing, *atom.nearly)
        return [_whole(solution) for solution in scalings((form.scale for form in forms), self._unknowns(atom))]

    def _own(self, kind: str, atom: Atom, solutions: Iterable[Degrees]) -> list[Degrees]:
        """Those that are not what all positions of another axis go through alike, at each position along this one."""
        order = list(self._names)
        later = set(order[order.index(atom) :]).intersection(self._rows.get(atom, ()))  # rows of one another
        finer = [other for other in order if atom in self._rows.get(other, ()) and other not in later]
        spanned = list(chain.from_iterable(self._spanned(kind, other) for other in finer))
        modulus = 2 if kind == "sign" else None
        return [each for each in solutions if not spanned or _beyond([self._by_block(atom, each)], spanned, modulus)]

    def _solutions_by_block(self, kind: str, atom: Atom) -> list[Mapping[int, float]]:
        return [self._by_block(atom, degrees) for degrees in self._solutions(kind, atom)]

    def _by_block(self, atom: Atom, degrees: Degrees) -> dict[int, float]:
        """The degree in each block as a whole."""
        sums = {
            number: sum(degrees.get(place.key, 0) for place in places) for number, places in self._places[atom].items()
        }
        return {number: degree for number, degree in sums.items() if degree}


def _unfolded_otherwise(folds: Iterable[Fold], changed: Collection[Block]) -> Iterator[str]:
    """The names of tensors that unfolding does not bring back to what they were, as maps have changed meanwhile."""
    for each in chain.from_iterable(fold.carried for fold in folds):
        if any(step.block in changed for step in each.maps):
            yield each.block.tensor


def _is_within(group: SymmetryGroup, rotation: SymmetryGroup) -> bool:
    """Whether a group permutes or flips all that writes to a stream, as rotations do."""
    writes = {action.block for action in rotation.actions if max(action.degrees) > 0}
    return group.kind in ("permutation", "sign") and group.axis == rotation.axis and writes <= set(group.blocks)


def _goes_through(row: str, carried: Carried) -> bool:
    """Whether what is added may differ between rows: a map sums over the rows, or what takes it up has them."""
    first = carried.maps[0]
    written = {step.block.axes[dim] for step in carried.maps for dim in step.writes}
    summed = row in (*(first.block.axes[dim] for dim in first.reads), *first.modules)
    return summed or (row in carried.block.axes and row not in written)


def _whole(solution: Mapping[K, Fraction]) -> Mapping[K, int]:
    """The solution times the least number that makes all its degrees whole."""
    common = math.lcm(*(value.denominator for value in solution.values()))
    return {key: int(value * common) for key, value in solution.items()}


def _beyond(
    solutions: Sequence[Mapping[K, float]], known: Sequence[Mapping[K, float]], modulus: int | None = None
) -> list[Mapping[K, float]]:
    """Those solutions that are no combination of known ones and of one another."""
    span = Echelon(known, modulus)
    return [solution for solution in solutions if span.add(solution)]
