"""The command line as a user runs it, in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from lightning_symmetry.cli import main

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield tmp_path


@pytest.fixture
def command() -> Command:
    """Runs `lightning-symmetry ARGUMENTS`; fails on a traceback."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="lightning-symmetry")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def found(command: Command) -> Callable[..., Any]:
    """What `lightning-symmetry ARGUMENTS --json` prints, read strictly."""

    def run(*arguments: object) -> Any:
        result = command(*arguments, "--json")
        assert result.exit_code in (0, 1), result.stderr

        def refuse(constant: str) -> None:
            raise ValueError(f"{constant} is not JSON")

        return json.loads(result.stdout, parse_constant=refuse)

    return run


def of_rank(rank: int, rows: int, columns: int) -> torch.Tensor:
    """A matrix with so many singular values of 1, the others 0."""
    left, _ = torch.linalg.qr(torch.randn(rows, rank, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, rank, dtype=torch.float64))
    return (left @ right.T).float()
