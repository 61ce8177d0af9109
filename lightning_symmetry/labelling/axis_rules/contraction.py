"""Products that sum over a shared axis."""

import torch

from lightning_symmetry.labelling.axis_rules.language import unread
from lightning_symmetry.labelling.axis_rules.registry import axis_rule, axis_table

aten = torch.ops.aten

axis_table({aten.mm.default: "m k, k n -> m n", aten.bmm.default: "b m k, b k n -> b m n"})


@axis_rule(aten.linalg_vecdot.default)
def _(x, y, dim=-1):
    kept = " ".join(f"a{k}" for k in range(len(x.shape) - 1))
    return f"{kept} k, {kept} k -> {kept}"


@axis_rule(aten.addmm.default)
def _(bias, left, right, **scales):
    return f"{' '.join('mn'[2 - len(bias.shape) :])}, m k, k n -> m n"


@axis_rule(aten._grouped_mm.default)
def _(rows, maps, offs=None, bias=None, out_dtype=None):
    """Stretches of rows, each with a map of its own, as tokens sorted by their experts."""
    return "_ m, _ m n, _ -> _ n"


@axis_rule(aten.convolution.default)
def _(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    space = over_space(weight.shape[2:], stride, padding)
    vector = "" if bias is None else ", (g o)"
    return f"n (g i){space}, {_kernel('i', weight, transposed)}{vector} -> n (g o){space}", {"g": groups}


@axis_rule(aten.convolution_backward.default)
def _(grad, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, output_mask):
    """The gradients of what is read, j, need the kernel alone; those of the kernel, what was read."""
    space = over_space(weight.shape[2:], stride, padding)
    read = f"n (g i){space}" if output_mask[1] else unread(input.shape, "u")
    kernel = _kernel("j", weight, transposed) if output_mask[0] else unread(weight.shape, "v")
    gradients = (f"n (g j){space}", _kernel("i", weight, transposed), "(g o)")
    wanted = ", ".join(pattern for pattern, asked_for in zip(gradients, output_mask, strict=True) if asked_for)
    return f"n (g o){space}, {read}, {kernel} -> {wanted}", {"g": groups}


def over_space(kernel, stride, padding):
    """A kernel of one position acts on each position of what it reads by itself."""
    settings = ([given] if isinstance(given, int) else given for given in (kernel, stride or kernel, padding or 0))
    each = (list(given) * (len(kernel) // len(given)) for given in settings)  # one number for all, or each
    return "".join(f" s{k}" if setting == (1, 1, 0) else " _" for k, setting in enumerate(zip(*each, strict=True)))


def _kernel(read, weight, transposed):
    window = " _" * (len(weight.shape) - 2)
    return f"(g {read}) o{window}" if transposed else f"(g o) {read}{window}"
