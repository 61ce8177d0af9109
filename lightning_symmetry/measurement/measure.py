"""One measurement: pieces shared out among ranks, joined by one sum over a fixed vector of slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_symmetry.measurement.indicators import Piece


@dataclass(frozen=True)
class Ranks:
    """Who measures together.

    Attributes:
        rank: The rank of this process.
        world_size: The number of processes.
        device: Where a tensor must lie to be summed over the ranks.
        sum: Sums a tensor over the ranks; every rank must call it as often.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"
    sum: Callable[[Tensor], Tensor] = lambda tensor: tensor


def join(sums: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Add up over the ranks what each has gathered; one collective.

    Args:
        sums: Tensors by name, of the same names and shapes on every rank.
        ranks: Who measures together.

    Returns:
        The sums over the ranks, in float64, the same on each.
    """
    if ranks.world_size == 1 or not sums:
        return dict(sums)
    flat = [tensor.detach().flatten().to(ranks.device, torch.float64) for tensor in sums.values()]
    joined = ranks.sum(torch.cat(flat)).split([len(part) for part in flat])
    return {name: part.reshape(tensor.shape) for (name, tensor), part in zip(sums.items(), joined, strict=True)}


@dataclass(frozen=True)
class Measured:
    """What all ranks know after a measurement.

    Attributes:
        values: The value of every key.
        cost: The seconds it took on the rank on which it took longest.
        step_time: The mean over ranks of the seconds of a step of training.
        failed: How many pieces raised, on all ranks.
        error: The first exception raised on this rank, if any.
    """

    values: dict[str, float]
    cost: float
    step_time: float
    failed: int
    error: Exception | None


def measure(
    pieces: Sequence[Piece], tensors: Mapping[str, Tensor], ranks: Ranks, step_time: float, earlier_cost: float = 0.0
) -> Measured:
    """Measure this rank's share of the pieces, and sum with the others' shares.

    A piece that raises leaves NaN in its slots, so that no rank waits for one that failed.

    Args:
        pieces: All pieces, the same on every rank.
        tensors: The model's parameters and buffers by name.
        ranks: Who measures together.
        step_time: The seconds of a step of training on this rank.
        earlier_cost: Seconds that this rank spent since the last measurement, to be counted with this one.
    """
    started = time.perf_counter()
    keys = [key for piece in pieces for key in piece.keys]
    slots = torch.zeros(len(keys) + 2 + ranks.world_size, dtype=torch.float64)
    failed, error = 0, None
    place = 0
    for number, piece in enumerate(pieces):
        if number % ranks.world_size == ranks.rank:
            try:
                with torch.no_grad():
                    values = [value.detach().cpu().double() for value in piece.measure(tensors)]
                slots[place : place + len(piece.keys)] = torch.stack(values)
            except Exception as exception:
                slots[place : place + len(piece.keys)] = torch.nan
                failed, error = failed + 1, error or exception
        place += len(piece.keys)
    slots[len(keys)] = failed
    slots[len(keys) + 1] = step_time / ranks.world_size
    slots[len(keys) + 2 + ranks.rank] = earlier_cost + time.perf_counter() - started
    joined = slots if ranks.world_size == 1 else ranks.sum(slots.to(ranks.device)).cpu()
    return Measured(
        values=dict(zip(keys, joined.tolist(), strict=False)),
        cost=float(joined[len(keys) + 2 :].max()),
        step_time=float(joined[len(keys) + 1]),
        failed=int(joined[len(keys)]),
        error=error,
    )
