"""Small real trainings that the tests of the callbacks share."""

import random
import warnings
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor

EVERY = 3


class Net(LightningModule):
    """A convolution with batch norm and dropout, and a classifier: state, randomness and running statistics."""

    def __init__(self, width=8):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6 * 4 * 4, width), nn.Linear(width, 3)

    def forward(self, images):
        features = F.relu(self.norm(self.conv(images)))
        return self.head(F.dropout(torch.tanh(self.hidden(features.flatten(1))), 0.3, self.training))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if outputs:  # a step that optimizes by hand need return nothing
            self.values.append(outputs["loss"].detach().clone())


def data(n=48, batch_size=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 1, 6, 6, generator=generator)
    labels = torch.randint(0, 3, (n,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, shuffle=True)


def monitors(**settings):
    settings = {"every_n_train_steps": EVERY, "on_error": "raise", **settings}
    return [SymmetryMonitor(**settings), SpectrumMonitor(of=["weights", "gradients", "updates"], **settings)]


OF_STEPS = ("orbit_fraction", "noise_imbalance")
"""What is measured of the steps of optimizers."""


def on_a_budget():
    """Lets monitors measure at steps that they find by what they have measured of their own time, as by default."""
    kinds = (SymmetryMonitor, SpectrumMonitor, RepresentationMonitor)
    lavish = {kind.__name__: partial(kind, max_overhead=0.5) for kind in kinds}
    lavish["SymmetryMonitor"] = partial(SymmetryMonitor, max_overhead=0.5, indicators=OF_STEPS)
    lavish["SpectrumMonitor"] = partial(SpectrumMonitor, max_overhead=0.5, of=("weights", "gradients", "updates"))
    return patch.multiple(__name__, EVERY=None, **lavish)


def train(folder, callbacks, model=None, epochs=2, ckpt_path=None, loader=data, **settings):
    """Fit a model on one device, and return it with its trainer; without a loader the model has its own."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    model = Net() if model is None else model
    settings = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": folder,
        "log_every_n_steps": 1,
        "devices": 1,
        **settings,
    }
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, **settings)
    trainer.fit(model, loader and loader(), ckpt_path=ckpt_path)
    return model, trainer


def outcome(folder, seed, monitored, build=Net, on_error="raise", extra=(), **settings):
    """Everything that a training leaves: losses, parameters and buffers, the optimizers' states, random streams."""
    seed_everything(seed, verbose=False)
    losses = Losses()
    callbacks = [losses]
    if monitored:
        representations = RepresentationMonitor(every_n_train_steps=EVERY, on_error=on_error)
        callbacks += [representations, *monitors(on_error=on_error)]
    model, trainer = train(folder, [*callbacks, *extra], build(), **settings)
    left = {
        "losses": losses.values,
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "logged": {key: value for key, value in trainer.callback_metrics.items() if "/" not in key},
        "random": [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()],
    }
    return left, callbacks[2:], trainer
