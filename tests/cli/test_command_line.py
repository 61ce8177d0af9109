"""The command line as a whole: it starts at once, helps, and never shows a traceback."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import pytest
import torch
from click.shell_completion import ShellComplete

from lightning_symmetry.cli import main
from tests.cli.conftest import Command

REPOSITORY = Path(__file__).parents[2]


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with the package on its path."""
    program = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {code}"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["", *main.commands])
def test_every_help_has_examples_that_fit_a_terminal(command: Command, name: str) -> None:
    result = command(*([name] if name else []), "--help")
    assert result.exit_code == 0
    examples = result.stdout.partition("Examples:\n")[2].splitlines()
    assert len(examples) >= 2
    assert all(line.strip().startswith("lightning-symmetry ") for line in examples[:2])
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_imports_nothing_that_is_heavy() -> None:
    done = run(
        "from lightning_symmetry.cli import main; main(['scan', '--help'], standalone_mode=False); "
        "print([name for name in ('torch', 'lightning', 'plotly', 'wandb', 'numpy') if name in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_report_is_made_without_torch() -> None:
    code = "import lightning_symmetry.history, lightning_symmetry.report; print('torch' in sys.modules)"
    assert run(code).stdout == "False\n"


def test_a_process_scans_and_fails_for_ci() -> None:
    torch.save({"fc.weight": torch.ones(8, 8)}, "collapsed.pt")
    code = "from lightning_symmetry.cli import main; main(prog_name='lightning-symmetry')"
    done = run(code, "scan", "collapsed.pt", "--fail-on", "effective_rank_fraction<0.2")
    assert done.returncode == 1
    assert "8x8" in done.stdout
    assert done.stderr == "found fc.weight: effective_rank_fraction<0.2 (it is 0.125)\n"


def test_what_nobody_foresaw_is_told_in_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise RuntimeError("the first line\nand the second")

    monkeypatch.setitem(main.commands, "broken", broken)
    result = command("broken")
    assert result.exit_code == 2
    assert result.stderr == "Error: RuntimeError: the first line and the second\n"


def test_an_unknown_command_ends_with_2(command: Command) -> None:
    result = command("scann")
    assert result.exit_code == 2
    assert "scann" in result.stderr


def test_the_version_is_that_of_the_package(command: Command) -> None:
    try:
        own = version("lightning-symmetry")
    except PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert own in command("--version").stdout


@pytest.mark.parametrize(
    ("arguments", "incomplete", "completed"),
    [
        ([], "s", ["scan", "symmetries"]),
        (["scan", "x.pt"], "--in", ["--indicators", "--include"]),
        (["scan", "x.pt", "--indicators"], "stable_rank,spec", ["stable_rank,spectral_norm"]),
        (["symmetries", "train:Net", "--kinds"], "ro", ["rotation"]),
    ],
)
def test_shells_complete(arguments: list[str], incomplete: str, completed: list[str]) -> None:
    shell = ShellComplete(main, {}, "lightning-symmetry", "_LIGHTNING_SYMMETRY_COMPLETE")
    assert [item.value for item in shell.get_completions(arguments, incomplete)] == completed
