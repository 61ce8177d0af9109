"""Runs that are stopped, by whatever, and go on: what is left of them, and what the checkpoint keeps."""

import copy
import io
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_symmetry import SpectrumMonitor, SymmetryMonitor, find_symmetries, read_history
from lightning_symmetry.callbacks import symmetry_monitor
from lightning_symmetry.callbacks.kept import keep, recall
from lightning_symmetry.history import FILE_NAME
from lightning_symmetry.measurement import indicators, spectra
from lightning_symmetry.measurement.listening import Listener
from lightning_symmetry.report import render_report
from lightning_symmetry.sinks import recorder
from lightning_symmetry.symmetry import find
from tests.callbacks.stopped import (
    CHECKPOINT,
    MERGED,
    STEPS_AN_EPOCH,
    STOPPED,
    WAYS_TO_STOP,
    Seen,
    Twins,
    data,
    fit,
    hooks,
    monitors,
)
from tests.callbacks.trainings import Losses
from tests.fingerprint import differences, fingerprint

ROOT = Path(__file__).parents[2]
RUN = Path("lightning_logs", "version_0", "symmetry", "version_0")
LIVES_ON = [name for name in WAYS_TO_STOP if name != "SIGKILL"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run for each way to stop it, and how its process ended."""
    folder = tmp_path_factory.mktemp("stopped")
    run = subprocess.run(
        [sys.executable, "-m", "tests.callbacks.stopped", str(folder), *WAYS_TO_STOP],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, json.loads(run.stdout.splitlines()[-1])


def told(history):
    """What the events of a history tell."""
    return [(event.step, event.kind, event.details.get("group")) for event in history.events]


@pytest.mark.parametrize("name", LIVES_ON)
def test_no_hook_and_no_thread_is_left_where_the_process_lives_on(stopped, name):
    folder, ended = stopped
    assert ended[name] == 0
    left = json.loads((folder / name / "left.json").read_text())
    raised = {"SIGTERM": "SIGTERMException", "exception": "ArithmeticError"}.get(name, "SystemExit")
    assert left == {"raised": raised, "hooks": 0, "threads": [], "listening": False}


@pytest.mark.parametrize("name", WAYS_TO_STOP)
def test_the_history_is_whole_up_to_the_last_measurement(stopped, name):
    folder, _ = stopped
    text = (folder / name / RUN / FILE_NAME).read_text()
    assert text.endswith("\n")
    for line in text.splitlines():
        json.loads(line)
    history = read_history(folder / name / RUN)
    last = STOPPED - (name == "SIGKILL")  # killed within a step that waits for its loss
    assert history.series("spectrum/effective_rank/head")[0] == list(range(last + 1))
    symmetry, representation = (
        [step for step in history.series(key)[0] if step <= last]  # those before the one that is interrupted go on
        for key in ("symmetry/broken_fraction/hidden", "representation/effective_rank/head")
    )
    assert symmetry == list(range(last + 1))
    assert representation == list(range(1, last + 1))
    assert history.series("loss")[0] == list(range(STOPPED + (name in ("SIGTERM", "SIGINT while measuring"))))


@pytest.mark.parametrize("name", LIVES_ON)
def test_the_report_is_made_of_what_there_is(stopped, name):
    folder, _ = stopped
    page = (folder / name / RUN / "report.html").read_text()
    assert "distinct units of hidden fell from 8 to 5" in page


def test_after_sigkill_the_report_is_made_of_the_history_even_where_its_last_line_is_torn(stopped, tmp_path):
    folder, ended = stopped
    assert ended["SIGKILL"] == -9
    torn = tmp_path / FILE_NAME
    torn.write_bytes((folder / "SIGKILL" / RUN / FILE_NAME).read_bytes()[:-20])
    history = read_history(tmp_path)
    assert history.series("spectrum/effective_rank/head")[0] == list(range(STOPPED))
    assert history.series("representation/effective_rank/head")[0] == list(range(1, STOPPED - 1))
    page = render_report(history, tmp_path / "report.html").read_text()
    assert "distinct units of hidden fell from 8 to 5" in page


@pytest.fixture(scope="module")
def resumed(stopped, tmp_path_factory):
    """The history of a run that was killed and resumed from a checkpoint some steps earlier, in the same folder."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(stopped[0] / "SIGKILL", folder)
    callbacks, seen = monitors(), Seen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symmetry_monitor, "find_symmetries", lambda *args, **kwargs: pytest.fail("searched again"))
        fit(folder, [seen, *callbacks], ckpt_path=folder / "checkpoints" / f"step={CHECKPOINT}.ckpt")
    return folder, callbacks, seen


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    callbacks = monitors()
    fit(folder, callbacks)
    return folder, callbacks


def test_a_resumed_run_measures_what_it_would_have_measured_had_nothing_happened(resumed, uninterrupted):
    history, expected = read_history(resumed[0] / RUN), uninterrupted[1][0].history
    assert resumed[2].steps == list(range(CHECKPOINT, 6 * STEPS_AN_EPOCH))
    assert {*history.keys("")} == {*expected.keys("")}
    for key in expected.keys(""):
        if key != "monitor/overhead":
            assert history.series(key) == expected.series(key), key


def test_no_row_and_no_event_is_there_twice(resumed, uninterrupted):
    history, expected = read_history(resumed[0] / RUN), uninterrupted[1][0].history
    for section in ("symmetry/", "spectrum/", "representation/"):
        steps = [row.step for row in history.measurements if any(key.startswith(section) for key in row.values)]
        assert steps == sorted(set(steps))
    assert (MERGED + 2, "restoration", "hidden") in told(expected)
    assert [event for event in told(history) if event[1] != "run"] == [
        event for event in told(expected) if event[1] != "run"
    ]
    assert [event.step for event in history.events if event.kind == "run"] == [0, CHECKPOINT]
    assert told(history) == told(resumed[1][0].history)


def test_the_resumed_monitor_knows_the_symmetries(resumed, uninterrupted):
    assert resumed[1][0].symmetries == uninterrupted[1][0].symmetries


def checkpoint(folder):
    return torch.load(folder / "checkpoints" / f"step={CHECKPOINT}.ckpt", weights_only=True)


def test_a_checkpoint_holds_plain_values(uninterrupted):
    states = {
        key: state for key, state in checkpoint(uninterrupted[0])["callbacks"].items() if "Monitor" in key.split("{")[0]
    }
    assert len(states) == 3
    json.dumps(states, allow_nan=False)


def refit(uninterrupted, folder, change, epochs=5):
    """Go on from a changed checkpoint, and return the monitors with the warnings of this package."""
    saved = checkpoint(uninterrupted[0])
    for key, state in list(saved["callbacks"].items()):
        if "Monitor" in key.split("{")[0]:
            saved["callbacks"][key] = change(state)
            if saved["callbacks"][key] is None:
                del saved["callbacks"][key]
    torch.save(saved, folder / "changed.ckpt")
    callbacks = monitors(on_error="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, trainer = fit(folder, callbacks, ckpt_path=folder / "changed.ckpt", epochs=epochs)
    assert trainer.global_step == epochs * STEPS_AN_EPOCH
    ours = [str(warning.message) for warning in caught if "lightning_symmetry" in warning.filename]
    return callbacks, ours


def broken(state):
    state["transitions"]["detectors"] = dict.fromkeys(state["transitions"]["detectors"], "?")
    if "symmetries" in state:
        state["symmetries"]["found"] = {"groups": "?"}
    return state


GARBAGE = {
    "none of ours": lambda state: None,
    "another version's": lambda state: {"version": 0, "series": [1, 2]},
    "text": lambda state: "garbage",
    "a list": lambda state: [1, 2, 3],
    "text for steps": lambda state: {**state, "transitions": {**state["transitions"], "step": "?"}},
    "text for numbers": broken,
    "numbers for all": lambda state: dict.fromkeys(state, 7),
    "nothing for all": dict.fromkeys,
}


@pytest.mark.parametrize("what", GARBAGE)
def test_a_checkpoint_without_a_state_that_can_be_read_is_gone_on_from_with_one_warning(uninterrupted, tmp_path, what):
    callbacks, said = refit(uninterrupted, tmp_path, GARBAGE[what])
    for monitor in callbacks:
        assert sum(type(monitor).__name__ in message for message in said) == 1, said
    assert all("begins anew" in message for message in said)
    history = callbacks[0].history
    assert history.series("symmetry/broken_fraction/hidden")[0] == list(range(CHECKPOINT, 5 * STEPS_AN_EPOCH + 1))
    assert history.series("monitor/errors")[1][-1] == 0
    assert len(callbacks[0].symmetries) > 0


@pytest.mark.parametrize("kind", [SymmetryMonitor, SpectrumMonitor])
def test_what_watches_an_aggregate_goes_on_where_the_next_measurement_is_far(tmp_path, kind):
    """EarlyStopping and ModelCheckpoint end a training that tells them nothing."""
    (key, *_) = kind.aggregates

    def run(epochs, **settings):
        stop = EarlyStopping(key, patience=100, strict=True)
        keep = ModelCheckpoint(tmp_path / "kept", "{step}", monitor=key, save_top_k=-1)
        _, trainer = fit(tmp_path, [kind(every_n_train_steps=1000), stop, keep], epochs=epochs, **settings)
        return float(trainer.callback_metrics[key]), trainer.global_step

    _, steps = run(1)
    (saved,) = (tmp_path / "kept").glob("*.ckpt")
    told, last = run(3, ckpt_path=saved)
    assert math.isfinite(told) and last == 3 * steps


def test_a_checkpoint_that_was_read_for_validation_is_not_taken_up_by_a_fit_from_the_start(uninterrupted, tmp_path):
    from lightning.pytorch import Trainer

    class Validated(Twins):
        def validation_step(self, batch, batch_idx):
            pass

    callbacks = monitors()
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=callbacks, num_sanity_val_steps=0, **settings)
    trainer.validate(Validated(), data(), ckpt_path=uninterrupted[0] / "checkpoints" / f"step={CHECKPOINT}.ckpt")
    trainer.fit(Validated(), data())
    assert set(callbacks[0].history.series("transition/restoration")[1]) == {0.0}
    assert callbacks[0]._transitions.state()["step"] == STEPS_AN_EPOCH


def test_what_is_kept_is_of_one_model_and_one_search():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    found = find_symmetries(model, torch.randn(16, 4))
    kept = json.loads(json.dumps(keep(found, model, None, 1000)))
    assert recall(kept, copy.deepcopy(model), None, 1000) == found
    others = {
        "another width": nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 2)),
        "another class": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        "another name": nn.Sequential(nn.Identity(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)),
    }
    for why, other in others.items():
        assert recall(kept, other, None, 1000) is None, why
    assert recall(kept, model, ["permutation"], 1000) is None
    assert recall(kept, model, None, 10) is None


def test_the_symmetries_of_gpt2_small_take_little_room_in_a_checkpoint():
    """Of 124 million parameters; on the meta device the groups are found without any of them, here by two blocks."""
    sizes = []
    for n_layer in (1, 2):
        torch.manual_seed(0)
        config = GPT2Config(n_layer=n_layer, n_embd=24, n_head=3, vocab_size=50, n_positions=16)
        model = GPT2LMHeadModel(config)
        ids = torch.randint(0, 50, (2, 8))
        found = find_symmetries(model, {"input_ids": ids, "labels": ids}, verify_up_to=0)
        file = io.BytesIO()
        torch.save(keep(found, model, None, 0), file)
        sizes.append(len(file.getvalue()))
    assert sizes[0] + 11 * (sizes[1] - sizes[0]) < 250_000


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory):
    """The losses of the training without monitors."""
    fit(tmp_path_factory.mktemp("plain"), [losses := Losses()])
    return losses.values


RUNS_OUT = {
    "spectra": (spectra, "spectral_indicators", "SpectrumMonitor", ["goes on", "stands down"]),
    "units": (indicators, "permutation_indicators", "SymmetryMonitor", ["goes on", "stands down"]),
    "gauge": (indicators, "find_gauge", "SymmetryMonitor", ["goes on", "stands down"]),
    "search": (find, "trace", "SymmetryMonitor", ["stands down"]),
    "a layer": (Listener, "_add", "RepresentationMonitor", ["goes on"]),  # and those that failed are heard no more
    "report": (recorder, "render_report", "lightning_symmetry could not write", ["training goes on"]),
}
"""Where memory runs out, which monitor says so, and what it says each time; what is not recorded is no error of one."""


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("where", RUNS_OUT)
def test_out_of_memory_in_our_own_code_costs_one_monitor_and_nothing_else(
    tmp_path, monkeypatch, plain_losses, error, where
):
    def runs_out(*args, **kwargs):
        raise error("tried to allocate 2.00 GiB")

    module, function, name, fates = RUNS_OUT[where]
    monkeypatch.setattr(module, function, runs_out)
    before = set(threading.enumerate())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, trainer = fit(tmp_path, [losses := Losses(), *monitors(on_error="warn")])
    assert trainer.global_step == 6 * STEPS_AN_EPOCH
    assert losses.values == plain_losses
    said = [str(warning.message) for warning in caught if "/lightning_symmetry/" in warning.filename]
    assert len(said) == len(fates)
    for message, fate in zip(said, fates, strict=True):
        assert message.startswith(name)
        assert fate in message
        assert f"{error.__name__}: tried to allocate 2.00 GiB" in message
    history = read_history(tmp_path / RUN)
    assert history.series("monitor/errors")[1][-1] == (len(fates) if "Monitor" in name else 0)
    for section in {"symmetry", "spectrum", "representation"} - {name.removesuffix("Monitor").lower()}:
        key = next(key for key in history.keys(f"{section}/") if key.count("/") == 2)
        assert history.series(key)[0][-1] == 6 * STEPS_AN_EPOCH
    assert (tmp_path / RUN / "report.html").exists() == (where != "report")
    assert hooks(model) == 0
    assert set(threading.enumerate()) <= before


class Interrupted(Twins):
    """Ctrl-C comes in the second run of the step, which the search makes."""

    calls = 0

    def training_step(self, batch, batch_idx):
        Interrupted.calls += 1
        if Interrupted.calls == self.at:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(self.head(torch.tanh(self.hidden(batch[0]))), batch[1])


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interrupt_during_the_search_passes_through_and_leaves_the_model_as_it_was(call):
    Interrupted.calls = 0
    model, batch = Interrupted(at=call), next(iter(data()))
    before = fingerprint(model, batch)
    with pytest.raises(KeyboardInterrupt):
        find_symmetries(model, batch)
    after = fingerprint(model, batch)
    assert [change for change in differences(before, after) if "class" not in change] == []


def test_an_interrupt_during_the_search_ends_the_training(tmp_path):
    Interrupted.calls = 0
    model = Interrupted(at=2)
    before = set(threading.enumerate())
    with pytest.raises(SystemExit):
        fit(tmp_path, [SymmetryMonitor(), SpectrumMonitor()], model)
    assert hooks(model) == 0
    assert set(threading.enumerate()) <= before
