"""What SymmetryMonitor logs besides the order parameters, with the learning rates of real optimizers."""

import math

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_symmetry import SpectrumMonitor, SymmetryMonitor, orbit_fraction
from lightning_symmetry.functional import noise_imbalance, rescaling_imbalance
from lightning_symmetry.measurement.noise_steps import WINDOW
from tests.callbacks.trainings import EVERY, OF_STEPS, Net, train

KINDS = ("scale", "rescaling", "translation")


class WithTwo(Net):
    """Two optimizers, one with two groups of parameters, and a scheduler."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        outputs = super().training_step(batch, batch_idx)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(outputs)
        for optimizer in optimizers:
            optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self):
        of_head = torch.optim.SGD(self.head.parameters(), lr=0.3)
        groups = [{"params": self.hidden.parameters(), "lr": 0.2}, {"params": self.conv.parameters(), "lr": 0.01}]
        rest = torch.optim.AdamW(groups)
        return [of_head, rest], [torch.optim.lr_scheduler.StepLR(rest, 1, gamma=0.5)]


class Filters(Callback):
    """Keeps what the convolution's filters were at each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        filters = torch.cat([pl_module.conv.weight.flatten(1), pl_module.conv.bias[:, None]], 1)
        self.seen.append(filters.detach().double().clone())


@pytest.mark.parametrize(
    ("build", "rate", "power"), [(Net, lambda step: 0.1, 2), (WithTwo, lambda step: 0.01 * 0.5**step, 1)]
)
def test_the_learning_rate_is_that_of_the_optimizer_that_holds_the_weights(tmp_path, build, rate, power):
    seed_everything(0, verbose=False)
    monitor = SymmetryMonitor(
        KINDS, indicators=("effective_lr", "angular_speed"), every_n_train_steps=EVERY, on_error="raise"
    )
    train(tmp_path, [filters := Filters(), monitor], model=build())
    steps, rates = monitor.history.series("symmetry/effective_lr/conv_scale")
    assert steps == [0, 3, 6, 9, 12]
    for step, value in list(zip(steps, rates, strict=True))[:-1]:
        norms = filters.seen[step].norm(dim=1)
        assert value == pytest.approx(float((rate(step) / norms**power).median()), rel=1e-5)
    measured, turned = monitor.history.series("symmetry/angular_speed/conv_scale")
    assert measured == steps[1:]
    for number, value in enumerate(turned[:-1], start=1):
        before, now = (filters.seen[EVERY * each] for each in (number - 1, number))
        angles = torch.arccos(torch.nn.functional.cosine_similarity(before, now, dim=1))
        assert value == pytest.approx(float(angles.mean()) / EVERY, rel=1e-4)


def test_how_fast_weights_turn_is_not_known_at_the_first_measurement_after_a_run_was_resumed(tmp_path):
    def fit(epochs, **settings):
        monitor = SymmetryMonitor(indicators=["angular_speed"], every_n_train_steps=4, on_error="raise")
        logger, keep = CSVLogger(tmp_path, version=0), ModelCheckpoint(tmp_path, save_last=True)
        train(tmp_path, [monitor, keep], epochs=epochs, logger=logger, enable_checkpointing=True, **settings)
        return monitor.history

    fit(1)
    history = fit(3, ckpt_path=tmp_path / "last.ckpt")
    assert history.series("symmetry/broken_fraction/conv")[0] == [0, 4, 6, 8, 12, 16, 18]
    steps, speeds = history.series("symmetry/angular_speed/conv_scale")
    assert steps == [4, 6, 12, 16, 18]  # 6 is the end of the first run, and 8 the first measurement of the second
    assert all(speed > 0 for speed in speeds)


class Decaying(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.1)


class Steps(Callback):
    """Keeps what the parameters were before each step, and what each changed; and the symmetries."""

    def __init__(self):
        self.before = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before.append({name: each.detach().clone() for name, each in pl_module.state_dict().items()})

    def fraction(self, symmetries, first, last):
        names = {name for group in symmetries for name in group.parameters} | {"head.weight", "head.bias"}
        step = {name: self.before[last][name] - self.before[first][name] for name in names}
        return float(orbit_fraction(symmetries, self.before[first], step))


@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_share_along_the_orbits_is_that_of_the_step_before_a_measurement(tmp_path, accumulated):
    seed_everything(0, verbose=False)
    monitor = SymmetryMonitor(indicators=("orbit_fraction",), every_n_train_steps=2, on_error="raise")
    _, trainer = train(tmp_path, [steps := Steps(), monitor], Decaying(), epochs=2, accumulate_grad_batches=accumulated)
    found, values = monitor.history.series("symmetry/orbit_fraction")
    assert found == list(range(2, trainer.global_step + 1, 2))  # before the first step there is none
    for step, value in list(zip(found, values, strict=True))[:-1]:
        first = (step - 1) * accumulated
        expected = steps.fraction(monitor.symmetries, first, first + accumulated)
        assert 0 < value == pytest.approx(expected, rel=1e-3)


class Noisy(Net):
    """Keeps the gradient of both sides of its channels, between their norm's gain and what reads them, of each step."""

    def __init__(self):
        super().__init__()
        self.sides = []

    def on_before_optimizer_step(self, optimizer):
        incoming = torch.stack([self.norm.weight.grad, self.norm.bias.grad], 1)
        self.sides.append((incoming.clone(), self.hidden.weight.grad.T.reshape(6, -1).clone()))


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("every", [3, 20])
def test_the_noise_is_that_of_the_gradients_of_the_last_steps(tmp_path, accumulated, every):
    """Where measurements are close, each value is of steps that none before was of."""
    seed_everything(0, verbose=False)
    monitor = SymmetryMonitor(
        indicators=("noise_imbalance", "orbit_fraction"), every_n_train_steps=every, on_error="raise"
    )
    model, trainer = train(tmp_path, [monitor], Noisy(), epochs=7 * accumulated, accumulate_grad_batches=accumulated)
    [key] = monitor.history.keys("symmetry/noise_imbalance/")
    steps, values = monitor.history.series(key)
    assert key == "symmetry/noise_imbalance/norm_rescaling"
    assert trainer.global_step == 42
    assert steps == ([20, 40] if every == 20 else [18, 36])
    for step, value in zip(steps, values, strict=True):
        used = range(step - WINDOW, step)
        if every == 3:  # of the last interval as many of its last steps as were wanting
            used = [*range(step - 18, step - 3), step - 1]
        incoming, outgoing = (torch.stack(side) for side in zip(*(model.sides[each] for each in used), strict=True))
        assert 0 < value == pytest.approx(float(noise_imbalance(incoming, outgoing)), rel=1e-6)
    assert len(monitor.history.series("symmetry/orbit_fraction")[0]) >= len(steps)


def test_on_a_budget_the_noise_is_told_too(tmp_path):
    monitor = SymmetryMonitor(indicators=("noise_imbalance",), on_error="raise")
    train(tmp_path, [monitor], Noisy(), epochs=7)
    _, values = monitor.history.series("symmetry/noise_imbalance/norm_rescaling")
    assert values
    assert all(0 < value < 1 for value in values)


def test_by_default_the_imbalance_is_logged_and_nothing_else_of_charges(tmp_path):
    train(tmp_path, [monitor := SymmetryMonitor(every_n_train_steps=EVERY, on_error="raise")])
    names = {key.split("/")[1] for key in monitor.history.keys("symmetry/")}
    assert "imbalance" in names
    assert names.isdisjoint({"mean_component", "effective_lr", "angular_speed", "orbit_fraction", "noise_imbalance"})
    train(tmp_path, [monitor := SymmetryMonitor(indicators=(), every_n_train_steps=EVERY, on_error="raise")])
    assert names - {key.split("/")[1] for key in monitor.history.keys("symmetry/")} == {"imbalance"}


def test_an_unknown_indicator_is_refused():
    with pytest.raises(
        ValueError, match=r"'balance' is no indicator that can be chosen; known are imbalance, .*always"
    ):
        SymmetryMonitor(indicators=["balance"])


@pytest.mark.parametrize("build", [Net, WithTwo])
def test_a_training_is_bit_for_bit_what_it_is_without(tmp_path, build):
    of_charges = ("imbalance", "mean_component", "effective_lr", "angular_speed")
    everything = (*of_charges, "orbit_fraction", "noise_imbalance")
    left = []
    for callbacks in ([], [SymmetryMonitor(indicators=everything, every_n_train_steps=2, on_error="raise")]):
        seed_everything(0, verbose=False)
        model, _ = train(tmp_path, callbacks, build(), epochs=3)
        left.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*left, strict=True))
    names = {key.split("/")[1] for key in callbacks[0].history.keys("symmetry/")}
    assert set(everything) <= names


def test_of_complex_parameters_all_is_measured_as_of_pairs_of_real_ones(tmp_path):
    class Complex(Net):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(36, 7), nn.Linear(5, 3)
            self.maps = nn.Parameter(torch.randn(7, 5, dtype=torch.complex64))

        def forward(self, images):
            mapped = torch.relu(self.first(images.flatten(1))).to(self.maps.dtype) @ self.maps
            return self.last(torch.relu(mapped.real))

    indicators = ("imbalance", "effective_lr", "angular_speed", *OF_STEPS)
    monitor = SymmetryMonitor(indicators=indicators, every_n_train_steps=EVERY, on_error="raise")
    spectra = SpectrumMonitor(of=["weights", "gradients", "updates"], every_n_train_steps=EVERY, on_error="raise")
    model, _ = train(tmp_path, [monitor, spectra], model=Complex(), epochs=4)
    last = {key: monitor.history.series(key)[1][-1] for key in monitor.history.keys("symmetry/")}
    assert all(map(math.isfinite, last.values()))
    incoming = torch.cat([model.first.weight, model.first.bias[:, None]], 1)
    outgoing = torch.view_as_real(model.maps.detach()).flatten(1)
    assert last["symmetry/imbalance/first_rescaling"] == pytest.approx(float(rescaling_imbalance(incoming, outgoing)))
    assert 0 < last["symmetry/noise_imbalance/first_rescaling"] < 1
    assert 0 < last["symmetry/orbit_fraction"] < 1
