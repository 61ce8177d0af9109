"""What is to be measured of a model during one fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_symmetry.measurement.indicators import Piece, Tensors


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        pieces: The pieces of a measurement, the same on every rank.
        aggregates: From the values of all pieces to what is told of the model as a whole.
        findings: What there is to note of the model before the first measurement: details of events by their kind.
        prepare: From the model's tensors finds what pieces share, for those that are measured at the same step.
        sums: The shapes of what each rank gathers between measurements, by name, the same on every rank.
        take_sums: What this rank has gathered since the last measurement, of these names and shapes; summed over ranks
            it is measured beside the model's tensors.
        unknown: From what was gathered by all ranks to the keys that have no value yet, which are left out.
    """

    pieces: Sequence[Piece]
    aggregates: Callable[[Mapping[str, float]], dict[str, float]]
    findings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prepare: Callable[[Tensors], object] | None = None
    sums: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    take_sums: Callable[[], Mapping[str, Tensor]] = dict
    unknown: Callable[[Mapping[str, Tensor]], Collection[str]] = lambda gathered: ()

    @property
    def no_sums(self) -> dict[str, Tensor]:
        """What a rank adds that has gathered nothing."""
        return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in self.sums.items()}
