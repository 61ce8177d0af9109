"""Loggers get whole groups and layers, the least broken and of lowest rank, and the same for the whole run."""

from __future__ import annotations

import re
import warnings

import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_symmetry.history import History
from lightning_symmetry.sinks.key_limit import MOST_KEYS, KeyLimit
from tests.callbacks.trainings import monitors, train


def measured(broken, indicators=("broken_fraction", "distinct_units")):
    """A measurement of groups, by how far each is broken."""
    values = {f"symmetry/{name}/{group}": value for group, value in broken.items() for name in indicators}
    return {"symmetry/broken_fraction": 0.5, "complexity/effective_parameters": 9.0, **values}


def groups(values):
    """The groups of which there are keys."""
    return sorted({key.split("/")[2] for key in values if key.count("/") == 2})


def limit(*measurements, **most):
    history = History(None)
    for step, values in enumerate(measurements):
        history.append(step, values)
    return KeyLimit(history, most)


def test_what_is_within_the_limit_all_goes_and_nothing_is_said():
    values = measured({"a": 0.9, "b": 0.1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert limit(values, symmetry=4).choose(values) == values


def test_the_least_broken_groups_go_whole_and_aggregates_always():
    values = measured({"a": 0.9, "b": 0.1, "c": 0.5})
    with pytest.warns(UserWarning, match="4 of 6 symmetry/ keys, those of the least broken groups at first"):
        chosen = limit(values, symmetry=5).choose(values)
    assert groups(chosen) == ["b", "c"]
    assert len(chosen) == 2 * 2 + 2
    assert list(chosen) == [key for key in values if key in chosen]


def test_the_choice_stays_whatever_becomes_of_the_groups():
    first, later = measured({"a": 0.9, "b": 0.1}), measured({"a": 0.0, "b": 1.0})
    chooser = limit(first, symmetry=2)
    with pytest.warns(UserWarning) as caught:
        assert groups(chooser.choose(first)) == groups(chooser.choose(later)) == ["b"]
    assert len(caught) == 1


def test_a_resumed_run_goes_on_with_the_keys_that_it_began_with():
    first, later = measured({"a": 0.9, "b": 0.1}), measured({"a": 0.0, "b": 1.0})
    with pytest.warns(UserWarning):
        assert groups(limit(first, later, symmetry=2).choose(later)) == ["b"]


def test_of_equal_groups_some_from_everywhere_in_the_model_go():
    layers, kinds = range(12), range(8)
    values = measured({f"{layer:02}.{kind}": 1.0 - 1e-4 * layer for layer in layers for kind in kinds})
    with pytest.warns(UserWarning):
        chosen = groups(limit(values, symmetry=2 * 48).choose(values))
    assert len(chosen) == 48
    for number in layers:
        assert 3 <= sum(group.startswith(f"{number:02}.") for group in chosen) <= 5
    for number in kinds:
        assert 3 <= sum(group.endswith(f".{number}") for group in chosen) <= 9


def test_groups_without_a_finite_number_come_last():
    values = measured({"a": float("nan"), "b": 1.0})
    with pytest.warns(UserWarning):
        assert groups(limit(values, symmetry=2).choose(values)) == ["b"]


def test_a_group_that_is_measured_later_goes_if_there_is_room():
    first = measured({"a": 0.9})
    chooser = limit(first, symmetry=4)
    assert groups(chooser.choose(first)) == ["a"]
    assert groups(chooser.choose(measured({"a": 0.9, "b": 1.0}))) == ["a", "b"]
    with pytest.warns(UserWarning):
        assert groups(chooser.choose(measured({"a": 0.9, "b": 1.0, "c": 0.0}))) == ["a", "b"]


def test_what_is_measured_later_of_a_group_goes_if_there_is_room():
    first, later = measured({"a": 0.1, "b": 0.9}, ("broken_fraction",)), measured({"a": 0.1, "b": 0.9})
    chooser = limit(first, symmetry=3)
    assert chooser.choose(first) == first
    with pytest.warns(UserWarning, match="1 of 2 symmetry/ keys"):
        chosen = chooser.choose(later)
    assert set(later) - set(chosen) == {"symmetry/distinct_units/b"}


def test_all_sections_together_stay_below_a_thousand():
    assert sum(MOST_KEYS.values()) < 1000 - 40  # counters, aggregates, and the user's own keys


def test_in_a_training_the_logger_gets_fewer_keys_and_the_history_all(tmp_path, monkeypatch):
    monkeypatch.setitem(MOST_KEYS, "spectrum", 3)
    logger, callbacks = CSVLogger(tmp_path), monitors()
    with pytest.warns(UserWarning, match="3 of 9 spectrum/ keys, those of the layers of the lowest effective rank"):
        train(tmp_path, callbacks, logger=logger)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        sent = re.findall(r"spectrum/\w+/(\w+)", file.readline())
    history = callbacks[0].history
    ranks = {key: history.series(key)[1][0] for key in history.keys("spectrum/effective_rank/")}
    assert len(ranks) == 3
    assert sent == [min(ranks, key=ranks.get).rpartition("/")[2]] * 3
