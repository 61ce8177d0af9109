"""Models named on the command line: their symmetries, and how far these are broken at a checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_symmetry import Symmetries, find_symmetries
from tests.cli.conftest import Command

Found = Callable[..., Any]

PROJECT = """
import torch
from torch import nn
from lightning.pytorch import LightningModule
from transformers import GPT2Config, GPT2LMHeadModel

def make_net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

net = make_net()
batch = torch.randn(8, 4)

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_net()
    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

def labelled():
    return torch.randn(8, 4), torch.randint(3, (8,))

def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=8))

def tokens():
    ids = torch.randint(11, (2, 8))
    return {"input_ids": ids, "labels": ids}

def broken():
    raise RuntimeError("no data here")
"""


@pytest.fixture(autouse=True)
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the user's, in the working directory."""
    Path("project.py").write_text(PROJECT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("project", None)
    yield
    sys.modules.pop("project", None)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize("model", ["project:make_net", "project:net"])
def test_symmetries_are_those_that_are_found_in_python(found: Found, model: str) -> None:
    symmetries = Symmetries.from_dict(found("symmetries", model, "--batch", "project:batch"))
    assert list(symmetries) == list(find_symmetries(net(), torch.randn(8, 4)))


def test_symmetries_print_as_a_table(command: Command) -> None:
    lines = command("symmetries", "project:Net", "--batch", "project:labelled").stdout.splitlines()
    assert ["permutation", "net.0", "6", "3", "yes,", "loss", "only"] in [line.split() for line in lines]
    assert lines[-1].endswith("groups move 100.0% of the parameters")


def test_kinds_are_chosen(command: Command, found: Found) -> None:
    arguments = ("symmetries", "project:net", "--batch", "project:batch", "--kinds")
    assert {group["kind"] for group in found(*arguments, "rescaling,sign")["groups"]} == {"rescaling"}
    result = command(*arguments, "permutatoin")
    assert result.exit_code == 2
    assert "did you mean permutation?" in result.stderr


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("project", "give package.module:name"),
        ("nowhere:net", "'nowhere:net': there is no module nowhere, neither here nor installed\n"),
        ("torch.nowhere:net", "there is no module torch.nowhere, neither here nor installed\n"),
        ("lacking:net", "cannot import lacking: ModuleNotFoundError: No module named 'nopandas' ("),
        ("project:make_nett", "project has no make_nett; it has make_net"),
        ("project:broken", "broken(), called without arguments, raised RuntimeError: no data here"),
        ("project:batch", "is a Tensor: name a module"),
    ],
)
def test_a_name_that_leads_nowhere_is_told_in_one_line(command: Command, model: str, told: str) -> None:
    Path("lacking.py").write_text("import nopandas")
    result = command("symmetries", model, "--batch", "project:batch")
    assert result.exit_code == 2
    assert told in result.stderr
    assert "<frozen" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_names_are_looked_for_before_a_checkpoint_is_measured(command: Command) -> None:
    torch.save(net().state_dict(), "a.pt")
    result = command("scan", "a.pt", "--model", "project:make_nett", "--batch", "project:batch")
    assert result.exit_code == 2
    assert result.stderr == "Error: --model 'project:make_nett': project has no make_nett; it has make_net\n"
    result = command("symmetries", "project:broken", "--batch", "project:btch")
    assert result.stderr == "Error: --batch 'project:btch': project has no btch; it has batch, torch\n"


def test_the_place_in_the_users_module_is_told(command: Command) -> None:
    result = command("symmetries", "project:broken", "--batch", "project:batch")
    assert f"raised RuntimeError: no data here ({Path('project.py').absolute()}:" in result.stderr


def scanned(found: Found, *arguments: object) -> dict[str, Any]:
    symmetries = found("scan", *arguments)["symmetries"]
    return {**symmetries, "groups": {group["name"]: group for group in symmetries["groups"]}}


def test_order_parameters_are_taken_at_the_checkpoint(found: Found, command: Command) -> None:
    merged = net()
    with torch.no_grad():
        for parameter in (merged[0].weight, merged[0].bias, merged[2].weight.T):
            parameter[1] = parameter[0]
        merged[2].weight[:, 5] = 0
    torch.save(merged.state_dict(), "merged.pt")
    result = scanned(found, "merged.pt", "--model", "project:make_net", "--batch", "project:batch")
    assert result["groups"]["0"]["at"][0]["distinct_units"] == 5
    assert result["groups"]["0.rescaling"]["at"][0]["alive_units"] == 5
    # 6 units, one dead and one a copy: 4 x (4 + 1 + 3) parameters and 3 biases of the output
    assert result["at"][0]["complexity/effective_parameters"] == pytest.approx(4 * (4 + 1 + 3) + 3)
    output = command("scan", "merged.pt", "--model", "project:make_net", "--batch", "project:batch").stdout
    assert ["rescaling", "0.rescaling", "6", "0.833", "5", "alive"] in [line.split() for line in output.splitlines()]


def test_a_broken_fraction_can_fail(command: Command) -> None:
    dead = net()
    nn.init.zeros_(dead[2].weight)
    torch.save(dead.state_dict(), "dead.pt")
    arguments = ("scan", "dead.pt", "--model", "project:net", "--batch", "project:batch")
    result = command(*arguments, "--fail-on", "broken_fraction<0.1")
    assert result.exit_code == 1
    assert "found 0.rescaling: broken_fraction<0.1 (it is 0)" in result.stderr


def test_two_checkpoints_compare_how_far_symmetries_are_broken(found: Found, command: Command) -> None:
    dead = net()
    torch.save(dead.state_dict(), "before.pt")
    nn.init.zeros_(dead[2].weight)
    torch.save(dead.state_dict(), "after.pt")
    arguments = ("before.pt", "after.pt", "--model", "project:make_net", "--batch", "project:batch")
    at = scanned(found, *arguments)["groups"]["0.rescaling"]["at"]
    assert [point["broken_fraction"] for point in at] == [1, 0]
    assert "mean broken fraction: " in command("scan", *arguments).stdout


def test_tied_weights_that_a_checkpoint_keeps_once_fit(found: Found) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=8))
    model.save_pretrained("gpt2")
    assert "transformer.wte" in scanned(found, "gpt2", "--model", "project:gpt2", "--batch", "project:tokens")["groups"]


def test_a_checkpoint_of_another_model_is_told_in_one_line(command: Command) -> None:
    torch.save({"0.weight": torch.ones(5, 4), "0.bias": torch.ones(6), "extra": torch.ones(2)}, "other.pt")
    result = command("scan", "other.pt", "--model", "project:net", "--batch", "project:batch")
    assert result.exit_code == 2
    for told in ("lacks 2.weight", "lacks 2.bias", "has extra beside", "and 1 more", "name a factory that returns"):
        assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_json_of_a_scan_with_a_model_is_strict_where_parameters_are_not_finite(command: Command) -> None:
    bad = net()
    nn.init.constant_(bad[0].weight, torch.nan)
    torch.save(bad.state_dict(), "nan.pt")
    result = command("scan", "nan.pt", "--model", "project:net", "--batch", "project:batch", "--json")
    assert result.exit_code == 0
    assert "NaN" not in result.stdout
    assert json.loads(result.stdout)["nonfinite"] == ["0.weight"]
