"""Training steps that do more than compute a loss: none is changed by being traced, and each trains as without us."""

import copy
import dataclasses
import functools
import math
import queue
import threading

import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from transformers.modeling_outputs import CausalLMOutput

from lightning_symmetry import SymmetryMonitor
from tests.callbacks.test_untouched_training import assert_identical
from tests.callbacks.trainings import OF_STEPS, Net, outcome, train
from tests.module_lists import RoutedExperts
from tests.tracing.test_subclassing import Points

COMPILED = {"times": 0, "calls": 0}


def counting(graph, inputs):
    """A backend of `torch.compile` that counts."""
    COMPILED["times"] += 1

    def compiled(*given):
        COMPILED["calls"] += 1
        return graph.forward(*given)

    return compiled


def caching():
    @functools.lru_cache
    def table(length):
        return torch.linspace(0, 1, length).sin()

    class Caching(Net):
        """Keeps a table of positions in a cache outside of the module."""

        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0] + table(6), batch[1]), batch_idx)

    return Caching()


@dataclasses.dataclass
class Batch:
    images: torch.Tensor
    labels: torch.Tensor


class InPlace(Net):
    """Changes a batch in place that is no list, tuple or dictionary."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return Batch(*batch)

    def training_step(self, batch, batch_idx):
        batch.images.sub_(0.5)
        return super().training_step((batch.images, batch.labels), batch_idx)


class StepsSchedulers(Net):
    """Steps the trainer's scheduler, reads its optimizer, and keeps both itself."""

    def configure_optimizers(self):
        self.kept = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.kept, 2, gamma=0.5)
        return [self.kept], [{"scheduler": self.scheduler, "interval": "epoch"}]

    def training_step(self, batch, batch_idx):
        self.trainer.lr_scheduler_configs[0].scheduler.step()
        self.scheduler.step()
        self.lr_schedulers().step()
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)


class Manual(Net):
    """Optimizes by hand: two optimizers, one scheduler."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        body = torch.optim.SGD([*self.conv.parameters(), *self.hidden.parameters()], lr=0.1)
        head = torch.optim.Adam(self.head.parameters())
        return [body, head], [torch.optim.lr_scheduler.StepLR(body, 2)]

    def training_step(self, batch, batch_idx):
        body, head = self.optimizers()
        with head.toggle_model():
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
        for optimizer in (body, head, *self.trainer.optimizers):
            optimizer.step()
        for optimizer in (body, head):
            optimizer.zero_grad()
        self.lr_schedulers().step()
        return loss


class Lookahead(torch.optim.Optimizer):
    """Wraps another optimizer, which has what it hands out, and has no hooks: many are written like this."""

    def __init__(self, optimizer):
        self.optimizer, self.defaults = optimizer, optimizer.defaults

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return self.optimizer.state_dict()


class Averaging(Lookahead):
    """Cannot be copied by `copy.deepcopy`: torch asks the copy for its defaults."""

    def __getstate__(self):
        return {"optimizer": self.optimizer}


class Wrapped(Manual):
    """Optimizes by hand, by an optimizer that wraps another, and by that one too."""

    kind = Lookahead

    def configure_optimizers(self):
        return self.kind(Net.configure_optimizers(self))

    def training_step(self, batch, batch_idx):
        loss = Net.training_step(self, batch, batch_idx)
        self.manual_backward(loss)
        optimizer = self.optimizers()
        self.log("lr", optimizer.param_groups[0]["lr"])
        optimizer.step()
        self.trainer.optimizers[0].optimizer.step()
        optimizer.zero_grad()
        return loss


class Averaged(Wrapped):
    kind = Averaging


class KeepsOptimizer(Wrapped):
    """Steps an optimizer too that its trainer does not know."""

    def configure_optimizers(self):
        self.own = Averaging(torch.optim.SGD(self.conv.parameters(), lr=0.1))
        return torch.optim.SGD(self.head.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        loss = Net.training_step(self, batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in (self.optimizers(), self.own):
            optimizer.step()
            optimizer.zero_grad()
        return loss


class OnGraph(Net):
    """Mixes the pixels by a sparse matrix, as graphs are kept."""

    def __init__(self):
        super().__init__()
        self.register_buffer("graph", torch.eye(36).roll(1, 0).add(torch.eye(36)).to_sparse(), persistent=False)

    def forward(self, images):
        return super().forward(torch.sparse.mm(self.graph, images.flatten(1).T).T.view_as(images))


class Enclosing(Net):
    """Has a forward that was wrapped, and a function that has enclosed its norm."""

    def __init__(self):
        super().__init__()
        self.features = lambda images: F.relu(self.norm(self.conv(images)))
        self.forward = torch.enable_grad()(self.forward)

    def forward(self, images):
        return self.head(torch.tanh(self.hidden(self.features(images).flatten(1))))


class OnPoints(Net):
    """Trains on tensors of a class of their own, of which it keeps one."""

    def on_train_start(self):
        self.shift = Points(torch.ones(6), ["column"])

    def training_step(self, batch, batch_idx):
        images = Points(batch[0], ["row", "column"]) + self.shift
        return super().training_step((images, batch[1]), batch_idx).as_subclass(torch.Tensor)


class Adapting(Net):
    """Takes a step of its own on a copy of its head, as first-order meta-learning does."""

    def training_step(self, batch, batch_idx):
        features = torch.tanh(self.hidden(F.relu(self.norm(self.conv(batch[0]))).flatten(1)))
        head = copy.deepcopy(self.head)
        F.cross_entropy(head(features.detach()), batch[1]).backward()
        torch.optim.SGD(head.parameters(), lr=0.1).step()
        return super().training_step(batch, batch_idx) + F.cross_entropy(head(features), batch[1])


class OfExperts(Net):
    """Sends each image to two of three experts, which are modules of a list; one may get none."""

    def __init__(self):
        super().__init__()
        self.mixture = RoutedExperts(8, 3, 5, torch.relu)

    def forward(self, images):
        features = torch.relu(self.norm(self.conv(images))).flatten(1)
        return self.head(self.mixture(torch.tanh(self.hidden(features))))


class Counting(Net):
    """Weighs its loss by a count of its own."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def training_step(self, batch, batch_idx):
        self.count += 1
        return self.count * super().training_step(batch, batch_idx)


class Drawing(Net):
    """Draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def training_step(self, batch, batch_idx):
        noise = torch.randint(0, 5, (6,), generator=self.generator)
        return super().training_step((batch[0] + noise, batch[1]), batch_idx)


class KeepsLog(Net):
    """Logs by a method that it keeps."""

    def __init__(self):
        super().__init__()
        self.tell = self.log

    def training_step(self, batch, batch_idx):
        self.tell("count", float(batch_idx), on_epoch=True)
        return super().training_step(batch, batch_idx)


class Locking(Net):
    """Keeps what cannot be copied: a lock, and a queue that has some."""

    def __init__(self):
        super().__init__()
        self.kept = {"lock": threading.Lock(), "losses": queue.Queue()}

    def training_step(self, batch, batch_idx):
        with self.kept["lock"]:
            loss = super().training_step(batch, batch_idx)
            self.kept["losses"].put(float(loss))
        assert self.kept["losses"].qsize() == self.trainer.global_step + 1
        return loss


class Casting(Net):
    """Computes in half of the precision by itself."""

    def forward(self, images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(images)


class WithNumPy(Net):
    """Reads its outputs as numbers of NumPy and Python."""

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self(images)
        self.log("largest", float(logits.detach().numpy().max()))
        self.log("first", logits[0].tolist()[0])
        self.log("confused", float((np.asarray(logits.detach()).argmax(1) != labels.numpy()).mean()))
        return F.cross_entropy(logits, labels)


class WithMetrics(Net):
    """Keeps metrics, updates them in each step, and returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.metrics = torchmetrics.MetricCollection([torchmetrics.F1Score("multiclass", num_classes=3)])

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self(images)
        self.accuracy(logits, labels)
        self.log("accuracy", self.accuracy, on_epoch=True)
        self.log_dict(self.metrics(logits, labels))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits.detach(), "labels": labels}


class Frozen(Net):
    """Trains its head alone."""

    def __init__(self):
        super().__init__()
        for module in (self.conv, self.norm, self.hidden):
            module.requires_grad_(False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


class WeightNormed(Net):
    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.conv)
        parametrizations.weight_norm(self.hidden)


class SpectrallyNormed(Net):
    def __init__(self):
        super().__init__()
        parametrizations.spectral_norm(self.conv)
        parametrizations.spectral_norm(self.hidden)


class Orthogonal(Net):
    """The head is a product of reflections: to permute its columns is no permutation of what they are made of."""

    def __init__(self):
        super().__init__()
        parametrizations.orthogonal(self.head)


class Tied(LightningModule):
    """An autoencoder that maps back by the weights by which it maps in, and returns a ModelOutput."""

    def __init__(self):
        super().__init__()
        self.encoder, self.inner, self.outer = nn.Linear(36, 9), nn.Linear(9, 9), nn.Linear(9, 9)
        self.outer.weight = self.inner.weight

    def training_step(self, batch, batch_idx):
        images = batch[0].flatten(1)
        hidden = self.outer(torch.tanh(self.inner(self.encoder(images))))
        decoded = F.linear(hidden, self.encoder.weight.T)
        return CausalLMOutput(loss=F.mse_loss(decoded, images), logits=decoded)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


UNITS = [("conv", 6), ("hidden", 8)]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        *((build, UNITS) for build in (caching, InPlace, StepsSchedulers, Manual, Wrapped, Averaged, Counting)),
        *((build, UNITS) for build in (KeepsOptimizer, OnGraph, Drawing, KeepsLog, Enclosing, OnPoints, Adapting)),
        *((build, UNITS) for build in (Locking, Casting, WithNumPy, WithMetrics, Frozen)),
        *((build, UNITS) for build in (WeightNormed, SpectrallyNormed)),
        (Orthogonal, [("conv", 6)]),
        (Tied, [("encoder", 9)]),
        (OfExperts, [("conv", 6), ("hidden", 8), ("mixture", 3), ("mixture", 5)]),
    ],
)
def test_its_symmetries_are_found_and_its_training_is_untouched(tmp_path, build, expected):
    without, _, _ = outcome(tmp_path / "without", 0, False, build)
    with_monitors, (monitor, _), _ = outcome(tmp_path / "with", 0, True, build)
    groups = [(group.axis.partition(".")[0], group.size) for group in monitor.symmetries if group.kind == "permutation"]
    assert groups == expected
    assert all(group.verified for group in monitor.symmetries)
    assert not monitor.symmetries.rejected
    assert_identical(with_monitors, without)


def test_experts_in_a_list_are_measured_one_upon_another_in_every_way(tmp_path):
    """Also what is measured of steps, where some expert has no gradient in some of them."""
    kinds = ("imbalance", "effective_lr", "angular_speed", *OF_STEPS)
    monitor = SymmetryMonitor(indicators=kinds, every_n_train_steps=3, on_error="raise")
    train(tmp_path, [monitor], OfExperts(), epochs=4)
    for name in ("imbalance", "noise_imbalance", "alive_units"):
        _, values = monitor.history.series(f"symmetry/{name}/mixture_experts_each_up_rescaling")
        assert len(values) >= 1
        assert all(map(math.isfinite, values))
    assert monitor.history.series("symmetry/distinct_units/mixture_experts")[1][0] == 3
    assert 0 < monitor.history.series("symmetry/orbit_fraction")[1][-1] < 1


def test_a_compiled_model_stays_compiled_and_is_compiled_no_more_often(tmp_path):
    class Compiled(Net):
        def __init__(self):
            super().__init__()
            self.hidden = torch.compile(self.hidden, backend=counting)

    left, counts = [], []
    for monitored in (False, True):
        torch.compiler.reset()
        COMPILED.update(times=0, calls=0)
        left.append(outcome(tmp_path / str(monitored), 0, monitored, Compiled)[0])
        counts.append(dict(COMPILED))
    assert counts[0]["calls"] == 12
    assert counts[1] == counts[0]
    assert_identical(*left)


def test_a_step_that_reaches_its_model_past_the_copy_is_found_out_and_its_statistics_are_put_back(tmp_path):
    norms = []

    class Global(Net):
        def __init__(self):
            super().__init__()
            norms[:] = [self.norm]

        def forward(self, images):
            features = F.relu(norms[0](self.conv(images)))
            return self.head(torch.tanh(self.hidden(features.flatten(1))))

    without, _, _ = outcome(tmp_path / "without", 0, False, Global)
    with pytest.warns(UserWarning, match=r"buffers of the model itself.*: norm.running_mean, norm.running_var"):
        with_monitors, _, _ = outcome(tmp_path / "with", 0, True, Global, on_error="warn")
    assert_identical(with_monitors, without)


def test_parameters_that_a_method_of_an_optimizer_changes_in_a_step_are_put_back(tmp_path):
    """As one that trains by averages changes them at the beginning of an epoch."""

    class Swapping(torch.optim.SGD):
        def train(self):
            for parameter in self.param_groups[0]["params"]:
                parameter.data.mul_(0.9)

    class Swapped(Wrapped):
        def configure_optimizers(self):
            return Swapping(self.head.parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            self.trainer.optimizers[0].train()
            loss = Net.training_step(self, batch, batch_idx)
            self.manual_backward(loss)
            self.optimizers().step()
            self.optimizers().zero_grad()
            return loss

    without, _, _ = outcome(tmp_path / "without", 0, False, Swapped)
    with pytest.warns(UserWarning, match=r"changed parameters .* of the model itself.*: head.weight, head.bias\."):
        with_monitors, _, _ = outcome(tmp_path / "with", 0, True, Swapped, on_error="warn")
    assert_identical(with_monitors, without)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_a_step_is_traced_in_the_precision_of_its_trainer(tmp_path, precision):
    """A tensor that the step makes has the type that the trainer sets, as its parameters have."""

    class Making(Net):
        def forward(self, images):
            return super().forward(images) + self.head(torch.zeros(len(images), 8))

    _, (monitor, _), _ = outcome(tmp_path, 0, True, Making, precision=precision)
    assert {"conv", "hidden"} <= {group.name for group in monitor.symmetries if group.verified}
