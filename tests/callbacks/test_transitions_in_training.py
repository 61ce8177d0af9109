"""Transitions in real trainings: two units are made equal at one step and told apart at a later one."""

from __future__ import annotations

import json
import re

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_symmetry import SpectrumMonitor, SymmetryMonitor, Transition, read_history
from tests.callbacks.trainings import Net, monitors, train

PLANTED, KICKED, STEPS = 20, 40, 54


class Twins(Net):
    """Two layers without noise, in which equal units stay equal."""

    def __init__(self):
        LightningModule.__init__(self)
        self.hidden, self.head = nn.Linear(36, 8), nn.Linear(8, 3)

    def forward(self, images):
        return self.head(torch.tanh(self.hidden(images.flatten(1))))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Plant(Callback):
    """Makes four of the eight units equal, and tells them apart again."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with torch.no_grad():
            if trainer.global_step == PLANTED:
                for tensor in (pl_module.hidden.weight, pl_module.hidden.bias, pl_module.head.weight.T):
                    tensor[1:4] = tensor[0]
            if trainer.global_step == KICKED:
                generator = torch.Generator().manual_seed(1)
                pl_module.hidden.weight[1:4] += 0.2 * torch.randn(3, 36, generator=generator)


def run(folder, callbacks, epochs=STEPS // 6, **settings):
    seed_everything(0, verbose=False)
    return train(folder, [Plant(), *callbacks], Twins(), epochs, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the run, its monitors, and what was called with transitions."""
    folder, called = tmp_path_factory.mktemp("transitions"), []
    callbacks = monitors(every_n_train_steps=1, on_transition=called.append)
    run(folder, callbacks, logger=CSVLogger(folder))
    return folder, callbacks, called


def transitions(history):
    return [event for event in history.events if "since" in event.details]


def test_the_history_tells_what_happened_where_and_since_when(trained):
    folder, _, _ = trained
    (path,) = folder.rglob("history.jsonl")
    restored, broken = [event for event in transitions(read_history(path)) if event.kind in ("restoration", "breaking")]
    assert (restored.kind, restored.step, restored.details["since"]) == ("restoration", PLANTED + 2, PLANTED)
    assert (broken.kind, broken.step, broken.details["since"]) == ("breaking", KICKED + 2, KICKED)
    assert restored.details["group"] == broken.details["group"] == "hidden"
    assert restored.details["indicator"] == "symmetry/distinct_units"
    assert (restored.details["before"], restored.details["after"], restored.details["size"]) == (8.0, 5.0, -3.0)
    assert restored.details["confidence"] == 1.0


def test_equal_rows_are_a_rank_collapse_too(trained):
    _, callbacks, _ = trained
    found = [event for event in transitions(callbacks[1].history) if event.details["group"] == "hidden"]
    kinds = [event.kind for event in found if event.details["indicator"] == "spectrum/effective_rank"]
    assert kinds == ["rank_collapse", "rank_jump"]


def test_counters_are_logged_with_each_row_and_begin_at_zero(trained):
    folder, callbacks, _ = trained
    steps, counts = callbacks[0].history.series("transition/restoration")
    assert counts == [float(step >= PLANTED + 2) for step in steps]
    (csv,) = folder.rglob("metrics.csv")
    assert {"transition/breaking", "transition/rank_jump"} <= set(csv.read_text().splitlines()[0].split(","))


def test_the_users_function_is_called_with_each_transition(trained):
    _, callbacks, called = trained
    assert all(isinstance(one, Transition) for one in called)
    told = [(event.kind, event.step, event.details["group"]) for event in transitions(callbacks[0].history)]
    assert sorted((one.kind, one.step, one.group) for one in called) == sorted(told)


def test_the_report_lists_them_and_marks_them_on_every_axis_of_steps(trained):
    folder, _, _ = trained
    (path,) = folder.rglob("report.html")
    text = path.read_text()
    assert "distinct units of hidden fell from 8 to 5 between steps 20 and 22 (confidence 1)" in text
    assert "Units have become equal and act as one" in text
    for chart in re.findall(r'Plotly\.newPlot\(\s*"chart-\w+",(.*?)\n', text):
        assert "restoration: distinct units of hidden" in chart or "restoration: distinct units of hidden" in text
    assert text.count("\\u25bc") + text.count("▼") >= 2 * 4


def test_a_function_that_fails_does_not_reach_the_training(tmp_path):
    def fails(transition):
        raise ZeroDivisionError("the user's own")

    callbacks = monitors(every_n_train_steps=1, on_transition=fails, on_error="warn")
    with pytest.warns(UserWarning, match="on_transition failed at step 22; .* ZeroDivisionError: the user's own"):
        _, trainer = run(tmp_path, callbacks)
    assert trainer.global_step == STEPS
    assert callbacks[0].history.series("monitor/errors")[1][-1] == 0
    assert len(callbacks[0].history.series("symmetry/broken_fraction")[0]) == STEPS + 1


def test_a_resumed_run_goes_on_watching_where_it_stopped(tmp_path, trained):
    """It stops while the units have just been made equal, and tells so two measurements after it has resumed."""
    whole = transitions(trained[1][0].history)
    callbacks = monitors(every_n_train_steps=1)
    _, trainer = run(tmp_path / "first", callbacks, max_steps=PLANTED + 1)
    assert transitions(callbacks[0].history) == []
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    json.dumps(callbacks[0].state_dict(), allow_nan=False)

    resumed = monitors(every_n_train_steps=1)
    seed_everything(0, verbose=False)
    train(tmp_path / "second", [Plant(), *resumed], Twins(), STEPS // 6, ckpt_path=tmp_path / "last.ckpt")
    told = transitions(resumed[0].history)
    assert [(event.step, event.kind) for event in told] == [(event.step, event.kind) for event in whole]


def test_a_state_that_cannot_be_read_is_warned_of_and_watching_begins_anew(tmp_path):
    (monitor,) = callbacks = [SpectrumMonitor(every_n_train_steps=3)]
    monitor.load_state_dict({"transitions": {"detectors": {"a": {"of": "another version"}}}})
    with pytest.warns(UserWarning, match="begins anew: the detectors of transitions .* cannot be read. KeyError"):
        train(tmp_path, callbacks)
    assert monitor.history.series("transition/rank_jump")[1] == [0.0] * 5


@pytest.mark.parametrize("alert_on", [{"rank_colapse"}, "rank_colapse", ["nonfinite", "rank_colapse"]])
def test_an_unknown_kind_is_refused_with_those_that_there_are(alert_on):
    with pytest.raises(ValueError, match=r"'rank_colapse' is no kind of event; known are breaking, .*error"):
        SymmetryMonitor(alert_on=alert_on)


def test_what_alerts_is_in_the_config_as_plain_json():
    config = SymmetryMonitor(alert_on={"nonfinite", "breaking"}, on_transition=print).config()
    assert config["alert_on"] == ("breaking", "nonfinite")
    assert config["on_transition"] == "print"
    json.dumps(config)


def test_the_command_line_takes_kinds_from_yaml_and_refuses_others():
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SymmetryMonitor, "monitor")
    settings = parser.parse_args(['--monitor.alert_on=["rank_collapse", "nonfinite"]'])
    assert parser.instantiate_classes(settings).monitor.alert_on == ("rank_collapse", "nonfinite")
    with pytest.raises(jsonargparse.ArgumentError, match="rank_colapse"):
        parser.parse_args(['--monitor.alert_on=["rank_colapse"]'])
