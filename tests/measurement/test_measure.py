"""Pieces shared out among ranks and joined by one sum."""

import math

import pytest
import torch

from lightning_symmetry.measurement.device import Host
from lightning_symmetry.measurement.frozen import Memory
from lightning_symmetry.measurement.indicators import Piece
from lightning_symmetry.measurement.measure import FailedOnARank, Measurement, Ranks, together
from tests.measurement.behind import Behind


def pieces(n):
    """Piece k measures k times the sum, and 100 k."""
    return [
        Piece(
            keys=(f"{k}/sum", f"{k}/other"),
            measure=lambda tensors, k=k: [k * tensors["x"].sum(), torch.tensor(100.0 * k)],
        )
        for k in range(n)
    ]


def measured_by(world_size, pieces, tensors, turns=None, **settings):
    """What each of so many ranks knows, the sum over ranks done as a collective would: all first, then all told."""
    slots = []

    def run(sums):
        results = []
        for rank in range(world_size):
            measurement = Measurement(pieces, Ranks(rank=rank, world_size=world_size, sum=sums), Host())
            for numbers in turns or [range(len(pieces))]:
                measurement.measure(numbers, lambda: tensors, **settings)
            assert not measurement.left
            results.append(measurement.joined(0.1 * (rank + 1), gathering=1.0 + rank, rest=10.0 - rank)())
        return results

    run(lambda tensor: slots.append(tensor.clone()) or tensor)
    return run(lambda tensor: torch.stack(slots).sum(0))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("turns", [None, [(4, 2), (0,), (1, 3)]], ids=["at_once", "in_turns"])
def test_all_ranks_know_the_same_whatever_their_number(world_size, turns):
    tensors = {"x": torch.tensor([1.0, 2.0])}
    expected = {f"{k}/sum": 3.0 * k for k in range(5)} | {f"{k}/other": 100.0 * k for k in range(5)}
    for known in measured_by(world_size, pieces(5), tensors, turns):
        assert known.values == expected
        assert known.failed == 0
        assert known.step_time == pytest.approx(sum(0.1 * (rank + 1) for rank in range(world_size)) / world_size)
        assert len(known.costs.pieces) == 5 and min(known.costs.pieces) > 0
        assert known.costs.preparation > 0
        assert (known.costs.gathering, known.costs.rest) == (world_size, 10.0)  # where it took longest
        assert all(map(math.isnan, known.digests))  # nothing is known to be frozen


def test_each_piece_is_measured_by_one_rank_alone():
    counts = [0] * 5

    def counted(k):
        def run(tensors):
            counts[k] += 1
            return [torch.zeros(())]

        return Piece((f"{k}",), run)

    for rank in range(2):
        measurement = Measurement([counted(k) for k in range(5)], Ranks(rank=rank, world_size=2), Host())
        measurement.measure(range(3), dict)
        measurement.measure(measurement.left, dict)
    assert counts == [1] * 5


def test_what_pieces_share_is_found_once_for_those_of_one_step_and_timed_apart():
    found = []
    measurement = Measurement(pieces(3), Ranks(), Host())
    for numbers in ((0, 1), (2,)):
        measurement.measure(numbers, lambda: {"x": torch.ones(2)}, prepare=found.append)
    assert len(found) == 2
    assert found[0] is not found[1]
    known = measurement.joined(0.1)()
    assert known.costs.preparation > 0
    assert measurement.seconds > sum(known.costs.pieces)


def fails(tensors):
    raise FloatingPointError("no")


GOOD = Piece(("good",), lambda tensors: [torch.ones(())])


@pytest.mark.parametrize(
    "broken",
    [Piece(("bad",), fails), Piece(("bad",), lambda tensors: [torch.ones(()), torch.ones(())])],
    ids=["raises", "has_too_many_values"],
)
def test_a_piece_that_fails_leaves_nan_and_no_rank_waits(broken):
    first, second = measured_by(2, [broken, GOOD], {})
    for known in (first, second):
        assert math.isnan(known.values["bad"])
        assert known.values["good"] == 1.0
        assert known.failed == 1
    assert isinstance(first.error, FloatingPointError | ValueError)
    assert second.error is None


def test_where_what_they_share_fails_all_pieces_are_nan_and_no_rank_waits():
    for known in measured_by(2, pieces(3), {}, prepare=fails):
        assert all(map(math.isnan, known.values.values()))
        assert known.failed == 3
        assert isinstance(known.error, FloatingPointError)


def test_one_process_moves_nothing_to_its_device():
    """Some devices have no numbers in double precision, and one (meta) has none at all."""
    (known,) = measured_by(1, pieces(3), {"x": torch.tensor([1.0, 2.0])})
    measurement = Measurement(pieces(3), Ranks(device="meta"), Host())
    measurement.measure(range(3), lambda: {"x": torch.tensor([1.0, 2.0])})
    assert measurement.joined(0.1)().values == known.values


def test_the_host_reads_nothing_before_the_copy_is_asked_for():
    """Neither a value nor a cost is read while measuring and joining: all come with the one copy at the end."""
    host = Behind()
    measurement = Measurement(pieces(3), Ranks(), host)
    measurement.measure(range(3), lambda: {"x": torch.tensor([1.0, 2.0])})
    known = measurement.joined(0.1)
    assert len(host.copies) == 1
    host.catch_up()
    assert known().values["2/sum"] == 6.0
    assert host.waits == 0


class Counted:
    """The spectra of two layers, counting how often each is measured; and what is known of them."""

    def __init__(self, at_once=True):
        self.tensors = {"frozen": torch.ones(3, 3), "trained": torch.ones(3, 3)}
        self.memory = Memory(at_once)
        self.counts = dict.fromkeys(self.tensors, 0)
        self.pieces = [Piece((name,), self.of(name), reads=(name,)) for name in self.tensors]

    def of(self, name):
        def measure(tensors):
            self.counts[name] += 1
            return [tensors[name].sum()]

        return measure

    def measure(self, frozen=("frozen",)):
        measurement = Measurement(self.pieces, Ranks(), Host(), self.memory)
        measurement.measure((0, 1), lambda: self.tensors, frozen=frozen.__contains__)
        known = measurement.joined(0.1)()
        self.memory.learn(self.pieces, known.values, known.digests)
        return known.values


def test_what_is_frozen_is_measured_once():
    model = Counted()
    for _ in range(4):
        assert model.measure() == {"frozen": 9.0, "trained": 9.0}
    assert model.counts == {"frozen": 1, "trained": 4}


def test_what_is_frozen_and_changed_all_the_same_is_measured_again():
    """The teacher of a student is frozen, and written to by ``.data``, which no version counter notices."""
    model = Counted()
    model.measure()
    model.tensors["frozen"].data[0, 0] = 5.0
    assert model.measure()["frozen"] == 13.0
    assert model.measure()["frozen"] == 13.0
    assert model.counts["frozen"] == 2


def test_what_is_trained_again_is_measured_again():
    model = Counted()
    for frozen in (("frozen",), (), ("frozen",), ("frozen",)):
        model.measure(frozen)
    assert model.counts["frozen"] == 3


def test_on_an_accelerator_nothing_is_compared_at_once():
    """There what is frozen is measured until two digests were the same; a change is seen one measurement late."""
    model = Counted(at_once=False)
    for _ in range(4):
        model.measure()
    assert model.counts["frozen"] == 2
    model.tensors["frozen"].data[0, 0] = 5.0
    assert [model.measure()["frozen"] for _ in range(3)] == [9.0, 13.0, 13.0]


@pytest.mark.parametrize("failing", [(), (0,), (1,), (0, 1)])
def test_where_one_rank_fails_all_do_and_say_so(failing):
    def act(rank):
        if rank in failing:
            raise KeyError("no")
        return rank

    for rank in (0, 1):
        ranks = Ranks(rank=rank, world_size=2, sum=lambda tensor: torch.full_like(tensor, len(failing)))
        if not failing:
            assert together(lambda rank=rank: act(rank), ranks) == rank
            continue
        with pytest.raises(Exception) as raised:
            together(lambda rank=rank: act(rank), ranks)
        if len(failing) == 2:
            assert type(raised.value) is KeyError
        else:
            assert type(raised.value) is FailedOnARank
            assert raised.value.here == (rank in failing)
            assert ("KeyError: 'no'" if rank in failing else "its log says why") in str(raised.value)


def test_a_piece_that_remembers_is_always_measured_by_one_rank():
    ranks_of_piece = [[] for _ in range(4)]
    told = [
        Piece(
            keys=(str(k),),
            measure=lambda tensors, k=k: ranks_of_piece[k].append(tensors["rank"]) or [torch.tensor(1.0)],
            remembers=k > 1,
        )
        for k in range(4)
    ]
    for turns in ([(0, 1, 2, 3)], [(1, 2), (3, 0)], [(2, 1, 3, 0)]):
        for rank in (0, 1):
            measurement = Measurement(told, Ranks(rank=rank, world_size=2, sum=lambda tensor: tensor), Host())
            for numbers in turns:
                measurement.measure(numbers, lambda rank=rank: {"rank": rank})
    assert ranks_of_piece[2:] == [[0, 0, 0], [1, 1, 1]]
    assert all(len(ranks) == 3 and set(ranks) == {0, 1} for ranks in ranks_of_piece[:2])


def test_a_frozen_piece_that_failed_is_measured_again():
    model = Counted()
    good, model.pieces[0] = model.pieces[0], Piece(("frozen",), fails, reads=("frozen",))
    assert math.isnan(model.measure()["frozen"])
    model.pieces[0] = good
    assert model.measure()["frozen"] == 9.0
