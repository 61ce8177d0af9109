"""The callback that watches parameter symmetries break and be restored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from lightning_symmetry.callbacks.alerts import ALERT_ON, AlertKind
from lightning_symmetry.callbacks.kept import keep, recall
from lightning_symmetry.callbacks.monitor import OnError, OnTransition
from lightning_symmetry.callbacks.run import ranks_of, steps_done
from lightning_symmetry.callbacks.step_monitor import StepMonitor
from lightning_symmetry.callbacks.unsharded import own_class, shapes_alone, unsharded
from lightning_symmetry.measurement.charges import CHARGE_INDICATORS, LearningRate, charge_pieces
from lightning_symmetry.measurement.indicators import SharedGauge, symmetry_aggregates, symmetry_pieces
from lightning_symmetry.measurement.noise_steps import NoiseSteps
from lightning_symmetry.measurement.orbit_steps import OrbitSteps
from lightning_symmetry.measurement.plan import Plan
from lightning_symmetry.measurement.products import product_pieces
from lightning_symmetry.measurement.snapshot import Snapshot, snapshot
from lightning_symmetry.measurement.step_listeners import StepListener, StepListeners
from lightning_symmetry.measurement.units import why_not_matched
from lightning_symmetry.sinks.warning import warn
from lightning_symmetry.symmetry.find import check_kinds, find_symmetries
from lightning_symmetry.symmetry.groups import Symmetries

STEP_INDICATORS = ("orbit_fraction", "noise_imbalance")
"""What is measured of the optimizer's steps."""


class SymmetryMonitor(StepMonitor):
    """Finds the symmetries of the model on its first batch, and measures during training how far each is broken.

    A network with n interchangeable units starts or ends at states in which some of them are equal: the symmetry
    between them is unbroken, and the network has fewer effective parameters. So it is with units that are dead, the
    symmetric state of signs and rescalings, and with directions that a product of two maps has lost, that of rotations.
    For every group it logs, at one row a measurement, ``symmetry/INDICATOR/GROUP``: ``broken_fraction`` (0: fully
    symmetric, 1: fully broken), and by the kind of the group ``distinct_units``, ``distinct_alive_units``,
    ``effective_units``, ``relative_distance`` and the quantiles of ``nearest_distance``, the early warning of a merger;
    ``alive_units``; or ``product_rank``, ``product_effective_rank`` and ``effective_share``, the share of the
    parameters of two maps that this rank leaves; of queries and keys also ``attention_logit_bound``. Of the whole model
    it logs ``symmetry/broken_fraction`` (the mean over groups) and ``complexity/effective_parameters``. All of them are
    taken in one gauge: what a symmetry of the model does to its parameters changes none. Beside them it logs how the
    parameters move *along* the symmetries, which depends on the gauge by its nature, as `indicators` says.

    Args:
        kinds: The kinds of symmetry to find; None for all: ``"permutation"``, ``"sign"``,
            ``"rescaling"``, ``"rotation"``, ``"scale"``, ``"translation"``.
        tolerance: The relative distance, in (0, 1), up to which two units count as equal.
        verify_up_to: The largest number of parameters at which groups are verified by rerunning the model in float64;
            beyond it groups have ``verified=None``, and where parameters are spread over processes none is gathered:
            the step is followed by their shapes alone.
        indicators: What to log besides the order parameters, of each group of these kinds: ``"imbalance"`` of a
            rescaling or rotation (0: both sides of equal size, 1: one side is zero; gradient flow keeps the difference
            of their squares, weight decay and noise take it away), ``"mean_component"`` of a shift of all logits, or of
            all that a LayerNorm takes the mean from (the share of the weights that does nothing else), and of what a
            norm divides by its size
            ``"effective_lr"`` (the learning rate over |w|^2, over |w| of optimizers other than SGD; the median over
            units) and ``"angular_speed"`` (radians a step since the last measurement, none at the first, also of a run
            that is resumed; the mean over units; keeps a copy of these weights). Of a rescaling also
            ``"noise_imbalance"``: how unevenly the noise of the gradient lies on the two sides of its units (0: evenly,
            the noise equilibrium to which SGD drifts, 1: all on one side), over the 16 optimizer steps before a
            measurement, during which the sums of the gradients are kept in float64; where measurements are closer, at
            those by which 16 more were made. Under DDP it is the noise of the gradient averaged over ranks. Of the
            whole model ``"orbit_fraction"``: the share, squared, of the optimizer's step before each measurement that
            goes along the orbits of all continuous symmetries, and changes nothing that the model computes (0: none, as
            of plain gradient descent; solved by conjugate gradients, on a copy of the parameters before that step).
            These two are not measured of parameters that are spread over processes.
        max_overhead: As for `Monitor`.
        every_n_train_steps: As for `Monitor`.
        include: As for `Monitor`; a group belongs to the first parameter that it moves.
        exclude: As for `Monitor`.
        on_error: As for `Monitor`.
        alert_on: As for `Monitor`.
        on_transition: As for `Monitor`.

    Attributes:
        symmetries: The symmetries found; empty before the first step.

    Raises:
        ValueError: An argument is out of its range; at the start of fit, the model has no parameters, or `include` or
            `exclude` is found in the name of none.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SymmetryMonitor()], logger=False, enable_checkpointing=False)

    References:
        Ziyin, Xu, Poggio, Chuang, "Parameter Symmetry Potentially Unifies Deep Learning Theory", arXiv:2502.05300.
    """

    section = "symmetry"
    aggregates = ("symmetry/broken_fraction", "complexity/effective_parameters")

    def __init__(
        self,
        kinds: Sequence[str] | None = None,
        tolerance: float = 1e-2,
        verify_up_to: int = 200_000_000,
        indicators: Sequence[str] = ("imbalance",),
        max_overhead: float = 0.01,
        every_n_train_steps: int | None = None,
        include: str | None = None,
        exclude: str | None = None,
        on_error: OnError = "warn",
        alert_on: Collection[AlertKind] = ALERT_ON,
        on_transition: OnTransition = None,
    ) -> None:
        super().__init__(max_overhead, every_n_train_steps, include, exclude, on_error, alert_on, on_transition)
        check_kinds(kinds)
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance={tolerance!r} is no relative distance: give a number above 0 and below 1")
        known = (*CHARGE_INDICATORS, *STEP_INDICATORS)
        for indicator in indicators:
            if indicator not in known:
                raise ValueError(
                    f"indicators={list(indicators)!r}: {indicator!r} is no indicator that can be chosen; known are "
                    f"{', '.join(known)}. Order parameters are always logged"
                )
        self.kinds = kinds
        self.tolerance = tolerance
        self.verify_up_to = verify_up_to
        self.indicators = tuple(indicators)
        self.symmetries = Symmetries(())
        self._kept: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the symmetries too, so that a resumed run need not look again."""
        return {**super().state(), "symmetries": self._kept}

    @property
    def listens(self) -> bool:
        """Whether anything is asked for that is measured of steps."""
        return not set(STEP_INDICATORS).isdisjoint(self.indicators)

    def make_plan(self, trainer: Any, model: nn.Module, batch: Any) -> Plan:
        """Find the symmetries on rank zero, tell them to all ranks, and plan one piece for each group."""
        name = own_class(model).__name__
        tensors = snapshot(model, ranks_of(trainer))
        numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
        found: Symmetries | Exception | None = None
        if trainer.is_global_zero:
            try:
                found = self._recalled(model) or self._find(model, batch, tensors)
            except Exception as error:
                found = error if trainer.world_size == 1 else RuntimeError(f"on rank zero, {error!r}")
        tensors.attend()
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        assert found is not None
        self._kept = keep(found, model, self.kinds, self.verify_up_to)
        names = [name for name, _ in model.named_parameters()]
        selected = set(self.select(names))
        chosen = [group for group in found if group.parameters[0] in selected]
        unmeasured = {group.name: why for group in chosen if (why := why_not_matched(group, found)) is not None}
        symmetries = found.select([group for group in chosen if group.name not in unmeasured])
        self.symmetries = found.select(chosen)
        rank_zero_info(f"{type(self).__name__} found {len(self.symmetries)} symmetry groups in {name}")
        gauge = SharedGauge(found)
        steps = StepListeners(() if tensors.spread else self._listeners(trainer, model, found, symmetries))
        self._steps = steps if len(steps) else None
        if self.listens and tensors.spread and trainer.is_global_zero:
            asked = " and no ".join(each for each in STEP_INDICATORS if each in self.indicators)
            warn(f"SymmetryMonitor measures no {asked} of parameters that are spread over processes")
        return Plan(
            pieces=[
                *symmetry_pieces(symmetries, self.tolerance, gauge),
                *product_pieces(symmetries, gauge),
                *charge_pieces(
                    symmetries, self.indicators, _learning_rates(trainer, model), lambda: steps_done(trainer)
                ),
                *steps.pieces(),
            ],
            prepare=gauge.at,
            sums=steps.sums,
            take_sums=steps.take,
            unknown=steps.unknown,
            aggregates=lambda values: symmetry_aggregates(symmetries, numel, values),
            findings={
                "symmetries": self.symmetries.to_dict(),
                **({"unmeasured": _told(unmeasured)} if unmeasured else {}),
            },
        )

    def _listeners(
        self, trainer: Any, model: nn.Module, found: Symmetries, symmetries: Symmetries
    ) -> Iterator[StepListener]:
        """Who listens to the optimizer's steps, as far as that is asked for."""
        if "orbit_fraction" in self.indicators:
            yield OrbitSteps(found, model, trainer.global_rank)
        if "noise_imbalance" in self.indicators:
            yield NoiseSteps(symmetries, model, trainer.global_rank, trainer.world_size)

    def _recalled(self, model: nn.Module) -> Symmetries | None:
        """The symmetries that a checkpoint holds; None where it holds none of this model."""
        with self._taking_up("the symmetries"):
            return recall(self._restored.get("symmetries", {}), model, self.kinds, self.verify_up_to)
        return None

    def _find(self, model: nn.Module, batch: Any, tensors: Snapshot) -> Symmetries:
        """The symmetries of a model, on a whole copy of it where it is spread over processes."""
        search = partial(find_symmetries, kinds=self.kinds, verify_up_to=self.verify_up_to)
        if not tensors.spread:
            return search(model, batch)
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        has_room = n_parameters <= self.verify_up_to
        batch = move_data_to_device(batch, torch.device("cpu"))
        try:
            return search(unsharded(model, tensors if has_room else shapes_alone(model, tensors)), batch)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ValueError(
                f"the parameters of {own_class(model).__name__} are {n_parameters:,}, spread over processes, more than "
                f"verify_up_to={self.verify_up_to:,}. So the step was followed by their shapes alone, and what it does "
                f"next depends on their values ({error}), as routing to experts may. Give a larger verify_up_to if "
                "rank zero has some 20 bytes of room for each, or find the symmetries of a smaller model of the same "
                "kind"
            ) from error


def _told(unmeasured: Mapping[str, str]) -> dict[str, Any]:
    """Groups that are not measured, and why, in plain values."""
    return {"groups": list(unmeasured), "why": "; ".join(dict.fromkeys(unmeasured.values()))}


def _learning_rates(trainer: Any, model: nn.Module) -> LearningRate:
    """Looks up the learning rate of a parameter: 0 where no optimizer has it; all but SGD are taken for adaptive."""
    parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters())

    def learning_rate(name: str) -> tuple[float, bool]:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if any(each is parameters[name] for each in group["params"]):
                    return float(group["lr"]), "sgd" not in type(optimizer).__name__.lower()
        return 0.0, False

    return learning_rate
