"""Products that sum over a shared axis."""

import torch

from lightning_symmetry.symmetry.axis_rules.registry import axis_rule, axis_table

aten = torch.ops.aten

axis_table(
    {
        aten.dot.default: "k, k -> ",
        aten.mv.default: "m k, k -> m",
        aten.mm.default: "m k, k n -> m n",
        aten.bmm.default: "b m k, b k n -> b m n",
    }
)


@axis_rule(aten.linalg_vecdot.default)
def _(x, y, dim=-1):
    kept = " ".join(f"a{k}" for k in range(len(x.shape) - 1))
    return f"{kept} k, {kept} k -> {kept}"


@axis_rule(aten.addmm.default)
def _(bias, left, right, **scales):
    return f"{' '.join('mn'[2 - len(bias.shape) :])}, m k, k n -> m n"


@axis_rule(aten.convolution.default)
def _(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    n_space = len(input.shape) - 2
    window = " _" * n_space
    steps, pads = (list(given) * (n_space // len(given)) for given in (stride, padding))  # one number for all, or each
    space = "".join(
        f" s{k}" if setting == (1, 1, 0) else " _"  # a kernel of one position acts on each by itself
        for k, setting in enumerate(zip(weight.shape[2:], steps, pads, strict=True))
    )
    kernel = f"(g i) o{window}" if transposed else f"(g o) i{window}"
    vector = "" if bias is None else ", (g o)"
    return f"n (g i){space}, {kernel}{vector} -> n (g o){space}", {"g": groups}
