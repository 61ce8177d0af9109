"""RepresentationMonitor in real trainings: its numbers against those by hand, and what it leaves behind: nothing."""

import gc
import math
import re
import warnings
import weakref

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_symmetry import RepresentationMonitor, functional
from lightning_symmetry.functional.similarity import hsic, linear_cka_of
from tests.callbacks.trainings import EVERY, Net, data, train

STEPS = [3, 6, 9, 12]


class Remembering(Net):
    """Keeps what its layers return and read, the gradients of that, and the labels, of every step."""

    def __init__(self):
        super().__init__(width=6)
        self.kept = []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        convolved = self.conv(images)
        hidden = self.hidden(F.relu(self.norm(convolved)).flatten(1))
        active = torch.tanh(hidden)
        logits = self.head(active)
        hidden.retain_grad()
        weight = self.head.weight.detach().clone()
        self.kept.append(
            {
                "conv": convolved.detach(),
                "hidden": hidden,
                "active": active.detach(),
                "logits": logits.detach(),
                "labels": labels,
                "weights": (self.hidden.weight.detach().clone(), weight),
            }
        )
        return F.cross_entropy(logits, labels)


def monitored(folder, model=None, loader=None, **settings):
    seed_everything(0, verbose=False)
    monitor = RepresentationMonitor(**{"every_n_train_steps": EVERY, "on_error": "raise", **settings})
    train(folder, [monitor], model)
    return monitor.history


def value_at(history, key, step):
    return dict(zip(*history.series(f"representation/{key}"), strict=True))[step]


def test_its_numbers_are_those_of_all_batches_of_the_window_together(tmp_path):
    model = Remembering()
    indicators = ("effective_rank", "isotropy", "dormant_fraction", "canonical_alignment", "linear_cka")
    history = monitored(tmp_path, model, indicators=(*indicators, "neural_collapse"), dormant_threshold=0.9)
    for step in STEPS:
        window = model.kept[step - EVERY : step]
        joined = {key: torch.cat([one[key] for one in window]).detach() for key in window[0] if key != "weights"}
        gradients = torch.cat([one["hidden"].grad for one in window])
        after = model.kept[step]["weights"] if step < 12 else (model.hidden.weight, model.head.weight)
        pooled = joined["conv"].mean((2, 3))
        alignment = functional.canonical_alignment(joined["hidden"], gradients, after[0])
        collapse = (joined["active"], joined["labels"])
        sums = sum(hsic([one["conv"].mean((2, 3)), one["hidden"].detach()]) for one in window)
        expected = {
            "effective_rank/conv": functional.effective_rank(pooled),
            "effective_rank/hidden": functional.effective_rank(joined["hidden"]),
            "isotropy/hidden": functional.isotropy(joined["hidden"]),
            "dormant_fraction/hidden": functional.dormant_fraction(joined["hidden"], 0.9),
            **{f"{name}_alignment/hidden": value for name, value in alignment.items()},
            "linear_cka/conv/hidden": linear_cka_of(sums)[0, 1],
            "nc1/head": functional.nc1(*collapse),
            "nc2_equinorm/head": functional.nc2_equinorm(*collapse),
            "nc2_equiangularity/head": functional.nc2_equiangularity(*collapse),
            "nc3/head": functional.nc3(*collapse, after[1]),
            "nc4/head": functional.nc4(*collapse, joined["logits"].argmax(-1)),
        }
        for key, value in expected.items():
            assert value_at(history, key, step) == pytest.approx(value.item(), rel=1e-5), (step, key)
        fractions = [
            value_at(history, f"effective_rank/{layer}", step) / size
            for layer, size in (("conv", 6), ("hidden", 6), ("head", 3))
        ]
        assert value_at(history, "effective_rank_fraction", step) == pytest.approx(sum(fractions) / 3)


def test_every_number_is_finite_and_no_batch_is_listened_to_that_is_too_early(tmp_path):
    model = Remembering()
    history = monitored(tmp_path, model, every_n_train_steps=4, window=2, max_samples=1000)
    assert history.series("representation/effective_rank/hidden")[0] == [4, 8, 12]
    for row in history.measurements:
        assert all(map(math.isfinite, row.values.values()))
    hidden = torch.cat([one["hidden"] for one in model.kept[6:8]])
    assert value_at(history, "effective_rank/hidden", 8) == pytest.approx(functional.effective_rank(hidden).item())


def test_convolutional_features_can_be_taken_position_by_position_and_are_sampled(tmp_path):
    model = Remembering()
    history = monitored(tmp_path / "all", model, conv_features="by_position", indicators=["effective_rank"])
    rows = torch.cat([one["conv"].movedim(1, -1).reshape(-1, 6) for one in model.kept[:3]])
    exact = functional.effective_rank(rows).item()
    assert value_at(history, "effective_rank/conv", 3) == pytest.approx(exact, rel=1e-6)
    history = monitored(tmp_path / "some", conv_features="by_position", max_samples=60, indicators=["effective_rank"])
    sampled = value_at(history, "effective_rank/conv", 3)
    assert sampled != exact
    assert sampled == pytest.approx(exact, rel=0.1)


def hooks_of(model):
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")
    return [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind)]


class Lives:
    """Lives as long as the graph that it is put in."""


class Watching(Net):
    """Counts the hooks on its modules in each step, training or not."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.counts, self.fail_at = {"train": [], "validate": []}, fail_at

    def training_step(self, batch, batch_idx):
        self.counts["train"].append(len(hooks_of(self)))
        loss = super().training_step(batch, batch_idx)
        loss.grad_fn.metadata["lives"] = lives = Lives()
        self.graph = weakref.ref(lives)
        if self.trainer.global_step == self.fail_at:
            raise KeyError("the user's own")
        return loss

    def validation_step(self, batch, batch_idx):
        self.counts["validate"].append(len(hooks_of(self)))

    def val_dataloader(self):
        return data()


def test_hooks_are_there_for_the_steps_of_a_window_alone(tmp_path):
    model = Watching()
    monitored(tmp_path, model, every_n_train_steps=4, window=1)
    looks_for_readers = [0, 0, 0, 4 + 3]
    assert model.counts["train"] == looks_for_readers + [0, 0, 0, 4] * 2
    assert set(model.counts["validate"]) == {0}
    assert not hooks_of(model)
    assert not any(tensor._backward_hooks for tensor in model.parameters())


def test_no_hook_and_no_graph_is_left_after_fit_an_exception_and_validation(tmp_path):
    model, monitor = Watching(fail_at=4), RepresentationMonitor(every_n_train_steps=EVERY, on_error="raise")
    with pytest.raises(KeyError, match="the user's own"):
        train(tmp_path, [monitor], model)
    assert model.counts["train"][-1] > 0
    assert not hooks_of(model)
    model.fail_at = None
    _, trainer = train(tmp_path, [monitor], model)
    assert not hooks_of(model)
    gc.collect()
    assert model.graph() is None
    trainer.validate(model, verbose=False)
    assert not hooks_of(model)
    assert monitor._listener is None


class Tokens(LightningModule):
    """Two transformer blocks on padded sequences."""

    def __init__(self, recompute=False):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2)])
        self.head = nn.Linear(8, 11)
        self.recompute, self.kept, self.calls = recompute, [], 0

    def training_step(self, batch, batch_idx):
        mask = batch["attention_mask"]
        features = self.embed(batch["input_ids"])
        for block in self.blocks:
            padding = mask == 0
            if self.recompute:
                features = checkpoint(self.counted, block, features, padding, use_reentrant=False)
            else:
                features = block(features, src_key_padding_mask=padding)
        self.kept.append((features.detach(), mask))
        return F.cross_entropy(self.head(features)[mask == 1], batch["input_ids"][mask == 1])

    def counted(self, block, features, padding):
        self.calls += 1
        return block(features, src_key_padding_mask=padding)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        samples = [
            {
                "input_ids": torch.randint(0, 11, (7,), generator=generator),
                "attention_mask": (torch.arange(7) < torch.randint(2, 8, (1,), generator=generator)).long(),
            }
            for _ in range(24)
        ]
        return DataLoader(samples, 4)


def fit_tokens(folder, model, **settings):
    seed_everything(0, verbose=False)
    monitor = RepresentationMonitor(**{"every_n_train_steps": EVERY, "on_error": "raise", **settings})
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[monitor],
    )
    trainer.fit(model)
    return monitor.history


def test_tokens_are_samples_and_padding_is_left_out(tmp_path):
    model = Tokens()
    history = fit_tokens(tmp_path, model)
    assert history.keys("representation/effective_rank/") == [
        "representation/effective_rank/blocks_0",
        "representation/effective_rank/blocks_1",
    ]
    window = model.kept[:3]
    rows = torch.cat([features[mask == 1] for features, mask in window])
    residual = functional.token_rank_residual(*(torch.cat(parts) for parts in zip(*window, strict=True)))
    assert value_at(history, "effective_rank/blocks_1", 3) == pytest.approx(functional.effective_rank(rows).item())
    assert value_at(history, "token_rank_residual/blocks_1", 3) == pytest.approx(residual.item())
    assert not history.keys("representation/nc1")


class Translating(LightningModule):
    """An encoder and a decoder of as many tokens, each with its own padding."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Embedding(11, 8)), nn.Sequential(nn.Embedding(11, 8))
        self.head, self.kept = nn.Linear(8, 11), []

    def training_step(self, batch, batch_idx):
        source, target = self.encoder(batch["input_ids"]), self.decoder(batch["labels"].clamp_min(0))
        self.kept.append({"encoder": source[batch["attention_mask"] == 1], "decoder": target[batch["labels"] >= 0]})
        return F.cross_entropy(self.head(source + target).flatten(0, 1), batch["labels"].flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        samples = Tokens().train_dataloader().dataset
        lengths = torch.randint(2, 8, (len(samples), 1), generator=torch.Generator().manual_seed(1))
        labels = [torch.where(torch.arange(7) < length, 3, -100) for length in lengths]
        targets = [torch.where(one == 3, torch.arange(7), one) for one in labels]
        return DataLoader([{**sample, "labels": one} for sample, one in zip(samples, targets, strict=True)], 4)


def test_padding_of_an_encoder_and_of_its_decoder_are_told_apart(tmp_path):
    model = Translating()
    history = fit_tokens(tmp_path, model, include="coder.0", indicators=["effective_rank"])
    for part in ("encoder", "decoder"):
        rows = torch.cat([one[part] for one in model.kept[:3]])
        expected = pytest.approx(functional.effective_rank(rows).item())
        assert value_at(history, f"effective_rank/{part}_0", 3) == expected, part


def test_the_mask_of_padding_can_be_said_to_be_elsewhere(tmp_path):
    class Inverted(Tokens):
        def training_step(self, batch, batch_idx):
            return super().training_step({**batch, "attention_mask": 1 - batch["padding_mask"]}, batch_idx)

        def train_dataloader(self):
            return DataLoader(
                [
                    {"input_ids": one["input_ids"], "padding_mask": 1 - one["attention_mask"]}
                    for one in super().train_dataloader().dataset
                ],
                4,
            )

    model = Inverted()
    history = fit_tokens(tmp_path, model, mask="padding_mask", indicators=["effective_rank"])
    rows = torch.cat([features[mask == 1] for features, mask in model.kept[:3]])
    assert value_at(history, "effective_rank/blocks_1", 3) == pytest.approx(functional.effective_rank(rows).item())
    with pytest.raises(
        ValueError, match="mask='msk' finds nothing in the batch, which is a dict with the keys input_ids"
    ):
        fit_tokens(tmp_path, Inverted(), mask="msk")


def test_without_the_mask_that_was_asked_for_nothing_is_heard_and_training_goes_on(tmp_path):
    model = Tokens()
    with pytest.warns(UserWarning, match="RepresentationMonitor failed.*mask='msk' finds nothing"):
        history = fit_tokens(tmp_path, model, mask="msk", on_error="warn")
    assert len(model.kept) == 6
    assert not history.keys("representation/effective_rank/")


def test_a_mask_that_fits_no_tokens_is_told_of(tmp_path):
    with pytest.warns(UserWarning, match=r"cannot leave out the padding of blocks.0: mask=.*\(4, 6\), not \(4, 7\)"):
        history = fit_tokens(tmp_path, Tokens(), mask=lambda batch: batch["attention_mask"][:, 1:])
    (event,) = [event for event in history.events if event.kind == "unheard"]
    assert event.details == {"padding_not_left_out": ["blocks.0", "blocks.1"]}


def test_a_forward_that_is_run_again_in_backward_is_heard_once(tmp_path):
    plain, recomputed = Tokens(), Tokens(recompute=True)
    recomputed.load_state_dict(plain.state_dict())
    left = [fit_tokens(tmp_path / str(k), model).measurements for k, model in enumerate((plain, recomputed))]
    assert recomputed.calls == 2 * 2 * len(recomputed.kept)
    for one, other in zip(*left, strict=True):
        for key, value in one.values.items():
            if key.startswith("representation/"):
                assert other.values[key] == pytest.approx(value, rel=1e-9), key


def test_a_forward_within_a_transform_of_torch_func_is_not_heard(tmp_path):
    """As in meta-learning: what a layer gives there must not be kept."""

    class Adapting(Net):
        def __init__(self):
            super().__init__()
            self.norm = nn.Identity()  # running statistics cannot be changed within a transform

        def training_step(self, batch, batch_idx):
            def loss_by(weight):
                return F.cross_entropy(functional_call(self, {"head.weight": weight}, (batch[0],)), batch[1])

            adapted = self.head.weight - 0.1 * torch.func.grad(loss_by)(self.head.weight)
            return super().training_step(batch, batch_idx) + loss_by(adapted)

    history = monitored(tmp_path, Adapting())
    assert history.series("representation/effective_rank/hidden")[0] == STEPS
    assert history.series("monitor/errors")[1][-1] == 0


def test_layers_are_chosen_by_name_or_type(tmp_path):
    def layers(**settings):
        history = monitored(tmp_path, indicators=["effective_rank"], **settings)
        return [key.rpartition("/")[2] for key in history.keys("representation/effective_rank/")]

    assert layers() == ["conv", "hidden", "head"]
    assert layers(include="norm|head") == ["norm", "head"]
    assert layers(exclude="conv") == ["hidden", "head"]
    assert layers(layer_types=["Linear"], exclude="head") == ["hidden"]


def test_labels_that_are_not_there_are_told_of_once_and_the_rest_is_measured(tmp_path):
    with pytest.warns(
        UserWarning, match=r"RepresentationMonitor failed.*labels='y' finds nothing in the batch"
    ) as said:
        history = monitored(tmp_path, labels="y", on_error="warn")
    assert sum("labels='y'" in str(warning.message) for warning in said) == 1
    assert history.series("representation/effective_rank/hidden")[0] == STEPS
    assert not history.keys("representation/nc1")
    with pytest.raises(ValueError, match="labels='y' finds nothing in the batch, which is a list of 2"):
        monitored(tmp_path, labels="y")


def test_labels_can_be_given_by_a_function(tmp_path):
    history = monitored(tmp_path, labels=lambda batch: batch[1].flip(0).flip(0))
    assert history.series("representation/nc1/head")[0] == STEPS
    assert "lambda" in history.events[0].details["config"]["RepresentationMonitor"]["labels"]


def test_the_classifier_can_be_named(tmp_path):
    model, read = Remembering(), []
    model.hidden.register_forward_pre_hook(lambda module, args: read.append(args[0].detach()))
    history = monitored(tmp_path, model, classifier="hidden")
    assert history.keys("representation/nc1/") == ["representation/nc1/hidden"]
    labels = torch.cat([one["labels"] for one in model.kept[:3]])
    assert value_at(history, "nc1/hidden", 3) == pytest.approx(functional.nc1(torch.cat(read[:3]), labels).item())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"labels": lambda batch: batch[1][:, None]},
            r"labels of shape \(8, 1\) are not one for each of the \(8,\) .* head",
        ),
        ({"labels": 1, "width": 5000}, "head reads 5,000 features, more than 4,096"),
        ({"classifier": "unused"}, "unused was not called in a step with labels"),
    ],
    ids=["labels of another shape", "too many features", "never called"],
)
def test_why_there_is_no_neural_collapse_is_noted_and_said_once_where_it_was_asked_for(tmp_path, settings, why):
    model = Net(settings.pop("width", 8))
    model.unused = nn.Linear(3, 3)
    settings = {"classifier": "head", "indicators": ["effective_rank", "neural_collapse"], **settings}
    with pytest.warns(UserWarning, match=f"RepresentationMonitor measures no neural collapse: {why}.*; give") as said:
        history = monitored(tmp_path, model, **settings)
    assert sum("no neural collapse" in str(warning.message) for warning in said) == 1
    assert not history.keys("representation/nc1")
    (event,) = [event for event in history.events if event.kind == "unheard"]
    (noted,) = event.details["without_neural_collapse"]
    assert re.match(why, noted)


def test_batches_without_labels_are_no_news(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*neural collapse")
        history = fit_tokens(tmp_path, Tokens(), indicators=["effective_rank", "neural_collapse"])
    assert "representation/effective_rank/blocks_0" in history
    assert not any("without_neural_collapse" in event.details for event in history.events)


def test_a_hook_that_fails_is_told_of_once_and_training_goes_on(tmp_path, monkeypatch):
    from lightning_symmetry.measurement import listening

    def fails(rows, mask=None):
        if rows.shape[1] == 8:
            raise FloatingPointError("no")
        return functional.moments(rows, mask)

    monkeypatch.setattr(listening, "moments", fails)
    with pytest.warns(UserWarning, match="RepresentationMonitor failed.*FloatingPointError: no") as said:
        history = monitored(tmp_path, on_error="warn")
    assert sum("FloatingPointError" in str(warning.message) for warning in said) == 1
    assert history.series("representation/effective_rank/head")[0] == STEPS
    assert history.events[-1].details == {"without_features_in_a_training_step": ["hidden"]}


def test_a_module_compiled_as_a_whole_is_told_of_once_and_left_alone(tmp_path):
    class Silent(Net):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

    model = torch.compile(Silent(), backend="eager")
    with pytest.warns(UserWarning, match=r"cannot hear layers .*\(conv, hidden, head\), and stands down") as said:
        history = monitored(tmp_path, model)
    assert sum("RepresentationMonitor" in str(warning.message) for warning in said) == 1
    assert not history.measurements
    torch.compiler.reset()


def test_layers_inside_of_a_compiled_one_are_told_of_and_it_is_heard_from_outside(tmp_path):
    class Compiled(Net):
        def __init__(self):
            super().__init__()
            self.hidden = torch.compile(nn.Sequential(nn.Linear(96, 8), nn.Linear(8, 8)), backend="eager")

    history = monitored(tmp_path, Compiled(), indicators=["effective_rank"])
    assert "representation/effective_rank/hidden" in history
    with pytest.warns(UserWarning, match=r"cannot hear layers that run inside of what .* \(hidden._orig_mod.0"):
        history = monitored(tmp_path, Compiled(), include=r"0$|head", indicators=["effective_rank"])
    assert history.keys("representation/effective_rank/") == ["representation/effective_rank/head"]
    torch.compiler.reset()


def test_activations_that_are_not_finite_give_nan_and_one_event(tmp_path):
    class Overflowing(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.trainer.global_step >= 4:
                self.hidden(torch.full((2, 96), torch.inf))
            return loss

    history = monitored(tmp_path, Overflowing(), indicators=["effective_rank"])
    assert [math.isnan(value) for value in history.series("representation/effective_rank/hidden")[1]] == [
        False,
        True,
        True,
        True,
    ]
    (event,) = [event for event in history.events if event.kind == "nonfinite"]
    assert event.step == 6 and event.details["parameter"].startswith("hidden/")


def test_short_trainings_are_measured_at_their_end(tmp_path):
    history = monitored(tmp_path, every_n_train_steps=None, max_overhead=1e-6)
    steps = history.series("representation/effective_rank/hidden")[0]
    assert steps[-1] == 12
    history = monitored(tmp_path, every_n_train_steps=100)
    assert history.series("representation/effective_rank/hidden")[0] == [12]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"indicators": ["rank"]}, "'rank' is no indicator of a representation; known are effective_rank, .*"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"max_samples": 0}, "max_samples=0 must be at least 1"),
        ({"conv_features": "mean"}, """conv_features='mean' must be "pooled" or "by_position\""""),
        ({"mask": 0.5}, "mask=0.5 must be a key or an index of the batch, or a function from the batch to its mask"),
        ({"labels": []}, r"labels=\[\] must be a key or an index of the batch, .*; or None, to look where they"),
        ({"classifier": 3}, "classifier=3 must be the name of a linear layer, such as 'head', or None"),
        ({"dormant_threshold": -1}, "dormant_threshold=-1 must be at least 0"),
        ({"max_overhead": 0}, "max_overhead=0 .* above 0 and below 1"),
    ],
    ids=str,
)
def test_arguments_out_of_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RepresentationMonitor(**settings)


def test_names_and_types_that_are_not_there_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="include='hiden' is found in the name of no module; the nearest are hidden"):
        monitored(tmp_path, include="hiden")
    with pytest.raises(ValueError, match="the model has no Conv9d; it has BatchNorm2d, Conv2d, Linear"):
        monitored(tmp_path, layer_types=["Conv9d"])
    with pytest.raises(ValueError, match=r"classifier='hed' is the name of no linear layer .*; the nearest are head"):
        monitored(tmp_path, classifier="hed")


def test_it_can_be_built_from_yaml(tmp_path):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    (tmp_path / "config.yaml").write_text(
        "trainer:\n  logger: false\n  callbacks:\n    - class_path: lightning_symmetry.RepresentationMonitor\n"
        "      init_args: {labels: 1, layer_types: [Linear], conv_features: by_position, window: 4, mask: kept,\n"
        "                  classifier: head}\n"
    )
    cli = LightningCLI(Net, run=False, args=["--config", str(tmp_path / "config.yaml")], save_config_callback=None)
    (monitor,) = [one for one in cli.trainer.callbacks if isinstance(one, RepresentationMonitor)]
    assert (monitor.labels, monitor.layer_types, monitor.window) == (1, ("Linear",), 4)
    assert (monitor.mask, monitor.classifier) == ("kept", "head")
