"""Trainings that are stopped in the midst; run as a script, each of them in a process of its own.

`python -m tests.callbacks.stopped FOLDER NAME ...` forks a process for each of these `WAYS_TO_STOP`, so that torch is
imported once, and prints what became of them as JSON.
"""

import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor
from lightning_symmetry.measurement import spectra

EVERY, STEPS_AN_EPOCH, MERGED, CHECKPOINT, STOPPED = 1, 6, 20, 18, 27


class Twins(LightningModule):
    """Two layers without noise, in which equal units stay equal; four of eight become so at step `MERGED`."""

    def __init__(self, stop=None, at=STOPPED):
        super().__init__()
        self.hidden, self.head = nn.Linear(36, 8), nn.Linear(8, 3)
        self.stop, self.at = stop, at

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.head(torch.tanh(self.hidden(images))), labels)
        if self.stop is not None and self.trainer.global_step == self.at:
            self.stop()
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_step == MERGED:
            with torch.no_grad():
                for tensor in (self.hidden.weight, self.hidden.bias, self.head.weight.T):
                    tensor[1:4] = tensor[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def data():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(48, 36, generator=generator), torch.randint(0, 3, (48,), generator=generator)
    return DataLoader(TensorDataset(images, labels), 8)


def monitors(**settings):
    settings = {"every_n_train_steps": EVERY, "on_error": "raise", **settings}
    return [
        SymmetryMonitor(**settings),
        SpectrumMonitor(**settings),
        RepresentationMonitor(labels=1, **settings),
    ]


def fit(folder, callbacks, model=None, epochs=6, ckpt_path=None, **settings):
    """Train from a fixed seed, with a checkpoint at the end of each epoch, and a row of the logger at each step."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*exists and is not empty.*")
    seed_everything(0, verbose=False)
    model = Twins() if model is None else model
    trainer = Trainer(
        max_epochs=epochs,
        logger=CSVLogger(folder, version=0),
        callbacks=[*callbacks, ModelCheckpoint(Path(folder) / "checkpoints", "{step}", save_top_k=-1)],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **settings,
    )
    trainer.fit(model, data(), ckpt_path=ckpt_path, weights_only=True)
    return model, trainer


def kill(number):
    """What sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def fail():
    raise ArithmeticError("the user's own")


def interrupted_while_measuring():
    """From now on a Ctrl-C comes whenever a spectrum is measured."""
    measure, stop = spectra.spectral_indicators, kill(signal.SIGINT)
    spectra.spectral_indicators = lambda *args, **kwargs: (stop(), measure(*args, **kwargs))[1]


WAYS_TO_STOP = {
    "SIGTERM": kill(signal.SIGTERM),
    "SIGINT": kill(signal.SIGINT),
    "SIGKILL": kill(signal.SIGKILL),
    "exception": fail,
    "SIGINT while measuring": interrupted_while_measuring,
}


def hooks(model):
    """All hooks on a model's modules and parameters."""
    places = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tensors = [tensor for tensor in model.parameters() if tensor._backward_hooks]
    return sum(len(getattr(module, place)) for module in model.modules() for place in places) + len(tensors)


def stopped(folder, name):
    """Train until the process is stopped in this way, and say what is left where it lives on."""
    seed_everything(0, verbose=False)
    model, callbacks, raised = Twins(WAYS_TO_STOP[name]), monitors(), None
    before = set(threading.enumerate())
    try:
        fit(folder, callbacks, model, epochs=10_000)
    except BaseException as error:
        raised = type(error).__name__
    (folder / "left.json").write_text(
        json.dumps(
            {
                "raised": raised,
                "hooks": hooks(model),
                "threads": [thread.name for thread in set(threading.enumerate()) - before],
                "listening": callbacks[2]._listener is not None and callbacks[2]._listener.handles != [],
            }
        )
    )


class Seen(Callback):
    """Keeps which steps were trained."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.append(trainer.global_step)


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what runs in the background
    ended = {}
    for name in sys.argv[2:]:
        folder = Path(sys.argv[1]) / name
        folder.mkdir()
        child = os.fork()
        if child == 0:
            stopped(folder, name)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ended[name] = os.waitstatus_to_exitcode(status)
    print(json.dumps(ended))
