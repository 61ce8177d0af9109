"""A logger that fails does not fail the training."""

import warnings

import pytest
from plotly.graph_objects import Figure

from lightning_symmetry.history import Event
from lightning_symmetry.sinks.lightning_logger import PATIENCE, LoggerSink


class Broken:
    """A logger whose server is gone."""

    def __init__(self, failures):
        self.failures = failures
        self.calls = 0
        self.logged = []

    def log_metrics(self, metrics, step):
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError("the server is gone")
        self.logged.append((step, metrics))


def test_a_failure_is_warned_of_once_and_the_next_row_is_logged():
    sink = LoggerSink(logger := Broken(failures=1))
    with pytest.warns(UserWarning, match="could not log to Broken, .* ConnectionError: the server is gone"):
        sink.log({"a": 1.0}, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sink.log({"a": 2.0}, 1)
    assert logger.logged == [(1, {"a": 2.0})]


def test_after_repeated_failures_the_sink_is_given_up_and_one_warning_has_said_so():
    sink = LoggerSink(logger := Broken(failures=100))
    with pytest.warns(UserWarning, match=f"gives it up after {PATIENCE} failures in a row") as caught:
        for step in range(10):
            sink.log({"a": 1.0}, step)
            assert not sink.shows_media
    assert logger.calls == PATIENCE
    assert len(caught) == 1


def test_a_logger_without_media_gets_no_figure_no_report_and_no_alert(tmp_path):
    sink = LoggerSink(logger := Broken(failures=0))
    assert not sink.shows_media
    sink.log_figure("a", Figure(), 0)
    sink.log_report(tmp_path / "report.html", 0)
    sink.alert([Event(0, 0.0, "nonfinite", {"parameter": "fc"})])
    assert logger.calls == 0
