"""The command line, `lightning-symmetry`: one command a file.

The modules of the commands import click alone at their top, and torch and what is built on it within the command, so
that `--help` and shell completion answer at once. Exit codes: 0; 1 where `--fail-on` found something; 2 for bad usage
and for what cannot be read, told in one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from lightning_symmetry.cli.dashboard import dashboard
from lightning_symmetry.cli.failure import Failure
from lightning_symmetry.cli.printable import printable
from lightning_symmetry.cli.report import report
from lightning_symmetry.cli.scan import scan
from lightning_symmetry.cli.symmetries import symmetries


class Commands(click.Group):
    """A group of commands all of whose errors are told in one line."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments before the command."""
        with _usage_in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises is told in one line."""
        try:
            with _usage_in_one_line():
                return super().invoke(ctx)
        except Failure as error:
            raise Failure(printable(error.message)) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            raise Failure(f"{type(error).__name__}: {error}") from error


@contextmanager
def _usage_in_one_line() -> Iterator[None]:
    """Say where help is, instead of showing how each command is used."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "lightning-symmetry"
        message = printable(error.format_message()).rstrip(".")
        raise Failure(f"{message}{'' if message.endswith('?') else '.'} See {command} --help") from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  lightning-symmetry scan last.ckpt
  lightning-symmetry symmetries train:Net --batch train:batch
  lightning-symmetry report logs/version_0/symmetry/version_0
  lightning-symmetry dashboard my-team/vision

\b
Completion in bash (or zsh_source, fish_source):
  eval "$(_LIGHTNING_SYMMETRY_COMPLETE=bash_source lightning-symmetry)"
""",
)
@click.version_option(package_name="lightning-symmetry")
def main() -> None:
    """Parameter symmetries and ranks of PyTorch models, checkpoints and runs."""


for command in (scan, symmetries, report, dashboard):
    main.add_command(command)
