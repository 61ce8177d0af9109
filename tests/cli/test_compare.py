"""Scanning two checkpoints: what changed, the largest change first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Command, of_rank

Found = Callable[..., Any]


@pytest.fixture(autouse=True)
def checkpoints() -> None:
    """`a.pt` and `b.pt`: one layer as it was, one turned around, one doubled, one collapsed, others not in both."""
    turned, kept, doubled = of_rank(6, 6, 6), of_rank(3, 6, 6), of_rank(4, 6, 6)
    before = {
        "kept.weight": kept,
        "turned.weight": turned,
        "doubled.weight": doubled,
        "collapsed.weight": torch.eye(6),
        "grown.weight": torch.eye(3),
        "old.weight": torch.eye(2),
    }
    one = torch.zeros(6, 6)
    one[0, 0] = 1
    after = {
        "kept.weight": kept,
        "turned.weight": -turned,
        "doubled.weight": 2 * doubled,
        "collapsed.weight": one,
        "grown.weight": torch.eye(4),
        "new.weight": torch.eye(2),
    }
    torch.save({"state_dict": before}, "a.ckpt")
    torch.save(after, "b.pt")


def test_changes_are_exact_and_the_largest_comes_first(found: Found) -> None:
    layers = {layer["name"]: layer for layer in found("scan", "a.ckpt", "b.pt")["layers"]}
    assert list(layers) == ["collapsed.weight", "turned.weight", "doubled.weight", "kept.weight"]
    assert layers["collapsed.weight"]["effective_rank"] == pytest.approx({"a": 6, "b": 1, "change": -5 / 6})
    assert layers["collapsed.weight"]["relative_distance"] == pytest.approx((5 / 6) ** 0.5)
    assert layers["turned.weight"]["effective_rank"]["change"] == pytest.approx(0, abs=1e-6)
    assert layers["turned.weight"]["relative_distance"] == pytest.approx(2)
    assert layers["doubled.weight"]["relative_distance"] == pytest.approx(1)
    assert layers["kept.weight"]["relative_distance"] == 0


def test_any_indicator_can_be_compared(found: Found, command: Command) -> None:
    first = found("scan", "a.ckpt", "b.pt", "--indicators", "spectral_norm", "--include", "doubled|kept")["layers"][0]
    assert first["name"] == "doubled.weight"
    assert first["spectral_norm"] == pytest.approx({"a": 1, "b": 2, "change": 1})
    output = command("scan", "a.ckpt", "b.pt", "--indicators", "spectral_norm").stdout
    assert ["doubled", "6x6", "1.000", "2.000", "+100.0%", "1.000"] in [line.split() for line in output.splitlines()]


def test_layers_of_only_one_are_named(command: Command, found: Found) -> None:
    result = found("scan", "a.ckpt", "b.pt")
    assert result["only_in_a"] == ["old.weight"]
    assert result["only_in_b"] == ["new.weight"]
    assert result["reshaped"] == {"grown.weight": [[3, 3], [4, 4]]}
    output = command("scan", "a.ckpt", "b.pt").stdout
    assert "only in A: old.weight" in output
    assert "only in B: new.weight" in output
    assert "of another shape: grown.weight 3x3 → 4x4" in output


def test_checkpoints_with_no_layer_in_common_are_refused(command: Command) -> None:
    torch.save({"model.kept.weight": torch.eye(3)}, "prefixed.pt")
    result = command("scan", "prefixed.pt", "b.pt")
    assert result.exit_code == 2
    assert "no matrix of one name and shape is in both" in result.stderr
    assert "model.kept.weight" in result.stderr
    assert "kept.weight" in result.stderr


def test_the_second_is_judged(command: Command) -> None:
    assert command("scan", "a.ckpt", "b.pt", "--fail-on", "effective_rank_fraction<0.2").exit_code == 1
    assert command("scan", "b.pt", "a.ckpt", "--fail-on", "effective_rank_fraction<0.2").exit_code == 0
    result = command("scan", "a.ckpt", "b.pt", "--fail-on", "effective_rank_change<-0.5")
    assert result.exit_code == 1
    assert result.stderr == "found collapsed.weight: effective_rank_change<-0.5 (it is -0.8333)\n"
    assert "turned.weight" in command("scan", "a.ckpt", "b.pt", "--fail-on", "relative_distance>1.5").stderr
    assert command("scan", "a.ckpt", "--fail-on", "relative_distance>1.5").exit_code == 2


def test_a_zero_layer_and_one_that_is_not_finite(found: Found) -> None:
    torch.save({"zero": torch.zeros(2, 2), "nan": torch.eye(2), "same": torch.zeros(2, 2)}, "c.pt")
    torch.save({"zero": torch.eye(2), "nan": torch.full((2, 2), torch.nan), "same": torch.zeros(2, 2)}, "d.pt")
    result = found("scan", "c.pt", "d.pt")
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert list(layers) == ["nan", "zero", "same"]
    assert result["nonfinite"] == ["nan"]
    assert layers["zero"]["relative_distance"] is None  # infinite
    assert layers["same"]["relative_distance"] == 0
    assert layers["same"]["effective_rank"]["change"] == 0


def test_half_precision_is_compared_with_full(found: Found) -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    torch.save({"w": weights}, "full.pt")
    torch.save({"w": weights.bfloat16()}, "half.pt")
    assert found("scan", "full.pt", "half.pt")["layers"][0]["relative_distance"] == 0


def test_the_page_names_both(command: Command) -> None:
    command("scan", "a.ckpt", "b.pt", "--html", "change.html")
    page = Path("change.html").read_text(encoding="utf-8")
    assert "<h1>a.ckpt → b.pt</h1>" in page
    assert ">-83.3%<" in page
