"""Units that are silent, and tokens that are all the same.

Both are means over samples, of which the sums add up over batches and over processes. All results are detached 0-d
float64 tensors; a NaN or an infinity makes every result NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_symmetry.functional.feature_spectrum import as_samples
from lightning_symmetry.functional.precision import for_measuring, in_own_units


def dormant_fraction(features: Tensor, threshold: float = 0.025) -> Tensor:
    """The share of units that are tau-dormant: s_i <= tau, s_i = mean |h_i| / mean over units of mean |h_j|.

    Sokar, Agarwal, Castro, Evci, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning" (arXiv:2302.12902).

    Args:
        features: ``(n_samples, n_units)``, the activations of a layer.
        threshold: tau, at least 0.

    Returns:
        0-d, in [0, 1]: 0 if every unit takes part, 1 if none does, that is, if all activations are 0 or there are none.

    Raises:
        ValueError: If ``features`` has not two dimensions, or ``threshold`` is below 0.

    Example:
        >>> dormant_fraction(torch.tensor([[1.0, 0.0], [2.0, 0.0]])).item()
        0.5
    """
    check_threshold(threshold)
    return dormant_fraction_of(in_own_units(as_samples(features)).abs().sum(0), threshold)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold of `dormant_fraction` that is below 0.

    Raises:
        ValueError: If it is.
    """
    if not threshold >= 0:
        raise ValueError(
            f"threshold must be at least 0, got {threshold}: it is the activity, relative to the mean of the layer, up "
            "to which a unit counts as dormant, such as 0.025."
        )


def dormant_fraction_of(activity: Tensor, threshold: float = 0.025) -> Tensor:
    """`dormant_fraction` from the activity of each unit, summed over samples.

    Args:
        activity: ``(n_units,)``, sum |h_i|.
        threshold: As for `dormant_fraction`.

    Returns:
        As for `dormant_fraction`.

    Example:
        >>> dormant_fraction_of(torch.tensor([1.0, 0.0, 1.0, 0.0])).item()
        0.5
    """
    if not len(activity):
        return activity.new_ones((), dtype=torch.float64)
    mean = activity.mean()
    return torch.where(mean.isfinite(), (activity <= threshold * mean).double().mean(), torch.nan)


def token_rank_residual(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """How far the tokens of a sequence are from being all the same: |X - 1 mean(X)^T|_F / |X|_F, mean over sequences.

    Dong, Cordonnier, Loukas, "Attention is not all you need: pure attention loses rank doubly exponentially with depth"
    (arXiv:2103.03404).

    Args:
        tokens: ``(n_sequences, n_tokens, dim)``, or ``(n_tokens, dim)`` for one sequence.
        mask: ``(n_sequences, n_tokens)``, or ``(n_tokens,)``, False (or 0) for padding; None for none.

    Returns:
        0-d, in [0, 1]: 0 if all tokens of each sequence are the same (rank collapse), 1 if they have mean 0. A sequence
        that is all zero, or has no token, counts as 0.

    Raises:
        ValueError: If ``tokens`` has neither two nor three dimensions, or ``mask`` not the shape of its tokens.

    Example:
        >>> token_rank_residual(torch.ones(1, 4, 2)).item()
        0.0
        >>> token_rank_residual(torch.tensor([[1.0], [-1.0]])).item()
        1.0
    """
    residuals = token_rank_residuals(tokens, mask)
    return residuals.sum() / max(len(residuals), 1)


def token_rank_residuals(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """`token_rank_residual` of each sequence.

    Args:
        tokens: As for `token_rank_residual`.
        mask: As for `token_rank_residual`.

    Returns:
        ``(n_sequences,)``.

    Raises:
        ValueError: As for `token_rank_residual`.

    Example:
        >>> token_rank_residuals(torch.tensor([[[1.0], [-1.0]], [[1.0], [1.0]]]))
        tensor([1., 0.], dtype=torch.float64)
    """
    if tokens.ndim not in (2, 3):
        raise ValueError(
            f"tokens must be (n_sequences, n_tokens, dim) or (n_tokens, dim), got shape {tuple(tokens.shape)}."
        )
    if mask is not None and mask.shape != tokens.shape[:-1]:
        raise ValueError(
            f"mask must be {tuple(tokens.shape[:-1])}, one entry for each token, got shape {tuple(mask.shape)}."
        )
    rows = for_measuring(tokens, torch.float64)
    rows = rows if rows.ndim == 3 else rows[None]
    if not rows.numel():
        return rows.new_zeros(len(rows))
    kept = torch.ones_like(rows[..., :1], dtype=torch.bool) if mask is None else mask.to(rows.device).bool()
    kept = kept.reshape(*rows.shape[:2], 1)
    rows = torch.where(kept, rows, 0.0)
    largest = rows.abs().amax((1, 2), keepdim=True)
    rows = rows / torch.where(largest == 0, 1.0, largest)
    mean = rows.sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
    residual: Tensor = torch.linalg.matrix_norm(torch.where(kept, rows - mean, 0.0))
    norm = torch.linalg.matrix_norm(rows)
    return residual / torch.where(norm == 0, 1.0, norm)
