"""Which series are watched, and what their shifts are called."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from lightning_symmetry.measurement.transitions import TRANSITION_KINDS, WATCHED, Transition, Transitions


def observed(series: dict[str, list[float]]) -> tuple[Transitions, list[Transition]]:
    transitions, found = Transitions(), []
    for step in range(len(next(iter(series.values())))):
        found += transitions.observe(10 * step, {key: values[step] for key, values in series.items()})
    return transitions, found


@pytest.mark.parametrize(
    ("key", "rise", "fall"),
    [
        ("symmetry/distinct_units/fc", "breaking", "restoration"),
        ("symmetry/alive_units/fc", "breaking", "death_of_units"),
        ("symmetry/product_rank/fc", "rank_jump", "rank_collapse"),
        ("spectrum/effective_rank/fc", "rank_jump", "rank_collapse"),
        ("representation/effective_rank/fc", None, "representation_collapse"),
    ],
)
def test_a_rise_and_a_fall_have_their_names(key, rise, fall):
    for after, kind in ((12.0, rise), (4.0, fall)):
        transitions, found = observed({key: [8.0] * 20 + [after] * 5})
        assert [(one.kind, one.group, one.step, one.since) for one in found] == (
            [] if kind is None else [(kind, "fc", 220, 200)]
        )
        assert transitions.counts == {name: int(name == kind) for name in (rise, fall) if name is not None}


def test_every_kind_is_watched_for():
    assert {kind for watch in WATCHED.values() for kind in (watch.rise, watch.fall)} - {None} == set(TRANSITION_KINDS)


def test_other_keys_and_aggregates_are_passed_over():
    values = [1.0] * 20 + [0.0] * 5
    transitions, found = observed(
        {"symmetry/broken_fraction": values, "loss": values, "spectrum/spectral_norm/a": values}
    )
    assert (found, transitions.counts) == ([], {})


@pytest.mark.parametrize(
    ("units", "told"),
    [
        ([64.0] * 20 + [63.0] * 20 + [60.0] * 20, 0),
        ([64.0] * 20 + [58.0] * 20, 1),
        ([64.0] * 20 + [6.0] * 20 + [8.0] * 20, 1),
        ([6.0] * 20 + [5.0] * 20, 1),
    ],
)
def test_single_units_count_in_small_groups_only(units, told):
    for indicator in ("distinct_units", "alive_units"):
        assert len(observed({f"symmetry/{indicator}/fc": units})[1]) == told


def test_units_that_merge_one_by_one_are_no_flood():
    units = [64.0 - max(0, (k - 40) // 8) for k in range(200)]
    assert len(observed({"symmetry/distinct_units/fc": units})[1]) <= 3


@pytest.mark.parametrize("at", range(3, 12))
def test_a_collapse_at_the_beginning_of_a_training_is_told_once_and_the_breaking_after_it(at):
    units = [64.0] * at + [1.0] * 6 + [15.0] * 20
    _, found = observed({"symmetry/distinct_units/fc": units})
    assert [(one.kind, one.before, one.after) for one in found] == [("restoration", 64.0, 1.0), ("breaking", 1.0, 15.0)]
    assert [one.since for one in found] == [10 * at, 10 * (at + 6)]
    assert found[0].step == 10 * (at + 2)


def test_a_collapse_that_goes_on_is_told_once():
    ranks = [50.0] * 4 + [50.0 * 0.7**k for k in range(1, 12)] + [1.0] * 20
    _, found = observed({"spectrum/effective_rank/fc": ranks})
    assert [one.kind for one in found] == ["rank_collapse"]


def test_a_training_that_settles_has_no_transition():
    ranks = [51.0 - 10 * (1 - 0.8**k) for k in range(60)]
    assert observed({"spectrum/effective_rank/fc": ranks})[1] == []


def test_the_state_goes_through_json_and_nothing_is_lost():
    values = [8.0] * 20 + [4.0] * 20
    whole, expected = observed({"spectrum/effective_rank/fc": values})
    transitions, found = Transitions(), []
    for step, value in enumerate(values):
        resumed = Transitions()
        resumed.restore(json.loads(json.dumps(transitions.state(), allow_nan=False)))
        transitions = resumed
        found += transitions.observe(10 * step, {"spectrum/effective_rank/fc": value})
    assert found == expected
    assert transitions.state() == whole.state()


def test_what_is_told_is_plain_json():
    (transition,) = observed({"spectrum/effective_rank/fc": [8.0] * 20 + [4.0] * 5})[1]
    told = transition.details()
    assert json.loads(json.dumps(told)) == told
    assert {"kind": transition.kind, "step": transition.step, **told} == {**asdict(transition), "size": -4.0}
