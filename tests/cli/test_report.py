"""Reports made anew from what runs left."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_symmetry import History
from tests.cli.conftest import Command


@pytest.fixture(autouse=True)
def runs() -> None:
    for name in ("a", "b"):
        history = History(Path(f"logs/{name}/history.jsonl"))
        history.append_event(0, "run", name=f"run {name}")
        for step in range(3):
            history.append(step, {"loss": 1.0, "symmetry/broken_fraction": 0.5})


@pytest.mark.parametrize("run", ["logs/a", "logs/a/history.jsonl"])
def test_the_report_of_a_run_lies_beside_its_history(command: Command, run: str) -> None:
    assert command("report", run).stdout == "logs/a/report.html\n"
    assert "run a" in Path("logs/a/report.html").read_text(encoding="utf-8")


def test_it_can_be_put_elsewhere(command: Command) -> None:
    assert command("report", "logs/a", "-o", "here.html").stdout == "here.html\n"
    assert Path("here.html").exists()


def test_several_runs_are_compared(command: Command) -> None:
    assert command("report", "logs/a", "logs/b").stdout == "comparison.html\n"
    page = Path("comparison.html").read_text(encoding="utf-8")
    assert ">a<" in page and ">b<" in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["logs"], "logs holds no history.jsonl: there is one in logs/a, logs/b\n"),
        (["empty"], "empty holds no history.jsonl: give the history.jsonl of a run, or its folder, which is printed"),
        (["nope"], "there is no run at nope: give the history.jsonl of a run, or its folder, which is printed"),
        (["a.pt"], "a.pt is a checkpoint, and reports are made of runs: `lightning-symmetry scan a.pt` reads it\n"),
        (["notes.txt"], "notes.txt is no history of a run: give the history.jsonl of a run"),
        (["logs/a", "-o", "nope/x.html"], "--output=nope/x.html: there is no folder "),
        (["logs/a", "logs/b", "-o", "nope/x.html"], "--output=nope/x.html: there is no folder "),
    ],
)
def test_what_is_no_run_and_a_place_that_is_not_there_are_refused(
    command: Command, arguments: list[str], told: str
) -> None:
    Path("empty").mkdir()
    Path("a.pt").write_bytes(b"PK\x03\x04")
    Path("notes.txt").write_text("hello, world")
    result = command("report", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {told}")
    assert result.stderr.count("\n") == 1
    assert not Path("nope").exists()


def test_a_torn_history_says_which_line(command: Command) -> None:
    Path("logs/a/history.jsonl").write_text('{"what": 1}\n{"step": 1}\n')
    result = command("report", "logs/a")
    assert result.exit_code == 2
    assert "line 1 is not a line of a symmetry history" in result.stderr


def test_no_run_is_bad_usage(command: Command) -> None:
    assert command("report").exit_code == 2
