"""A real W&B run, written offline by a real training and read back with W&B's own tool."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import WandbLogger

from lightning_symmetry import read_history
from lightning_symmetry.sinks.lightning_logger import LoggerSink
from tests.callbacks.trainings import monitors, train
from tests.sinks.wandb_trainings import written
from tests.wandb_server import WandbServer


def records(run_folder):
    """Every record of an offline run; `finish` returns a little before the file is whole, so wait for the last."""
    for _ in range(50):
        printed = subprocess.run(
            [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(run_folder)],
            capture_output=True,
            text=True,
            env={**os.environ, "WANDB_MODE": "offline"},
        )
        found = [json.loads(line) for line in printed.stdout.splitlines() if line.startswith("{")]
        if any("exit" in json.dumps(record)[:200] for record in found):
            return found
        time.sleep(0.1)
    pytest.fail(f"no exit record in {run_folder}: {printed.stderr}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The records of the run, the history that it left, and its monitors."""
    folder = tmp_path_factory.mktemp("wandb")
    seed_everything(0, verbose=False)
    logger = WandbLogger(project="test", mode="offline", save_dir=folder)
    train(folder, callbacks := monitors(), logger=logger)
    run_folder = Path(logger.experiment.dir).parent
    logger.experiment.finish()
    return records(run_folder), read_history(folder / "symmetry" / logger.version), callbacks, run_folder


def of_type(found, kind):
    return [record[kind] for record in found if record["type"] == kind]


def test_every_measurement_is_one_row_with_the_numbers_of_the_history(run):
    found, history, _, _ = run
    rows = [row["item"] for row in of_type(found, "history")]
    rows = [row for row in rows if "monitor/overhead" in row]
    expected = written(history.path.parent)
    assert len(rows) == len(expected) == 10
    for row, (step, values) in zip(rows, expected, strict=True):
        logged = {key: value for key, value in row.items() if not key.startswith("_") and key != "trainer/global_step"}
        assert row["trainer/global_step"] == step
        assert logged == values
    sections = {key.partition("/")[0] for row in rows for key in row if "/" in key}
    assert sections == {"symmetry", "spectrum", "complexity", "transition", "monitor", "trainer"}


def test_each_key_is_defined_exactly_before_its_first_row(run):
    found, history, _, _ = run
    first_row = {}
    for position, record in enumerate(found):
        if record["type"] == "history":
            for key in record["history"]["item"]:
                first_row.setdefault(key, position)
    defined = {
        record["metric"]["name"]: (position, record["metric"])
        for position, record in enumerate(found)
        if record["type"] == "metric" and "name" in record["metric"]
    }
    for key in history.keys(""):
        if key == "loss":
            continue
        position, metric = defined[key]
        assert position < first_row[key]
        assert metric["step_metric"] == "trainer/global_step"
        assert metric["summary"] == {"min": True, "max": True, "last": True}


def test_the_heatmaps_are_plotly_media_and_the_report_is_a_page(run):
    found, _, _, _ = run
    media = {}
    for row in of_type(found, "history"):
        media |= row["item"]
    for key in ("symmetry/broken_fraction_heatmap", "spectrum/effective_rank_heatmap"):
        assert media[f"{key}._type"] == "plotly-file"
        assert media[f"{key}.size"] > 0
    assert media["symmetry/report._type"] == "html-file"


def test_syncing_it_delivers_the_same_rows_and_files(run):
    found, history, _, run_folder = run
    rows = [row["item"] for row in of_type(found, "history")]
    wandb = str(Path(sys.executable).with_name("wandb"))
    with WandbServer() as server:
        synced = subprocess.run(
            [wandb, "sync", str(run_folder)],
            env={**os.environ, **server.environment},
            cwd=run_folder.parent,
            capture_output=True,
            text=True,
        )
    assert synced.returncode == 0, synced.stderr
    delivered = server.run.rows
    assert len(delivered) == len(rows)
    for arrived, row in zip(delivered, rows, strict=True):
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and "." not in key}
        assert {key: arrived[key] for key in numbers} == pytest.approx(numbers)
    report = history.path.with_name("report.html").read_bytes()
    assert report in server.run.files.values()
    assert any(path.startswith("media/plotly/spectrum/effective_rank_heatmap") for path in server.run.files)


def test_the_config_tells_how_the_monitors_are_set(run):
    found, _, callbacks, _ = run
    (config,) = [record["update"] for record in of_type(found, "config")]
    assert config == {
        "lightning_symmetry": {type(monitor).__name__: wandb_types(monitor.config()) for monitor in callbacks}
    }
    assert config["lightning_symmetry"]["SymmetryMonitor"]["tolerance"] == 1e-2


def test_keys_with_the_loggers_prefix_are_the_ones_defined(tmp_path):
    logger = WandbLogger(project="test", mode="offline", save_dir=tmp_path, prefix="encoder")
    sink = LoggerSink(logger)
    sink.log({"symmetry/broken_fraction": 1.0}, 0)
    run_folder = Path(logger.experiment.dir).parent
    logger.experiment.finish()
    found = records(run_folder)
    (row,) = [row["item"] for row in of_type(found, "history")]
    assert row["encoder-symmetry/broken_fraction"] == 1.0
    assert "encoder-symmetry/broken_fraction" in [metric.get("name") for metric in of_type(found, "metric")]


def wandb_types(plain):
    return json.loads(json.dumps(plain))
