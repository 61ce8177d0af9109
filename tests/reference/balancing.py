"""The point of least norm of a chain of matrices between which units are rescaled, one layer after another."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def balanced_chain(matrices: list[Array], sweeps: int) -> list[Array]:
    """Scale the units between matrices ``(n_k+1, n_k)`` until what comes in and what goes out have equal norms."""
    matrices = [matrix.copy() for matrix in matrices]
    for _ in range(sweeps):
        for before, after in itertools.pairwise(matrices):
            incoming, outgoing = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=0)
            scale = np.sqrt(outgoing / incoming)
            before *= scale[:, None]
            after /= scale
    return matrices
