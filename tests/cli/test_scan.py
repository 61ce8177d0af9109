"""Scanning one checkpoint: exact ranks, the worst first, and nothing left out unsaid."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightning_symmetry.functional.spectrum import SPECTRAL_INDICATORS, spectral_indicators
from tests.cli.conftest import Command, of_rank

Found = Callable[..., Any]


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """Matrices of known ranks, and what has no spectrum."""
    return {
        "encoder.weight": of_rank(8, 8, 16),
        "head.weight": of_rank(1, 20, 10),
        "conv.weight": of_rank(6, 12, 18).reshape(12, 2, 3, 3),
        "head.bias": torch.zeros(10),
        "row.weight": torch.ones(1, 9),
        "steps": torch.tensor(3),
        "mask": torch.ones(4, 4, dtype=torch.bool),
    }


@pytest.fixture
def file(weights: dict[str, torch.Tensor]) -> Path:
    torch.save(weights, "weights.pt")
    return Path("weights.pt")


def test_layers_come_worst_first_with_their_exact_ranks(found: Found, file: Path) -> None:
    layers = found("scan", file)["layers"]
    assert [layer["name"] for layer in layers] == ["head.weight", "conv.weight", "encoder.weight"]
    assert [layer["effective_rank"] for layer in layers] == pytest.approx([1, 6, 8], abs=1e-3)
    assert [layer["effective_rank_fraction"] for layer in layers] == pytest.approx([0.1, 0.5, 1], abs=1e-3)
    assert [layer["shape"] for layer in layers] == [[20, 10], [12, 2, 3, 3], [8, 16]]


def test_what_has_no_spectrum_is_named(found: Found, file: Path) -> None:
    assert found("scan", file)["without_spectrum"] == {
        "vectors and scalars": ["head.bias", "row.weight"],
        "int64": ["steps"],
        "bool": ["mask"],
    }


def test_the_table_shows_the_same(command: Command, file: Path) -> None:
    output = command("scan", file).stdout
    lines = [line.split() for line in output.splitlines()]
    assert ["head", "20x10", "0.100", "1.000", "1.000", "1.000"] in lines
    assert ["conv", "12x2x3x3", "0.500", "6.000", "6.000", "1.000"] in lines
    assert "2 vectors and scalars, 1 of int64 (steps), 1 of bool (mask)" in output


def test_the_heading_names_the_file_that_was_read(command: Command, file: Path) -> None:
    assert command("scan", file).stdout.startswith("weights.pt: 3 layers, mean effective rank fraction 0.533, worst")
    Path("run").mkdir()
    save_file({"w": torch.eye(2)}, "run/model.safetensors")
    torch.save({"w": torch.eye(2)}, "run/last.ckpt")
    assert command("scan", "run").stdout.startswith("run/model.safetensors: 1 layer, ")
    assert command("scan", file, "weights.pt").stdout.startswith("A = weights.pt, B = weights.pt: 3 layers in both")


def test_one_and_several_are_counted_in_words(command: Command) -> None:
    torch.save({"w": torch.eye(2), "bias": torch.ones(2)}, "one.pt")
    assert "without a spectrum: 1 vector or scalar\n" in command("scan", "one.pt").stdout


def test_every_indicator_can_be_asked_for(found: Found, file: Path, weights: dict[str, torch.Tensor]) -> None:
    [layer] = found("scan", file, "--include", "encoder", "--indicators", ",".join(SPECTRAL_INDICATORS))["layers"]
    expected = {name: value.item() for name, value in spectral_indicators(weights["encoder.weight"]).items()}
    assert {name: layer[name] for name in SPECTRAL_INDICATORS} == pytest.approx(expected)


def test_the_help_names_every_indicator(command: Command) -> None:
    words = command("scan", "--help").stdout.replace(",", " ").split()
    assert {name for name in SPECTRAL_INDICATORS if name not in words} == set()


def test_regular_expressions_choose_layers(found: Found, file: Path) -> None:
    names = [layer["name"] for layer in found("scan", file, "--include", "head|conv", "--exclude", "^head")["layers"]]
    assert names == ["conv.weight"]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--include", "hed", "--include='hed' is found in the name of no tensor; the nearest are head."),
        ("--exclude", "[", "--exclude='[' is no regular expression"),
        ("--indicators", "stable_rnk", "did you mean stable_rank?"),
        ("--indicators", ",", "known are"),
        ("--html", "nowhere/page.html", "there is no folder"),
        ("--model", "train:Net", "--model and --batch belong together"),
    ],
)
def test_bad_usage_ends_with_2_and_says_what_to_do(
    command: Command, file: Path, option: str, value: str, told: str
) -> None:
    result = command("scan", file, option, value)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""


def test_a_limit_shows_the_worst_and_counts_the_others(command: Command, found: Found, file: Path) -> None:
    assert [layer["name"] for layer in found("scan", file, "--limit", 1)["layers"]] == ["head.weight"]
    output = command("scan", file, "--limit", 1).stdout
    assert "conv" not in output
    assert "and 2 more: --limit 0 shows all" in output


def test_a_table_is_bounded_and_json_is_not(command: Command, found: Found) -> None:
    torch.save({f"layers.{i}.weight": torch.eye(2) for i in range(50)}, "deep.pt")
    assert "and 10 more" in command("scan", "deep.pt").stdout
    assert "and" not in command("scan", "deep.pt", "--limit", 0).stdout.replace("random", "")
    assert len(found("scan", "deep.pt")["layers"]) == 50


def test_names_are_whole_in_a_pipe(command: Command) -> None:
    name = ".".join(["a_module_of_a_very_long_name"] * 12)
    torch.save({name: torch.eye(3)}, "long.pt")
    assert name in command("scan", "long.pt").stdout


def test_what_is_not_finite_is_first_and_named(command: Command, found: Found) -> None:
    bad = torch.eye(3)
    bad[0, 0] = torch.nan
    torch.save({"good": of_rank(1, 4, 4), "bad": bad, "bias": torch.tensor([1.0, torch.inf])}, "nan.pt")
    result = found("scan", "nan.pt")
    assert result["nonfinite"] == ["bad", "bias"]
    assert [layer["name"] for layer in result["layers"]] == ["bad", "good"]
    assert result["layers"][0]["effective_rank"] is None
    assert "NOT FINITE: bad, bias" in command("scan", "nan.pt").stdout


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_dtypes_that_are_measured(found: Found, dtype: torch.dtype, ending: str) -> None:
    tensors = {"w": torch.diag(torch.tensor([1.0, 1.0, 0.5])).to(dtype)}
    torch.save(tensors, "w.pt")
    save_file(tensors, "w.safetensors")
    [layer] = found("scan", f"w.{ending}", "--indicators", "stable_rank")["layers"]
    assert layer["stable_rank"] == pytest.approx(2.25)


def test_quantised_tensors_are_named_and_not_measured(found: Found) -> None:
    codes = {
        "eight": torch.ones(4, 4, dtype=torch.float8_e4m3fn),
        "packed": torch.ones(4, 4, dtype=torch.uint8),
        "full": torch.eye(4),
    }
    save_file(codes, "quantised.safetensors")
    torch.save({**codes, "sparse": torch.eye(4).to_sparse(), "meta": torch.ones(4, 4, device="meta")}, "quantised.pt")
    result = found("scan", "quantised.safetensors")
    assert [layer["name"] for layer in result["layers"]] == ["full"]
    assert result["without_spectrum"] == {"F8_E4M3": ["eight"], "U8": ["packed"]}
    result = found("scan", "quantised.pt")
    assert [layer["name"] for layer in result["layers"]] == ["full"]
    assert result["without_spectrum"] == {
        "float8_e4m3fn": ["eight"],
        "uint8": ["packed"],
        "float32, sparse_coo": ["sparse"],
        "float32 without values": ["meta"],
    }


def test_a_tied_matrix_is_measured_once_and_named(command: Command, found: Found) -> None:
    shared = torch.eye(3)
    torch.save({"wte": shared, "head": shared}, "tied.pt")
    result = found("scan", "tied.pt")
    assert [layer["name"] for layer in result["layers"]] == ["wte"]
    assert result["tied"] == {"head": "wte"}
    assert "tied, measured once: head (is wte)" in command("scan", "tied.pt").stdout
    assert [layer["name"] for layer in found("scan", "tied.pt", "--include", "head")["layers"]] == ["head"]


def test_a_checkpoint_without_a_matrix_and_one_without_a_tensor(command: Command, found: Found) -> None:
    torch.save({"bias": torch.ones(3), "empty": torch.zeros(0, 4)}, "vectors.pt")
    assert found("scan", "vectors.pt")["layers"] == []
    assert "0 layers" in command("scan", "vectors.pt").stdout
    torch.save({}, "empty.pt")
    result = command("scan", "empty.pt")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: empty.pt holds no tensors")
    assert result.stderr.count("\n") == 1


def test_the_page_is_one_file_that_shows_every_layer(command: Command, file: Path) -> None:
    assert command("scan", file, "--html", "page.html").exit_code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    for text in ("<h1>weights.pt</h1>", ">head<", ">conv<", ">encoder<", ">0.500<", "width: 50.0%"):
        assert text in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_page_says_when_and_by_what_it_was_made_and_what_its_numbers_mean(command: Command, file: Path) -> None:
    command("scan", file, "--html", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert re.search(r"scanned \d{4}-\d\d-\d\d \d\d:\d\d \S+ by lightning-symmetry", page)
    assert re.findall(r"<th [^>]*>(.*?)</th>", page).count("effective rank fraction") == 1
    assert re.search(r'<td [^>]*data-heading="effective rank fraction">0.500<div class="share">', page)
    assert "Effective rank is the number of directions that a weight matrix uses" in page
    assert "A layer far below the others has lost rank" in page


def test_names_are_text_for_the_terminal_and_the_page(command: Command) -> None:
    torch.save({"<script>alert(1)</script>": torch.eye(3), "[bold]a": torch.eye(2), "\x1b[2J": torch.eye(2)}, "evil.pt")
    output = command("scan", "evil.pt", "--html", "page.html").stdout
    assert "<script>alert(1)</script>" in output
    assert "[bold]a" in output
    assert r"\x1b[2J" in output
    assert "\x1b" not in output
    for options in (["--include", "2JJ"], ["--fail-on", "stable_rank>0"]):
        told = command("scan", "evil.pt", *options).stderr
        assert r"\x1b[2J" in told
        assert "\x1b" not in told
    page = Path("page.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
