"""Trainings on two processes: a script that runs those named one after the other, each plain and monitored.

``python -m tests.callbacks.two_processes FOLDER NAME...`` leaves ``FOLDER/NAME-RANK.pt``.
"""

import os
import sys
import time
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from unittest.mock import patch

import torch
import torch.distributed
import wandb
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor
from lightning_symmetry.callbacks.session import Session
from lightning_symmetry.measurement.listening import Listener
from lightning_symmetry.measurement.snapshot import Snapshot
from tests.callbacks.trainings import OF_STEPS, Net, data, on_a_budget, outcome
from tests.module_lists import Experts

PATIENCE = timedelta(seconds=60)
"""How long a rank waits for another: of a deadlock the tests tell by an error."""


class Talking(Net):
    """Averages over processes by itself, and waits for the others."""

    def training_step(self, batch, batch_idx):
        count = torch.tensor(float(len(batch[0])))
        torch.distributed.all_reduce(count)
        torch.distributed.barrier()
        torch.distributed.all_gather_object([None, None], batch_idx)
        return super().training_step(batch, batch_idx) * len(batch[0]) / count


class HalfUsed(Net):
    """Has a layer that no step uses."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(8, 8)


class Spread(LightningModule):
    """Its parameters may be spread over processes; one has a single entry, so that one process has nothing of it.

    Without noise, and with batches of 8 on however many processes, it trains alike on one process and on two.
    """

    def __init__(self, sharded=False, parallel=False, policy=None):
        super().__init__()
        self.sharded, self.parallel, self.policy = sharded, parallel, policy
        self.conv = nn.Conv2d(1, 6, 3)
        self.hidden, self.inner, self.head = nn.Linear(6 * 4 * 4, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.temperature = nn.Parameter(torch.ones(1))

    def configure_model(self):
        if self.parallel:
            plan = {"hidden": ColwiseParallel(), "inner": RowwiseParallel()}
            parallelize_module(self, self.device_mesh["tensor_parallel"], plan)
        if self.sharded:
            policy = self.policy or MixedPrecisionPolicy()
            for module in (self.conv, self.hidden, self):
                fully_shard(module, mesh=self.device_mesh["data_parallel"], mp_policy=policy)

    def forward(self, images):
        hidden = torch.relu(self.hidden(F.relu(self.conv(images)).flatten(1)))
        return self.head(torch.tanh(self.inner(hidden))) * self.temperature

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self(images).float(), labels)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss + torch.zeros((), device=self.device)

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(40, 1, 6, 6, generator=generator)
        pairs = TensorDataset(images, torch.randint(0, 3, (40,), generator=generator))
        spread = getattr(self.trainer.strategy, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
        return DataLoader(
            pairs, 8 // spread["num_replicas"], sampler=DistributedSampler(pairs, shuffle=False, **spread)
        )

    val_dataloader = train_dataloader


class Listed(Spread):
    """Has experts that are modules of a list, each spread by itself."""

    def __init__(self, sharded=False):
        super().__init__(sharded)
        self.inner = Experts(8, 3, 5)
        self.head = nn.Linear(8, 3)

    def configure_model(self):
        if self.sharded:
            for expert in self.inner.experts:
                fully_shard(expert, mesh=self.device_mesh["data_parallel"])
        super().configure_model()


class Routed(Spread):
    """What it does depends on the values of what it computes."""

    def forward(self, images):
        logits = super().forward(images)
        return logits * 2 if logits.sum() > 0 else logits


SPREAD = {"loader": None, "epochs": 1, "use_distributed_sampler": False}


def over(data, tensor):
    """The settings of a training whose parameters are spread over so many processes in either way."""
    strategy = partial(ModelParallelStrategy, data, tensor, process_group_backend="gloo", timeout=PATIENCE)
    return {**SPREAD, "strategy": strategy, "num_sanity_val_steps": 0, "limit_val_batches": 0}


class Flat(DDPStrategy):
    """Fully sharded by the first FSDP, as `FSDPStrategy` does, which takes no CPU."""

    def _setup_model(self, model):
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))

    def configure_ddp(self):
        self.model = self._setup_model(self.model)


def ddp(kind=DDPStrategy, **options):
    return {"strategy": partial(kind, process_group_backend="gloo", timeout=PATIENCE, **options), "epochs": 1}


@contextmanager
def object_collectives():
    """The collectives that pickle what they are given."""
    calls = []

    def counted(act, *args, **kwargs):
        calls.append(act)
        return act(*args, **kwargs)

    names = ("broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list")
    with patch.multiple(torch.distributed, **{n: partial(counted, getattr(torch.distributed, n)) for n in names}):
        yield calls


def rank():
    return int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def reading_fails_on_rank_one():
    """The third tensor that rank one reads for a measurement after the first raises."""
    read, reads = Snapshot.__getitem__, []

    def failing(tensors, name):
        reads.append(name)
        if len(reads) > 40 and len(reads) % 7 == 3 and rank() == 1:
            raise RuntimeError("this rank alone cannot read on")
        return read(tensors, name)

    with patch.object(Snapshot, "__getitem__", failing):
        yield


@contextmanager
def rank_one_is_slow():
    read = Snapshot.__getitem__

    def slow(tensors, name):
        time.sleep(0.01 * rank())
        return read(tensors, name)

    with patch.object(Snapshot, "__getitem__", slow):
        yield


@contextmanager
def gathering_fails_on_rank_one():
    """Rank one cannot take what it has heard, once."""
    take, taken = Listener.clear, []

    def failing(listener):
        taken.append(listener)
        if len(taken) == 1 and rank() == 1:
            raise RuntimeError("this rank alone cannot take what it has heard")
        take(listener)

    with patch.object(Listener, "clear", failing):
        yield


def fails_on_rank_one(kind, method, times):
    """The calls of a method with these numbers raise there."""
    act, calls = getattr(kind, method), []

    def failing(self, *args, **kwargs):
        calls.append(self)
        if len(calls) in times and rank() == 1:
            raise RuntimeError(f"this rank alone fails in {method}")
        return act(self, *args, **kwargs)

    return patch.object(kind, method, failing)


@contextmanager
def hooks_fail_on_rank_one_on_a_budget():
    """While measurements are in the making."""
    with on_a_budget(), fails_on_rank_one(Session, "step_ends", (3,)):
        yield


def rank_one_has_no_room():
    return patch.object(Snapshot, "_has_room", lambda tensors: rank() == 0)


def of_steps():
    return patch("tests.callbacks.trainings.SymmetryMonitor", partial(SymmetryMonitor, indicators=OF_STEPS))


def too_large_for_rank_zero():
    return patch("tests.callbacks.trainings.SymmetryMonitor", partial(SymmetryMonitor, verify_up_to=100))


SHARDED = partial(Spread, sharded=True)
TRAININGS = {
    "ddp": (Net, {**ddp(), "epochs": 2}, nullcontext),
    "talking": (Talking, ddp(), nullcontext),
    "unused": (HalfUsed, {**ddp(find_unused_parameters=True), "loader": partial(data, 52)}, nullcontext),
    "static": (Net, ddp(static_graph=True), nullcontext),
    "sharded": (SHARDED, over(2, 1), nullcontext),
    "parallel": (partial(Spread, parallel=True), over(1, 2), nullcontext),
    "both": (partial(Spread, sharded=True, parallel=True), over(1, 2), nullcontext),
    "half": (
        partial(Spread, sharded=True, policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)),
        {**over(2, 1), "num_sanity_val_steps": 1, "limit_val_batches": 1},
        nullcontext,
    ),
    "failing": (SHARDED, over(2, 1), reading_fails_on_rank_one),
    "gathering": (Net, {**ddp(), "epochs": 2}, gathering_fails_on_rank_one),
    "planning": (Net, ddp(), partial(fails_on_rank_one, SpectrumMonitor, "make_plan", (1,))),
    "starting": (Net, ddp(), partial(fails_on_rank_one, RepresentationMonitor, "select", (2,))),
    "hooks": (Net, {**ddp(), "epochs": 12}, hooks_fail_on_rank_one_on_a_budget),
    "whole": (Spread, {**SPREAD, **ddp()}, nullcontext),
    "steps": (Spread, {**SPREAD, **ddp(), "epochs": 4}, of_steps),
    "wandb": (Net, {**ddp(), "epochs": 2}, nullcontext),
    "listed": (partial(Listed, sharded=True), over(2, 1), nullcontext),
    "slow": (SHARDED, over(2, 1), rank_one_is_slow),
    "budget": (SHARDED, {**over(2, 1), "epochs": 12}, on_a_budget),
    "large": (SHARDED, over(2, 1), too_large_for_rank_zero),
    "routed": (partial(Routed, sharded=True), over(2, 1), too_large_for_rank_zero),
    "flat": (
        Net,
        {"strategy": partial(Flat, process_group_backend="gloo", timeout=PATIENCE), "epochs": 1},
        nullcontext,
    ),
    "full": (SHARDED, over(2, 1), rank_one_has_no_room),
}
RAISING = (
    "ddp",
    "whole",
    "steps",
    "unused",
    "static",
    "sharded",
    "parallel",
    "both",
    "half",
    "listed",
    "slow",
    "budget",
)


def whole(left):
    return tree_map(lambda leaf: leaf.full_tensor() if isinstance(leaf, DTensor) else leaf, left)


def plain(left):
    """Without what only the first FSDP can save."""
    return {"losses": left["losses"], "random": left["random"]}


def run(folder, name):
    """One of the trainings, plain and monitored."""
    build, settings, fault = TRAININGS[name]
    strategy = settings["strategy"]
    on_error = "raise" if name in RAISING else "warn"
    print(f"=== {name}", file=sys.stderr, flush=True)
    found = {}
    for monitored in (False, True):
        with fault() if monitored else nullcontext(), object_collectives() as objects:
            where = f"{folder}/{name}-{monitored}"
            logger = WandbLogger(save_dir=where, mode="offline") if name == "wandb" else False
            settings = {**settings, "strategy": strategy(), "devices": 2, "logger": logger}
            left, callbacks, trainer = outcome(where, 3, monitored, build, on_error, **settings)
        found["monitored" if monitored else "plain"] = plain(left) if name == "flat" else whole(left)
        found["objects", monitored] = len(objects)
        wandb.finish()
    found["history"] = [(row.step, dict(row.values)) for row in callbacks[0].history.measurements]
    found["groups"] = [str(group) for group in callbacks[0].symmetries]
    torch.save(found, f"{folder}/{name}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        run(sys.argv[1], name)
