"""Streaming twins of the similarity of representations."""

from typing import Any

from torch import Tensor

from lightning_symmetry.functional.feature_spectrum import moments
from lightning_symmetry.functional.similarity import alignments_of, hsic, linear_cka_of
from lightning_symmetry.metrics.representation_metric import RepresentationMetric, check_positive, check_width


class LinearCKA(RepresentationMetric):
    """Linear centred kernel alignment of two representations, from the unbiased HSIC of mini-batches.

    sum_b HSIC(K_b, L_b) / sqrt(sum_b HSIC(K_b, K_b) sum_b HSIC(L_b, L_b)), K_b and L_b the Gram matrices of a batch. At
    most 1 but for noise: 1 if one is a rotation of the other times a factor, about 0 if they are independent. Batches
    of fewer than four samples count as nothing. Its twin is `lightning_symmetry.functional.linear_cka`. Nguyen, Raghu,
    Kornblith, "Do Wide and Deep Networks Learn the Same Things?" (arXiv:2010.15327).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        **kwargs: As for `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> features = torch.arange(24.0).reshape(12, 2) ** 2
        >>> metric = LinearCKA()
        >>> for batch in features.split(6):
        ...     metric.update(batch, 3 * batch.flip(1) + 1)
        >>> round(metric.compute().item(), 6)
        1.0
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    hsics: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums(hsics=(2, 2))

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add a batch.

        Args:
            first: ``(n_samples, dim)``.
            second: ``(n_samples, other_dim)``, of the same samples in the same order.

        Raises:
            ValueError: If a tensor has not two dimensions, or they have not the same number of samples.
        """
        self.add(hsics=hsic([first, second]))

    def compute(self) -> Tensor:
        """The similarity over all batches so far: 0-d."""
        return linear_cka_of(self.hsics)[0, 1]


class CanonicalAlignment(RepresentationMetric):
    """Cosines between the second moments of a layer's activations, of their gradients, and W W^T.

    Its value is a dictionary of ``"activation_gradient"`` and, where weights are given, ``"activation_weight"`` and
    ``"gradient_weight"``, each in [0, 1]: 0 if no direction is in both, 1 if the two are proportional. Its twin is
    `lightning_symmetry.functional.canonical_alignment`. Ziyin et al., "Formation of Representations in Neural Networks"
    (arXiv:2410.03006).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_features: The dimension of the activations.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_features`` is not at least 1.

    Example:
        >>> import torch
        >>> h = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> metric = CanonicalAlignment(num_features=2)
        >>> metric.update(h, gradients=-h, weight=torch.eye(2))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'activation_gradient': 1.0, 'activation_weight': 0.707, 'gradient_weight': 0.707}
    """

    higher_is_better = True
    plot_upper_bound = 1.0
    activation: Tensor
    gradient: Tensor
    weight: Tensor

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(num_features=num_features)
        self.num_features = num_features
        square = (num_features, num_features)
        self.add_sums(activation=square, gradient=square, weight=square)

    def update(self, activations: Tensor, gradients: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            activations: ``(n_samples, num_features)``.
            gradients: ``(n_samples, num_features)``, of the loss for the activations.
            weight: ``(num_features, other_dim)``: the weights that write the activations, or the transpose of those
                that read them.

        Raises:
            ValueError: If a tensor has another shape.
        """
        check_width(activations, self.num_features, "activations")
        check_width(gradients, self.num_features, "gradients")
        sums = {"activation": moments(activations).outer, "gradient": moments(gradients).outer}
        if weight is not None:
            check_width(weight.T, self.num_features, "weight.T")
            sums["weight"] = moments(weight.T).outer
        self.add(**sums)

    def compute(self) -> dict[str, Tensor]:
        """The alignments over all batches so far, each 0-d."""
        outers = {"activation": self.activation, "gradient": self.gradient}
        return alignments_of(outers | {"weight": self.weight} if bool(self.weight.any()) else outers)
