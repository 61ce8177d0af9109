"""Softmax and the norms: what they keep, and the statistics that they take within."""

from functools import partial

import torch

from lightning_symmetry.labelling.axis_rules.registry import axis_rule
from lightning_symmetry.tracing.centred import CENTRED

aten = torch.ops.aten


def _along(input, dims):
    """What looks at some dimensions as wholes: it takes one number within at every place of the others."""
    letters = [f"a{k}" for k in range(len(input.shape))]
    kept = [letter for k, letter in enumerate(letters) if k not in dims]
    return f"{' '.join(letters)} -> {' '.join(letters)}; {' '.join(kept)}"


@axis_rule(aten._softmax.default, aten._log_softmax.default)
def _(input, dim, half_to_float=False):
    return _along(input, [dim % max(len(input.shape), 1)])


axis_rule(CENTRED)(_along)


@axis_rule(aten.native_layer_norm.default)
def _(input, normalized_shape, weight, bias, eps):
    normed = " ".join(f"a{k}" for k in range(len(normalized_shape)))
    affine = "".join(f", {normed}" for parameter in (weight, bias) if parameter is not None)
    statistics = "..." + " 1" * len(normalized_shape)
    return f"... {normed}{affine} -> ... {normed}, {statistics}, {statistics}"


@axis_rule(aten.native_group_norm.default)
def _(input, weight, bias, batch, channels, space, groups, eps):
    affine = "".join(", (g c)" for parameter in (weight, bias) if parameter is not None)
    return f"n (g c) ...{affine} -> n (g c) ..., n g, n g", {"g": groups}


def _batch_norm(n_outputs, input, *settings):
    """Batch norm: whatever goes in and comes out beside the tensor itself is a vector of channels."""
    n_vectors = sum(hasattr(each, "shape") for each in settings)
    return f"n c ...{', c' * n_vectors} -> n c ...{', c' * (n_outputs - 1)}; c"


for _operation in (
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_functional.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.native_batch_norm.default,
):
    axis_rule(_operation)(partial(_batch_norm, len(_operation._schema.returns)))
