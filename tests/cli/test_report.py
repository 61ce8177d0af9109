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


def test_a_folder_without_a_history_names_those_that_have_one(command: Command) -> None:
    result = command("report", "logs")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: no history at")
    assert "logs/a" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_torn_history_says_which_line(command: Command) -> None:
    Path("logs/a/history.jsonl").write_text('{"what": 1}\n{"step": 1}\n')
    result = command("report", "logs/a")
    assert result.exit_code == 2
    assert "line 1 is not a line of a symmetry history" in result.stderr


def test_no_run_is_bad_usage(command: Command) -> None:
    assert command("report").exit_code == 2
