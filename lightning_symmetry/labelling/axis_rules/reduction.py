"""Operations that take an axis away, or go along it."""

import torch

from lightning_symmetry.labelling.axis_rules.registry import axis_rule, axis_table

aten = torch.ops.aten


def _letters(value):
    return [f"a{k}" for k in range(len(value.shape))]


def _reduced(value, dims, keepdim, outputs=1):
    """Reduce so many outputs over some dimensions: all of them where none is named."""
    letters = _letters(value)
    gone = {dim % max(len(letters), 1) for dim in ([dims] if isinstance(dims, int) else dims or range(len(letters)))}
    kept = ["1" if k in gone else letter for k, letter in enumerate(letters) if k not in gone or keepdim]
    return f"{' '.join(letters)} -> {', '.join([' '.join(kept)] * outputs)}"


def _in_order(value, dims):
    """The letters of a tensor but for dimensions whose positions are told apart."""
    letters = _letters(value)
    named = {dim % max(len(letters), 1) for dim in ([dims] if isinstance(dims, int) else dims)}
    return " ".join("_" if k in named else letter for k, letter in enumerate(letters))


@axis_rule(
    aten.amax.default,
    aten.amin.default,
    aten.any.dim,
    aten.mean.dim,
    aten.prod.dim_int,
    aten.sum.dim_IntList,
)
def _(input, dim=None, keepdim=False, **settings):
    return _reduced(input, dim, keepdim)


@axis_rule(aten.any.dims)
def _(input, dim=None, keepdim=False):
    return "... -> ..." if dim is not None and not dim else _reduced(input, dim, keepdim)  # unlike sum's, [] is none


@axis_rule(aten.argmax.default, aten.argmin.default)
def _(input, dim=None, keepdim=False):
    if dim is None:  # a number that counts all entries in order
        return f"{'_ ' * len(input.shape)}-> {'1 ' * len(input.shape) if keepdim else ''}"
    return _reduced(input, dim, keepdim) + _index_along(input, dim)


@axis_rule(aten.max.dim, aten.min.dim)
def _(input, dim, keepdim=False):
    return _reduced(input, dim, keepdim, outputs=2) + _index_along(input, dim)


def _index_along(value, dim):
    """The mark of a last output that holds indices along a dimension."""
    return f" @ a{dim % len(value.shape)}" if value.shape else ""


@axis_rule(aten.linalg_vector_norm.default)
def _(input, ord=2, dim=None, keepdim=False, *, dtype=None):
    return _reduced(input, dim, keepdim)


axis_table({packet.default: "... -> " for packet in (aten.any, aten.max, aten.mean, aten.min, aten.prod)})


@axis_rule(aten.sort.default)
def _sorted(input, dim=-1, *settings, **more):
    """Values in order of size, whatever the order in which they came, and where they came from.

    Indices are sorted to bring those together that are the same, as tokens by their experts, in whatever order.
    """
    after = _in_order(input, dim)
    along = " @ e" if input.dtype == torch.int64 else ""
    return f"{' '.join(_letters(input))}{along} -> {after}{along}, {after}{_index_along(input, dim)}"


@axis_rule(aten.topk.default)
def _(input, k, dim=-1, *settings, **more):
    return _sorted(input, dim)


@axis_rule(
    aten.cumprod.default,
    aten.cumsum.default,
    aten.flip.default,
    aten._fft_c2c.default,
    aten._fft_c2r.default,
    aten._fft_r2c.default,
)
def _(input, dims, *settings, **more):
    """Go along dimensions in their order, turn them around, or into frequencies."""
    return "{0} -> {0}".format(_in_order(input, dims))


@axis_rule(aten.unfold.default)
def _(input, dim, size, step):
    """Windows along a dimension, which may overlap."""
    return "{0} -> {0} _".format(_in_order(input, dim))


axis_table({aten.view_as_real_copy.default: "... -> ... _", aten.view_as_complex_copy.default: "... _ -> ..."})
