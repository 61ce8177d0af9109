"""Faults in our own functions, each in a tiny training: a function is made to raise by giving it other code."""

import importlib
import inspect
import pkgutil
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_symmetry
from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor
from lightning_symmetry.callbacks import session
from lightning_symmetry.history import History
from tests.measurement.behind import Threaded

STEPS, EVERY = 8, 2
CHECKPOINT = "last.ckpt"
NOT_IN_A_FIT = ("cli", "metrics")
"""What a user calls outside of a training."""


def functions() -> dict[str, FunctionType]:
    """All functions and methods of the package that can run in a fit, by their names."""
    found = {}
    for module in pkgutil.walk_packages(lightning_symmetry.__path__, "lightning_symmetry."):
        if module.name.split(".")[1] in NOT_IN_A_FIT:
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if getattr(value, "__module__", None) != module.name:
                continue
            members = vars(value).values() if inspect.isclass(value) else [value]
            for member in members:
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                function = inspect.unwrap(function) if callable(function) else function
                if isinstance(function, FunctionType) and function.__code__.co_filename == _file_of(module.name):
                    found[f"{module.name.removeprefix('lightning_symmetry.')}.{function.__qualname__}"] = function
    return found


def _file_of(module: str) -> str | None:
    return sys.modules[module].__file__


def _raises(*args, **kwargs):
    raise RuntimeError("an injected fault")


@contextmanager
def failing(function: FunctionType) -> Iterator[None]:
    """Let a function raise whenever it is called, wherever it was imported to."""
    code = function.__code__
    function.__code__ = _raises.__code__.replace(co_freevars=code.co_freevars)
    try:
        yield
    finally:
        function.__code__ = code


@contextmanager
def called() -> Iterator[dict[CodeType, None]]:
    """The code of all functions that are called within, in their order; in threads that begin within too."""
    codes: dict[CodeType, None] = {}

    def note(frame, event, argument):
        if event == "call":
            codes[frame.f_code] = None

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield codes
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


class Tiny(LightningModule):
    """An MLP of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.losses: list[float] = []

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(torch.tanh(self.hidden(batch[0]))), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)


class Experiment:
    """A run that can do what a W&B run can."""

    def __init__(self) -> None:
        self.config = Config()
        self.defined: list[str] = []
        self.alerts: list[str] = []

    def define_metric(self, name, **settings):
        self.defined.append(name)

    def alert(self, title, text, level):
        self.alerts.append(title)


class Rows(Logger):
    """Keeps its rows, and has a run that can do what a W&B run can."""

    name, version, log_dir = "rows", 0, ""

    def __init__(self, folder) -> None:
        super().__init__()
        type(self).log_dir = folder
        self.rows: list[int | None] = []
        self.experiment = Experiment()

    def log_metrics(self, metrics, step=None):
        self.rows.append(step)

    def log_hyperparams(self, *args, **kwargs):
        pass


@dataclass
class Left:
    """What a training leaves."""

    raised: BaseException | None
    losses: list[float]
    state: Mapping[str, torch.Tensor]
    random: torch.Tensor
    hooks: int
    said: list[str]
    history: History
    monitors: list
    saved: Mapping[str, Any]


def train(
    folder=None, monitored=True, on_error="warn", within=nullcontext, begun=None, beside=False, every=EVERY
) -> Left:
    """Fit for `STEPS` steps, and save a checkpoint.

    Args:
        folder: Where the run is written, with its report; None keeps it in memory, which is ten times as quick.
        monitored: Whether the monitors are there.
        on_error: As for `Monitor`.
        within: Makes the context in which the fit runs and the checkpoint is saved.
        begun: The folder of a run of as many steps, with its checkpoint, to go on with, with a validation.
        beside: Whether pieces are measured in a thread, as on an accelerator.
        every: As `every_n_train_steps` of `Monitor`.
    """
    seed_everything(0, verbose=False)
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(4 * STEPS, 4, generator=generator), torch.arange(4 * STEPS) % 3)
    settings = {"every_n_train_steps": every, "on_error": on_error}
    monitors = [
        SymmetryMonitor(**settings),
        SpectrumMonitor(of=["weights", "gradients", "updates"], **settings),
        RepresentationMonitor(window=2, **settings),
    ]
    if begun is not None and folder is not None:
        shutil.copytree(begun, folder)
    trainer = Trainer(
        max_epochs=1 if begun is None else 2,
        callbacks=monitors if monitored else [],
        logger=False if folder is None else Rows(folder),
        default_root_dir="memory://nowhere" if folder is None else folder,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=STEPS,
    )
    model, raised, saved = Tiny(), None, {}
    host = patch.object(session, "device_of", lambda device: Threaded()) if beside else nullcontext()
    with warnings.catch_warnings(record=True) as caught, host:
        warnings.simplefilter("always")
        try:
            with within():
                loaders = [DataLoader(data, 4)] * (1 if begun is None else 2)
                checkpoint = None if begun is None else Path(begun, CHECKPOINT)
                trainer.fit(model, *loaders, ckpt_path=checkpoint, weights_only=True)
                saved = trainer._checkpoint_connector.dump_checkpoint()["callbacks"]
        except BaseException as error:
            raised = error
    if begun is None and folder is not None and raised is None:
        trainer.save_checkpoint(Path(folder, CHECKPOINT))
    return Left(
        raised=raised,
        losses=model.losses,
        state={name: tensor.clone() for name, tensor in model.state_dict().items()},
        random=torch.get_rng_state(),
        hooks=sum(len(module._forward_hooks) for module in model.modules()),
        said=[str(warning.message) for warning in caught if "lightning_symmetry" in warning.filename],
        history=monitors[0].history,
        monitors=monitors,
        saved=saved,
    )
