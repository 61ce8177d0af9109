"""What all metrics of representations share: sums in float64, which add up over batches and over processes.

No module of metrics postpones its annotations: `torch.jit.script` reads them.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class RepresentationMetric(Metric):
    """A metric whose states are sums of fixed size, whatever the number of samples.

    States are in float64, where collapse can be told from noise, and stay so when a module is cast to half precision;
    so they cannot be moved to MPS, which has no float64.

    Args:
        **kwargs: As for `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False
    plot_lower_bound = 0.0

    def add_sums(self, **shapes: tuple[int, ...]) -> None:
        """Add states that start as zeros of these shapes, and are summed over processes."""
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, **sums: Tensor) -> None:
        """Add the sums of a batch to the states."""
        for name, value in sums.items():
            state = getattr(self, name)
            setattr(self, name, state + value.to(state.device))

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or several values; needs matplotlib.

        Args:
            val: What `forward` or `compute` returned, or a list of these; the current value by default.
            ax: The axes to draw on; new ones by default.

        Returns:
            The figure and its axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        return self._plot(val, ax)


def check_positive(**numbers: int) -> None:
    """Refuse sizes that are no positive whole numbers.

    Raises:
        ValueError: If one is not.
    """
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")


def check_width(features: Tensor, num_features: int, name: str = "features") -> None:
    """Refuse features of another width than the states have.

    Raises:
        ValueError: If the last dimension of ``features`` is not ``num_features``.
    """
    if features.ndim and features.shape[-1] != num_features:
        raise ValueError(
            f"{name} must be (n_samples, {num_features}), as num_features={num_features} says; got shape "
            f"{tuple(features.shape)}"
        )
