"""Spectra of the products that rotations leave unchanged: Q-K and V-O of every head, two linear maps, LoRA's B-A.

A rotation in GL(d) mixes the d directions between two maps; what the model computes tells only of their product. Its
spectrum is taken in the gauge of the other groups, for each row of the group, as for each head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_symmetry.functional.products import attention_logit_bound, product_core, rotary_attention_logit_bound
from lightning_symmetry.functional.spectrum import effective_rank
from lightning_symmetry.gauge.mixing import sides_of_rotation
from lightning_symmetry.keys import key_names
from lightning_symmetry.measurement.indicators import Piece, SharedGauge, Tensors, read_with
from lightning_symmetry.stacks import n_stacked
from lightning_symmetry.symmetry.actions import Block
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup
from lightning_symmetry.symmetry.planes import coordinates

INDICATORS = ("product_effective_rank", "attention_logit_bound")
"""What is measured of a product; the second of queries and keys alone."""


def product_pieces(symmetries: Symmetries, gauge: SharedGauge) -> list[Piece]:
    """One piece for each pair of maps with a rotation between.

    ``symmetry/product_effective_rank/GROUP`` is the mean over rows of the effective rank of the product; of queries and
    keys ``symmetry/attention_logit_bound/GROUP`` is the largest over heads of the bound on their logits. Where several
    heads of queries share their keys their queries count as one map, which can make the bound larger than theirs. Where
    positions turn queries and keys (RoPE), the product is that at one position, and the bound is that at all distances.

    Args:
        symmetries: The groups to measure.
        gauge: The gauge, of all groups of the model.
    """
    keys = key_names(group.name for group in symmetries)
    axes = {axis for block in gauge.symmetries.blocks for axis in block.axes}
    pieces = []
    for group in symmetries:
        turned = bool(group.form) and group.axis not in axes
        if group.kind == "rotation" and (_is_of_heads(group) if turned else not group.form):
            indicators = INDICATORS if turned or is_query_key(group) else INDICATORS[:1]
            pieces.append(
                Piece(
                    keys=tuple(f"symmetry/{indicator}/{keys[group.name]}" for indicator in indicators),
                    measure=partial(_turned if turned else _products, group, gauge),
                    reads=read_with(group, gauge.symmetries),
                )
            )
    return pieces


def is_query_key(group: SymmetryGroup) -> bool:
    """Whether the two maps of a rotation are queries and keys, both written along the d directions between.

    Of two maps one after another the second reads what the first writes, so that the d directions are another
    dimension of its weights. The rows are heads; where there is only one, both maps read the same axis.
    """
    written: dict[int, set[int]] = {1: set(), -1: set()}
    read: dict[int, set[str]] = {1: set(), -1: set()}
    for action in group.actions:
        dims = action.block.dims(group.axis)
        others = set(action.block.axes) - {group.axis, *(row for row, _ in group.rows)}
        if len(dims) == 1 and len(_origins(action.block)) > len(group.rows) + 1:
            side = 1 if action.degrees[dims[0]] > 0 else -1
            written[side].add(_origins(action.block)[dims[0]])
            read[side] |= others
    return len(written[1]) == 1 and written[1] == written[-1] and (bool(group.rows) or read[1] == read[-1])


def _origins(block: Block) -> tuple[int, ...]:
    """Of which dimension of its tensor each dimension of a block is a part; along a stack they are before the first."""
    splits = [view for view in block.views if len(view) == 2]
    origins = list(range(len(block.axes) - sum(len(sizes) - 1 for _, sizes in splits)))
    for dim, sizes in splits:
        origins[dim : dim + 1] = [origins[dim]] * len(sizes)
    return tuple(origin - n_stacked(block.tensor) for origin in origins)


def _products(group: SymmetryGroup, gauge: SharedGauge, tensors: Tensors) -> Sequence[Tensor]:
    sides = sides_of_rotation(gauge.at(tensors), group, tensors)
    rows = list(zip(*(side.reshape(group.n_rows, group.size, -1) for side in sides), strict=True))
    values = [torch.stack([effective_rank(product_core(*row)) for row in rows]).mean()]
    if is_query_key(group):
        values.append(torch.stack([attention_logit_bound(*row) for row in rows]).amax())
    return values


def _is_of_heads(group: SymmetryGroup) -> bool:
    """Whether the queries of a rotation of planes are alike, and its keys: not where a prefix holds others too."""
    sides: dict[bool, set[int]] = {True: set(), False: set()}
    for action in group.actions:
        sides[max(action.degrees, key=abs) > 0].add(len(_heads(group, action.block)))
    return all(len(counts) == 1 for counts in sides.values())


def _heads(group: SymmetryGroup, block: Block) -> list[int]:
    """The dimensions of heads that share a row: such as are written beside the planes that a rotation turns."""
    turned = [*(block.dims(row)[0] for row, _ in group.rows), *block.dims(group.axis)]
    origins, (plane, _) = _origins(block), group.rows[-1]
    written = (dim for dim, origin in enumerate(origins) if origin == origins[block.dims(plane)[0]])
    return [dim for dim in written if dim not in turned]


def _turned(group: SymmetryGroup, gauge: SharedGauge, tensors: Tensors) -> Sequence[Tensor]:
    sides: dict[int, list[Tensor]] = {1: [], -1: []}
    for action in group.actions:
        degree = max(action.degrees, key=abs)
        parts = []
        for block in coordinates(action, gauge.symmetries.blocks):
            named = action.block if block.views == action.block.views else block
            parts.append(_by_plane(group, named, gauge.at(tensors).of(block, tensors)))
        sides[1 if degree > 0 else -1].append(torch.cat(parts, -2))
    queries, keys = (torch.cat(parts, -1) for parts in sides.values())
    n_heads = max(queries.shape[1], keys.shape[1])
    heads = [
        (query, key)
        for side in zip(queries, keys, strict=True)
        for query, key in zip(*(each.expand(n_heads, *each.shape[1:]) for each in side), strict=True)
    ]
    ranks = [effective_rank(product_core(query.flatten(0, 1), key.flatten(0, 1))) for query, key in heads]
    bounds = [rotary_attention_logit_bound(query, key) for query, key in heads]
    return [torch.stack(ranks).mean(), torch.stack(bounds).amax()]


def _by_plane(group: SymmetryGroup, block: Block, entries: Tensor) -> Tensor:
    """Coordinates of the planes, ``(n_rows, n_heads, n_planes, 1 or 2, dim)``: heads of one row beside each other."""
    *rows, plane = (block.dims(row)[0] for row, _ in group.rows)
    parts = [rows, _heads(group, block), [plane], list(block.dims(group.axis))]
    turned = [dim for part in parts for dim in part]
    parts.append([dim for dim in range(entries.ndim) if dim not in turned])
    shape = [math.prod(entries.shape[dim] for dim in part) for part in parts]
    return entries.permute(*turned, *parts[-1]).reshape(shape)
