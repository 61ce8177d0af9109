"""The indicators of representations that are logged, from sums over what layers returned on all ranks.

Ranks agree once on what there is to measure, by a sum of a few numbers for each layer. Then, at each measurement, one
sum over ranks joins what each has gathered since the last; the indicators are pieces that ranks share out, as those of
weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lightning_symmetry.functional.activations import dormant_fraction_of
from lightning_symmetry.functional.feature_spectrum import FEATURE_INDICATORS, Moments, feature_indicators, moments
from lightning_symmetry.functional.neural_collapse import (
    ClassMoments,
    nc1_of,
    nc2_equiangularity_of,
    nc2_equinorm_of,
    nc3_of,
    nc4_of,
)
from lightning_symmetry.functional.sampling import lowest, rows_of
from lightning_symmetry.functional.similarity import alignments_of, linear_cka_of
from lightning_symmetry.keys import key_names
from lightning_symmetry.measurement.indicators import Piece, Tensors
from lightning_symmetry.measurement.layers import original
from lightning_symmetry.measurement.listening import MOST_WIDTH, Listener
from lightning_symmetry.measurement.measure import Ranks

REPRESENTATION_INDICATORS = (
    *FEATURE_INDICATORS,
    "dormant_fraction",
    "token_rank_residual",
    "canonical_alignment",
    "linear_cka",
    "neural_collapse",
)
"""What can be measured of representations."""

NEURAL_COLLAPSE = ("nc1", "nc2_equinorm", "nc2_equiangularity", "nc3", "nc4")

MOST_DECISIONS = 1024
"""How many decisions of all ranks together are compared with the nearest class mean."""


@dataclass(frozen=True)
class Heard:
    """What there is to measure of one layer, the same on all ranks.

    Attributes:
        name: Of the layer.
        width: The number of its features.
        gradients: Whether gradients for them were seen.
        tokens: Whether they are of sequences of tokens.
        written_by: The name of the parameter whose rows write them; None where there is none.
        read_by: Else, the names of those that read them, and nothing before.
    """

    name: str
    width: int
    gradients: bool
    tokens: bool
    written_by: str | None = None
    read_by: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The sums that are kept, and their shapes."""
        k = min(self.width, MOST_WIDTH)
        return {
            "samples": (),
            "total": (k,),
            "outer": (k, k),
            "activity": (self.width,),
            **({"gradient": (k, k)} if self.gradients else {}),
            **({"residual": (), "sequences": ()} if self.tokens else {}),
        }


@dataclass(frozen=True)
class Representations:
    """What there is to measure of a model's representations, the same on all ranks.

    Attributes:
        layers: Of which activations were seen.
        order: The names of all layers listened to, in the order of their similarities.
        classifier: The name of the classifier, its number of classes and of features; None where there is none.
        classifier_weight: The name of its weight.
        kept: How many decisions are compared with the nearest class mean.
    """

    layers: tuple[Heard, ...]
    order: tuple[str, ...]
    classifier: tuple[str, int, int] | None
    classifier_weight: str | None
    kept: int
    silent: tuple[str, ...] = field(default=())


def agree(listener: Listener, model: nn.Module, ranks: Ranks) -> Representations:
    """What all ranks have heard; every rank must call it.

    Args:
        listener: What this rank has heard.
        model: The model.
        ranks: Who measures together.
    """
    order, readers = tuple(listener.layers), tuple(listener.readers)
    told = torch.zeros(len(order) + 1, 4 + len(readers), dtype=torch.float64)
    for number, name in enumerate(order):
        sums = listener.sums.get(name)
        if sums:
            told[number, :4] = torch.tensor([1, len(sums["activity"]), "gradient" in sums, "residual" in sums])
            found = listener.read_by.get(name, ())
            told[number, 4:] = torch.tensor([reader in found for reader in readers])
    if listener.of_classes:
        told[-1, :3] = torch.tensor([1, *listener.of_classes["totals"].shape])
    told = told if ranks.world_size == 1 else ranks.sum(told.to(ranks.device)).cpu()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    heard = []
    for (count, width, gradients, tokens, *reads), name in zip(told[:-1].tolist(), order, strict=True):
        if count:
            size = round(width / count)
            written_by = names.get(id(_written_by(original(model.get_submodule(name)), size)))
            by = [listener.readers[reader] for reader, times in zip(readers, reads, strict=True) if times]
            read_by = [names.get(id(_reads(original(module), size))) for module in by if written_by is None]
            known = tuple(reader for reader in read_by if reader is not None)
            heard.append(Heard(name, size, gradients > 0, tokens > 0, written_by, known))
    count, n_classes, width = told[-1, :3].tolist()
    classifier, weight = None, None
    if count and listener.classifier is not None:
        name, module = listener.classifier
        classifier = (name, round(n_classes / count), round(width / count))
        weight = names.get(id(original(module).weight))
    return Representations(
        layers=tuple(heard),
        order=order,
        classifier=classifier,
        classifier_weight=weight,
        kept=max(MOST_DECISIONS // ranks.world_size, 1) * ranks.world_size,
        silent=tuple(name for name in order if name not in {layer.name for layer in heard}),
    )


def _written_by(module: nn.Module, width: int) -> Tensor | None:
    """The weights whose rows write the features of a layer: of a linear one, or a convolution."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and len(module.weight) == width:
        return module.weight
    return None


def _reads(module: nn.Module, width: int) -> Tensor | None:
    """The weights whose columns read so many features: of a linear layer, or a convolution."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.shape[1] == width else None


def shapes_of_sums(representations: Representations) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the sums that ranks have agreed on."""
    shapes = {f"{layer.name}/{key}": shape for layer in representations.layers for key, shape in layer.shapes.items()}
    if representations.classifier is not None:
        name, n_classes, width = representations.classifier
        shapes |= {
            f"{name}/class_counts": (n_classes,),
            f"{name}/class_totals": (n_classes, width),
            f"{name}/class_outer": (width, width),
            f"{name}/decisions": (representations.kept, 2 + width),
        }
    return {**shapes, "layers/hsic": (len(representations.order),) * 2}


def take_sums(representations: Representations, listener: Listener, ranks: Ranks) -> dict[str, Tensor]:
    """What this rank has heard since the last time, in the shapes that ranks agreed on; the listener forgets it.

    Args:
        representations: What ranks agreed on.
        listener: What this rank has heard.
        ranks: Who measures together.
    """
    heard = {f"{name}/{key}": found for name, sums in listener.sums.items() for key, found in sums.items()}
    if representations.classifier is not None:
        name, _, width = representations.classifier
        of_classes = listener.of_classes
        heard |= {f"{name}/class_{key}": found for key, found in of_classes.items()}
        heard[f"{name}/decisions"] = _shared_out(of_classes.get("sample"), representations.kept, width, ranks)
    heard["layers/hsic"] = listener.hsics
    listener.clear()
    return {name: _of_shape(heard.get(name), shape) for name, shape in shapes_of_sums(representations).items()}


def _of_shape(found: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    return found if found is not None and found.shape == shape else torch.zeros(shape, dtype=torch.float64)


def _shared_out(sample: Tensor | None, kept: int, width: int, ranks: Ranks) -> Tensor:
    """This rank's decisions and features among all: ``(kept, 2 + width)``, with 1 in column 0 where there is one."""
    slots = torch.zeros(kept, 2 + width, dtype=torch.float64)
    if sample is not None and sample.shape[1] == 2 + width:
        slots = slots.to(sample.device)
        rows = rows_of(lowest(sample, min(len(sample), kept // ranks.world_size)))
        slots[ranks.rank :: ranks.world_size][: len(rows)] = torch.cat([torch.ones_like(rows[:, :1]), rows], dim=1)
    return slots


def representation_pieces(
    representations: Representations,
    indicators: Sequence[str],
    projected: Callable[[Tensor], Tensor],
    threshold: float = 0.025,
) -> list[Piece]:
    """One piece for each layer, one for the similarities, one for neural collapse.

    Args:
        representations: What there is to measure.
        indicators: Which ones, out of `REPRESENTATION_INDICATORS`.
        projected: How features that are too wide were projected.
        threshold: tau of the dormant fraction.
    """
    keys = key_names(representations.order)
    pieces = []
    for layer in representations.layers:
        names = _names(layer, indicators)
        if names:
            pieces.append(
                Piece(
                    keys=tuple(f"representation/{name}/{keys[layer.name]}" for name in names),
                    measure=partial(_layer, layer, indicators, projected, threshold),
                )
            )
    heard = [(place, name) for place, name in enumerate(representations.order) if name not in representations.silent]
    pairs = [(i, j, a, b) for i, a in heard for j, b in heard if i < j]
    if "linear_cka" in indicators and pairs:
        pieces.append(
            Piece(
                keys=tuple(f"representation/linear_cka/{keys[a]}/{keys[b]}" for _, _, a, b in pairs),
                measure=lambda tensors: _similarities(tensors, pairs),
            )
        )
    if "neural_collapse" in indicators and representations.classifier is not None:
        key = key_names([representations.classifier[0]])[representations.classifier[0]]
        pieces.append(
            Piece(
                keys=tuple(f"representation/{name}/{key}" for name in _marks(representations)),
                measure=partial(_neural_collapse, representations),
            )
        )
    return pieces


def _names(layer: Heard, indicators: Sequence[str]) -> list[str]:
    """The names of the values of a layer, in the order in which `_layer` gives them."""
    names = [name for name in indicators if name in FEATURE_INDICATORS]
    if "dormant_fraction" in indicators:
        names.append("dormant_fraction")
    if "token_rank_residual" in indicators and layer.tokens:
        names.append("token_rank_residual")
    if "canonical_alignment" in indicators and layer.gradients:
        names.append("activation_gradient_alignment")
        if layer.written_by or layer.read_by:
            names += ["activation_weight_alignment", "gradient_weight_alignment"]
    return names


def _layer(
    layer: Heard, indicators: Sequence[str], projected: Callable[[Tensor], Tensor], threshold: float, tensors: Tensors
) -> list[Tensor]:
    sums = {key: tensors[f"{layer.name}/{key}"] for key in layer.shapes}
    spectrum = [name for name in indicators if name in FEATURE_INDICATORS]
    of_features = Moments(sums["samples"], sums["total"], sums["outer"])
    values = feature_indicators(of_features, spectrum) if spectrum else {}
    values["dormant_fraction"] = dormant_fraction_of(sums["activity"], threshold)
    if layer.tokens:
        values["token_rank_residual"] = sums["residual"] / sums["sequences"]
    if layer.gradients and "canonical_alignment" in indicators:
        outers = {"activation": sums["outer"], "gradient": sums["gradient"]}
        rows = [tensors[name].transpose(0, 1).flatten(1).T for name in layer.read_by]  # sum W^T W over readers
        if layer.written_by is not None:
            rows = [tensors[layer.written_by].flatten(1).T]  # W W^T
        if rows:
            squares = [moments(projected(one)).outer.to(sums["outer"].device) for one in rows]
            outers["weight"] = torch.stack(squares).sum(0)
        values |= {f"{name}_alignment": value for name, value in alignments_of(outers).items()}
    unknown = sums["samples"].new_tensor(torch.nan)
    nothing = bool(sums["samples"] == 0)
    return [unknown if nothing else values[name] for name in _names(layer, indicators)]


def _similarities(tensors: Tensors, pairs: Sequence[tuple[int, int, str, str]]) -> list[Tensor]:
    similarities = linear_cka_of(tensors["layers/hsic"])
    return [similarities[i, j] for i, j, _, _ in pairs]


def _marks(representations: Representations) -> list[str]:
    return [name for name in NEURAL_COLLAPSE if name != "nc3" or representations.classifier_weight is not None]


def _neural_collapse(representations: Representations, tensors: Tensors) -> list[Tensor]:
    assert representations.classifier is not None
    name = representations.classifier[0]
    found = ClassMoments(*(tensors[f"{name}/class_{key}"] for key in ("counts", "totals", "outer")))
    if not bool(found.counts.any()):
        return [found.counts.new_tensor(torch.nan) for _ in _marks(representations)]
    decisions = tensors[f"{name}/decisions"]
    decisions = decisions[decisions[:, 0] > 0.5]
    values = {
        "nc1": nc1_of(found),
        "nc2_equinorm": nc2_equinorm_of(found),
        "nc2_equiangularity": nc2_equiangularity_of(found),
        "nc4": nc4_of(found, decisions[:, 2:], decisions[:, 1].long()),
    }
    if representations.classifier_weight is not None:
        values["nc3"] = nc3_of(found, tensors[representations.classifier_weight])
    return [values[name] for name in _marks(representations)]


def representation_aggregates(representations: Representations, values: Mapping[str, float]) -> dict[str, float]:
    """The mean over layers of the effective rank as a fraction of the number of features."""
    keys = key_names(representations.order)
    fractions = [
        values[key] / min(layer.width, MOST_WIDTH)
        for layer in representations.layers
        if (key := f"representation/effective_rank/{keys[layer.name]}") in values
    ]
    return {"representation/effective_rank_fraction": sum(fractions) / len(fractions)} if fractions else {}
