"""In which precision to measure.

Training may run in half precision, under autocast or with TF32 products: good for learning, too coarse for ranks and
distances, where a relative error of 1e-3 hides what is looked for. Global switches cannot be touched (training must not
notice that it is measured), but products in float64 are subject to none of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The cheapest dtype in which products of ``tensors`` are accurate to float32 or better.

    Args:
        tensors: What is to be measured, on one device.

    Returns:
        ``torch.float32``; but ``torch.float64`` if any tensor is float64 (or complex128), and wherever a float32
        product would be rounded further: under autocast, and at a ``torch.set_float32_matmul_precision`` below
        ``"highest"``.

    Example:
        >>> working_dtype(torch.ones(2, dtype=torch.bfloat16))
        torch.float32
    """
    is_double = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    return torch.float64 if is_double or any(_rounds_products(tensor.device) for tensor in tensors) else torch.float32


def for_measuring(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` without its graph, in ``dtype``; on the CPU if it lies on MPS, which has no float64.

    Args:
        tensor: Any floating-point tensor.
        dtype: The dtype to measure in, as from `working_dtype`.

    Returns:
        A tensor of the same shape.

    Example:
        >>> for_measuring(torch.ones(2, dtype=torch.float16, requires_grad=True), torch.float32)
        tensor([1., 1.])
    """
    return tensor.detach().to("cpu" if tensor.device.type == "mps" else tensor.device, dtype)


def binary_scale(magnitude: float) -> float:
    """The power of two next to ``magnitude``: what to divide by so that squares neither overflow nor underflow.

    Division by a power of two is exact. The result is kept within 2^-126 and 2^126, the normal range of float32.

    Args:
        magnitude: The largest absolute entry, finite and not 0.

    Returns:
        A power of two s with magnitude / s in [1/2, 1) inside that range.

    Example:
        >>> binary_scale(5.0)
        8.0
    """
    return 2.0 ** min(max(math.frexp(magnitude)[1], -126), 126)


def _rounds_products(device: torch.device) -> bool:
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return torch.is_autocast_enabled(device.type) or backend.matmul.fp32_precision not in ("none", "ieee")
