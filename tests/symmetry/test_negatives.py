"""Groups that hold at initialisation alone, where much is zero, one or equal, are not symmetries, and not reported.

Each is written down by hand. It changes nothing that its model computes as initialised, so that whoever tried it there
would take it for a symmetry; at other parameters it does. Verification must drop it, and a search must not find it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from lightning_symmetry.symmetry.actions import Action, Block
from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.symmetry.groups import SymmetryGroup
from lightning_symmetry.symmetry.proposals import propose
from lightning_symmetry.symmetry.verification import MOVEMENT, relative_change, verify
from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tracing import trace
from tests import nets
from tests.zoo import ZOO, Case, of_vectors

Degrees = Mapping[str, tuple[int, ...] | int]
"""By the names of parameters: the degree of each dimension, 0 for one that stays as it is; a number for the whole."""


@dataclass(frozen=True)
class Orthogonal(SymmetryGroup):
    """Turns an axis by orthogonal matrices; by those that keep the vector of ones, where norms take the mean."""

    keeps_mean: bool = False

    def transform(self, tensors: Mapping[str, Tensor], generator: Generator | None = None) -> dict[str, Tensor]:
        matrix = torch.randn(self.size, self.size, generator=generator, dtype=torch.float64)
        orthogonal = torch.linalg.qr(matrix)[0]
        if self.keeps_mean:
            first = torch.linalg.qr(torch.cat([torch.ones_like(matrix[:, :1]), matrix[:, 1:]], 1))[0]
            within = torch.block_diag(torch.ones(1, 1), torch.linalg.qr(matrix[1:, 1:])[0])
            orthogonal = first @ within @ first.T
        moved = dict(tensors)
        for action in self.actions:
            tensor = moved[action.block.tensor]
            for dim in action.block.dims("units"):
                tensor = torch.tensordot(orthogonal.to(tensor.dtype), tensor, dims=([1], [dim])).movedim(0, dim)
            moved[action.block.tensor] = tensor.contiguous()
        return moved


def orthogonal(keeps_mean: bool) -> Callable[..., SymmetryGroup]:
    return lambda **where: Orthogonal(kind="rotation", keeps_mean=keeps_mean, **where)


def of_kind(kind: str) -> Callable[..., SymmetryGroup]:
    return lambda **where: SymmetryGroup(kind=kind, **where)


def acting(model: nn.Module, make: Callable[..., SymmetryGroup], degrees: Degrees) -> SymmetryGroup:
    """A group written down by hand."""
    parameters = dict(model.named_parameters())
    actions, sizes = [], set()
    for name, powers in degrees.items():
        shape = parameters[name].shape
        views = () if isinstance(powers, tuple) else ((0, (1, shape[0])),)
        powers = powers if isinstance(powers, tuple) else (powers, *[0] * len(shape))
        block = Block(name, views, tuple("units" if power else "" for power in powers), shape.numel())
        sizes |= {block.shape(shape)[dim] for dim in block.dims("units")}
        actions.append(Action(block, powers))
    (size,) = sizes
    return make(name="false", axis="units", size=size, rows=(), actions=tuple(actions), parameters=tuple(degrees))


def without_biases(activation: type[nn.Module]) -> Case:
    """An MLP whose biases start at zero, as they do in many models."""

    def make() -> nn.Module:
        model = nets.mlp(activation)
        for layer in model[::2]:
            nn.init.zeros_(layer.bias)
        return model

    return of_vectors(make)


def post_norm() -> nn.Module:
    model = nets.Encoder(norm_first=False)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.0
    return model


def in_layers(pattern: str, degrees: Degrees) -> dict[str, tuple[int, ...] | int]:
    return {pattern.format(layer) + name: powers for layer in (0, 1) for name, powers in degrees.items()}


READ, WRITE = (0, 1), (1, 0)  # the dimension of a linear map's weight that is the stream
LLAMA = {
    "model.embed_tokens.weight": READ,
    **in_layers("model.layers.{}.self_attn.", {f"{name}_proj.weight": READ for name in "qkv"}),
    **in_layers("model.layers.{}.", {"self_attn.o_proj.weight": WRITE, "mlp.down_proj.weight": WRITE}),
    **in_layers("model.layers.{}.mlp.", {"gate_proj.weight": READ, "up_proj.weight": READ}),
    "lm_head.weight": READ,
}
GPT2 = {  # whose weights are transposed
    "transformer.wte.weight": READ,
    "transformer.wpe.weight": READ,
    **in_layers("transformer.h.{}.", {"attn.c_attn.weight": WRITE, "mlp.c_fc.weight": WRITE}),
    **in_layers("transformer.h.{}.", {"attn.c_proj.weight": READ, "mlp.c_proj.weight": READ}),
    **in_layers("transformer.h.{}.", {"attn.c_proj.bias": (1,), "mlp.c_proj.bias": (1,)}),
}
BERT = {
    **{f"bert.embeddings.{name}_embeddings.weight": READ for name in ("word", "position", "token_type")},
    **in_layers(
        "bert.encoder.layer.{}.attention.self.", {f"{name}.weight": READ for name in ("query", "key", "value")}
    ),
    **in_layers("bert.encoder.layer.{}.", {"attention.output.dense.weight": WRITE, "output.dense.weight": WRITE}),
    **in_layers("bert.encoder.layer.{}.", {"attention.output.dense.bias": (1,), "output.dense.bias": (1,)}),
    **in_layers("bert.encoder.layer.{}.", {"intermediate.dense.weight": READ}),
    "cls.predictions.transform.dense.weight": (1, 1),
    "cls.predictions.transform.dense.bias": (1,),
}
SEGMENT = {"norm1.weight": 1, "linear1.weight": -1, "linear2.weight": 1, "linear2.bias": 1}

FALSE: dict[str, tuple[Case, Callable[..., SymmetryGroup], Degrees]] = {
    "LoRA: shuffle the rank in A while B is 0": (ZOO["lora"], of_kind("permutation"), {"0.A": (1, 0)}),
    "LoRA: rescale the rank in A while B is 0": (ZOO["lora"], of_kind("rescaling"), {"0.A": (1, 0)}),
    "LoRA: mix the rank in A while B is 0": (ZOO["lora"], of_kind("rotation"), {"0.A": (1, 0)}),
    "ReLU: rescale units but not their bias of 0": (
        without_biases(nn.ReLU),
        of_kind("rescaling"),
        {"0.weight": (1, 0), "2.weight": (0, -1)},
    ),
    "tanh: flip units but not their bias of 0": (
        without_biases(nn.Tanh),
        of_kind("sign"),
        {"0.weight": (1, 0), "2.weight": (0, 1)},
    ),
    "GELU: shuffle units but not their bias of 0": (
        without_biases(nn.GELU),
        of_kind("permutation"),
        {"0.weight": (1, 0), "2.weight": (0, 1)},
    ),
    "RMSNorm: shuffle the stream but not the gains of 1": (ZOO["llama"], of_kind("permutation"), LLAMA),
    "RMSNorm: turn the stream, whatever the gains of 1": (ZOO["llama"], orthogonal(keeps_mean=False), LLAMA),
    "post-norm: shuffle the stream but not the affine maps of 1 and 0": (ZOO["bert"], of_kind("permutation"), BERT),
    "post-norm: scale a segment of the stream but not the norm's bias of 0": (
        Case(post_norm, ZOO["encoder post-norm"].batch),
        of_kind("scale"),
        {f"encoder.layers.0.{name}": power for name, power in SEGMENT.items()},
    ),
    "tied head: turn the stream, and with it the embedding that is read again": (
        ZOO["gpt2"],
        orthogonal(keeps_mean=True),
        GPT2,
    ),
}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def generic(model: nn.Module) -> nn.Module:
    """The model at parameters perturbed by noise."""
    moved, generator = copy.deepcopy(model), Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return moved


def change(model: nn.Module, batch: Any, group: SymmetryGroup) -> float:
    """By how much a random element changes an output, relative to the largest."""
    before = state(model)
    after = group.transform(before, Generator().manual_seed(2))
    keywords, inputs = (batch, ()) if isinstance(batch, dict) else ({}, (batch.double(),))
    with torch.no_grad():
        outputs = [functional_call(model, tensors, inputs, keywords) for tensors in (after, before)]
    left, right = (output if isinstance(output, Tensor) else output.logits for output in outputs)
    return relative_change([left], [right])


def distance(model: nn.Module, group: SymmetryGroup) -> float:
    """By how much a random element moves what it acts on, relative to its size."""
    before = state(model)
    after = group.transform(before, Generator().manual_seed(2))
    left, right = (torch.cat([tensors[name].flatten() for name in group.parameters]) for tensors in (after, before))
    return float((left - right).norm() / right.norm())


# Llama's norms compute in float32, in a model of float64 too
ROUNDING = 2e-6


@pytest.mark.parametrize("name", FALSE)
def test_a_group_that_holds_at_initialisation_alone_is_neither_verified_nor_found(name):
    case, make, degrees = FALSE[name]
    model, batch = case.build(), case.batch()
    false = acting(model, make, degrees)

    exact = case.build().double().eval()
    assert distance(exact, false) > MOVEMENT
    assert change(exact, batch, false) <= ROUNDING  # whoever tried it here would take it for a symmetry
    assert change(generic(exact), batch, false) > 1e-3

    verified = verify(Step(model, batch), [false])
    assert (verified.groups, verified.rejected) == ([], [false])

    found = find_symmetries(model, batch, kinds=[false.kind])
    acts = {(action.block.tensor, action.degrees) for action in false.actions}
    assert all({(action.block.tensor, action.degrees) for action in group.actions} != acts for group in found)
    held = [group for group in found if group.preserves == "output" and group.exact]
    assert all(change(generic(exact), batch, group) <= ROUNDING for group in held)


@pytest.mark.parametrize("name", FALSE)
def test_beside_a_false_group_true_ones_are_verified_all_the_same(name):
    case, make, degrees = FALSE[name]
    model, batch = case.build(), case.batch()
    step, false = Step(model, batch), acting(model, make, degrees)
    groups = propose(trace(step), step.parameters, ["permutation", "scale"]).groups
    middle = len(groups) // 2
    verified = verify(step, [*groups[:middle], false, *groups[middle:]])
    passed, failed = verified.groups, verified.rejected
    assert failed == [false]
    assert [group.name for group in passed] == [group.name for group in groups]


@pytest.mark.parametrize("kind", ["rescaling", "sign"])
def test_a_norm_that_a_tied_head_reads_has_no_group_of_its_own(kind):
    """Untied, the head takes up the gain of the last norm; tied, it cannot without changing what is embedded."""
    found = {}
    for tied in (True, False):
        model = ZOO["gpt2"].build()
        if not tied:
            model.config.tie_word_embeddings = False
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        groups = find_symmetries(model, ZOO["gpt2"].batch(), kinds=[kind])
        of_units = [group for group in groups if group.size > 1]
        found[tied] = {group.parameters for group in of_units if "transformer.ln_f.weight" in group.parameters}
    assert found[True] == set()
    assert found[False] == {("transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight")}
