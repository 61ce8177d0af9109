"""Models outside the zoo, each with something that no model of the zoo has, against what is written down by hand.

A group is written as in `test_zoo_permutations`.
"""

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from lightning_symmetry.symmetry.find import find_symmetries
from tests.zoo import Case, numbers, of_language, tokens


def of_each(groups, *places):
    return {name.format(place): shape for place in places for name, shape in groups.items()}


SMALL = {"vocab_size": 31, "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "pad_token_id": 0}


def deberta():
    """Attention to relative positions, whose embeddings pass maps of their own and are repeated for the batch."""
    return transformers.DebertaV2ForMaskedLM(
        transformers.DebertaV2Config(
            **SMALL,
            intermediate_size=34,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            max_position_embeddings=40,
            norm_rel_ebd="layer_norm",
            share_att_key=False,
        )
    )


def qwen3():
    """A norm of each head's queries and keys, whose gain all heads share."""
    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SMALL, intermediate_size=34, num_key_value_heads=2, head_dim=6)
    )


def mamba2():
    """State-space heads in groups, and a norm over each group."""
    return transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            vocab_size=31,
            hidden_size=12,
            num_heads=4,
            head_dim=6,
            state_size=5,
            n_groups=2,
            num_hidden_layers=1,
            conv_kernel=3,
            chunk_size=4,
            pad_token_id=0,
        )
    )


def swin():
    """Windows that are rolled and masked, a bias for each head and offset, and merging of neighbours."""
    return transformers.SwinForImageClassification(
        transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=12, depths=[2, 1], num_heads=[2, 4], window_size=4, num_labels=5
        )
    )


def falcon():
    """One fused map for all, of which the last two heads, picked by a list of one index, are key and value."""
    return transformers.FalconForCausalLM(transformers.FalconConfig(**SMALL))


def cohere():
    """Rotary embedding of coordinates that stand side by side, picked by slices with a step of two."""
    return transformers.CohereForCausalLM(
        transformers.CohereConfig(**SMALL, intermediate_size=34, num_key_value_heads=2)
    )


def qwen2_moe():
    """Tokens sorted by their experts, whose maps are applied to one stretch of tokens each."""
    return transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(
            **SMALL | {"hidden_size": 32, "num_hidden_layers": 1},
            intermediate_size=34,
            num_key_value_heads=2,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=12,
            num_experts=5,
            num_experts_per_tok=2,
        )
    )


def deepseek():
    """Queries and keys by way of narrow maps, and experts in groups, of which some groups are chosen first."""
    return transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            **SMALL | {"hidden_size": 32, "num_hidden_layers": 1},
            intermediate_size=34,
            num_key_value_heads=4,
            q_lora_rank=9,
            kv_lora_rank=8,
            qk_nope_head_dim=6,
            qk_rope_head_dim=4,
            v_head_dim=5,
            n_routed_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=0,
        )
    )


def longformer():
    """Attention within windows that overlap in memory."""
    return transformers.LongformerForMaskedLM(
        transformers.LongformerConfig(**SMALL, intermediate_size=34, max_position_embeddings=40, attention_window=4)
    )


def funnel():
    """A pool along the sequence alone, of a tensor of two dimensions."""
    return transformers.FunnelForMaskedLM(
        transformers.FunnelConfig(
            vocab_size=31, block_sizes=[1, 1], num_decoder_layers=1, d_model=24, n_head=4, d_head=6, d_inner=34
        )
    )


class PackedRecurrent(nn.Module):
    """Sequences of several lengths, packed, both ways."""

    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(4, 8, batch_first=True, bidirectional=True)
        self.readout = nn.Linear(16, 2)

    def forward(self, sequence):
        packed = nn.utils.rnn.pack_padded_sequence(sequence, [5, 4, 2], batch_first=True)
        return self.readout(nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)[0])


class ConvolutionalLSTM(nn.Module):
    """A recurrent cell of feature maps, whose first state is zero, beside an image in one tensor."""

    def __init__(self):
        super().__init__()
        self.gates = nn.Conv2d(3 + 6, 4 * 6, 3, padding=1)
        self.readout = nn.Conv2d(6, 2, 1)

    def forward(self, frames):
        hidden = memory = frames.new_zeros(len(frames), 6, *frames.shape[-2:])
        for frame in frames.unbind(1):
            enter, forget, new, show = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
            memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
            hidden = show.sigmoid() * memory.tanh()
        return self.readout(hidden)


class LongConvolution(nn.Module):
    """A filter as long as the sequence for each channel, by way of Fourier transforms."""

    def __init__(self):
        super().__init__()
        self.read = nn.Linear(4, 12)
        self.filter = nn.Parameter(torch.randn(12, 9))
        self.out = nn.Linear(12, 3)

    def forward(self, sequence):
        hidden = self.read(sequence).transpose(1, 2)
        spectrum = torch.fft.rfft(hidden, n=18) * torch.fft.rfft(self.filter, n=18)
        return self.out(torch.fft.irfft(spectrum, n=18)[..., :9].transpose(1, 2).relu())


BERT_HEADS = {
    "{}.attention.self.query_proj.heads": (4,),
    "{}.attention.self.query_proj.head_dims": (4, 6),
    "{}.attention.self.value_proj.head_dims": (4, 6),
    "{}.intermediate.dense": (34,),
}
SWIN_BLOCK = {
    "swin.encoder.layers.{}.attention.q_proj.heads": (2,),
    "swin.encoder.layers.{}.attention.q_proj.head_dims": (2, 6),
    "swin.encoder.layers.{}.attention.v_proj.head_dims": (2, 6),
    "swin.encoder.layers.{}.mlp.fc1": (48,),
}
QWEN_BLOCK = {
    "model.layers.{}.self_attn.q_proj.head_groups": (2,),
    "model.layers.{}.self_attn.q_proj.heads": (2, 2),
    "model.layers.{}.self_attn.v_proj.head_dims": (2, 6),
    "model.layers.{}.mlp.gate_proj": (34,),
}
CASES = {
    "deberta": (
        of_language(deberta),
        {"deberta.embeddings.word_embeddings": (24,)}
        | of_each(BERT_HEADS, "deberta.encoder.layer.0", "deberta.encoder.layer.1")
        | {"deberta.encoder.layer.0.attention.self.pos_key_proj": (24,)},  # the stream of the relative positions
    ),
    "qwen3": (of_language(qwen3), {"model.embed_tokens": (24,)} | of_each(QWEN_BLOCK, 0, 1)),
    "mamba2": (
        of_language(mamba2),
        {"backbone.embeddings": (12,)}
        | of_each(
            {
                "{}.dt.groups": (2,),
                "{}.dt.units": (2, 2),
                "{}.conv1d.0.units": (2, 2, 6),
                "{}.conv1d.1_2.units": (2, 5),
            },
            "backbone.layers.0.mixer",
        ),
    ),
    "swin": (
        Case(swin, lambda: numbers(2, 3, 32, 32)),
        {"swin.embeddings.patch_embeddings.projection": (12,), "swin.encoder.layers.0.downsample.reduction": (24,)}
        | of_each(SWIN_BLOCK, "0.blocks.0", "0.blocks.1")
        | {
            name: (4, 6) if len(shape) == 2 else (96,) if shape == (48,) else (4,)
            for name, shape in of_each(SWIN_BLOCK, "1.blocks.0").items()
        },
    ),
    "falcon": (
        of_language(falcon),
        {"transformer.word_embeddings": (24,)}
        | of_each(
            {"{}.self_attention.query_key_value.0.heads": (4,), "{}.mlp.dense_h_to_4h": (96,)},
            "transformer.h.0",
            "transformer.h.1",
        )
        | of_each({"{}.self_attention.query_key_value.3": (6,)}, "transformer.h.0", "transformer.h.1"),
    ),
    "cohere": (of_language(cohere), {"model.embed_tokens": (24,)} | of_each(QWEN_BLOCK, 0, 1)),
    "qwen2 moe": (
        of_language(qwen2_moe),
        {"model.embed_tokens": (32,)}
        | of_each(
            {
                "{}.self_attn.q_proj.head_groups": (2,),
                "{}.self_attn.q_proj.heads": (2, 2),
                "{}.self_attn.v_proj.head_dims": (2, 8),
                "{}.mlp.gate": (5,),
                "{}.mlp.experts.gate_up_proj": (5, 8),
                "{}.mlp.shared_expert.gate_proj": (12,),
            },
            "model.layers.0",
        ),
    ),
    "deepseek": (
        of_language(deepseek),
        {"model.embed_tokens": (32,)}
        | of_each(
            {
                "{}.self_attn.q_a_proj": (9,),
                "{}.self_attn.q_b_proj.heads": (4,),
                "{}.self_attn.q_b_proj.0": (4, 6),
                "{}.self_attn.kv_a_proj_with_mqa.0": (8,),
                "{}.self_attn.kv_b_proj.1": (4, 5),
                "{}.mlp.experts.gate_up_proj.groups": (2,),
                "{}.mlp.experts.gate_up_proj.units": (2, 3),
                "{}.mlp.experts.gate_up_proj": (2, 3, 12),
                "{}.mlp.shared_experts.gate_proj": (12,),
            },
            "model.layers.0",
        ),
    ),
    "longformer": (
        Case(longformer, lambda: {"input_ids": tokens(31, length=8), "labels": tokens(31, length=8)}),
        {"longformer.embeddings.word_embeddings": (24,)}
        | of_each(
            {
                "{}.attention.self.query.heads": (4,),
                "{}.attention.self.query.head_dims": (4, 6),
                "{}.attention.self.value.head_dims": (4, 6),
                "{}.intermediate.dense": (34,),
            },
            "longformer.encoder.layer.0",
            "longformer.encoder.layer.1",
        ),
    ),
    "funnel": (
        Case(funnel, lambda: {"input_ids": tokens(31, length=8), "labels": tokens(31, length=8)}),
        {"funnel.embeddings.word_embeddings": (24,)}
        | of_each(
            {
                "{}.attention.r_w": (4,),
                "{}.attention.r_w.2": (4, 6),
                "{}.attention.v_head.head_dims": (4, 6),
                "{}.ffn.linear_1": (34,),
            },
            "funnel.encoder.blocks.0.0",
            "funnel.encoder.blocks.1.0",
            "funnel.decoder.layers.0",
        ),
    ),
    "packed lstm": (
        Case(PackedRecurrent, lambda: numbers(3, 5, 4)),
        {"recurrent.weight_ih_l0": (8,), "recurrent.weight_ih_l0_reverse": (8,)},
    ),
    "convolutional lstm": (Case(ConvolutionalLSTM, lambda: numbers(2, 3, 3, 5, 5)), {"gates": (6,)}),
    "long convolution": (Case(LongConvolution, lambda: numbers(2, 9, 4)), {"filter": (12,)}),
}


@pytest.mark.parametrize(("case", "expected"), CASES.values(), ids=CASES)
def test_every_group_of_units_of_another_model_is_found(case, expected):
    symmetries = find_symmetries(case.build().eval(), case.batch(), kinds=["permutation"])
    found = {group.name: (*(length for _, length in group.rows), group.size) for group in symmetries}
    assert found == expected
    assert not symmetries.rejected


@pytest.mark.parametrize("times", [(1, 2), (3, 1), (2, 1, 1)])
def test_a_repeated_axis_is_a_product_with_the_axis_that_was_repeated(times):
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8 * times[-1], 3)

        def forward(self, batch):
            return self.second(self.first(batch).tanh().repeat(times))

    torch.manual_seed(0)
    symmetries = find_symmetries(Repeated(), numbers(6, 4))
    groups = {(group.kind, group.size): set(group.parameters) for group in symmetries}
    moved = {"first.weight", "first.bias", "second.weight"}
    assert groups[("permutation", 8)] == groups[("sign", 8)] == moved
    assert not symmetries.rejected


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
        (lambda gain, bias: (1 + gain, bias), False),
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
