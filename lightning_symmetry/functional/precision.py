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
        tensor: Any tensor of real numbers, or of complex ones, which stay so.
        dtype: The dtype to measure in, as from `working_dtype`, or that of the parts of complex numbers.

    Returns:
        A tensor of the same shape.

    Example:
        >>> for_measuring(torch.ones(2, dtype=torch.float16, requires_grad=True), torch.float32)
        tensor([1., 1.])
    """
    dtype = dtype.to_complex() if tensor.is_complex() else dtype
    return tensor.detach().to("cpu" if tensor.device.type == "mps" else tensor.device, dtype)


def in_pairs(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, side by side in the last dimension; a tensor of real numbers as it is.

    Args:
        tensor: Any tensor of at least one dimension.

    Example:
        >>> in_pairs(torch.tensor([1 + 2j, 3 + 4j]))
        tensor([1., 2., 3., 4.])
    """
    return torch.view_as_real(tensor).flatten(-2) if tensor.is_complex() else tensor


def binary_scale(magnitude: float, dtype: torch.dtype = torch.float32) -> float:
    """The power of two next to ``magnitude``: what to divide by so that squares neither overflow nor underflow.

    Division by a power of two is exact. The result and its inverse are normal numbers: within 2^-126 and 2^126 in
    float32, within 2^-1022 and 2^1022 in float64.

    Args:
        magnitude: The largest absolute entry, finite and not 0.
        dtype: That in which is divided.

    Returns:
        A power of two s with magnitude / s in [1/2, 1) inside that range.

    Example:
        >>> binary_scale(5.0)
        8.0
    """
    limit = 1 - math.frexp(torch.finfo(dtype).tiny)[1]
    return 2.0 ** min(max(math.frexp(magnitude)[1], -limit), limit)


def common_scale(*tensors: Tensor) -> float:
    """The `binary_scale` of the largest entry of several tensors: what they can all be divided by.

    Args:
        tensors: Of one dtype, float32 or float64.

    Returns:
        A power of two; 1 where no entry is other than 0, or one is not finite.

    Example:
        >>> common_scale(torch.tensor([0.1, -3.0]), torch.tensor([1.0]))
        4.0
    """
    magnitudes = [torch.linalg.vector_norm(tensor, math.inf).item() for tensor in tensors if tensor.numel()]
    finite = all(map(math.isfinite, magnitudes)) and any(magnitudes)
    return binary_scale(max(magnitudes), tensors[0].dtype) if finite else 1.0


def in_own_units(tensor: Tensor) -> Tensor:
    """Divide by a power of two, so that squares neither overflow nor underflow, in float64 either.

    Args:
        tensor: Any tensor in float32 or float64.

    Example:
        >>> in_own_units(torch.tensor([1e300], dtype=torch.float64)).square().isfinite()
        tensor([True])
    """
    return tensor / common_scale(tensor)


def row_scales(*sides: Tensor) -> Tensor:
    """A power of two for each row: what to divide its entries by so that none is 2 or more, and one is 1 or more.

    Args:
        sides: Each ``(*rows, dim)``, dim free to differ.

    Returns:
        ``(*rows, 1)``; 1 for a row of zeros, NaN for one that is not finite.

    Example:
        >>> row_scales(torch.tensor([[5.0, 0.1], [0.0, 0.0]]))
        tensor([[4.],
                [1.]])
    """
    sizes = [torch.linalg.vector_norm(side, math.inf, -1, keepdim=True) for side in sides if side.shape[-1]]
    largest = torch.stack([sides[0].real.new_zeros(*sides[0].shape[:-1], 1), *sizes]).amax(0)
    return torch.where(largest == 0, 1.0, largest / (2 * torch.frexp(largest).mantissa))


def _rounds_products(device: torch.device) -> bool:
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return torch.is_autocast_enabled(device.type) or backend.matmul.fp32_precision not in ("none", "ieee")
