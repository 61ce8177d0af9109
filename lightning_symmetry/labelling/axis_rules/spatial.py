"""Pooling, resizing and padding: the last dimensions are space, whose positions are told apart."""

from functools import partial

import torch

from lightning_symmetry.labelling.axis_rules.contraction import over_space
from lightning_symmetry.labelling.axis_rules.language import joined, unread
from lightning_symmetry.labelling.axis_rules.registry import axis_rule

aten = torch.ops.aten


OVER_SPACE = {
    1: "avg_pool1d",
    2: """
        _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _upsample_bicubic2d_aa _upsample_bilinear2d_aa
        adaptive_max_pool2d avg_pool2d avg_pool2d_backward max_pool2d_with_indices upsample_bicubic2d
        upsample_bilinear2d upsample_bilinear2d_backward upsample_nearest2d upsample_nearest2d_backward
    """,
    3: "_adaptive_avg_pool3d adaptive_max_pool3d avg_pool3d max_pool3d_with_indices upsample_trilinear3d",
}
"""Operations by how many dimensions space has: all that comes out is laid out as what comes in first."""


def _over_space(n_space, n_outputs, pools, input, *settings, **more):
    """Of another tensor, as of what a pool was of whose gradient this is, only the shape counts."""
    space = over_space(*(*settings, (), 0)[:3]) if pools else " _" * n_space
    pattern = " ".join(f"a{k}" for k in range(len(input.shape) - n_space)) + space
    others = [unread(each.shape, "u") for each in settings if hasattr(each, "shape")]
    return f"{', '.join([pattern, *others])} -> {', '.join([pattern] * n_outputs)}"


for _n_space, _names in OVER_SPACE.items():
    for _name in _names.split():
        _operation, _pools = getattr(aten, _name).default, _name.startswith("avg_pool") and "backward" not in _name
        axis_rule(_operation)(partial(_over_space, _n_space, len(_operation._schema.returns), _pools))


@axis_rule(aten.max_pool2d_with_indices_backward.default)
def _(grad, input, *settings, **more):
    """Each number goes where it is said to, in whatever order they stand."""
    kept = " ".join(f"a{k}" for k in range(len(grad.shape) - 2))
    return f"{kept} h w, {unread(input.shape, 'u')}, {kept} h w -> {kept} _ _"


@axis_rule(aten.grid_sampler_2d.default)
def _(input, grid, *settings):
    return "n c _ _, n h w _ -> n c h w"


@axis_rule(aten.constant_pad_nd.default)
def _(input, pad, value=0):
    """Lay new positions, all the same, before and after a dimension, or cut some off where a number is negative."""
    letters = [f"a{k}" for k in range(len(input.shape))]
    padded = list(letters)
    sizes: dict[str, int] = {}
    for k in range(len(pad) // 2):
        before, after = pad[2 * k : 2 * k + 2]
        dim = len(letters) - 1 - k
        sizes |= {f"p{dim}": abs(before), f"q{dim}": abs(after)}
        letters[dim] = joined([f"p{dim}"] * (before < 0) + [f"a{dim}"] + [f"q{dim}"] * (after < 0))
        padded[dim] = joined([f"p{dim}"] * (before > 0) + [f"a{dim}"] + [f"q{dim}"] * (after > 0))
    return f"{' '.join(letters)} -> {' '.join(padded)}", sizes
