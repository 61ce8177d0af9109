"""What goes wrong around the monitors, and never stops a training."""

import json
import warnings

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from torch import nn

from lightning_symmetry import SpectrumMonitor, SymmetryMonitor, read_history
from lightning_symmetry.callbacks import run as run_module
from tests.callbacks.test_monitors import CannotBeTraced
from tests.callbacks.trainings import EVERY, Net, monitors, train


def test_parameters_of_lazy_modules_are_waited_for(tmp_path):
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.head = nn.LazyLinear(3)

    _, trainer = train(tmp_path, callbacks := monitors(), Lazy())
    assert trainer.global_step == 12
    assert callbacks[1].history.series("spectrum/effective_rank/head")[0] == [1, 3, 6, 9, 12]


def test_a_damaged_history_is_put_aside(tmp_path):
    path = tmp_path / "lightning_logs" / "version_1" / "symmetry" / "version_1" / "history.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 0, "time\n{}\n')
    with pytest.warns(UserWarning, match="begins a new history, and keeps the one that it cannot read as"):
        train(tmp_path, monitors(), logger=CSVLogger(tmp_path, version=1))
    assert len(read_history(path).measurements) == 10
    (aside,) = path.parent.glob("history.jsonl.damaged-*")
    assert aside.read_text() == '{"step": 0, "time\n{}\n'


def test_a_logger_without_a_version_leaves_the_history_in_memory(tmp_path):
    class Nameless(Logger):
        name, save_dir, rows = "nameless", str(tmp_path), []

        @property
        def version(self):
            raise ConnectionError("the server is gone")

        def log_metrics(self, metrics, step=None):
            self.rows.append(step)

        def log_hyperparams(self, *args, **kwargs):
            pass

    with pytest.warns(UserWarning, match="keeps it in memory: ConnectionError: the server is gone"):
        train(tmp_path, callbacks := monitors(), logger=Nameless())
    assert len(callbacks[0].history.measurements) == 10
    assert Nameless.rows


def test_a_package_without_metadata_has_no_version(tmp_path, monkeypatch):
    def missing(package):
        raise run_module.PackageNotFoundError(package)

    monkeypatch.setattr(run_module, "version", missing)
    train(tmp_path, callbacks := monitors())
    assert callbacks[0].history.events[0].details["versions"] == {"lightning-symmetry": None, "torch": None}


def test_where_warnings_are_errors_ours_are_logged(tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*stands down.*")
        _, trainer = train(tmp_path, monitors(on_error="warn"), CannotBeTraced())
    assert trainer.global_step == 12
    assert "SymmetryMonitor failed at step 0 and stands down" in caplog.text


def test_what_watches_an_aggregate_that_is_not_known_sees_nan(tmp_path):
    """EarlyStopping ends the training in good order, or lets it go on where it is told not to look at NaN."""
    for check_finite, steps in ((True, 6), (False, 12)):
        stop = EarlyStopping("symmetry/broken_fraction", check_finite=check_finite)
        keep = ModelCheckpoint(tmp_path, monitor="complexity/effective_parameters", every_n_train_steps=3)
        with pytest.warns(UserWarning, match="stands down"):
            _, trainer = train(
                tmp_path,
                [*monitors(on_error="warn"), stop, keep],
                CannotBeTraced(),
                enable_checkpointing=True,
            )
        assert trainer.global_step == steps


def test_a_monitor_that_takes_any_arguments_is_configured_as_its_parent(tmp_path):
    class Own(SpectrumMonitor):
        def __init__(self, **settings):
            super().__init__(**settings)

    train(tmp_path, [own := Own(every_n_train_steps=EVERY, on_error="raise")])
    config = own.history.events[0].details["config"]["Own"]
    assert config == json.loads(json.dumps(SpectrumMonitor(every_n_train_steps=EVERY, on_error="raise").config()))


def test_two_runs_that_start_in_one_second_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "now")
    for _ in range(3):
        train(tmp_path, monitors())
    assert sorted(path.name for path in (tmp_path / "symmetry").iterdir()) == ["now", "now-2", "now-3"]
    for folder in (tmp_path / "symmetry").iterdir():
        history = read_history(folder)
        assert len(history.measurements) == 10
        assert history.events[0].details["name"] == folder.name


def test_nothing_is_written_beside_a_remote_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train("memory://bucket/runs", callbacks := monitors())
    assert not list(tmp_path.iterdir())
    assert len(callbacks[0].history.measurements) == 10


def test_a_resumed_run_repeats_no_measurement_and_skips_none(tmp_path):
    def fit(epochs, checkpoint=None):
        from lightning.pytorch import Trainer

        from tests.callbacks.trainings import data

        callbacks = [*monitors(every_n_train_steps=4), ModelCheckpoint(tmp_path, save_last=True)]
        trainer = Trainer(
            max_epochs=epochs,
            logger=CSVLogger(tmp_path, version=0),
            callbacks=callbacks,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Net(), data(), ckpt_path=checkpoint, weights_only=False)
        return callbacks[0].history

    fit(1)
    history = fit(3, tmp_path / "last.ckpt")
    steps = [row.step for row in history.measurements if "symmetry/broken_fraction/conv" in row.values]
    assert steps == [0, 4, 6, 8, 12, 16, 18]


def test_two_monitors_of_one_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="callbacks has two of SpectrumMonitor, which would write the same keys"):
        train(tmp_path, [SpectrumMonitor(include="conv"), SpectrumMonitor(include="head"), SymmetryMonitor()])
