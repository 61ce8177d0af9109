"""The callback that watches the spectra of weight matrices, of their gradients and of their updates."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

from torch import nn

from lightning_symmetry.callbacks.alerts import ALERT_ON, AlertKind
from lightning_symmetry.callbacks.fence import fenced
from lightning_symmetry.callbacks.monitor import OnError, OnTransition
from lightning_symmetry.callbacks.step_monitor import StepMonitor
from lightning_symmetry.functional.spectrum import SPECTRAL_INDICATORS
from lightning_symmetry.measurement.optimizer_steps import OptimizerSteps
from lightning_symmetry.measurement.plan import Plan
from lightning_symmetry.measurement.snapshot import snapshot
from lightning_symmetry.measurement.spectra import full_rank, spectrum_aggregates, spectrum_pieces
from lightning_symmetry.sinks.warning import warn

SpectrumOf = Literal["weights", "gradients", "updates"]


class SpectrumMonitor(StepMonitor):
    """Measures during training the effective rank, and other indicators of the spectrum, of every weight matrix.

    It logs, at one row a measurement, for every parameter of two or more dimensions (a convolution as a matrix
    ``out x (in kh kw)``):

    - of its weights ``spectrum/INDICATOR/LAYER``; where they hold queries, keys and values one after another, also of
      these, as ``LAYER_query``, ``LAYER_key`` and ``LAYER_value``;
    - of its gradients, where asked for, ``spectrum/gradient_INDICATOR/LAYER``: as the optimizer's step finds them,
      accumulated, averaged over processes and unscaled, but before Lightning clips them;
    - of its updates, where asked for, ``spectrum/update_ratio/LAYER``, the spectral norm of what one step of the
      optimizer changed relative to that of the weights, and ``spectrum/update_stable_rank/LAYER``.

    Gradients and updates are those of one of the last steps before the measurement, at which a few layers at a time
    have their turn; before there was one they are left out. A step is one of `Optimizer.step`: where
    gradients are accumulated it comes every few batches, where there are several optimizers each layer has that of its
    own, and where optimization is manual Lightning's optimizers tell of it (a bare ``optimizer.optimizer.step()`` does
    not). Weights in half precision round small updates away: master weights in the optimizer's state are taken instead,
    and where it has none a warning says so.

    Of the whole model it logs ``complexity/effective_rank_fraction``, the mean over layers of effective rank / largest
    possible rank: near 1 for random weights, towards 0 where layers collapse to rank one.

    Args:
        indicators: What to log of each spectrum of weights or gradients, by the names of the functions in
            `lightning_symmetry.functional`.
        of: Of what: ``"weights"``, ``"gradients"``, ``"updates"``, or several of them.
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
        >>> monitor = SpectrumMonitor(of=["weights", "updates"])
        >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False)

    References:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007; Yang, Simon,
        Bernstein, "A Spectral Condition for Feature Learning", arXiv:2310.17813.
    """

    section = "spectrum"
    aggregates = ("complexity/effective_rank_fraction",)

    def __init__(
        self,
        indicators: Sequence[str] = ("effective_rank", "stable_rank", "spectral_norm"),
        of: Sequence[SpectrumOf] | SpectrumOf = ("weights",),
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
        asked = (of,) if isinstance(of, str) else tuple(of)
        unknown = [each for each in asked if each not in get_args(SpectrumOf)]
        if unknown or not asked:
            raise ValueError(f"of={of!r} must be one or more of {', '.join(map(repr, get_args(SpectrumOf)))}")
        self.indicators = tuple(indicators)
        self.of = asked
        self._warned = False

    def make_plan(self, trainer: Any, model: nn.Module, batch: Any) -> Plan:
        """Plan one piece for each weight matrix, and one for each of which gradients and updates are asked for."""
        spread = snapshot(model).spread
        weights = self._layers(model)
        layers = {name: parameter.shape for name, parameter in weights.items()}
        stepping = {name: parameter for name, parameter in weights.items() if name not in spread}
        if self.listens and len(stepping) < len(weights) and trainer.is_global_zero:
            warn("SpectrumMonitor measures no gradients and updates of parameters that are spread over processes")
        steps = OptimizerSteps(
            stepping if self.listens else {},
            self.indicators if "gradients" in self.of else (),
            "updates" in self.of,
            trainer.global_rank,
            trainer.world_size,
            at_once=self.every_n_train_steps is not None,
        )
        self._steps = steps if steps.layers else None
        return Plan(
            pieces=[*(spectrum_pieces(layers, self.indicators) if "weights" in self.of else ()), *steps.pieces()],
            aggregates=lambda values: spectrum_aggregates(layers, values),
            sums=steps.sums,
            take_sums=steps.take,
            unknown=steps.unknown,
        )

    @property
    def listens(self) -> bool:
        """Whether gradients or updates are asked for."""
        return set(self.of) != {"weights"}

    @fenced
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell what the optimizer's step has changed, and record what was measured."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if isinstance(self._steps, OptimizerSteps):
            self._tell_of_rounding(self._steps)

    def _layers(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The weight matrices to measure."""
        selected = set(self.select(name for name, _ in model.named_parameters()))
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if name in selected and _is_matrix(parameter) and full_rank(parameter.shape) > 1
        }

    def _tell_of_rounding(self, steps: OptimizerSteps) -> None:
        """Warn once of layers whose weights round small updates away."""
        if steps.without_master_weights and not self._warned:
            self._warned = True
            few = ", ".join(sorted(steps.without_master_weights)[:3])
            warn(
                "spectrum/update_ratio tells of updates as half-precision weights round them, which hides those below "
                f"2^-9 of a weight: the optimizer's state holds no master weights of {few}"
            )


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1 and (parameter.is_floating_point() or parameter.is_complex())
