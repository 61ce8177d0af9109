"""Pooling, resizing and padding: the last dimensions are space, whose positions are told apart."""

import torch

from lightning_symmetry.symmetry.axis_rules.language import joined, unread
from lightning_symmetry.symmetry.axis_rules.registry import axis_rule

aten = torch.ops.aten


def _over_space(input, n_space, outputs=1):
    kept = " ".join(f"a{k}" for k in range(len(input.shape) - n_space))
    pattern = f"{kept}{' _' * n_space}"
    return f"{pattern} -> {', '.join([pattern] * outputs)}"


@axis_rule(aten.avg_pool1d.default, aten.upsample_linear1d.default, aten.upsample_nearest1d.default)
def _(input, *settings, **more):
    return _over_space(input, 1)


@axis_rule(
    aten._adaptive_avg_pool2d.default,
    aten._upsample_bicubic2d_aa.default,
    aten._upsample_bilinear2d_aa.default,
    aten.avg_pool2d.default,
    aten.upsample_bicubic2d.default,
    aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d_backward.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest2d_backward.default,
)
def _(input, *settings, **more):
    return _over_space(input, 2)


@axis_rule(aten.avg_pool2d_backward.default, aten._adaptive_avg_pool2d_backward.default)
def _(grad, input, *settings, **more):
    kept = " ".join(f"a{k}" for k in range(len(grad.shape) - 2))
    return f"{kept} _ _, {unread(input.shape, 'u')} -> {kept} _ _"


@axis_rule(aten.max_pool2d_with_indices_backward.default)
def _(grad, input, *settings, **more):
    """Each number goes where it is said to, in whatever order they stand."""
    kept = " ".join(f"a{k}" for k in range(len(grad.shape) - 2))
    return f"{kept} h w, {unread(input.shape, 'u')}, {kept} h w -> {kept} _ _"


@axis_rule(
    aten._adaptive_avg_pool3d.default,
    aten.avg_pool3d.default,
    aten.upsample_nearest3d.default,
    aten.upsample_trilinear3d.default,
)
def _(input, *settings, **more):
    return _over_space(input, 3)


@axis_rule(aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default)
def _(input, *settings, **more):
    return _over_space(input, 2, outputs=2)


@axis_rule(aten.max_pool3d_with_indices.default, aten.adaptive_max_pool3d.default)
def _(input, *settings, **more):
    return _over_space(input, 3, outputs=2)


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
