"""The symmetries of a model, and how far each is broken at the parameters of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightning_symmetry.cli.checkpoint import Stored
from lightning_symmetry.cli.failure import Failure
from lightning_symmetry.keys import key_names
from lightning_symmetry.measurement.indicators import SharedGauge, symmetry_aggregates, symmetry_pieces
from lightning_symmetry.measurement.snapshot import snapshot
from lightning_symmetry.measurement.units import why_not_matched
from lightning_symmetry.symmetry.groups import Symmetries

TOLERANCE = 1e-2
"""The relative distance up to which two units count as equal, as for `SymmetryMonitor`."""


@dataclass(frozen=True)
class OrderParameters:
    """How far the symmetries of a model are broken.

    Attributes:
        groups: The name of each group that has a symmetric state to indicator to value.
        aggregates: `symmetry/broken_fraction`, the mean over groups, and `complexity/effective_parameters`.
        unmeasured: The names of groups whose units cannot be compared, of what is within each.
    """

    groups: Mapping[str, Mapping[str, float]]
    aggregates: Mapping[str, float]
    unmeasured: Sequence[str]


def fill(model: nn.Module, tensors: Mapping[str, Stored], path: str, factory: str) -> None:
    """Give a model the parameters of a checkpoint; tied ones may be there under one of their names.

    Raises:
        Failure: The checkpoint lacks a tensor of the model, holds another one, or one of another shape.
    """
    own = model.state_dict(keep_vars=True)
    filled = {id(own[name]) for name in tensors if name in own}
    faults = [
        *(f"lacks {name}" for name, tensor in own.items() if name not in tensors and id(tensor) not in filled),
        *(f"has {name} beside" for name in tensors if name not in own),
        *(
            f"has {name} of shape {tuple(stored.shape)} for {tuple(own[name].shape)}"
            for name, stored in tensors.items()
            if name in own and stored.shape != own[name].shape
        ),
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise Failure(
            f"{path} does not fit the model of --model {factory!r}: it {', '.join(faults[:3])}{more}; name a factory "
            "that returns the model it was saved from"
        )
    model.load_state_dict({name: stored.read() for name, stored in tensors.items()}, strict=False)


def order_parameters(model: nn.Module, symmetries: Symmetries) -> OrderParameters:
    """Measure all symmetries of a model at its parameters."""
    unmeasured = [group.name for group in symmetries if why_not_matched(group, symmetries)]
    chosen = symmetries.select([group for group in symmetries if group.name not in unmeasured])
    pieces = symmetry_pieces(chosen, TOLERANCE, SharedGauge(symmetries))
    tensors = snapshot(model)
    with torch.no_grad():
        values = {
            key: value.item() for piece in pieces for key, value in zip(piece.keys, piece.measure(tensors), strict=True)
        }
    names = {key: name for name, key in key_names(group.name for group in chosen).items()}
    groups: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        _, indicator, of_group = key.split("/", 2)
        groups.setdefault(names[of_group], {})[indicator] = value
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return OrderParameters(groups, symmetry_aggregates(chosen, numel, values), unmeasured)
