"""Gains that can be folded into maps: those of norms into what reads them, those of layers into what they multiply.

``W (g x + b)`` is ``(W g) (x + b / g)``, and ``g (W x + b)``, as of a layer that writes to a stream through a gain of
its own (LayerScale), is ``(g W) x + g b``. Once a gain is folded away it tells the positions of its axis apart no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from lightning_symmetry.labelling.factors import leaf_of, looks_at_others, readers_of_leaves
from lightning_symmetry.labelling.operation_laws import CONTRACTIONS
from lightning_symmetry.tracing.layout import LAYOUT
from lightning_symmetry.tracing.tape import Operation, Tape, Value

aten = torch.ops.aten
Readers = Mapping[Value, Sequence[Operation]]


@dataclass(frozen=True)
class Gain:
    """A gain that can be folded into maps.

    Attributes:
        name: The name of the gain.
        maps: The names of the maps, and of the biases of those that it multiplies.
        side: -1 where the maps read what the gain multiplies, 1 where it multiplies what they write.
        bias: The name of the bias that is added after it and read with it, if any.
    """

    name: str
    maps: frozenset[str]
    side: int
    bias: str | None = None


def read_gains(tape: Tape) -> list[Gain]:
    """The gains that can be folded into maps that read nothing else."""
    uses = readers_of_leaves(tape, picked=True)
    found: dict[tuple[str, str | None], list[tuple[Operation, Collection[Operation]]]] = defaultdict(list)
    for operation in tape.operations:
        affine = _affine(operation, tape.readers)
        if affine is not None:
            gain, bias, output = affine
            found[gain, bias].append((operation, list(_readers(output, tape.readers))))
    folds = []
    for (gain, bias), norms in found.items():
        reading = [reader for _, readers in norms for reader in readers]
        maps = frozenset(filter(None, map(_map_of, reading)))
        alone = all(map(_map_of, reading)) and all(uses[name] <= set(reading) for name in maps)
        if maps and alone and uses[gain] == {operation for operation, _ in norms}:
            folds.append(Gain(gain, maps, -1, bias))
    return folds


def written_gains(tape: Tape) -> list[Gain]:
    """The gains that multiply what one map gives, and nothing else."""
    uses = readers_of_leaves(tape)
    found = []
    for operation in tape.operations:
        gains = [(value, name) for value in operation.inputs if _is_vector(value) and (name := leaf_of(value))]
        if operation.operation != aten.mul.Tensor or len(operation.inputs) != 2 or len(gains) != 1:
            continue
        ((multiplier, gain),) = gains
        (given,) = (value for value in operation.inputs if value is not multiplier)
        source = _computed_by(given, tape.readers)
        if source is not None and _map_of(source) is not None:
            written = frozenset(filter(None, map(leaf_of, source.inputs)))
            if uses[gain] == {operation} and all(uses[name] == {source} for name in written):
                found.append(Gain(gain, written, 1))
    return found


def _computed_by(value: Value, readers: Readers) -> Operation | None:
    """The operation that computed a tensor, laid out anew since; None where anything else reads it on the way."""
    while value.source is not None and len(readers[value]) == 1:
        if not (value.source.name in LAYOUT or looks_at_others(value.source)):
            return value.source
        value = value.source.args[0]
    return None


def _affine(operation: Operation, readers: Readers) -> tuple[str, str | None, Value] | None:
    """The gain that an operation applies, the bias after it, and the tensor that comes out."""
    output = operation.outputs[0] if operation.outputs else None
    if output is None or not output.depends:
        return None
    if operation.operation == aten.native_layer_norm.default:
        gain, bias = map(leaf_of, operation.args[2:4])
        return (gain, bias, output) if gain is not None else None
    if operation.operation != aten.mul.Tensor:
        return None
    gains = [leaf_of(arg) for arg in operation.args if isinstance(arg, Value) and _is_vector(arg)]
    if len(gains) != 1 or gains[0] is None or len(operation.inputs) != 2:
        return None
    after = readers.get(output, ())
    if len(after) == 1 and after[0].operation == aten.add.Tensor:
        added = [
            leaf_of(arg) for arg in after[0].args if isinstance(arg, Value) and arg is not output and _is_vector(arg)
        ]
        if added and added[0] is not None:
            return gains[0], added[0], after[0].outputs[0]  # type: ignore[return-value]
    return gains[0], None, output


def _is_vector(value: Value) -> bool:
    return len(value.shape) >= 1 and value.shape[-1] > 1 and all(length == 1 for length in value.shape[:-1])


def _readers(value: Value, readers: Readers) -> Iterable[Operation]:
    """The operations that read a tensor, laid out anew or not, or laid beside others."""
    for operation in readers.get(value, ()):
        if not any(output is not None and output.depends for output in operation.outputs):
            continue
        if operation.name in LAYOUT or operation.name == "cat" or looks_at_others(operation):
            for output in operation.outputs:
                if output is not None:
                    yield from _readers(output, readers)
        else:
            yield operation


def _map_of(operation: Operation) -> str | None:
    """The name of the parameter by which an operation multiplies what it is given."""
    if operation.operation.overloadpacket not in CONTRACTIONS or not operation.inputs:
        return None
    factors = operation.inputs[-2:] if operation.operation != aten.convolution.default else operation.inputs[:2]
    return leaf_of(factors[-1], picked=True) or leaf_of(factors[0], picked=True)
