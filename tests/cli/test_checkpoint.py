"""Every kind of checkpoint is read, one tensor at a time, and none is unpickled."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_symmetry import SpectrumMonitor, SymmetryMonitor
from lightning_symmetry.cli.checkpoint import open_checkpoint
from lightning_symmetry.cli.failure import Failure


class Net(LightningModule):
    def __init__(self, where: Path | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def trained(net: Net, file: str) -> Path:
    data = TensorDataset(torch.randn(8, 4), torch.randint(2, (8,)))
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[SymmetryMonitor(), SpectrumMonitor()],
    )
    trainer.fit(net, DataLoader(data, batch_size=4))
    trainer.save_checkpoint(file)
    return Path(file)


def read(path: Path | str) -> dict[str, torch.Tensor]:
    return {name: stored.read() for name, stored in open_checkpoint(Path(path)).items()}


def assert_same(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


WEIGHTS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2), "n": torch.tensor(3)}


def test_a_lightning_checkpoint_gives_the_weights_and_nothing_of_optimizer_or_callbacks() -> None:
    net = Net()
    assert_same(read(trained(net, "last.ckpt")), net.state_dict())


def test_a_state_dict_as_it_is() -> None:
    torch.save(WEIGHTS, "weights.pth")
    assert_same(read("weights.pth"), WEIGHTS)


def test_a_file_of_before_torch_1_6_which_cannot_be_mapped() -> None:
    torch.save(WEIGHTS, "weights.pt", _use_new_zipfile_serialization=False)
    assert_same(read("weights.pt"), WEIGHTS)


def test_safetensors() -> None:
    save_file(WEIGHTS, "weights.safetensors")
    assert_same(read("weights.safetensors"), WEIGHTS)


@pytest.mark.parametrize("ending", ["", "/model.safetensors.index.json"])
def test_sharded_safetensors_of_transformers_by_their_folder_or_their_index(ending: str) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=16))
    model.save_pretrained("gpt2", max_shard_size="40KB")
    assert len(list(Path("gpt2").glob("*.safetensors"))) > 1
    own = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    assert_same(read(f"gpt2{ending}"), own)


def test_sharded_files_of_torch() -> None:
    torch.save({"a": torch.ones(2, 2)}, "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(2, 2)}, "pytorch_model-00002-of-00002.bin")
    index = {"weight_map": {name: f"pytorch_model-0000{i}-of-00002.bin" for i, name in ((1, "a"), (2, "b"))}}
    Path("pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(read("."), {"a": torch.ones(2, 2), "b": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"model": WEIGHTS, "epoch": 3}, list(WEIGHTS)),
        ({"checkpoint": {"module": {"state_dict": WEIGHTS}}}, list(WEIGHTS)),
        ({"generator": {"w": torch.ones(2, 2)}, "critic": {"w": torch.ones(2, 2)}}, ["generator.w", "critic.w"]),
        (torch.ones(2, 2), ["tensor"]),
    ],
    ids=["model", "deep", "two models", "a tensor"],
)
def test_weights_are_found_where_they_are_nested(content: Any, names: list[str]) -> None:
    torch.save(content, "nested.pt")
    assert list(read("nested.pt")) == names


def test_what_an_optimizer_keeps_is_left_out() -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    by_name = {"state": {"weight": {"exp_avg": torch.ones(2, 3)}}, "param_groups": []}  # as of a sharded one
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "ema": by_name}, "all.pt")
    assert_same(read("all.pt"), dict(net.state_dict()))


def test_tied_tensors_are_known() -> None:
    shared = torch.ones(3, 3)
    torch.save({"wte": shared, "head": shared, "row": shared[:2], "copy": shared.clone()}, "tied.pt")
    tied = {name: stored.same_as for name, stored in open_checkpoint(Path("tied.pt")).items()}
    assert tied == {"wte": None, "head": "wte", "row": None, "copy": None}


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("in_zip", [True, False], ids=["zip", "legacy"])
def test_a_malicious_pickle_does_not_run(in_zip: bool) -> None:
    torch.save({"w": torch.ones(2, 2), "evil": Evil()}, "evil.pt", _use_new_zipfile_serialization=in_zip)
    with pytest.raises(Failure, match="read these could run code"):
        open_checkpoint(Path("evil.pt"))
    assert not Path("unpickled").exists()
    torch.load("evil.pt", weights_only=False)
    assert Path("unpickled").exists()  # it would have


def test_a_refused_lightning_checkpoint_names_what_it_holds_and_the_way_out() -> None:
    file = trained(Net(pathlib.Path("data")), "last.ckpt")
    with pytest.raises(Failure) as failure:
        open_checkpoint(file)
    message = str(failure.value.message)
    assert "pathlib.PosixPath" in message
    assert "\n" not in message
    assert "torch.save(state_dict, 'weights.pt')" in message
    torch.save(torch.load(file, weights_only=False)["state_dict"], "weights.pt")
    assert list(read("weights.pt")) == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]


def test_a_whole_module_and_a_script_are_refused() -> None:
    torch.save(nn.Linear(2, 2), "module.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "script.pt")
    with pytest.raises(Failure, match=r"torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(Path("module.pt"))
    with pytest.raises(Failure, match="could run code"):
        open_checkpoint(Path("script.pt"))


def test_a_distributed_checkpoint_tells_how_to_join_it_and_is_read_then() -> None:
    distributed_checkpoint.save({"model": WEIGHTS}, checkpoint_id="sharded")
    with pytest.raises(Failure, match=r"dcp_to_torch sharded weights\.pt"):
        open_checkpoint(Path("sharded"))
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save("sharded", "weights.pt")
    assert_same(read("weights.pt"), WEIGHTS)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty: fetch or write it again"),
        (b"hello, world", "is no checkpoint, or not a whole one, of "),
        (b"PK\x03\x04 torn", "is no checkpoint, or not a whole one, of "),
    ],
    ids=["empty", "text", "torn"],
)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_what_is_no_checkpoint_is_refused(content: bytes, told: str, ending: str) -> None:
    Path(f"junk.{ending}").write_bytes(content)
    with pytest.raises(Failure) as failure:
        open_checkpoint(Path(f"junk.{ending}"))
    assert failure.value.message.startswith(f"junk.{ending} {told}")
    assert "KeyError" not in failure.value.message
    assert failure.value.message.endswith(": fetch or write it again")


def test_other_errors_say_what_to_do() -> None:
    Path("several").mkdir()
    torch.save(WEIGHTS, "several/a.ckpt")
    torch.save(WEIGHTS, "several/b.ckpt")
    Path("none").mkdir()
    torch.save({"epoch": 3, "state_dict": {}}, "empty.ckpt")
    Path("bad.index.json").write_text("{}")
    Path("missing.index.json").write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
    torch.save(WEIGHTS, "shard.pt")
    Path("wrong.index.json").write_text(json.dumps({"weight_map": {"a": "shard.pt"}}))
    for path, told in {
        "nowhere.pt": "no checkpoint at nowhere.pt",
        "several": "holds 2 checkpoints: give one, as several/a.ckpt",
        "none": "looked for",
        "empty.ckpt": "no tensors that have names",
        "bad.index.json": "weight_map",
        "missing.index.json": "shard.safetensors, which is not beside it",
        "wrong.index.json": "names a in shard.pt, which does not hold it",
    }.items():
        with pytest.raises(Failure) as failure:
            open_checkpoint(Path(path))
        assert told in failure.value.message
