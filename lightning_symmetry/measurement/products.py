"""Spectra of the products that rotations leave unchanged: Q-K and V-O of every head, two linear maps, LoRA's B-A.

A rotation in GL(d) mixes the d directions between two maps; what the model computes tells only of their product. Its
spectrum is taken in the gauge of the other groups, for each row of the group, as for each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_symmetry.functional.products import attention_logit_bound, product_core
from lightning_symmetry.functional.spectrum import effective_rank
from lightning_symmetry.measurement.indicators import Piece, SharedGauge, Tensors, key_names
from lightning_symmetry.symmetry.actions import Block
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup
from lightning_symmetry.symmetry.mixing import sides_of_rotation


def product_pieces(symmetries: Symmetries, gauge: SharedGauge) -> list[Piece]:
    """One piece for each pair of maps with a rotation between.

    ``symmetry/product_effective_rank/GROUP`` is the mean over rows of the effective rank of the product; of queries and
    keys ``symmetry/attention_logit_bound/GROUP`` is the largest over heads of the bound on their logits. Where several
    heads of queries share their keys their queries count as one map, which can make the bound larger than theirs. Where
    positions rotate queries and keys in planes (RoPE), they have no one product, and no piece.

    Args:
        symmetries: The groups to measure.
        gauge: The gauge, of all groups of the model.
    """
    keys = key_names(group.name for group in symmetries)
    return [
        Piece(
            keys=tuple(f"symmetry/{indicator}/{keys[group.name]}" for indicator in _indicators(group)),
            measure=partial(_measure, group, gauge),
        )
        for group in symmetries
        if group.kind == "rotation" and not group.form
    ]


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
    """Of which dimension of its tensor each dimension of a block is a part."""
    splits = [view for view in block.views if len(view) == 2]
    origins = list(range(len(block.axes) - sum(len(sizes) - 1 for _, sizes in splits)))
    for dim, sizes in splits:
        origins[dim : dim + 1] = [origins[dim]] * len(sizes)
    return tuple(origins)


def _indicators(group: SymmetryGroup) -> tuple[str, ...]:
    return ("product_effective_rank", "attention_logit_bound") if is_query_key(group) else ("product_effective_rank",)


def _measure(group: SymmetryGroup, gauge: SharedGauge, tensors: Tensors) -> Sequence[Tensor]:
    sides = sides_of_rotation(gauge.at(tensors), group, tensors)
    rows = list(zip(*(side.reshape(group.n_rows, group.size, -1) for side in sides), strict=True))
    values = [torch.stack([effective_rank(product_core(*row)) for row in rows]).mean()]
    if is_query_key(group):
        values.append(torch.stack([attention_logit_bound(*row) for row in rows]).amax())
    return values
