"""The tensors of a model at one moment."""

from __future__ import annotations

from torch import Tensor, nn


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model by name, tied ones once, detached from its graph and not copied."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
