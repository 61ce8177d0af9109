"""One monitor during one fit, without a Trainer."""

import math
import statistics
import warnings

import pytest
import torch
from torch import nn

from lightning_symmetry.callbacks import session as session_module
from lightning_symmetry.callbacks.session import Plan, Session
from lightning_symmetry.measurement.budget import Budget
from lightning_symmetry.measurement.indicators import Piece
from lightning_symmetry.measurement.measure import Ranks
from lightning_symmetry.measurement.transitions import Transitions
from lightning_symmetry.sinks.recorder import Recorder
from tests.measurement.behind import Behind


def fails(tensors):
    raise FloatingPointError("no")


GOOD = Piece(("good",), lambda tensors: [torch.ones(())])
BAD = Piece(("bad",), fails)


def session(plan, aggregates, budget, raises=True, ranks=None, recorder=None):
    """A monitor that measures by a plan."""
    return Session(
        name="Monitor",
        make_plan=lambda model, batch: plan,
        aggregates=aggregates,
        budget=budget,
        ranks=ranks or Ranks(),
        recorder=recorder or Recorder(None, [], 0.1),
        transitions=Transitions(),
        alert_on=(),
        on_transition=None,
        raise_errors=raises,
    )


def one_of_two(rank, others, pieces):
    """The monitor of one of two ranks, which measures every second piece; the other rank's slots are given."""
    ranks = Ranks(rank=rank, world_size=2, sum=lambda tensor: tensor + (others if len(tensor) == len(others) else 0))
    plan = Plan(pieces, aggregates=lambda values: {"mean": values["good"]})
    return session(plan, ("mean", "unknown"), Budget(0.01, every_n_steps=1), raises=False, ranks=ranks)


def test_the_rank_that_failed_says_why_and_rank_zero_that_it_did():
    nothing = torch.zeros(14, dtype=torch.float64)
    one_failure = torch.zeros(14, dtype=torch.float64).index_fill(0, torch.tensor(12), 1.0)
    with pytest.warns(UserWarning, match=r"at step 0 and goes on; .* FloatingPointError: no \(.*session.py, line .*\)"):
        one_of_two(1, nothing, [GOOD, BAD]).step_begins(0, nn.Linear(2, 2), None)
    with pytest.warns(UserWarning, match="another rank failed; its log says why"):
        one_of_two(0, one_failure, [GOOD, BAD]).step_begins(0, nn.Linear(2, 2), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_of_two(1, one_failure, [BAD, GOOD]).step_begins(0, nn.Linear(2, 2), None)


def test_an_aggregate_that_a_measurement_does_not_know_is_nan():
    told = one_of_two(0, torch.zeros(14), [GOOD, BAD]).step_begins(0, nn.Linear(2, 2), None)
    assert told["mean"] == 1.0
    assert math.isnan(told["unknown"])


class Behinds:
    """The monitor of a single process whose device is behind: steps of a training, and the rows that it left."""

    def __init__(self, monkeypatch, every_n_steps, **settings):
        self.host, self.recorder = Behind(), Recorder(None, [], 0.1)
        monkeypatch.setattr(session_module, "device_of", lambda device: self.host)
        self.model, self.sums = nn.Linear(2, 2), 0
        plan = Plan([Piece(("weight",), lambda tensors: [tensors["weight"].sum()])], dict)
        self.session = session(plan, ("weight",), Budget(0.01, every_n_steps), recorder=self.recorder)

    def step(self, step):
        """The weights are the number of the step, and its loss is ten times that."""
        self.host.catch_up()
        with torch.no_grad():
            self.model.weight.fill_(step / 4)
        told = self.session.step_begins(step, self.model, None)
        if self.session.awaits_loss:
            self.session.step_ends(torch.tensor(10.0 * step))
        return told

    @property
    def rows(self):
        return [(row.step, row.values["weight"], row.values.get("loss")) for row in self.recorder.history.measurements]


def test_on_an_accelerator_a_row_is_finished_two_steps_later_and_nothing_is_waited_for(monkeypatch):
    run = Behinds(monkeypatch, every_n_steps=5)
    told = [step for step in range(13) if run.step(step)]
    assert told == [2, 7, 12]
    assert run.rows == [(step, float(step), 10.0 * step) for step in (0, 5, 10)]
    assert run.host.waits == 0


def test_on_an_accelerator_a_grid_too_fine_for_that_is_kept_to_all_the_same(monkeypatch):
    run = Behinds(monkeypatch, every_n_steps=1)
    for step in range(3):
        run.step(step)
    assert run.rows == [(step, float(step), 10.0 * step) for step in range(3)]
    assert run.host.waits > 0


def test_at_the_end_of_training_what_is_on_its_way_is_waited_for(monkeypatch):
    run = Behinds(monkeypatch, every_n_steps=5)
    for step in range(7):
        run.step(step)
    run.session.finish(7, run.model)
    assert run.rows == [(0, 0.0, 0.0), (5, 5.0, 50.0), (7, 6.0, None)]


@pytest.mark.parametrize(("last", "steps"), [(5, [0]), (6, [0, 5])])
def test_where_training_fails_what_ranks_have_joined_is_handed_on_and_nothing_else(monkeypatch, last, steps):
    run = Behinds(monkeypatch, every_n_steps=5)
    for step in range(last + 1):
        run.step(step)
    run.session.stop(last, run.model)
    assert [step for step, _, _ in run.rows] == steps


def dear(tensors, note):
    """The sum of the weights, read again and again, each time after some work."""
    total, ones = torch.zeros(()), torch.ones(64, 64)
    for _ in range(300):
        note()
        total = total + tensors["weight"].sum() * (ones @ ones)[0, 0] / 64
    return [total / 300]


@pytest.fixture
def one_thread():
    """What takes how long is the same whatever else the machine does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_piece_that_costs_more_than_a_window_earns_is_measured_in_slices_and_of_one_moment():
    """The weights are the number of the step: a mean over several moments would be no whole number, or of no slice."""
    recorder, model = Recorder(None, [], 0.1), nn.Linear(2, 2)
    budget = Budget(0.05)
    worked: set[int] = set()
    piece = Piece(("weight",), lambda tensors: dear(tensors, lambda: worked.add(step)))
    monitor = session(Plan([piece], dict), ("weight",), budget, recorder=recorder)
    spent = []
    for step in range(20_000):
        with torch.no_grad():
            model.weight.fill_(step / 4)
        before = budget.spent
        monitor.step_begins(step, model, None)
        monitor.step_ends(torch.zeros(()))
        spent.append(budget.spent - before)
        if len(recorder.history.series("weight")[0]) == 2:
            break
        torch.ones(50, 50).matrix_exp()
    (steps, values), slices = recorder.history.series("weight"), sorted(worked)[1:]
    assert values[0] == 0 and len(steps) == 2
    assert 0 < values[1] <= slices[0] and len(slices) > 3 and slices[-1] <= steps[1]
    assert statistics.median(spent[step] for step in slices) < spent[0] / 4
