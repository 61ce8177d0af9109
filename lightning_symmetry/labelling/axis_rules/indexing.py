"""Operations that look entries up, join tensors, or write into one."""

import math

import torch

from lightning_symmetry.labelling.axis_rules.language import joined, unread
from lightning_symmetry.labelling.axis_rules.registry import axis_rule, axis_table

aten = torch.ops.aten

axis_table({aten.embedding.default: "e d, ... @ e -> ... d"})


@axis_rule(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def _(weight, indices, offsets, *settings, **more):
    """Sums, means or maxima of the rows that are looked up, and what is needed for gradients."""
    scores = [each for each in (*settings, *more.values()) if hasattr(each, "shape")]
    return f"e d, _ @ e, _{', _' * len(scores)} -> _ d, _, _, {'_ d @ e' if settings[1] == 2 else '_'}"


@axis_rule(aten.cat.default)
def _(tensors, dim=0):
    n_dims = max(len(tensor.shape) for tensor in tensors)
    letters = [f"a{k}" for k in range(n_dims)]
    dim %= n_dims
    parts, inputs, sizes = [], [], {}
    for k, tensor in enumerate(tensors):
        if 0 in tensor.shape and len(tensor.shape) < n_dims:  # an empty vector joins any tensor, for history's sake
            inputs.append("_")
        elif tensor.shape[dim] == 0:
            inputs.append(" ".join([*letters[:dim], "_", *letters[dim + 1 :]]))
        else:
            parts.append(f"s{k}")
            sizes[f"s{k}"] = tensor.shape[dim]
            inputs.append(" ".join([*letters[:dim], f"s{k}", *letters[dim + 1 :]]))
    whole = joined(parts) if parts else "_"
    return f"{', '.join(inputs)} -> {' '.join([*letters[:dim], whole, *letters[dim + 1 :]])}", sizes


@axis_rule(aten.index_select.default)
def _(input, dim, index):
    whole = [f"a{k}" for k in range(len(input.shape))]
    looked_up = list(whole)
    dim %= len(whole)
    whole[dim], looked_up[dim] = "e", "i"
    return f"{' '.join(whole)}, i @ e -> {' '.join(looked_up)}"


@axis_rule(aten.gather.default)
def _(input, dim, index, *, sparse_grad=False):
    whole, looked_up = _along(dim, input, index)
    return f"{whole}, {looked_up} @ e -> {looked_up}"


@axis_rule(aten.scatter.src, aten.scatter.value, aten.scatter_add.default, aten.scatter_reduce.two)
def _(input, dim, index, source, *settings, **more):
    tensors = [each for each in (index, source) if hasattr(each, "shape")]
    whole, written = _along(dim, input, *tensors)
    return f"{', '.join([whole, f'{written} @ e', *[written] * (len(tensors) - 1)])} -> {whole}"


def _along(dim, input, *others):
    """The letters of a tensor and of those that look up or write its entries along one dimension.

    Of two writes to one entry PyTorch does not say which is kept, so that their order tells nothing apart.
    """
    whole, entries = [], []
    for k in range(len(input.shape)):
        if k == dim % len(input.shape):
            whole.append("e")
            entries.append("i" if len({tensor.shape[k] for tensor in others}) == 1 else "_")
        else:
            letter = f"a{k}" if len({tensor.shape[k] for tensor in (input, *others)}) == 1 else "_"
            whole.append(letter)
            entries.append(letter)
    return " ".join(whole), " ".join(entries)


@axis_rule(aten.index.Tensor)
def _(input, indices):
    whole, patterns, looked_up = _indexing(input, indices)
    return f"{', '.join(map(' '.join, [whole, *patterns]))} -> {' '.join(looked_up)}"


@axis_rule(aten.index_put.default)
def _(input, indices, values, accumulate=False):
    whole, patterns, looked_up = _indexing(input, indices)
    given = looked_up[len(looked_up) - len(values.shape) :]
    one_value = all(length == 1 for term, length in zip(given, values.shape, strict=True) if term == "_")
    if len(patterns) == 1 and "_" in looked_up and one_value:  # one value wherever a mask says so
        patterns = [[f"a{k}" for k, letter in enumerate(whole) if letter == "_"]]
        whole = [f"a{k}" for k in range(len(whole))]
    return f"{', '.join(map(' '.join, [whole, *patterns, given]))} -> {' '.join(whole)}"


def _indexing(input, indices):
    """The letters of the input, of each index, and of what they look up.

    The indexed dimensions (`e0` the first of the input) are replaced by those of the indices (`i1` the last), in place
    where they are neighbours, else in front. A mask stands for as many indices as it has dimensions, each a vector of
    the places where it is true.
    """
    masks = [index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices]
    n_dims = max(
        1 if mask else len(index.shape) for index, mask in zip(indices, masks, strict=True) if index is not None
    )
    entries = [f"i{k}" for k in range(n_dims, 1, -1)] + ["_" if any(masks) else "i1"] * (n_dims > 0)
    whole = [f"a{k}" for k in range(len(input.shape))]
    indexed: list[int] = []
    patterns = []
    dim = 0
    for index, mask in zip(indices, masks, strict=True):
        width = len(index.shape) if mask else 1
        if index is not None:
            indexed.extend(range(dim, dim + width))
            whole[dim : dim + width] = ["_"] * width if mask else [f"e{dim}"]
            patterns.append(["_"] * width if mask else [*entries[n_dims - len(index.shape) :], f"@ e{dim}"])
        dim += width
    kept = [letter for k, letter in enumerate(whole) if k not in indexed]
    place = indexed[0] if indexed == list(range(indexed[0], indexed[-1] + 1)) else 0
    return whole, patterns, [*kept[:place], *entries, *kept[place:]]


@axis_rule(aten.copy.default)
def _(input, source, non_blocking=False):
    """Of what is overwritten only the shape counts."""
    n_dims = len(input.shape)
    old, new = [f"b{k}" for k in range(n_dims)], [f"a{k}" for k in range(n_dims)]
    shared = zip(new[n_dims - len(source.shape) :], source.shape, strict=True)
    given = ["1" if length == 1 else letter for letter, length in shared]
    return f"{', '.join(map(' '.join, [old, given]))} -> {' '.join(new)}"


@axis_rule(aten.slice_scatter.default)
def _(input, source, dim=0, start=None, end=None, step=1):
    """Write over the positions from start up to stop of a dimension; those before and after stay, if any."""
    new = [f"a{k}" for k in range(len(input.shape))]
    dim %= len(new)
    length = input.shape[dim]
    start, stop, step = slice(start, end, step).indices(length)
    if step != 1 or start >= stop:
        new[dim] = "_"
        return f"{', '.join([' '.join(new)] * 2)} -> {' '.join(new)}"
    before, after = ["before"] * (start > 0), ["after"] * (stop < length)
    source = list(new)
    old = list(new) if before or after else [f"b{k}" for k in range(len(new))]
    old[dim] = joined([*before, "over", *after])
    new[dim] = joined([*before, f"a{dim}", *after])
    sizes = {"before": start, "over": stop - start, f"a{dim}": stop - start, "after": length - stop}
    return f"{', '.join(map(' '.join, [old, source]))} -> {' '.join(new)}", sizes


@axis_rule(aten.nll_loss_forward.default)
def _(input, target, weight, reduction, ignore_index):
    batch = "n" if len(input.shape) == 2 else ""
    return _class_loss(f"{batch} c", batch, input.shape[-1], weight, batch if reduction == 0 else "", ignore_index)


@axis_rule(aten.nll_loss2d_forward.default)
def _(input, target, weight, reduction, ignore_index):
    return _class_loss("n c h w", "n h w", input.shape[1], weight, "n h w" if reduction == 0 else "", ignore_index)


def _class_loss(scores, target, classes, weight, loss, ignore_index):
    """Look up the score of the target class; an ignored class is told apart from the others."""
    by_class = ", c" if weight is not None else ""
    if 0 <= ignore_index < classes:
        return f"{scores}, {target}{by_class} -> {loss}, ".replace("c", "_")
    return f"{scores}, {target} @ c{by_class} -> {loss}, "


@axis_rule(aten.histc.default)
def _(input, bins=100, min=0, max=0):
    """How often each number occurs, as how many tokens are sent to each expert."""
    each = min == 0 and max in (bins - 1, bins)
    return (f"{unread(input.shape, 'u')} @ e -> e", {"e": bins}) if each else f"{unread(input.shape, 'u')} -> _"


@axis_rule(aten.as_strided_copy.default)
def _(input, size, stride, offset=0):
    """Windows that may overlap: outer dimensions stay that none reaches beyond, and inner ones that all go over."""
    old = [(length, math.prod(input.shape[k + 1 :])) for k, length in enumerate(input.shape)]
    new = list(zip(size, stride, strict=True))
    reach = [(offset or 0) + sum((length - 1) * step for length, step in new[k + 1 :]) for k in range(len(new))]
    first = [was == now and far < was[1] for was, now, far in zip(old, new, reach, strict=False)]
    steps = [[offset or 0, *stride[:k]] for k in range(len(new))][::-1]
    last = [
        was == now and not any(step % math.prod(was) for step in before)
        for was, now, before in zip(old[::-1], new[::-1], steps, strict=False)
    ]
    outer = [*first, False].index(False)
    inner = [*last[: len(old) - outer], False].index(False)
    kept = [f"a{k}" for k in range(len(old))]
    between = (["_"] * (len(dims) - outer - inner) for dims in (old, new))
    return " -> ".join(" ".join([*kept[:outer], *some, *kept[len(old) - inner :]]) for some in between)


@axis_rule(aten._ctc_loss.default, aten._ctc_loss.Tensor)
def _(scores, targets, *lengths, **settings):
    given = [targets, *(each for each in lengths if hasattr(each, "shape"))]
    return f"_ _ _{''.join(', ' + ' '.join('_' * len(each.shape)) for each in given)} -> _, _ _ _"


@axis_rule(aten.nonzero.default)
def _(input):
    """The places where a tensor is not zero, in order."""
    return f"{'_ ' * len(input.shape)}-> _ _"
