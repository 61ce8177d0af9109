"""How a two-layer linear network learns under gradient flow from small balanced weights (arXiv:1312.6120)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def mode(times: NDArray[np.float64], strength: float, start: float) -> NDArray[np.float64]:
    """A mode of the product of both layers: du/dt = 2 u (s - u) from u(0), the loss being |W_2 W_1 - Y|^2 / 2."""
    return strength / (1 + (strength / start - 1) * np.exp(-2 * strength * times))


def time_to_reach(level: float, strength: float, start: float) -> float:
    """When a mode reaches a level below its strength."""
    return math.log((strength / start - 1) / (strength / level - 1)) / (2 * strength)
