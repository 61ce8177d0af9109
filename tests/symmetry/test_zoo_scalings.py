"""The rescaling, sign, scale, rotation and translation groups of the zoo, against what is written down by hand.

A group is written as where it acts, the sizes of the rows at which it acts by itself, and its number of units. Names
leave out the kind: ``"norm": (12,)`` under ``rescaling`` is the group ``norm.rescaling``. Where two groups of a kind
start at one module, as those of a concatenated axis do, they are numbered.
"""

import pytest

from tests.symmetry.test_zoo_permutations import of_each
from tests.zoo import ZOO, search

LAYERS = (0, 1)


def affine(*norms, size):
    """The gain and bias of norms against the maps that read them: positive numbers, and signs."""
    return {"rescaling": dict.fromkeys(norms, (size,)), "sign": dict.fromkeys(norms, (size,))}


def filters(pairs):
    """Filters before batch norm: their scale, and their sign with that of the norm's gain."""
    return {
        "scale": {convolution: (size,) for convolution, _, size in pairs},
        "sign": {norm: (size,) for _, norm, size in pairs},
    }


def means(**rows):
    """The mean that a norm, or the softmax of the loss, takes of what maps write: of their weights and their biases.

    Rows are those of the weights: anything may be added that is the same all along the axis that is written to.
    """
    weights = {f"{place}.weight": (*sizes, 1) for place, sizes in rows.items()}
    return {"translation": {**weights, **{f"{place}.bias": (1,) for place in rows}}}


def reads(**rows):
    """The mean along what a LayerNorm gives, whose own is zero, of the maps that read it; rows are those written to."""
    return {"translation": {f"{place}.weight": (*sizes, 1) for place, sizes in rows.items()}}


def shifts(*places, size):
    """What is added to biases and taken up by others."""
    return {"translation": dict.fromkeys(places, (size,))}


def attention_biases(places, key, value, n_heads, size):
    """The bias of keys, which softmax takes away, and that of values, which goes on into that of the output."""
    return {"translation": of_each({f"{{}}.{name}": (n_heads, size) for name in (key, value)}, *places)}


def wholes(*places):
    """Scales of whole tensors, one number each: all that is written to a stream, against the norms that read it."""
    return {"scale": dict.fromkeys(places, (1,))}


def centred_wholes(*places):
    """The same where the norms take the mean of all units away, so that these can only be flipped together."""
    return {"scale": dict.fromkeys(places, (1,)), "sign": dict.fromkeys(places, (1,))}


def together(*parts):
    """Groups by kind, from several parts."""
    kinds = dict.fromkeys(kind for part in parts for kind in part)
    return {kind: {name: shape for part in parts for name, shape in part.get(kind, {}).items()} for kind in kinds}


def resnet_filters(*shapes):
    """The convolutions of a ResNet's layers and shortcuts, each with its norm, and the widths of their filters."""
    return [(f"resnet.{place}.convolution", f"resnet.{place}.normalization", size) for place, size in shapes]


def shortcuts(*widths):
    """The biases of two norms that are added, that of a stage's shortcut and that of the layer beside it."""
    place = "resnet.encoder.stages.{}.layers.0.shortcut.normalization"
    return {"translation": {place.format(stage): (width,) for stage, width in enumerate(widths)}}


def resnet_basic():
    shapes = [("embedder.embedder", 7)]
    for stage, width in ((0, 8), (1, 12)):
        shapes.append((f"encoder.stages.{stage}.layers.0.shortcut", width))
        shapes += [(f"encoder.stages.{stage}.layers.{k}.layer.{j}", width) for k in LAYERS for j in (0, 1)]
    # the last norm of each layer is added to the stream, which one group of the shortcut's norm scales as a whole
    last = ("encoder.stages.0.layers.0.layer.1", "encoder.stages.0.layers.1.layer.1")
    last += ("encoder.stages.1.layers.0.layer.1", "encoder.stages.1.layers.1.layer.1")
    inner = {f"resnet.{place}.normalization": (size,) for place, size in shapes if place not in last}
    present = [(place, size) for place, size in shapes if not place.endswith("1.layers.1.shortcut")]
    return together(
        filters(resnet_filters(*present)), {"rescaling": inner}, shortcuts(8, 12), means(**{"classifier.1": (12,)})
    )


def resnet_bottleneck():
    shapes = [("embedder.embedder", 7)]
    for stage, width, narrow in ((0, 12, 3), (1, 20, 5)):
        shapes.append((f"encoder.stages.{stage}.layers.0.shortcut", width))
        for k in LAYERS:
            layer = f"encoder.stages.{stage}.layers.{k}.layer"
            shapes += [(f"{layer}.0", narrow), (f"{layer}.1", narrow), (f"{layer}.2", width)]
    inner = {f"resnet.{place}.normalization": (size,) for place, size in shapes if not place.endswith("layer.2")}
    return together(
        filters(resnet_filters(*shapes)), {"rescaling": inner}, shortcuts(12, 20), means(**{"classifier.1": (20,)})
    )


def unet():
    pairs = [("down1", 6), ("down2", 10), ("middle", 14), ("merge2", 8), ("merge1", 7)]
    return together(
        {kind: {f"{name}.0": (size,) for name, size in pairs} for kind in ("scale", "sign", "translation")},
        {"rescaling": {f"{name}.1": (size,) for name, size in pairs}},
        {"rotation": {"up2": (9,)}},  # a transposed convolution meets a convolution
    )


def heads(places, query, value, n_heads, size):
    return {"rotation": of_each({f"{{}}.{name}.head_dims": (n_heads, size) for name in (query, value)}, *places)}


LLAMA = together(
    affine(
        *of_each({"model.layers.{}.input_layernorm": (), "model.layers.{}.post_attention_layernorm": ()}, *LAYERS),
        "model.norm",
        size=36,
    ),
    # one scale, one sign and one angle a plane of the rotary embedding, in each key-value head
    {kind: of_each({"model.layers.{}.self_attn.q_proj": (2, 4)}, *LAYERS) for kind in ("rescaling", "sign")},
    {"rotation": of_each({"model.layers.{}.self_attn.q_proj.plane": (2, 4, 2)}, *LAYERS)},
    {"rotation": of_each({"model.layers.{}.self_attn.v_proj.head_dims": (2, 8)}, *LAYERS)},
)
# norms look at the length of the stream, and divide it by its size
LINEAR_BRANCHES = {kind: of_each({"model.layers.{}.mlp.up_proj": (22,)}, *LAYERS) for kind in ("rescaling", "sign")}
STREAM = {"rotation": {"model.embed_tokens": (36,)}, "scale": {"model.embed_tokens": (1,)}}
LOGITS = {"translation": {"lm_head.weight": (36, 1)}}
ROUTERS = {"translation": of_each({"model.layers.{}.mlp.gate.weight": (36, 1)}, *LAYERS)}
EXPERTS = {
    kind: of_each({"model.layers.{}.mlp.experts.gate_up_proj": (5, 22)}, *LAYERS) for kind in ("rescaling", "sign")
}
ENCODER_HEADS = heads([f"encoder.layers.{k}.self_attn.in_proj" for k in LAYERS], "qk", "v", 3, 4)
ENCODER_MEANS = together(
    means(**of_each({"encoder.layers.{}.self_attn.out_proj": (3, 4), "encoder.layers.{}.linear2": (22,)}, *LAYERS)),
    reads(**of_each({"encoder.layers.{}.linear1": (22,)}, *LAYERS)),
    attention_biases([f"encoder.layers.{k}.self_attn.in_proj" for k in LAYERS], "qk.head_dims", "v.head_dims", 3, 4),
)


def fused(places, n_heads, size):
    """The mean along what a LayerNorm gives of the three parts of fused maps."""
    return {"translation": of_each(dict.fromkeys(("{}", "{}#2", "{}#3"), (n_heads, size, 1)), *places)}


T5_NORMS = [
    *of_each({"encoder.block.{}.layer.0.layer_norm": (), "encoder.block.{}.layer.1.layer_norm": ()}, *LAYERS),
    *of_each({f"decoder.block.{{}}.layer.{k}.layer_norm": () for k in (0, 1, 2)}, *LAYERS),
    "encoder.final_layer_norm",
]
T5_ATTENTION = [
    *(f"encoder.block.{k}.layer.0.SelfAttention" for k in LAYERS),
    *(f"decoder.block.{k}.layer.0.SelfAttention" for k in LAYERS),
    *(f"decoder.block.{k}.layer.1.EncDecAttention" for k in LAYERS),
]


def recurrent(gates):
    """An embedding read by the gates' maps alone; hidden units; for each of so many gates two biases that are added."""
    layers = ("recurrent.weight_ih_l0", "recurrent.weight_ih_l1")
    names = (layer if gate == 1 else f"{layer}#{gate}" for layer in layers for gate in range(1, gates + 1))
    return {
        "rotation": {"embedding": (10,)},
        "sign": dict.fromkeys(layers, (12,)),
        "translation": {"embedding": (10,), **dict.fromkeys(names, (12,))},
    }


EXPECTED = {
    "mlp relu": {"rescaling": {"0": (11,), "2": (9,)}},
    "mlp tanh": {"sign": {"0": (11,), "2": (9,)}},
    "mlp gelu": {},
    "mlp identity": together({"rotation": {"0": (11,), "2": (9,)}}, {"translation": {"0": (11,), "2": (9,)}}),
    "conv stack": {
        "scale": {"0.0": (6,), "1.0": (10,), "3.0": (14,)},
        "sign": {"0.0": (6,), "1.1": (10,), "3.0": (14,)},
        "rescaling": {"0.1": (6,), "1.1": (10,), "3.1": (14,)},
        "translation": {"0.0": (6,), "3.0": (14,)},  # biases before batch norm
    },
    "resnet basic": resnet_basic(),
    "resnet bottleneck": resnet_bottleneck(),
    "mobilenet": together(
        filters(
            [
                ("stem.0", "stem.0", 6),
                ("block1.expand.0", "block1.expand.1", 14),
                ("block1.depthwise.0", "block1.depthwise.1", 14),
                ("block1.project.0", "block1.project.1", 6),
                ("block2.expand.0", "block2.expand.1", 18),
                ("block2.depthwise.0", "block2.depthwise.1", 18),
                ("block2.project.0", "block2.project.1", 8),
            ]
        ),
        # ReLU6 saturates, so only the stream of linear bottlenecks has a scale; the last may be flipped as a whole
        {"rescaling": {"stem.1": (6,), "block2.project.1": (8,)}, "sign": {"block2.project.1#2": (8,)}},
        # before batch norm, and through the linear bottlenecks and the next convolution, whose mean it takes away
        {"translation": {"stem.0": (6,), "block1.project.1": (6,), "block2.project.1": (8,)}},
    ),
    "convnext": together(
        affine(  # layer scale against the map before it
            *of_each({"convnext.encoder.stages.0.layers.{}": ()}, *LAYERS),
            *of_each({"convnext.encoder.stages.0.layers.{}.layernorm": ()}, *LAYERS),
            "convnext.encoder.stages.1.downsampling_layer.0",
            size=6,
        ),
        affine(
            "convnext.encoder.stages.1.layers.0",
            "convnext.encoder.stages.1.layers.0.layernorm",
            "convnext.layernorm",
            size=10,
        ),
        centred_wholes(  # each norm reads a depthwise convolution, or a stream that a norm or a convolution starts
            "convnext.embeddings.patch_embeddings",
            "convnext.embeddings.layernorm",
            *of_each({"convnext.encoder.stages.0.layers.{}.dwconv": ()}, *LAYERS),
            "convnext.encoder.stages.1.layers.0.dwconv",
        ),
        {
            "scale": {"convnext.encoder.stages.1.downsampling_layer.0": (1,)},
            "sign": {"convnext.encoder.stages.1.downsampling_layer.1": (1,)},  # which a norm and its gain begin
        },
        means(
            **{
                "convnext.embeddings.patch_embeddings": (3, 4, 4),
                # through the layer scale, where a norm reads next
                "convnext.encoder.stages.0.layers.1.pwconv2": (24,),
                "convnext.encoder.stages.1.layers.0.pwconv2": (40,),
            }
        ),
        reads(
            **of_each({"convnext.encoder.stages.0.layers.{}.pwconv1": (24,)}, *LAYERS),
            **{"convnext.encoder.stages.1.layers.0.pwconv1": (40,), "classifier": (5,)},
        ),
        shifts(
            *of_each({"convnext.encoder.stages.0.layers.{}.layernorm": ()}, *LAYERS),
            "convnext.encoder.stages.1.downsampling_layer.0",
            size=6,
        ),
        shifts("convnext.encoder.stages.1.layers.0.layernorm", "convnext.layernorm", size=10),
        {
            "translation": {
                **of_each({"convnext.encoder.stages.0.layers.{}.dwconv.bias": (1,)}, *LAYERS),
                "convnext.encoder.stages.1.layers.0.dwconv.bias": (1,),
                "classifier.weight#2": (10, 1),  # of the logits
                "classifier.bias": (1,),
            }
        },
    ),
    "group norm": {kind: {"0.groups": (3,), "3.groups": (2,)} for kind in ("scale", "sign", "translation")},
    "unet": unet(),
    "densenet": {
        "scale": {"stem": (6,), "layer1.conv": (4,), "layer2.conv": (7,)},
        "sign": {"layer1.norm": (6,), "layer2.norm": (4,), "transition.0": (7,)},
        # each norm reads a concatenated axis, and scales its segments apart
        "rescaling": {
            "layer1.norm": (6,),
            "layer2.norm": (6,),
            "layer2.norm#2": (4,),
            "transition.0": (6,),
            "transition.0#2": (4,),
            "transition.0#3": (7,),
        },
        "rotation": {"transition.2": (8,)},
        "translation": {"transition.2": (8,)},
    },
    "gpt2": together(
        affine(*of_each({"transformer.h.{}.ln_1": (), "transformer.h.{}.ln_2": ()}, *LAYERS), size=15),
        heads([f"transformer.h.{k}.attn.c_attn" for k in LAYERS], "qk", "v", 3, 5),
        centred_wholes("transformer.wte"),
        means(
            **of_each({"transformer.h.{}.attn.c_proj": (3, 5), "transformer.h.{}.mlp.c_proj": (22,)}, *LAYERS),
        ),
        shifts(*of_each({"transformer.h.{}.ln_1": (), "transformer.h.{}.ln_2": ()}, *LAYERS), size=15),
        attention_biases([f"transformer.h.{k}.attn.c_attn" for k in LAYERS], "qk.head_dims", "v.head_dims", 3, 5),
        fused([f"transformer.h.{k}.attn.c_attn.weight" for k in LAYERS], 3, 5),
        reads(**of_each({"transformer.h.{}.mlp.c_fc": (22,)}, *LAYERS)),
        # the embedding of tokens is read again, and shifts all logits of a position alike
        {"translation": {"transformer.wte": (15,), "transformer.wpe.weight": (16, 1)}},
    ),
    "bert": together(  # post-norm: only the last norm is read by linear maps alone
        affine("bert.encoder.layer.1.output.LayerNorm", size=15),
        heads([f"bert.encoder.layer.{k}.attention.self" for k in LAYERS], "query", "value", 3, 5),
        centred_wholes(  # one a segment of the stream between two norms
            "bert.embeddings.word_embeddings",
            "bert.embeddings.LayerNorm",
            "bert.encoder.layer.0.attention.output.LayerNorm",
            "bert.encoder.layer.0.output.LayerNorm",
            "bert.encoder.layer.1.attention.output.LayerNorm",
        ),
        means(
            **of_each(
                {"bert.encoder.layer.{}.attention.output.dense": (3, 5), "bert.encoder.layer.{}.output.dense": (22,)},
                *LAYERS,
            ),
        ),
        shifts(
            "bert.embeddings.word_embeddings",  # against positions; it shifts all logits of a position alike
            "bert.embeddings.position_embeddings",  # against those of the token's type
            "bert.embeddings.LayerNorm",
            *of_each(
                {
                    "bert.encoder.layer.{}.attention.output.LayerNorm": (),
                    "bert.encoder.layer.{}.output.LayerNorm": (),
                },
                *LAYERS,
            ),
            "cls.predictions.transform.LayerNorm",
            size=15,
        ),
        attention_biases([f"bert.encoder.layer.{k}.attention.self" for k in LAYERS], "key", "value.head_dims", 3, 5),
        reads(
            **of_each(
                {f"bert.encoder.layer.{{}}.attention.self.{name}": (3, 5) for name in ("query", "key", "value")},
                *LAYERS,
            ),
            **of_each({"bert.encoder.layer.{}.intermediate.dense": (22,)}, *LAYERS),
            **{"cls.predictions.transform.dense": (15,)},
        ),
        {
            "translation": {
                "bert.embeddings.position_embeddings.weight": (16, 1),
                "bert.embeddings.token_type_embeddings.weight": (2, 1),
                "cls.predictions.bias": (1,),
            }
        },
    ),
    "vit": together(
        affine(
            *of_each({"vit.layers.{}.layernorm_before": (), "vit.layers.{}.layernorm_after": ()}, *LAYERS),
            "vit.layernorm",
            size=15,
        ),
        heads([f"vit.layers.{k}.attention" for k in LAYERS], "q_proj", "v_proj", 3, 5),
        centred_wholes("vit.embeddings"),
        means(**of_each({"vit.layers.{}.attention.o_proj": (3, 5), "vit.layers.{}.mlp.fc2": (22,)}, *LAYERS)),
        {"rotation": {"vit.embeddings.cls_token": (15,)}},
        shifts(
            *of_each({"vit.layers.{}.layernorm_before": (), "vit.layers.{}.layernorm_after": ()}, *LAYERS),
            "vit.layernorm",
            "vit.embeddings.patch_embeddings.projection",  # against positions, and the first token
            size=15,
        ),
        attention_biases([f"vit.layers.{k}.attention" for k in LAYERS], "k_proj", "v_proj.head_dims", 3, 5),
        reads(
            **of_each(
                {f"vit.layers.{{}}.attention.{name}": (3, 5) for name in ("q_proj", "k_proj", "v_proj")}, *LAYERS
            ),
            **of_each({"vit.layers.{}.mlp.fc1": (22,)}, *LAYERS),
            classifier=(5,),
        ),
        {
            "translation": {
                "vit.embeddings.patch_embeddings.projection.weight": (3, 8, 8, 1),
                "vit.embeddings.patch_embeddings.projection.bias": (1,),
                # of the first token, of its position, and of those of two by two patches
                "vit.embeddings.cls_token": (1, 1, 1),
                "vit.embeddings.position_embeddings": (1, 1, 1),
                "vit.embeddings.position_embeddings#2": (1, 2, 2, 1),
                "classifier.weight#2": (15, 1),  # of the logits
                "classifier.bias": (1,),
            }
        },
    ),
    "encoder post-norm": together(
        affine("encoder.layers.1.norm2", size=12),
        ENCODER_HEADS,
        centred_wholes("read", "encoder.layers.0.linear1", "encoder.layers.0.norm2", "encoder.layers.1.linear1"),
        ENCODER_MEANS,
        # the first block reads what no norm gave
        fused(["encoder.layers.1.self_attn.in_proj_weight"], 3, 4),
        reads(head=(6,)),
        shifts("read", *of_each({"encoder.layers.{}.linear2": (), "encoder.layers.{}.norm2": ()}, *LAYERS), size=12),
    ),
    "encoder pre-norm": together(
        affine(
            *of_each({"encoder.layers.{}.norm1": (), "encoder.layers.{}.norm2": ()}, *LAYERS), "encoder.norm", size=12
        ),
        ENCODER_HEADS,
        centred_wholes("read"),
        ENCODER_MEANS,
        means(read=(5,)),
        fused([f"encoder.layers.{k}.self_attn.in_proj_weight" for k in LAYERS], 3, 4),
        reads(head=(6,)),
        shifts(
            *of_each({"encoder.layers.{}.norm1": (), "encoder.layers.{}.norm2": ()}, *LAYERS), "encoder.norm", size=12
        ),
        {"rotation": {"read": (12,)}},
    ),
    "llama": together(LLAMA, LINEAR_BRANCHES, STREAM, LOGITS),
    "gemma": together(LLAMA, LINEAR_BRANCHES, STREAM, LOGITS),
    "mixtral eager": together(LLAMA, EXPERTS, STREAM, LOGITS, ROUTERS),
    "mixtral batched": together(LLAMA, EXPERTS, STREAM, LOGITS, ROUTERS),
    "t5": together(  # the decoder's last norm is read by the tied embedding
        affine(*T5_NORMS, size=16),
        {
            "rescaling": of_each(
                {
                    "encoder.block.{}.layer.1.DenseReluDense.wi": (22,),
                    "decoder.block.{}.layer.2.DenseReluDense.wi": (22,),
                },
                *LAYERS,
            )
        },
        {"sign": {"shared": (16,)}},
        {"translation": {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias": (3,)}},
        wholes("shared"),
        heads(T5_ATTENTION, "q", "v", 3, 5),
    ),
    "lstm": recurrent(4),
    "gru": recurrent(2),  # of the third gate one bias is within a product
    "mamba": together(
        affine(*of_each({"backbone.layers.{}.norm": ()}, *LAYERS), size=10),
        {
            kind: of_each({"backbone.layers.{}.mixer.conv1d": (20,), "backbone.layers.{}.mixer.x_proj": (5,)}, *LAYERS)
            for kind in ("rescaling", "sign")
        },
        {"rotation": of_each({"backbone.layers.{}.mixer.x_proj.0": (7,)}, *LAYERS)},
        {"sign": {"backbone.embeddings": (10,)}},
        # the time step against the two maps of the state, and these against the map out
        wholes("backbone.embeddings", *of_each({"backbone.layers.{}.mixer": ()}, *LAYERS)),
    ),
    "lora": {"rotation": {"0.A": (3,), "2.A": (2,)}},
    "layer scale": together(
        {"rotation": {"0": (5,)}},
        centred_wholes("0"),
        affine("1.norm", "2.norm", "3", "1", "2", size=5),  # those of norms, and those that layers write through
        {"sign": {"1.layer.0": (6,), "2.layer.0": (7,)}},
        means(**{"0": (5,), "1.layer.2": (6,), "2.layer.2": (7,)}),
        reads(**{"1.layer.0": (6,), "2.layer.0": (7,), "4": (6,)}),
        shifts("1.norm", "2.norm", "3", size=5),
    ),
    "heads in a list": {"rotation": {"heads.*.query": (3, 2), "heads.*.value": (3, 2)}},
    "experts in a list": {
        "sign": {"experts.*.up": (3, 6)},
        "translation": {"router.weight": (4, 1), "router.bias": (1,)},
    },
    "ensemble": {"sign": {"members.*.0": (3, 5)}, "translation": {"members.0.2": (2,), "members.1.2": (2,)}},
    "vae": {},
    "mlp-mixer": together(
        affine("blocks.0.norm2", "blocks.1.norm2", "norm", size=10),
        centred_wholes("read", "blocks.0.norm1", "blocks.1.norm1"),  # a map over patches leaves a norm's gain one scale
        means(**{"read": (3, 4, 4), "blocks.0.channels.2": (13,), "blocks.1.channels.2": (14,)}),
        reads(**{"blocks.0.channels.0": (13,), "blocks.1.channels.0": (14,), "head": (5,)}),
        shifts("blocks.0.norm2", "blocks.1.norm2", "norm", size=10),
        {"translation": {"blocks.0.patches.2": (2, 2), "blocks.1.patches.2": (2, 2)}},  # the same in all channels
    ),
    "graph convolution": {"rescaling": {"first": (11,), "second": (7,)}},
    "siamese": together({"rotation": {"tower.2": (7,)}}, wholes("tower.2")),  # cosines look at lengths and angles
    "gan": {"rescaling": {"discriminator.0": (9,)}},
}
KINDS = ("rescaling", "sign", "scale", "rotation", "translation")


def test_every_model_of_the_zoo_has_an_expectation():
    assert EXPECTED.keys() == ZOO.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_every_group_is_found_and_no_other(name):
    symmetries = search(name, True).symmetries
    found = {
        kind: {
            group.name.replace(f".{kind}.", "#").removesuffix(f".{kind}"): (
                *(size for _, size in group.rows),
                group.size,
            )
            for group in symmetries
            if group.kind == kind
        }
        for kind in KINDS
    }
    assert {kind: groups for kind, groups in found.items() if groups} == EXPECTED[name]
    assert all(group.verified for group in symmetries)
    assert all(group.exact for group in symmetries if group.kind != "scale")
    assert not symmetries.rejected
    assert not symmetries.without_rule


@pytest.mark.parametrize("name", EXPECTED)
def test_in_evaluation_too_every_group_is_verified(name):
    symmetries = search(name, False).symmetries
    assert all(group.verified for group in symmetries)
    assert not symmetries.rejected
    assert not symmetries.without_rule
