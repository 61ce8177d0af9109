"""Operations that look entries up, join tensors, or write into one."""

import torch

from lightning_symmetry.symmetry.axis_rules.registry import axis_rule, axis_table

aten = torch.ops.aten

axis_table({aten.embedding.default: "_ d, ... -> ... d"})


@axis_rule(aten.cat.default)
def _(tensors, dim=0):
    tensors = [tensor for tensor in tensors]
    n_dims = max(len(tensor.shape) for tensor in tensors)
    letters = [f"a{k}" for k in range(n_dims)]
    dim %= n_dims
    parts, inputs, sizes = [], [], {}
    for k, tensor in enumerate(tensors):
        if tuple(tensor.shape) == (0,):  # an empty vector joins any tensor, for history's sake
            inputs.append("1")
            continue
        parts.append(f"s{k}")
        sizes[f"s{k}"] = tensor.shape[dim]
        inputs.append(" ".join([*letters[:dim], f"s{k}", *letters[dim + 1 :]]))
    joined = f"({' + '.join(parts)})" if len(parts) > 1 else parts[0]
    return f"{', '.join(inputs)} -> {' '.join([*letters[:dim], joined, *letters[dim + 1 :]])}", sizes


@axis_rule(aten.index_select.default)
def _(input, dim, index):
    letters = ["_" if k == dim % len(input.shape) else f"a{k}" for k in range(len(input.shape))]
    return f"{' '.join(letters)}, _ -> {' '.join(letters)}"


@axis_rule(aten.gather.default)
def _(input, dim, index, *, sparse_grad=False):
    whole = ["_" if k == dim % len(input.shape) or n != m else f"a{k}" for k, (n, m) in _sizes(input, index)]
    return f"{' '.join(whole)}, {' '.join(whole)} -> {' '.join(whole)}"


@axis_rule(aten.scatter.src, aten.scatter_add.default)
def _(input, dim, index, source):
    whole = ["_" if k == dim % len(input.shape) or n != m else f"a{k}" for k, (n, m) in _sizes(input, index)]
    return f"{', '.join([' '.join(whole)] * 3)} -> {' '.join(whole)}"


@axis_rule(aten.scatter.value)
def _(input, dim, index, value):
    whole = ["_" if k == dim % len(input.shape) or n != m else f"a{k}" for k, (n, m) in _sizes(input, index)]
    return f"{', '.join([' '.join(whole)] * 2)} -> {' '.join(whole)}"


def _sizes(input, index):
    return enumerate(zip(input.shape, index.shape, strict=True))


@axis_rule(aten.index.Tensor)
def _(input, indices):
    """Replace the indexed dimensions by those of the indices, in place where they are neighbours, else in front.

    A mask stands for as many indices as it has dimensions, and all of them are replaced by one.
    """
    letters = [f"a{k}" for k in range(len(input.shape))]
    indexed: list[int] = []
    patterns: list[str] = []
    dim = 0
    for index in indices:
        masked = index is not None and index.dtype in (torch.bool, torch.uint8)
        width = len(index.shape) if masked else 1
        if index is not None:
            indexed.extend(range(dim, dim + width))
            patterns.append(" ".join(["_"] * width) if masked else "...")
        dim += width
    for k in indexed:
        letters[k] = "_"
    kept = [letter for letter in letters if letter != "_"]
    place = indexed[0] if indexed == list(range(indexed[0], indexed[-1] + 1)) else 0
    looked_up = "..." if "..." in patterns else "_"
    return f"{', '.join([' '.join(letters), *patterns])} -> {' '.join([*kept[:place], looked_up, *kept[place:]])}"


@axis_rule(aten.index_put.default)
def _(input, indices, values, accumulate=False):
    indexed = [k for k, index in enumerate(indices) if index is not None]
    letters = ["_" if k in indexed else f"a{k}" for k in range(len(input.shape))]
    told_apart = " ".join(["_"] * len(values.shape))
    if indexed == list(range(len(indexed))):
        kept = letters[len(indexed) :][-len(values.shape) :] if values.shape else []
        told_apart = " ".join(["_"] * (len(values.shape) - len(kept)) + kept)
    else:
        letters = ["_"] * len(letters)
    return f"{' '.join(letters)}{', ...' * len(indexed)}, {told_apart} -> {' '.join(letters)}"


@axis_rule(aten.slice_scatter.default)
def _(input, source, dim=0, start=None, end=None, step=1):
    letters = ["_" if k == dim % len(input.shape) else f"a{k}" for k in range(len(input.shape))]
    return f"{' '.join(letters)}, {' '.join(letters)} -> {' '.join(letters)}"


@axis_rule(aten.select_scatter.default)
def _(input, source, dim, index):
    letters = ["_" if k == dim % len(input.shape) else f"a{k}" for k in range(len(input.shape))]
    kept = [letter for letter in letters if letter != "_"]
    return f"{' '.join(letters)}, {' '.join(kept)} -> {' '.join(letters)}"


@axis_rule(aten.nll_loss_forward.default)
def _(input, target, weight, reduction, ignore_index):
    batch = "n " if len(input.shape) == 2 else ""
    classes = ", _" if weight is not None else ""
    loss = batch if reduction == 0 else ""
    return f"{batch}_, {batch}{classes} -> {loss}, "


@axis_rule(aten.nll_loss2d_forward.default)
def _(input, target, weight, reduction, ignore_index):
    classes = ", _" if weight is not None else ""
    return f"n _ h w, n h w{classes} -> {'n h w' if reduction == 0 else ''}, "


@axis_rule(aten.tril.default, aten.triu.default)
def _(input, diagonal=0):
    kept = " ".join(f"a{k}" for k in range(len(input.shape) - 2))
    return f"{kept} _ _ -> {kept} _ _"
