"""The streaming twin of how far units are from the noise equilibrium."""

from typing import Any

from torch import Tensor

from lightning_symmetry.functional.noise import noise_imbalance_of
from lightning_symmetry.metrics.representation_metric import RepresentationMetric, check_positive


class NoiseImbalance(RepresentationMetric):
    """How far units are from the equilibrium of SGD's noise: sum |Tr S_a - Tr S_b| / sum (Tr S_a + Tr S_b) over units.

    S is the centred covariance of the mini-batch gradient of one side of a unit whose two sides may be rescaled against
    each other: a its incoming weights (and bias), b its outgoing ones. In [0, 1]: 0 at the noise equilibrium, 1 if of
    each unit one side alone is noisy. Update it at each step with the gradients; reset it as the parameters move on.
    Its twin is `lightning_symmetry.functional.noise_imbalance`. Ziyin, Wang, Li, Wu (arXiv:2402.07193).

    Entries must lie within 1e-75 and 1e75, zero apart, so that float64 holds sums of their products.

    Args:
        num_units: The number of units.
        incoming_dim: How many weights come into each.
        outgoing_dim: How many go out of each.
        **kwargs: As for `torchmetrics.Metric`.

    Raises:
        ValueError: If a size is not at least 1.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 1))
        >>> metric = NoiseImbalance(num_units=8, incoming_dim=3, outgoing_dim=1)
        >>> for _ in range(20):
        ...     model.zero_grad()
        ...     (model(torch.randn(4, 3)) - torch.randn(4, 1)).square().mean().backward()
        ...     metric.update(model[0].weight.grad, model[2].weight.grad.T)
        >>> bool(0 < metric.compute() < 1)
        True
    """

    higher_is_better = False
    plot_upper_bound = 1.0
    incoming: Tensor
    outgoing: Tensor
    incoming_squares: Tensor
    outgoing_squares: Tensor
    steps: Tensor

    def __init__(self, num_units: int, incoming_dim: int, outgoing_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(num_units=num_units, incoming_dim=incoming_dim, outgoing_dim=outgoing_dim)
        self.shapes = ((num_units, incoming_dim), (num_units, outgoing_dim))
        self.add_sums(
            incoming=self.shapes[0],
            outgoing=self.shapes[1],
            incoming_squares=(num_units,),
            outgoing_squares=(num_units,),
            steps=(),
        )

    def update(self, incoming: Tensor, outgoing: Tensor) -> None:
        """Add the gradients of one mini-batch, or of several.

        Args:
            incoming: ``(num_units, incoming_dim)``, or ``(n_steps, num_units, incoming_dim)``.
            outgoing: ``(num_units, outgoing_dim)``, or ``(n_steps, num_units, outgoing_dim)``.

        Raises:
            ValueError: If they have other shapes.
        """
        sides = []
        for name, side, shape in zip(("incoming", "outgoing"), (incoming, outgoing), self.shapes, strict=True):
            if side.ndim not in (2, 3) or side.shape[-2:] != shape:
                raise ValueError(f"{name} must be {shape} or (n_steps, *{shape}), got shape {tuple(side.shape)}")
            sides.append(side.detach().double().reshape(-1, *shape))
        if len(sides[0]) != len(sides[1]):
            raise ValueError(f"incoming is of {len(sides[0])} steps, outgoing of {len(sides[1])}: give the same steps")
        self.add(
            incoming=sides[0].sum(0),
            outgoing=sides[1].sum(0),
            incoming_squares=sides[0].square().sum((0, 2)),
            outgoing_squares=sides[1].square().sum((0, 2)),
            steps=sides[0].new_tensor(len(sides[0])),
        )

    def compute(self) -> Tensor:
        """The imbalance of the noise of all steps so far: 0-d."""
        return noise_imbalance_of(
            self.incoming, self.outgoing, self.incoming_squares, self.outgoing_squares, self.steps
        )
