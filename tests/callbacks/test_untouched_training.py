"""Training with the callbacks is, bit for bit, training without them."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_flatten

from lightning_symmetry import read_history
from tests.callbacks.trainings import EVERY, outcome

ROOT = Path(__file__).parents[2]


def assert_identical(left, right):
    leaves, structure = tree_flatten(left)
    others, other_structure = tree_flatten(right)
    assert structure == other_structure
    for one, other in zip(leaves, others, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_one_device(tmp_path, seed):
    without, _, _ = outcome(tmp_path / "without", seed, monitored=False)
    with_monitors, (monitor, _), _ = outcome(tmp_path / "with", seed, monitored=True)
    history = monitor.history
    assert {measurement.step for measurement in history.measurements} == {0, EVERY, 2 * EVERY, 3 * EVERY, 12}
    assert history.series("representation/activation_gradient_alignment/hidden")[0] == [EVERY, 2 * EVERY, 3 * EVERY, 12]
    assert_identical(with_monitors, without)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.5},
        {"precision": "64-true"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_with_settings_of_the_trainer(tmp_path, settings):
    without, _, _ = outcome(tmp_path / "without", 0, monitored=False, **settings)
    with_monitors, (monitor, _), _ = outcome(tmp_path / "with", 0, monitored=True, **settings)
    assert len(monitor.history.measurements) > 2
    assert_identical(with_monitors, without)


def two_processes(folder, build):
    """What each of two ranks leaves, plain and monitored, and what they say."""
    said = ""
    for monitored in ("plain", "monitored"):
        run = subprocess.run(
            [sys.executable, "-m", "tests.callbacks.trainings", str(folder), monitored, build],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        said += run.stderr
    return [
        [torch.load(folder / f"{monitored}-{rank}.pt", weights_only=False) for monitored in ("plain", "monitored")]
        for rank in (0, 1)
    ], said


def test_on_two_processes(tmp_path):
    """Each rank's training is untouched, both ranks know the same numbers, and rank zero writes them."""
    ranks, _ = two_processes(tmp_path, "Net")
    histories = []
    for plain, monitored in ranks:
        histories.append(monitored.pop("history"))
        assert monitored.pop("groups") > 0
        assert_identical(monitored, plain)
    assert same_numbers(*histories)
    assert [step for step, values in histories[0] if "representation/nc4/head" in values] == [3, 6]
    folders = list((tmp_path / "symmetry").iterdir())
    assert len(folders) == 1
    written = [(row.step, dict(row.values)) for row in read_history(folders[0]).measurements]
    assert same_numbers(written, histories[0])
    assert sorted({step for step, _ in written}) == [0, 3, 6]


def test_a_step_that_talks_to_other_processes_is_not_traced_and_no_process_waits(tmp_path):
    ranks, said = two_processes(tmp_path, "Talking")
    for plain, monitored in ranks:
        assert {key for _, values in monitored.pop("history") for key in values if "effective_rank" in key}
        assert monitored.pop("groups") == 0
        assert_identical(monitored, plain)
    assert said.count("the step talks to other processes (c10d::allreduce_)") == 1


def test_sharded_parameters_are_not_measured_and_each_monitor_says_so_once(tmp_path):
    ranks, said = two_processes(tmp_path, "Sharded")
    for plain, monitored in ranks:
        assert not monitored["history"]
        assert_identical(monitored["losses"], plain["losses"])
    assert said.count("sharded over processes (DTensor) cannot be measured yet: this monitor stands down") == 3


def same_numbers(left, right):
    """Equal measurements, but for what each rank measures of itself."""
    own = ("monitor/", "loss")
    return [
        (step, {key: value for key, value in values.items() if not key.startswith(own)}) for step, values in left
    ] == [
        (step, {key: value for key, value in values.items() if not key.startswith(own)}) for step, values in right
    ] and all(math.isfinite(value) for _, values in left for value in values.values())
