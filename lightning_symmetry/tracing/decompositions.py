"""What is written down in place of an operation: the core operations of ATen that it is made of.

Norms, pooling and a few others are kept whole, since they have rules of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from lightning_symmetry.tracing.tape import packets

aten = torch.ops.aten

KEPT_WHOLE = packets("""
    _adaptive_avg_pool2d _native_batch_norm_legit _native_batch_norm_legit_functional avg_pool1d avg_pool2d
    _native_batch_norm_legit_no_training max_pool2d_with_indices native_batch_norm native_group_norm native_layer_norm
    nll_loss2d_forward nll_loss_forward select_scatter upsample_bilinear2d upsample_nearest2d
""")


def _sparse_product(added: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """What `torch.sparse.mm` calls, as the product that it is."""
    return aten.mm(left, right) if (beta, alpha) == (0, 1) else NotImplemented


def _bilinear(left: Tensor, maps: Tensor, right: Tensor, *expanded: Any) -> Any:
    """What `torch.nn.functional.bilinear` calls, as two products: `expanded` are the dimensions missing in each."""
    if expanded[:4] != ([1, 3], [0], [1, 2], [2, 3]):
        return NotImplemented
    mapped = (left @ maps.transpose(0, 1).flatten(1)).unflatten(1, (len(maps), -1))
    return (mapped @ right.unsqueeze(2)).squeeze(2)


def _convolution_backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    """The derivative by the input, as of a gradient penalty, as the convolution the other way that it is."""
    if list(output_mask) != [True, False, False]:
        return NotImplemented
    steps = zip(gradient.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    reached = [(n - 1) * step - 2 * pad + apart * (taps - 1) + 1 for n, taps, step, pad, apart in steps]
    beyond = [0 if transposed else n - m for n, m in zip(input.shape[2:], reached, strict=True)]
    back = aten.convolution(gradient, weight, None, stride, padding, dilation, not transposed, beyond, groups)
    return back, None, None


DECOMPOSITIONS = {
    **{
        operation: decomposition
        for operation, decomposition in core_aten_decompositions().items()
        if getattr(operation, "overloadpacket", None) not in KEPT_WHOLE
    },
    aten._sparse_addmm.default: _sparse_product,
    aten._trilinear.default: _bilinear,
    aten.convolution_backward.default: _convolution_backward,
}
