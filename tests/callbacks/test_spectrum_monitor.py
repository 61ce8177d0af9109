"""Gradients and updates in real trainings, against what a callback beside the monitor sees of every step."""

import math

import pytest
from lightning.pytorch import Callback, seed_everything

from lightning_symmetry import SpectrumMonitor
from lightning_symmetry.functional import spectral_norm, stable_rank, update_ratio
from tests.callbacks.test_steps_with_gradients import Adversarial
from tests.callbacks.trainings import Net, train

LAYERS = ("conv", "hidden", "head")
ALL = ("weights", "gradients", "updates")


class Seen(Callback):
    """The weights at the beginning of every batch, and the gradients with which the optimizer steps."""

    def __init__(self):
        self.weights, self.gradients = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append({name: getattr(pl_module, name).weight.detach().clone() for name in LAYERS})

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append({name: getattr(pl_module, name).weight.grad.clone() for name in LAYERS})

    def on_train_end(self, trainer, pl_module):
        self.on_train_batch_start(trainer, pl_module, None, 0)


def monitored(folder, model=None, every=3, of=ALL, **settings):
    seed_everything(0, verbose=False)
    monitor = SpectrumMonitor(of=of, every_n_train_steps=every, on_error="raise")
    train(folder, [seen := Seen(), monitor] if model is None else [monitor], model, **settings)
    return monitor.history, None if model is not None else seen


@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": 1e-3}, {"precision": "64-true"}], ids=str)
def test_a_measurement_tells_of_the_step_before_it(tmp_path, settings):
    """Gradients are those before clipping, updates those that were made."""
    history, seen = monitored(tmp_path, **settings)
    for name in LAYERS:
        steps, ratios = history.series(f"spectrum/update_ratio/{name}")
        assert steps == [3, 6, 9, 12]  # the first measurement, at step 0, leaves out what there is none of
        _, norms = history.series(f"spectrum/gradient_spectral_norm/{name}")
        _, ranks = history.series(f"spectrum/update_stable_rank/{name}")
        for step, ratio, norm, rank in zip(steps, ratios, norms, ranks, strict=True):
            before, after = seen.weights[step - 1][name], seen.weights[step][name]
            assert ratio == pytest.approx(update_ratio(before, after).item(), rel=1e-5)
            assert rank == pytest.approx(stable_rank(after - before).item(), rel=1e-5)
            assert norm == pytest.approx(spectral_norm(seen.gradients[step - 1][name]).item(), rel=1e-5)
        assert all(norm > 1e-3 for norm in norms)
    assert history.series("spectrum/effective_rank/head")[0] == [0, 3, 6, 9, 12]


def test_accumulated_gradients_are_whole_and_a_step_takes_several_batches(tmp_path):
    history, seen = monitored(tmp_path, every=2, accumulate_grad_batches=3)
    steps, ratios = history.series("spectrum/update_ratio/hidden")
    _, norms = history.series("spectrum/gradient_spectral_norm/hidden")
    assert steps == [2, 4] and len(seen.gradients) == 4
    for step, ratio, norm in zip(steps, ratios, norms, strict=True):
        before, after = seen.weights[3 * (step - 1)]["hidden"], seen.weights[3 * step]["hidden"]
        assert ratio == pytest.approx(update_ratio(before, after).item(), rel=1e-5)
        assert norm == pytest.approx(spectral_norm(seen.gradients[step - 1]["hidden"]).item(), rel=1e-5)


def test_optimizers_that_step_by_hand_each_tell_of_their_own_layers(tmp_path):
    history, _ = monitored(tmp_path, Adversarial())
    for name in ("generator_0", "generator_2", "critic_0"):
        steps, ratios = history.series(f"spectrum/update_ratio/{name}")
        assert steps == [3, 6, 9, 12]
        assert all(0 < ratio < 1 for ratio in ratios)
        assert all(math.isfinite(rank) for rank in history.series(f"spectrum/gradient_effective_rank/{name}")[1])


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ("gradients", {"gradient_effective_rank", "gradient_stable_rank", "gradient_spectral_norm"}),
        (("updates",), {"update_ratio", "update_stable_rank"}),
        (("weights",), {"effective_rank", "stable_rank", "spectral_norm"}),
    ],
)
def test_only_what_is_asked_for_is_logged(tmp_path, of, expected):
    history, _ = monitored(tmp_path, of=of, epochs=1)
    assert {key.split("/")[1] for key in history.keys("spectrum/")} == expected


def test_on_a_budget_layers_have_their_turn_and_each_is_known_at_the_end(tmp_path):
    seed_everything(0, verbose=False)
    monitor = SpectrumMonitor(of=ALL, max_overhead=0.9, on_error="raise")
    train(tmp_path, [monitor], epochs=8)
    for name in LAYERS:
        steps, ratios = monitor.history.series(f"spectrum/update_ratio/{name}")
        assert steps[-1] == 48 and len(steps) > 1
        assert all(0 < ratio < 1 for ratio in ratios)


def test_a_frozen_layer_is_not_changed(tmp_path):
    model = Net()
    model.conv.requires_grad_(False)
    history, _ = monitored(tmp_path, model, epochs=1)
    assert set(history.series("spectrum/update_ratio/conv")[1]) == {0.0}
    assert min(history.series("spectrum/update_ratio/head")[1]) > 0


def test_bfloat16_weights_without_master_weights_are_said_once(tmp_path):
    with pytest.warns(UserWarning, match="half-precision weights round them") as said:
        monitored(tmp_path, Net(), epochs=1, precision="bf16-true")
    assert sum("half-precision weights round them" in str(warning.message) for warning in said) == 1


def test_a_failure_while_listening_is_said_once_and_training_goes_on(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such thing")

    monkeypatch.setattr("lightning_symmetry.measurement.optimizer_steps.update_ratio", fail)
    monitor = SpectrumMonitor(of=ALL, every_n_train_steps=2)
    with pytest.warns(UserWarning, match="no such thing") as said:
        _, trainer = train(tmp_path, [monitor], epochs=1)
    assert trainer.global_step == 6
    assert sum("no such thing" in str(warning.message) for warning in said) == 1
    assert monitor.history.series("spectrum/effective_rank/head")[0] == [0, 2, 4, 6]


@pytest.mark.parametrize("of", ["activations", (), ["weights", "gradient"]])
def test_what_has_no_spectrum_is_refused_with_what_has(of):
    with pytest.raises(ValueError, match="must be one or more of 'weights', 'gradients', 'updates'"):
        SpectrumMonitor(of=of)


def test_it_can_be_told_in_the_config_of_a_run():
    assert SpectrumMonitor(of=["updates"]).config()["of"] == ("updates",)
