"""Pieces measured by a thread beside the training, as on an accelerator: the same training, the same numbers."""

import threading

import pytest
from lightning.pytorch import Callback

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor
from lightning_symmetry.callbacks import session
from lightning_symmetry.measurement import spectra
from tests.callbacks.test_untouched_training import assert_identical
from tests.callbacks.trainings import Net, outcome, train
from tests.measurement.behind import Threaded


class ByHand(Net):
    """Optimizes by hand, with torch's own optimizer, of which no Trainer tells."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


@pytest.fixture
def hosts(monkeypatch):
    """The devices of the monitors to come."""
    made = []

    def device_of(device):
        made.append(Threaded())
        return made[-1]

    monkeypatch.setattr(session, "device_of", device_of)
    return made


def histories(callbacks):
    return [
        (row.step, {key: value for key, value in row.values.items() if not key.startswith("monitor/")})
        for row in callbacks[0].history.measurements
    ]


CASES = {"by the Trainer": (Net, {}), "by hand": (ByHand, {}), "accumulating": (Net, {"accumulate_grad_batches": 2})}


@pytest.mark.parametrize("case", CASES)
def test_the_training_and_the_numbers_are_the_same(tmp_path, hosts, monkeypatch, case):
    model, settings = CASES[case]
    threads = threading.active_count()
    beside, callbacks, _ = outcome(tmp_path / "beside", 3, True, model, **settings)
    assert hosts and all(host.begun > 1 for host in hosts)
    assert threading.active_count() == threads
    monkeypatch.undo()
    plain, _, _ = outcome(tmp_path / "plain", 3, False, model, **settings)
    _, inline, _ = outcome(tmp_path / "inline", 3, True, model, **settings)
    assert_identical(beside, plain)
    assert histories(callbacks) == histories(inline)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_thread_is_left_where_training_is_broken_off(tmp_path, hosts, error):
    class Breaks(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            if trainer.global_step == 3:
                raise error

    threads = threading.active_count()
    monitors = [kind(every_n_train_steps=3) for kind in (SymmetryMonitor, SpectrumMonitor, RepresentationMonitor)]
    with pytest.raises((error, SystemExit)):
        train(tmp_path, [*monitors, Breaks()])
    assert all(host.begun for host in hosts[:2])
    assert threading.active_count() == threads


def test_what_fails_in_the_thread_is_told_and_the_training_goes_on(tmp_path, hosts, monkeypatch):
    def fails(matrix, names):
        raise FloatingPointError("in the thread")

    monkeypatch.setattr(spectra, "spectral_indicators", fails)
    with pytest.warns(UserWarning, match="SpectrumMonitor failed at step 0 and goes on; .*in the thread"):
        _, trainer = train(tmp_path, [SpectrumMonitor(every_n_train_steps=3)])
    assert trainer.global_step == 12
