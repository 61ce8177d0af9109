"""Names of axes: after the first parameter that holds them, and after their place in it.

``encoder.0.mlp`` is an axis that is a whole dimension of a parameter of that module. Where it is one factor of a
product, the name says which: ``attn.heads`` and ``attn.head_dims``, or ``groups`` and ``units`` outside attention.
Where it is in some segments of a concatenation, it says in which: ``attn.qk.head_dims`` and ``attn.v.head_dims`` of a
fused map. Where modules are stacked, ``heads`` is the axis along the list of them, whatever else has it, and
``heads.*.query`` one within each; where modules have names of their own, ``first,second`` and ``{first,second}.query``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from lightning_symmetry.labelling.axes import Atom, Axis, Concatenation, Place, atoms, resolve
from lightning_symmetry.stacks import list_of, n_stacked

_ATTENTION_ROLES = ("head_dims", "heads", "head_groups")
_OTHER_ROLES = ("units", "groups", "outer_groups")


def axis_names(wanted: Iterable[Atom], leaves: Mapping[str, Sequence[Axis]]) -> dict[Atom, str]:
    """A name for each atom that is on a leaf, none given twice."""
    names: dict[Atom, str] = {}
    dimensions = [(leaf, dim, axis) for leaf, axes in leaves.items() for dim, axis in enumerate(axes)]
    dimensions.sort(key=lambda dimension: dimension[1] >= n_stacked(dimension[0]))  # those along stacks first
    for atom in wanted:
        places = ((_module(leaf, dim), axis) for leaf, dim, axis in dimensions if atom in set(atoms(axis)))
        place = next(places, None)
        if place is not None:
            names[atom] = unlike(names.values(), _described(*place, atom))
    return names


def unlike(taken: Collection[str], name: str) -> str:
    """A name that is not taken: this one, or else with how many there are of it."""
    count = 1 + sum(name in (other, other.rpartition(".")[0]) for other in taken)
    return f"{name}.{count}" if name in taken else name


def _module(leaf: str, dim: int) -> str:
    """The module that an axis of a parameter is named after: along a stack the list of the modules in it."""
    if dim < n_stacked(leaf):
        return list_of(leaf, dim)
    return re.sub(r"[._](weight|bias)$", "", leaf)


def _described(module: str, axis: Axis, atom: Atom) -> str:
    attention = "att" in module.lower()
    words = [module]
    axis = resolve(axis)
    while atom not in [factor.atom for factor in axis if isinstance(factor, Place)]:
        segments = next(
            factor.segments for factor in axis if isinstance(factor, Concatenation) and atom in set(atoms((factor,)))
        )
        holding = [k for k, segment in enumerate(segments) if atom in set(atoms(segment))]
        if len(holding) < len(segments):
            fused = attention and len(segments) == 3
            words.append("".join("qkv"[k] for k in holding) if fused else "_".join(map(str, holding)))
        axis = resolve(segments[holding[0]])
    axis = tuple(factor for factor in axis if atoms((factor,)))
    if len(axis) > 1:
        roles = _ATTENTION_ROLES if attention else _OTHER_ROLES
        place = next(k for k, factor in enumerate(axis) if isinstance(factor, Place) and factor.atom is atom)
        words.append(roles[min(len(axis) - 1 - place, 2)])
    return ".".join(words)
