"""Streaming twins of the shares of silent units and of equal tokens."""

from typing import Any

from torch import Tensor

from lightning_symmetry.functional.activations import check_threshold, dormant_fraction_of, token_rank_residuals
from lightning_symmetry.functional.feature_spectrum import as_samples
from lightning_symmetry.metrics.representation_metric import RepresentationMetric, check_positive, check_width


class DormantFraction(RepresentationMetric):
    """The share of units whose mean |activation| is at most ``threshold`` times the mean of the layer.

    In [0, 1]: 0 if every unit takes part, 1 if none does. Its twin is `lightning_symmetry.functional.dormant_fraction`.
    Sokar, Agarwal, Castro, Evci, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning" (arXiv:2302.12902).

    Args:
        num_features: The number of units.
        threshold: At least 0.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_features`` is not at least 1, or ``threshold`` is below 0.

    Example:
        >>> import torch
        >>> metric = DormantFraction(num_features=2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
        >>> metric.compute().item()
        0.5
    """

    higher_is_better = False
    plot_upper_bound = 1.0
    activity: Tensor

    def __init__(self, num_features: int, threshold: float = 0.025, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(num_features=num_features)
        check_threshold(threshold)
        self.num_features = num_features
        self.threshold = threshold
        self.add_sums(activity=(num_features,))

    def update(self, features: Tensor) -> None:
        """Add a batch.

        Args:
            features: ``(n_samples, num_features)``.

        Raises:
            ValueError: If ``features`` has another shape.
        """
        check_width(features, self.num_features)
        self.add(activity=as_samples(features).abs().sum(0))

    def compute(self) -> Tensor:
        """The share of dormant units over all features so far: 0-d."""
        return dormant_fraction_of(self.activity, self.threshold)


class TokenRankResidual(RepresentationMetric):
    """How far the tokens of a sequence are from being all the same: |X - 1 mean(X)^T|_F / |X|_F, mean over sequences.

    In [0, 1]: 0 if all tokens of each sequence are the same (rank collapse), 1 if they have mean 0. Its twin is
    `lightning_symmetry.functional.token_rank_residual`. Dong, Cordonnier, Loukas (arXiv:2103.03404).

    Args:
        **kwargs: As for `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = TokenRankResidual()
        >>> metric.update(torch.ones(1, 4, 2))
        >>> metric.update(torch.tensor([[[1.0], [-1.0]]]))
        >>> metric.compute().item()
        0.5
    """

    higher_is_better = True
    plot_upper_bound = 1.0
    residual: Tensor
    sequences: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums(residual=(), sequences=())

    def update(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            tokens: ``(n_sequences, n_tokens, dim)``, or ``(n_tokens, dim)`` for one sequence.
            mask: ``(n_sequences, n_tokens)``, False (or 0) for padding.

        Raises:
            ValueError: If ``tokens`` has neither two nor three dimensions, or ``mask`` not the shape of its tokens.
        """
        residuals = token_rank_residuals(tokens, mask)
        self.add(residual=residuals.sum(), sequences=residuals.new_tensor(len(residuals)))

    def compute(self) -> Tensor:
        """The mean over all sequences so far: 0-d."""
        return self.residual / self.sequences.clamp_min(1.0)
