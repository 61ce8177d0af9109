"""Operations that take an axis away, or go along it."""

import torch

from lightning_symmetry.symmetry.axis_rules.registry import axis_rule, axis_table

aten = torch.ops.aten


def _letters(value):
    return [f"a{k}" for k in range(len(value.shape))]


def _reduced(value, dims, keepdim, outputs=1):
    """Reduce so many outputs over some dimensions: all of them where none is named."""
    letters = _letters(value)
    gone = {dim % max(len(letters), 1) for dim in ([dims] if isinstance(dims, int) else dims or range(len(letters)))}
    kept = ["1" if k in gone else letter for k, letter in enumerate(letters) if k not in gone or keepdim]
    return f"{' '.join(letters)} -> {', '.join([' '.join(kept)] * outputs)}"


def _in_order(value, dim, outputs=1):
    """Go along one dimension in its order, which tells its positions apart."""
    letters = _letters(value)
    if letters:
        letters[dim % len(letters)] = "_"
    return f"{' '.join(letters)} -> {', '.join([' '.join(letters)] * outputs)}"


@axis_rule(aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default)
def _(input, dim=None, keepdim=False, *, dtype=None):
    return _reduced(input, dim, keepdim)


@axis_rule(aten.any.dims, aten.all.dims)
def _(input, dim=None, keepdim=False):
    return "... -> ..." if dim is not None and not dim else _reduced(input, dim, keepdim)  # unlike sum's, [] is none


@axis_rule(aten.any.dim, aten.all.dim, aten.prod.dim_int)
def _(input, dim, keepdim=False, *, dtype=None):
    return _reduced(input, dim, keepdim)


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


@axis_rule(aten.var.correction)
def _(input, dim=None, *, correction=None, keepdim=False):
    return _reduced(input, dim, keepdim)


@axis_rule(aten.linalg_vector_norm.default)
def _(input, ord=2, dim=None, keepdim=False, *, dtype=None):
    return _reduced(input, dim, keepdim)


axis_table(
    dict.fromkeys(
        [
            aten.sum.default,
            aten.mean.default,
            aten.prod.default,
            aten.max.default,
            aten.min.default,
            aten.any.default,
            aten.all.default,
        ],
        "... -> ",
    )
)


@axis_rule(aten.cumsum.default, aten.cumprod.default)
def _(input, dim, *, dtype=None):
    return _in_order(input, dim)


@axis_rule(aten.sort.default)
def _(input, dim=-1, descending=False):
    return _sorted(input, dim)


@axis_rule(aten.topk.default)
def _(input, k, dim=-1, largest=True, sorted=True):
    return _sorted(input, dim)


def _sorted(value, dim):
    """Values in order of size, whatever the order in which they came, and where they came from."""
    letters = _letters(value)
    after = ["_" if k == dim % max(len(letters), 1) else letter for k, letter in enumerate(letters)]
    return f"{' '.join(letters)} -> {' '.join(after)}, {' '.join(after)}{_index_along(value, dim)}"


@axis_rule(aten.flip.default, aten._fft_r2c.default, aten._fft_c2c.default, aten._fft_c2r.default)
def _(input, dims, *settings):
    """Turn dimensions around, or into frequencies."""
    letters = ["_" if k in {dim % len(input.shape) for dim in dims} else f"a{k}" for k in range(len(input.shape))]
    return f"{' '.join(letters)} -> {' '.join(letters)}"


@axis_rule(aten.view_as_real_copy.default)
def _(input):
    return "... -> ... _"
