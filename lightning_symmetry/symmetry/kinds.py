"""What the groups of each kind are: how their elements are drawn, and act on a block of a tensor.

A block is in the form ``(n_rows, n, rest)``: units along one axis, and rows in each of which the group acts by itself
(units within each head). So every action is one line. With the degree d of the axis in the block X ``(n, rest)``:

=============  ==========================  =====================================  ====================================
kind           element, one for each row   action on X                            derivative at the identity
=============  ==========================  =====================================  ====================================
permutation    a permutation               ``X[permutation]``                     none: discrete
sign           s in {-1, 1}^n              ``s^d X``                              none: discrete
rescaling      l in (0, inf)^n             ``l^d X``                              ``d m X``, m in R^n
rotation       A in GL(n)                  ``A X`` (d = 1), ``A^-T X`` (d = -1)   ``M X``, ``-M^T X``, M in R^(n x n)
translation    t in R^n                    ``X + d t``                            ``d t``
=============  ==========================  =====================================  ====================================

A rotation of a *form* keeps lengths: its A is in SO(n), and ``A X`` is the action whatever the degree. *scale* acts as
rescaling does, on what a norm then divides by its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Kind:
    """How the groups of one kind act, on blocks in the form ``(n_rows, n, rest)``.

    Attributes:
        element: From the number of rows, n and a generator to one random element, never the identity.
        act: From a block, its other dimensions as they are, an element and a degree to the block after the action.
        direction: From the number of rows, n and a generator to a random direction of the Lie algebra; None if
            discrete.
        derive: From a block, a direction and a degree to the derivative of the action.
        dimension: From n to the dimension of the Lie algebra.
        order: 1 where a direction is a number for each unit, ``(n_rows, n)``; 2 where it is a matrix,
            ``(n_rows, n, n)``.
        nearest: From any array of this shape, and which units may move, ``(n,)``, to the direction next to it that
            moves no other: an orthogonal projection.
    """

    element: Callable[[int, int, Generator | None], Tensor]
    act: Callable[[Tensor, Tensor, float], Tensor]
    direction: Callable[[int, int, Generator | None], Tensor] | None = None
    derive: Callable[[Tensor, Tensor, float], Tensor] | None = None
    dimension: Callable[[int], int] = lambda n: 0
    order: int = 1
    nearest: Callable[[Tensor, Tensor], Tensor] = lambda direction, free: direction * free

    def identity(self, n_rows: int, n: int) -> Tensor:
        """The element of a continuous group of translations or rotations that moves nothing."""
        if self.order == 1:
            return torch.zeros(n_rows, n, dtype=torch.float64)
        return torch.eye(n, dtype=torch.float64).repeat(n_rows, 1, 1)


def _random_permutations(n_rows: int, n: int, generator: Generator | None) -> Tensor:
    """Random cycles in half of the rows, so that a group that moves all rows alike is told from one that does not."""
    permutations = torch.arange(n).repeat(n_rows, 1)
    for row in torch.randperm(n_rows, generator=generator)[: (n_rows + 1) // 2].tolist():
        cycle = torch.randperm(n, generator=generator)
        permutations[row, cycle] = cycle.roll(1)
    return permutations


def _random_signs(n_rows: int, n: int, generator: Generator | None) -> Tensor:
    signs = torch.randint(0, 2, (n_rows, n), generator=generator, dtype=torch.float64) * 2 - 1
    signs[torch.randint(n_rows, (), generator=generator), torch.randint(n, (), generator=generator)] = -1
    return signs


def _random_factors(n_rows: int, n: int, generator: Generator | None) -> Tensor:
    """Positive numbers, none of them near 1."""
    logarithms = _random_numbers(n_rows, n, generator)
    return (0.4 * logarithms + 0.2 * logarithms.sign()).exp()


def _random_numbers(n_rows: int, n: int, generator: Generator | None) -> Tensor:
    return torch.randn(n_rows, n, generator=generator, dtype=torch.float64)


def _random_matrices(n_rows: int, n: int, generator: Generator | None) -> Tensor:
    """Matrices that are well conditioned, and far from the identity and from symmetric ones."""
    noise = torch.randn(n_rows, n, n, generator=generator, dtype=torch.float64)
    matrices: Tensor = torch.eye(n, dtype=torch.float64) + 0.3 * noise / math.sqrt(n)
    return matrices


def _random_rotations(n_rows: int, n: int, generator: Generator | None) -> Tensor:
    rotations: Tensor = torch.linalg.qr(torch.randn(n_rows, n, n, generator=generator, dtype=torch.float64)).Q
    rotations[..., 0] *= torch.linalg.det(rotations).sign()[:, None]
    return rotations


def _random_antisymmetric(n_rows: int, n: int, generator: Generator | None) -> Tensor:
    matrices = torch.randn(n_rows, n, n, generator=generator, dtype=torch.float64)
    return matrices - matrices.mT


def _keeping_mean(matrices: Tensor, mean: float) -> Tensor:
    """A matrix of what is orthogonal to the constants, with what it does to these: by the reflection that maps them."""
    n = matrices.shape[-1] + 1
    normal = torch.full((n,), 1 / math.sqrt(n), dtype=matrices.dtype)
    normal[0] -= 1
    reflection = torch.eye(n, dtype=matrices.dtype) - 2 * torch.outer(normal, normal) / normal.square().sum()
    inner = torch.nn.functional.pad(matrices, (1, 0, 1, 0))
    inner[:, 0, 0] = mean
    return reflection @ inner @ reflection


def _antisymmetric(matrices: Tensor, free: Tensor) -> Tensor:
    """The antisymmetric part, of the units that are free alone."""
    return (matrices - matrices.mT) / 2 * free * free[:, None]


def _without_means(matrices: Tensor, free: Tensor) -> Tensor:
    """The same with the constants on the units that are free taken away on both sides."""
    share = free / free.sum().clamp_min(1)
    matrices = _antisymmetric(matrices, free)
    matrices = matrices - matrices.sum(-1, keepdim=True) * share
    return matrices - matrices.sum(-2, keepdim=True) * share[:, None]


def _permute(block: Tensor, permutations: Tensor, degree: float) -> Tensor:
    if len(block) == 1:  # in the order of memory, which takes a fourth of the time
        order = sorted(range(block.ndim), key=block.stride, reverse=True)
        index = [slice(None) if dim != 1 else permutations[0] for dim in order]
        moved = block.permute(order)[tuple(index)]
        return moved.permute([order.index(dim) for dim in range(block.ndim)])
    return block[torch.arange(len(block), device=block.device)[:, None], permutations]


def _multiply(block: Tensor, factors: Tensor, degree: float) -> Tensor:
    multiplied: Tensor = block * _beside(factors, block) ** degree
    return multiplied


def _add(block: Tensor, shifts: Tensor, degree: float) -> Tensor:
    return block + degree * _beside(shifts, block)


def _beside(element: Tensor, block: Tensor) -> Tensor:
    """Numbers ``(n_rows, n)`` in a shape that meets a block's."""
    return element.reshape(*element.shape, *[1] * (block.ndim - 2))


def _mix(block: Tensor, matrices: Tensor, degree: float) -> Tensor:
    return _turn(block, matrices if degree > 0 else torch.linalg.inv(matrices.mT), degree)


def _turn(block: Tensor, matrices: Tensor, degree: float) -> Tensor:
    return matrices @ block.reshape(*block.shape[:2], -1)


_RESCALING = Kind(
    element=_random_factors,
    act=_multiply,
    direction=_random_numbers,
    derive=lambda block, direction, degree: degree * direction[:, :, None] * block,
    dimension=lambda n: n,
)
KINDS: Mapping[str, Kind] = {
    "permutation": Kind(element=_random_permutations, act=_permute),
    "sign": Kind(element=_random_signs, act=_multiply),
    "rescaling": _RESCALING,
    "rotation": Kind(
        element=_random_matrices,
        act=_mix,
        direction=lambda n_rows, n, generator: torch.randn(n_rows, n, n, generator=generator, dtype=torch.float64),
        derive=lambda block, direction, degree: direction @ block if degree > 0 else -direction.mT @ block,
        dimension=lambda n: n * n,
        order=2,
    ),
    "scale": _RESCALING,
    "translation": Kind(
        element=_random_numbers,
        act=_add,
        direction=_random_numbers,
        derive=lambda block, shifts, degree: (degree * shifts[:, :, None]).expand(block.shape),
        dimension=lambda n: n,
    ),
}


FORMS: Mapping[str, Kind] = {
    "orthogonal": Kind(
        element=_random_rotations,
        act=_turn,
        direction=_random_antisymmetric,
        derive=_turn,
        dimension=lambda n: n * (n - 1) // 2,
        order=2,
        nearest=_antisymmetric,
    ),
    "orthogonal, mean kept": Kind(
        element=lambda n_rows, n, generator: _keeping_mean(_random_rotations(n_rows, n - 1, generator), 1.0),
        act=_turn,
        direction=lambda n_rows, n, generator: _keeping_mean(_random_antisymmetric(n_rows, n - 1, generator), 0.0),
        derive=_turn,
        dimension=lambda n: (n - 1) * (n - 2) // 2,
        order=2,
        nearest=_without_means,
    ),
}
"""The rotations that keep lengths: the same for what writes to an axis and for what reads it."""
