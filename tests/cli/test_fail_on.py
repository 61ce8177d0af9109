"""What `--fail-on` finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.cli.conftest import Command, of_rank


@pytest.fixture(autouse=True)
def checkpoints() -> None:
    torch.save({"low.weight": of_rank(1, 10, 10), "full.weight": torch.eye(10)}, "low.pt")
    torch.save({"fc.weight": torch.full((3, 3), torch.inf), "fc.bias": torch.tensor([torch.nan])}, "nan.pt")


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ("effective_rank_fraction<0.5", 1),
        ("effective_rank_fraction < 5e-1", 1),
        ("effective_rank_fraction<0.05", 0),
        ("stable_rank>=9.99", 1),
        ("numerical_rank<=0", 0),
        ("condition_number>1e6", 1),  # measured though it is not shown
        ("nonfinite", 0),
    ],
)
def test_a_condition_decides_the_exit_code(command: Command, condition: str, code: int) -> None:
    result = command("scan", "low.pt", "--fail-on", condition)
    assert result.exit_code == code
    assert ("found " in result.stderr) == bool(code)


@pytest.mark.parametrize("condition", ["nonfinite", "effective_rank_fraction<0.5"])
def test_what_is_not_finite_fails_every_condition(command: Command, condition: str) -> None:
    result = command("scan", "nan.pt", "--fail-on", condition)
    assert result.exit_code == 1
    assert result.stderr == "found fc.weight: nonfinite\nfound fc.bias: nonfinite\n"


def test_without_a_condition_nothing_fails(command: Command) -> None:
    assert command("scan", "nan.pt").exit_code == 0


def test_a_layer_that_is_not_shown_is_judged(command: Command) -> None:
    assert command("scan", "low.pt", "--limit", 1, "--fail-on", "stable_rank>5").exit_code == 1


def test_json_holds_the_findings(found: Callable[..., Any]) -> None:
    [finding] = found("scan", "low.pt", "--fail-on", "effective_rank_fraction<0.5")["findings"]
    assert finding["name"] == "low.weight"
    assert finding["condition"] == "effective_rank_fraction<0.5"
    assert finding["value"] == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("rank_collapse", "is no condition: give nonfinite, or a bound in quotes"),
        ("stable_rank=3", "is no condition"),
        ("stable_rank<low", "is no condition"),
        (
            "stabel_rank<3",
            "'stabel_rank' is not known here; known are effective_rank_fraction, effective_rank",
        ),
        ("broken_fraction<0.5", "'broken_fraction' is not known here"),
    ],
)
def test_a_condition_that_cannot_be_read_is_bad_usage(command: Command, condition: str, told: str) -> None:
    result = command("scan", "low.pt", "--fail-on", condition)
    assert result.exit_code == 2
    assert told in result.stderr
