"""Pooling, resizing and padding: the last dimensions are space, whose positions are told apart."""

import torch

from lightning_symmetry.symmetry.axis_rules.registry import axis_rule

aten = torch.ops.aten


def _over_space(input, n_space, outputs=1):
    kept = " ".join(f"a{k}" for k in range(len(input.shape) - n_space))
    pattern = f"{kept}{' _' * n_space}"
    return f"{pattern} -> {', '.join([pattern] * outputs)}"


@axis_rule(aten.max_pool2d_with_indices.default)
def _(input, *settings, **more):
    return _over_space(input, 2, outputs=2)


@axis_rule(
    aten.avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten.upsample_bilinear2d.default,
    aten.upsample_nearest2d.default,
)
def _(input, *settings, **more):
    return _over_space(input, 2)


@axis_rule(aten.avg_pool1d.default)
def _(input, *settings, **more):
    return _over_space(input, 1)


@axis_rule(aten.constant_pad_nd.default)
def _(input, pad, value=0):
    letters = [f"a{k}" for k in range(len(input.shape))]
    padded = list(letters)
    for k in range(len(pad) // 2):
        before, after = pad[2 * k], pad[2 * k + 1]
        if before or after:
            dim = len(letters) - 1 - k
            if min(before, after) < 0:
                letters[dim] = padded[dim] = "_"
            else:
                parts = [f"p{k}"] * (before > 0) + [letters[dim]] + [f"q{k}"] * (after > 0)
                padded[dim] = f"({' + '.join(parts)})"
    sizes = {f"p{k}": pad[2 * k] for k in range(len(pad) // 2)} | {
        f"q{k}": pad[2 * k + 1] for k in range(len(pad) // 2)
    }
    return f"{' '.join(letters)} -> {' '.join(padded)}", sizes
