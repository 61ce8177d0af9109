"""Indicators of representations by their definitions, in NumPy and float64, with all samples at hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def rankme(features: Array) -> float:
    """As published, with the constant that guards the logarithm (Garrido et al. 2023, equations 1 and 2)."""
    s = np.linalg.svd(features, compute_uv=False)
    p = s / np.sum(np.abs(s)) + 1e-7
    return float(np.exp(-np.sum(p * np.log(p))))


def covariance_eigenvalues(features: Array) -> Array:
    centred = features - features.mean(0)
    return np.sort(np.linalg.svd(centred, compute_uv=False) ** 2 / len(features))[::-1]


def isoscore(features: Array) -> float:
    """Algorithm 1 of Rudman et al. 2022, step by step."""
    d = features.shape[1]
    variances = np.zeros(d)
    eigenvalues = covariance_eigenvalues(features)
    variances[: len(eigenvalues)] = eigenvalues
    normalised = np.sqrt(d) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (d - np.sqrt(d)))
    share = (d - defect**2 * (d - np.sqrt(d))) ** 2 / d**2
    return float((d * share - 1) / (d - 1))


def alpha_req(features: Array) -> float:
    """Weighted least squares by the normal equations, as in the code of Stringer et al. that Agrawal et al. use."""
    eigenvalues = covariance_eigenvalues(features)
    eigenvalues = eigenvalues[eigenvalues > 1e-10 * eigenvalues[0]]
    index = np.arange(1, len(eigenvalues) + 1)
    x = np.stack([-np.log(index), np.ones(len(index))], axis=1)
    w = 1 / index[:, None]
    return float(np.linalg.solve(x.T @ (w * x), x.T @ (w[:, 0] * np.log(eigenvalues)))[0])


def token_rank_residual(sequences: list[Array]) -> float:
    return float(np.mean([np.linalg.norm(x - x.mean(0)) / np.linalg.norm(x) for x in sequences]))


def dormant_fraction(features: Array, threshold: float) -> float:
    activity = [np.mean([abs(h) for h in unit]) for unit in features.T]
    return float(np.mean([a / np.mean(activity) <= threshold for a in activity]))


def hsic(k: Array, l: Array) -> float:  # noqa: E741
    """The unbiased estimate as a mean over four different samples (Song et al. 2012, definition before theorem 2).

    tr(K L) counts pairs i, j; 1^T K L 1 triples; (1^T K 1) (1^T L 1) quadruples: here by inclusion and exclusion over
    explicit sums.
    """
    n = len(k)
    pairs = sum(k[i, j] * l[i, j] for i in range(n) for j in range(n) if i != j)
    triples = sum(k[i, j] * l[i, q] for i in range(n) for j in range(n) for q in range(n) if len({i, j, q}) == 3)
    quadruples = sum(
        k[i, j] * l[q, r]
        for i in range(n)
        for j in range(n)
        for q in range(n)
        for r in range(n)
        if len({i, j, q, r}) == 4
    )
    return (
        pairs / (n * (n - 1)) + quadruples / (n * (n - 1) * (n - 2) * (n - 3)) - 2 * triples / (n * (n - 1) * (n - 2))
    )


def linear_cka(x: Array, y: Array) -> float:
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def cosine(a: Array, b: Array) -> float:
    return float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def neural_collapse(features: Array, labels: Labels, weight: Array, logits: Array) -> dict[str, float]:
    """The four marks, in two passes over the data, as the authors of Papyan et al. 2020 compute them.

    Their code divides no trace by C; the paper does. It tells the mismatch of the nearest mean, here the match.
    """
    classes = np.unique(labels)
    C = len(classes)
    means = np.stack([features[labels == c].mean(0) for c in classes], axis=1)  # d x C
    within = np.zeros((features.shape[1], features.shape[1]))
    for c, mean in zip(classes, means.T, strict=True):
        for h in features[labels == c]:
            within += np.outer(h - mean, h - mean)
    within /= len(features)
    global_mean = means.mean(1, keepdims=True)
    centred = means - global_mean
    between = centred @ centred.T / C
    values, vectors = np.linalg.eigh(between)
    values, vectors = values[-(C - 1) :], vectors[:, -(C - 1) :]
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    norms = np.linalg.norm(centred, axis=0)
    cosines = (centred / norms).T @ (centred / norms) + 1 / (C - 1)
    off_diagonal = np.abs(cosines[~np.eye(C, dtype=bool)])
    W = weight[classes].T
    nearest = [classes[np.argmin(np.linalg.norm(means.T - h, axis=1))] for h in features]
    return {
        "nc1": float(np.trace(within @ inverse) / C),
        "nc2_equinorm": float(np.std(norms, ddof=1) / np.mean(norms)),
        "nc2_equiangularity": float(np.sum(off_diagonal) / (C * (C - 1))),
        "nc3": float(np.linalg.norm(W / np.linalg.norm(W) - centred / np.linalg.norm(centred)) ** 2),
        "nc4": float(np.mean(np.array(nearest) == logits.argmax(1))),
    }
