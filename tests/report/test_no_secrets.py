"""What a run leaves tells nothing of the environment that it ran in."""

from __future__ import annotations

import importlib
import json
import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor, read_history
from lightning_symmetry.report import render_comparison
from tests.sinks.test_wandb import of_type, records


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, labels = batch
        return nn.functional.cross_entropy(self.net(features), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIsecretEXAMPLE",
    "HF_TOKEN": "hf_aMarkerThatNoFileMayHold",
    "DATABASE_PASSWORD": "correct-horse-battery",
}


def test_no_secret_of_the_environment_is_in_report_history_or_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = dict(SECRETS)
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    data = TensorDataset(torch.randn(32, 4), torch.randint(3, (32,)))
    trainer = Trainer(
        max_epochs=2,
        logger=CSVLogger(tmp_path),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[
            monitor(every_n_train_steps=1, on_error="raise")
            for monitor in (SymmetryMonitor, SpectrumMonitor, RepresentationMonitor)
        ],
    )
    trainer.fit(Classifier(), DataLoader(data, batch_size=8))
    (history,) = tmp_path.rglob("history.jsonl")
    run = read_history(history)
    assert run.events[0].details["config"].keys() == {"SymmetryMonitor", "SpectrumMonitor", "RepresentationMonitor"}
    render_comparison({"a": run, "b": run}, tmp_path / "comparison.html")
    named = re.compile("key|token|secret|password|credential", re.IGNORECASE)
    secrets |= {name: value for name, value in os.environ.items() if named.search(name) and len(value) >= 8}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"history.jsonl", "report.html", "comparison.html"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert [name for name, value in secrets.items() if value.encode() in content] == [], path


USERS_OWN = """
import os
def read():
    raise ConnectionError(
        f"{os.environ['HOME']}/data.pt is not at "
        f"https://bob:{os.environ['DATABASE_PASSWORD']}@host/?token=of-the-query with {os.environ['HF_TOKEN']}"
    )
"""
"""A module in the home directory of who trains."""


class Reading(Classifier):
    """Copies of it, as the search makes one, read what is not there."""

    def on_fit_start(self) -> None:
        self.itself = id(self)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if id(self) != self.itself:
            importlib.import_module("users_own").read()
        return super().training_step(batch, batch_idx)


class Refusing(CSVLogger):
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        importlib.import_module("users_own").read()


def test_what_is_told_of_a_failure_holds_no_secret_and_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In history, report, the alert and all else of an offline run, and in warnings."""
    home, work = tmp_path / "home-of-bob", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (home / "users_own.py").write_text(USERS_OWN)
    for name, value in {**SECRETS, "HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(home)
    data = TensorDataset(torch.randn(32, 4), torch.randint(3, (32,)))
    logger = WandbLogger(project="test", mode="offline", save_dir=work)
    settings = {"every_n_train_steps": 1, "alert_on": ["error"]}
    trainer = Trainer(
        max_epochs=1,
        logger=[logger, Refusing(work)],
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SymmetryMonitor(**settings), SpectrumMonitor(**settings)],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Reading(), DataLoader(data, batch_size=8))
    run_folder = Path(logger.experiment.dir).parent
    logger.experiment.finish()

    told = "ConnectionError: ~/data.pt is not at https://***@host/?token=*** with ***"
    (history,) = work.rglob("history.jsonl")
    (error,) = [event for event in read_history(history).events if event.kind == "error"]
    assert error.details["message"] == f"{told} (users_own.py, line 4, in read)"
    found = records(run_folder)
    (alert,) = of_type(found, "alert")
    assert told in alert["text"]
    said = [str(warning.message) for warning in caught if "/lightning_symmetry/" in warning.filename]
    assert len(said) == 2 and all(told in message for message in said)  # the search's, and the logger's

    files = {str(path): path.read_text(errors="replace") for path in work.rglob("*") if path.is_file()}
    written = {**files, "records of W&B": json.dumps(found), "warnings": "\n".join(said)}
    assert any(path.endswith("report.html") for path in written)
    for where, text in written.items():
        assert [name for name, value in SECRETS.items() if value in text] == [], where
        assert "of-the-query" not in text, where
        assert home.name not in text, where
