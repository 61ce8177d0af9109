"""Whatever becomes of W&B, training goes on at its pace, the local history is whole, and one warning is enough."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_symmetry import read_history
from lightning_symmetry.sinks.heatmaps import HEATMAPS
from tests.callbacks.trainings import monitors, train
from tests.sinks import wandb_trainings
from tests.sinks.wandb_trainings import STEPS, written
from tests.wandb_server import WandbServer

SCENARIOS = {
    "healthy": [],
    "dead": [],
    "lost": [],
    "limited": [],
    "unavailable": [],
    "slow": [],
    "killed": ["ConnectionResetError"],
    "finished": ["UsageError"],
    "disabled": [],
}
"""Each with what is warned of."""

ALONE = "logger alone"
"""The healthy scenario without monitors."""

MOST_DELAY = 0.05
"""The seconds by which the monitors may delay a step."""

DELIVERED = ("healthy", "limited", "unavailable", "slow")
"""Those in which all arrives in the end."""


class Played:
    """What is left of a training: its outcome, its folder and the server."""

    def __init__(self, outcome, folder, server):
        self.outcome, self.folder, self.server = outcome, folder, server
        self.output = (folder / "output.txt").read_text()

    @property
    def run_folder(self):
        return self.folder / "symmetry" / self.outcome["run"]

    @property
    def history(self):
        return read_history(self.run_folder)

    @property
    def rows(self):
        """The rows of measurements that arrived."""
        return [row for row in self.server.run.rows if "monitor/overhead" in row]


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """Returns what is left of a scenario; all are played side by side."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.sinks.wandb_trainings"])
    with ProcessPoolExecutor(3, context, max_tasks_per_child=1) as executor:
        playing = {}
        for name in (ALONE, *SCENARIOS):
            folder, server = tmp_path_factory.mktemp(name.replace(" ", "_")), WandbServer().__enter__()
            scenario = getattr(wandb_trainings, "healthy" if name == ALONE else name)
            arguments = (scenario, folder, server.environment, name != ALONE)
            playing[name] = (executor.submit(wandb_trainings.play, *arguments), folder, server)

        def played(name):
            future, folder, server = playing[name]
            return Played(future.result(timeout=280), folder, server)

        yield played
    for _, _, server in playing.values():
        server.stop()


@pytest.mark.parametrize("name", SCENARIOS)
def test_training_goes_on_and_the_local_history_is_whole(play, name):
    left = play(name)
    assert left.outcome["steps"] == STEPS
    for key in ("symmetry/broken_fraction", "complexity/effective_rank_fraction"):
        assert left.history.series(key)[0] == list(range(STEPS + 1))
    assert set(left.history.series("monitor/errors")[1]) == {0.0}
    assert (left.run_folder / "report.html").stat().st_size > 1_000_000


@pytest.mark.parametrize(("name", "causes"), SCENARIOS.items())
def test_what_fails_is_warned_of_once_and_without_a_traceback(play, name, causes):
    left = play(name)
    assert len(left.outcome["warnings"]) == len(causes)
    for warning, cause in zip(left.outcome["warnings"], causes, strict=True):
        assert warning.startswith("lightning_symmetry could not log to WandbLogger")
        assert cause in warning
    assert "Traceback" not in left.output


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_step_is_delayed_by_more_than_with_the_logger_alone_and_a_healthy_server(play, name):
    """One request to the slow server takes 3 s. Time spent ready and without a core is not counted: trainings share it.

    `python -m tests.benchmarks.wandb_trouble` tells how long the monitors take of a step by themselves.
    """
    usual = max(seconds for which in (ALONE, "healthy") for seconds in play(which).outcome["paces"])
    assert max(play(name).outcome["paces"]) <= usual + MOST_DELAY


@pytest.mark.parametrize("name", DELIVERED)
def test_every_row_arrives_in_the_end_with_the_numbers_of_the_history(play, name):
    left = play(name)
    assert left.server.run.complete
    expected = written(left.run_folder)
    assert len(left.rows) == len(expected) == 3 * STEPS + 2
    for row, (step, values) in zip(left.rows, expected, strict=True):
        assert row["trainer/global_step"] == step
        logged = {key: float(value) for key, value in row.items() if "/" in key and key != "trainer/global_step"}
        assert logged == pytest.approx(values, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", DELIVERED)
def test_the_alert_arrives(play, name):
    alerts = play(name).server.run.alerts
    (alert,) = [alert for alert in alerts if alert["title"] == "Restoration: hidden"]
    assert "distinct units of hidden fell from 8 to 5" in alert["text"]


@pytest.mark.parametrize("name", DELIVERED)
def test_the_report_and_the_heatmaps_arrive_as_media(play, name):
    left = play(name)
    run = left.server.run
    pages = [file for path, file in run.files.items() if path.startswith("media/html/symmetry/report_")]
    assert pages == [(left.run_folder / "report.html").read_bytes()]
    sent = {key for row in run.rows for key in row if key in HEATMAPS}
    assert sent == set(HEATMAPS)
    for key in sent:
        figures = [json.loads(file) for path, file in run.files.items() if path.startswith(f"media/plotly/{key}_")]
        assert figures and all(figure["data"][0]["type"] == "heatmap" for figure in figures)


def test_every_key_is_defined_with_its_axis_and_summaries(play):
    left = play("healthy")
    for key in {key for row in left.rows for key in row if not key.startswith("_")} - {"trainer/global_step"}:
        assert left.server.run.definitions[key] == ("trainer/global_step", {"min", "max", "last"})
    assert {"min", "max", "last"} == set(left.server.run.summary["symmetry/broken_fraction"])


def test_sections_by_the_first_word_of_keys_are_the_hierarchies(play):
    keys = {key for row in play("healthy").server.run.rows for key in row if "/" in key}
    sections = {key.partition("/")[0] for key in keys}
    assert sections == {
        "symmetry",
        "transition",
        "complexity",
        "spectrum",
        "representation",
        "monitor",
        "trainer",
    }
    assert not [key for key in keys if "." in key]


def test_a_run_that_is_switched_off_draws_nothing_and_sends_nothing(play):
    left = play("disabled")
    assert not left.server.runs and not left.server.requests


def test_another_logger_goes_on_beside_one_that_failed(play):
    left = play("killed")
    (path,) = left.folder.rglob("metrics.csv")
    with path.open() as file:
        steps = {int(row["step"]) for row in csv.DictReader(file) if row["symmetry/broken_fraction"]}
    assert steps == set(range(STEPS + 1))


def test_a_server_that_is_dead_at_the_start_is_the_loggers_own_error(tmp_path):
    """W&B does not open the run, so Lightning does not begin to train, with or without monitors."""
    code = (
        "import sys, wandb; from lightning.pytorch.loggers import WandbLogger\n"
        "from tests.callbacks.trainings import monitors, train\n"
        "logger = WandbLogger(project='test', save_dir='.', settings=wandb.Settings(init_timeout=1))\n"
        "try: train('.', callbacks := monitors(), logger=logger)\n"
        "except wandb.errors.CommError: train('.', callbacks, logger=False); sys.exit(7)\n"
    )
    with WandbServer() as server:
        environment = server.environment
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 7, ran.stderr
    (history,) = tmp_path.rglob("history.jsonl")
    assert len(read_history(history).series("symmetry/broken_fraction")[0]) == 5


def test_it_works_where_wandb_is_not_installed(tmp_path):
    code = (
        "import sys; sys.modules['wandb'] = None\n"
        "from lightning.pytorch.loggers import CSVLogger\n"
        "from tests.callbacks.trainings import monitors, train\n"
        "train('.', monitors(), logger=CSVLogger('.'))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:lightning_symmetry", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    (history,) = tmp_path.rglob("history.jsonl")
    assert len(read_history(history).series("symmetry/broken_fraction")[0]) == 5
    (path,) = tmp_path.rglob("metrics.csv")
    assert "symmetry/broken_fraction" in path.read_text()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_csv_loggers_get_every_row_be_there_none_one_or_two(tmp_path, recwarn, count):
    loggers = [CSVLogger(tmp_path, name=f"logger{i}") for i in range(count)]
    callbacks = monitors()
    train(tmp_path, callbacks, logger=loggers)
    expected = callbacks[0].history.series("symmetry/broken_fraction")
    for logger in loggers:
        with open(f"{logger.log_dir}/metrics.csv") as file:
            rows = [row for row in csv.DictReader(file) if row["symmetry/broken_fraction"]]
        assert [int(row["step"]) for row in rows] == expected[0]
        assert [float(row["symmetry/broken_fraction"]) for row in rows] == pytest.approx(expected[1])
    assert not [one for one in recwarn if "lightning_symmetry" in str(one.message)]


def test_tensorboard_gets_every_row(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    callbacks = monitors()
    train(tmp_path, callbacks, logger=logger)
    logger.finalize("success")
    events = accumulator.EventAccumulator(logger.log_dir)
    events.Reload()
    for key in ("symmetry/broken_fraction", "spectrum/effective_rank/hidden"):
        scalars = events.Scalars(key)
        steps, values = callbacks[0].history.series(key)
        assert [scalar.step for scalar in scalars] == steps
        assert [scalar.value for scalar in scalars] == pytest.approx(values, nan_ok=math.isnan(values[0]))
