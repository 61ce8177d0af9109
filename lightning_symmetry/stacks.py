"""Stacks: the tensors of modules that may be exchanged, one upon another.

The heads of an `nn.ModuleList` have parameters ``heads.0.query.weight``, ``heads.1.query.weight``, ...: units, each of
a tensor of its own. As one tensor, ``(n_heads, ...)``, they are acted on like heads that share a tensor. Its name has a
star for the number, ``heads.*.query.weight``; modules that have names of their own are listed by these, as in
``critics.{first,second}.weight``. Such a name is read as if a model had it; no model should have one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice

import torch
from torch import Tensor

STAR = "*"
_LIST = re.compile(r"(?:^|(?<=\.))(\*|\{[^{}.]+,[^{}.]+\})(?=\.|$)")


def listed(names: Sequence[str]) -> str:
    """What stands in the name of a stack for modules that have names of their own.

    Example:
        >>> listed(["first", "second"])
        '{first,second}'
    """
    return f"{{{','.join(names)}}}"


def may_be_listed(name: str) -> bool:
    """Whether the name of a module can stand in that of a stack."""
    return set(name).isdisjoint("*{},")


def n_stacked(name: str) -> int:
    """How many lists are stacked, each within those before, in the tensor of a name: so many dimensions it has first.

    Example:
        >>> n_stacked("bias"), n_stacked("heads.*.bias"), n_stacked("critics.{first,second}.heads.*.bias")
        (0, 1, 2)
    """
    return len(_LIST.findall(name))


def list_of(name: str, dim: int) -> str:
    """The name of the modules along one of the first dimensions of a stack: that of their list, or theirs.

    Example:
        >>> list_of("heads.*.bias", 0), list_of("critics.{first,second}.heads.*.bias", 0)
        ('heads', 'critics.first,second')
    """
    found = list(_LIST.finditer(name))[dim]
    before = name[: found.start()]
    if found.group() == STAR:
        return before.removesuffix(".") or STAR
    return before + found.group().strip("{}")


def stack_of(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor of a name, made of several where it is of a stack.

    Raises:
        KeyError: There is none.
    """
    if name in tensors:
        return tensors[name]
    if not n_stacked(name):
        raise KeyError(name)
    stacked: list[Tensor] = []
    try:
        for member in _members(name):
            stacked.append(stack_of(member, tensors))
    except KeyError:
        if not stacked or STAR not in _LIST.findall(name)[0]:
            raise  # of modules that are numbered there may be any number
    return torch.stack(stacked)


class Stacked(dict[str, Tensor]):
    """Tensors by name, and stacks of them: each is made when it is first read.

    Example:
        >>> tensors = Stacked({"heads.0.bias": torch.zeros(3), "heads.1.bias": torch.ones(3)})
        >>> tensors["heads.*.bias"].shape
        torch.Size([2, 3])
    """

    def __missing__(self, name: str) -> Tensor:
        stacked = self[name] = stack_of(name, self)
        return stacked


def first_of(name: str) -> str:
    """The name of the first tensor that one is made of."""
    return first_of(next(_members(name))) if n_stacked(name) else name


def members(name: str, shape: Sequence[int]) -> list[str]:
    """The names of the tensors that one of this name and shape is made of: of one that is no stack itself.

    Example:
        >>> members("heads.*.bias", (2, 3))
        ['heads.0.bias', 'heads.1.bias']
    """
    if not n_stacked(name):
        return [name]
    return [each for member in islice(_members(name), shape[0]) for each in members(member, shape[1:])]


def unstacked(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that one is made of, with their names."""
    if not n_stacked(name):
        yield name, tensor
        return
    for member, part in zip(_members(name), tensor.unbind(), strict=False):
        yield from unstacked(member, part)


def _members(name: str) -> Iterator[str]:
    """The names along the first dimension of a stack, without end where modules are numbered."""
    before, modules, after = _LIST.split(name, maxsplit=1)
    for module in map(str, count()) if modules == STAR else modules.strip("{}").split(","):
        yield f"{before}{module}{after}"
