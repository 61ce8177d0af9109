"""The tensors of a model at one moment, made whole one at a time.

Parameters that are spread over processes (FSDP2, tensor parallel) are `DTensor`s. To make one whole all processes must
take part, in the same order, whichever of them needs it. So they do it in rounds: each says by one sum over ranks which
tensor it asks for, if any, and all take part in gathering each that is asked for. A rank that is done, or whose
measurement raised, goes on taking part until none asks (`Snapshot.attend`): ranks may measure different layers, and
none waits for another in vain.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lightning_symmetry.stacks import stack_of

if TYPE_CHECKING:
    from lightning_symmetry.measurement.measure import Ranks

MOST_KEPT = 2**26
"""How many bytes of tensors made whole are kept for being asked for again."""


class Snapshot(Mapping[str, Tensor]):
    """The tensors of a model by name, and stacks of them.

    One that is spread over ranks is made whole, in its own type, when it is read. After reading every rank must
    `attend`, before it turns to anything else that ranks do together.

    Args:
        tensors: What this process holds.
        ranks: The processes that tensors are spread over.

    Raises:
        MemoryError: On reading, some rank has no room for a whole tensor; then no rank takes part in gathering it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], ranks: Ranks | None = None) -> None:
        self._tensors = tensors
        self._ranks = ranks
        self._spread = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __getitem__(self, name: str) -> Tensor:
        if name in self._tensors and name not in self._spread:
            return self._tensors[name]
        if name not in self._kept:
            if name in self._spread:
                self._round(name)
            else:
                self._kept[name] = stack_of(name, self)
        self._kept.move_to_end(name)
        whole = self._kept[name]
        while sum(tensor.nbytes for tensor in self._kept.values()) > MOST_KEPT:
            self._kept.popitem(last=False)
        return whole

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def spread(self) -> tuple[str, ...]:
        """The names of those that are spread over ranks."""
        return tuple(self._spread)

    @property
    def held(self) -> dict[str, Tensor]:
        """What this process holds itself: of a tensor that is spread its own part, which may be empty."""
        return {**self._tensors, **{name: tensor.to_local() for name, tensor in self._spread.items()}}

    def copied(self) -> Snapshot:
        """The same, of copies of what is held whole."""
        copies = {name: tensor.clone() for name, tensor in self._tensors.items() if name not in self._spread}
        return Snapshot({**self._tensors, **copies}, self._ranks)

    def attend(self) -> None:
        """Take part in gathering what other ranks ask for, until none does."""
        while self._spread and self._round(None):
            pass

    def _round(self, asked: str | None) -> bool:
        """Say what this rank asks for, and take part in gathering what any does; whether any does."""
        assert self._ranks is not None, "ranks are needed to gather what is spread over them"
        names = list(self._spread)
        votes = torch.zeros(2, self._ranks.world_size, dtype=torch.float64)
        votes[0, self._ranks.rank] = 0 if asked is None else 1 + names.index(asked)
        votes[1, self._ranks.rank] = not self._has_room()
        places, full = self._ranks.sum(votes.to(self._ranks.device)).int().tolist()
        wanted = [names[place - 1] for place in sorted({*places} - {0})]
        error: Exception | None = None
        if any(full):
            wanted, error = [], MemoryError(f"rank {full.index(1)} has no room to gather {asked}")
        for name in wanted:
            try:
                whole = self._spread[name].full_tensor()
            except Exception as failure:  # of the rank that asked to tell; the others have more to gather
                error = failure if name == asked else error
            else:
                if name == asked:
                    self._kept[name] = whole
        if asked is not None and error is not None:
            raise error
        return any(places)

    def _has_room(self) -> bool:
        """Whether the largest can be gathered here: to find out while others gather would leave them waiting."""
        largest = max(self._spread.values(), key=lambda tensor: tensor.nbytes)
        try:
            torch.empty(2 * largest.nbytes, dtype=torch.uint8, device=largest.device)
        except Exception:
            return False
        return True


def snapshot(model: nn.Module, ranks: Ranks | None = None, besides: Mapping[str, Tensor] | None = None) -> Snapshot:
    """The parameters and buffers of a model by name, tied ones once, detached from its graph and not copied.

    Args:
        model: The model. What FSDP2 has left whole of it after a step of validation, in the type that it computes in,
            it spreads again.
        ranks: The processes that parameters may be spread over.
        besides: More tensors by name.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    named = (*model.named_parameters(), *model.named_buffers())
    tensors = {name: _of_every_rank(tensor.detach()) for name, tensor in named}
    return Snapshot({**tensors, **(besides or {})}, ranks)


def attend(tensors: Mapping[str, Tensor]) -> None:
    """Take part in gathering what other ranks ask for, if these are tensors that are spread over ranks."""
    if isinstance(tensors, Snapshot):
        tensors.attend()


def held(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What this process holds of tensors that may be spread over ranks."""
    return tensors.held if isinstance(tensors, Snapshot) else tensors


def refuse_flattened(model: nn.Module) -> None:
    """Refuse parameters of which no process knows the shape: FSDP1's are flat, DeepSpeed's in ZeRO stage 3 empty.

    Raises:
        NotImplementedError: The model has such parameters.
    """
    marks = {"_fsdp_flattened": "FSDPStrategy", "_is_flat_param": "FSDPStrategy", "ds_id": "DeepSpeed's ZeRO stage 3"}
    for parameter in model.parameters():
        for mark, strategy in marks.items():
            if getattr(parameter, mark, False) is not False:
                raise NotImplementedError(
                    f"parameters that {strategy} has flattened and spread over processes cannot be measured: this "
                    "monitor stands down. Those of ModelParallelStrategy with fully_shard (FSDP2) can"
                )


def _of_every_rank(tensor: Tensor) -> Tensor:
    """What every rank holds a whole copy of, as a plain tensor."""
    if isinstance(tensor, DTensor) and all(placement.is_replicate() for placement in tensor.placements):
        return tensor.to_local()
    return tensor
