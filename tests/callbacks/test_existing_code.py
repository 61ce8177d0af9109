"""Trainings that others have written, with our callbacks passed to them: run as a script, one on two DDP processes."""

import importlib
import inspect
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import nn

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor, read_history
from tests.callbacks.test_untouched_training import assert_identical
from tests.callbacks.trainings import Losses, Net, data

ROOT = Path(__file__).parents[2]
SETTINGS = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}


def all_monitors(every=3):
    settings = {"every_n_train_steps": every, "on_error": "raise"}
    return [SymmetryMonitor(**settings), SpectrumMonitor(**settings), RepresentationMonitor(**settings)]


class Other(pytorch_lightning.LightningModule):
    """A module of the other package name."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 3))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_with_pytorch_lightning_all_is_as_with_lightning(tmp_path):
    """Passed in a list, under that package's own logger and callbacks, resumed, and bit for bit as without."""

    def train(folder, monitors, epochs=2, ckpt_path=None):
        pytorch_lightning.seed_everything(0, verbose=False)
        stop = pytorch_lightning.callbacks.EarlyStopping("symmetry/broken_fraction", mode="max", strict=False)
        keep = pytorch_lightning.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=3)
        trainer = pytorch_lightning.Trainer(
            max_epochs=epochs,
            logger=pytorch_lightning.loggers.CSVLogger(folder, version=0),
            callbacks=[*monitors, stop, keep],
            log_every_n_steps=1,
            **SETTINGS,
        )
        trainer.fit(model := Other(), data(), ckpt_path=ckpt_path)
        return model, trainer

    plain, _ = train(tmp_path / "plain", [])
    monitored, trainer = train(tmp_path / "monitored", monitors := all_monitors())
    assert_identical(dict(monitored.state_dict()), dict(plain.state_dict()))
    assert trainer.callback_metrics["symmetry/broken_fraction"] == 1
    assert [group.name for group in monitors[0].symmetries if group.kind == "permutation"] == ["net.1"]
    run = tmp_path / "monitored" / "lightning_logs" / "version_0" / "symmetry" / "version_0"
    assert (run / "report.html").exists()
    assert "symmetry/broken_fraction/net_1" in (run.parents[1] / "metrics.csv").read_text().splitlines()[0]
    train(tmp_path / "monitored", all_monitors(), 3, tmp_path / "monitored" / "last.ckpt")
    assert read_history(run).series("spectrum/effective_rank/net_1")[0] == [0, 3, 6, 9, 12, 15, 18]


def watch(folder, monitored):
    """Train until what is told of the model as a whole stops rising, and keep the best checkpoint."""
    seed_everything(0, verbose=False)
    key = "symmetry/broken_fraction" if monitored else "train_loss"
    stop = EarlyStopping(key, mode="max", patience=1)
    keep = ModelCheckpoint(folder / key, monitor=key, mode="max", every_n_train_steps=1, filename="{step}")
    trainer = Trainer(
        max_epochs=4,
        logger=False,
        default_root_dir=folder,
        callbacks=[*(all_monitors() if monitored else []), stop, keep],
        strategy="ddp",
        use_distributed_sampler=True,
        **{**SETTINGS, "devices": 2},
    )
    trainer.fit(Net(), data())
    rank = trainer.global_rank
    left = {"epochs": trainer.current_epoch, "score": float(keep.best_model_score), "best": keep.best_model_path}
    torch.save(left, folder / f"watched-{rank}.pt")


def test_early_stopping_and_checkpoints_watch_the_aggregates_on_two_processes(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "tests.callbacks.test_existing_code", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    zero, one = (torch.load(tmp_path / f"watched-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert zero == one
    assert zero["epochs"] == 2  # the broken fraction stays at 1: the second epoch is no better
    assert zero["score"] == 1
    assert Path(zero["best"]).exists()


class Data(LightningDataModule):
    def train_dataloader(self):
        return data()


def told(transition):
    """For `on_transition`, by its import path."""


COMMON = {
    "max_overhead": 0.02,
    "every_n_train_steps": 3,
    "include": "hidden|head",
    "exclude": "bias",
    "on_error": "raise",
    "alert_on": ["rank_collapse", "nonfinite"],
    "on_transition": f"{__name__}.told",
}
FROM_YAML = {
    "SymmetryMonitor": {
        **COMMON,
        "kinds": ["permutation", "sign"],
        "tolerance": 0.05,
        "verify_up_to": 1_000_000,
        "indicators": ["imbalance"],
    },
    "SpectrumMonitor": {
        **COMMON,
        "indicators": ["effective_rank", "spectral_norm"],
        "of": ["weights", "gradients"],
    },
    "RepresentationMonitor": {
        **COMMON,
        "exclude": "norm",
        "indicators": ["effective_rank", "neural_collapse"],
        "layer_types": ["Linear"],
        "labels": 1,
        "mask": None,
        "classifier": "head",
        "conv_features": "by_position",
        "window": 4,
        "max_samples": 64,
        "dormant_threshold": 0.1,
    },
}


def of_the_command_line(folder, callbacks, *arguments):
    config = {
        "trainer": {
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "default_root_dir": str(folder),
            "callbacks": callbacks,
            **SETTINGS,
        }
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LightningCLI(
            Net, Data, args=["fit", "--config", str(path), *arguments], save_config_callback=None, run=True
        )


def test_the_command_line_builds_the_monitors_from_yaml_with_all_their_arguments(tmp_path):
    callbacks = [
        {"class_path": f"lightning_symmetry.{name}", "init_args": settings} for name, settings in FROM_YAML.items()
    ]
    cli = of_the_command_line(tmp_path, callbacks)
    monitors = {type(callback).__name__: callback for callback in cli.trainer.callbacks}
    for name, settings in FROM_YAML.items():
        accepted = set(inspect.signature(type(monitors[name])).parameters)
        assert {key for key in accepted if key not in settings} == set()  # all that there are
        for key, value in settings.items():
            found = getattr(monitors[name], key)
            if key == "on_transition":
                assert found is not None and found.__name__ == "told"
            elif isinstance(value, list):
                assert sorted(found) == sorted(value)
            else:
                assert found == value
    assert len(monitors["SymmetryMonitor"].history.measurements) > 3


def test_the_command_line_builds_them_from_their_names_alone_and_from_options(tmp_path):
    cli = of_the_command_line(
        tmp_path,
        [{"class_path": "lightning_symmetry.SpectrumMonitor"}],
        "--trainer.callbacks+=lightning_symmetry.SymmetryMonitor",
        "--trainer.callbacks.tolerance=0.1",
    )
    monitors = {type(callback).__name__: callback for callback in cli.trainer.callbacks}
    assert monitors["SymmetryMonitor"].tolerance == 0.1
    assert monitors["SpectrumMonitor"].max_overhead == 0.01


def test_the_command_line_refuses_what_the_types_do_not_allow(tmp_path, capsys):
    for settings in ({"tolerance": "wide"}, {"on_error": "ignore"}, {"window": 3}):
        callbacks = [{"class_path": "lightning_symmetry.SymmetryMonitor", "init_args": settings}]
        with pytest.raises(SystemExit):
            of_the_command_line(tmp_path, callbacks)
        assert next(iter(settings)) in capsys.readouterr().err


def published(name):
    """A package that the extra `test` installs; in CI it must be there."""
    return importlib.import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


def chemprop(callbacks, settings):
    """A message-passing network on molecules, here alcohols, amines and alkylbenzenes and how long their names are."""
    data, models, layers = (published(f"chemprop.{part}") for part in ("data", "models", "nn"))
    names = [
        stem for length in range(1, 9) for stem in ("C" * length + "O", "C" * length + "N", "c1ccccc1" + "C" * length)
    ]
    points = [data.MoleculeDatapoint.from_smi(name, np.array([float(len(name))])) for name in names]
    dataset = data.MoleculeDataset(points)
    scaler = dataset.normalize_targets()
    head = layers.RegressionFFN(
        input_dim=16, hidden_dim=16, output_transform=layers.UnscaleTransform.from_standard_scaler(scaler)
    )
    model = models.MPNN(layers.BondMessagePassing(d_h=16), layers.MeanAggregation(), head, batch_norm=True)
    trainer = Trainer(max_epochs=2, logger=False, enable_checkpointing=False, callbacks=callbacks, **settings)
    trainer.fit(model, data.build_dataloader(dataset, batch_size=8, num_workers=0))
    return model


def pytorch_forecasting(callbacks, settings):
    """N-BEATS on three sine waves, from a data frame."""
    forecasting, pandas = published("pytorch_forecasting"), published("pandas")
    waves = {"time": [*range(40)] * 3, "series": np.repeat(["a", "b", "c"], 40), "value": np.sin(np.arange(120) / 5)}
    series = forecasting.TimeSeriesDataSet(
        pandas.DataFrame(waves).astype({"value": "float32"}),
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=8,
        max_prediction_length=4,
        time_varying_unknown_reals=["value"],
    )
    blocks = {"stack_types": ["generic"], "num_blocks": [2], "num_block_layers": [2], "widths": [12]}
    model = forecasting.NBeats.from_dataset(
        series, **blocks, expansion_coefficient_lengths=[8], log_interval=-1, backcast_loss_ratio=0.1
    )
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, gradient_clip_val=0.1, callbacks=callbacks, **settings
    )
    trainer.fit(model, series.to_dataloader(train=True, batch_size=16, num_workers=0))
    return model


def gluonts(callbacks, settings):
    """DeepAR, an LSTM that writes the parameters of a distribution, by an estimator that makes its own Trainer."""
    common, estimators, pandas = (published(name) for name in ("gluonts.dataset.common", "gluonts.torch", "pandas"))
    start = pandas.Period("2020-01-01", freq="D")
    waves = [{"start": start, "target": (np.sin(np.arange(60) / 5) + shift).astype("float32")} for shift in range(3)]
    estimator = estimators.DeepAREstimator(
        freq="D",
        prediction_length=4,
        context_length=8,
        hidden_size=8,
        batch_size=8,
        num_batches_per_epoch=4,
        trainer_kwargs={"max_epochs": 2, "logger": False, "callbacks": callbacks, **settings},
    )
    return estimator.train(common.ListDataset(waves, freq="D")).prediction_net


def pina(callbacks, settings):
    """A network that solves Poisson's equation on a square, whose tensors are of a class of the package's own."""
    package, parts = published("pina"), ("domain", "equation", "model", "operator", "problem", "solver")
    domain, equation, model, operator, problem, solver = (published(f"pina.{part}") for part in parts)

    def residual(points, field):
        force = torch.sin(points.extract(["x"]) * torch.pi) * torch.sin(points.extract(["y"]) * torch.pi)
        return operator.laplacian(field, points, components=["u"], d=["x", "y"]) - force

    square, edge = domain.CartesianDomain({"x": [0, 1], "y": [0, 1]}), domain.CartesianDomain({"x": [0, 1], "y": 0})
    conditions = {
        "inside": package.Condition(domain="inside", equation=equation.Equation(residual)),
        "edge": package.Condition(domain="edge", equation=equation.FixedValue(0.0)),
    }
    domains = {"inside": square, "edge": edge}
    posed = {"output_variables": ["u"], "spatial_domain": square, "domains": domains, "conditions": conditions}
    poisson = type("Poisson", (problem.SpatialProblem,), posed)()
    poisson.discretise_domain(20, "random", domains=["inside", "edge"])
    network = solver.PINN(poisson, model.FeedForward(2, 1, layers=[9, 7], func=nn.Tanh))
    package.Trainer(
        network, max_epochs=8, logger=False, enable_checkpointing=False, callbacks=callbacks, **settings
    ).train()
    return network


@pytest.mark.parametrize(
    ("train", "permuted"),
    [
        (chemprop, {"message_passing.W_i": 16, "message_passing.W_o": 16, "predictor.ffn.0.0": 16}),
        (
            pytorch_forecasting,
            {
                **{f"net_blocks.{block}.fc.{layer}": 12 for block in (0, 1) for layer in ("0", "2.1")},
                **{f"net_blocks.{block}.theta_f_fc": 8 for block in (0, 1)},
            },
        ),
        (gluonts, {"model.param_proj.proj.0": 8, "model.rnn.weight_ih_l0": 8}),
        (pina, {"_pina_models.0.model.0": 9, "_pina_models.0.model.2": 7}),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_published_packages_train_as_they_do_and_their_symmetries_are_found(tmp_path, train, permuted):
    left = []
    for name, callbacks in (("plain", []), ("monitored", monitors := all_monitors())):
        folder = tmp_path / name
        seed_everything(0, verbose=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = train([losses := Losses(), *callbacks], {**SETTINGS, "default_root_dir": folder})
        assert not [str(warning.message) for warning in caught if "lightning_symmetry" in warning.filename]
        left.append((losses.values, dict(model.state_dict()), torch.get_rng_state(), random.getstate()))
    plain, monitored = left
    assert len(plain[0]) > 4
    assert_identical(monitored, plain)
    groups = monitors[0].symmetries
    assert {group.name: group.size for group in groups if group.kind == "permutation"} == permuted
    assert all(group.verified for group in groups)
    assert groups.share > 0.99
    history = monitors[0].history
    assert {event.kind for event in history.events} <= {"run", "symmetries", "unheard"}
    for section in ("symmetry/broken_fraction", "spectrum/effective_rank", "representation/effective_rank"):
        assert history.keys(f"{section}/"), section


if __name__ == "__main__":
    watch(Path(sys.argv[1]), monitored=True)
