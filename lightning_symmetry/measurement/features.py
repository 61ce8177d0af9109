"""From what a layer returns to samples x features.

Convolutions return ``(N, C, *positions)``, transformers ``(N, tokens, d)``, or ``(tokens, N, d)``, others ``(N, d)``.
All are viewed here as ``(N, positions, features)``, one position where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_symmetry.measurement.layers import original

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
"""Where labels are looked for in a batch that is a mapping."""

IGNORED_LABEL = -100
"""The label of what counts for no loss, by PyTorch's convention: of padding, among others."""

Where = str | int | Callable[[Any], Any] | None
"""Where something is in a batch: a key of a mapping or an attribute, an index into a tuple, or a function of it."""


@dataclass(frozen=True)
class Layout:
    """Where samples and features are in what a layer returns.

    Attributes:
        channels_first: Whether features are dimension 1, and positions come after; else features come last.
        sequence_first: Whether samples are dimension 1, after the tokens.
    """

    channels_first: bool
    sequence_first: bool

    def positions(self, output: Tensor) -> Tensor:
        """View an output as ``(N, positions, features)``."""
        if output.ndim == 2:
            return output[:, None]
        if self.channels_first:
            return output.flatten(2).transpose(1, 2)
        return (output.transpose(0, 1) if self.sequence_first else output).flatten(1, -2)


def layout_of(output: Tensor, module: nn.Module, batch_size: int | None) -> Layout:
    """Tell where the features are, by their number where that decides it, or else by the kind of the layer.

    Args:
        output: What the module returned, of two or more dimensions.
        module: The module; the last layer with parameters in it says how many features there are.
        batch_size: The number of samples in the batch, where it is known.
    """
    last = _last_with_parameters(module)
    width = _width(last)
    first_fits, last_fits = output.shape[1] == width, output.shape[-1] == width
    spatial = type(last).__name__.startswith(("Conv", "BatchNorm", "GroupNorm", "InstanceNorm"))
    if first_fits == last_fits:
        first_fits = spatial if width is not None else output.ndim > 3
    channels_first = output.ndim > 2 and first_fits
    sequence_first = (
        output.ndim == 3
        and not channels_first
        and batch_size is not None
        and output.shape[0] != batch_size
        and output.shape[1] == batch_size
    )
    return Layout(channels_first, sequence_first)


def _last_with_parameters(module: nn.Module) -> nn.Module | None:
    return next((m for m in reversed(list(original(module).modules())) if any(True for _ in m.parameters(False))), None)


def _width(layer: nn.Module | None) -> int | None:
    for name in ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim", "nf"):
        if isinstance(getattr(layer, name, None), int):
            return int(getattr(layer, name))
    bias = getattr(layer, "bias", None)
    return bias.numel() if isinstance(bias, Tensor) and bias.ndim == 1 else None


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor in what a module returned: that itself, or the first of a tuple, a list or a mapping."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    return first_tensor(output[0]) if isinstance(output, tuple | list) and output else None


def plain(tensor: Tensor) -> Tensor:
    """The same numbers without their graph, of no class of their own, whose methods may do more than torch's."""
    return Tensor.detach(tensor) if isinstance(tensor, DTensor) else Tensor.detach(tensor).as_subclass(Tensor)


def whole_features(output: Tensor | None, module: nn.Module) -> Tensor | None:
    """What a module returned, if this process has all of its features: under tensor parallelism it may have a part."""
    if isinstance(output, DTensor):
        return output.to_local() if all(placement.is_replicate() for placement in output.placements) else None
    if output is None or not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        return output
    width = _width(_last_with_parameters(module))
    return output if width is None or width in output.shape[1:] else None


def spread_sample(n: int, at_most: int, generator: Generator) -> Tensor | None:
    """Indices below ``n``, one at random in each of ``at_most`` equal parts; None where all are few enough."""
    if n <= at_most:
        return None
    places = torch.arange(at_most, device=generator.device, dtype=torch.float64)
    offsets = torch.rand(at_most, device=generator.device, generator=generator, dtype=torch.float64)
    return ((places + offsets) * (n / at_most)).long().clamp_max(n - 1)


@dataclass(frozen=True)
class Masks:
    """Which tokens of a batch are no padding, each ``(N, tokens)`` and 0 for padding; None where nothing tells of it.

    Attributes:
        tokens: Of what the model reads, or its encoder.
        decoder: Of what a decoder beside an encoder reads.
    """

    tokens: Tensor | None = None
    decoder: Tensor | None = None


def masks_of(batch: Any, mask: Where) -> Masks:
    """The masks of a batch.

    A decoder has the mask ``decoder_attention_mask``, or that of ``labels`` of tokens, from which its input is made; of
    ``decoder_input_ids`` alone nothing is known. A batch that tells of no other tokens has one mask for all.

    Args:
        batch: A batch.
        mask: Where the mask is. A key that ends with ``padding_mask`` is of PyTorch's convention, True for padding; a
            function may return a pair, of what the encoder and the decoder read. None looks for ``attention_mask``.

    Raises:
        ValueError: It is not where ``mask`` says, or is no mask.
    """
    if mask is None:
        tokens = next((part["attention_mask"] for part in _mappings(batch) if "attention_mask" in part), None)
        tokens = tokens if isinstance(tokens, Tensor) and tokens.ndim == 2 else None
        return Masks(tokens, _decoder_mask(batch, tokens))
    found = _found(batch, "mask", mask)
    both = found if isinstance(found, tuple) and len(found) == 2 else (found,)
    for one in both:
        if not (isinstance(one, Tensor) and one.ndim == 2 and _is_whole(one)) and (one is not None or len(both) == 1):
            raise ValueError(
                f"mask={mask!r} finds {_kind_of(one)}, not a tensor (n_sequences, n_tokens) of truth values or whole "
                "numbers, 0 for padding; give a function from the batch to one, or to a pair of them for an encoder "
                "and a decoder"
            )
    if isinstance(mask, str) and mask.endswith("padding_mask"):
        both = (both[0] == 0,)
    return Masks(*both) if len(both) == 2 else Masks(both[0], _decoder_mask(batch, both[0]))


def _decoder_mask(batch: Any, tokens: Tensor | None) -> Tensor | None:
    for part in _mappings(batch):
        own, labels = part.get("decoder_attention_mask"), part.get("labels")
        if isinstance(own, Tensor) and own.ndim == 2:
            return own
        if isinstance(labels, Tensor) and labels.ndim == 2 and _is_whole(labels):
            return labels != IGNORED_LABEL
        if "decoder_input_ids" in part:
            return None
    return tokens


def _mappings(batch: Any) -> list[Mapping[str, Any]]:
    parts = batch if isinstance(batch, tuple | list) else [batch]
    return [part for part in parts if isinstance(part, Mapping)]


def mask_for(positions: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask of a batch as that of ``(N, positions, features)``, where it fits these."""
    return mask.to(positions.device).bool() if mask is not None and mask.shape == positions.shape[:2] else None


def batch_size_of(batch: Any) -> int | None:
    """The first dimension of the first tensor in a batch."""
    tensor = first_tensor(batch)
    return len(tensor) if tensor is not None and tensor.ndim else None


def labels_of(batch: Any, labels: Where) -> Tensor | None:
    """The labels in a batch.

    Args:
        batch: A batch.
        labels: Where they are. None looks for whole numbers, one for each sample, as the second of a tuple or at a
            usual key.

    Returns:
        Whole numbers; None where none were asked for and none are found.

    Raises:
        ValueError: They are not where ``labels`` says, or are no whole numbers.
    """
    if labels is None:
        candidates: list[Any] = []
        if isinstance(batch, Mapping):
            candidates = [batch[key] for key in LABEL_KEYS if key in batch]
        elif isinstance(batch, tuple | list) and len(batch) > 1:
            candidates = [batch[1]]
        return next((found for found in candidates if _are_labels(found) and found.ndim == 1), None)
    found: Tensor = _found(batch, "labels", labels)
    if not _are_labels(found):
        raise ValueError(
            f"labels={labels!r} finds {_kind_of(found)}, not a tensor of whole numbers, one for each sample; for "
            "probabilities give a function that takes their argmax"
        )
    return found


def _found(batch: Any, argument: str, where: Where) -> Any:
    try:
        if callable(where):
            return where(batch)
        if isinstance(where, str) and not isinstance(batch, Mapping):
            return getattr(batch, where)
        return batch[where]
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{argument}={where!r} finds nothing in the batch, which is {_described(batch)}; give a key or an index of "
            f"it, or a function from the batch to its {argument} ({type(error).__name__}: {error})"
        ) from error


def _are_labels(found: Any) -> bool:
    return isinstance(found, Tensor) and _is_whole(found) and found.ndim > 0


def _is_whole(found: Tensor) -> bool:
    return not (found.is_floating_point() or found.is_complex())


def _kind_of(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of {found.dtype} and shape {tuple(found.shape)}"
    return f"a {type(found).__name__}"


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with the keys {', '.join(map(str, batch))}"
    return f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")


def random_projection(width: int, onto: int) -> Tensor:
    """Random directions ``(width, onto)`` in float64, the same in every process; a projection keeps second moments.

    Of features Z the moment P^T Z^T Z P has the trace of Z^T Z, and about its effective rank where that is well below
    ``onto``.
    """
    generator = Generator().manual_seed(width)
    return torch.randn(width, onto, generator=generator, dtype=torch.float64) / math.sqrt(onto)
