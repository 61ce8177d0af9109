"""The translations of a model: the shifts of its leaves that cancel, as they act on blocks of parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

from lightning_symmetry.symmetry.actions import Block, Blocks, Carried, Map, Places
from lightning_symmetry.symmetry.axes import Atom, Place
from lightning_symmetry.symmetry.charges import Hidden, Image, Key, Unknown
from lightning_symmetry.symmetry.shifts import Path, root, shifts, wholes

_LARGEST = 64
"""The largest common denominator of degrees that are given in whole numbers."""


@dataclass(frozen=True)
class Shift:
    """A vector added along an axis: how often by each unknown there, and what it becomes along others."""

    degrees: Mapping[Unknown, float]
    carried: tuple[Carried, ...] = ()


def shifts_along(blocks: Blocks, atoms: Iterable[Atom]) -> dict[Atom, list[Shift]]:
    """The shifts that cancel, by the axis along which they start: those of biases before those of matrices."""
    vectors_first = sorted(blocks, key=lambda block: len(block[0].axes) > 1)
    axes = {place.key: place.atom for _, places in vectors_first for place in places if place is not None}
    atoms = dict.fromkeys((*axes.values(), *atoms))
    outer = _outer(blocks)
    forms = [form for atom in atoms for form in atom.vanishing]
    equations = [_without_images_along(outer, form.shift.items()) for form in forms]
    means = (key for form in forms for key in form.mean)
    hidden = [_without_images_along(outer, key.shift) for key in means if isinstance(key, Hidden)]
    dimensions = _by_dimension(blocks)
    found: dict[Atom, list[Shift]] = {}
    for leaf, followers in shifts(equations, list(axes), hidden).items():
        degree = _degrees(share for shares in followers.values() for share, _ in shares)
        degrees: dict[Unknown, float] = {
            key: degree(share) for key, shares in followers.items() for share, path in shares if not path
        }
        carried = _carried(dimensions, followers, degree)
        if carried is not None:
            found.setdefault(axes[leaf], []).append(Shift(degrees, carried))
    return found


def _outer(blocks: Blocks) -> set[Key]:
    """The unknowns of all factors of a product of axes but the last: of an image the last stands for all of them."""
    outer: set[Key] = set()
    for _, places in blocks:
        last: dict[Key, Key] = {}
        for key in (place.key for place in places if place is not None):
            dimension = root(key)
            outer.update([last[dimension]] if dimension in last else [])
            last[dimension] = key
    return outer


def _without_images_along(outer: set[Key], form: Iterable[tuple[Unknown, Fraction]]) -> dict[Unknown, Fraction]:
    return {key: value for key, value in form if not _is_along(key, outer)}


def _is_along(key: Unknown, outer: set[Key]) -> bool:
    """Whether a shift is an image along one of these axes."""
    return isinstance(key, Image) and (key.write in outer or _is_along(key.of, outer))


def _degrees(shares: Iterable[Fraction]) -> Callable[[Fraction], float]:
    """Shares in whole numbers where there are such, as none are of a factor like the root of two."""
    common = math.lcm(*(share.denominator for share in shares))
    return float if common > _LARGEST else lambda share: int(share * common)


def _by_dimension(blocks: Blocks) -> dict[Key, Blocks]:
    """The blocks of each dimension of a leaf, by its unknown as a whole."""
    found: defaultdict[Key, list[tuple[Block, Places]]] = defaultdict(list)
    for block, places in blocks:
        for whole in dict.fromkeys(root(place.key) for place in places if place is not None):
            found[whole].append((block, places))
    return dict(found)


def _carried(
    dimensions: Mapping[Key, Blocks],
    followers: dict[Key, list[tuple[Fraction, Path]]],
    degree: Callable[[Fraction], float],
) -> tuple[Carried, ...] | None:
    """What becomes of a shift along other axes; None where that is no linear map of blocks."""
    taken = {key: through for key, shares in followers.items() if (through := [each for each in shares if each[1]])}
    carried = []
    for block, places in dict(chain.from_iterable(dimensions[root(key)] for key in taken)).items():
        keys = [place.key for place in places if place is not None and place.key in taken]
        for share, path in taken[keys[-1]] if keys else ():  # the other dimensions of the block follow
            maps = tuple(each for each in (_map(dimensions, *each) for each in path) if each is not None)
            written = {maps[-1].block.axes[dim] for dim in maps[-1].writes} if len(maps) == len(path) else None
            if written is None or not written <= set(block.axes) or not _is_followed(block, places):
                return None
            carried.append(Carried(block, degree(share), maps))
    return tuple(carried)


def _is_followed(block: Block, places: Iterable[Place | None]) -> bool:
    """Whether every dimension has a place; not where positions were singled out, as of the two of a rotary pair."""
    return block.numel == math.prod(place.size for place in places if place is not None)


def _map(dimensions: Mapping[Key, Blocks], read: Key, write: Key) -> Map | None:
    """The one block that maps an axis to another; None where more do, or where it is not followed to every position."""
    found = []
    sides = (root(read), root(write))
    for block, places in dimensions[sides[0]]:
        keys = {dim: list(wholes(place.key)) for dim, place in enumerate(places) if place is not None}
        reads, writes = (tuple(dim for dim, parts in keys.items() if parts[-1] == side) for side in sides)
        if any(read in parts for parts in keys.values()):
            here = any(write in parts for parts in keys.values())
            found.append((here and _is_followed(block, places), Map(block, reads, writes)))
    mapping = [each for here, each in found if here]
    whole = {len(each.writes) for _, each in found}
    return mapping[0] if len(mapping) == 1 and len(whole) == 1 else None
