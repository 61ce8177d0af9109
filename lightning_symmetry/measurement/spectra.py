"""Spectra of the weights of layers, and of the queries, keys and values that some hold one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_symmetry.functional.spectrum import spectral_indicators
from lightning_symmetry.keys import key_names
from lightning_symmetry.measurement.indicators import Piece

FUSED_NAMES = ("in_proj_weight", "c_attn", "qkv", "Wqkv")
"""The names of weights that hold those of queries, keys and values one after another."""

FUSED_PARTS = ("query", "key", "value")


def spectrum_pieces(layers: Mapping[str, torch.Size], indicators: Sequence[str]) -> list[Piece]:
    """One piece for each layer: indicators of the spectrum of its weights; and one for each part of a fused one."""
    keys = key_names(layers)
    whole = [_piece(layer, keys[layer], indicators, lambda weight: weight) for layer in layers]
    parts = [
        _piece(layer, f"{keys[layer]}_{part}", indicators, partial(_part, dim=dim, place=place))
        for layer, shape in layers.items()
        if (dim := fused_dim(layer, shape)) is not None
        for place, part in enumerate(FUSED_PARTS)
    ]
    return [*whole, *parts]


def fused_dim(layer: str, shape: torch.Size) -> int | None:
    """The dimension along which the weights of queries, keys and values lie one after another; None where none is it.

    Told by the names that PyTorch, GPT-2, timm and FlashAttention give to them, and by the shape, one side three times
    the other. Weights in which these alternate from head to head, as ``query_key_value`` of GPT-NeoX, are left whole.

    Example:
        >>> fused_dim("blocks.0.attn.qkv.weight", torch.Size([2304, 768]))
        0
    """
    if layer.removesuffix(".weight").rpartition(".")[-1] not in FUSED_NAMES or len(shape) != 2:
        return None
    return next((dim for dim in (0, 1) if shape[dim] == 3 * shape[1 - dim]), None)


def _part(weight: Tensor, dim: int, place: int) -> Tensor:
    return weight.chunk(len(FUSED_PARTS), dim)[place]


def _piece(layer: str, key: str, indicators: Sequence[str], part: Callable[[Tensor], Tensor]) -> Piece:
    return Piece(
        keys=tuple(f"spectrum/{indicator}/{key}" for indicator in indicators),
        measure=lambda tensors: list(spectral_indicators(part(tensors[layer]), indicators).values()),
        reads=(layer,),
    )


def spectrum_aggregates(layers: Mapping[str, torch.Size], values: Mapping[str, float]) -> dict[str, float]:
    """The mean over layers of the effective rank as a fraction of the largest possible."""
    keys = key_names(layers)
    fractions = [
        values[f"spectrum/effective_rank/{keys[layer]}"] / full_rank(shape)
        for layer, shape in layers.items()
        if f"spectrum/effective_rank/{keys[layer]}" in values
    ]
    return {"complexity/effective_rank_fraction": sum(fractions) / len(fractions)} if fractions else {}


def full_rank(shape: torch.Size) -> int:
    """The largest rank of a matrix of this shape, a convolution read as ``out x (in kh kw)``."""
    return min(shape[0], shape[1:].numel())
