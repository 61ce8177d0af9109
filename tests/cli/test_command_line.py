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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["scann"], "No such command 'scann'. Did you mean 'scan'? See lightning-symmetry --help"),
        (["scan"], "Missing argument 'CHECKPOINT'. See lightning-symmetry scan --help"),
        (["scan", "a.pt", "--fail-on", "foo"], "'foo' is no condition: give nonfinite, or a bound in quotes"),
        (["scan", "a.pt", "--limit", "x"], "'x' is no number of rows: give a whole number, 0 for all"),
        (["scan", "a.pt", "--limit", "-1"], "'-1' is no number of rows"),
        (["scan", "a.pt", "--indicators", "foo"], "'foo' is not known; known are effective_rank_fraction, "),
        (["scan", "a.pt", "--nope"], "No such option '--nope'. Did you mean '--model'? See lightning-symmetry scan"),
        (["symmetries", "train:Net"], "Missing option '--batch'. See lightning-symmetry symmetries --help"),
        (["dashboard", "vision"], "give the owner and the project, as in my-team/vision. See"),
    ],
)
def test_bad_usage_is_told_in_one_line_that_says_where_help_is(
    command: Command, arguments: list[str], told: str
) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert told in result.stderr
    assert result.stderr.endswith(" --help\n")
    assert result.stderr.count("\n") == 1


def test_without_a_command_help_is_shown(command: Command) -> None:
    assert "Commands:\n  dashboard" in command().output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["scan", "nope.pt"], "no checkpoint at nope.pt"),
        (["scan", "a.pt", "--include", "("], "--include='(' is no regular expression"),
        (["scan", "a.pt", "--html", "nowhere/page.html"], "there is no folder"),
        (["scan", "a.pt", "--model", "train:Net"], "--model and --batch belong together"),
        (["scan", "a.pt", "--model", "nomod:x", "--batch", "nomod:y"], "there is no module nomod"),
        (["symmetries", "nomod:x", "--batch", "nomod:y"], "there is no module nomod"),
        (["symmetries", "train", "--batch", "train:batch"], "give package.module:name"),
        (["symmetries", "light:net", "--batch", "light:bat"], "light has no bat; it has batch"),
        (["report", "nope"], "there is no run at nope"),
    ],
)
def test_what_can_be_told_at_once_is_told_before_anything_heavy_is_imported(arguments: list[str], told: str) -> None:
    Path("a.pt").touch()
    Path("light.py").write_text("net = batch = 1")
    code = (
        "from lightning_symmetry.cli import main\n"
        "try:\n    main(sys.argv[1:], standalone_mode=False)\n"
        "except Exception as error:\n    print(error.message)\n"
        "print([name for name in ('torch', 'lightning', 'wandb') if name in sys.modules])"
    )
    message, heavy = run(code, *arguments).stdout.splitlines()
    assert told in message
    assert heavy == "[]"


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
