"""The groups that are found, against what is written down by hand."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import transformers
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.symmetry.groups import Symmetries
from lightning_symmetry.symmetry.kinds import KINDS
from lightning_symmetry.symmetry.proposals import propose
from lightning_symmetry.symmetry.verification import TOLERANCE, relative_change, verify
from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tracing import trace
from tests.models import ConvNet, Transformer, Twisted, mlp


def tokens(vocabulary, batch=2, length=7):
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=50,
            n_positions=16,
            n_embd=24,
            n_layer=2,
            n_head=3,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            use_cache=False,
        )
    )


class SquaredReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 11), nn.Linear(11, 4)

    def forward(self, inputs):
        return self.second(F.relu(self.first(inputs)) ** 2)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.linear, self.out = nn.Linear(5, 11), nn.Linear(5, 11), nn.Linear(11, 4)

    def forward(self, inputs):
        return self.out(F.silu(self.gate(inputs)) * self.linear(inputs))


def of_each_layer(layers, groups):
    return {name.format(layer): shape for layer in range(layers) for name, shape in groups.items()}


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
LANGUAGE = {"input_ids": tokens(50), "labels": tokens(50)}

# kind -> name -> the sizes of the rows in which the group acts by itself, and last the number of units
EXPECTED = {
    "mlp": (
        mlp,
        VECTORS,
        {
            "permutation": {"0": (11,), "2": (9,)},
            "rescaling": {"0.rescaling": (11,), "2.rescaling": (9,)},
        },
    ),
    "tanh": (
        lambda: nn.Sequential(nn.Linear(5, 11), nn.Tanh(), nn.Linear(11, 4)),
        VECTORS,
        {"permutation": {"0": (11,)}, "sign": {"0.sign": (11,)}},
    ),
    "gelu: nothing more than permutations": (
        lambda: nn.Sequential(nn.Linear(5, 11), nn.GELU(), nn.Linear(11, 4)),
        VECTORS,
        {"permutation": {"0": (11,)}},
    ),
    "identity: all linear mixtures": (
        lambda: nn.Sequential(nn.Linear(5, 11), nn.Linear(11, 4)),
        VECTORS,
        {"rotation": {"0.rotation": (11,)}, "translation": {"0.translation": (11,)}},  # one bias into the next
    ),
    "squared relu: what reads the unit is divided twice": (
        lambda: SquaredReLU(),
        VECTORS,
        {"permutation": {"first": (11,)}, "rescaling": {"first.rescaling": (11,)}},
    ),
    "gated: the linear branch has scale and sign, the gate has none": (
        lambda: Gated(),
        VECTORS,
        {
            "permutation": {"gate": (11,)},
            "rescaling": {"linear.rescaling": (11,)},
            "sign": {"linear.sign": (11,)},
        },
    ),
    "a norm that is read without a bias: its own turns with the stream, as nothing takes it up": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)),
        VECTORS,
        {
            "rotation": {"0.rotation": (8,)},
            "rescaling": {"1.rescaling": (8,)},
            "sign": {"0.sign": (1,), "1.sign": (8,)},  # with what reads the norm, all that it reads may be flipped
            "scale": {"0.scale": (1,)},
            "translation": {"0.weight.translation": (5, 1), "0.bias.translation": (1,)},
        },
    ),
    "convnet": (
        ConvNet,
        IMAGES,
        {
            "permutation": {"stem": (6,), "block1.conv1": (8,), "down": (10,), "block2.conv1": (12,)},
            # a filter before batch norm
            "scale": {
                "stem.scale": (6,),
                "block1.conv1.scale": (8,),
                "block1.conv2.scale": (6,),
                "block2.conv1.scale": (12,),
                "block2.conv2.scale": (10,),
            },
            # the same filter, with the sign of the norm's gain
            "sign": {
                "stem.sign": (6,),
                "block1.norm1.sign": (8,),
                "block1.norm2.sign": (6,),
                "block2.norm1.sign": (12,),
                "block2.norm2.sign": (10,),
            },
            # from the norm's affine map, or a convolution without a norm, through ReLU into the next convolution
            "rescaling": {
                "norm.rescaling": (6,),
                "block1.norm1.rescaling": (8,),
                "down.rescaling": (10,),
                "block2.norm1.rescaling": (12,),
            },
            "translation": {"stem.translation": (6,)},  # a bias before batch norm
        },
    ),
    "transformer": (
        Transformer,
        tokens(13),
        {
            "permutation": of_each_layer(2, {"blocks.{}.attn.qkv.heads": (3,), "blocks.{}.up": (17,)}),
            "rotation": {"positions.rotation": (12,)}
            | of_each_layer(
                2,
                {"blocks.{}.attn.qkv.qk.head_dims.rotation": (3, 4), "blocks.{}.attn.qkv.v.head_dims.rotation": (3, 4)},
            ),
            # a norm's affine map against the maps that read it
            "rescaling": of_each_layer(2, {"blocks.{}.norm1.rescaling": (12,), "blocks.{}.norm2.rescaling": (12,)})
            | {"norm.rescaling": (12,)},
            "sign": of_each_layer(2, {"blocks.{}.norm1.sign": (12,), "blocks.{}.norm2.sign": (12,)})
            | {"norm.sign": (12,)}
            | {"positions.sign": (1,)},
            "scale": {"positions.scale": (1,)},  # all that is written to the stream, as may its sign
            # what all positions gain and all tokens lose; the mean that every norm takes away, of all that is written
            # to the stream: positions that the batch has and the one that it has not, tokens, weights, biases; the
            # mean of what reads a norm, with its bias, of keys and values
            "translation": {
                "positions.translation": (12,),
                "positions.translation.2": (7, 1),
                "positions.translation.3": (1, 1),
                "tokens.weight.translation": (13, 1),
                "norm.translation": (12,),
                "head.weight.translation": (13, 1),
            }
            | of_each_layer(
                2,
                {
                    "blocks.{}.attn.qkv.weight.translation": (3, 4, 1),
                    "blocks.{}.attn.qkv.weight.translation.2": (3, 4, 1),
                    "blocks.{}.attn.qkv.weight.translation.3": (3, 4, 1),
                    "blocks.{}.attn.qkv.qk.head_dims.translation": (3, 4),
                    "blocks.{}.attn.qkv.v.head_dims.translation": (3, 4),
                    "blocks.{}.attn.out.weight.translation": (3, 4, 1),
                    "blocks.{}.attn.out.bias.translation": (1,),
                    "blocks.{}.norm1.translation": (12,),
                    "blocks.{}.norm2.translation": (12,),
                    "blocks.{}.up.weight.translation": (17, 1),
                    "blocks.{}.down.weight.translation": (17, 1),
                    "blocks.{}.down.bias.translation": (1,),
                },
            ),
        },
    ),
    "gpt2": (
        gpt2,
        LANGUAGE,
        {
            "permutation": {"transformer.wte": (24,)}
            | of_each_layer(2, {"transformer.h.{}.attn.c_attn.heads": (3,), "transformer.h.{}.mlp.c_fc": (96,)}),
            "rotation": of_each_layer(
                2,
                {
                    "transformer.h.{}.attn.c_attn.qk.head_dims.rotation": (3, 8),
                    "transformer.h.{}.attn.c_attn.v.head_dims.rotation": (3, 8),
                },
            ),
            # the last norm is read by the tied embedding, and has none
            "rescaling": of_each_layer(
                2, {"transformer.h.{}.ln_1.rescaling": (24,), "transformer.h.{}.ln_2.rescaling": (24,)}
            ),
            "sign": of_each_layer(2, {"transformer.h.{}.ln_1.sign": (24,), "transformer.h.{}.ln_2.sign": (24,)})
            | {"transformer.wte.sign": (1,)},
            "scale": {"transformer.wte.scale": (1,)},
            # the embedding of tokens, against that of positions, shifts all logits of a position alike
            "translation": {"transformer.wte.translation": (24,), "transformer.wpe.weight.translation": (16, 1)}
            | of_each_layer(
                2,
                {
                    "transformer.h.{}.ln_1.translation": (24,),
                    "transformer.h.{}.attn.c_attn.weight.translation": (3, 8, 1),
                    "transformer.h.{}.attn.c_attn.weight.translation.2": (3, 8, 1),
                    "transformer.h.{}.attn.c_attn.weight.translation.3": (3, 8, 1),
                    "transformer.h.{}.attn.c_attn.qk.head_dims.translation": (3, 8),
                    "transformer.h.{}.attn.c_attn.v.head_dims.translation": (3, 8),
                    "transformer.h.{}.attn.c_proj.weight.translation": (3, 8, 1),
                    "transformer.h.{}.attn.c_proj.bias.translation": (1,),
                    "transformer.h.{}.ln_2.translation": (24,),
                    "transformer.h.{}.mlp.c_fc.weight.translation": (96, 1),
                    "transformer.h.{}.mlp.c_proj.weight.translation": (96, 1),
                    "transformer.h.{}.mlp.c_proj.bias.translation": (1,),
                },
            ),
        },
    ),
    "llama": (
        llama,
        LANGUAGE,
        {
            "permutation": of_each_layer(
                2,
                {
                    "model.layers.{}.self_attn.q_proj.head_groups": (2,),
                    "model.layers.{}.self_attn.q_proj.heads": (2, 2),
                    "model.layers.{}.mlp.gate_proj": (20,),
                },
            ),
            "rotation": {"model.embed_tokens.rotation": (32,)}
            | of_each_layer(
                2,
                {
                    "model.layers.{}.self_attn.q_proj.plane.rotation": (2, 4, 2),
                    "model.layers.{}.self_attn.v_proj.head_dims.rotation": (2, 8),
                },
            ),
            # norms' gains against their readers; planes of the rotary embedding; the linear branch of the gated unit
            "rescaling": of_each_layer(
                2,
                {
                    "model.layers.{}.input_layernorm.rescaling": (32,),
                    "model.layers.{}.post_attention_layernorm.rescaling": (32,),
                    "model.layers.{}.self_attn.q_proj.rescaling": (2, 4),
                    "model.layers.{}.mlp.up_proj.rescaling": (20,),
                },
            )
            | {"model.norm.rescaling": (32,)},
            "sign": of_each_layer(
                2,
                {
                    "model.layers.{}.input_layernorm.sign": (32,),
                    "model.layers.{}.post_attention_layernorm.sign": (32,),
                    "model.layers.{}.self_attn.q_proj.sign": (2, 4),
                    "model.layers.{}.mlp.up_proj.sign": (20,),
                },
            )
            | {"model.norm.sign": (32,)},
            "scale": {"model.embed_tokens.scale": (1,)},
            "translation": {"lm_head.weight.translation": (32, 1)},  # of all logits alike, which the loss does not see
        },
    ),
    "twisted: the hidden units to which a fixed constant is added are told apart": (
        Twisted,
        VECTORS,
        {"permutation": {"second": (6,)}, "rescaling": {"second.rescaling": (6,)}},
    ),
}


def shapes(symmetries, kind="permutation"):
    return {
        group.name: (*(length for _, length in group.rows), group.size) for group in symmetries if group.kind == kind
    }


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("training", [True, False])
def test_every_group_is_found_and_no_other(name, training):
    torch.manual_seed(0)
    build, batch, expected = EXPECTED[name]
    symmetries = find_symmetries(build().train(training), batch)
    assert {kind: shapes(symmetries, kind) for kind in KINDS if shapes(symmetries, kind)} == expected
    assert all(group.verified for group in symmetries)
    of_logits = {"llama": ["lm_head.weight.translation"], "gpt2": ["transformer.wte.translation"]}
    assert [group.name for group in symmetries if group.preserves == "loss"] == of_logits.get(name, [])
    assert all(group.exact is (group.kind != "scale") for group in symmetries)
    assert not symmetries.rejected
    assert not symmetries.without_rule


@pytest.mark.parametrize("name", EXPECTED)
def test_a_group_leaves_the_float64_model_unchanged_and_moves_it(name):
    """Independent of the product's own verification: a float64 copy of the model, loaded with the moved tensors."""
    torch.manual_seed(0)
    build, batch, _ = EXPECTED[name]
    symmetries = find_symmetries(build(), batch)
    model = build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point() and name != "llama":
                buffer.add_(torch.rand_like(buffer))
    outputs = computed(model, batch)
    state = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    for group in symmetries:
        if not group.exact or group.preserves == "loss":
            continue
        moved = group.transform(state, torch.Generator().manual_seed(1))
        changed = {name for name in state if not torch.equal(state[name], moved[name])}
        assert changed == {*group.parameters, *group.buffers}
        other = copy.deepcopy(model)
        with torch.no_grad():
            for key, tensor in (*other.named_parameters(), *other.named_buffers()):
                tensor.copy_(moved[key])
        tolerance = 1e-6 if name == "llama" else TOLERANCE  # its rotary tables and norms compute in float32
        assert relative_change([computed(other, batch)], [outputs]) <= tolerance, group.name


def computed(model, batch):
    with torch.no_grad():
        if isinstance(batch, dict):
            return model(**batch).logits
        return model(batch.double() if batch.is_floating_point() else batch)


def test_the_bias_of_a_norm_turns_with_the_stream_behind_its_gain():
    """Of ``W (g x + b)`` the stream x is turned by Q, b by ``g Q g^-1``, and W by its inverse: ``W b`` stays."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)).double()
    (group,) = find_symmetries(model, VECTORS.double(), kinds=["rotation"])
    assert group.form == "orthogonal, mean kept"
    assert group.parameters == ("0.weight", "0.bias", "1.bias", "2.weight")
    tensors = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    moved = group.transform(tensors, torch.Generator().manual_seed(0))
    gain, bias, weight = (tensors[name] for name in ("1.weight", "1.bias", "2.weight"))
    torch.testing.assert_close(moved["2.weight"] @ moved["1.bias"], weight @ bias)
    torch.testing.assert_close((moved["1.bias"] / gain).norm(), (bias / gain).norm())
    torch.testing.assert_close((moved["1.bias"] / gain).mean(), (bias / gain).mean())
    torch.testing.assert_close(((moved["2.weight"] * gain) @ moved["0.weight"]), (weight * gain) @ tensors["0.weight"])
    assert not torch.allclose(moved["2.weight"], weight)


@pytest.mark.parametrize("seed", range(3))
def test_leaving_one_parameter_out_of_a_group_is_noticed(seed):
    """Verification is no rubber stamp: a group that forgets a part of what it must move is dropped."""
    torch.manual_seed(seed)
    step = Step(mlp(), VECTORS)
    groups = propose(trace(step), step.parameters).groups
    for group in groups:
        for forgotten in group.parameters:
            broken = replace(
                group,
                actions=tuple(action for action in group.actions if action.block.tensor != forgotten),
                parameters=tuple(name for name in group.parameters if name != forgotten),
            )
            others = [other for other in groups if other is not group]
            verified = verify(step, [broken, *others])
            passed, failed = verified.groups, verified.rejected
            assert [each.name for each in failed] == [group.name]
            assert [each.name for each in passed] == [other.name for other in others]


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
        self.steps_run = 0

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        self.steps_run += 1
        inputs, labels = batch
        loss = F.cross_entropy(self(inputs), labels)
        self.log("loss", loss)
        return loss


def test_a_lightning_module_is_run_by_its_training_step_and_left_as_it_was():
    torch.manual_seed(0)
    model = Digits()
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    symmetries = find_symmetries(model, (VECTORS, torch.tensor([0, 1, 2, 0, 1, 2])))
    assert shapes(symmetries) == {"net.0": (7,)}
    assert symmetries[0].parameters == ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "net.4.weight")
    assert symmetries[0].buffers == ("net.2.running_mean", "net.2.running_var")
    assert symmetries[0].preserves == "output"
    assert model.steps_run == 0
    assert torch.equal(random_state, torch.get_rng_state())
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_streams_are_put_back_when_the_step_raises():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, inputs):
            torch.randperm(10)
            raise RuntimeError("the user's own")

    model = Failing()
    random_state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="the user's own"):
        find_symmetries(model, VECTORS)
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32


def test_above_the_size_limit_groups_are_proposed_and_marked_as_not_tried():
    symmetries = find_symmetries(mlp(), VECTORS, verify_up_to=10)
    assert shapes(symmetries) == {"0": (11,), "2": (9,)}
    assert all(group.verified is None for group in symmetries)
    assert "not tried" in str(symmetries)


def test_an_operation_without_a_rule_is_named_and_pins_what_it_touches():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)

        def forward(self, inputs):
            return self.third(F.relu(self.second(torch.linalg.qr(self.first(inputs))[0] @ torch.eye(6, 7))))

    torch.manual_seed(0)
    symmetries = find_symmetries(Sorted(), VECTORS)
    assert shapes(symmetries) == {"second": (6,)}
    assert "linalg_qr" in "".join(symmetries.without_rule)


def test_symmetries_go_to_json_and_back():
    torch.manual_seed(0)
    symmetries = find_symmetries(Transformer(), tokens(13))
    again = Symmetries.from_dict(json.loads(json.dumps(symmetries.to_dict())))
    assert again == symmetries
    assert isinstance(again.groups[0].blocks[0].views, tuple)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        find_symmetries(nn.ReLU(), VECTORS)


def test_of_joined_maps_each_may_be_turned_and_the_mean_that_a_norm_takes_is_of_neither():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 5)
            self.norm, self.head = nn.LayerNorm(9), nn.Linear(9, 4)

        def forward(self, inputs):
            return self.head(self.norm(torch.cat([self.left(inputs), self.right(inputs)], -1)))

    torch.manual_seed(0)
    found = find_symmetries(Joined(), torch.randn(6, 3))
    turned = [(group.name, group.size) for group in found if group.kind == "rotation"]
    assert turned == [("left.rotation", 4), ("right.rotation", 5)]
    assert not found.rejected and all(group.verified for group in found)


def test_a_list_for_several_arguments_is_told_of():
    """A DataLoader makes lists."""
    model = nn.Bilinear(2, 3, 4)
    left, right = torch.randn(5, 2), torch.randn(5, 3)
    assert find_symmetries(model, (left, right)) is not None
    with pytest.raises(TypeError) as raised:
        find_symmetries(model, [left, right])
    assert raised.value.__notes__ == [
        "batch is a list, and was given as one argument: tuple(batch) is given as several"
    ]


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'mirror' is no kind of symmetry; known kinds: permutation, sign"):
        find_symmetries(mlp(), VECTORS, kinds=["mirror"])


def test_an_expert_that_no_token_reaches_has_the_axes_of_one_that_is_reached():
    """Operations on no rows at all tie axes all the same; verification could not tell, since they change no output."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.reached = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
            self.unreached = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))

        def forward(self, inputs):
            chosen = torch.zeros(len(inputs), dtype=torch.bool)
            outputs = torch.zeros(len(inputs), 3)
            outputs[~chosen] = self.reached(inputs[~chosen])
            outputs[chosen] = self.unreached(inputs[chosen])
            return outputs

    torch.manual_seed(0)
    assert shapes(find_symmetries(Experts(), VECTORS)) == {"reached.0": (7,), "unreached.0": (7,)}


def test_parameters_that_are_empty_or_not_used_are_in_no_group():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.head, self.unused = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(5, 4)
            self.empty = nn.Parameter(torch.zeros(0, 5))

        def forward(self, inputs):
            joined = torch.cat([inputs, self.empty])
            return self.head(torch.tanh(self.used(joined)))

    torch.manual_seed(0)
    symmetries = find_symmetries(Partly(), VECTORS)
    assert {name for group in symmetries for name in group.parameters} == {"used.weight", "used.bias", "head.weight"}
    assert not symmetries.rejected


def test_units_are_followed_through_memory_that_is_written_to_in_parts():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 2, 3, padding=1, padding_mode="circular")
    )
    (units,) = (group for group in find_symmetries(model, torch.randn(4, 3, 20)) if group.kind == "permutation")
    assert units.parameters == ("0.weight", "0.bias", "2.weight")
