"""Sums over what layers return during training steps, gathered by hooks that are there for one step only.

A hook adds to sums of fixed size, keeps no graph, and draws from no random stream of the training. It is silent where
its layer runs for another reason than the training step: under a trace, in the recomputation of a checkpointed forward,
or in a copy of the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_symmetry.functional.activations import token_rank_residuals
from lightning_symmetry.functional.feature_spectrum import as_samples, moments
from lightning_symmetry.functional.neural_collapse import ClassMoments, add_class_moments, class_moments
from lightning_symmetry.functional.sampling import lowest, with_priorities
from lightning_symmetry.functional.similarity import LEAST_SAMPLES, centred_gram, hsic_of_grams
from lightning_symmetry.measurement import features
from lightning_symmetry.measurement.features import Layout, Masks, Where, layout_of, random_projection, spread_sample

_CLASSIFIER = "the classifier"

MOST_WIDTH = 1024
"""Features wider than this are projected to so many random directions before their second moments are summed."""

MOST_SIMILAR = 128
"""Most samples of a batch whose similarities to one another are compared between layers."""

MOST_CLASSES = 2048
"""Most classes of which neural collapse is measured."""

MOST_CLASSIFIER_WIDTH = 4096
"""Most features of which neural collapse is measured."""

ConvFeatures = Literal["pooled", "by_position"]
Sums = dict[str, Tensor]


class Listener:
    """Gathers sums over what layers return.

    Args:
        layers: The layers by name.
        classifier: The name and module of the linear layer that decides for a class; None where none does.
        gradients: Whether the gradients of what the layers return are summed too.
        similarity: Whether the layers are compared with one another.
        labels: Where labels are in a batch; see `labels_of`.
        mask: Where the mask of padding is in a batch; see `masks_of`.
        of_decoder: The names of the layers that have the tokens of a decoder; see `of_decoder_tokens`.
        readers: The layers of which it is found out, until sums are taken, whether they read what another returns.
        conv_features: Whether convolutional features are averaged over their positions, or are samples one by one.
        max_samples: Most samples of a layer in a step.
        kept: How many samples are kept to decide on, for the nearest class mean.
        timed: What to run every hook in.

    Attributes:
        sums: For each layer, the sums by their name.
        of_classes: The sums over classes.
        hsics: The similarity of every two layers, summed over batches.
        read_by: For each layer the names of those readers that were given the very tensor that it returned.
        unmasked: The layers with tokens that the mask of the batch does not fit, with its shape and theirs.
        without_labels: Whether labels were not where they were said to be.
        without_classes: Why sums over classes are not gathered, where labels were found.
        error: The first failure of a hook, which ended its layer's part.
        handles: Of the hooks, while it listens.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        classifier: tuple[str, nn.Module] | None,
        gradients: bool,
        similarity: bool,
        labels: Where,
        conv_features: ConvFeatures,
        max_samples: int,
        kept: int,
        timed: Callable[[], AbstractContextManager[None]] = nullcontext,
        mask: Where = None,
        of_decoder: Collection[str] = (),
        readers: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.layers = dict(layers)
        self.classifier = classifier
        self.sums: dict[str, Sums] = {}
        self.of_classes: Sums = {}
        self.hsics = torch.zeros(len(layers), len(layers), dtype=torch.float64)
        self.readers = dict(readers or {})
        self.read_by: dict[str, set[str]] = {}
        self.without_classes: str | None = None
        self.unmasked: dict[str, str] = {}
        self.error: Exception | None = None
        self._failed: set[str] = set()
        self._gradients = gradients
        self._similarity = similarity
        self._labels = labels
        self._where_mask = mask
        self._of_decoder = frozenset(of_decoder)
        self._conv_features = conv_features
        self._max_samples = max_samples
        self._kept = kept
        self._timed = timed
        self.handles: list[RemovableHandle] = []
        self._grams: dict[str, Tensor] = {}
        self._generators: dict[torch.device, Generator] = {}
        self._projections: dict[tuple[int, torch.device], Tensor] = {}
        self._returned: list[tuple[str, weakref.ref[Tensor]]] = []
        self._known_readers = not self.readers
        self._masks = Masks()
        self._found_labels: Tensor | None = None
        self.without_labels = False
        self._batch_size: int | None = None

    def listen(self, batch: Any) -> None:
        """Listen to the step on this batch.

        Raises:
            ValueError: The labels are not where they were said to be, which is said once: without them there is no
                neural collapse to measure. Or the mask is not: then nothing is heard, as padding would be.
        """
        self.stop()
        self._masks = features.masks_of(batch, self._where_mask)
        for name, module in self.layers.items():
            self.handles.append(module.register_forward_hook(self._hook(name, module)))
        for name, module in {} if self._known_readers else self.readers.items():
            self.handles.append(module.register_forward_pre_hook(self._reader_hook(name, module)))
        self._batch_size = features.batch_size_of(batch)
        if self.classifier is not None and not self.without_labels:
            try:
                self._found_labels = features.labels_of(batch, self._labels)
            except Exception:
                self.without_labels = True
                raise
            hook = self._classifier_hook(*self.classifier)
            self.handles.append(self.classifier[1].register_forward_hook(hook, with_kwargs=True))

    def stop(self) -> None:
        """Remove the hooks, and compare the layers on what they returned."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        grams, self._grams = self._grams, {}
        self._returned.clear()
        self._masks, self._found_labels = Masks(), None
        if grams:
            shape = next(iter(grams.values())).shape
            compared = [name for name, gram in grams.items() if gram.shape == shape]
            device = grams[compared[0]].device
            found = hsic_of_grams(torch.stack([grams[name].to(device) for name in compared]))
            places = torch.tensor([list(self.layers).index(name) for name in compared], device=device)
            self.hsics = self.hsics.to(device)
            self.hsics[places[:, None], places] += found

    def clear(self) -> None:
        """Forget all sums, and look for readers no longer."""
        self.sums, self.of_classes = {}, {}
        self._known_readers = True
        self.hsics = torch.zeros_like(self.hsics)

    def projected(self, rows: Tensor) -> Tensor:
        """Samples, ``(n, width)``, in float64 and in few enough dimensions for their second moment."""
        rows = as_samples(rows)
        if rows.shape[1] <= MOST_WIDTH:
            return rows
        key = (rows.shape[1], rows.device)
        if key not in self._projections:
            self._projections[key] = random_projection(rows.shape[1], MOST_WIDTH).to(rows.device)
        return rows @ self._projections[key]

    def _hearing(self, name: str, hear: Callable[..., None]) -> Callable[..., None]:
        """A hook that counts its time, keeps no graph, and lets no failure reach the step."""

        def hook(*args: Any) -> None:
            if torch.compiler.is_compiling():
                return
            try:
                if name not in self._failed:
                    with self._timed(), torch.no_grad():
                        hear(*args)
            except Exception as error:
                self.error = self.error or error
                self._failed.add(name)

        return hook

    def _hook(self, name: str, module: nn.Module) -> Callable[..., None]:
        def hear(called: nn.Module, args: Any, output: Any) -> None:
            if called is module and not _not_the_step():
                returned = features.first_tensor(output)
                if returned is not None and not self._known_readers:
                    self._returned.append((name, weakref.ref(returned)))
                self._add(name, module, features.whole_features(returned, module))

        return self._hearing(name, hear)

    def _reader_hook(self, name: str, module: nn.Module) -> Callable[..., None]:
        def hear(called: nn.Module, args: Any) -> None:
            if called is module and args and not _not_the_step():
                for layer, returned in self._returned:
                    if returned() is args[0]:
                        self.read_by.setdefault(layer, set()).add(name)

        return self._hearing(f"what {name} reads", hear)

    def _add(self, name: str, module: nn.Module, output: Tensor | None) -> None:
        if output is None or not output.is_floating_point() or output.ndim < 2 or not output.numel():
            return
        layout = layout_of(output, module, self._batch_size)
        positions = layout.positions(features.plain(output))
        own = self._masks.decoder if name in self._of_decoder else self._masks.tokens
        mask = features.mask_for(positions, own)
        if own is not None and mask is None and positions.shape[1] > 1 and not layout.channels_first:
            self.unmasked[name] = f"{tuple(own.shape)}, not {tuple(positions.shape[:2])}"
        chosen = self._choice(positions, layout)
        rows = self._rows(positions, layout, chosen)
        kept = mask.flatten() if mask is not None else None
        kept = kept[chosen] if kept is not None and chosen is not None else kept
        found = moments(self.projected(rows), kept)
        active = as_samples(rows).abs()
        active = active if kept is None else torch.where(kept[:, None].to(active.device), active, 0.0)
        self._sum(name, samples=found.samples, total=found.total, outer=found.outer, activity=active.sum(0))
        if positions.shape[1] > 1 and not layout.channels_first:
            some = max(1, self._max_samples // positions.shape[1])
            residuals = token_rank_residuals(positions[:some], None if mask is None else mask[:some])
            self._sum(name, residual=residuals.sum(), sequences=residuals.new_tensor(len(residuals)))
        if self._similarity and name not in self._grams and len(positions) >= LEAST_SAMPLES:
            self._grams[name] = centred_gram(_averaged(positions[:MOST_SIMILAR], mask))
        if self._gradients and output.requires_grad:
            output.register_hook(self._gradient_hook(name, layout, chosen, kept))

    def _gradient_hook(
        self, name: str, layout: Layout, chosen: Tensor | None, kept: Tensor | None
    ) -> Callable[[Tensor], None]:
        def hear(gradient: Tensor) -> None:
            rows = self._rows(layout.positions(features.plain(gradient)), layout, chosen)
            finite = rows.isfinite().all(1)  # a scaler skips steps in which they are not
            found = moments(self.projected(rows), finite if kept is None else finite & kept)
            self._sum(name, gradient=found.outer)

        return self._hearing(name, hear)

    def _classifier_hook(self, name: str, module: nn.Module) -> Callable[..., None]:
        def hear(called: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            if called is not module or _not_the_step() or self._found_labels is None:
                return
            given = features.first_tensor(args or dict(kwargs))
            logits = features.whole_features(features.first_tensor(output), module)
            whole = given is not None and given.shape[-1] == getattr(module, "in_features", given.shape[-1])
            if given is not None and whole and logits is not None:
                self._add_classes(name, features.plain(given), self._found_labels, features.plain(logits))

        return self._hearing(_CLASSIFIER, hear)

    def _add_classes(self, name: str, given: Tensor, labels: Tensor, logits: Tensor) -> None:
        n_classes = logits.shape[-1]
        self.without_classes = why_no_classes(name, given.shape, labels.shape, n_classes)
        if self.without_classes is not None:
            return
        rows, labels, decided = given.flatten(0, -2), labels.flatten(), logits.flatten(0, -2).argmax(-1)
        chosen = spread_sample(len(rows), self._max_samples, self._generator(rows.device))
        if chosen is not None:
            rows, labels, decided = rows[chosen], labels[chosen], decided[chosen]
        before = self.of_classes
        if "counts" in before:
            add_class_moments(ClassMoments(*(before[key] for key in ClassMoments._fields)), as_samples(rows), labels)
        else:
            before.update(class_moments(rows, labels, n_classes)._asdict())
        known = (labels >= 0) & (labels < n_classes)
        samples = as_samples(rows)
        both = with_priorities(torch.cat([decided[:, None].to(samples.device, samples.dtype), samples], dim=1))
        both[:, 0] = torch.where(known.to(both.device), both[:, 0], torch.inf)
        sample = torch.cat([before["sample"], both]) if "sample" in before else both
        before["sample"] = sample if len(sample) <= 2 * self._kept else lowest(sample, self._kept)

    def _choice(self, positions: Tensor, layout: Layout) -> Tensor | None:
        pooled = layout.channels_first and self._conv_features == "pooled"
        n = len(positions) * (1 if pooled else positions.shape[1])
        return spread_sample(n, self._max_samples, self._generator(positions.device))

    def _rows(self, positions: Tensor, layout: Layout, chosen: Tensor | None) -> Tensor:
        """Samples x features: positions are averaged over or are samples, and of these those chosen."""
        if layout.channels_first and self._conv_features == "pooled":
            rows = _averaged(positions, None)
            return rows if chosen is None else rows[chosen]
        if chosen is None:
            return positions.flatten(0, 1)
        n_positions = positions.shape[1]
        return positions[chosen // n_positions, chosen % n_positions]

    def _generator(self, device: torch.device) -> Generator:
        where = torch.device("cpu") if device.type == "mps" else device
        if where not in self._generators:
            self._generators[where] = Generator(where).manual_seed(0)
        return self._generators[where]

    def _sum(self, name: str, **found: Tensor) -> None:
        _sum(self.sums.setdefault(name, {}), **found)


def why_no_classes(name: str, given: Sequence[int], labels: Sequence[int], n_classes: int) -> str | None:
    """Why the features that a classifier reads are not summed by class; None where they are.

    Args:
        name: Of the classifier.
        given: The shape of the features.
        labels: The shape of the labels.
        n_classes: The number of outputs.

    Example:
        >>> why_no_classes("head", given=(8, 5, 64), labels=(8,), n_classes=10)
        'labels of shape (8,) are not one for each of the (8, 5) samples that head reads'
    """
    *samples, width = given
    if list(labels) != samples:
        return f"labels of shape {tuple(labels)} are not one for each of the {tuple(samples)} samples that {name} reads"
    if n_classes > MOST_CLASSES:
        return f"{name} decides between {n_classes:,} classes, more than {MOST_CLASSES:,}"
    if width > MOST_CLASSIFIER_WIDTH:
        return f"{name} reads {width:,} features, more than {MOST_CLASSIFIER_WIDTH:,}"
    return None


def _sum(sums: Sums, **found: Tensor) -> None:
    for key, value in found.items():
        sums[key] = sums[key].add_(value) if key in sums else value


def _averaged(positions: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over positions, those masked left out: ``(N, features)``."""
    dtype = torch.float64 if positions.dtype == torch.float64 else torch.float32
    if positions.shape[1] == 1:
        return positions[:, 0]
    if mask is None:
        return positions.mean(1, dtype=dtype)
    kept = mask[: len(positions), :, None]
    total = torch.where(kept, positions, 0.0).sum(1, dtype=dtype)
    return total / kept.sum(1).clamp_min(1)


def _not_the_step() -> bool:
    """Whether this is a trace, the forward of a checkpoint again during backward, or within a transform of torch.func.

    Within a transform, as of `torch.func.grad`, outputs are tensors that must not be kept beyond it.
    """
    traced, again = torch._C._len_torch_dispatch_stack() > 0, torch._C._current_graph_task_id() != -1
    return traced or again or torch._C._functorch.peek_interpreter_stack() is not None
