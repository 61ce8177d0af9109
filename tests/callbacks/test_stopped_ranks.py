"""Trainings on two processes that are stopped, by whatever and on whichever, and gone on with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_symmetry import read_history
from tests.callbacks.stopped_ranks import (
    CHECKPOINT,
    CHECKPOINT_OF,
    EPOCHS,
    MERGED,
    PAIRS,
    PATIENCE,
    STEPS_AN_EPOCH,
    STOPPED,
)
from tests.callbacks.test_strategies import by_step
from tests.callbacks.test_untouched_training import assert_identical

ROOT = Path(__file__).parents[2]
RUN = Path("lightning_logs", "version_0", "symmetry", "version_0")
LAST = EPOCHS * STEPS_AN_EPOCH
STRATEGIES = ("ddp", "sharded")
STOPS = [name for name in PAIRS if name != "resumed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stopped_ranks")


@pytest.fixture(scope="module")
def left(folder):
    """What each of two ranks left, by training."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.callbacks.stopped_ranks", str(folder), *PAIRS],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return {name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)] for name in PAIRS}


@pytest.fixture(scope="module")
def resumed(left):
    return left["resumed"]


def transitions(rank):
    return [event for event in rank["events"] if event[1] not in ("run", "symmetries")]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_training_ends_where_it_would_have_ended_monitored_or_not(resumed, name):
    for rank in resumed:
        for which in ("plain resumed", "in one go", "resumed"):
            assert rank[name][which]["raised"] is None
            assert_identical(rank[name][which]["state"], rank[name]["plain"]["state"])
        assert rank[name]["resumed"]["seen"] == list(range(CHECKPOINT, LAST))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_run_measures_what_it_would_have_measured_had_nothing_happened(resumed, name):
    first, second = (by_step(rank[name]["resumed"]["history"]) for rank in resumed)
    expected = by_step(resumed[0][name]["in one go"]["history"])
    assert list(first) == list(expected) == list(range(LAST + 1))
    assert list(second) == list(range(CHECKPOINT + 1, LAST + 1))  # rank zero alone reads what was before
    for step, values in expected.items():
        assert first[step] == pytest.approx(values, rel=1e-5, abs=1e-7)
        assert second.get(step, first[step]) == pytest.approx(first[step], rel=0, abs=0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_row_and_no_event_is_there_twice(resumed, folder, name):
    history = read_history(folder / "resumed" / name / "in_two" / RUN)
    for section in ("symmetry/", "spectrum/", "representation/"):
        steps = [row.step for row in history.measurements if any(key.startswith(section) for key in row.values)]
        assert steps == sorted(set(steps))
    assert [event.step for event in history.events if event.kind == "run"] == [0, CHECKPOINT]
    one_go = transitions(resumed[0][name]["in one go"])
    assert (MERGED + 2, "restoration", "hidden") in one_go
    for rank in resumed:
        assert transitions(rank[name]["resumed"]) == one_go


@pytest.mark.parametrize("name", STRATEGIES)
def test_all_ranks_go_on_with_what_the_checkpoint_holds(resumed, name):
    """Groups, detectors, budget and what is told of the model as a whole: the same as had nothing happened."""
    expected = resumed[0][name]["in one go"]
    for rank in resumed:
        found = rank[name]["resumed"]
        assert found["symmetries"] == expected["symmetries"]
        assert found["told"] == pytest.approx(expected["told"], rel=1e-5)
        for monitor, kept in expected["kept"].items():
            others = resumed[0][name]["resumed"]["kept"][monitor]
            assert found["kept"][monitor]["transitions"] == others["transitions"]
            assert found["kept"][monitor]["transitions"]["counts"] == kept["transitions"]["counts"]
            assert found["kept"][monitor]["budget"]["due"] == kept["budget"]["due"]


def test_what_one_strategy_has_kept_another_goes_on_with(resumed):
    """Without a search for symmetries, which the parameters have not changed by being spread."""
    expected = by_step(resumed[0]["ddp"]["in one go"]["history"])
    for rank in resumed:
        assert rank["moved"]["raised"] is None
        assert rank["moved"]["symmetries"] == rank["ddp"]["in one go"]["symmetries"]
        assert transitions(rank["moved"]) == transitions(rank["ddp"]["in one go"])
        for step, values in by_step(rank["moved"]["history"]).items():
            known = {key: value for key, value in expected[step].items() if key.startswith("symmetry/")}
            assert {key: values[key] for key in known} == pytest.approx(known, rel=1e-4, abs=1e-6)


def test_a_measurement_that_a_budget_has_set_comes_when_it_would_have_come(resumed, folder):
    """That of what is heard comes later: what was heard before is lost."""
    kept = torch.load(folder / "resumed" / "budget" / CHECKPOINT_OF, weights_only=True)["callbacks"]
    due = {key.partition("{")[0]: state["budget"]["due"] for key, state in kept.items() if "Monitor" in key}
    for rank in resumed:
        rows = by_step(rank["budget resumed"]["history"])
        for monitor, key in (("SymmetryMonitor", "symmetry/broken_fraction"), ("SpectrumMonitor", "spectrum/")):
            steps = [step for step, values in rows.items() if any(name.startswith(key) for name in values)]
            assert steps[0] == min(due[monitor], 12 * STEPS_AN_EPOCH)
    assert list(by_step(resumed[0]["budget resumed"]["history"])) == list(rows)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_stops_both_ranks_leaves_no_hook_and_no_thread(resumed, name):
    raised = {"ddp": "ArithmeticError: the user's own", "sharded": "SIGTERMException: "}[name]
    for rank in resumed:
        found = rank[name]["stopped"]
        assert (found["raised"], found["threads"], found["listening"]) == (raised, [], False)
        assert found["hooks"] == rank[name]["plain"]["hooks"]  # those of FSDP2
        assert found["seen"][-1] == STOPPED


@pytest.mark.parametrize("name", STOPS)
def test_where_one_rank_is_stopped_neither_keeps_a_hook_or_a_thread(left, name):
    of_fsdp2 = left["resumed"][0]["sharded"]["plain"]["hooks"]
    for rank in left[name]:
        assert rank["hooks"] == (of_fsdp2 if "sharded" in name else 0)
        assert (rank["threads"], rank["listening"]) == ([], False)


@pytest.mark.parametrize(
    ("name", "stopped", "raised"),
    [
        ("raising", 1, "ArithmeticError"),
        ("raising_sharded", 1, "ArithmeticError"),
        ("raising_behind", 1, "ArithmeticError"),
        ("interrupted_alone", 1, "SystemExit"),
        ("interrupted_in_search", 0, "SystemExit"),
    ],
)
def test_a_rank_that_is_stopped_waits_for_no_other(left, name, stopped, raised):
    """The other waits for it in a collective, and ends as soon as its process has."""
    first, other = left[name][stopped], left[name][1 - stopped]
    assert first["raised"].startswith(raised)
    assert "gloo" in other["raised"]
    assert first["ended"] < other["ended"]
    assert max(first["seconds"], other["seconds"]) < PATIENCE.total_seconds()


def test_an_interrupt_during_a_measurement_ends_both_ranks(left):
    assert [rank["raised"] for rank in left["interrupted"]] == ["SystemExit: 1", "SystemExit: 1"]
    assert [rank["seen"][-1] for rank in left["interrupted"]] == [STOPPED + 1, STOPPED + 1]


@pytest.mark.parametrize("name", ["raising", "raising_sharded", "interrupted", "interrupted_alone"])
def test_the_history_is_whole_up_to_the_last_measurement_and_the_report_made(left, folder, name):
    run = folder / name / RUN
    assert (run / "history.jsonl").read_text().endswith("\n")
    history = read_history(run)
    assert history.series("spectrum/effective_rank/hidden")[0] == list(range(STOPPED + 1))
    assert history.series("representation/effective_rank/hidden")[0] == list(range(1, STOPPED + 1))
    steps, values = history.series("symmetry/broken_fraction/hidden")
    assert steps[: STOPPED + 1] == list(range(STOPPED + 1))
    assert values[MERGED - 1] == 1 > values[MERGED]
    assert "distinct units of hidden fell from 8 to 2" in (run / "report.html").read_text()


def test_what_all_ranks_have_measured_is_written_where_the_device_is_behind(left, folder):
    """At step 12, joined at 13, and to be read at 14."""
    assert read_history(folder / "raising_behind" / RUN).series("loss")[0] == [0, 3, 6, 9, 12]
    for rank in left["raising_behind"]:
        rows = by_step(rank["history"])
        assert list(rows) == [0, 3, 6, 9, 12]
        assert rows[12].keys() >= {"symmetry/broken_fraction", "spectrum/effective_rank/hidden"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_where_both_are_stopped_the_report_is_made(left, folder, name):
    assert (
        "distinct units of hidden fell from 8 to 2"
        in (folder / "resumed" / name / "in_two" / RUN / "report.html").read_text()
    )
