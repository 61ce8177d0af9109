"""Models on two processes: the same groups and numbers as on one, trainings untouched, and no process in wait.

All trainings run one after the other on the same two processes, which are started once.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_symmetry import read_history
from tests.callbacks.test_untouched_training import assert_identical
from tests.callbacks.trainings import outcome
from tests.callbacks.two_processes import SPREAD, TRAININGS, Listed, Spread, of_steps
from tests.sinks.test_wandb import of_type, records

ROOT = Path(__file__).parents[2]
SHARDED, PARALLEL = ("sharded", "slow"), ("parallel", "both")
WHOLE = ("whole",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two_processes")


@pytest.fixture(scope="module")
def said(folder):
    """What both processes said, by training."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.callbacks.two_processes", str(folder), *TRAININGS],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    parts = [part.partition("\n") for part in run.stderr.split("=== ")[1:]]
    return {name: "".join(text for other, _, text in parts if other == name) for name in TRAININGS}


@pytest.fixture(scope="module")
def left(said, folder):
    """What each of two ranks left, by training."""
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)] for name in TRAININGS
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The history, by step, and the groups of the same training on one process."""
    return on_one_process(tmp_path_factory.mktemp("alone"), Spread)


def on_one_process(folder, build):
    _, (monitor, _), _ = outcome(folder, 3, True, build, **SPREAD)
    history = [(row.step, row.values) for row in monitor.history.measurements]
    return by_step(history), [str(group) for group in monitor.symmetries]


def by_step(history):
    """The values of every step, but for what each rank measures of itself."""
    rows = {}
    for step, values in history:
        known = {key: value for key, value in values.items() if not key.startswith(("monitor/", "loss"))}
        rows.setdefault(step, {}).update(known)
    return rows


def of_weights(values):
    """Of gradients and updates only those of parameters that are not spread are measured."""
    others = ("representation/", "spectrum/gradient_", "spectrum/update_")
    return {key: value for key, value in values.items() if not key.startswith(others)}


@pytest.mark.parametrize("name", TRAININGS)
def test_no_training_is_changed(left, name):
    for rank in left[name]:
        assert_identical(rank["monitored"], rank["plain"])


@pytest.mark.parametrize("name", [name for name in TRAININGS if name != "failing"])
def test_all_ranks_know_the_same(left, name):
    first, second = (by_step(rank["history"]) for rank in left[name])
    assert list(first) == list(second)
    for step, values in first.items():
        assert second[step] == pytest.approx(values, rel=0, abs=0, nan_ok=True)
    assert left[name][0]["groups"] == left[name][1]["groups"]


@pytest.mark.parametrize("name", ["ddp", "unused", "static", *SHARDED, *PARALLEL])
def test_what_is_measured_is_finite(left, name):
    rows = by_step(left[name][0]["history"])
    assert all(math.isfinite(value) for values in rows.values() for value in values.values())
    assert {key.partition("/")[0] for key in rows[3]} >= {"symmetry", "spectrum", "representation", "complexity"}


@pytest.mark.parametrize("name", [*WHOLE, *SHARDED, *PARALLEL, "half"])
def test_the_same_groups_are_found_on_two_processes_as_on_one(left, alone, name):
    assert len(alone[1]) == 10
    assert left[name][0]["groups"] == alone[1]


@pytest.mark.parametrize("name", [*WHOLE, *SHARDED, *PARALLEL])
def test_the_same_numbers_are_measured_on_two_processes_as_on_one(left, alone, name):
    rows = by_step(left[name][0]["history"])
    assert rows.keys() == alone[0].keys() == {0, 3, 5}
    for step, values in rows.items():
        expected = alone[0][step]
        assert of_weights(values) == pytest.approx(of_weights(expected), rel=1e-5, abs=1e-7)
        assert of_weights(values).keys() >= {"symmetry/broken_fraction", "spectrum/effective_rank/hidden"}
        unlike = ("representation/linear_cka/", "representation/effective_rank_fraction", "spectrum/gradient_")
        for key in values.keys() - {key for key in values if key.startswith(unlike)}:
            assert values[key] == pytest.approx(expected[key], rel=1e-5), key


def test_modules_of_a_list_that_are_spread_are_measured_as_on_one_process(left, tmp_path):
    history, groups = on_one_process(tmp_path, Listed)
    assert any("name='inner.experts'" in group for group in groups)
    assert left["listed"][0]["groups"] == groups
    rows = by_step(left["listed"][0]["history"])
    for step in (0, 3, 5):
        assert of_weights(rows[step]) == pytest.approx(of_weights(history[step]), rel=1e-5, abs=1e-7)


def test_a_layer_whose_features_are_spread_over_ranks_is_not_heard_by_halves(left, alone):
    """Features of a layer that is parallel by columns are on no process together; all others are heard."""
    for name in PARALLEL:
        heard = {key.split("/")[2] for key in by_step(left[name][0]["history"])[3] if "/effective_rank/" in key}
        assert {"conv", "inner", "head"} <= heard
        missing = alone[0][3].keys() - by_step(left[name][0]["history"])[3].keys()
        missing = {key for key in missing if key.startswith("representation/")}
        assert missing
        assert all("hidden" in key for key in missing)
    missing = alone[0][3].keys() - by_step(left["sharded"][0]["history"])[3].keys()
    assert not {key for key in missing if key.startswith("representation/")}


def test_parameters_are_measured_in_their_own_type_where_steps_compute_in_half_precision(left, alone):
    """After a step of validation FSDP2 leaves parameters whole in bfloat16, in which numbers differ by some 1e-3."""
    found = of_weights(by_step(left["half"][0]["history"])[0])
    assert found == pytest.approx(of_weights(alone[0][0]), rel=1e-6, abs=1e-7)


def test_a_rank_that_cannot_read_on_keeps_no_other_waiting(left, said):
    """Its own share is unknown, and no more; what failed twice stands down, on all ranks."""
    rows = by_step(left["failing"][0]["history"])
    unknown = {key for key, value in rows[3].items() if math.isnan(value)}
    known = {key for key, value in rows[3].items() if math.isfinite(value)}
    assert any(key.startswith("symmetry/") for key in unknown)
    assert any(key.startswith("symmetry/") for key in known)
    assert "this rank alone cannot read on" in said["failing"]
    assert "another rank failed; its log says why" in said["failing"]


def test_a_rank_that_cannot_take_what_it_has_heard_keeps_no_other_waiting(left, said):
    """The first measurement is of what the other has heard, the next of all."""
    rows = by_step(left["gathering"][0]["history"])
    heard = [values["representation/effective_rank/conv"] for step, values in rows.items() if step > 0]
    assert len(heard) == 2 and all(map(math.isfinite, heard))
    assert "this rank alone cannot take what it has heard" in said["gathering"]
    assert said["gathering"].count("another rank failed; its log says why") == 1


@pytest.mark.parametrize("name", ["planning", "starting", "hooks"])
def test_a_rank_that_fails_outside_of_a_measurement_keeps_no_other_waiting(left, said, name):
    """Where it cannot begin, no rank does; else all go on."""
    assert said[name].count("this rank alone fails in") == 1
    keys = set().union(*by_step(left[name][0]["history"]).values())
    without = {"planning": "spectrum/", "starting": "representation/", "hooks": "no key"}[name]
    assert {key.partition("/")[0] for key in keys} >= {"symmetry", "complexity"}
    assert not [key for key in keys if key.startswith(without)]


@pytest.mark.parametrize("name", ["ddp", "whole", "sharded", *PARALLEL, "budget"])
def test_objects_are_told_to_other_ranks_before_the_first_measurement_alone(left, name):
    """The groups."""
    assert left[name][0]["objects", True] - left[name][0]["objects", False] <= 1


def test_rank_zero_alone_speaks_to_wandb(left, folder):
    """One run, with a row for each measurement."""
    (run,) = (folder / "wandb-True" / "wandb").glob("offline-run-*")
    rows = [row["item"] for row in of_type(records(run), "history")]
    rows = [row for row in rows if "monitor/overhead" in row]
    history = left["wandb"][0]["history"]
    assert [row["trainer/global_step"] for row in rows] == [step for step, _ in history]
    assert sum("symmetry/broken_fraction" in row for row in rows) == 3


def test_gradients_of_what_is_spread_are_not_measured_and_that_is_said(left, said):
    assert said["budget"].count("measures no gradients and updates of parameters that are spread over processes") == 1
    for values in by_step(left["budget"][0]["history"]).values():
        assert not any(key.startswith(("spectrum/gradient_", "spectrum/update_")) for key in values)


def test_nor_are_the_optimizers_steps_and_that_is_said_of_both_indicators(left, said):
    told = "SymmetryMonitor measures no orbit_fraction and no noise_imbalance of parameters that are spread over"
    assert said["budget"].count(told) == 1
    for values in by_step(left["budget"][0]["history"]).values():
        assert not any(re.match("symmetry/(orbit_fraction|noise_imbalance)", key) for key in values)


def test_the_noise_is_that_of_the_gradient_that_ranks_have_averaged(left, tmp_path):
    """Ranks share out the groups: the numbers are those of the same training on one process."""
    with of_steps():
        _, (monitor, _), _ = outcome(tmp_path, 3, True, Spread, **{**SPREAD, "epochs": 4})
    alone = by_step([(row.step, row.values) for row in monitor.history.measurements])
    rows = by_step(left["steps"][0]["history"])
    measured = [(step, key) for step, values in rows.items() for key in values if "noise_imbalance" in key]
    assert sorted(measured) == [(18, f"symmetry/noise_imbalance/{name}_rescaling") for name in ("conv", "hidden")]
    for step, key in measured:
        assert 0 < rows[step][key] == pytest.approx(alone[step][key], rel=1e-4)
    assert "symmetry/orbit_fraction" in rows[18]


def test_ranks_measure_at_the_same_steps_where_a_budget_sets_them(left):
    rows = by_step(left["budget"][0]["history"])
    assert min(rows) == 0
    assert max(rows) == 60
    assert len(rows) > 2


def test_what_a_rank_has_no_room_for_is_gathered_by_none(left, said):
    assert left["full"][0]["groups"] == []
    assert "rank 1 has no room to gather hidden.weight" in said["full"]
    for values in by_step(left["full"][0]["history"]).values():
        assert all(math.isnan(value) for key, value in values.items() if key.startswith("spectrum/"))


def test_a_step_that_talks_to_other_processes_is_not_traced(left, said):
    rank = left["talking"][0]
    assert rank["groups"] == []
    assert {key for values in by_step(rank["history"]).values() for key in values if "spectrum/effective_rank" in key}
    assert said["talking"].count("the step talks to other processes (c10d::allreduce_)") == 1


def test_rank_zero_alone_writes_one_run(left, folder):
    for name in TRAININGS.keys() - {"flat"}:
        (run,) = (folder / f"{name}-True" / "symmetry").iterdir()
        assert sorted(path.name for path in run.iterdir()) == ["history.jsonl", "report.html"]
        (begun,) = [event for event in read_history(run).events if event.kind == "run"]
        assert begun.details["model"] in ("Net", "Talking", "HalfUsed", "Spread", "Listed", "Routed")
        written = by_step([(row.step, row.values) for row in read_history(run).measurements])
        assert list(written) == list(by_step(left[name][0]["history"]))
        assert not (folder / f"{name}-False" / "symmetry").exists()


def test_batches_of_different_sizes_are_heard(left):
    """The last batch of 26 samples on each rank is of 2."""
    rows = by_step(left["unused"][0]["history"])
    assert [step for step, values in rows.items() if "representation/effective_rank/head" in values] == [3, 4]


def test_symmetries_of_what_is_too_large_for_rank_zero_are_found_by_shapes_alone(left, alone):
    """The same groups and numbers; what verification would tell is not known."""
    rank = left["large"][0]
    untried = [re.sub("preserves='loss'", "preserves='output'", group) for group in alone[1]]
    assert rank["groups"] == [group.replace("verified=True", "verified=None") for group in untried]
    rows = by_step(rank["history"])
    assert rows.keys() == {0, 3, 5}
    for step, values in rows.items():
        assert of_weights(values) == pytest.approx(of_weights(alone[0][step]), rel=1e-5, abs=1e-7)


def test_what_a_step_does_by_the_values_of_parameters_is_not_followed_by_shapes_alone(left, said):
    assert left["routed"][0]["groups"] == []
    message = r"of Routed are 924, spread over processes, more than verify_up_to=100\b.*depends on their values"
    assert len(re.findall(message, said["routed"])) == 1
    assert any(
        key.startswith("spectrum/") for values in by_step(left["routed"][0]["history"]).values() for key in values
    )


def test_parameters_that_the_first_fsdp_has_flattened_are_not_measured_and_each_monitor_says_so(left, said):
    assert not left["flat"][0]["history"]
    for monitor in ("SymmetryMonitor", "SpectrumMonitor", "RepresentationMonitor"):
        assert re.search(rf"{monitor} .*parameters that FSDPStrategy has flattened", said["flat"])
