"""What a run leaves tells nothing of the environment that it ran in."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor, read_history
from lightning_symmetry.report import render_comparison


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, labels = batch
        return nn.functional.cross_entropy(self.net(features), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_no_secret_of_the_environment_is_in_report_history_or_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIsecretEXAMPLE",
        "HF_TOKEN": "hf_aMarkerThatNoFileMayHold",
        "DATABASE_PASSWORD": "correct-horse-battery",
    }
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
