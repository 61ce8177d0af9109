"""What the monitors cost a training, beside what others cost that look at a model while it trains.

``python -m tests.benchmarks.overhead [mlp] [cnn] [gpt2] [monitors] ...``; nothing is downloaded. A plain training, with
a W&B logger that is offline, and one that is watched take turns, a few steps each, so that whatever else the machine
does slows both alike. The other one is

- plain: the same again, for what two trainings differ by that are alike;
- used: the same again, where the plain one's heap has not been used before, as told below;
- idle: with three callbacks that do nothing, which a Trainer calls all the same;
- monitors: with the three monitors at their defaults;
- watch: with ``wandb.watch(model, log="all")``;
- svdvals: with a callback that calls ``torch.linalg.svdvals`` on every matrix every 50 steps.

Both run on the same core. A turn begins with the caches of the other training: its first steps are not counted, and
either goes first as often. Pairs of turns, with and without, give the mean overhead and the upper end of its one-sided
95 % interval: by the clock, and by the work of the training's thread, which other processes on the machine do not blur.
Two processes that do the same differ by where their memory lies, the MLP's by 2 % of a step; so both begin again and
again in new processes, where a step is short three for each pair. All log a row every 50 steps, as a Trainer does by
default. The steps before are left out: the search for symmetries and the first measurement are paid once, and told
apart. A stall is what a step took longer than the median of its training; those of the plain training are what the
machine does by itself.

Where blocks of memory lie matters as much as what is measured here, so all trainings keep their memory and have a used
heap. By default glibc learns from the largest block ever freed which blocks to give back to the system: whoever has
freed a large one before, as the search for symmetries does, then trains this CNN 16 % faster. And in a process that has
done nothing else the blocks of a step lie side by side: to have taken and freed a few thousand blocks once, as a
validation or a checkpoint does, costs the MLP 1 % of its steps from then on (``used``).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from scipy.stats import t as student_t
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor

PAIRS = 20
LEFT_OUT = 60
"""How many steps are left out at the beginning."""
USED_AT = LEFT_OUT - 10
"""The step at which the heap is used, after the first measurements."""
CONTENDERS = ("plain", "used", "idle", "monitors", "watch", "svdvals")

KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34), "PYTHONHASHSEED": "0"}


class Batches(Dataset[Any]):
    """The same few batches again and again, made beforehand."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, number: int) -> Any:
        return self.batches[number % len(self.batches)]


class Classifier(LightningModule):
    """A network that tells ten classes apart."""

    def __init__(self, net: nn.Module, shape: Sequence[int], batch_size: int) -> None:
        super().__init__()
        self.net = net
        self.batches = [(torch.randn(batch_size, *shape), torch.randint(0, 10, (batch_size,))) for _ in range(8)]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Batches(self.batches), batch_size=None)


class LanguageModel(Classifier):
    """A GPT-2 of 4 blocks and 256 features."""

    def __init__(self) -> None:
        config = transformers.GPT2Config(vocab_size=2000, n_positions=64, n_embd=256, n_layer=4, n_head=4)
        super().__init__(transformers.GPT2LMHeadModel(config), (1,), 1)
        tokens = [torch.randint(0, 2000, (8, 64)) for _ in range(8)]
        self.batches: Sequence[Any] = [{"input_ids": each, "labels": each} for each in tokens]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(**batch).loss
        return loss


def mlp() -> LightningModule:
    """Three layers, 26 thousand parameters; steps of a millisecond."""
    layers = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    return Classifier(nn.Sequential(*layers), (64,), 192)


def cnn() -> LightningModule:
    """Three convolutions with batch norm, 100 thousand parameters."""
    layers: list[nn.Module] = []
    for channels, wider in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]
    return Classifier(nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10)), (3, 32, 32), 32)


@dataclass(frozen=True)
class Course:
    """How a model is trained.

    Attributes:
        build: Makes the model.
        steps: The steps of a turn, a prime number, so that no due step is always among those that are left out.
        cold: How many of them are left out.
        turns: How many turns each training takes in a process.
        processes: How often both begin in new processes; all their turns are shared out among the pairs.
    """

    build: Callable[[], LightningModule]
    steps: int
    cold: int
    turns: int
    processes: int

    @property
    def turns_of_pair(self) -> int:
        """How many turns of each training make up one side of a pair."""
        return self.turns * self.processes // PAIRS


COURSES = {
    "mlp": Course(mlp, 53, 3, 48, processes=60),
    "cnn": Course(cnn, 13, 1, 16, processes=60),
    "gpt2": Course(LanguageModel, 7, 1, 16, processes=10),
}


class Paced(Callback):
    """Takes a turn of so many steps whenever told to, and tells how long each step took."""

    def __init__(self, connection: Connection, steps: int, fresh: bool) -> None:
        self.connection, self.steps, self.fresh = connection, steps, fresh
        self.began: list[tuple[float, float]] = []
        self.kept: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == USED_AT and not self.fresh:
            self.kept = some_of_many_blocks(random.Random(os.getpid()))
        if batch_idx % trainer.log_every_n_steps == 0:
            trainer.logger.log_metrics({"loss": 0.0}, step=trainer.global_step)
        self.began.append((time.perf_counter(), time.thread_time()))
        if batch_idx >= LEFT_OUT and (batch_idx - LEFT_OUT) % self.steps == 0:
            pairs = zip(self.began, self.began[1:], strict=False)
            self.connection.send([(later[0] - one[0], later[1] - one[1]) for one, later in pairs])
            trainer.should_stop = not self.connection.recv()
            self.began = [(time.perf_counter(), time.thread_time())]


def some_of_many_blocks(draw: random.Random) -> list[Tensor]:
    """One of ten blocks of memory, of 12 bytes to 400 kB; the others are freed, and leave holes between them."""
    blocks = [torch.empty(int(10 ** draw.uniform(0.5, 5))) for _ in range(3000)]
    return draw.sample(blocks, len(blocks) // 10)


class SingularValues(Callback):
    """What a user might write: the singular values of every matrix, every 50 steps."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % 50 == 0:
            with torch.no_grad():
                matrices = {n: p.flatten(1) for n, p in pl_module.named_parameters() if p.dim() > 1}
                ranks = {f"rank/{name}": torch.linalg.svdvals(matrix).sum().item() for name, matrix in matrices.items()}
            trainer.logger.log_metrics(ranks, step=trainer.global_step)


def train(name: str, contender: str, connection: Connection) -> None:
    """One training, in a process of its own."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    seed_everything(0, verbose=False)
    course = COURSES[name]
    model = course.build()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        logger = WandbLogger(project="overhead", save_dir=folder, mode="offline")
        monitors: list[Callback] = []
        if contender == "monitors":
            monitors = [SymmetryMonitor(), SpectrumMonitor(), RepresentationMonitor()]
        elif contender == "idle":
            monitors = [Callback(), Callback(), Callback()]
        elif contender == "svdvals":
            monitors = [SingularValues()]
        elif contender == "watch":
            logger.experiment.watch(model, log="all")
        trainer = Trainer(
            max_epochs=1,
            logger=logger,
            callbacks=[Paced(connection, course.steps, fresh=contender == "fresh"), *monitors],
            accelerator="cpu",
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        logger.log_hyperparams({})  # begins the run, the processes of which are free to run on any core
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        trainer.fit(model)
        logger.experiment.finish()  # a process that was forked does not finish it when it ends


Steps = list[tuple[float, float]]
"""The seconds of steps: by the clock, and of the thread's work."""


@dataclass(frozen=True)
class Result:
    """The steps of a training in all its processes: those left out at first, those of each pair, and all after them."""

    first: Steps = field(default_factory=list)
    pairs: list[Steps] = field(default_factory=list)
    all: Steps = field(default_factory=list)

    @property
    def step(self) -> float:
        """The median step."""
        return statistics.median(clock for pair in self.pairs for clock, _ in pair)

    @property
    def stall(self) -> float:
        """What the longest step took longer."""
        return max(clock for clock, _ in self.all) - self.step

    def overheads(self, plain: Result, place: int) -> tuple[float, float]:
        """The mean overhead beside the plain training, and its upper bound; place 0: by the clock, 1: by its work."""
        both = zip(self.pairs, plain.pairs, strict=True)
        ratios = [sum(step[place] for step in one) / sum(step[place] for step in other) - 1 for one, other in both]
        mean, error = statistics.mean(ratios), statistics.stdev(ratios) / len(ratios) ** 0.5
        return mean, mean + error * float(student_t.ppf(0.95, len(ratios) - 1))


def measure(name: str, contender: str) -> tuple[Result, Result]:
    """Let a plain training of a model and another one take turns."""
    os.environ.update(KEPT_MEMORY)
    results = Result(), Result()
    for number in range(COURSES[name].processes):
        take_turns(name, ("fresh" if contender == "used" else "plain", contender), results, number)
    return results


def take_turns(name: str, contenders: Sequence[str], results: Sequence[Result], before: int) -> None:
    """Begin every training in a process of its own, after so many before, and let them take turns."""
    course = COURSES[name]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__spec__.name if __spec__ is not None else __name__])
    ends, processes = [], []
    for contender, result in zip(contenders, results, strict=True):
        end, other = context.Pipe()
        processes.append(context.Process(target=train, args=(name, contender, other)))
        processes[-1].start()
        ends.append(end)
        result.first.extend(end.recv())
    both = list(zip(ends, results, strict=True))
    for number in range(before * course.turns, (before + 1) * course.turns):
        for end, result in both if number % 2 else reversed(both):
            end.send(True)
            steps = end.recv()
            if number % course.turns_of_pair == 0:
                result.pairs.append([])
            result.pairs[-1] += steps[course.cold :]
            result.all.extend(steps)
    for end, process in zip(ends, processes, strict=True):
        end.send(False)
        process.join()


def main(names: Sequence[str]) -> None:
    """Measure one model after the other, and print a table of each."""
    unknown = set(names).difference(COURSES, CONTENDERS)
    if unknown:
        sys.exit(f"{', '.join(sorted(unknown))}: neither a model ({', '.join(COURSES)}) nor one of {CONTENDERS}")
    for name in [name for name in COURSES if name in names] or COURSES:
        print(
            f"{name:12}{'a step':>10}{'by the clock':>14}{'95 % bound':>12}{'by its work':>13}{'95 % bound':>12}",
            end="",
        )
        print(f"{'largest stall':>15}{'plain':>12}{'first steps':>13}")
        for contender in [contender for contender in CONTENDERS if contender in names] or CONTENDERS:
            plain, result = measure(name, contender)
            shares = [share for place in (0, 1) for share in result.overheads(plain, place)]
            print(f"  {contender:10}{plain.step * 1e3:7.2f} ms{shares[0]:14.2%}{shares[1]:12.2%}", end="")
            print(f"{shares[2]:13.2%}{shares[3]:12.2%}{result.stall * 1e3:12.1f} ms{plain.stall * 1e3:9.1f} ms", end="")
            once = sum(clock for clock, _ in result.first) - sum(clock for clock, _ in plain.first)
            print(f"{once / COURSES[name].processes:11.2f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
