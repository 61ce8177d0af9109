"""Models outside the zoo, each with something that no model of the zoo has, against what is written down by hand.

A group is written as in `test_zoo_permutations`.
"""

import pytest
import torch
import transformers
from torch import nn

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


def test_the_stream_of_a_vision_model_to_which_layers_write_through_gains_is_rotated():
    """What its last norm gives is read at two places end to end: at the class token, and the mean of all patches."""
    torch.manual_seed(0)
    model = transformers.Dinov2ForImageClassification(
        transformers.Dinov2Config(
            hidden_size=12, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=8, patch_size=4
        )
    )
    symmetries = find_symmetries(model, {"pixel_values": numbers(2, 3, 8, 8), "labels": torch.tensor([0, 1])})
    (rotation,) = [group for group in symmetries if group.form]
    assert (rotation.form, rotation.size, rotation.verified) == ("orthogonal, mean kept", 12, True)
    layer = "dinov2.encoder.layer.1.{}"
    gains = {fold.pivot.tensor for fold in rotation.folds}
    assert {layer.format("layer_scale2.lambda1"), layer.format("norm2.weight"), "dinov2.layernorm.weight"} <= gains
    assert not gains & set(rotation.parameters)
    means = {group.name: group.n_rows for group in symmetries if group.kind == "translation"}
    assert means[layer.format("mlp.fc2.weight.translation")] == 24
    assert means[layer.format("mlp.fc2.bias.translation")] == 1
    assert not symmetries.rejected
