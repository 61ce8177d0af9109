"""The search for the gauge, the representative of an orbit, in an order in which no step undoes one before.

1. *Shifts*: what others absorb is zero, and all else at the point of least norm that translations reach.
2. *Gains*: a unit that is rescaled against a vector, as a norm's gain is against the maps that read it, has the
   vector folded into these. Means that nothing sees are taken away behind it.
3. *Scales* of all other axes together, at the least norm: see `lightning_symmetry.gauge.balancing`. A dead unit,
   with nothing on one of its sides, is zero there.
4. *Rotations* are balanced: see `lightning_symmetry.gauge.mixing`.

What is left are signs, permutations and rotations by orthogonal matrices, which leave inner products alone or are
matched.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_symmetry.gauge.balancing import Sum, alive, balance, part_of
from lightning_symmetry.gauge.centring import absorbed_by, shifts_of
from lightning_symmetry.gauge.gauge import Acting, Centred, Gauge, Tensors, gather
from lightning_symmetry.gauge.levels import is_whole, level_of, shape_of_scales, within_reach
from lightning_symmetry.gauge.mixing import MOST_SWEEPS, meeting, mixtures_of, rooted_sums
from lightning_symmetry.stacks import first_of
from lightning_symmetry.symmetry.actions import Action, Block
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup
from lightning_symmetry.symmetry.kinds import KINDS

_FAR = 25.0
"""The logarithm of a factor beyond which a scale has no place where it comes to rest."""


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
        folds = [fold for group in symmetries for fold in group.folds]
        pivots = {fold.pivot for fold in folds if fold.kind == "translation"}
        rotated = [fold for group in groups["rotation"] for fold in group.folds]
        gains = {fold.pivot for fold in rotated if fold.kind == "rescaling"}
        shifts, received = shifts_of([each for each in groups["translation"] if not each.folds], pivots, tensors)
        absorbed = frozenset(block for group in groups["translation"] for block in absorbed_by(group, pivots))
        gauge = replace(_structure(symmetries), shifts=shifts, received=received, absorbed=absorbed)
        for group in groups["rescaling"]:
            gauge = _folded(gauge, group, groups["sign"], gains, tensors)
        gauge = replace(gauge, centred=_centred(gauge, groups["translation"], symmetries.blocks))
        scaling = [*groups["rescaling"], *groups["scale"]]
        levels = {group.name: level_of(group, symmetries, tensors) for group in scaling}
        gauge = replace(gauge, living=alive(list(_plain_sums(gauge, levels, tensors, gauge.scaled)), levels))
        free = {name: level for name, level in levels.items() if name not in gauge.logarithms}
        rotations = [group for group in groups["rotation"] if not group.form]
        return _balanced(gauge, rotations, free, start, tensors)


def _by_kind(symmetries: Iterable[SymmetryGroup]) -> Mapping[str, list[SymmetryGroup]]:
    groups: dict[str, list[SymmetryGroup]] = {kind: [] for kind in KINDS}
    for group in symmetries:
        groups[group.kind].append(group)
    return groups


def _structure(symmetries: Symmetries) -> Gauge:
    """What acts on each block, with nothing scaled or mixed yet."""
    moved = {name for group in symmetries for name in group.parameters}
    every = symmetries.blocks or dict.fromkeys(block for group in symmetries for block in group.blocks)
    blocks = dict.fromkeys(block for block in every if first_of(block.tensor) in moved)
    scaled: dict[Block, list[Acting]] = {}
    mixed: dict[Block, list[Acting]] = {}
    translations: dict[str, list[tuple[str, Action, tuple[str, ...]]]] = {}
    for group in symmetries:
        for action in group.actions:
            if group.kind == "translation" and not group.folds:
                acting = (group.name, action, tuple(row for row, _ in group.rows))
                translations.setdefault(action.block.tensor, []).append(acting)
            elif group.kind in ("rescaling", "scale", "rotation") and not group.form:
                on = mixed if group.kind == "rotation" else scaled
                for block, each in _acting(group, action, blocks):
                    on.setdefault(block, []).append(each)
    return Gauge(
        scaled={block: tuple(each) for block, each in scaled.items()},
        mixed={block: tuple(each) for block, each in mixed.items()},
        translations={name: tuple(each) for name, each in translations.items()},
    )


def _acting(group: SymmetryGroup, action: Action, blocks: Mapping[Block, None]) -> Iterator[tuple[Block, Acting]]:
    """The blocks of a partition that an action moves, with the dimensions; a tensor as a whole has none."""
    if action.block in blocks:
        rows = [action.block.dims(row)[0] for row, _ in group.rows]
        for dim, degree in enumerate(action.degrees):
            if degree:
                yield action.block, Acting(group.name, degree, (*rows, dim))
    elif is_whole(group):
        for block in blocks:
            if block.tensor == action.block.tensor:
                yield block, Acting(group.name, max(action.degrees, key=abs), ())


def _folded(
    gauge: Gauge, group: SymmetryGroup, signs: Sequence[SymmetryGroup], gains: Collection[Block], tensors: Tensors
) -> Gauge:
    """Fold the vectors on one side of a rescaling, a norm's gain and bias, into the maps on the other side.

    The gain alone where a stream is rotated once it is folded, which changes the bias.
    """
    sides: dict[bool, list[Action]] = {True: [], False: []}
    for action in group.actions_on_parameters:
        if action.block not in gauge.absorbed:
            sides[max(action.degrees, key=abs) > 0].append(action)
    of_vectors = {
        side: bool(actions) and all(len(action.degrees) == 1 + len(group.rows) for action in actions)
        for side, actions in sides.items()
    }
    if of_vectors[True] == of_vectors[False]:
        return gauge
    vectors = [each for each in sides[of_vectors[True]] if each.block in gains] or sides[of_vectors[True]]
    degrees = {max(action.degrees, key=abs) for action in vectors}
    if len(vectors) == 1 and vectors[0].block in gains:
        gauge = _with_scales_handed_over(gauge, group, vectors[0])
    if len(degrees) > 1 or any(len(gauge.scaled[action.block]) > 1 for action in vectors):
        return gauge
    squares = torch.zeros(shape_of_scales(group), dtype=torch.float64)
    for action in vectors:
        (each,) = gauge.scaled[action.block]
        squares = squares + gather(gauge.of(action.block, tensors).abs().double().square().cpu(), each.dims)
    logarithms = torch.where(squares > 0, -squares.log() / (2 * degrees.pop()), 0.0)
    gauge = replace(gauge, logarithms={**gauge.logarithms, group.name: logarithms})
    moved = set(group.blocks)
    flips = [sign for sign in signs if {action.block for action in sign.actions_on_parameters} == moved]
    if len(vectors) > 1 or not flips or flips[0].rows != group.rows:
        return gauge
    flip = flips[0]
    (each,) = gauge.scaled[vectors[0].block]
    sign = gather(gauge.of(vectors[0].block, tensors).real.double().cpu(), each.dims).sign()
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


def _with_scales_handed_over(gauge: Gauge, group: SymmetryGroup, vector: Action) -> Gauge:
    """A gauge in which scales of whole tensors act on all else that is rescaled instead of on the vector to be folded.

    Both come to the same, but for a rescaling of all units alike.
    """
    own = [each for each in gauge.scaled[vector.block] if each.by == group.name]
    whole = [each for each in gauge.scaled[vector.block] if each.by != group.name and not each.dims]
    if len(own) + len(whole) < len(gauge.scaled[vector.block]) or not whole:
        return gauge
    scaled = dict(gauge.scaled)
    for action in group.actions_on_parameters:
        share = -max(action.degrees, key=abs) / max(vector.degrees, key=abs)
        for each in whole:
            before = [one for one in scaled[action.block] if one.by == each.by]
            degree = share * each.degree + sum(one.degree for one in before)
            others = tuple(one for one in scaled[action.block] if one not in before)
            scaled[action.block] = (*others, Acting(each.by, degree, ())) if degree else others
    return replace(gauge, scaled=scaled)


def _centred(
    gauge: Gauge, translations: Iterable[SymmetryGroup], blocks: Iterable[Block]
) -> dict[Block, tuple[Centred, ...]]:
    """The means that nothing sees behind a norm: of its gain times the map that reads it."""
    centred: dict[Block, tuple[Centred, ...]] = {}
    known = {(block.tensor, block.views): block for block in blocks}
    for group in translations:
        gains = [fold.pivot for fold in group.folds if fold.kind == "rescaling"]
        for action in group.actions if group.folds else ():
            seen = action.block  # with a dimension of one position in front, and no name for the one of the mean
            block = known[seen.tensor, seen.views[:-1]]
            gain = gains[0] if gains and gains[0] not in gauge.folded else None
            centred[block] = (*centred.get(block, ()), Centred(seen.axes.index("") - 1, gain))
    return centred


def _balanced(
    gauge: Gauge,
    rotations: Sequence[SymmetryGroup],
    levels: Mapping[str, Tensor],
    start: Gauge | None,
    tensors: Tensors,
) -> Gauge:
    """The scales that are free, and the rotations: these once more where two of them meet in a map that is scaled.

    From one time to the next the same share of the way is left; so once that share is known, the rest is gone at once.
    What then is still left, and is not less than before, is rounding.
    """
    again = any(each.by in levels for block in meeting(gauge) for each in gauge.scaled.get(block, ()))
    known = {} if start is None else {name: start.logarithms[name] for name in levels if name in start.logarithms}
    fixed = gauge.logarithms
    rotated = meeting(gauge)  # those where rotations meet are read as they are rotated
    unmixed = [block for block in gauge.scaled if block not in gauge.mixed or block in rotated]
    last, jumped = math.inf, False
    for _ in range(MOST_SWEEPS if again else 1):
        unscaled = replace(gauge, logarithms=fixed, living={n: v for n, v in gauge.living.items() if n not in levels})
        sums = [
            *_plain_sums(unscaled, levels, tensors, unmixed),
            *rooted_sums(unscaled, rotations, levels, tensors),
        ]
        living = alive(sums, levels, {name: gauge.living[name] for name in levels})
        if last == math.inf:
            levels = within_reach(sums, levels, living, {} if start is None else start.levels)
        found, steps = balance(sums, levels, known, living)
        unbounded = {name for name, values in found.items() if levels[name].any() and values.abs().max() > _FAR}
        if unbounded:  # two of them, and zeros among what they scale, leave nothing to balance: they stay as they are
            left = {name: torch.zeros_like(level) for name, level in levels.items() if name in unbounded}
            rest = {name: level for name, level in levels.items() if name not in unbounded}
            return _balanced(replace(gauge, logarithms={**fixed, **left}), rotations, rest, start, tensors)
        gone = {name: found[name] - known.get(name, 0.0) for name in found}
        change = max((float(way.abs().max()) for way in gone.values()), default=0.0)
        done = change < 1e-10 or (jumped and change < 1e-6 and change > 0.1 * last)
        share = 0.0 if done or jumped or last == math.inf else min(change / last, 0.9)
        known = {name: found[name] + share / (1 - share) * way for name, way in gone.items()}
        last, jumped = change, share > 0
        gauge = replace(
            gauge,
            levels=levels,
            logarithms={**fixed, **known},
            living={**gauge.living, **living},
            steps=gauge.steps + steps,
        )
        gauge = replace(gauge, mixtures=mixtures_of(gauge, rotations, tensors))
        if done:
            break
    return gauge


def _plain_sums(gauge: Gauge, levels: Mapping[str, Tensor], tensors: Tensors, blocks: Iterable[Block]) -> Iterator[Sum]:
    """The squares of those of some blocks that are scaled."""
    for block in blocks:
        free = [each for each in gauge.scaled[block] if each.by in levels]
        if free:
            yield Sum((part_of(gauge.of(block, tensors), free, power=2),))
