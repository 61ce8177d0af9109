"""A second batch, made of the first.

A group may leave what one batch gives as it was by an accident of that batch: a feature that is zero in it, a mask that
hides nothing, a token that stands at one place only. There is but one batch when symmetries are sought, so another one
is made of it, of the same shapes and of other contents, that is as likely as can be to be one that the step accepts:

* real numbers are moved by noise of half their own standard deviation, and stay between the least and the largest of
  their tensor, as pixels and probabilities do; where all are equal, by a tenth of what they are, or of 1 for zeros;
* whole numbers (tokens, labels, masks, also as floats) are shuffled among themselves: those of a tensor, or where the
  step refuses that, those within each of its rows, so that a row keeps its length, its special tokens, its one hot; or
  those of each column, as of a table whose columns count different things.

What only other shapes would show, as the outer taps of a kernel on maps of one pixel, it does not show.

A trace is of a batch whose whole numbers are those given, and whose other numbers are changed in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from lightning_symmetry.tracing.copying import tensors_copied


def second_batches(batch: Any, seed: int = 0) -> Iterator[Any]:
    """Batches with other contents: the first that a step accepts is to be taken.

    Args:
        batch: Any object; every tensor that `copy.deepcopy` finds in it is changed.
        seed: The seed of what is drawn.

    Example:
        >>> batch = {"image": torch.rand(2, 3), "tokens": torch.tensor([[0, 1, 1, 1], [2, 3, 3, 3]])}
        >>> [sorted(row) for row in list(second_batches(batch))[1]["tokens"].tolist()]
        [[0, 1, 1, 1], [2, 3, 3, 3]]
    """
    for as_rows in _AS_ROWS:
        generator = Generator().manual_seed(seed)
        with tensors_copied(partial(_changed, as_rows=as_rows, generator=generator)):
            second = copy.deepcopy(batch)
        yield second


def with_other_floats(batch: Any, seed: int = 0) -> Any:
    """A batch of which no pixel, and no other number of floating point, is the same in all rows by chance.

    What is of an integer type is as it was: it chooses what a step does (tokens, labels, lengths).

    Example:
        >>> batch = with_other_floats({"image": torch.tensor([[0.0, 0.0], [0.0, 0.5]]), "label": torch.tensor([1, 0])})
        >>> batch["image"].unique().numel(), batch["label"].tolist()
        (4, [1, 0])
    """
    generator = Generator().manual_seed(seed)

    def copied(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            return _changed(tensor, _AS_ROWS[0], generator)
        return tensor.detach().clone()

    with tensors_copied(copied):
        return copy.deepcopy(batch)


_AS_ROWS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda tensor: tensor.reshape(1, -1),
    lambda tensor: tensor.reshape(len(tensor), -1),
    lambda tensor: tensor.reshape(len(tensor), -1).T,
)
"""Ways to see a tensor as rows, each of which is shuffled by itself: all entries as one, its own rows, its columns."""


def _changed(tensor: Tensor, as_rows: Callable[[Tensor], Tensor], generator: Generator) -> Tensor:
    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.numel() < 2:
        return tensor.clone()
    if tensor.is_complex():
        return torch.view_as_complex(_moved(torch.view_as_real(tensor), generator))
    if tensor.is_floating_point() and not _is_whole(tensor):
        return _moved(tensor, generator)
    return _shuffled(tensor, as_rows, generator)


def _is_whole(tensor: Tensor) -> bool:
    """Whether numbers are whole, and not all the same; infinite ones, as of masks, are whole."""
    return torch.equal(tensor, tensor.round()) and not torch.equal(tensor, tensor.flatten()[0].expand_as(tensor))


def _moved(numbers: Tensor, generator: Generator) -> Tensor:
    """Numbers with noise, those that are not finite as they are."""
    finite = numbers[numbers.isfinite()]
    if not len(finite):
        return numbers.clone()
    noise = torch.randn(numbers.shape, generator=generator).to(numbers)
    least, largest = finite.aminmax()
    width = largest - least
    if width == 0:
        return numbers + 0.1 * noise * (largest.abs() if largest else 1.0)
    turned = (numbers + 0.5 * finite.std() * noise - least) % (2 * width)  # at either end numbers turn round
    moved = (least + torch.minimum(turned, 2 * width - turned)).clamp(least, largest)
    return moved.where(numbers.isfinite(), numbers)


def _shuffled(tensor: Tensor, as_rows: Callable[[Tensor], Tensor], generator: Generator) -> Tensor:
    """The entries of each row in another order."""
    shuffled = tensor.clone(memory_format=torch.contiguous_format)
    rows = as_rows(shuffled)
    order = torch.rand(rows.shape, generator=generator).argsort(-1).to(rows.device)
    rows.copy_(rows.gather(-1, order))
    return shuffled
