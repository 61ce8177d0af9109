"""Every function of ours that runs in a fit is made to raise in turn: training ends as it would have, and says why.

By default a fixed sample of them fails; `pytest -m slow` lets all of them.
"""

import logging
from collections import Counter
from contextlib import contextmanager
from zlib import crc32

import pytest
import torch
from lightning.pytorch import Callback

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor
from lightning_symmetry.callbacks.fence import fenced
from lightning_symmetry.callbacks.monitor import Monitor
from lightning_symmetry.callbacks.session import PATIENCE
from tests.callbacks.faults import called, failing, functions, train

WRITES = ("history", "report", "sinks")
"""The parts whose faults show only where a run is written."""

THE_FENCE = {
    "callbacks.monitor.Monitor.state_key": "read by the Trainer when it is made",
    "callbacks.monitor.Monitor.on_fit_start": "raises what the user must know of before training",
    "callbacks.monitor.Monitor._refused": "likewise; it catches all else",
    "callbacks.monitor.Monitor.state_dict": "the fence around `state`",
    "callbacks.hooks._Wakeful.__get__": "looked up by the Trainer at each step",
}
"""What keeps the faults of all others from the training, in a few lines each."""

SAMPLED = 0.15
MOST_WARNINGS = 3 * (PATIENCE + 1)
"""Each monitor tells of two failures; one more warning tells of a checkpoint or a logger."""


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def plain():
    return train(monitored=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trainings without a fault, in memory and written."""
    return {"memory": train(), "written": train(tmp_path_factory.mktemp("whole"))}


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """The functions that run in a fit, in the order of their names."""
    codes = {}

    @contextmanager
    def noting():
        with called() as found:
            yield
        codes.update(found)

    train(tmp_path_factory.mktemp("reached"), within=noting)
    found = functions()
    return {name: found[name] for name in sorted(found) if found[name].__code__ in codes and name not in THE_FENCE}


def same_training(left, right):
    return (
        left.raised is None
        and left.losses == right.losses
        and all(torch.equal(left.state[name], right.state[name]) for name in right.state)
        and torch.equal(left.random, right.random)
    )


def harm(name, function, plain, whole, folder):
    """What is wrong about a training in which a function of ours fails; empty where nothing is."""
    written = name.partition(".")[0] in WRITES
    left = train(folder / name if written else None, within=lambda: failing(function))
    expected = whole["written" if written else "memory"]
    errors = Counter(event.details.get("where") for event in left.history.events if event.kind == "error")
    of_monitors = [message for message in left.said if "Monitor failed at" in message]
    told = [message for message in left.said if "an injected fault" in message]
    all_is_there = set(left.history.keys("")) == set(expected.history.keys("")) and len(
        left.monitors[0].symmetries
    ) == len(expected.monitors[0].symmetries)
    wrong = {
        "the training is another": not same_training(left, plain),
        "a hook is left": left.hooks > 0,
        "a monitor failed more than twice": any(count > PATIENCE for count in errors.values()),
        "more warnings than one can read": len(left.said) > MOST_WARNINGS,
        "a failure that is not counted": bool(of_monitors) and not errors,
        "something is missing, and nothing was said": not told and not all_is_there and name not in HARMLESS,
        "a warning without the name": any(
            "Monitor" not in message and "lightning_symmetry" not in message for message in told
        ),
    }
    return [f"{name}: {what}" for what, is_so in wrong.items() if is_so]


HARMLESS: dict[str, str] = {}
"""Functions whose failure is an answer: what cannot be found out is left out, and named in the table of symmetries."""


def sampled(name):
    return crc32(name.encode()) / 2**32 < SAMPLED


def test_without_a_fault_nothing_is_said_and_nothing_is_changed(plain, whole):
    for left in whole.values():
        assert same_training(left, plain)
        assert left.said == []
        assert set(left.saved) == {monitor.state_key for monitor in left.monitors}
        assert left.history.series("monitor/errors")[1][-1] == 0


def test_a_fault_in_a_sample_of_our_functions_does_not_reach_the_training(reached, plain, whole, tmp_path):
    assert len(reached) > 500
    chosen = {name: function for name, function in reached.items() if sampled(name)}
    assert len({name.partition(".")[0] for name in chosen}) >= 7  # of every part
    assert [wrong for name, function in chosen.items() for wrong in harm(name, function, plain, whole, tmp_path)] == []


@pytest.mark.parametrize("monitor", [Monitor, SymmetryMonitor, SpectrumMonitor, RepresentationMonitor])
def test_every_hook_is_fenced(monitor):
    hooks = [
        name for name in vars(monitor) if name.startswith(("on_", "setup", "teardown")) and hasattr(Callback, name)
    ]
    fence = fenced(lambda *args: None).__code__
    assert [hook for hook in hooks if getattr(monitor, hook).__code__ is not fence] == ["on_fit_start"] * (
        monitor is Monitor  # which raises what the user must know of before training
    )


@pytest.mark.slow
def test_a_fault_in_any_of_our_functions_does_not_reach_the_training(reached, plain, whole, tmp_path):
    assert [wrong for name, function in reached.items() for wrong in harm(name, function, plain, whole, tmp_path)] == []


@pytest.mark.parametrize(
    ("name", "monitor"),
    [
        ("functional.spectrum.spectral_indicators", "SpectrumMonitor"),
        ("functional.order_parameters.permutation_indicators", "SymmetryMonitor"),
        ("measurement.representations.representation_aggregates", "RepresentationMonitor"),
        ("symmetry.tracing.trace", "SymmetryMonitor"),
        ("callbacks.run.loss_in", "SymmetryMonitor"),
    ],
)
def test_a_monitor_that_fails_twice_stands_down_and_the_others_go_on(reached, whole, name, monitor):
    left = train(within=lambda: failing(reached[name]))
    said = [message for message in left.said if message.startswith(monitor)]
    assert 1 <= len(said) <= PATIENCE
    assert all("RuntimeError: an injected fault" in message for message in said)
    assert "stands down" in said[-1]
    errors = [event for event in left.history.events if event.kind == "error" and event.details["where"] == monitor]
    assert len(errors) == len(said)
    if "loss_in" not in name:
        others = [key for key in whole["memory"].history.keys("") if not key.startswith(SECTIONS[monitor])]
        assert set(others) <= set(left.history.keys(""))


SECTIONS = {
    "SymmetryMonitor": ("symmetry/", "complexity/effective_parameters", "transition/"),
    "SpectrumMonitor": ("spectrum/", "complexity/effective_rank_fraction", "transition/"),
    "RepresentationMonitor": ("representation/", "transition/"),
}


@pytest.mark.parametrize(
    "name",
    [
        "functional.spectrum.spectral_indicators",
        "functional.order_parameters.permutation_indicators",
        "functional.feature_spectrum.moments",
        "symmetry.tracing.trace",
        "symmetry.verification.verify",
        "measurement.measure.Measurement.measure",
        "measurement.snapshot.snapshot",
        "callbacks.session.Session.step_begins",
        "callbacks.session.Session.finish",
        "callbacks.monitor.Monitor._begin",
        "callbacks.monitor.Monitor._end",
        "callbacks.representation_monitor.RepresentationMonitor._choose",
    ],
)
def test_failures_are_raised_where_that_is_asked_for(reached, name):
    left = train(on_error="raise", within=lambda: failing(reached[name]))
    assert isinstance(left.raised, RuntimeError)
    assert str(left.raised) == "an injected fault"
    assert left.hooks == 0
