"""Small models, each with one thing that a search must understand, or it would lose a group or propose a false one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_symmetry.symmetry.find import find_symmetries
from tests.minis import Length, numbers, tokens
from tests.reference.completeness import generic, unaccounted


class CausalSelfAttention(nn.Module):
    """As nanoGPT writes it: the scores of what comes later are filled with minus infinity."""

    def __init__(self):
        super().__init__()
        self.read, self.norm = nn.Linear(8, 8), nn.LayerNorm(8, eps=0.0)
        self.c_attn, self.c_proj = nn.Linear(8, 3 * 8), nn.Linear(8, 9)
        self.register_buffer("mask", torch.tril(torch.ones(6, 6)).view(1, 1, 6, 6))

    def forward(self, series):
        q, k, v = (
            part.unflatten(-1, (2, 4)).transpose(1, 2)
            for part in self.c_attn(self.norm(self.read(series))).chunk(3, dim=-1)
        )
        scores = (q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5).masked_fill(self.mask == 0, float("-inf"))
        return self.c_proj((F.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2))


class GlobalTokens(nn.Module):
    """Scores of keys that all look at, and those of the others, are joined in one softmax, as in BigBird."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(5, 4) for _ in range(3))
        self.head = nn.Linear(4, 6)

    def forward(self, series):
        query, key = self.query(series), self.key(series)
        scores = torch.cat([query @ key[:, :2].mT, query @ key[:, 2:].mT], dim=-1)
        return self.head(torch.tanh(scores.softmax(-1) @ self.value(series)))


DIRECTIONS = {
    "causal attention": (
        CausalSelfAttention,
        numbers(4, 6, 8),
        {
            "the stream": 7 * 6 // 2 + 1,  # turned with its mean kept, and its scale
            "the mean that the norm takes": 8 + 1,
            "the gain, the bias, and the mean of what reads them": 8 + 8 + 3 * 8,
            "queries and keys, values and what reads them": 2 * 4**2 + 2 * 4**2,
            "the biases of keys and values": 8 + 8,
        },
    ),
    "joined scores": (GlobalTokens, numbers(4, 6, 5), {"queries and keys": 4**2, "the bias of keys": 4}),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_direction_in_which_nothing_changes_is_found(name):
    make, batch, directions = DIRECTIONS[name]
    torch.manual_seed(0)
    model = generic(make())
    symmetries = find_symmetries(model, batch())
    counted = unaccounted(list(symmetries), model, [batch() for _ in range(8)], lambda outputs: outputs)
    assert counted["nullity"] == sum(directions.values())
    assert counted["unaccounted"] == 0
    assert counted["outside"] < 1e-9
    assert not symmetries.rejected


def test_the_signs_of_a_gain_are_no_rotation_of_the_stream_before_it():
    """A norm of no more than the length: its gain is flipped with what is before it, or with what is behind it."""
    torch.manual_seed(0)
    symmetries = find_symmetries(generic(Length()), numbers(6, 8)())
    assert {(group.kind, group.size) for group in symmetries} == {
        ("rotation", 8),
        ("rescaling", 8),
        ("sign", 8),
        ("scale", 1),
    }


def test_a_mask_that_is_the_same_for_all_units_does_not_tell_their_mixtures_apart():
    """A mean over tokens that are no padding, as of sentence embeddings."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 5), nn.Linear(5, 3)

        def forward(self, ids):
            mask = (ids > 0).to(self.head.weight.dtype)[..., None].expand(-1, -1, 5)
            return self.head((self.embedding(ids) * mask).sum(1) / mask.sum(1).clamp(min=1e-9))

    torch.manual_seed(0)
    symmetries = find_symmetries(Pooled(), tokens()())
    assert [(group.kind, group.size) for group in symmetries] == [("rotation", 5)]


def test_the_mean_over_all_units_is_not_taken_for_one_over_each_group_of_them():
    """A norm, of which a grouped convolution reads each half."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.norm, self.halves = nn.Linear(3, 8), nn.LayerNorm(8), nn.Conv1d(8, 6, 2, groups=2)

        def forward(self, series):
            return self.halves(self.norm(self.read(series)).mT)

    torch.manual_seed(0)
    symmetries = find_symmetries(Halves(), torch.randn(8, 5, 3))
    assert not [name for name in symmetries.rejected if name.startswith(("read.weight", "read.bias"))]


def test_a_bias_that_all_heads_share_takes_up_no_shift_of_their_own():
    """Each head has a map of its own, and all add the same bias to what comes out of it."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.mix = nn.Linear(3, 4 * 3), nn.Linear(4 * 5, 2)
            self.maps, self.bias = nn.Parameter(torch.randn(4, 3, 5)), nn.Parameter(torch.randn(5))

        def forward(self, inputs):
            heads = self.read(inputs).unflatten(-1, (4, 3))
            return self.mix(torch.tanh(torch.einsum("nhd,hdo->nho", heads, self.maps) + self.bias).flatten(-2))

    torch.manual_seed(0)
    symmetries = find_symmetries(Heads(), torch.randn(6, 3))
    found = {(group.kind, group.n_rows, group.size) for group in symmetries}
    assert found == {("rotation", 4, 3), ("permutation", 1, 4), ("permutation", 1, 5), ("sign", 1, 5)}


class OfEach(nn.Module):
    """Two maps with something between."""

    def __init__(self, between, first=None, second=None):
        super().__init__()
        self.first, self.second = first or nn.Linear(5, 8), second or nn.Linear(8, 3)
        self.between = between

    def forward(self, batch):
        return self.second(self.between(self.first(batch)))


class Shuffled(nn.Module):
    """Grouped maps whose groups are shuffled between them, and a map of each channel by itself, as in ShuffleNet."""

    def __init__(self):
        super().__init__()
        self.first, self.each = nn.Conv2d(4, 12, 1, groups=2), nn.Conv2d(12, 12, 3, groups=12)
        self.last = nn.Conv2d(12, 8, 1, groups=2)

    def forward(self, image):
        hidden = F.relu(F.channel_shuffle(F.relu(self.first(image)), 2))
        return F.relu(self.last(F.relu(self.each(hidden)))).sum((1, 2, 3))


def interpolated(hidden):
    return F.interpolate(hidden.relu().mT, scale_factor=2.0, mode="linear").mT


def rescaled(*sizes):
    return [("permutation", size) for size in sizes] + [("rescaling", size) for size in sizes]


FEW = {
    "each unit has a slope of its own": (lambda: OfEach(nn.PReLU(8)), numbers(6, 5), rescaled(8)),
    "zero where a mask says so": (
        lambda: OfEach(lambda hidden: hidden.relu().masked_fill(torch.arange(6)[:, None] > 3, 0.0)),
        numbers(6, 5),
        rescaled(8),
    ),
    "sums along the sequence": (
        lambda: OfEach(lambda hidden: hidden.relu().cumsum(1).flip(1)),
        numbers(2, 6, 5),
        rescaled(8),
    ),
    "laid over more positions": (lambda: OfEach(interpolated), numbers(2, 6, 5), rescaled(8)),
    "windows of the sequence": (
        lambda: OfEach(lambda hidden: hidden.relu().unfold(1, 3, 1).amax(-1)),
        numbers(2, 6, 5),
        rescaled(8),
    ),
    "even and odd": (
        lambda: OfEach(lambda hidden: torch.cat([hidden.sin(), hidden.cos()], -1), second=nn.Linear(16, 3)),
        numbers(6, 5),
        [("permutation", 8), ("sign", 8)],
    ),
    "through frequencies": (
        lambda: OfEach(lambda hidden: torch.fft.irfft(torch.fft.rfft(hidden.relu(), dim=1), n=6, dim=1)),
        numbers(2, 6, 5),
        rescaled(8),
    ),
    "a bag of rows": (
        lambda: OfEach(torch.relu, nn.EmbeddingBag(9, 8), nn.Linear(8, 3)),
        tokens(),
        rescaled(8),
    ),
}


@pytest.mark.parametrize("name", FEW)
def test_just_these_groups_are_found(name):
    make, batch, expected = FEW[name]
    torch.manual_seed(0)
    symmetries = find_symmetries(generic(make()), batch())
    assert sorted((group.kind, group.size) for group in symmetries) == sorted(expected)
    assert not symmetries.rejected
    assert not symmetries.without_rule


def test_of_two_axes_that_are_rows_of_one_another_one_is_rescaled():
    torch.manual_seed(0)
    symmetries = find_symmetries(generic(Shuffled()), numbers(2, 4, 6, 6)())
    rescalings = [
        (*(length for _, length in group.rows), group.size) for group in symmetries if group.kind == "rescaling"
    ]
    assert sorted(rescalings) == [(2, 2, 3), (2, 2, 3)]


def test_planes_of_coordinates_side_by_side_are_turned():
    """Rotary embedding by multiplication with complex numbers, as the first Llama has it."""

    class Rotary(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key = nn.Linear(5, 6, bias=False), nn.Linear(5, 6, bias=False)

        def forward(self, series):
            angles = torch.outer(torch.arange(series.shape[1]), torch.tensor([1.0, 0.3, 0.1]))
            turns = torch.polar(torch.ones_like(angles), angles)
            query, key = (
                torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (3, 2))) * turns).flatten(-2)
                for x in (self.query(series), self.key(series))
            )
            return (query @ key.mT).softmax(-1)

    torch.manual_seed(0)
    symmetries = find_symmetries(generic(Rotary()), numbers(2, 4, 5)())
    assert [(group.kind, group.size, group.n_rows) for group in symmetries] == [
        ("rescaling", 3, 1),
        ("rotation", 2, 3),
        ("sign", 3, 1),
    ]
