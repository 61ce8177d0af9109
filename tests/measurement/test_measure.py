"""Pieces shared out among ranks and joined by one sum."""

import math

import pytest
import torch

from lightning_symmetry.measurement.indicators import Piece
from lightning_symmetry.measurement.measure import Ranks, measure


def pieces(n):
    """Piece k measures k times the sum, and 100 k."""
    return [
        Piece(
            keys=(f"{k}/sum", f"{k}/other"),
            measure=lambda tensors, k=k: [k * tensors["x"].sum(), torch.tensor(100.0 * k)],
        )
        for k in range(n)
    ]


def measured_by(world_size, pieces, tensors):
    """What each of so many ranks knows, the sum over ranks done as a collective would: all first, then all told."""
    slots = []

    def run(sums):
        results = []
        for rank in range(world_size):
            ranks = Ranks(rank=rank, world_size=world_size, sum=sums)
            results.append(measure(pieces, tensors, ranks, step_time=0.1 * (rank + 1)))
        return results

    run(lambda tensor: slots.append(tensor.clone()) or tensor)
    return run(lambda tensor: torch.stack(slots).sum(0))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_all_ranks_know_the_same_whatever_their_number(world_size):
    tensors = {"x": torch.tensor([1.0, 2.0])}
    expected = {f"{k}/sum": 3.0 * k for k in range(5)} | {f"{k}/other": 100.0 * k for k in range(5)}
    for known in measured_by(world_size, pieces(5), tensors):
        assert known.values == expected
        assert known.failed == 0
        assert known.step_time == pytest.approx(sum(0.1 * (rank + 1) for rank in range(world_size)) / world_size)
        assert known.cost > 0


def test_each_piece_is_measured_by_one_rank_alone():
    counts = [0] * 5

    def counted(k):
        def run(tensors):
            counts[k] += 1
            return [torch.zeros(())]

        return Piece((f"{k}",), run)

    for rank in range(2):
        measure([counted(k) for k in range(5)], {}, Ranks(rank=rank, world_size=2), step_time=0.0)
    assert counts == [1] * 5


def test_a_piece_that_raises_leaves_nan_and_no_rank_waits():
    def fails(tensors):
        raise FloatingPointError("no")

    broken = [Piece(("bad",), fails), Piece(("good",), lambda tensors: [torch.ones(())])]
    first, second = measured_by(2, broken, {})
    for known in (first, second):
        assert math.isnan(known.values["bad"])
        assert known.values["good"] == 1.0
        assert known.failed == 1
    assert isinstance(first.error, FloatingPointError)
    assert second.error is None


def test_one_process_moves_nothing_to_its_device():
    """Some devices have no numbers in double precision, and one (meta) has none at all."""
    known = measure(pieces(3), {"x": torch.tensor([1.0, 2.0])}, Ranks(device="meta"), step_time=0.1)
    assert known.values["2/sum"] == 6.0
