"""Train an ordinary network on handwritten digits, and watch its symmetries break and be restored.

Run ``python examples/quickstart.py``: about a minute on two CPU cores, no account, no download.
"""

from __future__ import annotations

import warnings

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_symmetry import History, RepresentationMonitor, SpectrumMonitor, SymmetryMonitor

EPOCHS = 600


class DigitClassifier(LightningModule):
    """Three hidden layers of 64 sigmoid units, and weight decay. Nothing here knows of symmetries."""

    def __init__(self, width: int = 64, lr: float = 0.3, weight_decay: float = 3.5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(64, width),
            nn.Sigmoid(),
            nn.Linear(width, width),
            nn.Sigmoid(),
            nn.Linear(width, width),
            nn.Sigmoid(),
            nn.Linear(width, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        accuracy = (self(images).argmax(dim=1) == labels).float().mean()
        self.log("val_acc", accuracy, prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.hparams.lr, momentum=0.9, weight_decay=self.hparams.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(0.9 * self.trainer.max_epochs)])
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def digits(batch_size: int = 64) -> tuple[DataLoader, DataLoader]:
    """1797 images of 8 x 8 pixels, which come with scikit-learn: four fifths to train on, one fifth to validate."""
    features, labels = load_digits(return_X_y=True)
    images = torch.tensor(features, dtype=torch.float32)
    images = (images - images.mean()) / images.std()
    train, val = random_split(TensorDataset(images, torch.tensor(labels)), [0.8, 0.2])
    return DataLoader(train, batch_size, shuffle=True), DataLoader(val, len(val))


WHY = """\
Why: weight decay pulls parameters to the symmetric states of the loss. As long as the loss does not
hold two units of a layer apart, the distance between them shrinks by the factor
exp(-lr x weight_decay / (1 - momentum)), here about 1 % a step, until they are copies of each other.
So the third hidden layer collapses to a single distinct unit, and the loss stands still at a
symmetric saddle, until gradients break the copies apart. Once the digits are learned, only those
differences survive that lower the loss by more than their weight decay costs; the rest merge again.
"""


def print_results(history: History, accuracy: float) -> None:
    """What was found: at the start, where the symmetry was restored most, and at the end."""
    table = Table(title="Units of each hidden layer that are distinct, and the rank of its weights")
    for heading in ("group", "units at start", "fewest (at step)", "at end", "broken fraction", "effective rank"):
        table.add_column(heading, justify="left" if heading == "group" else "right", no_wrap=True)
    for key in history.keys("symmetry/distinct_units/"):
        group = key.rpartition("/")[2]
        steps, units = history.series(key)
        fewest = min(units)
        table.add_row(
            group,
            f"{units[0]:.0f}",
            f"{fewest:.0f} ({steps[units.index(fewest)]})",
            f"{units[-1]:.0f}",
            first_to_last(history, f"symmetry/broken_fraction/{group}", ".2f"),
            first_to_last(history, f"spectrum/effective_rank/{group}", ".1f"),
        )
    Console(width=max(Console().width, 100)).print(table)
    _, parameters = history.series("complexity/effective_parameters")
    _, overhead = history.series("monitor/overhead")
    print(
        f"Validation accuracy {accuracy:.3f}, with {parameters[-1]:,.0f} effective of {parameters[0]:,.0f} parameters."
    )
    print(f"Measuring took {overhead[-1]:.1%} of the time of training.\n\n{WHY}")


def first_to_last(history: History, key: str, number: str) -> str:
    """A series' first and last value."""
    _, values = history.series(key)
    return f"{values[0]:{number}} -> {values[-1]:{number}}"


def main() -> None:
    """Train, and print what there is to see."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    torch.set_num_threads(1)  # so small a network gains nothing from a second thread
    seed_everything(0)
    logger = WandbLogger(project="lightning-symmetry-quickstart", mode="offline", save_dir=".")
    # A fixed grid, since the first collapse takes 300 steps of two milliseconds; by default the monitors keep to 1 % of
    # the time of training instead.
    symmetry = SymmetryMonitor(every_n_train_steps=100)
    others = [SpectrumMonitor(every_n_train_steps=100), RepresentationMonitor(every_n_train_steps=100, window=4)]
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=logger,
        callbacks=[symmetry, *others],
        check_val_every_n_epoch=20,
        log_every_n_steps=20,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(DigitClassifier(), *digits())

    print(f"\n{symmetry.symmetries}\n")
    print_results(symmetry.history, float(trainer.callback_metrics["val_acc"]))
    run = logger.experiment.dir.removesuffix("/files")
    print("Two ways to look:")
    print(f"  the report, in a browser:   {symmetry.history.path.with_name('report.html').absolute()}")
    print(f"  the run, in this terminal:  wandb leet {run}")
    print(f"  (or with an account:        wandb sync {run})\n")


if __name__ == "__main__":
    main()
