"""The tensors of a checkpoint, read one at a time, and nothing else of it.

Files of torch are mapped into memory and read by `torch.load(weights_only=True)`, which builds tensors and plain
containers and runs no code of the file; those of safetensors hold tensors alone. So a checkpoint of any size is looked
through in the memory of one layer, whoever made it.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_symmetry.cli.failure import Failure

_IN_A_FOLDER = ("*.safetensors.index.json", "*.bin.index.json", "*.safetensors", "*.bin", "*.ckpt", "*.pt", "*.pth")
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64"}


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint that is not read yet.

    Attributes:
        shape: Its shape.
        dtype: How its entries are stored: a dtype of torch without `torch.`, or what else there is to know.
        read: Reads it, onto the CPU.
        same_as: The name of the tensor of the checkpoint that it is tied to.
    """

    shape: torch.Size
    dtype: str
    read: Callable[[], Tensor]
    same_as: str | None = None


def checkpoint_file(path: Path) -> Path:
    """The file of a checkpoint that is given by its folder, or by itself.

    Raises:
        Failure: There is none, or several.
    """
    file = _in_folder(path) if path.is_dir() else path
    if not file.is_file():
        raise Failure(f"no checkpoint at {path}: give a file of torch.save or safetensors, an index, or their folder")
    return file


def open_checkpoint(path: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint, by name.

    Args:
        path: A `.safetensors` file; a file of `torch.save`, as a Lightning `.ckpt`: a state dict or what holds one; the
            index (`*.index.json`) of a sharded one; or a folder with one of these.

    Raises:
        Failure: There is no such checkpoint, it cannot be read without running code that it holds, or it holds no
            tensor.
    """
    file = checkpoint_file(path)
    tensors = _sharded(file) if file.suffix == ".json" else _one_file(file)
    if not tensors:
        raise Failure(
            f"{file} holds no tensors that have names: give a state dict, or a dictionary that holds one, as a "
            "checkpoint of Lightning does"
        )
    return tensors


def _in_folder(folder: Path) -> Path:
    """The one checkpoint of a folder; an index goes before the shards that it names."""
    if (folder / ".metadata").exists():
        raise Failure(
            f"{folder} is a distributed checkpoint: join it first, by `python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt`, and give weights.pt"
        )
    for pattern in _IN_A_FOLDER:
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise Failure(f"{folder} holds {len(found)} checkpoints: give one, as {found[0]}")
    raise Failure(f"{folder} holds no checkpoint: looked for {', '.join(_IN_A_FOLDER)}")


def _one_file(file: Path) -> dict[str, Stored]:
    return _safetensors(file) if file.suffix == ".safetensors" else _of_torch(file)


def _sharded(index: Path) -> dict[str, Stored]:
    """The tensors of all shards that an index names."""
    try:
        shard_of = {str(name): str(shard) for name, shard in json.loads(index.read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(
            f"{index} is no index of a sharded checkpoint: it needs a `weight_map` from the names of tensors to files"
        ) from error
    shards = {}
    for shard in dict.fromkeys(shard_of.values()):
        if not (index.parent / shard).is_file():
            raise Failure(f"{index} names the shard {shard}, which is not beside it: fetch it, or make the index anew")
        shards[shard] = _one_file(index.parent / shard)
    for name, shard in shard_of.items():
        if name not in shards[shard]:
            raise Failure(f"{index} names {name} in {shard}, which does not hold it: make the index anew")
    return {name: shards[shard][name] for name, shard in shard_of.items()}


def _safetensors(file: Path) -> dict[str, Stored]:
    try:
        handle = safe_open(file, framework="pt")
        return {name: _slice(handle, name) for name in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Failure(_not_whole(file, "safetensors", str(error))) from error


def _slice(handle: Any, name: str) -> Stored:
    stored = handle.get_slice(name)
    dtype = stored.get_dtype()
    return Stored(torch.Size(stored.get_shape()), _TORCH_NAMES.get(dtype, dtype), lambda: handle.get_tensor(name))


def _of_torch(file: Path) -> dict[str, Stored]:
    in_zip = zipfile.is_zipfile(file)
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(file, weights_only=True, mmap=in_zip, map_location="cpu")
    except Exception as error:
        raise Failure(_why_unread(file, in_zip, error)) from error
    stored: dict[str, Stored] = {}
    first_at: dict[tuple[Any, ...], str] = {}
    for name, tensor in _state_dict(content).items():
        dtype, place = _dtype(tensor), _place(tensor)
        stored[name] = Stored(tensor.shape, dtype, tensor.detach, first_at.get(place) if place else None)
        first_at.setdefault(place, name)
    return stored


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where the entries of a tensor lie: those of tied tensors lie in one place."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.numel() == 0:
        return ()
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


def _dtype(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        return f"{name} without values"
    return name if tensor.layout == torch.strided else f"{name}, {str(tensor.layout).removeprefix('torch.')}"


def _why_unread(file: Path, in_zip: bool, error: Exception) -> str:
    try:
        globals_ = torch.serialization.get_unsafe_globals_in_checkpoint(str(file)) if in_zip else []
    except Exception:
        globals_ = []
    if globals_ or "weights_only" in str(error):
        objects = f" ({', '.join(sorted(globals_))})" if globals_ else ""
        return (
            f"{file} holds objects other than tensors{objects}, and to read these could run code, so it is left "
            "unread. If you trust it: load it with `torch.load(..., weights_only=False)`, save its state dict alone "
            "with `torch.save(state_dict, 'weights.pt')`, and give weights.pt"
        )
    with file.open("rb") as stream:
        begun = stream.read(2) in (b"PK", b"\x80\x02")  # as a zip file does, and a pickle of before torch 1.6
    reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return _not_whole(file, "torch.save", reason if begun else "it does not begin as one does")


def _not_whole(file: Path, writer: str, reason: str) -> str:
    if not file.stat().st_size:
        return f"{file} is empty: fetch or write it again"
    return f"{file} is no checkpoint, or not a whole one, of {writer} ({reason}): fetch or write it again"


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors of what a file held, by name.

    What holds tensors by name is a state dict. Else `state_dict` is looked into, where Lightning keeps it; else all
    that is there (`{"model": ...}`), each behind its own name where several hold tensors. What an optimizer keeps,
    known by its `param_groups`, is left out.
    """
    if isinstance(content, Tensor):
        return {"tensor": content}
    if not isinstance(content, Mapping) or "param_groups" in content:
        return {}
    tensors = {name: value for name, value in _named(content) if isinstance(value, Tensor)}
    if tensors:
        return tensors
    if isinstance(content.get("state_dict"), Mapping):
        return _state_dict(content["state_dict"])
    parts = {name: part for name, value in _named(content) if (part := _state_dict(value))}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return {f"{part}.{name}": tensor for part, inner in parts.items() for name, tensor in inner.items()}


def _named(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in content.items() if isinstance(name, str))
