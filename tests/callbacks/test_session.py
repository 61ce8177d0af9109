"""One monitor during one fit, without a Trainer."""

import math
import warnings

import pytest
import torch
from torch import nn

from lightning_symmetry.callbacks.session import Plan, Session
from lightning_symmetry.measurement.budget import Budget
from lightning_symmetry.measurement.indicators import Piece
from lightning_symmetry.measurement.measure import Ranks
from lightning_symmetry.measurement.transitions import Transitions
from lightning_symmetry.sinks.recorder import Recorder


def fails(tensors):
    raise FloatingPointError("no")


GOOD = Piece(("good",), lambda tensors: [torch.ones(())])
BAD = Piece(("bad",), fails)


def session(rank, others, pieces):
    """The monitor of one of two ranks, which measures every second piece; the other rank's slots are given."""
    return Session(
        name="Monitor",
        make_plan=lambda model, batch: Plan(pieces, aggregates=lambda values: {"mean": values["good"]}),
        aggregates=("mean", "unknown"),
        budget=Budget(0.01, every_n_steps=1),
        ranks=Ranks(rank=rank, world_size=2, sum=lambda tensor: tensor + others),
        recorder=Recorder(None, [], 0.1),
        transitions=Transitions(),
        alert_on=(),
        on_transition=None,
        raise_errors=False,
    )


def test_the_rank_that_failed_says_why_and_rank_zero_that_it_did():
    nothing = torch.zeros(14, dtype=torch.float64)
    one_failure = torch.zeros(14, dtype=torch.float64).index_fill(0, torch.tensor(12), 1.0)
    with pytest.warns(UserWarning, match=r"at step 0 and goes on; .* FloatingPointError: no \(.*session.py, line .*\)"):
        session(1, nothing, [GOOD, BAD]).step_begins(0, nn.Linear(2, 2), None)
    with pytest.warns(UserWarning, match="another rank failed; its log says why"):
        session(0, one_failure, [GOOD, BAD]).step_begins(0, nn.Linear(2, 2), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session(1, one_failure, [BAD, GOOD]).step_begins(0, nn.Linear(2, 2), None)


def test_an_aggregate_that_a_measurement_does_not_know_is_nan():
    told = session(0, torch.zeros(14), [GOOD, BAD]).step_begins(0, nn.Linear(2, 2), None)
    assert told["mean"] == 1.0
    assert math.isnan(told["unknown"])
