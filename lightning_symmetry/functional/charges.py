"""Charges of continuous symmetries: what gradient flow conserves, and weight decay, noise and finite steps move.

A continuous symmetry makes the gradient orthogonal to its orbits, so that along gradient flow something is conserved.
Of a unit whose incoming part ``a`` is multiplied and whose outgoing part ``b`` is divided, it is ``|a|^2 - |b|^2``; of
two maps with an invertible matrix between them ``A A^T - B^T B``, of which a rotary embedding leaves the trace over
each plane, the charge of this plane's rescaling; of a weight that a norm divides by its size ``|w|^2``; of a common
shift of all logits the mean of their weights over the classes. Under weight decay of rate g the quadratic ones decay as
``exp(-2 g t)``, the mean as ``exp(-g t)``. Source: Kunin, Sagastuy-Brena, Ganguli, Yamins, Tanaka, "Neural Mechanics:
Symmetry and Broken Conservation Laws in Deep Learning Dynamics" (arXiv:2012.04728).

The imbalances say how far from its balanced point, where the sum of squares is least along the orbit, a group stands.
They depend on where on its orbit the model is, by their nature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_symmetry.functional.precision import for_measuring, in_own_units, row_scales, working_dtype


def rescaling_charges(incoming: Tensor, outgoing: Tensor, degree: float = 1.0) -> Tensor:
    """What gradient flow conserves of each unit: ``Q_i = |a_i|^2 - degree |b_i|^2``.

    Kunin et al., "Neural Mechanics" (arXiv:2012.04728).

    Args:
        incoming: ``(n_units, dim)``: a_i, what a rescaling of the unit multiplies.
        outgoing: ``(n_units, dim)``: b_i, what it divides.
        degree: By which power of it: 1 after a homogeneous map as ReLU, 2 after its square.

    Returns:
        ``(n_units,)`` in float64: 0 where both sides are balanced, positive where the incoming one is larger; infinite
        beyond the range of float64.

    Raises:
        ValueError: The two sides are not of one number of units.

    Example:
        >>> rescaling_charges(torch.tensor([[3.0], [1.0]]), torch.tensor([[2.0], [1.0]]))
        tensor([5., 0.], dtype=torch.float64)
    """
    above, below, scales = _squares(incoming, outgoing, degree)
    return (above - below) * scales * scales


def rescaling_imbalance(incoming: Tensor, outgoing: Tensor, degree: float = 1.0) -> Tensor:
    """How unbalanced units are: the root mean square over units of ``Q_i / (|a_i|^2 + degree |b_i|^2)``.

    Kunin et al., "Neural Mechanics" (arXiv:2012.04728).

    Args:
        incoming: ``(n_units, dim)``: a_i, what a rescaling of the unit multiplies.
        outgoing: ``(n_units, dim)``: b_i, what it divides.
        degree: By which power of it.

    Returns:
        0-d in [0, 1]: 0 if every unit is balanced (or zero), 1 if of each one side is zero and the other is not.

    Raises:
        ValueError: The two sides are not of one number of units.

    Example:
        >>> rescaling_imbalance(torch.tensor([[3.0], [0.0]]), torch.tensor([[3.0], [0.0]]))
        tensor(0., dtype=torch.float64)
    """
    return imbalance_of(*_squares(incoming, outgoing, degree)[:2])


def imbalance_of(above: Tensor, below: Tensor) -> Tensor:
    """The same from the sums of squares of both sides of each unit, times their degrees.

    Args:
        above: ``(n_units,)``: of what a rescaling multiplies.
        below: ``(n_units,)``: of what it divides.

    Returns:
        As `rescaling_imbalance`.
    """
    total = above + below
    return torch.where(total == 0, total, (above - below) / total).square().mean().sqrt()


def rotation_charges(incoming: Tensor, outgoing: Tensor) -> Tensor:
    """What gradient flow conserves of two maps with an invertible matrix between them: ``C = A A^T - B^T B``.

    Each entry is a charge: ``C_jk`` that of the direction of GL(d) that adds the k-th of the d directions to the j-th.
    Where a rotary embedding leaves one scaled rotation for each plane of two directions, the trace over the plane is
    conserved alone: what `rescaling_charges` is of the plane as a unit. Kunin et al., "Neural Mechanics"
    (arXiv:2012.04728).

    Args:
        incoming: ``(*rows, d, m)``: A, the map into the d directions between; several, as of heads, are told apart.
        outgoing: ``(*rows, d, p)``: B^T, the map out of them.

    Returns:
        ``(*rows, d, d)`` in float64, symmetric: 0 where both maps are balanced, positive definite where the incoming
        one is larger in every direction.

    Raises:
        ValueError: The two sides are not of one number of directions.

    Example:
        >>> rotation_charges(torch.tensor([[2.0], [0.0]]), torch.eye(2))
        tensor([[ 3.,  0.],
                [ 0., -1.]], dtype=torch.float64)
    """
    _check_directions(incoming, outgoing)
    sides = [side.detach().double() for side in (incoming, outgoing)]
    scales = row_scales(*(side.flatten(-2) for side in sides)).unsqueeze(-1)
    above, below = (side / scales for side in sides)
    return (above @ above.mT - below @ below.mT) * scales * scales


def rotation_imbalance(incoming: Tensor, outgoing: Tensor) -> Tensor:
    """How unbalanced two maps are: ``|A A^T - B^T B|_F / (|A A^T|_F + |B^T B|_F)``, which GL(d) between them changes.

    Kunin et al., "Neural Mechanics" (arXiv:2012.04728).

    Args:
        incoming: ``(*rows, d, m)``: A, the map into the d directions between; several, as of heads, are told apart.
        outgoing: ``(*rows, d, p)``: B^T, the map out of them.

    Returns:
        ``(*rows)`` in [0, 1]: 0 at the balanced point (or where both are zero), 1 if one map is zero and the other is
        not.

    Raises:
        ValueError: The two sides are not of one number of directions.

    Example:
        >>> rotation_imbalance(torch.eye(2), torch.zeros(2, 5))
        tensor(1., dtype=torch.float64)
    """
    _check_directions(incoming, outgoing)
    dtype = working_dtype(incoming, outgoing)
    sides = [for_measuring(side, dtype) for side in (incoming, outgoing)]
    scales = row_scales(*(side.flatten(-2) for side in sides)).unsqueeze(-1)
    above, below = (side / scales for side in sides)
    above, below = (above @ above.mT).double(), (below @ below.mT).double()
    total = torch.linalg.matrix_norm(above) + torch.linalg.matrix_norm(below)
    return torch.where(total == 0, total, torch.linalg.matrix_norm(above - below) / total)


def mean_component(weights: Tensor) -> Tensor:
    """The share of a classifier in what shifts all logits alike: ``|mean over classes| sqrt(K) / |W|_F``.

    Kunin et al., "Neural Mechanics" (arXiv:2012.04728).

    Args:
        weights: ``(K, dim)``: the weights of K logits that a softmax reads.

    Returns:
        0-d in [0, 1]: 0 if nothing is (or all weights are zero), 1 if the weights of all classes are equal.

    Raises:
        ValueError: The weights are no matrix.

    Example:
        >>> mean_component(torch.ones(4, 3))
        tensor(1., dtype=torch.float64)
    """
    if weights.ndim != 2:
        raise ValueError(f"weights of shape {tuple(weights.shape)}: expected (classes, dim)")
    weights = in_own_units(weights.detach().double())
    norm = torch.linalg.matrix_norm(weights)
    shared = torch.linalg.vector_norm(weights.mean(0)) * math.sqrt(weights.shape[0])
    return torch.where(norm == 0, norm, (shared / norm).clamp(max=1))


def effective_learning_rate(weights: Tensor, learning_rate: float, adaptive: bool = False) -> Tensor:
    """The learning rate of the direction of weights that a norm scales: ``eta / |w|^2``, of Adam ``eta / |w|``.

    van Laarhoven, "L2 Regularization versus Batch and Weight Normalization" (arXiv:1706.05350).

    Args:
        weights: The weights, of any shape; all but the first dimension belong to one direction.
        learning_rate: The optimizer's eta.
        adaptive: Whether its steps do not grow with the gradient, as those of the Adam family.

    Returns:
        ``(n,)`` for n rows: infinite for a zero row.

    Raises:
        ValueError: The learning rate is negative.

    Example:
        >>> effective_learning_rate(torch.tensor([[3.0, 4.0]]), 0.5)
        tensor([0.0200], dtype=torch.float64)
    """
    if learning_rate < 0:
        raise ValueError(f"learning_rate={learning_rate!r}: give 0 or more")
    rows = weights.detach().double().flatten(1)
    scales = row_scales(rows)
    norms = torch.linalg.vector_norm(rows / scales, dim=1) * scales[:, 0]
    rates: Tensor = learning_rate / norms
    return rates if adaptive else rates / norms


def angular_speed(before: Tensor, after: Tensor, steps: int = 1) -> Tensor:
    """By which angle the direction of each row turned, in radians a step.

    Wan et al., "Spherical Motion Dynamics" (arXiv:2006.08419).

    Args:
        before: ``(n, dim)``: the rows at the last measurement.
        after: ``(n, dim)``: the rows now.
        steps: How many optimizer steps lie between.

    Returns:
        ``(n,)`` in [0, pi / steps]: 0 for a row that did not turn, or is zero.

    Raises:
        ValueError: The shapes differ, or there are no steps between.

    Example:
        >>> angular_speed(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), steps=10)
        tensor([0.1571], dtype=torch.float64)
    """
    if before.shape != after.shape or steps < 1:
        raise ValueError(f"rows of shapes {tuple(before.shape)} and {tuple(after.shape)}, {steps} steps between them")
    first, second = (_directions(rows.detach().double().flatten(1)) for rows in (before, after))
    return angles_of(*(rows.square().sum(1) for rows in (first, second, second - first))) / steps


def angles_of(first: Tensor, second: Tensor, difference: Tensor) -> Tensor:
    """The angles between vectors, from their squared lengths and that of their difference; exact for small ones too.

    Of the unit vectors u and v, ``|u - v|^2 = (|a - b|^2 - (|a| - |b|)^2) / (|a| |b|)``, and half of the angle is that
    between the sum of both and a side of their rhombus. A cosine would tell nothing of small angles.

    Args:
        first: ``(n,)``: |a|^2.
        second: ``(n,)``: |b|^2.
        difference: ``(n,)``: |a - b|^2.

    Returns:
        ``(n,)`` in [0, pi]: 0 where a vector is zero.
    """
    lengths = first.sqrt() * second.sqrt()
    apart = (difference - (first.sqrt() - second.sqrt()).square()) / lengths
    apart = torch.where(lengths > 0, apart.clamp(0, 4), 0.0)
    return 2 * torch.atan2(apart.sqrt(), (4 - apart).sqrt())


def _directions(rows: Tensor) -> Tensor:
    """Each row over its length; zero rows as they are."""
    rows = rows / row_scales(rows)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(lengths == 0, 1.0, lengths)


def _squares(incoming: Tensor, outgoing: Tensor, degree: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of squares of both sides, times their degrees, and by whose square they are too small."""
    if incoming.ndim != 2 or outgoing.ndim != 2 or incoming.shape[0] != outgoing.shape[0]:
        raise ValueError(
            f"sides of shapes {tuple(incoming.shape)} and {tuple(outgoing.shape)}: expected (n, dim) with one n"
        )
    sides = [side.detach().double() for side in (incoming, outgoing)]
    scales = row_scales(*sides)
    above, below = ((side / scales).square().sum(1) for side in sides)
    return above, degree * below, scales[:, 0]


def _check_directions(incoming: Tensor, outgoing: Tensor) -> None:
    if incoming.ndim < 2 or incoming.shape[:-1] != outgoing.shape[:-1]:
        raise ValueError(
            f"sides of shapes {tuple(incoming.shape)} and {tuple(outgoing.shape)}: expected (*rows, d, dim) with one d"
        )
