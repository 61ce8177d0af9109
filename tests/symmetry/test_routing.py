"""Axes that a model chooses a position of: by the index of its largest entry, or one after the other in a loop."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_symmetry.symmetry.find import find_symmetries

VECTORS = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))


def found(forward, **shapes):
    """The permutation groups of a model with parameters of these shapes, all proposals verified."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.randn(shape)))

        def forward(self, inputs):
            return forward(self, inputs)

    torch.manual_seed(0)
    symmetries = find_symmetries(Model(), VECTORS, kinds=["permutation"])
    assert all(group.verified for group in symmetries)
    assert not symmetries.rejected
    return {group.name: (*(length for _, length in group.rows), group.size) for group in symmetries}


CODEBOOK = {"encoder": (7, 5), "codes": (11, 7), "decoder": (3, 7)}
EXPERTS = {"router": (4, 5), "into": (4, 6, 5), "out": (4, 3, 6)}


def test_the_codes_of_a_codebook_may_be_permuted():
    def nearest(model, inputs):
        hidden = inputs @ model.encoder.T
        codes = (hidden[:, None] - model.codes).square().sum(-1).argmin(-1)
        return F.embedding(codes, model.codes) @ model.decoder.T

    assert found(nearest, **CODEBOOK) == {"encoder": (7,), "codes": (11,)}


@pytest.mark.parametrize(
    "look_up",
    [
        lambda codes, indices: codes[indices],
        lambda codes, indices: codes.index_select(0, indices),
        lambda codes, indices: F.one_hot(indices, 11).float() @ codes,
        lambda codes, indices: torch.zeros(len(indices), 11).scatter(1, indices[:, None], 1.0) @ codes,
        lambda codes, indices: codes.expand(30, 11, 7).gather(1, indices[:, None, None].expand(30, 1, 7))[:, 0],
        lambda codes, indices: codes[indices.view(5, 6).T.reshape(30)].view(6, 5, 7).transpose(0, 1).reshape(30, 7),
    ],
    ids=["index", "index_select", "one_hot", "scatter", "gather", "laid out anew"],
)
def test_however_they_are_looked_up(look_up):
    def nearest(model, inputs):
        scores = inputs @ model.encoder.T @ model.codes.T
        return look_up(model.codes, scores.argmax(-1)) @ model.decoder.T

    assert found(nearest, **CODEBOOK) == {"encoder": (7,), "codes": (11,)}


def test_numbers_of_positions_that_are_computed_with_tell_them_apart():
    def shifted(model, inputs):
        scores = inputs @ model.encoder.T @ model.codes.T
        return model.codes[(scores.argmax(-1) + 1) % 11] @ model.decoder.T

    assert found(shifted, **CODEBOOK) == {"encoder": (7,)}


def test_codes_looked_up_by_the_data_are_told_apart():
    def given(model, inputs):
        return F.relu(model.codes[torch.arange(30) % 11] * (inputs @ model.encoder.T)) @ model.decoder.T

    assert found(given, **CODEBOOK) == {"encoder": (7,)}


def test_a_class_found_by_the_model_itself_is_its_label():
    """Pseudo-labels: the loss looks up the score of the class that has the highest."""

    def pseudo_labelled(model, inputs):
        scores = F.relu(inputs @ model.encoder.T) @ model.classes.T
        return F.cross_entropy(scores, scores.argmax(-1))

    assert found(pseudo_labelled, encoder=(7, 5), classes=(4, 7)) == {"encoder": (7,), "classes": (4,)}


def test_units_of_the_expert_chosen_for_each_token_are_permuted_by_expert():
    def chosen(model, inputs):
        weight, expert = (inputs @ model.router.T).softmax(-1).max(-1)
        hidden = F.gelu(torch.einsum("nhi,ni->nh", model.into[expert], inputs))
        return weight[:, None] * torch.einsum("noh,nh->no", model.out[expert], hidden)

    assert found(chosen, **EXPERTS) == {"router": (4,), "into": (4, 6)}


def test_units_of_two_experts_that_are_mixed_are_permuted_alike():
    def mixed(model, inputs):
        first, second = (inputs @ model.router.T).topk(2).indices.T
        hidden = torch.einsum("nhi,ni->nh", model.into[first] + model.into[second], inputs)
        return torch.einsum("noh,nh->no", model.out[first], F.gelu(hidden))

    assert found(mixed, **EXPERTS) == {"router": (4,), "into": (6,)}


def expert(model, inputs, number):
    return F.gelu(inputs @ model.into[number].T) @ model.out[number].T


def test_experts_that_run_one_after_the_other_may_be_permuted():
    def soft(model, inputs):
        weights = (inputs @ model.router.T).softmax(-1)
        return sum(weights[:, k : k + 1] * expert(model, inputs, k) for k in range(4))

    assert found(soft, **EXPERTS) == {"router": (4,), "into": (4, 6)}


def test_experts_that_write_where_they_are_chosen_may_be_permuted():
    def hard(model, inputs):
        chosen = (inputs @ model.router.T).argmax(-1)
        outputs = torch.zeros(len(inputs), 3)
        for k in range(4):
            outputs[chosen == k] = expert(model, inputs[chosen == k], k)
        return outputs

    assert found(hard, **EXPERTS) == {"router": (4,), "into": (4, 6)}


def test_experts_that_no_token_is_sent_to_may_be_permuted_with_the_others():
    def hit(model, inputs):
        few = inputs[:3]
        chosen = (few @ model.router.T).argmax(-1)
        numbers = [k for k in range(6) if bool((chosen == k).any())]
        assert 1 < len(numbers) < 6
        outputs = torch.zeros(3, 3)
        for k in numbers:
            sent = torch.where(chosen == k)[0]
            outputs = outputs.index_add(0, sent, expert(model, few[sent], k))
        return outputs

    assert found(hit, router=(6, 5), into=(6, 7, 5), out=(6, 3, 7)) == {"router": (6,), "into": (6, 7)}


@pytest.mark.parametrize("numbers", [range(3), (0, 3)], ids=str)
def test_positions_that_no_router_chooses_are_no_experts(numbers):
    """Those that are not selected are never used."""
    few = found(lambda model, inputs: sum(expert(model, inputs, k) for k in numbers), into=(5, 6, 5), out=(5, 3, 6))
    assert few == ({"into.0": (3,), "into": (6,)} if numbers == range(3) else {"into": (6,)})


@pytest.mark.xfail(strict=True, reason="a tensor that comes of several steps of a loop is taken to stand at none")
def test_layers_that_run_in_order_are_told_apart_but_have_units_of_their_own():
    def deep(model, inputs):
        for k in range(4):
            inputs = inputs + F.gelu(inputs @ model.into[k].T) @ model.out[k].T
        return inputs

    assert found(deep, into=(4, 6, 5), out=(4, 5, 6)) == {"into": (4, 6)}


def test_parts_that_do_not_meet_position_by_position_are_told_apart():
    def crossed(model, inputs):
        return sum(F.gelu(inputs @ model.into[k].T) @ model.out[(k + 1) % 4].T for k in range(4))

    assert found(crossed, into=(4, 6, 5), out=(4, 3, 6)) == {"into": (6,)}
