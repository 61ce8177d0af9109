"""One measurement: pieces measured at one step or at several, shared out among ranks, and joined by one sum.

The sum is over a fixed vector of slots: the values of all pieces, and what they cost, so that every rank knows the same
and plans the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from lightning_symmetry.measurement.device import Host, Stopwatch
from lightning_symmetry.measurement.frozen import Memory, digest_of
from lightning_symmetry.measurement.indicators import Piece, Tensors, nonfinite
from lightning_symmetry.measurement.schedule import Costs
from lightning_symmetry.measurement.slices import clock
from lightning_symmetry.measurement.snapshot import attend, snapshot

T = TypeVar("T")


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


class FailedOnARank(RuntimeError):
    """Some ranks failed, and others did not.

    Attributes:
        here: Whether it was this rank that failed.
    """

    def __init__(self, error: Exception | None) -> None:
        self.here = error is not None
        super().__init__(f"{type(error).__name__}: {error}" if error else "another rank failed; its log says why")


def together(act: Callable[[], T], ranks: Ranks) -> T:
    """Act on every rank, and fail on all where one fails, so that none goes on to wait for it; one collective.

    Args:
        act: What to do on each rank.
        ranks: Who acts.

    Raises:
        FailedOnARank: It failed on some ranks.
        Exception: What `act` raises, where it fails on all.
    """
    if ranks.world_size == 1:
        return act()
    error: Exception | None = None
    try:
        done = act()
    except Exception as raised:
        error = raised
    failed = int(join({"failed": torch.tensor(float(error is not None))}, ranks)["failed"])
    if not failed:
        return done
    raise error if error is not None and failed == ranks.world_size else FailedOnARank(error) from error


def nonfinite_parameters(model: nn.Module, ranks: Ranks) -> list[str]:
    """The names of the parameters of which some rank holds a NaN or an infinity; one collective."""
    held = snapshot(model).held
    names = [name for name, _ in model.named_parameters()]
    here = nonfinite({name: held[name] for name in names})
    anywhere = join({name: torch.tensor(float(name in here)) for name in names}, ranks)
    return [name for name in names if anywhere[name]]


@dataclass(frozen=True)
class Measured:
    """What all ranks know after a measurement.

    Attributes:
        values: The value of every key.
        digests: Of what each piece read, where that is frozen, and else NaN.
        costs: The seconds of its parts, each on the rank on which it took longest.
        step_time: The mean over ranks of the seconds of a step of training.
        failed: How many pieces raised, on all ranks.
        error: The first exception raised on this rank, if any.
    """

    values: dict[str, float]
    digests: list[float]
    costs: Costs
    step_time: float
    failed: int
    error: Exception | None


class Measurement:
    """A measurement in the making.

    A piece that raises leaves NaN in its slots, so that no rank waits for one that failed.

    Args:
        pieces: All pieces, the same on every rank.
        ranks: Who measures together.
        host: Where results are kept, and how they are timed.
        memory: What is known of pieces that read frozen parameters alone.

    Attributes:
        begun: The numbers of the pieces that were measured, by this rank or another.
        seconds: How long this rank took so far.
    """

    def __init__(self, pieces: Sequence[Piece], ranks: Ranks, host: Host, memory: Memory | None = None) -> None:
        self.begun: set[int] = set()
        self.seconds = 0.0
        self._pieces = pieces
        self._ranks = ranks
        self._host = host
        self._memory = memory or Memory(at_once=not host.lag)
        self._values: dict[int, Tensor] = {}
        self._digests: dict[int, Tensor] = {}
        self._costs: dict[int, Stopwatch] = {}
        self._preparation: Stopwatch = lambda: 0.0
        self._failed = 0
        self._error: Exception | None = None

    @property
    def left(self) -> tuple[int, ...]:
        """The numbers of the pieces that are still to be measured."""
        return tuple(number for number in range(len(self._pieces)) if number not in self.begun)

    def measure(
        self,
        numbers: Sequence[int],
        read: Callable[[], Tensors],
        prepare: Callable[[Tensors], object] | None = None,
        frozen: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Measure this rank's share of some pieces.

        Args:
            numbers: The numbers of the pieces, the same on every rank: the first for rank 0, the next for rank 1, ...;
                those that remember for the rank that their number gives.
            read: Returns the model's tensors by name.
            prepare: Finds what the pieces share.
            frozen: Whether a parameter is frozen.
        """
        started = clock()
        self.begun.update(numbers)
        own = [number for place, number in enumerate(numbers) if self._is_own(place, number)]
        stop = self._host.stopwatch()
        tensors: Tensors = {}
        with torch.no_grad():
            try:
                tensors = read()
            except Exception as error:
                self._fail(own, error)
                own = []
            left = [number for number in own if self._is_left(number, tensors, frozen)]
            try:
                if prepare is not None and left:
                    prepare(tensors)
                self._preparation = stop()
            except Exception as error:
                self._fail(left, error)
                left = []
            for number in left:
                stop = self._host.stopwatch()
                try:
                    self._values[number] = self._measured(self._pieces[number], tensors)
                except Exception as error:
                    self._fail([number], error)
                self._costs[number] = stop()
            attend(tensors)
        self.seconds += clock() - started

    def joined(
        self, step_time: float, gathering: float = 0.0, rest: float = 0.0, failed: int = 0
    ) -> Callable[[], Measured]:
        """Sum with what the other ranks have measured; every rank must call it.

        Args:
            step_time: The seconds of a step of training on this rank.
            gathering: The seconds that this rank took to gather what was measured.
            rest: Other seconds that it spent since the last measurement, to be counted with this one.
            failed: What else has failed on this rank since then.

        Returns:
            What tells what all ranks know, to be called after the lag of the device.
        """
        world_size, places = self._ranks.world_size, range(len(self._pieces))
        of_rank = torch.zeros(3, world_size, dtype=torch.float64)
        of_rank[:, self._ranks.rank] = torch.tensor([self._preparation(), gathering, rest])
        costs = [self._costs[number]() if number in self._costs else 0.0 for number in places]
        told = torch.tensor(
            [*costs, *of_rank.flatten(), self._failed + failed, step_time / world_size], dtype=torch.float64
        )
        values = [self._values.get(number, self._blank(len(self._pieces[number].keys), 0.0)) for number in places]
        digests = [self._digests.get(number, self._blank(1, 0.0)) for number in places]
        slots = torch.cat([*values, *digests, self._host.gathered(told)])
        summed = slots if world_size == 1 else self._ranks.sum(slots.to(self._ranks.device))
        read, error = self._host.copied(summed), self._error
        keys = [key for piece in self._pieces for key in piece.keys]

        def known() -> Measured:
            parts = read().split([len(keys), len(places), len(places), 3 * world_size, 2])
            values, digests, of_pieces, of_ranks, (failed, step_time) = (part.tolist() for part in parts)
            longest = (max(of_ranks[place : place + world_size]) for place in range(0, 3 * world_size, world_size))
            return Measured(
                values=dict(zip(keys, values, strict=True)),
                digests=digests,
                costs=Costs(tuple(of_pieces), *longest),
                step_time=step_time,
                failed=int(failed),
                error=error,
            )

        return known

    def _is_own(self, place: int, number: int) -> bool:
        """Whether this rank measures a piece: by its place among those of the step, or where it remembers always."""
        turn = number if self._pieces[number].remembers else place
        return turn % self._ranks.world_size == self._ranks.rank

    def _is_left(self, number: int, tensors: Tensors, frozen: Callable[[str], bool]) -> bool:
        """Whether a piece is to be measured: not where it is of frozen parameters alone and known already."""
        try:
            found = digest_of(self._pieces[number], tensors, frozen)
            known = None if found is None else self._memory.recall(number, found)
        except Exception as error:
            self._fail([number], error)
            return False
        self._digests[number] = self._blank(1) if found is None else self._host.gathered(found)[None]
        if known is not None:
            self._values[number] = self._host.gathered(known)
        return known is None

    def _measured(self, piece: Piece, tensors: Tensors) -> Tensor:
        values = [self._host.gathered(value) for value in piece.measure(tensors)]
        if len(values) != len(piece.keys):
            raise ValueError(
                f"{len(values)} values were measured for {len(piece.keys)} keys, {piece.keys[0]} the first"
            )
        return torch.stack(values)

    def _blank(self, length: int, value: float = torch.nan) -> Tensor:
        return self._host.gathered(torch.full((length,), value, dtype=torch.float64))

    def _fail(self, numbers: Sequence[int], error: Exception) -> None:
        """Count a failure, also of a rank without pieces of its own: all ranks must know of it."""
        self._error = self._error or error
        self._failed += max(len(numbers), 1)
        for number in numbers:
            self._values[number], self._digests[number] = self._blank(len(self._pieces[number].keys)), self._blank(1)
