"""The callback that watches what layers return."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from lightning_symmetry.callbacks.alerts import ALERT_ON, AlertKind
from lightning_symmetry.callbacks.fence import fenced
from lightning_symmetry.callbacks.hooks import attend, wakeful
from lightning_symmetry.callbacks.monitor import Monitor, OnError, OnTransition
from lightning_symmetry.callbacks.run import ranks_of, steps_done
from lightning_symmetry.measurement.layers import (
    MOST_LAYERS,
    classifier_name,
    default_layers,
    inside_compiled,
    layer_names,
    layers_of_types,
    mixing_layers,
    of_decoder_tokens,
    thinned,
)
from lightning_symmetry.measurement.listening import ConvFeatures, Listener
from lightning_symmetry.measurement.plan import Plan
from lightning_symmetry.measurement.representations import (
    MOST_DECISIONS,
    REPRESENTATION_INDICATORS,
    Representations,
    agree,
    representation_aggregates,
    representation_pieces,
    shapes_of_sums,
    take_sums,
)
from lightning_symmetry.sinks.warning import warn


class RepresentationMonitor(Monitor):
    """Measures during training what the layers of a model return: their rank, their likeness, their collapse.

    It listens to the forward passes of the last ``window`` training steps before each measurement, by hooks that are
    there for one step only, and judges by all of them together (and under DDP by those of all processes). It logs, at
    one row a measurement, ``representation/INDICATOR/LAYER``:

    - ``effective_rank`` (RankMe), ``participation_ratio``, ``stable_rank``, ``isotropy``, ``alpha_req`` and ``nesum``
      of the features: how many directions they fill;
    - ``dormant_fraction``: the share of silent units; ``token_rank_residual``: 0 where all tokens have become the same;
    - ``activation_gradient_alignment``, ``activation_weight_alignment`` and ``gradient_weight_alignment``
      (canonical alignment), from activations and gradients of the same steps, and the weights W that write a linear
      layer or a convolution (W W^T), or else those that read the very tensor which a layer returns (W^T W): of a block
      whose output goes into a norm or a sum there are neither;
    - ``nc1``, ``nc2_equinorm``, ``nc2_equiangularity``, ``nc3`` and ``nc4`` (neural collapse) of the features that the
      classifier reads, where the batch has labels;
    - linear CKA of every two layers, in the history and as a heatmap.

    Of the whole model it logs ``representation/effective_rank_fraction``, the mean over layers of effective rank /
    number of features. Features of more than 1,024 dimensions are projected on so many random directions first. An
    effective rank cannot exceed the number of samples in a window. Tokens are samples, padding is none.

    Args:
        indicators: What to measure: names as above, ``"canonical_alignment"``, ``"neural_collapse"`` and
            ``"linear_cka"`` for those of several keys.
        layer_types: The classes of layers to listen to, by name, such as ``["Linear"]``. None, without ``include``, for
            the outputs of the model's blocks, or where it has none of its linear layers and convolutions; at most 24,
            evenly spaced.
        labels: Where in the batch labels are: a key, an index, or a function from the batch to them. None finds whole
            numbers as the second of a tuple, or at a usual key; without any there is no neural collapse to measure.
        mask: Where in the batch the mask of padding is, likewise: ``(n_sequences, n_tokens)``, 0 for padding, but 1 at
            a key that ends with ``padding_mask``, by PyTorch's convention; a function may return a pair, for an encoder
            and a decoder. None finds ``attention_mask``; a decoder beside an encoder has ``decoder_attention_mask``, or
            that of ``labels`` other than -100.
        classifier: The name of the linear layer that decides for a class. None for the last of several outputs.
        conv_features: ``"pooled"``: convolutional features are averaged over positions; ``"by_position"``: each
            position is a sample.
        window: How many steps before each measurement are listened to.
        max_samples: Most samples of a layer in a step (and on a process); more are sampled.
        dormant_threshold: The activity, relative to the layer's mean, up to which a unit is dormant.
        max_overhead: As for `Monitor`.
        every_n_train_steps: As for `Monitor`.
        include: A regular expression; only modules whose name it is found in are listened to.
        exclude: A regular expression; modules whose name it is found in are not listened to.
        on_error: As for `Monitor`.
        alert_on: As for `Monitor`.
        on_transition: As for `Monitor`.

    Raises:
        ValueError: An argument is out of its range; at the start of fit, the model has no parameters, `include` or
            `exclude` is found in the name of no module, or the model has no layer of a type or no such classifier.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RepresentationMonitor()], logger=False, enable_checkpointing=False)

    References:
        Ziyin et al., "Formation of Representations in Neural Networks", arXiv:2410.03006; of each indicator, see the
        function of its name in `lightning_symmetry.functional`.
    """

    section = "representation"
    aggregates = ("representation/effective_rank_fraction",)
    selected_by = "module"

    def __init__(
        self,
        indicators: Sequence[str] = (
            "effective_rank",
            "participation_ratio",
            "alpha_req",
            "dormant_fraction",
            "token_rank_residual",
            "canonical_alignment",
            "linear_cka",
            "neural_collapse",
        ),
        layer_types: Sequence[str] | None = None,
        labels: str | int | Callable[[Any], Tensor] | None = None,
        mask: str | int | Callable[[Any], Tensor | tuple[Tensor | None, Tensor | None]] | None = None,
        classifier: str | None = None,
        conv_features: ConvFeatures = "pooled",
        window: int = 16,
        max_samples: int = 1024,
        dormant_threshold: float = 0.025,
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
            if indicator not in REPRESENTATION_INDICATORS:
                raise ValueError(
                    f"indicators={list(indicators)!r}: {indicator!r} is no indicator of a representation; known are "
                    f"{', '.join(REPRESENTATION_INDICATORS)}"
                )
        for name, number in (("window", window), ("max_samples", max_samples)):
            if number < 1:
                raise ValueError(f"{name}={number!r} must be at least 1")
        for name, where in (("labels", labels), ("mask", mask)):
            if not (where is None or isinstance(where, str | int) or callable(where)):
                raise ValueError(
                    f"{name}={where!r} must be a key or an index of the batch, or a function from the batch to its "
                    f"{name}; or None, to look where they usually are"
                )
        if not (classifier is None or isinstance(classifier, str)):
            raise ValueError(f"classifier={classifier!r} must be the name of a linear layer, such as 'head', or None")
        if conv_features not in ("pooled", "by_position"):
            raise ValueError(f'conv_features={conv_features!r} must be "pooled" or "by_position"')
        if not dormant_threshold >= 0:
            raise ValueError(f"dormant_threshold={dormant_threshold!r} must be at least 0, as 0.025 is")
        self.indicators = tuple(indicators)
        self.layer_types = None if layer_types is None else tuple(layer_types)
        self.labels = labels
        self.mask = mask
        self.classifier = classifier
        self.conv_features: ConvFeatures = conv_features
        self.window = window
        self.max_samples = max_samples
        self.dormant_threshold = dormant_threshold
        self._listener: Listener | None = None
        self._unheard: dict[str, list[str]] = {}
        self._listened_at = -1
        self._last_step = math.inf

    def selectable(self, model: nn.Module) -> list[str]:
        """The names of the modules that can be layers."""
        return layer_names(model)

    def make_plan(self, trainer: Any, model: nn.Module, batch: Any) -> Plan:
        """Plan what can be measured of what all ranks have heard until now."""
        listener, ranks = self._listener, ranks_of(trainer)
        assert listener is not None
        heard = agree(listener, model, ranks)
        if heard.silent:
            self._unheard["without_features_in_a_training_step"] = list(heard.silent)
        self._note_what_is_missing(trainer, model, heard, listener)
        return Plan(
            pieces=representation_pieces(heard, self.indicators, listener.projected, self.dormant_threshold),
            aggregates=lambda values: representation_aggregates(heard, values),
            findings={"unheard": dict(self._unheard)} if self._unheard else {},
            sums=shapes_of_sums(heard),
            take_sums=lambda: take_sums(heard, listener, ranks),
        )

    @fenced
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Choose the layers; there is nothing to measure before the first step."""
        super().on_train_start(trainer, pl_module)
        self._listener, self._listened_at = None, -1
        with self._fenced(trainer):
            self._listen(trainer, pl_module)
        self._stand_together(trainer, self._listener is not None)

    @wakeful
    @fenced
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Measure, if the step is due, what was heard before it; listen to it, if a measurement comes soon."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        step = steps_done(trainer)
        if self._session is not None and self._listener is not None and step >= self._listens_from:
            self._listened_at = step
            attend(self, ["on_train_batch_end"])
            with self._session.gathering():
                self._listener.listen(batch)

    @property
    def wakes_at(self) -> float:
        """The step before which there is nothing to do when a step begins."""
        return min(super().wakes_at, self._listens_from)

    @fenced
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Listen no longer, and record what was measured."""
        with self._fenced(trainer):
            self._stop()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @fenced
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure what was heard since the last measurement."""
        if self._session is not None:
            heard = self._listened_at >= self._session.taken_at
            self._session.finish(steps_done(trainer), pl_module, gathered=heard)

    @fenced
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Listen no longer, and make the report of what there is."""
        with self._fenced(trainer):
            self._stop()
        super().on_exception(trainer, pl_module, exception)

    @fenced
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Keep nothing of the model."""
        super().teardown(trainer, pl_module, stage)
        self._stop()
        self._listener = None

    def fail(self, trainer: Any, error: Exception) -> None:
        """Count a failure of a hook, and tell of it; listen no longer, whatever has failed."""
        for handle in self._listener.handles if self._listener is not None else ():
            handle.remove()
        super().fail(trainer, error)

    @property
    def _listens_from(self) -> float:
        """The step from which on layers are listened to: one shortly before a measurement, or the end."""
        gathered_at = math.inf if self._session is None else self._session.gathered_at
        return min(gathered_at, self._last_step) - self.window

    def _is_measured(self, trainer: Any, is_in_history: bool) -> bool:
        """Before the first step nothing is heard."""
        return True

    def _listen(self, trainer: Any, pl_module: Any) -> None:
        """Choose the layers to listen to, if there are any."""
        session = self._session
        if session is None:
            return
        layers = self._choose(trainer, pl_module)
        if not layers:
            return
        session.listen_first(self.window)
        self._last_step = trainer.estimated_stepping_batches
        inside = inside_compiled(pl_module)
        name = classifier_name(pl_module, self.classifier) if "neural_collapse" in self.indicators else None
        name = None if name in inside else name
        alignment = "canonical_alignment" in self.indicators
        readers = [name for name in mixing_layers(pl_module) if name not in inside] if alignment else []
        self._listener = Listener(
            layers={name: pl_module.get_submodule(name) for name in layers},
            classifier=None if name is None else (name, pl_module.get_submodule(name)),
            gradients=alignment,
            similarity="linear_cka" in self.indicators,
            labels=self.labels,
            mask=self.mask,
            of_decoder=of_decoder_tokens(pl_module),
            readers={name: pl_module.get_submodule(name) for name in readers},
            conv_features=self.conv_features,
            max_samples=self.max_samples,
            kept=max(MOST_DECISIONS // trainer.world_size, 1),
            timed=session.gathering,
        )

    def _note_what_is_missing(self, trainer: Any, model: nn.Module, heard: Representations, listener: Listener) -> None:
        """Note why padding is not left out and classes are not known, and say it where they were asked for."""
        if listener.unmasked:
            self._unheard["padding_not_left_out"] = list(listener.unmasked)
            name, shapes = next(iter(listener.unmasked.items()))
            if self.mask is not None and trainer.is_global_zero:
                warn(
                    f"{type(self).__name__} cannot leave out the padding of {name}: mask={self.mask!r} is of shape "
                    f"{shapes} (n_sequences, n_tokens); give a function from the batch to one that fits"
                )
        why = self._why_no_classes(model, listener) if heard.classifier is None else None
        if why is not None:
            self._unheard["without_neural_collapse"] = [why]
            if self._wants_classes and trainer.is_global_zero:
                warn(
                    f"{type(self).__name__} measures no neural collapse: {why}; give `labels` that fit it, or the name "
                    "of another linear layer as `classifier`"
                )

    @property
    def _wants_classes(self) -> bool:
        """Whether neural collapse was asked for by more than its name among the indicators, which is there always."""
        return self.labels is not None or self.classifier is not None

    def _why_no_classes(self, model: nn.Module, listener: Listener) -> str | None:
        """Why no classes were heard; None where that is no news: without labels, or where it was told before."""
        if listener.without_classes is not None or not self._wants_classes or listener.without_labels:
            return listener.without_classes
        if "neural_collapse" not in self.indicators:
            return None
        name = classifier_name(model, self.classifier)
        if name is None:
            return "the model has no linear layer of several outputs"
        if listener.classifier is None:
            return f"{name} runs inside of what torch.compile has compiled"
        return f"{name} was not called in a step with labels"

    def _check(self, trainer: Any, model: Any) -> None:
        super()._check(trainer, model)
        classifier_name(model, self.classifier)

    def _stop(self) -> None:
        """End listening to a step.

        Raises:
            Exception: A hook failed, which is said once.
        """
        if self._listener is None:
            return
        with self._session.gathering() if self._session is not None else nullcontext():
            self._listener.stop()
        error, self._listener.error = self._listener.error, None
        if error is not None:
            raise error

    def _choose(self, trainer: Any, model: nn.Module) -> list[str]:
        """The layers to listen to; what is left out is noted, and said where nothing is left."""
        selected = set(self.select(layer_names(model)))
        if self.layer_types is not None:
            names = layers_of_types(model, self.layer_types)
        else:
            names = layer_names(model) if self.include is not None else default_layers(model)
        names = [name for name in names if name in selected]
        inside = inside_compiled(model)
        heard = [name for name in names if name not in inside]
        chosen = thinned(heard)
        self._unheard = {
            why: left_out
            for why, left_out in (
                ("inside_of_torch_compile", [name for name in names if name in inside]),
                (f"beyond_the_most_of_{MOST_LAYERS}", [name for name in heard if name not in chosen]),
            )
            if left_out
        }
        if trainer.is_global_zero and (len(heard) < len(names) or not chosen):
            few = ", ".join([name for name in names if name in inside][:3])
            inside_what = f" that run inside of what torch.compile has compiled ({few})" if few else " in this model"
            fate = "" if chosen else ", and stands down"
            warn(f"{type(self).__name__} cannot hear layers{inside_what}{fate}")
        return chosen
