"""What the monitors cost in real trainings: the budget, step by step; and hooks that have nothing to do."""

import gc
import statistics
import time
from functools import partial
from itertools import pairwise, starmap

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor
from lightning_symmetry.callbacks.hooks import EACH_STEP
from lightning_symmetry.callbacks.monitor import Monitor
from lightning_symmetry.measurement import indicators, spectra
from lightning_symmetry.measurement.schedule import WINDOW
from tests.callbacks.trainings import monitors, train

STEPS, SHARE = 1200, 0.1
LAVISH = 0.3
SLICED = 1800


class Deep(LightningModule):
    """Eight layers, and steps of four milliseconds: what is measured costs a multiple of what a step may."""

    def __init__(self, width=36, activation=torch.tanh):
        super().__init__()
        self.activation = activation
        widths = [36, *[width] * 7, 36]
        self.layers = nn.ModuleList(starmap(nn.Linear, pairwise(widths)))

    def training_step(self, batch, batch_idx):
        time.sleep(0.004)
        features = batch[0].flatten(1)
        for layer in self.layers:
            features = self.activation(layer(features))
        return F.cross_entropy(features, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Spent(Callback):
    """Notes when each step begins, and how long the monitors have worked until then in any of their hooks."""

    def __init__(self):
        self.began, self.spent = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        monitors = [callback for callback in trainer.callbacks if isinstance(callback, Monitor)]
        self.began.append(time.perf_counter())
        self.spent.append(sum(monitor._budget.spent for monitor in monitors))


@pytest.fixture(scope="module", params=[36, 256])
def all_told(tmp_path_factory, request):
    """All three monitors, on a small model and on one of half a million parameters, with an epoch every six steps."""
    seed_everything(0, verbose=False)
    spent = Spent()
    kinds = (SymmetryMonitor, SpectrumMonitor, RepresentationMonitor)
    callbacks = [kind(max_overhead=LAVISH, on_error="raise") for kind in kinds]
    model = Deep(request.param, torch.relu)
    train(tmp_path_factory.mktemp("all"), [spent, *callbacks], model, epochs=STEPS // 6)
    return callbacks, spent


class Stopwatch(Callback):
    """Notes when each step begins, and how long this thread has worked until then."""

    def __init__(self):
        self.began, self.worked = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.began[trainer.global_step], self.worked[trainer.global_step] = time.perf_counter(), time.thread_time()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The monitors of a training on a budget of 10 %, when each step began, and the seconds that they worked in it.

    It is their own work alone that is counted: other processes hold up what is timed by the clock.
    """
    seed_everything(0, verbose=False)
    before, after = Stopwatch(), Stopwatch()
    callbacks = monitors(every_n_train_steps=None, max_overhead=SHARE)
    train(tmp_path_factory.mktemp("budget"), [before, *callbacks, after], Deep(), epochs=STEPS // 6)
    return callbacks, before.began, [after.worked[step] - before.worked[step] for step in range(STEPS)]


def test_a_measurement_is_spread_over_many_steps_and_stalls_none_for_long(trained):
    """The first one is at one step; of those that follow each of many steps takes a part."""
    callbacks, _, worked = trained
    rows = [len(monitor.history.series(monitor.aggregates[0])[0]) for monitor in callbacks]
    assert max(rows) > 2
    busy = [seconds for seconds in worked[10:] if seconds > 2e-4]  # idle hooks take a hundredth of that
    assert len(busy) > 3 * max(rows)
    assert statistics.median(busy) < worked[0] / 4


def test_the_time_spent_keeps_to_its_share_over_any_window_of_200_steps(trained):
    _, began, worked = trained
    shares = [
        sum(worked[start : start + WINDOW]) / (began[start + WINDOW] - began[start])
        for start in range(10, STEPS - WINDOW)
    ]
    assert 0 < max(shares) < SHARE


def test_all_that_all_monitors_do_keeps_to_the_share_over_any_window_of_200_steps(all_told):
    """Reports, rows and listening too; the first and the last measurement are paid once, each within some steps."""
    callbacks, all_of = all_told
    began, spent = all_of.began, all_of.spent
    first = callbacks[2].history.series(callbacks[2].aggregates[0])[0][0]
    shares = [
        (spent[start + WINDOW] - spent[start]) / (began[start + WINDOW] - began[start])
        for start in range(first + 2, STEPS - WINDOW - callbacks[2].window)
    ]
    assert 0 < max(shares) < LAVISH


def test_a_group_that_costs_more_than_200_steps_earn_is_measured_in_slices(tmp_path):
    """Its order parameters are those of one moment: at a learning rate of zero the same each time."""
    seed_everything(0, verbose=False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 400), nn.Tanh(), nn.Linear(400, 3))

    class Wide(Deep):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    wide = Wide()
    wide.layers, wide.activation = model, lambda features: features
    monitor, spent = SymmetryMonitor(max_overhead=0.05, on_error="raise"), Spent()
    train(tmp_path, [spent, monitor], wide, epochs=SLICED // 6)
    each = [later - before for before, later in pairwise(spent.spent)]
    slices = [seconds for seconds in each[10:-1] if seconds > 1e-3]
    values = monitor.history.series("symmetry/relative_distance/layers_1")[1]
    assert len(values) > 1 and len(set(values)) == 1
    assert len(slices) > 5
    assert statistics.median(slices) < each[0] / 4
    shares = [
        (spent.spent[start + WINDOW] - spent.spent[start]) / (spent.began[start + WINDOW] - spent.began[start])
        for start in range(10, SLICED - WINDOW)
    ]
    assert 0 < max(shares) < 0.05


def test_the_overhead_that_is_logged_keeps_to_the_share(all_told):
    steps, values = all_told[0][0].history.series("monitor/overhead")
    assert 0 < max(value for step, value in zip(steps, values, strict=True) if WINDOW < step < STEPS) < LAVISH


def test_the_overhead_is_logged(trained):
    """It is by the clock, and thus at least what the monitors worked, without what the watches themselves take."""
    callbacks, began, worked = trained
    steps, values = callbacks[0].history.series("monitor/overhead")
    shares = dict(zip(steps, values, strict=True))
    last = steps[-2]
    by_watches = min(worked[10:last])
    by_monitors = sum(seconds - by_watches for seconds in worked[10:last])
    assert by_monitors / (began[last] - began[0]) < shares[last] < 1


def test_frozen_layers_are_measured_once(tmp_path, monkeypatch):
    measured = []
    spectral_indicators = spectra.spectral_indicators

    def counted(matrix, names):
        measured.append(matrix.data_ptr())
        return spectral_indicators(matrix, names)

    monkeypatch.setattr(spectra, "spectral_indicators", counted)
    model = Deep()
    model.layers[:4].requires_grad_(False)
    train(tmp_path, [monitor := SpectrumMonitor(every_n_train_steps=3)], model)
    counts = [measured.count(layer.weight.data_ptr()) for layer in model.layers]
    assert counts == [1] * 4 + [5] * 4
    values = monitor.history.series("spectrum/effective_rank/layers_0")[1]
    assert len(values) == 5 and len(set(values)) == 1


def test_groups_of_frozen_layers_are_measured_once(tmp_path, monkeypatch):
    """Of eight layers four are frozen, so of seven groups of hidden units three read nothing else."""
    measured = []
    permutation_indicators = indicators.permutation_indicators

    def counted(units, *settings):
        measured.append(units)
        return permutation_indicators(units, *settings)

    monkeypatch.setattr(indicators, "permutation_indicators", counted)
    model = Deep()
    model.layers[:4].requires_grad_(False)
    train(tmp_path, [monitor := SymmetryMonitor(every_n_train_steps=3)], model)
    assert len(measured) == 3 + 4 * 5
    for group in monitor.symmetries:
        key = f"symmetry/broken_fraction/{group.name.replace('.', '_')}"
        assert group.kind != "permutation" or len(monitor.history.series(key)[1]) == 5


def test_what_the_gauge_ties_to_a_layer_that_learns_is_measured_again(tmp_path, monkeypatch):
    """Rescalings through ReLU tie all layers: the distances of the first depend on the last."""
    model = Deep(activation=torch.relu)
    model.layers[:4].requires_grad_(False)
    train(tmp_path, [monitor := SymmetryMonitor(every_n_train_steps=3)], model)
    first = next(group for group in monitor.symmetries if group.kind == "permutation")
    every = {name for name, _ in model.named_parameters()}
    assert set(indicators.read_with(first, monitor.symmetries)) >= every - {"layers.7.bias"}


class Asks(Callback):
    """Looks at which hooks of the monitors a Trainer can call in each step."""

    def __init__(self):
        self.seen = []

    def on_before_backward(self, trainer, pl_module, loss):
        found = [one for one in trainer.callbacks if one is not self and type(one).__module__.startswith("lightning_")]
        self.seen.append([sum(callable(getattr(one, hook)) for one in found) for hook in EACH_STEP])


def test_hooks_that_have_nothing_to_do_are_passed_over(tmp_path):
    every = [SymmetryMonitor, SpectrumMonitor, partial(RepresentationMonitor, window=1)]
    callbacks = [monitor(every_n_train_steps=3) for monitor in every]
    train(tmp_path, [asks := Asks(), *callbacks])
    due, listened = [3, 0, 0, 0, 0, 2], [3, 0, 0, 0, 0, 1]
    assert asks.seen[1] == [3, 0, 0, 0, 0, 0]
    assert (asks.seen[0], asks.seen[2]) == (due, listened)  # who waits for a loss, and who listens
    for monitor in callbacks:  # after the fit all is as it was
        assert all(callable(getattr(monitor, hook)) for hook in EACH_STEP)


def test_no_hook_of_a_monitor_is_called_until_there_is_something_to_do(tmp_path):
    """As soon as it is known how long a step takes, 50 of them."""
    callbacks = [SymmetryMonitor(every_n_train_steps=90), SpectrumMonitor(every_n_train_steps=80)]
    train(tmp_path, [asks := Asks(), *callbacks], epochs=20)
    assert all(seen == [0, 0, 0, 0, 0, 0] for seen in (*asks.seen[56:79], *asks.seen[88:90]))
    assert asks.seen[80] == asks.seen[90] == [1, 0, 0, 0, 0, 1]
    rows = [monitor.history.series(monitor.aggregates[0])[0] for monitor in callbacks]
    assert rows == [[0, 90, 120], [0, 80, 120]]


def test_monitors_sleep_and_wake_in_every_fit(tmp_path):
    callbacks = [SymmetryMonitor(every_n_train_steps=90), SpectrumMonitor(every_n_train_steps=80)]
    for number in range(2):
        train(tmp_path / str(number), callbacks, epochs=20)
        rows = [monitor.history.series(monitor.aggregates[0])[0] for monitor in callbacks]
        assert rows == [[0, 90, 120], [0, 80, 120]]
        assert not any(
            isinstance(value, Trainer) or "alarm" in key for each in callbacks for key, value in vars(each).items()
        )


class Referents(Callback):
    """Counts what the objects of a Trainer hold on to: one dictionary, once somebody has looked at their attributes."""

    def on_train_end(self, trainer, pl_module):
        loops = trainer.fit_loop, trainer.fit_loop.epoch_loop
        those = trainer, trainer.strategy, trainer._accelerator_connector, *loops
        self.counts = [len(gc.get_referents(one)) for one in those]


def test_nobody_has_looked_at_the_dictionaries_of_a_trainers_attributes(tmp_path):
    """Python looks attributes up more slowly from then on: a hundred of them in each step."""
    train(tmp_path / "plain", [plain := Referents()])
    train(tmp_path / "monitored", [monitored := Referents(), *monitors()])
    assert max(plain.counts) > 3
    assert [count > 3 for count in monitored.counts] == [count > 3 for count in plain.counts]


def test_the_hooks_of_a_users_own_monitor_are_called(tmp_path):
    called = []

    class Own(SymmetryMonitor):
        def on_before_backward(self, trainer, pl_module, loss):
            super().on_before_backward(trainer, pl_module, loss)
            called.append("backward")

        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            called.append("end")

    train(tmp_path, [own := Own(every_n_train_steps=3, on_error="raise")])
    assert called == ["backward", "end"] * 12
    assert own.history.series("loss")[0] == [0, 3, 6, 9]


class Wrapper(Callback):
    """Passes the hooks of a Trainer on to a monitor that is not in its list of callbacks."""

    def __init__(self, monitor):
        self.monitor = monitor

    def on_fit_start(self, *args):
        self.monitor.on_fit_start(*args)

    def on_train_start(self, *args):
        self.monitor.on_train_start(*args)

    def on_train_batch_start(self, *args):
        self.monitor.on_train_batch_start(*args)

    def on_before_backward(self, *args):
        self.monitor.on_before_backward(*args)

    def on_train_batch_end(self, *args):
        self.monitor.on_train_batch_end(*args)

    def on_train_end(self, *args):
        self.monitor.on_train_end(*args)


def test_the_hooks_of_a_monitor_inside_another_callback_are_called(tmp_path):
    other, monitor = monitors()
    train(tmp_path, [other, Wrapper(monitor)])
    assert monitor.history.series("spectrum/effective_rank/hidden")[0] == [0, 3, 6, 9, 12]


def test_a_resumed_run_measures_next_at_the_step_that_was_due(tmp_path):
    """It has a history of its own, and would without the budget of the checkpoint begin with a measurement."""
    first, resumed = (SpectrumMonitor(max_overhead=0.5, on_error="raise") for _ in range(2))
    _, trainer = train(tmp_path / "first", [first], Deep(), epochs=3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    due = first.state_dict()["budget"]["due"]
    assert due > 18
    epochs = due // 6 + 2
    train(tmp_path / "second", [resumed], Deep(), epochs, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.history.series("spectrum/effective_rank/layers_0")[0][0] == due
