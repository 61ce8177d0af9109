"""The callback that watches the spectra of weight matrices."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from lightning_symmetry.callbacks.monitor import ALERT_ON, AlertKind, Monitor, OnError, OnTransition
from lightning_symmetry.callbacks.session import Plan
from lightning_symmetry.functional.spectrum import SPECTRAL_INDICATORS
from lightning_symmetry.measurement.indicators import full_rank, spectrum_aggregates, spectrum_pieces


class SpectrumMonitor(Monitor):
    """Measures during training the effective rank, and other indicators of the spectrum, of every weight matrix.

    It logs, at one row a measurement, ``spectrum/INDICATOR/LAYER`` for every parameter of two or more dimensions (a
    convolution as a matrix ``out x (in kh kw)``), and of the whole model ``complexity/effective_rank_fraction``, the
    mean over layers of effective rank / largest possible rank: near 1 for random weights, towards 0 where layers
    collapse to rank one.

    Args:
        indicators: What to log of each spectrum, by the names of the functions in `lightning_symmetry.functional`.
        max_overhead: As for `Monitor`.
        every_n_train_steps: As for `Monitor`.
        include: As for `Monitor`.
        exclude: As for `Monitor`.
        on_error: As for `Monitor`.
        alert_on: As for `Monitor`.
        on_transition: As for `Monitor`.

    Raises:
        ValueError: An argument is out of its range; at the start of fit, the model has no parameters, or `include` or
            `exclude` is found in the name of none.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SpectrumMonitor()], logger=False, enable_checkpointing=False)

    References:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """

    section = "spectrum"
    aggregates = ("complexity/effective_rank_fraction",)

    def __init__(
        self,
        indicators: Sequence[str] = ("effective_rank", "stable_rank", "spectral_norm"),
        max_overhead: float = 0.01,
        every_n_train_steps: int | None = None,
        include: str | None = None,
        exclude: str | None = None,
        on_error: OnError = "warn",
        alert_on: Collection[AlertKind] = ALERT_ON,
        on_transition: OnTransition = None,
    ) -> None:
        super().__init__(max_overhead, every_n_train_steps, include, exclude, on_error, alert_on, on_transition)
        for indicator in indicators:
            if indicator not in SPECTRAL_INDICATORS:
                raise ValueError(
                    f"indicators={list(indicators)!r}: {indicator!r} is no indicator of a spectrum; known are "
                    f"{', '.join(SPECTRAL_INDICATORS)}"
                )
        self.indicators = tuple(indicators)

    def make_plan(self, trainer: Any, model: nn.Module, batch: Any) -> Plan:
        """Plan one piece for each weight matrix."""
        shapes = {name: parameter.shape for name, parameter in model.named_parameters() if _is_matrix(parameter)}
        layers = {name: shape for name, shape in shapes.items() if full_rank(shape) > 1}
        selected = set(self.select(name for name, _ in model.named_parameters()))
        layers = {name: shape for name, shape in layers.items() if name in selected}
        return Plan(
            pieces=spectrum_pieces(layers, self.indicators),
            aggregates=lambda values: spectrum_aggregates(layers, values),
        )


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1 and (parameter.is_floating_point() or parameter.is_complex())
