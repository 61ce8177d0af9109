"""Streaming twins of the indicators of a cloud of features, from d x d sums."""

from typing import Any, ClassVar

from torch import Tensor

from lightning_symmetry.functional.feature_spectrum import Moments, feature_indicators, moments
from lightning_symmetry.metrics.representation_metric import RepresentationMetric, check_positive, check_width


class FeatureSpectrumMetric(RepresentationMetric):
    """A metric that is a function of N, sum z and sum z z^T over features z: ``num_features``^2 numbers.

    Args:
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_features`` is not at least 1.
    """

    indicator: ClassVar[str]
    samples: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(num_features=num_features)
        self.num_features = num_features
        self.add_sums(samples=(), total=(num_features,), outer=(num_features, num_features))

    def update(self, features: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            features: ``(n_samples, num_features)``.
            mask: ``(n_samples,)``, False for samples to leave out, such as padding.

        Raises:
            ValueError: If ``features`` has another shape.
        """
        check_width(features, self.num_features)
        self.add(**moments(features, mask)._asdict())

    def compute(self) -> Tensor:
        """The indicator of all features so far: 0-d."""
        return feature_indicators(Moments(self.samples, self.total, self.outer), [self.indicator])[self.indicator]


class EffectiveRank(FeatureSpectrumMetric):
    """Effective rank of features (RankMe): exp(H(p)), p_i = s_i / sum s, s the singular values of all features Z.

    From the second moment, s_i = sqrt(lambda_i(Z^T Z)). In [1, num_features]: 1 if all features lie on one line through
    0, num_features if they fill all directions alike; 0 if all are 0. Its twin for features that fit in memory is
    `lightning_symmetry.functional.effective_rank`. Garrido, Balestriero, Najman, LeCun, "RankMe: Assessing the
    downstream performance of pretrained self-supervised representations by their rank" (arXiv:2210.02885).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_features`` is not at least 1.

    Example:
        >>> import torch
        >>> metric = EffectiveRank(num_features=3)
        >>> for batch in torch.eye(3).split(1):
        ...     metric.update(batch)
        >>> round(metric.compute().item(), 6)
        3.0
    """

    indicator = "effective_rank"
    higher_is_better = True


class CovarianceParticipationRatio(FeatureSpectrumMetric):
    """Participation ratio of the covariance of features: (tr C)^2 / tr C^2.

    In [1, num_features]: 1 if all variance lies in one direction, num_features if it is the same in all; 0 without
    variance. Its twin is `lightning_symmetry.functional.covariance_participation_ratio`. Gao et al., "A theory of
    multineuronal dimensionality, dynamics and measurement" (doi:10.1101/214262).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_features`` is not at least 1.

    Example:
        >>> import torch
        >>> metric = CovarianceParticipationRatio(num_features=3)
        >>> for batch in torch.cat([torch.eye(3), -torch.eye(3)]).split(2):
        ...     metric.update(batch)
        >>> round(metric.compute().item(), 6)
        3.0
    """

    indicator = "participation_ratio"


class CovarianceStableRank(FeatureSpectrumMetric):
    """Stable rank of the covariance of features: |C|_F^2 / |C|_2^2.

    In [1, num_features]: 1 if one direction dominates, num_features if the variance is the same in all; 0 without
    variance. Its twin is `lightning_symmetry.functional.covariance_stable_rank`. Rudelson and Vershynin, "Sampling from
    large matrices" (arXiv:math/0503442).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_features`` is not at least 1.

    Example:
        >>> import torch
        >>> metric = CovarianceStableRank(num_features=3)
        >>> metric.update(torch.cat([torch.eye(3), -torch.eye(3)]))
        >>> round(metric.compute().item(), 6)
        3.0
    """

    indicator = "stable_rank"


class Isotropy(FeatureSpectrumMetric):
    """Isotropy of features (IsoScore): (P - 1) / (num_features - 1), P the participation ratio of their covariance.

    In [0, 1]: 0 if all variance lies in one direction, 1 if it is the same in all. Its twin is
    `lightning_symmetry.functional.isotropy`. Rudman, Gillman, Rayne, Eickhoff, "IsoScore" (arXiv:2108.07344).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_features`` is not at least 1.

    Example:
        >>> import torch
        >>> metric = Isotropy(num_features=3)
        >>> metric.update(torch.cat([torch.eye(3), -torch.eye(3)]))
        >>> round(metric.compute().item(), 6)
        1.0
    """

    indicator = "isotropy"
    plot_upper_bound = 1.0


class AlphaReQ(FeatureSpectrumMetric):
    """Decay of the spectrum of features (alpha-ReQ): alpha of lambda_i ~ i^-alpha, lambda those of their covariance.

    At least 0: 0 if the variance is the same in all directions, large if few hold it. Its twin is
    `lightning_symmetry.functional.alpha_req`. Agrawal, Mondal, Ghosh, Richards, "alpha-ReQ" (NeurIPS 2022).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_features`` is not at least 1.

    Example:
        >>> import torch
        >>> scales = torch.diag(torch.arange(1, 5) ** -1.0)  # variances i^-2
        >>> metric = AlphaReQ(num_features=4)
        >>> metric.update(torch.cat([scales, -scales]))
        >>> round(metric.compute().item(), 6)
        2.0
    """

    indicator = "alpha_req"


class NESum(FeatureSpectrumMetric):
    """Normalised sum of eigenvalues of features: sum lambda / lambda_1, lambda those of their covariance.

    In [1, num_features]: 1 if all variance lies in one direction, num_features if it is the same in all; 0 without
    variance. Its twin is `lightning_symmetry.functional.nesum`. He and Ozay (ICML 2022).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_features: The dimension of the features.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_features`` is not at least 1.

    Example:
        >>> import torch
        >>> metric = NESum(num_features=3)
        >>> metric.update(torch.cat([torch.eye(3), -torch.eye(3)]))
        >>> round(metric.compute().item(), 6)
        3.0
    """

    indicator = "nesum"
