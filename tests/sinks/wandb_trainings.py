"""Trainings with W&B in trouble, each in a process of its own, since wandb keeps state in its process."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_symmetry import RepresentationMonitor
from lightning_symmetry.history import FILE_NAME
from lightning_symmetry.sinks.recorder import HISTORY_ONLY
from tests.callbacks.test_transitions_in_training import Plant, Twins
from tests.callbacks.trainings import monitors, train
from tests.wandb_server import behave

EPOCHS, STEPS = 6, 36
TROUBLE, RELIEF = 6, 28
"""The steps at which trouble begins and, where it lasts for a while, ends."""


class Trouble(Callback):
    """Does something at the step at which trouble begins, and something at that at which it ends."""

    def __init__(self, begin: Callable[[], Any], end: Callable[[], Any] = lambda: None) -> None:
        self.at = {TROUBLE: begin, RELIEF: end}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.at.get(trainer.global_step, lambda: None)()


class Gone(Trouble):
    """Does something as soon as Lightning has opened the run, before any monitor has said a word."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.at.pop(TROUBLE)()


class Stopwatch(Callback):
    """One before and one after the monitors tell how long each step spends in their hooks."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.begins: list[float] = []
        self.ends: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.begins.append(self.clock())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ends.append(self.clock())


def unhindered() -> float:
    """Seconds that pass, less those in which this thread was ready to run and waited for a core, as Linux counts them.

    What is left is what it does and what it waits for, however many others share the machine.
    """
    try:
        _, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except OSError:
        waited = "0"
    return time.perf_counter() - int(waited) / 1e9


class Silent(Twins):
    """Logs nothing by itself: where W&B raises, that would end the training without any monitor."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing."""


def settings() -> Any:
    """W&B sends at once what it otherwise gathers for 15 s, and tries again soon."""
    import wandb

    often = {"transmit_interval": 0.05, "retry_wait_min_seconds": 0.05, "retry_wait_max_seconds": 0.2}
    return wandb.Settings(**{f"x_file_stream_{name}": seconds for name, seconds in often.items()})


def kill_service() -> None:
    """Kill W&B's own process."""
    import wandb

    service = wandb.setup().ensure_service()._proc._process
    service.kill()
    service.wait()


def healthy(url: str) -> dict[str, Any]:
    """Nothing is wrong."""
    return {}


def dead(url: str) -> dict[str, Any]:
    """The server is gone before the first row."""
    return {"trouble": Gone(lambda: behave(url, stop=True)), "ends": False}


def lost(url: str) -> dict[str, Any]:
    """The server goes away for good."""
    return {"trouble": Trouble(lambda: behave(url, stop=True)), "ends": False}


def limited(url: str) -> dict[str, Any]:
    """The server says 429 for a while."""
    return {"trouble": _refusing(url, 429)}


def unavailable(url: str) -> dict[str, Any]:
    """The server says 503 for a while."""
    return {"trouble": _refusing(url, 503)}


def slow(url: str) -> dict[str, Any]:
    """The server takes 3 s for each request."""
    return {"trouble": Trouble(lambda: behave(url, delay=3.0))}


def killed(url: str) -> dict[str, Any]:
    """W&B's own process is killed, beside another logger."""
    return {"trouble": Trouble(kill_service), "model": Silent(), "others": [CSVLogger(".")], "ends": False}


def finished(url: str) -> dict[str, Any]:
    """The user finishes the run before the training ends."""

    def finish() -> None:
        import wandb

        wandb.finish()

    return {"trouble": Trouble(finish), "model": Silent()}


def disabled(url: str) -> dict[str, Any]:
    """W&B is switched off."""
    os.environ["WANDB_MODE"] = "disabled"
    return {}


def _refusing(url: str, status: int) -> Trouble:
    def relieve() -> None:
        deadline = time.monotonic() + 60
        while behave(url)["refused"] < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        behave(url, status=None)

    return Trouble(lambda: behave(url, status=status), relieve)


def play(
    scenario: Callable[[str], dict[str, Any]],
    folder: Path,
    environment: dict[str, str],
    monitored: bool = True,
    epochs: int = EPOCHS,
    max_overhead: float = 0.01,
) -> dict[str, Any]:
    """Train in this process, in and into a folder.

    Returns:
        How many steps were done, the seconds that each took, spent in the hooks of the monitors, and kept the
        processor busy there; from the begin of each to that of the next, `unhindered`, but for the first, which finds
        the symmetries, and those in which trouble is made; what the monitors warned of, and the run.
    """
    os.environ.pop("WANDB_SERVICE", None)  # of a run of the parent process
    os.environ.update(environment)
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    given = scenario(environment["WANDB_BASE_URL"])
    trouble, model = given.get("trouble", Trouble(lambda: None)), given.get("model", Twins())
    seed_everything(0, verbose=False)
    logger = WandbLogger(project="test", save_dir=folder, settings=settings())
    watched: list[Callback] = []
    if monitored:
        often = {"every_n_train_steps": 1, "max_overhead": max_overhead, "on_error": "raise"}
        watched = [*monitors(alert_on={"restoration"}, **often), RepresentationMonitor(**often)]
    before, after = Stopwatch(), Stopwatch()
    busy_before, busy_after = Stopwatch(time.thread_time), Stopwatch(time.thread_time)
    callbacks = [pace := Stopwatch(unhindered), trouble, Plant(), before, busy_before, *watched, busy_after, after]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, trainer = train(folder, callbacks, model, epochs, logger=[logger, *given.get("others", [])])
        run = logger.experiment.id
        if given.get("ends", True):
            logger.experiment.finish()
        else:  # W&B would wait for the server
            kill_service()
    return {
        "steps": trainer.global_step,
        "seconds": [end - begin for begin, end in zip(before.begins, after.ends, strict=True)],
        "in_hooks": _between(before, after),
        "busy_in_hooks": _between(busy_before, busy_after),
        "paces": [
            after - before
            for step, (before, after) in enumerate(pairwise(pace.begins), start=1)
            if step not in (1, TROUBLE, RELIEF)
        ],
        "warnings": [str(one.message) for one in caught if "/lightning_symmetry/" in one.filename],
        "run": run,
    }


def written(run_folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What the history of a run says that loggers got: the step and the values of each measurement."""
    lines = [json.loads(line) for line in (run_folder / FILE_NAME).read_text().splitlines()]
    rows = [(line["step"], line["values"]) for line in lines if "values" in line]
    told = [(step, {key: values[key] for key in values if not key.startswith(HISTORY_ONLY)}) for step, values in rows]
    return [(step, {key: math.nan if values[key] is None else values[key] for key in values}) for step, values in told]


def _between(before: Stopwatch, after: Stopwatch) -> list[float]:
    begins = [end - begin for begin, end in zip(before.begins, after.begins, strict=True)]
    return [at_begin + end - begin for at_begin, begin, end in zip(begins, before.ends, after.ends, strict=True)]
