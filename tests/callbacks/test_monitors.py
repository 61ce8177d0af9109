"""The callbacks in real trainings: what they measure, what they leave, what they refuse, and how they fail."""

import itertools
import json
import logging
import math

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_symmetry import SpectrumMonitor, SymmetryMonitor, read_history
from tests.callbacks.trainings import Net, monitors, train


def test_a_run_leaves_its_history_and_its_report(tmp_path, caplog):
    seed_everything(0, verbose=False)
    with caplog.at_level(logging.INFO):
        train(tmp_path, callbacks := monitors(), logger=CSVLogger(tmp_path, version=4))
    folder = tmp_path / "lightning_logs" / "version_4" / "symmetry" / "version_4"
    assert sorted(path.name for path in folder.iterdir()) == ["history.jsonl", "report.html"]
    assert f"Symmetry report: {folder / 'report.html'}" in caplog.text
    history = read_history(folder)
    assert callbacks[0].history is callbacks[1].history
    assert [measurement.values for measurement in history.measurements] == [
        measurement.values for measurement in callbacks[0].history.measurements
    ]
    assert {key.partition("/")[0] for key in history.keys("")} == {
        "symmetry",
        "spectrum",
        "complexity",
        "transition",
        "monitor",
        "loss",
    }
    assert [event.kind for event in history.events] == ["run", "symmetries"]
    for key in ("symmetry/broken_fraction", "symmetry/broken_fraction/conv", "spectrum/effective_rank/hidden"):
        steps, values = history.series(key)
        assert steps == [0, 3, 6, 9, 12]
        assert all(math.isfinite(value) for value in values)
    assert history.series("loss")[0] == [0, 3, 6, 9]


def test_measurements_are_of_the_parameters_with_which_a_step_begins(tmp_path):
    """Step 0 is the initialisation, the last step what training left; the loss beside them is that of the step."""
    seed_everything(0, verbose=False)
    model = Net()
    first = torch.linalg.matrix_norm(model.hidden.weight.detach(), 2)
    model, trainer = train(tmp_path, callbacks := monitors(), model=model)
    steps, norms = callbacks[1].history.series("spectrum/spectral_norm/hidden")
    assert (steps[0], steps[-1]) == (0, trainer.global_step)
    assert norms[0] == pytest.approx(float(first), rel=1e-5)
    assert norms[-1] == pytest.approx(float(torch.linalg.matrix_norm(model.hidden.weight.detach(), 2)), rel=1e-5)


def test_the_symmetries_are_found_on_the_users_model(tmp_path):
    train(tmp_path, callbacks := monitors())
    groups = {group.name: group.size for group in callbacks[0].symmetries if group.kind == "permutation"}
    assert groups == {"conv": 6, "hidden": 8}
    assert all(group.verified for group in callbacks[0].symmetries)


def test_any_logger_gets_one_row_a_measurement(tmp_path):
    train(tmp_path, monitors(), logger=(logger := CSVLogger(tmp_path)))
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    heading = rows[0].split(",")
    column = heading.index("symmetry/broken_fraction/conv")
    step = heading.index("step")
    logged = [row.split(",")[step] for row in rows[1:] if row.split(",")[column]]
    assert logged == ["0", "3", "6", "9", "12"]
    assert "loss" not in heading  # the user logs it, under a name of the user's
    assert logger.version == 0


def test_the_budget_sets_the_interval(tmp_path):
    """Without a fixed grid the first steps are timed, and then the cost decides."""
    train(tmp_path, callbacks := monitors(every_n_train_steps=None, max_overhead=1e-6))
    assert callbacks[0].history.series("symmetry/broken_fraction")[0] == [0, 12]
    train(tmp_path, callbacks := monitors(every_n_train_steps=None, max_overhead=0.99), epochs=200)
    assert len(callbacks[0].history.series("symmetry/broken_fraction")[0]) > 3


def test_early_stopping_and_checkpoints_can_watch_the_aggregates(tmp_path):
    stop = EarlyStopping("symmetry/broken_fraction", mode="max", patience=1)
    keep = ModelCheckpoint(tmp_path, monitor="complexity/effective_parameters", every_n_train_steps=3)
    _, trainer = train(tmp_path, [*monitors(), stop, keep], epochs=20, enable_checkpointing=True)
    assert trainer.current_epoch < 19  # the broken fraction stays at 1
    assert keep.best_model_score is not None


def test_include_and_exclude_choose_by_the_names_of_parameters(tmp_path):
    train(tmp_path, callbacks := [SymmetryMonitor(include="hidden"), SpectrumMonitor(exclude=r"conv|head")])
    history = callbacks[0].history
    assert "symmetry/broken_fraction/hidden" in history.keys("symmetry/broken_fraction/")
    assert all("hidden" in key for key in history.keys("symmetry/broken_fraction/"))
    assert history.keys("spectrum/effective_rank/") == ["spectrum/effective_rank/hidden"]


@pytest.mark.parametrize("monitor", [SymmetryMonitor, SpectrumMonitor])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_overhead": -0.1}, r"max_overhead=-0.1 .* above 0 and below 1"),
        ({"max_overhead": 1.5}, r"max_overhead=1.5 .* above 0 and below 1"),
        ({"every_n_train_steps": 0}, r"every_n_train_steps=0 must be at least 1"),
        ({"include": "("}, r"include='\(' is no regular expression"),
        ({"on_error": "ignore"}, r"""on_error='ignore' must be "warn" or "raise\""""),
    ],
    ids=str,
)
def test_arguments_out_of_their_range_are_refused(monitor, settings, message):
    with pytest.raises(ValueError, match=message):
        monitor(**settings)


def test_an_unknown_kind_a_negative_tolerance_and_an_unknown_indicator_are_refused():
    with pytest.raises(ValueError, match="'mirror' is no kind of symmetry; known kinds: permutation"):
        SymmetryMonitor(kinds=["mirror"])
    with pytest.raises(ValueError, match="tolerance=-1 is no relative distance"):
        SymmetryMonitor(tolerance=-1)
    with pytest.raises(ValueError, match=r"'rank' is no indicator of a spectrum; known are .*effective_rank"):
        SpectrumMonitor(indicators=["rank"])


@pytest.mark.parametrize("monitor", [SymmetryMonitor, SpectrumMonitor])
def test_a_regular_expression_that_finds_nothing_is_refused_before_training_with_the_nearest_names(tmp_path, monitor):
    with pytest.raises(
        ValueError, match=r"include='hiden' is found in the name of no parameter; the nearest are hidden"
    ):
        train(tmp_path, [monitor(include="hiden")])


def test_a_model_without_parameters_is_refused_before_training(tmp_path):
    class Empty(LightningModule):
        def training_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return None

    with pytest.raises(ValueError, match="SymmetryMonitor has nothing to measure: Empty has no parameters"):
        train(tmp_path, [SymmetryMonitor()], model=Empty())


class Spoil(Callback):
    """Sets an entry of a parameter to NaN at one batch."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.at:
            with torch.no_grad():
                pl_module.head.weight[0, 0] = torch.nan


def test_a_nan_in_a_parameter_gives_nan_and_one_event_and_training_goes_on(tmp_path):
    seed_everything(0, verbose=False)
    _, trainer = train(tmp_path, [Spoil(at=2), *(callbacks := monitors(on_error="warn"))])
    assert trainer.global_step == 12
    history = callbacks[0].history
    values = history.series("spectrum/effective_rank/head")[1]
    assert [math.isnan(value) for value in values] == [False, True, True, True, True]
    (event,) = [event for event in history.events if event.kind == "nonfinite"]
    assert event.step == 3
    assert "head.weight" in event.details["parameters"]
    assert not [event for event in history.events if event.kind == "error"]
    for line in (next((tmp_path / "symmetry").iterdir()) / "history.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


class CannotBeTraced(Net):
    """Takes the next number of a stream in each step: a step beside the training would take one from it."""

    def __init__(self):
        super().__init__()
        self.stream = (1 / n for n in itertools.count(1))

    def training_step(self, batch, batch_idx):
        return next(self.stream) * super().training_step(batch, batch_idx)


def test_a_model_that_cannot_be_traced_trains_on_and_is_told_of_once(tmp_path):
    with pytest.warns(UserWarning, match="SymmetryMonitor failed at step 0 and stands down; training is not affected"):
        _, trainer = train(tmp_path, callbacks := monitors(on_error="warn"), model=CannotBeTraced())
    assert trainer.global_step == 12
    history = callbacks[0].history
    assert [event.kind for event in history.events].count("error") == 1
    assert len(history.series("spectrum/effective_rank/head")[0]) == 5  # the other monitor is not affected
    assert history.series("monitor/errors")[1][-1] == 1


def test_failures_are_raised_where_that_is_asked_for(tmp_path):
    with pytest.raises(RuntimeError, match="the module keeps a generator, which cannot be copied"):
        train(tmp_path, monitors(on_error="raise"), model=CannotBeTraced())


def test_an_exception_in_the_users_step_leaves_a_report_of_what_there_is(tmp_path):
    class Fails(Net):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 7:
                raise RuntimeError("the user's own")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="the user's own"):
        train(tmp_path, monitors(), model=Fails())
    folder = next((tmp_path / "symmetry").iterdir())
    assert (folder / "report.html").exists()
    assert read_history(folder).series("spectrum/effective_rank/head")[0] == [0, 3, 6]


def test_fast_dev_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tmp_path, callbacks := monitors(), fast_dev_run=True)
    assert not list(tmp_path.rglob("history.jsonl"))
    assert callbacks[0].history.measurements


def test_a_second_fit_with_the_same_callbacks_makes_a_new_run(tmp_path):
    callbacks = monitors()
    for version in (0, 1):
        train(tmp_path, callbacks, logger=CSVLogger(tmp_path, version=version))
        assert callbacks[0].history.series("symmetry/broken_fraction")[0] == [0, 3, 6, 9, 12]
    assert len(list(tmp_path.rglob("history.jsonl"))) == 2


def test_the_trainers_logger_is_not_reached_from_within_the_traced_step(tmp_path):
    """A training step that talks to its logger itself does so once for each step, and not once more for the trace."""

    class Talks(Net):
        def training_step(self, batch, batch_idx):
            self.logger.log_metrics({"talked": 1.0}, step=self.trainer.global_step)
            assert self.trainer.max_epochs == 2
            return super().training_step(batch, batch_idx)

    train(tmp_path, [SymmetryMonitor(on_error="raise")], model=Talks(), logger=CSVLogger(tmp_path))
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("talked")
    assert sum(bool(row.split(",")[column]) for row in rows[1:]) == 12


def test_the_monitors_take_the_modules_of_either_package_name():
    import pytorch_lightning

    class Other(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    from tests.callbacks.trainings import data

    trainer = pytorch_lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        fast_dev_run=True,
        callbacks=(callbacks := monitors()),
    )
    trainer.fit(Other(), data())
    assert [group.name for group in callbacks[0].symmetries if group.kind == "permutation"] == ["net.1"]
