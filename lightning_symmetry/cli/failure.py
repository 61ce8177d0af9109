"""What ends a command."""

from __future__ import annotations

from pathlib import Path

import click


class Failure(click.ClickException):
    """A command cannot do what it was asked for: told in one line, exit code 2.

    Args:
        message: What is wrong with what was given, and what to do; put on one line.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def check_folder(file: Path, option: str) -> None:
    """Refuse to write where there is no folder, which may be misspelt.

    Raises:
        Failure: There is none.
    """
    folder = file.absolute().parent
    if not folder.is_dir():
        raise Failure(f"{option}={file}: there is no folder {folder}; make it first")
