"""The gauge: one representative of all parameters that the continuous symmetries of a model make equivalent.

Distances between units depend on how units elsewhere are scaled, shifted and mixed, which changes nothing that the
model computes. So they are taken at one point of the orbit, found in the order in which one step leaves the next alone:

1. *Shifts*: the point of least norm of all that translations reach.
2. *Gains*: a unit that is rescaled against a vector, as a norm's gain is against the maps that read it, has the
   vector folded into these: it becomes one.
3. *Scales* of all other axes together, at the least norm: see `lightning_symmetry.symmetry.balancing`. A dead unit,
   with nothing on one of its sides, is zero there.
4. *Rotations*: of two maps A (d, m) and B (d, p) with GL(d) between, the balanced ones, A A^T = B B^T.

What is left are signs, permutations and rotations by orthogonal matrices, which leave inner products alone or are
matched. A `Gauge` is a number for each unit and a small matrix for each rotation; it is applied to a block of a
parameter when that is read, and changes no tensor of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_symmetry.symmetry.actions import KINDS, Action, Block, transform
from lightning_symmetry.symmetry.balancing import Part, Scaled, Sum, alive, balance, gather, part_of, spread
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup
from lightning_symmetry.symmetry.centring import shifts_of

Tensors = Mapping[str, Tensor]
MOST_SWEEPS = 100
"""How often rotations that meet in one map, as in a deep linear net, are balanced one after another."""


@dataclass(frozen=True)
class Gauge:
    """How to read the representative off the parameters. Made by `find_gauge`.

    Attributes:
        scaled: By what each block is scaled.
        mixed: Which rotations act on each block.
        translations: The translations that move each tensor.
        shifts: What each translation adds, ``(n_rows, n)``.
        logarithms: Of the scale of each unit of a group, ``(*rows, n)``.
        signs: The sign of each unit that a fold brings.
        living: Which units of a group are not dead.
        mixtures: For each rotation, by what to multiply from the left in blocks of degree 1 and -1, ``(*rows, n, n)``.
        folded: The blocks of gains that were folded away.
        resolved: The names of the sign groups that folds have left nothing of.
        steps: How many steps of Newton's method it took to find.
    """

    scaled: Mapping[Block, tuple[Scaled, ...]] = field(default_factory=dict)
    mixed: Mapping[Block, tuple[Scaled, ...]] = field(default_factory=dict)
    translations: Mapping[str, tuple[tuple[str, Action, tuple[str, ...]], ...]] = field(default_factory=dict)
    shifts: Mapping[str, Tensor] = field(default_factory=dict)
    logarithms: dict[str, Tensor] = field(default_factory=dict)
    signs: dict[str, Tensor] = field(default_factory=dict)
    living: dict[str, Tensor] = field(default_factory=dict)
    mixtures: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
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
        part = block.of(self._shifted(block.tensor, tensors))
        for each in self.scaled.get(block, ()):
            for factors in self._factors(each):
                part = part * spread(factors.to(part), each.dims, part.ndim)
        for each in self.mixed.get(block, ()):
            if each.by in self.mixtures and each.by != unmixed:
                matrices = self.mixtures[each.by][each.degree < 0].to(part)
                front = part.movedim(each.dims, tuple(range(len(each.dims))))
                mixed = (
                    matrices @ front.flatten(len(each.dims))
                    if front.ndim > len(each.dims)
                    else (matrices @ front[..., None])
                )
                part = mixed.reshape(front.shape).movedim(tuple(range(len(each.dims))), each.dims)
        return part

    def _factors(self, each: Scaled) -> Iterator[Tensor]:
        if each.by in self.logarithms:
            yield (each.degree * self.logarithms[each.by]).exp()
        if each.by in self.living:
            yield self.living[each.by]
        if each.by in self.signs:
            yield self.signs[each.by]

    def _shifted(self, name: str, tensors: Tensors) -> Tensor:
        acting = [each for each in self.translations.get(name, ()) if each[0] in self.shifts]
        if not acting:
            return tensors[name]
        shifted = tensors[name].clone()
        for group, action, rows in acting:
            transform(shifted, action, rows, KINDS["translation"], self.shifts[group])
        return shifted


def find_gauge(symmetries: Symmetries, tensors: Tensors, start: Gauge | None = None) -> Gauge:
    """The gauge of a model's parameters.

    Args:
        symmetries: All groups of the model.
        tensors: Its parameters and buffers by name.
        start: The gauge of parameters nearby, from which the scales are found in fewer steps.

    Returns:
        The gauge.
    """
    with torch.no_grad():
        groups = _by_kind(symmetries)
        gauge = _structure(symmetries, shifts_of(groups["translation"], tensors))
        for group in groups["rescaling"]:
            gauge = _folded(gauge, group, groups["sign"], tensors)
        scaling = [*groups["rescaling"], *groups["scale"]]
        levels = {group.name: _level(group, symmetries, tensors) for group in scaling}
        gauge = replace(gauge, living=_living(gauge, levels, tensors))
        free = {name: level for name, level in levels.items() if name not in gauge.logarithms}
        return _balanced(gauge, groups["rotation"], free, start, tensors)


def _by_kind(symmetries: Iterable[SymmetryGroup]) -> Mapping[str, list[SymmetryGroup]]:
    groups: dict[str, list[SymmetryGroup]] = {kind: [] for kind in KINDS}
    for group in symmetries:
        groups[group.kind].append(group)
    return groups


def _structure(symmetries: Symmetries, shifts: Mapping[str, Tensor]) -> Gauge:
    """What acts on each block, with nothing scaled or mixed yet."""
    moved = {name for group in symmetries for name in group.parameters}
    every = symmetries.blocks or dict.fromkeys(block for group in symmetries for block in group.blocks)
    blocks = dict.fromkeys(block for block in every if block.tensor in moved)
    scaled: dict[Block, list[Scaled]] = {}
    mixed: dict[Block, list[Scaled]] = {}
    translations: dict[str, list[tuple[str, Action, tuple[str, ...]]]] = {}
    for group in symmetries:
        for action in group.actions:
            if group.kind == "translation":
                acting = (group.name, action, tuple(row for row, _ in group.rows))
                translations.setdefault(action.block.tensor, []).append(acting)
            elif group.kind in ("rescaling", "scale", "rotation"):
                on = mixed if group.kind == "rotation" else scaled
                for block, each in _acting(group, action, blocks):
                    on.setdefault(block, []).append(each)
    return Gauge(
        scaled={block: tuple(each) for block, each in scaled.items()},
        mixed={block: tuple(each) for block, each in mixed.items()},
        translations={name: tuple(each) for name, each in translations.items()},
        shifts=shifts,
    )


def _acting(group: SymmetryGroup, action: Action, blocks: Mapping[Block, None]) -> Iterator[tuple[Block, Scaled]]:
    """The blocks of a partition that an action moves, with the dimensions; a tensor as a whole has none."""
    if action.block in blocks:
        rows = [action.block.dims(row)[0] for row, _ in group.rows]
        for dim, degree in enumerate(action.degrees):
            if degree:
                yield action.block, Scaled(group.name, degree, (*rows, dim))
    elif _is_whole(group):
        for block in blocks:
            if block.tensor == action.block.tensor:
                yield block, Scaled(group.name, max(action.degrees, key=abs), ())


def _is_whole(group: SymmetryGroup) -> bool:
    return group.kind == "scale" and group.size == 1 and not group.rows


def _shape(group: SymmetryGroup) -> tuple[int, ...]:
    return () if _is_whole(group) else (*(length for _, length in group.rows), group.size)


def _level(group: SymmetryGroup, symmetries: Symmetries, tensors: Tensors) -> Tensor:
    """The squared norm that balancing gives to what a norm divides by its size: one for each unit that it holds."""
    level = torch.zeros(_shape(group), dtype=torch.float64)
    if group.kind != "scale":
        return level
    if not _is_whole(group):
        return level + 1
    grown = {action.block.tensor for action in group.actions if max(action.degrees, key=abs) > 0}
    grown &= set(group.parameters)
    sizes: list[dict[str, int]] = []
    for name in grown:
        blocks = [block for block in symmetries.blocks if block.tensor == name]
        shapes = [zip(block.axes, block.shape(tensors[name].shape), strict=True) for block in blocks]
        sizes.append({axis: size for shape in shapes for axis, size in shape if axis})
    common = set.intersection(*map(set, sizes)) if sizes else set()
    return level + max((sizes[0][axis] for axis in common), default=1)


def _folded(gauge: Gauge, group: SymmetryGroup, signs: Sequence[SymmetryGroup], tensors: Tensors) -> Gauge:
    """Fold the vectors on one side of a rescaling, a norm's gain and bias, into the maps on the other side."""
    sides: dict[bool, list[Action]] = {True: [], False: []}
    for action in group.actions:
        if action.block.tensor in group.parameters:
            sides[max(action.degrees, key=abs) > 0].append(action)
    of_vectors = {
        side: bool(actions) and all(len(action.degrees) == 1 + len(group.rows) for action in actions)
        for side, actions in sides.items()
    }
    if of_vectors[True] == of_vectors[False]:
        return gauge
    vectors = sides[of_vectors[True]]
    degrees = {max(action.degrees, key=abs) for action in vectors}
    if len(degrees) > 1 or any(len(gauge.scaled[action.block]) > 1 for action in vectors):
        return gauge
    squares = torch.zeros(_shape(group), dtype=torch.float64)
    for action in vectors:
        (each,) = gauge.scaled[action.block]
        squares = squares + gather(gauge.of(action.block, tensors).double().square().cpu(), each.dims)
    logarithms = torch.where(squares > 0, -squares.log() / (2 * degrees.pop()), 0.0)
    gauge = replace(gauge, logarithms={**gauge.logarithms, group.name: logarithms})
    moved = set(group.blocks)
    flips = [sign for sign in signs if {block for block in sign.blocks if block.tensor in sign.parameters} == moved]
    if len(vectors) > 1 or not flips or flips[0].rows != group.rows:
        return gauge
    flip = flips[0]
    (each,) = gauge.scaled[vectors[0].block]
    sign = gather(gauge.of(vectors[0].block, tensors).double().cpu(), each.dims).sign()
    scaled = dict(gauge.scaled)
    for action in flip.actions:
        for block, acting in _acting(flip, action, dict.fromkeys(flip.blocks)):
            scaled[block] = (*scaled[block], acting)
    return replace(
        gauge,
        scaled=scaled,
        signs={**gauge.signs, flip.name: torch.where(sign == 0, 1.0, sign)},
        folded=gauge.folded | {vectors[0].block},
        resolved=gauge.resolved | {flip.name},
    )


def _living(gauge: Gauge, levels: Mapping[str, Tensor], tensors: Tensors) -> dict[str, Tensor]:
    """Which units have something on either side, or are given a level. Dead ones may leave others dead."""
    living = {name: torch.ones_like(level, dtype=torch.bool) for name, level in levels.items()}
    while True:
        sides = {name: (torch.zeros_like(level), torch.zeros_like(level)) for name, level in levels.items()}
        for block, scaled in gauge.scaled.items():
            squares = replace(gauge, living=living).of(block, tensors).double().square()
            for each in scaled:
                if each.by in sides:
                    sides[each.by][each.degree < 0].add_(gather(squares, each.dims).cpu())
        now = {
            name: living[name] & ~(above <= 0) & (~(below <= 0) | (levels[name] > 0))
            for name, (above, below) in sides.items()
        }
        if all(torch.equal(now[name], living[name]) for name in now):
            return living
        living = now


def _balanced(
    gauge: Gauge,
    rotations: Sequence[SymmetryGroup],
    levels: Mapping[str, Tensor],
    start: Gauge | None,
    tensors: Tensors,
) -> Gauge:
    """The scales that are free, and the rotations: these once more where two of them meet in a map that is scaled."""
    meeting = {block for block, acting in gauge.mixed.items() if len({each.by for each in acting}) > 1}
    again = any(each.by in levels for block in meeting for each in gauge.scaled.get(block, ()))
    known = {} if start is None else {name: start.logarithms[name] for name in levels if name in start.logarithms}
    fixed = gauge.logarithms
    for _ in range(MOST_SWEEPS if again else 1):
        unscaled = replace(gauge, logarithms=fixed)
        sums = [
            *_plain_sums(unscaled, meeting, levels, tensors),
            *_rooted_sums(unscaled, rotations, meeting, levels, tensors),
        ]
        living = alive(sums, levels)
        sums = [_masked(each, living) for each in sums]
        found, steps = balance(sums, {name: level * living[name] for name, level in levels.items()}, known)
        change = max((float((found[name] - known.get(name, 0.0)).abs().max()) for name in found), default=0.0)
        known = found
        gauge = replace(
            gauge,
            logarithms={**fixed, **found},
            living={**gauge.living, **{name: gauge.living[name] & living[name] for name in living}},
            steps=gauge.steps + steps,
        )
        gauge = replace(gauge, mixtures=_mixtures(gauge, rotations, tensors))
        if change < 1e-10:
            break
    return gauge


def _plain_sums(
    gauge: Gauge, meeting: Iterable[Block], levels: Mapping[str, Tensor], tensors: Tensors
) -> Iterator[Sum]:
    """The squares of all blocks that are scaled and not rotated; of those where rotations meet, as they are rotated."""
    for block, scaled in gauge.scaled.items():
        free = [each for each in scaled if each.by in levels]
        if free and (block not in gauge.mixed or block in meeting):
            yield Sum((part_of(gauge.of(block, tensors).double().square(), free),))


def _masked(each: Sum, living: Mapping[str, Tensor]) -> Sum:
    parts = []
    for part in each.parts:
        squares = part.squares
        for scaled in part.scaled:
            squares = squares * spread(living[scaled.by].double(), scaled.dims, squares.ndim)
        parts.append(Part(squares, part.scaled))
    return replace(each, parts=tuple(parts))


@dataclass(frozen=True)
class _Side:
    """One block of one side of a rotation, as ``(*rows, d, *scaled, rest)``, and by what it is scaled."""

    entries: Tensor
    scaled: tuple[Scaled, ...]
    n_scaled: int


def _rooted_sums(
    gauge: Gauge,
    rotations: Sequence[SymmetryGroup],
    meeting: Iterable[Block],
    levels: Mapping[str, Tensor],
    tensors: Tensors,
) -> Iterator[Sum]:
    """The squared entries of the product of the two sides of each rotation, one sum for each of its rows."""
    for group in rotations:
        n_rows = len(group.rows)
        sides: tuple[list[_Side], list[_Side]] = ([], [])
        for block, acting in gauge.mixed.items():
            for each in acting:
                if each.by == group.name and block not in meeting:
                    free = [one for one in gauge.scaled.get(block, ()) if one.by in levels]
                    sides[each.degree < 0].append(_side(gauge.of(block, tensors).double(), each.dims, free))
        if any(side.scaled for side in (*sides[0], *sides[1])):
            parts = tuple(_product(left, right, n_rows) for left in sides[0] for right in sides[1])
            if parts:
                yield Sum(parts, rooted=True, row_dims=n_rows)


def _side(entries: Tensor, dims: Sequence[int], free: Sequence[Scaled]) -> _Side:
    touched = [dim for dim in sorted({dim for each in free for dim in each.dims}) if dim not in dims]
    rest = [dim for dim in range(entries.ndim) if dim not in (*dims, *touched)]
    order = [*dims, *touched, *rest]
    moved = entries.permute(order).flatten(len(dims) + len(touched)) if rest else entries.permute(order)[..., None]
    again = tuple(Scaled(each.by, each.degree, tuple(order.index(dim) for dim in each.dims)) for each in free)
    return _Side(moved, again, len(touched))


def _product(left: _Side, right: _Side, n_rows: int) -> Part:
    """The squared entries of A^T B, summed over what is not scaled: ``(*rows, *scaled of A, *scaled of B)``."""
    if left.n_scaled < right.n_scaled:
        left, right = right, left
    rows = left.entries.shape[:n_rows]
    a, b = left.entries.flatten(n_rows + 1), right.entries.flatten(n_rows + 1)
    kept = left.entries.shape[n_rows + 1 : -1]
    if right.n_scaled:
        product = a.mT @ b
        shape = (*rows, *left.entries.shape[n_rows + 1 :], *right.entries.shape[n_rows + 1 :])
        squares = product.view(shape).square().sum((n_rows + left.n_scaled, -1))
    else:
        squares = ((b @ b.mT) @ a * a).sum(n_rows).clamp_min(0.0)
        squares = squares.view(*rows, *kept, -1).sum(-1)
    return part_of(
        squares,
        (
            *(_placed(each, n_rows, n_rows + 1, n_rows) for each in left.scaled),
            *(_placed(each, n_rows, n_rows + 1, n_rows + left.n_scaled) for each in right.scaled),
        ),
        keep=n_rows,
    )


def _placed(each: Scaled, n_rows: int, since: int, to: int) -> Scaled:
    """The same with the dimensions behind the rows moved to another place."""
    return Scaled(each.by, each.degree, tuple(dim if dim < n_rows else dim - since + to for dim in each.dims))


def _mixtures(gauge: Gauge, rotations: Sequence[SymmetryGroup], tensors: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
    """The matrices that balance the two sides of each rotation, where rotations meet one after another."""
    mixtures: dict[str, tuple[Tensor, Tensor]] = {}
    together = _meeting(gauge)
    for group in rotations:
        if group.name not in together:
            mixtures[group.name] = _mixture(gauge, group, tensors)[0]
    last: dict[str, Tensor] = {}
    for _ in range(MOST_SWEEPS if together else 0):
        change = 0.0
        for group in rotations:
            if group.name in together:
                so_far = replace(gauge, mixtures=mixtures)
                mixtures[group.name], strengths = _mixture(so_far, group, tensors)
                before = last.get(group.name, torch.zeros_like(strengths))
                change = max(change, float((strengths - before).abs().max() / strengths.max().clamp_min(1e-300)))
                last[group.name] = strengths
        if change < 1e-11:
            break
    return mixtures


def _meeting(gauge: Gauge) -> set[str]:
    """The rotations that share a block with another one."""
    acting = [{each.by for each in several} for several in gauge.mixed.values()]
    return {name for names in acting if len(names) > 1 for name in names}


def _mixture(gauge: Gauge, group: SymmetryGroup, tensors: Tensors) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """M and N with M A = (N B) R, R orthogonal, both of the singular values S^(1/2), where A^T B has S; and S.

    With A = R_A^T Q_A^T, B = R_B^T Q_B^T and the singular value decomposition R_A R_B^T = U S V^T these are
    M = S^(-1/2) V^T R_B and N = S^(-1/2) U^T R_A; directions without a singular value become zero.
    """
    sides = sides_of_rotation(gauge, group, tensors)
    if not all(bool(side.isfinite().all()) for side in sides):
        undefined = sides[0].new_full((*sides[0].shape[:-1], group.size), torch.nan)
        return (undefined, undefined), undefined[..., 0]
    triangles = [torch.linalg.qr(side.mT, mode="r").R for side in sides]
    left, values, right = torch.linalg.svd(triangles[0] @ triangles[1].mT, full_matrices=False)
    told = values > 1e-14 * values.amax(-1, keepdim=True)
    inverse = torch.where(told, values.rsqrt(), 0.0)[..., None]
    matrices = (inverse * (right @ triangles[1]), inverse * (left.mT @ triangles[0]))
    missing = group.size - values.shape[-1]
    padded = [torch.nn.functional.pad(matrix, (0, 0, 0, missing)) for matrix in matrices]
    return (padded[0], padded[1]), values


def sides_of_rotation(gauge: Gauge, group: SymmetryGroup, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The two maps of a rotation at the representative, but for itself: A ``(*rows, d, m)`` and B ``(*rows, d, p)``."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    some: Tensor | None = None
    for block, acting in gauge.mixed.items():
        own = [each for each in acting if each.by == group.name]
        if len(own) == 1:
            (each,) = own
            front = (
                gauge.of(block, tensors, unmixed=group.name).movedim(each.dims, tuple(range(len(each.dims)))).double()
            )
            some = front.reshape(*front.shape[: len(each.dims)], -1)
            sides[each.degree < 0].append(some)
    assert some is not None
    nothing = some[..., :0]
    return torch.cat([nothing, *sides[0]], -1), torch.cat([nothing, *sides[1]], -1)
