"""Which part of an optimizer's step goes along the orbits of a model's continuous symmetries.

At given parameters the tangents of all orbits are the image of a linear map T, from the Lie algebras of the groups to
the space of the parameters: ``T m`` is the sum over groups of the derivative of their action along their directions m.
A step is its projection ``T m``, where ``T^T T m = T^T step``, which changes nothing that the model computes, and a
rest that is orthogonal to all orbits, as every gradient is.

T is applied block by block and its transpose by differentiating it backwards; the Jacobian, of as many columns as the
groups have dimensions, is never formed. Directions are scaled to tangents of length one, and the system is solved by
conjugate gradients: in one step where the tangents are orthogonal, as those of units that are each rescaled by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from lightning_symmetry.functional.precision import for_measuring, working_dtype
from lightning_symmetry.symmetry.groups import SymmetryGroup

Tensors = Mapping[str, Tensor]
Coordinates = NDArray[np.float64]

TOLERANCE = 1e-5
"""The residual, relative to the right-hand side, at which the system is solved: it enters the fraction squared."""

MOST_STEPS = 500
"""After how many steps of conjugate gradients what was found is taken: never more than the whole projection."""


def orbit_fraction(groups: Iterable[SymmetryGroup], tensors: Tensors, step: Tensors) -> Tensor:
    """The share of an optimizer's step that moves along the orbits: |projection on their tangents|^2 / |step|^2.

    The gradient has no component along the orbit of a continuous symmetry, so plain gradient descent has none; weight
    decay, momentum and Adam's preconditioner have.

    Args:
        groups: One group, as a list, or all of a model: the projection is on the space that their tangents span
            together. Discrete ones have none, and those that move a parameter that does not step are left out.
        tensors: The model's parameters and buffers by name, before the step.
        step: By how much each parameter that is trained changed, by name.

    Returns:
        0-d in [0, 1]: 0 for a step of plain gradient descent, or none; 1 for a step that changes no output to first
        order. NaN if an entry is not finite.

    Raises:
        KeyError: A tensor that a group moves is missing.

    Example:
        >>> from torch import nn
        >>> from lightning_symmetry import find_symmetries
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> symmetries = find_symmetries(model, torch.randn(16, 4))
        >>> before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        >>> model(torch.randn(16, 4)).square().sum().backward()
        >>> step = {name: -0.1 * parameter.grad for name, parameter in model.named_parameters()}
        >>> bool(orbit_fraction(symmetries, before, step) < 1e-8)
        True

    References:
        Kunin, Sagastuy-Brena, Ganguli, Yamins, Tanaka, "Neural Mechanics: Symmetry and Broken Conservation Laws in Deep
        Learning Dynamics", arXiv:2012.04728.
    """
    dtype = working_dtype(*step.values())
    step = {name: for_measuring(change, dtype) for name, change in step.items()}
    total = _inner(step, step)
    free = tuple(group for group in groups if group.dimension and step.keys() >= set(group.parameters))
    if not free or total == 0 or not np.isfinite(total):
        return torch.tensor(0.0 * total, dtype=torch.float64)
    numbers = {
        name: for_measuring(tensor, dtype)
        for name, tensor in tensors.items()
        if tensor.is_floating_point() or tensor.is_complex()
    }
    tangents = _Tangents(free, numbers, step)
    lengths = tangents.lengths()
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    right = scale * tangents.transposed(step)
    system = LinearOperator(
        (len(right), len(right)), matvec=lambda m: scale * tangents.transposed(tangents.along(scale * m)), dtype=float
    )
    noise = torch.finfo(dtype).eps * total**0.5
    solution, _ = cg(system, right, rtol=TOLERANCE, atol=noise, maxiter=MOST_STEPS)
    return torch.tensor(solution @ right / total, dtype=torch.float64).clamp(0, 1)


@dataclass(frozen=True)
class _Tangents:
    """The linear map T from directions of Lie algebras to changes of the parameters.

    Attributes:
        groups: The groups.
        tensors: Where it is taken.
        like: Tensors of the shapes of the changes.
    """

    groups: tuple[SymmetryGroup, ...]
    tensors: Tensors
    like: Tensors

    def along(self, coordinates: Coordinates) -> dict[str, Tensor]:
        """The tangent along a direction of each group, given one after another: ``T m``."""
        change = {name: torch.zeros_like(tensor) for name, tensor in self.like.items()}
        start = 0
        for group in self.groups:
            direction = self._zero(group)
            direction += torch.from_numpy(coordinates[start : start + direction.numel()]).view_as(direction)
            start += direction.numel()
            for name, tangent in self._along(group, direction).items():
                change[name] += tangent
        return change

    def transposed(self, change: Tensors) -> Coordinates:
        """The inner products of a change with the tangents along all coordinates: ``T^T change``."""
        return np.concatenate([self._transposed(group, change) for group in self.groups])

    def lengths(self) -> Coordinates:
        """The length of the tangent along each coordinate; its root mean square in a group, where they overlap."""
        lengths = []
        for group in self.groups:
            zero = self._zero(group)
            if _apart(group):
                squares = self._transposed(group, self._along(group, zero + 1))
            else:
                assert group.acts_as.direction is not None
                random = group.acts_as.direction(group.n_rows, group.size, torch.Generator().manual_seed(0)).to(zero)
                tangent = self._along(group, random)
                squares = np.full(zero.numel(), _inner(tangent, tangent) / float(random.square().sum()))
            lengths.append(np.sqrt(squares))
        return np.concatenate(lengths)

    def _along(self, group: SymmetryGroup, direction: Tensor) -> dict[str, Tensor]:
        tangent = group.tangent_along(self.tensors, direction)
        return {name: tangent[name] for name in group.parameters}

    def _transposed(self, group: SymmetryGroup, change: Tensors) -> Coordinates:
        with torch.enable_grad():
            direction = self._zero(group).requires_grad_()
            tangent = self._along(group, direction)
        (products,) = torch.autograd.grad(list(tangent.values()), direction, [change[name] for name in tangent])
        flat: Coordinates = products.double().flatten().numpy()
        return flat

    def _zero(self, group: SymmetryGroup) -> Tensor:
        shape = (group.n_rows, *[group.size] * group.acts_as.order)
        return torch.zeros(shape, dtype=self.like[group.parameters[0]].real.dtype)


def _apart(group: SymmetryGroup) -> bool:
    """Whether each entry of the parameters is moved along one coordinate alone: then tangents are orthogonal."""
    actions = [action for action in group.actions if action.block.tensor in group.parameters]
    once = all(sum(map(bool, action.degrees)) == 1 for action in actions)
    return group.acts_as.order == 1 and once and not group.carried and not group.folds


def _inner(one: Tensors, other: Tensors) -> float:
    """Of complex numbers as of pairs of real ones."""
    doubled = ([for_measuring(each[name], torch.float64) for name in one] for each in (one, other))
    return sum(float((left.conj() * right).real.sum()) for left, right in zip(*doubled, strict=True))
