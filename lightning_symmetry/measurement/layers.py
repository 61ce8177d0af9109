"""Which layers of a model to listen to.

The outputs of its blocks say most: the members of a `ModuleList` or `Sequential` of which several are of one class, as
the blocks of a transformer or a residual net. A model without blocks is heard at the layers that hold its matrices.

What `torch.compile` has compiled cannot be heard from inside: hooks there would be ignored, or break its graph. A
module that `torch.compile(module)` returned can be heard from outside, as one.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_symmetry.tracing.enclosed import enclosed_modules

MOST_LAYERS = 24
"""Most layers listened to: the cost, and the number of keys, grow with them."""

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def original(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given, or the module itself."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def layer_names(model: nn.Module) -> list[str]:
    """The names of all modules that can be a layer: what is only a list of modules, or the model itself, cannot."""
    return [
        name
        for name, module in model.named_modules()
        if name and not isinstance(module, _CONTAINERS) and not name.endswith("_orig_mod")
    ]


def default_layers(model: nn.Module) -> list[str]:
    """The blocks of a model; or else its layers that hold a matrix, such as linear ones and convolutions.

    What is compiled is taken as one layer.
    """
    return list(_blocks(model, "")) or list(_matrix_layers(model, ""))


def _blocks(module: nn.Module, prefix: str) -> Iterator[str]:
    if _is_compiled(module):
        return
    kinds: Counter[type[nn.Module]] = Counter()
    children = list(module.named_children())
    if isinstance(module, nn.ModuleList | nn.Sequential):
        children = list(_members(module))
        kinds.update(type(original(child)) for _, child in children if _is_block(child))
    for name, child in children:
        if kinds[type(original(child))] > 1 and _is_block(child):
            yield f"{prefix}{name}"
        else:
            yield from _blocks(child, f"{prefix}{name}.")


def _members(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a list, those of lists and dictionaries within it in their place: these are called by nobody."""
    for name, child in module.named_children():
        if isinstance(child, _CONTAINERS):
            yield from ((f"{name}.{inner}", member) for inner, member in _members(child))
        else:
            yield name, child


def _is_block(module: nn.Module) -> bool:
    inner = original(module)
    return any(True for _ in inner.children()) and _holds_matrix(inner)


def _holds_matrix(module: nn.Module) -> bool:
    """Whether a parameter is a matrix, or may be once it has a shape."""
    return any(is_lazy(parameter) or parameter.dim() > 1 for parameter in module.parameters())


def _matrix_layers(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        if _is_compiled(child) or not any(True for _ in child.children()):
            if _holds_matrix(child):
                yield f"{prefix}{name}"
        else:
            yield from _matrix_layers(child, f"{prefix}{name}.")


def _is_compiled(module: nn.Module) -> bool:
    return (
        original(module) is not module
        or module._compiled_call_impl is not None
        or getattr(module, "_compiler_ctx", None) is not None
    )


def layers_of_types(model: nn.Module, types: Sequence[str]) -> list[str]:
    """The names of the modules of these classes, by their names or those of their parents.

    Raises:
        ValueError: The model has no module of one of them.
    """
    found = {}
    for name in layer_names(model):
        found[name] = {kind.__name__ for kind in type(original(model.get_submodule(name))).__mro__}
    for kind in types:
        if not any(kind in kinds for kinds in found.values()):
            known = sorted({type(original(module)).__name__ for module in model.modules()})
            raise ValueError(f"layer_types={list(types)!r}: the model has no {kind}; it has {', '.join(known)}")
    return [name for name, kinds in found.items() if kinds & set(types)]


def inside_compiled(model: nn.Module) -> set[str]:
    """The names of the modules that run inside of what `torch.compile` has compiled: modules, methods or functions."""
    names = {module: name for name, module in model.named_modules()}
    inside: set[str] = set()
    for module, name in names.items():
        if module._compiled_call_impl is not None or getattr(module, "_compiler_ctx", None) is not None:
            inside |= {name, *_beneath(names.values(), name)}
        elif original(module) is not module:
            inside |= _beneath(names.values(), name)
        functions = (getattr(held, "_torchdynamo_orig_callable", None) for held in vars(module).values())
        for enclosed in chain.from_iterable(map(enclosed_modules, functions)):
            if enclosed in names:
                inside |= {names[enclosed], *_beneath(names.values(), names[enclosed])}
    return inside


def _beneath(names: Iterable[str], name: str) -> set[str]:
    return {other for other in names if not name or other.startswith(f"{name}.")}


def thinned(names: Sequence[str], at_most: int = MOST_LAYERS) -> list[str]:
    """At most so many of the names, evenly spaced, the first and the last among them.

    Example:
        >>> thinned(["a", "b", "c", "d", "e"], 3)
        ['a', 'c', 'e']
    """
    if len(names) <= at_most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (at_most - 1))] for i in range(at_most)]


def classifier_name(model: nn.Module, named: str | None = None) -> str | None:
    """The name of the linear layer that decides for a class, where anything does.

    Args:
        model: The model.
        named: Its name; None for the last linear layer of several outputs.

    Raises:
        ValueError: No linear layer of several outputs has the name.
    """
    linear = [
        name
        for name in layer_names(model)
        if isinstance(inner := original(model.get_submodule(name)), nn.Linear) and inner.out_features > 1
    ]
    if named is not None and named not in linear:
        nearest = ", ".join(difflib.get_close_matches(named, linear, n=3, cutoff=0)) or "none: the model has no such"
        raise ValueError(
            f"classifier={named!r} is the name of no linear layer of several outputs; the nearest are {nearest}"
        )
    return named or (linear[-1] if linear else None)


def mixing_layers(model: nn.Module) -> list[str]:
    """The names of the layers that read all features of their input by one matrix: linear ones and convolutions."""
    return [
        name
        for name in layer_names(model)
        if isinstance(inner := original(model.get_submodule(name)), nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and getattr(inner, "groups", 1) == 1
    ]


def of_decoder_tokens(model: nn.Module) -> set[str]:
    """The names of the modules that read the tokens of a decoder with an encoder beside it, and not the encoder's.

    These are the decoder and what comes after it; keys and values of its attention to the encoder are not told apart.
    A decoder alone, as of many language models, has no tokens but those of the batch.
    """
    names = [name for name, _ in model.named_modules()]
    for place, name in enumerate(names):
        parent, _, own = name.rpartition(".")
        if "decoder" in own and "encoder" not in own:
            beside = [other for other in names if other and other.rpartition(".")[0] == parent]
            encoders = [one for one in beside if "encoder" in (own := one.rpartition(".")[2]) and "decoder" not in own]
            within = {one for encoder in encoders for one in (encoder, *_beneath(names, encoder))}
            if encoders:
                return set(names[place:]) - within
    return set()
