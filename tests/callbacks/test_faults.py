"""Every function of ours that runs in a fit is made to raise in turn: training ends as it would have, and says why."""

import logging
from collections import Counter
from contextlib import contextmanager

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
    "callbacks.monitor.Monitor.load_state_dict": "keeps what the Trainer gives, and no more",
    "measurement.beside.Beside._before_a_step": "the fence within a step by torch's own optimizer",
    "callbacks.hooks._Wakeful.__get__": "looked up by the Trainer at each step",
    "callbacks.hooks._Alarm.silences": "likewise",
}
"""What keeps the faults of all others from the training, in a few lines each."""

WAYS = {
    "a fit": {},
    "one that goes on, with a validation": {"begun": True},
    "one with pieces in a thread": {"beside": True, "every": 3},
}
"""How monitors are used. What has been let fail in one way fails again in another where that treats it differently."""

TREATED_DIFFERENTLY = ("callbacks", "measurement")
MOST_WARNINGS = 3 * (PATIENCE + 1)
"""Each monitor tells of two failures; one more warning tells of a checkpoint or a logger."""


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """Trains in one of the `WAYS`: with a name written in a folder of that name, and else in memory."""
    begun = tmp_path_factory.mktemp("begun") / "run"
    train(begun)
    folder = tmp_path_factory.mktemp("faults")

    def fit(way, name=None, **settings):
        settings = {**WAYS[way], **settings}
        if "begun" in settings:
            settings["begun"] = begun
        return train(None if name is None else folder / way / name, **settings)

    return fit


@pytest.fixture(scope="module")
def plain(fit):
    """The trainings without monitors."""
    return {way: fit(way, monitored=False) for way in WAYS}


@pytest.fixture(scope="module")
def whole(fit):
    """Those without a fault, by their way and whether they are written."""
    return {(way, written): fit(way, "whole" if written else None) for way in WAYS for written in (False, True)}


@pytest.fixture(scope="module")
def reached(fit):
    """The functions that run in each way, in the order of their names."""
    found = functions()

    def of(way):
        codes = {}

        @contextmanager
        def noting():
            with called() as those:
                yield
            codes.update(those)

        fit(way, "reached", within=noting)
        return {name: found[name] for name in sorted(found) if found[name].__code__ in codes and name not in THE_FENCE}

    return {way: of(way) for way in WAYS}


def same_training(left, right):
    return (
        left.raised is None
        and left.losses == right.losses
        and all(torch.equal(left.state[name], right.state[name]) for name in right.state)
        and torch.equal(left.random, right.random)
    )


def counted(history):
    """What the key says at last, and how many errors were told of until then."""
    if "monitor/errors" not in history:
        return 0, 0
    (*_, errors), last = history.series("monitor/errors")[1], history.measurements[-1]
    return errors, sum(event.kind == "error" and event.time <= last.time for event in history.events)


def harm(name, function, way, fit, plain, whole):
    """What is wrong about a training in which a function of ours fails; empty where nothing is."""
    written = name.partition(".")[0] in WRITES
    left = fit(way, name if written else None, within=lambda: failing(function))
    expected = whole[way, written]
    errors = Counter(event.details.get("where") for event in left.history.events if event.kind == "error")
    of_monitors = [message for message in left.said if "Monitor failed at" in message]
    told = [message for message in left.said if "an injected fault" in message]
    all_is_there = set(left.history.keys("")) == set(expected.history.keys("")) and len(
        left.monitors[0].symmetries
    ) == len(expected.monitors[0].symmetries)
    wrong = {
        "the training is another": not same_training(left, plain[way]),
        "a hook is left": left.hooks > 0,
        "a monitor failed more than twice": any(count > PATIENCE for count in errors.values()),
        "more warnings than one can read": len(left.said) > MOST_WARNINGS,
        "a failure that is not counted": len(of_monitors) != errors.total(),
        "monitor/errors is wrong": len(set(counted(left.history))) > 1 and name not in UNTOLD,
        "something is missing, and nothing was said": not told and not all_is_there and name not in HARMLESS,
        "a warning without the name": any(
            "Monitor" not in message and "lightning_symmetry" not in message for message in told
        ),
    }
    return [f"{name}: {what}" for what, is_so in wrong.items() if is_so]


UNTOLD = {"sinks.recorder.Recorder.event": "it is what tells of errors"}
"""Functions without which an error is counted, and not told of."""

HARMLESS: dict[str, str] = {}
"""Functions whose failure is an answer: what cannot be found out is left out, and named in the table of symmetries."""


@pytest.mark.parametrize("way", WAYS)
def test_without_a_fault_nothing_is_said_and_nothing_is_changed(plain, whole, way):
    for written in (False, True):
        left = whole[way, written]
        assert same_training(left, plain[way])
        assert left.said == []
        assert set(left.saved) == {monitor.state_key for monitor in left.monitors}
        assert left.history.series("monitor/errors")[1][-1] == 0


@pytest.mark.parametrize("written", [False, True], ids=["in memory", "written"])
@pytest.mark.parametrize("way", WAYS)
def test_a_fault_in_any_of_our_functions_does_not_reach_the_training(reached, fit, plain, whole, way, written):
    first, *_ = WAYS
    again = () if way == first else reached[first].keys()
    chosen = {
        name: function
        for name, function in reached[way].items()
        if (name not in again or name.startswith(TREATED_DIFFERENTLY)) and name.startswith(WRITES) == written
    }
    assert [wrong for name, function in chosen.items() for wrong in harm(name, function, way, fit, plain, whole)] == []


def test_the_ways_reach_what_goes_on_what_validates_and_what_is_beside(reached):
    fit, goes_on, threaded = reached.values()
    assert len(fit) > 500
    assert goes_on.keys() >= {
        "callbacks.kept.recall",
        "measurement.budget.Budget.restore",
        "measurement.transitions.Transitions.restore",
        "callbacks.monitor.Monitor.on_validation_end",
    }
    assert threaded.keys() >= {
        "measurement.beside.Beside.begin",
        "measurement.beside.Beside.join",
        "measurement.beside.Beside.close",
    }


@pytest.mark.parametrize("monitor", [Monitor, SymmetryMonitor, SpectrumMonitor, RepresentationMonitor])
def test_every_hook_is_fenced(monitor):
    hooks = [
        name for name in vars(monitor) if name.startswith(("on_", "setup", "teardown")) and hasattr(Callback, name)
    ]
    fence = fenced(lambda *args: None).__code__
    assert [hook for hook in hooks if getattr(monitor, hook).__code__ is not fence] == ["on_fit_start"] * (
        monitor is Monitor  # which raises what the user must know of before training
    )


@pytest.mark.parametrize(
    ("name", "monitor"),
    [
        ("functional.spectrum.spectral_indicators", "SpectrumMonitor"),
        ("functional.order_parameters.permutation_indicators", "SymmetryMonitor"),
        ("measurement.representations.representation_aggregates", "RepresentationMonitor"),
        ("tracing.tracing.trace", "SymmetryMonitor"),
        ("callbacks.run.loss_in", "SymmetryMonitor"),
    ],
)
def test_a_monitor_that_fails_twice_stands_down_and_the_others_go_on(reached, fit, whole, name, monitor):
    left = fit("a fit", within=lambda: failing(reached["a fit"][name]))
    said = [message for message in left.said if message.startswith(monitor)]
    assert 1 <= len(said) <= PATIENCE
    assert all("RuntimeError: an injected fault" in message for message in said)
    assert "stands down" in said[-1]
    errors = [event for event in left.history.events if event.kind == "error" and event.details["where"] == monitor]
    assert len(errors) == len(said)
    if "loss_in" not in name:
        others = [key for key in whole["a fit", False].history.keys("") if not key.startswith(SECTIONS[monitor])]
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
        "tracing.tracing.trace",
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
def test_failures_are_raised_where_that_is_asked_for(reached, fit, name):
    left = fit("a fit", on_error="raise", within=lambda: failing(reached["a fit"][name]))
    assert isinstance(left.raised, RuntimeError)
    assert str(left.raised) == "an injected fault"
    assert left.hooks == 0
