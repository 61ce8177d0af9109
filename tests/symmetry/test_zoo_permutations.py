"""The permutation groups of every model of the zoo, against what is written down by hand.

A group is written as its name, the sizes of the rows at which it acts by itself (units within each head), and its
number of units. So ``"attn.v.head_dims": (3, 5)`` permutes five coordinates, by a permutation of its own in each of
three heads.
"""

import pytest

from tests.zoo import ZOO, search


def of_each(groups, *places):
    """The same groups at several places of a model."""
    return {name.format(place): shape for place in places for name, shape in groups.items()}


FUSED_ATTENTION = {"{}.heads": (3,), "{}.qk.head_dims": (3, 5), "{}.v.head_dims": (3, 5)}

# Rotary embedding tells the coordinates of a query apart, each plane by its frequency: only values may be permuted.
LLAMA_BLOCK = {
    "model.layers.{}.self_attn.q_proj.head_groups": (2,),
    "model.layers.{}.self_attn.q_proj.heads": (2, 3),
    "model.layers.{}.self_attn.v_proj.head_dims": (2, 8),
}
MIXTRAL = {"model.embed_tokens": (36,)} | of_each(
    LLAMA_BLOCK | {"model.layers.{}.mlp.gate": (5,), "model.layers.{}.mlp.experts.gate_up_proj": (5, 22)}, 0, 1
)
ENCODER = {"read": (12,)} | of_each(
    {
        "encoder.layers.{}.self_attn.in_proj.heads": (3,),
        "encoder.layers.{}.self_attn.in_proj.qk.head_dims": (3, 4),
        "encoder.layers.{}.self_attn.in_proj.v.head_dims": (3, 4),
        "encoder.layers.{}.linear1": (22,),
    },
    0,
    1,
)
RECURRENT = {"embedding": (10,), "recurrent.weight_ih_l0": (12,), "recurrent.weight_ih_l1": (12,)}

EXPECTED = {
    "mlp relu": {"0": (11,), "2": (9,)},
    "mlp tanh": {"0": (11,), "2": (9,)},
    "mlp gelu": {"0": (11,), "2": (9,)},
    "mlp identity": {"0": (11,), "2": (9,)},
    "conv stack": {"0.0": (6,), "1.0": (10,), "3.0": (14,)},
    "resnet basic": {
        "resnet.embedder.embedder.convolution": (7,),
        "resnet.encoder.stages.0.layers.0.shortcut.convolution": (8,),  # the stream of the first stage
        "resnet.encoder.stages.0.layers.0.layer.0.convolution": (8,),
        "resnet.encoder.stages.0.layers.1.layer.0.convolution": (8,),
        "resnet.encoder.stages.1.layers.0.shortcut.convolution": (12,),  # the stream of the second
        "resnet.encoder.stages.1.layers.0.layer.0.convolution": (12,),
        "resnet.encoder.stages.1.layers.1.layer.0.convolution": (12,),
    },
    "resnet bottleneck": {
        "resnet.embedder.embedder.convolution": (7,),
        "resnet.encoder.stages.0.layers.0.shortcut.convolution": (12,),
        "resnet.encoder.stages.1.layers.0.shortcut.convolution": (20,),
    }
    | of_each(
        {
            "resnet.encoder.stages.0.layers.{}.layer.0.convolution": (3,),
            "resnet.encoder.stages.0.layers.{}.layer.1.convolution": (3,),
            "resnet.encoder.stages.1.layers.{}.layer.0.convolution": (5,),
            "resnet.encoder.stages.1.layers.{}.layer.1.convolution": (5,),
        },
        0,
        1,
    ),
    "mobilenet": {"stem.0": (6,), "block1.expand.0": (14,), "block2.expand.0": (18,), "block2.project.0": (8,)},
    "convnext": {
        "convnext.embeddings.patch_embeddings": (6,),
        "convnext.encoder.stages.0.layers.0.pwconv1": (24,),
        "convnext.encoder.stages.0.layers.1.pwconv1": (24,),
        "convnext.encoder.stages.1.downsampling_layer.1": (10,),
        "convnext.encoder.stages.1.layers.0.pwconv1": (40,),
    },
    "group norm": {"0.groups": (3,), "0.units": (3, 4), "3.groups": (2,), "3.units": (2, 7)},
    "unet": {
        "down1.0": (6,),
        "down2.0": (10,),
        "middle.0": (14,),
        "up2": (9,),
        "merge2.0": (8,),
        "merge1.0": (7,),
    },
    "densenet": {"stem": (6,), "layer1.conv": (4,), "layer2.conv": (7,), "transition.2": (8,)},
    "gpt2": {"transformer.wte": (15,)}
    | of_each(FUSED_ATTENTION, "transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn")
    | of_each({"transformer.h.{}.mlp.c_fc": (22,)}, 0, 1),
    "bert": {"bert.embeddings.word_embeddings": (15,)}
    | of_each(
        {
            "bert.encoder.layer.{}.attention.self.query.heads": (3,),
            "bert.encoder.layer.{}.attention.self.query.head_dims": (3, 5),
            "bert.encoder.layer.{}.attention.self.value.head_dims": (3, 5),
            "bert.encoder.layer.{}.intermediate.dense": (22,),
        },
        0,
        1,
    ),
    "vit": {"vit.embeddings.cls_token": (15,)}
    | of_each(
        {
            "vit.layers.{}.attention.q_proj.heads": (3,),
            "vit.layers.{}.attention.q_proj.head_dims": (3, 5),
            "vit.layers.{}.attention.v_proj.head_dims": (3, 5),
            "vit.layers.{}.mlp.fc1": (22,),
        },
        0,
        1,
    ),
    "encoder post-norm": ENCODER,
    "encoder pre-norm": ENCODER,
    "llama": {"model.embed_tokens": (36,)} | of_each(LLAMA_BLOCK | {"model.layers.{}.mlp.gate_proj": (22,)}, 0, 1),
    "gemma": {"model.embed_tokens": (36,)} | of_each(LLAMA_BLOCK | {"model.layers.{}.mlp.gate_proj": (22,)}, 0, 1),
    "mixtral eager": MIXTRAL,
    "mixtral batched": MIXTRAL,
    # One stream for encoder and decoder, whose embedding is shared. One table of relative positions serves all
    # self-attention of the encoder, one that of the decoder: their heads are tied over layers, those of
    # cross-attention are not.
    "t5": {
        "shared": (16,),
        "encoder.block.0.layer.0.SelfAttention.q.heads": (3,),
        "decoder.block.0.layer.0.SelfAttention.q.heads": (3,),
        "decoder.block.0.layer.1.EncDecAttention.q.heads": (3,),
        "decoder.block.1.layer.1.EncDecAttention.q.heads": (3,),
    }
    | of_each(
        {"{}.q.head_dims": (3, 5), "{}.v.head_dims": (3, 5)},
        "encoder.block.0.layer.0.SelfAttention",
        "encoder.block.1.layer.0.SelfAttention",
        "decoder.block.0.layer.0.SelfAttention",
        "decoder.block.1.layer.0.SelfAttention",
        "decoder.block.0.layer.1.EncDecAttention",
        "decoder.block.1.layer.1.EncDecAttention",
    )
    | of_each(
        {"encoder.block.{}.layer.1.DenseReluDense.wi": (22,), "decoder.block.{}.layer.2.DenseReluDense.wi": (22,)},
        0,
        1,
    ),
    "lstm": RECURRENT,
    "gru": RECURRENT,
    "mamba": {"backbone.embeddings": (10,)}
    | of_each(
        {
            "backbone.layers.{}.mixer.A_log": (20,),  # the inner channels
            "backbone.layers.{}.mixer.A_log.2": (5,),  # the state of each
            "backbone.layers.{}.mixer.x_proj.0": (7,),  # the rank of the map to the time steps
        },
        0,
        1,
    ),
    "lora": {"0.A": (3,), "0.B": (11,), "2.A": (2,)},
    "layer scale": {"0": (5,), "1.layer.0": (6,), "2.layer.0": (7,)},
    "heads in a list": {"heads": (3,), "heads.*.query": (3, 2), "heads.*.value": (3, 2)},
    "experts in a list": {"experts": (3,), "experts.*.up": (3, 6)},
    "ensemble": {"members": (3,), "members.*.0": (3, 5)},
    "vae": {"encoder.0": (11,), "encoder.2": (3,), "decoder.0": (9,)},
    "mlp-mixer": {
        "read": (10,),
        "blocks.0.patches.0": (7,),
        "blocks.0.channels.0": (13,),
        "blocks.1.patches.0": (8,),
        "blocks.1.channels.0": (14,),
    },
    "graph convolution": {"first": (11,), "second": (7,)},
    "siamese": {"tower.0": (11,), "tower.2": (7,)},  # a cosine does not tell the coordinates of its vectors apart
    # The law of the noise is the same in all of its coordinates: the generator's inputs may be permuted.
    "gan": {"generator.0": (11,), "generator.0.2": (3,), "discriminator.0": (9,)},
}

PRESERVING_ONLY_THE_LOSS = {
    "vae": {"encoder.0", "encoder.2", "decoder.0"},  # a step of training that calls no `forward`
}


def test_every_model_of_the_zoo_has_its_groups_written_down():
    assert list(EXPECTED) == list(ZOO)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ZOO)
def test_every_group_is_found_and_verified_and_no_other(name, training):
    symmetries = search(name, training, "permutation").symmetries
    found = {group.name: (*(length for _, length in group.rows), group.size) for group in symmetries}
    assert found == EXPECTED[name]
    assert all(group.verified and group.exact for group in symmetries)
    assert {group.name for group in symmetries if group.preserves == "loss"} == PRESERVING_ONLY_THE_LOSS.get(
        name, set()
    )
    assert not symmetries.rejected
    assert not symmetries.without_rule
