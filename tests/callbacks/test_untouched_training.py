"""Training with the callbacks is, bit for bit, training without them."""

import pytest
import torch
from torch.utils._pytree import tree_flatten

from tests.callbacks.trainings import EVERY, on_a_budget, outcome


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


SETTINGS = [
    {"precision": "bf16-mixed"},
    {"accumulate_grad_batches": 2},
    {"gradient_clip_val": 0.5},
    {"precision": "64-true"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids="-".join)
def test_with_settings_of_the_trainer(tmp_path, settings):
    without, _, _ = outcome(tmp_path / "without", 0, monitored=False, **settings)
    with_monitors, (monitor, _), _ = outcome(tmp_path / "with", 0, monitored=True, **settings)
    assert len(monitor.history.measurements) > 2
    assert_identical(with_monitors, without)


@pytest.mark.parametrize("settings", [{}, *SETTINGS], ids="-".join)
def test_on_a_budget(tmp_path, settings):
    """Measured in pieces, at steps that differ from run to run."""
    without, _, _ = outcome(tmp_path / "without", 0, monitored=False, epochs=25, **settings)
    with on_a_budget():
        with_monitors, (monitor, _), trainer = outcome(tmp_path / "with", 0, monitored=True, epochs=25, **settings)
    assert_identical(with_monitors, without)
    assert monitor.every_n_train_steps is None
    for key in ("symmetry/broken_fraction", "spectrum/effective_rank/hidden", "representation/effective_rank/head"):
        steps, _ = monitor.history.series(key)
        assert len(steps) >= 2 and steps[-1] == trainer.global_step
