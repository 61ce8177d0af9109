"""The run that the monitors of one Trainer share: where it is written, and how it begins."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_symmetry.callbacks.unsharded import own_class
from lightning_symmetry.measurement.measure import Ranks
from lightning_symmetry.sinks.recorder import Recorder
from lightning_symmetry.sinks.warning import warn


def open_recorder(trainer: Any, share: float) -> Recorder:
    """The recorder of a run, shared by its monitors: in memory alone on other ranks, and where it cannot be opened."""
    if not trainer.is_global_zero:
        return Recorder(None, [], share)
    try:
        return Recorder(_run_folder(trainer), trainer.loggers, share)
    except Exception as error:
        warn(f"lightning_symmetry cannot write a history, and keeps it in memory: {type(error).__name__}: {error}")
        return Recorder(None, trainer.loggers, share)


def begin_run(recorder: Recorder, trainer: Any, model: Any, config: Mapping[str, Any]) -> None:
    """Note, once for all monitors, that the run begins or goes on."""
    if recorder.begun:
        return
    recorder.begin(
        steps_done(trainer),
        config=config,
        name=recorder.report.parent.name if recorder.report is not None else None,
        model=own_class(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters() if not is_lazy(parameter)),
        started=time.time(),
        versions={package: _version(package) for package in ("lightning-symmetry", "torch")},
    )


def _run_folder(trainer: Any) -> Path | None:
    """``symmetry/RUN`` in the log directory, RUN the logger's run id or version; None where nothing may be written.

    Without such a name RUN is the time, and the folder is made at once, so that no other run takes it.
    """
    logger = trainer.logger
    directory = trainer.default_root_dir if logger is None else getattr(logger, "log_dir", None) or logger.save_dir
    if directory is None or "://" in str(directory) or trainer.fast_dev_run:
        return None
    parent = Path(directory) / "symmetry"
    existing = next(folder for folder in (parent, *parent.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        return None
    run = logger.version if logger is not None else None
    if run is not None and run != "":
        return parent / (f"version_{run}" if isinstance(run, int) else str(run))
    return _new_folder(parent, time.strftime("%Y-%m-%d_%H-%M-%S"))


def _new_folder(parent: Path, name: str) -> Path:
    """Make the folder of this name, or else of NAME-2, NAME-3, ... that is not there yet."""
    folder, number = parent / name, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = parent / f"{name}-{number}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def steps_done(trainer: Any) -> int:
    """The optimizer steps done, as Lightning counts them for its loggers: several optimizers count once."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def ranks_of(trainer: Any) -> Ranks:
    """The processes of a trainer."""
    return Ranks(
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        device=trainer.strategy.root_device,
        sum=lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum"),
    )


def loss_in(outputs: Any) -> Tensor | None:
    """The loss among what a training step returned, as far as there is one."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None
