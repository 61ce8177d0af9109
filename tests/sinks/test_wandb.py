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
from tests.callbacks.trainings import monitors, train


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
    return records(run_folder), read_history(folder / "symmetry" / logger.version), callbacks


def of_type(found, kind):
    return [record[kind] for record in found if record["type"] == kind]


def test_every_measurement_is_one_row_with_the_numbers_of_the_history(run):
    found, history, _ = run
    rows = [row["item"] for row in of_type(found, "history")]
    rows = [row for row in rows if "monitor/overhead" in row]
    assert len(rows) == len(history.measurements) == 10
    for row, measurement in zip(rows, history.measurements, strict=True):
        logged = {key: value for key, value in row.items() if not key.startswith("_") and key != "trainer/global_step"}
        assert row["trainer/global_step"] == measurement.step
        assert logged == {key: value for key, value in measurement.values.items() if key != "loss"}
    sections = {key.partition("/")[0] for row in rows for key in row if "/" in key}
    assert sections == {"symmetry", "spectrum", "complexity", "transition", "monitor", "trainer"}


def test_each_key_is_defined_exactly_before_its_first_row(run):
    found, history, _ = run
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


def test_the_heatmaps_are_plotly_media(run):
    found, _, _ = run
    last = [row["item"] for row in of_type(found, "history")][-1]
    for key in ("symmetry/broken_fraction_heatmap", "spectrum/effective_rank_heatmap"):
        assert last[f"{key}._type"] == "plotly-file"
        assert last[f"{key}.size"] > 0


def test_the_config_tells_how_the_monitors_are_set(run):
    found, _, callbacks = run
    (config,) = [record["update"] for record in of_type(found, "config")]
    assert config == {
        "lightning_symmetry": {type(monitor).__name__: wandb_types(monitor.config()) for monitor in callbacks}
    }
    assert config["lightning_symmetry"]["SymmetryMonitor"]["tolerance"] == 1e-2


def wandb_types(plain):
    return json.loads(json.dumps(plain))
