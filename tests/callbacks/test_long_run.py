"""A long training of a small model: what monitors hold in memory, open, on disk and at W&B does not grow with it."""

import os
import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor, read_history
from tests.sinks.test_wandb import of_type, records

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")

WARM = 1_000
MIB = 2**20
MOST_KEYS = 1_000
"""A dashboard of more charts slows down."""


class Small(LightningModule):
    """An MLP of three layers, whose step takes a third of a millisecond."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Endless(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            yield torch.randn(16, 8, generator=generator), torch.randint(0, 3, (16,), generator=generator)


class Watch(Callback):
    """Notes now and then what the process holds."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step >= WARM and trainer.global_step % 250 == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
            self.seen.append((resident, threading.active_count(), len(os.listdir("/proc/self/fd"))))


def run(folder, steps, every, logger=False):
    seed_everything(0, verbose=False)
    callbacks = [monitor(every_n_train_steps=every) for monitor in (SymmetryMonitor, SpectrumMonitor)]
    callbacks += [RepresentationMonitor(every_n_train_steps=every, labels=1)]
    trainer = Trainer(
        max_steps=steps,
        callbacks=[*callbacks, watch := Watch()],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
    )
    trainer.fit(Small(), DataLoader(Endless(), batch_size=None))
    return trainer, callbacks, watch.seen


def check(folder, trainer, steps, seen, callbacks):
    assert trainer.global_step == steps
    memory, threads, files = zip(*seen, strict=True)
    assert max(memory) - memory[0] < 20 * MIB, [round((now - memory[0]) / MIB, 1) for now in memory]
    assert len(set(threads)) == 1
    assert len(set(files)) == 1
    (run_folder,) = (folder / "symmetry").iterdir()
    history = read_history(run_folder)
    assert history.series("spectrum/effective_rank/net_0")[0][-1] == steps
    assert len(history.keys("")) < 200
    assert not [event for event in history.events if event.kind == "error"]
    assert (run_folder / "history.jsonl").stat().st_size < 30 * MIB
    assert (run_folder / "report.html").stat().st_size < 10 * MIB
    for callback in callbacks:
        assert len(callback.state_dict()["transitions"]["detectors"]) < 100


def test_memory_threads_and_files_do_not_grow_with_3000_steps(tmp_path):
    trainer, callbacks, seen = run(tmp_path, 3_000, every=50)
    check(tmp_path, trainer, 3_000, seen, callbacks)


def test_memory_threads_files_and_keys_of_wandb_do_not_grow_with_20000_steps(tmp_path):
    """With twenty thousand steps and two thousand measurements by each monitor, each a row of an offline W&B run."""
    logger = WandbLogger(project="test", mode="offline", save_dir=tmp_path)
    trainer, callbacks, seen = run(tmp_path, 20_000, every=10, logger=logger)
    run_folder = Path(logger.experiment.dir).parent
    logger.experiment.finish()
    check(tmp_path, trainer, 20_000, seen, callbacks)
    rows = [row["item"] for row in of_type(records(run_folder), "history")]
    assert sum("monitor/overhead" in row for row in rows) >= 3 * 20_000 / 10
    keys = {key for row in rows for key in row}
    assert "spectrum/effective_rank/net_0" in keys
    assert len(keys) <= MOST_KEYS
