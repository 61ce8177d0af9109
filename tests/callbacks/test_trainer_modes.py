"""The modes of a Trainer: in each the monitors measure, and training is bit for bit what it is without them.

Mixed and true precision, accumulation and clipping are in test_untouched_training, manual optimization with several
optimizers in test_training_steps, and `fast_dev_run` in test_monitors.
"""

import math
import shutil

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_symmetry import RepresentationMonitor
from tests.callbacks.test_untouched_training import assert_identical
from tests.callbacks.trainings import EVERY, Losses, Net, data, monitors, on_a_budget, outcome


class Validated(Net):
    """Has data of its own for all stages."""

    def __init__(self):
        super().__init__()
        self.lr, self.batch_size = 0.1, 8

    def train_dataloader(self):
        return data(batch_size=self.batch_size)

    def val_dataloader(self):
        return data(16)

    test_dataloader = predict_dataloader = val_dataloader

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Stream(IterableDataset):
    """Samples without a known number."""

    def __iter__(self):
        return iter(data().dataset)


def both(tmp_path, settings):
    """What a training leaves without the monitors and with them, and one of these; settings are made anew for each."""
    without, _, _ = outcome(tmp_path / "without", 0, False, **settings())
    with_monitors, (monitor, _), _ = outcome(tmp_path / "with", 0, True, **settings())
    return without, with_monitors, monitor


def steps_of(history):
    return sorted({measurement.step for measurement in history.measurements})


def in_half_precision():
    """Mixed with float16, as on an accelerator: of a CPU `precision="16-mixed"` asks for bfloat16 instead."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


MODES = {
    "16-mixed": (in_half_precision, [0, 3, 6]),
    "16-true": (lambda: {"precision": "16-true"}, [0, 3, 6]),
    "bf16-true": (lambda: {"precision": "bf16-true"}, [0, 3, 6]),
    "overfit_batches": (lambda: {"overfit_batches": 2, "epochs": 2}, [0, 3, 4]),
    "fast_dev_run": (lambda: {"fast_dev_run": 2}, [0, 2]),
    "max_steps": (lambda: {"max_steps": 4}, [0, 3, 4]),
    "validation": (lambda: {"build": Validated, "val_check_interval": 2}, [0, 3, 6]),
    "without_inference_mode": (lambda: {"build": Validated, "inference_mode": False}, [0, 3, 6]),
    "detect_anomaly": (lambda: {"detect_anomaly": True}, [0, 3, 6]),
    "iterable_data": (lambda: {"loader": lambda: DataLoader(Stream(), batch_size=8)}, [0, 3, 6]),
    "early_stopping": (
        lambda: {"build": Validated, "epochs": 3, "extra": [EarlyStopping("val_loss", stopping_threshold=100.0)]},
        [0, 3, 6],
    ),
    "accumulation_scheduler": (
        lambda: {"epochs": 2, "extra": [GradientAccumulationScheduler({0: 1, 1: 3})]},
        [0, 3, 6, 8],
    ),
    "weight_averaging": (
        lambda: {"build": Validated, "epochs": 2, "extra": [EMAWeightAveraging()]},
        [0, 3, 6, 9, 12],
    ),
    "stochastic_weight_averaging": (
        lambda: {"epochs": 2, "extra": [StochasticWeightAveraging(0.05, swa_epoch_start=1)]},
        [0, 3, 6, 9, 12, 13],
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode(tmp_path, mode):
    settings, steps = MODES[mode]
    without, with_monitors, monitor = both(tmp_path, lambda: {"epochs": 1, **settings()})
    assert_identical(with_monitors, without)
    assert steps_of(monitor.history) == steps
    values = {key: value for row in monitor.history.measurements for key, value in row.values.items()}
    assert all(math.isfinite(value) for value in values.values())
    assert {
        "symmetry/broken_fraction/conv",
        "complexity/effective_parameters",
        "spectrum/effective_rank/hidden",
        "representation/effective_rank/head",
    } <= values.keys()
    assert {"conv", "hidden"} <= {group.name for group in monitor.symmetries if group.verified}
    assert not [event for event in monitor.history.events if event.kind in ("error", "nonfinite")]


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_on_a_budget(tmp_path, mode):
    settings, _ = MODES[mode]
    with on_a_budget():
        without, with_monitors, monitor = both(tmp_path, lambda: {"epochs": 1, **settings()})
    assert_identical(with_monitors, without)
    assert monitor.every_n_train_steps is None
    assert len(steps_of(monitor.history)) >= 2
    assert not [event for event in monitor.history.events if event.kind in ("error", "nonfinite")]


@pytest.mark.parametrize("settings", [{"limit_train_batches": 0}, {"epochs": 0}], ids=str)
def test_where_nothing_is_trained_nothing_is_measured(tmp_path, settings):
    without, with_monitors, monitor = both(tmp_path, lambda: {"epochs": 1, **settings})
    assert_identical(with_monitors, without)
    assert not monitor.history.measurements
    assert not list(tmp_path.rglob("report.html"))


def evaluated_before_and_after(trainer, model):
    trainer.validate(model, verbose=False)
    trainer.predict(model)
    trainer.fit(model)
    trainer.test(model, verbose=False)
    trainer.validate(model, verbose=False)
    trainer.predict(model)


def tuned(trainer, model):
    Tuner(trainer).lr_find(model, num_training=4, update_attr=False)
    Tuner(trainer).scale_batch_size(model, max_trials=1, steps_per_trial=2, init_val=4)
    trainer.fit(model)


def fitted_further(trainer, model):
    trainer.fit(model)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model)


@pytest.mark.parametrize(
    ("use", "steps"),
    [(evaluated_before_and_after, [0, 3, 6]), (tuned, [0, 3, 6, 9, 12]), (fitted_further, [6, 9, 12])],
)
def test_a_trainer_that_does_more_than_fit(tmp_path, use, steps):
    """What is not a fit leaves no history and no folder; a fit that goes on goes on at its step."""
    left = []
    for monitored in (False, True):
        seed_everything(0, verbose=False)
        losses, model, folder = Losses(), Validated(), tmp_path / str(monitored)
        callbacks = [*monitors(), RepresentationMonitor(every_n_train_steps=EVERY, on_error="raise")]
        trainer = Trainer(
            max_epochs=1,
            callbacks=[losses, *callbacks] if monitored else [losses],
            default_root_dir=folder,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        use(trainer, model)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        left.append([losses.values, state, model.batch_size, torch.get_rng_state()])
    assert_identical(*left)
    assert steps_of(callbacks[0].history) == steps
    assert len(list((folder / "symmetry").iterdir())) == (2 if use is fitted_further else 1)


class Hidden(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).relu()


class Compilable(LightningModule):
    """Its whole step can be compiled."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), Hidden(36, 9), nn.Linear(9, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def forward(self, images):
        return self.net(images)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def whole():
    return torch.compile(Compilable(), backend="aot_eager")


def by_inductor():
    """As users do: to C++."""
    return torch.compile(Compilable())


def in_place():
    model = Compilable()
    model.compile(backend="aot_eager")
    return model


def inner():
    model = Compilable()
    model.net = torch.compile(model.net, backend="aot_eager")
    return model


def layer():
    model = Compilable()
    model.net[1].compile(backend="aot_eager")
    return model


class ByMethod(Compilable):
    def __init__(self):
        super().__init__()
        self.compiled = torch.compile(self.net.forward, backend="aot_eager")

    def forward(self, images):
        return self.compiled(images)


class ByFunction(Compilable):
    def __init__(self):
        super().__init__()
        self.compiled = torch.compile(lambda images: self.net(images), backend="aot_eager")

    def forward(self, images):
        return self.compiled(images)


COMPILES = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor asks for a C++ compiler")


BUILDS = [whole, pytest.param(by_inductor, marks=COMPILES), in_place, inner, layer, ByMethod, ByFunction]


@pytest.mark.parametrize("build", BUILDS)
def test_what_is_compiled_is_compiled_once_and_has_no_more_breaks(tmp_path, build):
    left, counts = [], []
    for monitored in (False, True):
        torch.compiler.reset()
        counters.clear()
        found, monitor, _ = outcome(tmp_path / str(monitored), 0, monitored, build, epochs=1)
        left.append(found)
        counts.append({name: dict(counters[name]) for name in ("frames", "stats", "graph_break", "recompiles")})
    assert_identical(*left)
    assert counts[0] == counts[1]
    assert counts[1]["stats"]["unique_graphs"] == counts[1]["frames"]["ok"] == 1
    groups = {(group.kind, group.axis.removesuffix(".weight").split(".")[-1]) for group in monitor[0].symmetries}
    assert {("permutation", "1"), ("rescaling", "1")} <= groups
    assert steps_of(monitor[0].history) == [0, 3, 6]


def test_a_step_that_reaches_its_model_past_the_copy_is_told_of(tmp_path):
    nets = []

    class Global(Compilable):
        def __init__(self):
            super().__init__()
            nets[:] = [self.net]

        def forward(self, images):
            return nets[0](images)

    with pytest.warns(UserWarning, match=r"returns depends on none of its parameters, or reaches them by a global"):
        _, (monitor, _), _ = outcome(tmp_path, 0, True, Global, on_error="warn", epochs=1)
    assert not monitor.symmetries
    assert monitor.history.keys("spectrum/effective_rank/")
