"""What is proposed where axes are split, joined, selected from or met at several positions, and that nothing else is.

Each model holds one thing that has led to false proposals, which verification rejects, but which cost it time, or
without which groups were missed.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_symmetry.symmetry.find import find_symmetries
from tests.small_models import TurnedAttention


class Ghost(nn.Module):
    """Its stream is one axis where a convolution reads it, and two that are one, end to end, where it is added to."""

    def __init__(self):
        super().__init__()
        self.stem, self.reads, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1, bias=False), nn.BatchNorm2d(5)
        self.primary, self.cheap = nn.Conv2d(5, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, images):
        stream = self.stem(images).relu()
        primary = self.primary(self.norm(self.reads(stream)).relu())
        return self.head(stream + torch.cat([primary, self.cheap(primary)], 1))


class Halved(nn.Module):
    """A LayerNorm along two halves end to end: neither half has a mean of zero."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.norm = nn.Linear(3, 4), nn.Linear(3, 4), nn.LayerNorm(8)
        self.maps, self.head = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, inputs):
        joined = torch.cat([self.left(inputs).tanh(), self.right(inputs).tanh()], -1)
        return self.head(self.maps(self.norm(joined)).tanh())


@pytest.mark.parametrize(("build", "shape"), [(Ghost, (2, 3, 6, 6)), (Halved, (5, 3))])
def test_what_holds_along_an_axis_as_a_whole_is_not_proposed_of_a_part(build, shape):
    torch.manual_seed(0)
    found = find_symmetries(build(), torch.randn(shape))
    assert not found.rejected
    assert {"permutation", "translation"} <= {group.kind for group in found}


class Factorized(nn.Module):
    """Linear attention whose queries meet the values unit by unit too: each head has a matrix of units by units."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(5, 3 * 2 * 4), nn.Linear(2 * 4, 3)

    def forward(self, tokens):
        queries, keys, values = self.qkv(tokens).unflatten(-1, (3, 2, 4)).movedim(-3, 0).transpose(-2, -3)
        met = queries @ (keys.softmax(-2).mT @ values) + queries * values.tanh()
        return self.out(met.transpose(-2, -3).flatten(-2))


def test_heads_with_a_matrix_of_units_by_units_are_permuted_and_their_units_within_each():
    torch.manual_seed(0)
    symmetries = find_symmetries(Factorized(), torch.randn(2, 6, 5))
    moved = {(group.kind, *(length for _, length in group.rows), group.size) for group in symmetries}
    assert {("permutation", 2), ("permutation", 2, 4)} <= moved
    assert not symmetries.rejected


class Decoder(nn.Module):
    """A map's bias may be taken up by the next on a stream in groups, which a padded convolution reads in the end."""

    def __init__(self):
        super().__init__()
        self.read, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(8, 5, 1), nn.Conv2d(5, 8, 1)
        self.second, self.narrow, self.wide = nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, images):
        stream = self.read(images)
        stream = stream + self.outer(self.inner(self.norm(stream).tanh()))
        return self.last(stream + self.wide(self.narrow(self.second(stream)).tanh()))


class InterleavedRotary(nn.Module):
    """What is added to all tokens goes on through a map whose outputs are turned in pairs, one beside the other."""

    def __init__(self):
        super().__init__()
        self.read, self.added = nn.Linear(5, 7), nn.Parameter(torch.randn(7))
        self.queries, self.keys, self.out = nn.Linear(7, 8), nn.Linear(7, 8), nn.Linear(7, 3)
        self.register_buffer("angles", torch.randn(6, 4))

    def turned(self, heads):
        left, right = heads.unflatten(-1, (4, 2)).unbind(-1)
        cos, sin = self.angles.cos(), self.angles.sin()
        return torch.stack([left * cos - right * sin, left * sin + right * cos], -1).flatten(-2)

    def forward(self, tokens):
        read = self.read(tokens).tanh()
        queries, keys = (self.turned(map_(read + self.added)) for map_ in (self.queries, self.keys))
        return self.out((queries @ keys.mT).softmax(-1) @ read)


@pytest.mark.parametrize(("build", "shape"), [(Decoder, (2, 3, 5, 5)), (InterleavedRotary, (2, 6, 5))])
def test_no_false_shift_is_proposed_along_an_axis_that_is_a_product(build, shape):
    torch.manual_seed(0)
    assert not find_symmetries(build(), torch.randn(shape)).rejected


def test_the_shift_through_two_maps_of_a_stream_in_groups_is_found():
    torch.manual_seed(0)
    through = {group.parameters for group in find_symmetries(Decoder(), torch.randn(2, 3, 5, 5)) if group.carried}
    assert through == {("inner.bias", "outer.bias"), ("second.bias", "narrow.bias")}


class Residual(nn.Module):
    """A map whose result is added to what it reads; its bias, where it has one, takes up what is added to both."""

    def __init__(self, bias):
        super().__init__()
        self.table, self.map = nn.Embedding(9, 4), nn.Linear(4, 4, bias=bias)

    def forward(self, tokens):
        stream = self.table(tokens)
        return stream + self.map(stream)


@pytest.mark.parametrize("bias", [True, False])
def test_what_goes_round_to_itself_is_taken_up_by_what_does_not_or_by_nothing(bias):
    torch.manual_seed(0)
    symmetries = find_symmetries(Residual(bias), torch.randint(9, (5, 6)))
    assert [group.parameters for group in symmetries] == [("table.weight", "map.bias")] * bias
    assert not symmetries.rejected


def test_a_shift_that_is_taken_up_by_no_whole_multiple_of_it_is_found():
    class Factor(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, inputs):
            return (2**0.5 * self.left(inputs.sin()) + self.right(inputs)).tanh()

    torch.manual_seed(0)
    symmetries = find_symmetries(Factor(), torch.randn(6, 5))
    assert [group.parameters for group in symmetries] == [("left.bias", "right.bias")]
    assert not symmetries.rejected


class NormedRotary(nn.Module):
    """Queries and keys that have a gain for each of their coordinates, before they are turned in planes of two."""

    def __init__(self, planes):
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(5, 8, bias=False) for _ in range(3))
        self.of_queries, self.of_keys = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.register_buffer("angles", torch.randn(6, 4))
        self.planes = planes

    def turned(self, heads):
        left, right = self.planes(heads)
        cos, sin = self.angles.cos(), self.angles.sin()
        return torch.cat([left * cos - right * sin, left * sin + right * cos], -1)

    def forward(self, tokens):
        queries = self.turned(F.rms_norm(self.queries(tokens), (8,)) * self.of_queries)
        keys = self.turned(F.rms_norm(self.keys(tokens), (8,)) * self.of_keys)
        return (queries @ keys.mT).softmax(-1) @ self.values(tokens)


@pytest.mark.parametrize("planes", [lambda x: x.chunk(2, -1), lambda x: x.unflatten(-1, (4, 2)).unbind(-1)])
def test_no_rotation_of_gains_is_proposed_which_multiply_each_coordinate_by_itself(planes):
    torch.manual_seed(0)
    symmetries = find_symmetries(NormedRotary(planes), torch.randn(2, 6, 5))
    assert ("rescaling", 4) in {(group.kind, group.size) for group in symmetries}
    assert not symmetries.rejected


class PatchMerging(nn.Module):
    """Every second position beside its neighbour, which a LayerNorm reads together: it takes the mean of both away."""

    def __init__(self):
        super().__init__()
        self.read, self.norm, self.reduce = nn.Linear(3, 6), nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, tokens):
        stream = self.read(tokens)
        return self.reduce(self.norm(torch.cat([stream[:, ::2], stream[:, 1::2]], -1)))


def test_a_stream_that_is_normed_at_two_positions_together_is_rotated_and_has_no_mean_of_its_own():
    torch.manual_seed(0)
    symmetries = find_symmetries(PatchMerging(), torch.randn(2, 6, 3))
    (rotation,) = (group for group in symmetries if group.kind == "rotation")
    assert (rotation.size, len(rotation.folds)) == (6, 2)
    assert not symmetries.rejected


class Graph(nn.Module):
    """A graph convolution whose neighbours are a sparse matrix: a buffer, or of the batch, or made of its entries."""

    def __init__(self, neighbours=None, made=False):
        super().__init__()
        self.read, self.out, self.made = nn.Linear(5, 7), nn.Linear(7, 3), made
        self.register_buffer("neighbours", neighbours)

    def forward(self, nodes, neighbours=None):
        matrix = self.neighbours if neighbours is None else neighbours
        if self.made:
            matrix = torch.sparse_coo_tensor(matrix.indices(), 2 * matrix.values(), matrix.shape).coalesce()
            return self.out((matrix @ self.read(nodes)).relu())
        return self.out(torch.sparse.mm(matrix, self.read(nodes)).relu())


@pytest.mark.parametrize(
    ("where", "layout"),
    [
        ("buffer", torch.sparse_coo),
        ("buffer", torch.sparse_csr),
        ("batch", torch.sparse_coo),
        ("batch", torch.sparse_csr),
        ("made", torch.sparse_coo),
    ],
)
def test_units_of_a_convolution_over_a_sparse_graph_are_found(where, layout):
    torch.manual_seed(0)
    neighbours, nodes = (torch.rand(6, 6) < 0.5).float().to_sparse(layout=layout), torch.randn(6, 5)
    model = Graph(None if where == "batch" else neighbours, where == "made")
    symmetries = find_symmetries(model, (nodes, neighbours) if where == "batch" else nodes)
    assert [(group.kind, group.name, group.verified) for group in symmetries] == [
        ("permutation", "read", True),
        ("rescaling", "read.rescaling", True),
    ]
    assert not symmetries.without_rule


class Normed(nn.Module):
    """A norm whose gain and bias may be anything."""

    def __init__(self, affine):
        super().__init__()
        self.read, self.map, self.out = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)
        self.gain, self.bias, self.affine = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6)), affine

    def forward(self, inputs):
        gain, bias = self.affine(self.gain, self.bias)
        return self.out(self.map(F.layer_norm(self.read(inputs).tanh(), (6,), gain, bias)).tanh())


@pytest.mark.parametrize(
    ("affine", "free"),
    [
        (lambda gain, bias: (gain, bias), True),
        (lambda gain, bias: (gain, torch.zeros(6)), True),
        (lambda gain, bias: (gain, torch.ones(6)), False),
        (lambda gain, bias: (1 + gain, bias), True),
        (lambda gain, bias: (gain.exp(), bias), False),
        (lambda gain, bias: (gain, bias.tanh()), False),
        (lambda gain, bias: (torch.arange(6.0), bias), False),
    ],
)
def test_a_map_behind_a_norm_has_a_free_mean_where_gain_and_bias_can_be_folded_into_it(affine, free):
    torch.manual_seed(0)
    symmetries = find_symmetries(Normed(affine), torch.randn(7, 5), kinds=["translation"])
    assert ("map.weight" in {group.parameters[0] for group in symmetries}) is free
    assert not symmetries.rejected


class Selected(nn.Module):
    """Of what a softmax or a norm reads, or gives, one position goes its own way."""

    def __init__(self, squash, way, bias):
        super().__init__()
        self.read, self.map, self.out = nn.Linear(3, 5), nn.Linear(5, 4, bias=bias), nn.Linear(4, 3)
        self.squash, self.way = squash, way

    def forward(self, inputs):
        scores = self.map(self.read(inputs).tanh())
        squashed = self.squash(scores)
        if self.way == "after":
            return self.out(torch.cat([squashed[..., :1], squashed[..., 1:].sin()], -1)).sin()
        return self.out(squashed).sin(), scores[..., 0]


@pytest.mark.parametrize("squash", [lambda x: x.softmax(-1), lambda x: F.layer_norm(x, (4,))])
@pytest.mark.parametrize("way", ["before", "after"])
@pytest.mark.parametrize("bias", [True, False])
def test_no_mean_is_free_along_the_rest_of_an_axis_of_which_one_position_stands_alone(squash, way, bias):
    torch.manual_seed(0)
    assert not find_symmetries(Selected(squash, way, bias), torch.randn(7, 3)).rejected


def test_what_is_added_to_all_that_is_averaged_is_taken_up_by_the_bias_after_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 3), nn.Tanh())
    symmetries = find_symmetries(model, torch.randn(7, 3))
    moved = {group.parameters for group in symmetries if group.kind == "translation"}
    assert ("2.weight", "2.bias") in moved
    assert not symmetries.rejected


class Memory(nn.Module):
    """Keys and values that are one tensor's two positions, along which nothing may be permuted by itself."""

    def __init__(self, linear):
        super().__init__()
        self.read, self.memory, self.out = nn.Linear(3, 5), nn.Parameter(torch.randn(2, 4, 5)), nn.Linear(5, 3)
        self.linear = linear

    def forward(self, inputs):
        queries = self.read(inputs)
        keys, values = self.memory
        if self.linear:
            return self.out(queries.softmax(-1) @ (keys.softmax(0).mT @ values))
        return self.out((queries @ keys.mT).softmax(-1) @ values)


@pytest.mark.parametrize("linear", [True, False])
def test_slots_of_a_memory_are_permuted_for_its_keys_and_values_together(linear):
    torch.manual_seed(0)
    symmetries = find_symmetries(Memory(linear), torch.randn(7, 3), kinds=["permutation"])
    slots = [group.rows for group in symmetries if group.size == 4]
    assert slots == [()]
    assert not symmetries.rejected


class Codebook(nn.Module):
    """Rounds to the nearest of some codes, buffers that follow what is rounded to them; and reads no registers."""

    def __init__(self):
        super().__init__()
        self.read, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("codes", torch.randn(6, 8))
        self.registers = nn.Parameter(torch.empty(1, 0, 8))

    def forward(self, inputs):
        units = torch.cat([self.registers.expand(len(inputs), -1, -1), self.read(inputs)], 1).flatten(0, 1)
        nearest = F.one_hot(torch.cdist(units, self.codes).argmin(-1), 6).to(units)
        with torch.no_grad():
            self.codes.lerp_(nearest.mT @ units, 0.1)
        return self.out(F.layer_norm(units + (nearest @ self.codes - units).detach(), (8,)))


def test_codes_that_no_parameter_has_and_parameters_without_entries_hinder_nothing():
    torch.manual_seed(0)
    symmetries = find_symmetries(Codebook(), torch.randn(2, 7, 5))
    assert ("permutation", 8) in {(group.kind, group.size) for group in symmetries}
    assert not symmetries.rejected


class Prototypes(nn.Module):
    """Compares with the directions alone of buffers that follow it: these may be scaled, and no parameter with them."""

    def __init__(self):
        super().__init__()
        self.read, self.bias = nn.Linear(5, 8), nn.Parameter(torch.randn(6))
        self.register_buffer("prototypes", torch.randn(6, 8))

    def forward(self, inputs):
        units = self.read(inputs)
        scores = units @ F.normalize(self.prototypes, dim=-1).mT + self.bias
        with torch.no_grad():
            self.prototypes.lerp_(scores.softmax(-1).mT @ units, 0.1)
        return scores


def test_groups_that_move_buffers_alone_are_left_out():
    torch.manual_seed(0)
    symmetries = find_symmetries(Prototypes(), torch.randn(7, 5))
    assert symmetries.groups and all(group.parameters for group in symmetries)
    assert not symmetries.rejected


class Gaussian(nn.Module):
    """Two numbers for each example, laid out anew and taken one by one: a mean and a deviation."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, inputs, targets):
        both = self.net(inputs).view(-1, 1, 2)
        return F.gaussian_nll_loss(both[..., 0], targets, F.softplus(both[..., 1]))


def test_what_is_added_to_all_outputs_changes_those_that_are_taken_one_by_one():
    symmetries = find_symmetries(Gaussian(), (torch.randn(7, 4), torch.randn(7, 1)))
    assert [(group.kind, group.name) for group in symmetries] == [
        ("permutation", "net.0"),
        ("rescaling", "net.0.rescaling"),
    ]
    assert not symmetries.rejected


def test_what_becomes_of_a_shift_is_followed_to_axes_whose_positions_are_taken_by_themselves():
    """As the weights of variables are, which are modules each: by a softmax of a gated sum of all."""

    class Selection(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings = nn.ModuleList(nn.Linear(1, 4) for _ in range(5))
            self.first, self.second, self.gate = nn.Linear(20, 6), nn.Linear(6, 5), nn.Linear(5, 10)
            self.norm, self.out = nn.LayerNorm(5), nn.Linear(4, 2)

        def forward(self, columns):
            each = [embedding(columns[:, k : k + 1]) for k, embedding in enumerate(self.embeddings)]
            gated = F.glu(self.gate(self.second(F.elu(self.first(torch.cat(each, -1))))), -1)
            weights = F.softmax(self.norm(gated), -1).unsqueeze(-2)
            return self.out((torch.tanh(torch.stack(each, -1)) * weights).sum(-1))

    torch.manual_seed(0)
    assert find_symmetries(Selection(), (torch.randn(9, 5),)).rejected == ()


def test_units_of_a_recurrence_are_flipped_each_and_not_once_more_together():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.read, self.out = nn.Parameter(torch.randn(5, 5)), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, inputs):
            state = torch.zeros(len(inputs), 5)
            for _ in range(3):
                state = torch.tanh(state @ self.hidden.T + self.read(inputs))
            return self.out(state)

    torch.manual_seed(0)
    symmetries = find_symmetries(Recurrent(), (torch.randn(7, 4),), kinds=["sign"])
    assert [group.size for group in symmetries] == [5]


def test_of_largest_entries_that_are_returned_nothing_is_said_that_holds_of_their_places_alone():
    class Largest(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores, self.temperature = nn.Linear(4, 6), nn.Parameter(torch.randn(1))

        def forward(self, inputs):
            return (self.scores(inputs) * self.temperature).topk(2)[0]

    torch.manual_seed(0)
    symmetries = find_symmetries(Largest(), (torch.randn(7, 4),))
    assert symmetries.rejected == ()
    assert [(group.kind, group.size) for group in symmetries] == [("scale", 1), ("sign", 1), ("permutation", 6)]


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("gained", [False, True])
def test_planes_are_turned_where_no_gain_tells_their_coordinates_apart(gained, side_by_side):
    """A gain on the keys, as IA3 adds one, is a number for each coordinate."""
    model = TurnedAttention(turned=6, side_by_side=side_by_side, gained=gained)
    groups = find_symmetries(model, torch.randn(4, 6, 5))
    assert sum(group.name.endswith("plane.rotation") for group in groups) == (not gained)
    assert not groups.rejected


class PartlySharedKeys(nn.Module):
    """Attention whose keys have a part for each head and one for all, laid beside it, as in DeepSeek."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(5, 2 * 7, bias=False), nn.Linear(5, 2 * 4, bias=False)
        self.shared, self.value = nn.Linear(5, 3, bias=False), nn.Linear(5, 2 * 4, bias=False)
        self.out = nn.Linear(8, 3)

    def forward(self, inputs):
        query, key, value = (
            layer(inputs).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        key = torch.cat([key, self.shared(inputs)[:, None].expand(-1, 2, -1, -1)], -1)
        scores = (query @ key.mT).softmax(-1)
        return self.out((scores @ value).transpose(1, 2).flatten(2))


def test_heads_cannot_be_scaled_against_what_is_laid_beside_each_and_is_the_same_for_all():
    torch.manual_seed(0)
    symmetries = find_symmetries(PartlySharedKeys(), torch.randn(4, 6, 5))
    assert [(group.kind, group.name, group.size) for group in symmetries] == [
        ("permutation", "query.groups", 2),
        ("rotation", "query.0.rotation", 4),
        ("rotation", "query.1.rotation", 3),
        ("rotation", "value.units.rotation", 4),
    ]
    assert not symmetries.rejected
