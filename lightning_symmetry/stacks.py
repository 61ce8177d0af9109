"""Stacks: the tensors of modules that may be exchanged, one upon another.

The heads of an `nn.ModuleList` have parameters ``heads.0.query.weight``, ``heads.1.query.weight``, ...: units, each of
a tensor of its own. As one tensor, ``(n_heads, ...)``, they are acted on like heads that share a tensor. Its name has a
star for the number, ``heads.*.query.weight``, and is read as if a model had it; it never is among a model's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

STAR = "*"


def stack_of(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor of a name, made of several where the name has a star.

    Raises:
        KeyError: There is none.
    """
    before, star, after = name.partition(STAR)
    if name in tensors:
        return tensors[name]
    if not star:
        raise KeyError(name)
    stacked: list[Tensor] = []
    try:
        while True:
            stacked.append(stack_of(f"{before}{len(stacked)}{after}", tensors))
    except KeyError:
        if not stacked:
            raise
    return torch.stack(stacked)


class Stacked(dict[str, Tensor]):
    """Tensors by name, and stacks of them: each is made when it is first read.

    Example:
        >>> tensors = Stacked({"heads.0.bias": torch.zeros(3), "heads.1.bias": torch.ones(3)})
        >>> tensors["heads.*.bias"].shape
        torch.Size([2, 3])
    """

    def __missing__(self, name: str) -> Tensor:
        if STAR not in name:
            raise KeyError(name)
        stacked = self[name] = stack_of(name, self)
        return stacked


def first_of(name: str) -> str:
    """The name of the first tensor that one is made of."""
    return name.replace(STAR, "0")


def members(name: str, shape: Sequence[int]) -> list[str]:
    """The names of the tensors that one of this name and shape is made of: of one without a star itself.

    Example:
        >>> members("heads.*.bias", (2, 3))
        ['heads.0.bias', 'heads.1.bias']
    """
    before, star, after = name.partition(STAR)
    if not star:
        return [name]
    return [each for number in range(shape[0]) for each in members(f"{before}{number}{after}", shape[1:])]


def unstacked(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that one is made of, with their names."""
    before, star, after = name.partition(STAR)
    if not star:
        yield name, tensor
        return
    for number, part in enumerate(tensor.unbind()):
        yield from unstacked(f"{before}{number}{after}", part)
