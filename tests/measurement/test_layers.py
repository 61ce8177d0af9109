"""Which layers are listened to, and where in what they return the features are."""

import pytest
import torch
from torch import nn

from lightning_symmetry.functional import effective_rank
from lightning_symmetry.measurement.features import (
    Masks,
    batch_size_of,
    first_tensor,
    labels_of,
    layout_of,
    masks_of,
    random_projection,
    spread_sample,
)
from lightning_symmetry.measurement.layers import (
    classifier_name,
    default_layers,
    inside_compiled,
    layer_names,
    layers_of_types,
    mixing_layers,
    of_decoder_tokens,
    thinned,
)
from tests.zoo import ZOO


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return x + self.norm(self.conv(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stages = nn.ModuleList([nn.Sequential(Residual(4), Residual(4)), nn.Sequential(Residual(4), Residual(4))])
        self.head = nn.Linear(4, 10)


def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))


def test_the_blocks_of_a_model_are_its_layers():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 3, enable_nested_tensor=False)
    assert default_layers(encoder) == ["layers.0", "layers.1", "layers.2"]
    assert default_layers(ResNet().stages[0]) == ["0", "1"]
    assert default_layers(ResNet()) == ["stages.0", "stages.1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet basic", ["resnet.encoder.stages.0", "resnet.encoder.stages.1"]),
        ("convnext", ["convnext.encoder.stages.0", "convnext.encoder.stages.1"]),
        ("gpt2", ["transformer.h.0", "transformer.h.1"]),
        ("llama", ["model.layers.0", "model.layers.1"]),
        ("vit", ["vit.layers.0", "vit.layers.1"]),
        ("t5", ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]),
    ],
)
def test_the_blocks_of_published_models_are_found(name, expected):
    assert default_layers(ZOO[name].build()) == expected


def test_without_blocks_layers_with_a_matrix_are():
    assert default_layers(mlp()) == ["0", "2", "4"]
    model = nn.ModuleDict({"body": nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4)), "head": nn.LSTM(4, 3)})
    assert default_layers(model) == ["body.0", "head"]
    assert default_layers(nn.ReLU()) == []


def test_blocks_may_be_lists_and_dictionaries_of_their_parts():
    def parts():
        return nn.ModuleList([nn.Sequential(nn.LayerNorm(4)), Residual(4), nn.ModuleDict({"up": Residual(4)})])

    model = nn.Module()
    model.blocks = nn.ModuleList([parts(), parts()])
    assert default_layers(model) == [f"blocks.{block}.{part}" for block in (0, 1) for part in ("1", "2.up")]


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_layers_may_have_no_shape_yet():
    def block():
        return nn.Sequential(nn.LazyLinear(4), nn.ReLU())

    assert default_layers(block()) == ["0"]
    assert default_layers(nn.Sequential(block(), block())) == ["0", "1"]


def test_a_list_may_have_empty_places():
    block = nn.Sequential(nn.Linear(2, 2), None, nn.ReLU())
    assert default_layers(nn.ModuleDict({"blocks": nn.ModuleList([block, None, mlp()])})) == ["blocks.0", "blocks.2"]


def test_what_is_compiled_is_one_layer_from_outside():
    model = nn.ModuleDict({"body": torch.compile(mlp(), backend="eager"), "head": nn.Linear(2, 2)})
    assert default_layers(model) == ["body", "head"]
    assert inside_compiled(model) == {name for name, _ in model.named_modules() if name.startswith("body.")}
    blocks = nn.ModuleList([torch.compile(mlp(), backend="eager") for _ in range(2)])
    assert default_layers(blocks) == ["0", "1"]
    in_place = nn.Sequential(mlp(), nn.Linear(2, 2))
    in_place[0].compile(backend="eager")
    assert default_layers(in_place) == ["0", "1"]
    assert inside_compiled(in_place) == {"0", *(f"0.{k}" for k in range(5))}


def test_layers_of_a_type_are_found_by_its_name_or_that_of_a_parent():
    assert layers_of_types(ResNet(), ["Linear", "Conv2d"])[-1] == "head"
    assert len(layers_of_types(ResNet(), ["_ConvNd"])) == 5
    with pytest.raises(ValueError, match=r"the model has no Conv1d; it has BatchNorm2d, Conv2d, Linear, ModuleList"):
        layers_of_types(ResNet(), ["Conv1d"])


def test_lists_of_modules_and_the_model_itself_are_no_layers():
    assert layer_names(nn.ModuleList([nn.Linear(2, 2), nn.ModuleList([nn.ReLU()])])) == ["0", "1.0"]


def test_the_classifier_is_the_last_linear_layer_of_several_outputs():
    assert classifier_name(ResNet()) == "head"
    assert classifier_name(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))) == "0"
    assert classifier_name(nn.ReLU()) is None


def test_the_classifier_can_be_named():
    assert classifier_name(mlp(), "2") == "2"
    model = nn.ModuleDict({"head": torch.compile(nn.Linear(2, 3), backend="eager"), "value": nn.Linear(2, 1)})
    assert classifier_name(model, "head") == "head"
    for named in ("value", "haed"):
        with pytest.raises(
            ValueError, match=f"classifier='{named}' is the name of no linear layer of .*nearest are head"
        ):
            classifier_name(model, named)
    with pytest.raises(ValueError, match="the nearest are none: the model has no such"):
        classifier_name(nn.ReLU(), "head")


def test_layers_that_mix_all_features_of_their_input_by_a_matrix():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Linear(4, 2), nn.Embedding(2, 2)
    )
    assert mixing_layers(model) == ["0", "3"]


def test_a_decoder_beside_an_encoder_has_tokens_of_its_own_and_so_has_what_comes_after():
    t5 = ZOO["t5"].build()
    own = of_decoder_tokens(t5)
    assert {"decoder", "decoder.block.0", "lm_head"} <= own
    assert not any(name.startswith(("encoder", "shared")) for name in own)
    swapped = nn.ModuleDict({"text_decoder": mlp(), "text_encoder": mlp(), "head": nn.Linear(2, 2)})
    assert of_decoder_tokens(nn.ModuleDict({"net": swapped})) == {
        *("net.text_decoder", "net.head"),
        *(f"net.text_decoder.{k}" for k in range(5)),
    }
    alone = nn.ModuleDict({"decoder": mlp(), "head": nn.Linear(2, 2)})  # as of OPT: it has the tokens of the batch
    assert not of_decoder_tokens(alone) and not of_decoder_tokens(nn.ModuleDict({"encoder_decoder": mlp()}))


def test_too_many_are_thinned_evenly():
    assert thinned(list("abcdefg"), 3) == ["a", "d", "g"]
    assert thinned(list("ab"), 3) == ["a", "b"]


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(3, 5), (7, 5), (7, 1, 5)),
        (nn.Linear(3, 5), (7, 4, 5), (7, 4, 5)),
        (nn.Linear(3, 5), (7, 2, 4, 5), (7, 8, 5)),
        (nn.Conv2d(3, 5, 3), (7, 5, 2, 4), (7, 8, 5)),
        (nn.Conv2d(3, 5, 3), (7, 5, 5, 5), (7, 25, 5)),
        (nn.Conv1d(3, 5, 3), (7, 5, 5), (7, 5, 5)),
        (nn.Conv1d(3, 5, 3), (7, 5, 4), (7, 4, 5)),
        (Residual(5), (7, 5, 2, 2), (7, 4, 5)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(5)), (7, 2, 2, 5), (7, 4, 5)),
        (nn.ReLU(), (7, 5, 2, 2), (7, 4, 5)),
        (nn.ReLU(), (7, 4, 5), (7, 4, 5)),
    ],
    ids=str,
)
def test_outputs_are_viewed_as_samples_positions_and_features(module, shape, expected):
    output = torch.randn(shape)
    viewed = layout_of(output, module, 7).positions(output)
    assert viewed.shape == expected
    channels_first = len(shape) > 2 and isinstance(module, nn.Conv1d | nn.Conv2d | Residual)
    by_hand = output.movedim(1, -1) if channels_first or (isinstance(module, nn.ReLU) and len(shape) == 4) else output
    assert torch.equal(viewed, by_hand.reshape(expected))


def test_tokens_may_come_before_samples():
    output = torch.randn(4, 7, 5)
    assert torch.equal(layout_of(output, nn.Linear(3, 5), 7).positions(output), output.transpose(0, 1))


def test_the_first_tensor_of_an_output_is_its_features():
    one, two = torch.ones(1), torch.zeros(1)
    assert first_tensor((one, two)) is one
    assert first_tensor({"last_hidden_state": one, "hidden_states": (two,)}) is one
    assert first_tensor(([two], one)) is two
    assert first_tensor(None) is None and first_tensor(()) is None


def test_a_sample_is_spread_over_all_rows_and_has_each_once():
    generator = torch.Generator().manual_seed(0)
    assert spread_sample(5, 5, generator) is None
    chosen = spread_sample(1000, 100, generator)
    assert (chosen // 10 == torch.arange(100)).all()
    periods = torch.stack([spread_sample(1000, 100, generator) % 10 for _ in range(100)])
    assert torch.bincount(periods.flatten(), minlength=10).min() > 800


def test_a_projection_keeps_second_moments():
    features = torch.randn(500, 20).double() @ torch.randn(20, 4096).double()
    projected = features @ random_projection(4096, 1024)
    assert projected.square().sum().item() == pytest.approx(features.square().sum().item(), rel=0.05)
    assert effective_rank(projected).item() == pytest.approx(effective_rank(features).item(), rel=0.02)


def test_the_size_of_a_batch_is_found():
    assert batch_size_of({"input_ids": torch.ones(2, 3)}) == 2 and batch_size_of(3) is None


MASK, OTHER = torch.tensor([[1, 1, 1], [1, 0, 0]]), torch.tensor([[1, 1, 0], [1, 1, 0]])
"""Masks of two sequences of three tokens."""


def test_the_mask_of_a_batch_is_found_under_its_usual_name():
    assert masks_of({"input_ids": MASK, "attention_mask": MASK}, None) == Masks(MASK, MASK)
    assert masks_of([{"attention_mask": MASK}, torch.zeros(2)], None).tokens is MASK
    assert masks_of(torch.zeros(2), None) == Masks() == masks_of({"attention_mask": torch.ones(2, 1, 3, 3)}, None)


@pytest.mark.parametrize(
    ("told", "decoder"),
    [
        ({}, MASK),  # an autoencoder
        ({"labels": torch.tensor([1, 0])}, MASK),  # a classifier of sequences
        ({"decoder_attention_mask": OTHER, "labels": MASK, "decoder_input_ids": MASK}, OTHER),
        ({"labels": torch.where(OTHER == 1, 7, -100)}, OTHER),  # of which its input is made
        ({"decoder_input_ids": torch.ones(2, 3)}, None),
    ],
    ids=["nothing told", "labels of sequences", "its own mask", "labels of tokens", "tokens alone"],
)
def test_a_decoder_has_its_own_mask(told, decoder):
    found = masks_of({"attention_mask": MASK, **told}, None)
    assert found.tokens is MASK
    assert found.decoder is decoder is None or torch.equal(found.decoder.long(), decoder)


def test_the_mask_can_be_said_to_be_elsewhere():
    assert masks_of({"kept": MASK, "attention_mask": OTHER}, "kept").tokens is MASK
    assert masks_of((OTHER, MASK), 1).tokens is MASK
    assert masks_of((OTHER,), lambda batch: batch[0]) == Masks(OTHER, OTHER)
    assert masks_of((MASK, OTHER), lambda batch: (batch[0], batch[1])) == Masks(MASK, OTHER)
    assert masks_of((MASK, OTHER), lambda batch: (None, batch[1])) == Masks(None, OTHER)


@pytest.mark.parametrize("key", ["src_key_padding_mask", "padding_mask"])
@pytest.mark.parametrize("padding", [MASK == 0, 1 - MASK], ids=["truth values", "numbers"])
def test_a_padding_mask_marks_what_is_left_out_as_pytorch_has_it(key, padding):
    assert torch.equal(masks_of({key: padding}, key).tokens, MASK == 1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("msk", r"mask='msk' finds nothing in the batch, which is a dict with the keys scores, one; .* to its mask"),
        ("scores", r"mask='scores' finds a tensor of torch.float32 and shape \(2, 3\), not .* 0 for padding; give"),
        ("one", r"mask='one' finds a tensor of torch.int64 and shape \(3,\), not a tensor \(n_sequences, n_tokens\)"),
        (lambda batch: None, "finds a NoneType, not a tensor"),
        (lambda batch: (MASK, "no"), "finds a str, not a tensor"),
    ],
    ids=str,
)
def test_a_mask_that_is_not_there_is_told_of_with_what_is(mask, message):
    with pytest.raises(ValueError, match=message):
        masks_of({"scores": torch.ones(2, 3), "one": torch.ones(3).long()}, mask)


LABELS = torch.tensor([0, 1, 2])


def test_labels_are_found_where_they_usually_are_and_where_they_are_said_to_be():
    inputs = torch.ones(3, 2)
    assert labels_of((inputs, LABELS), None) is LABELS
    assert labels_of({"x": inputs, "labels": LABELS}, None) is LABELS
    assert labels_of((inputs, inputs), None) is None
    assert labels_of({"input_ids": inputs, "labels": torch.ones(3, 4).long()}, None) is None
    assert labels_of(inputs, None) is None
    assert labels_of((LABELS, inputs), 0) is LABELS
    assert labels_of({"species": LABELS}, "species") is LABELS
    assert torch.equal(labels_of((inputs, torch.eye(3)), lambda batch: batch[1].argmax(-1)), LABELS)


def test_labels_that_are_not_there_are_told_of_with_what_is():
    with pytest.raises(ValueError, match=r"labels='y' finds nothing in the batch, which is a dict with the keys x, z;"):
        labels_of({"x": 1, "z": 2}, "y")
    with pytest.raises(ValueError, match=r"labels=2 finds nothing in the batch, which is a tuple of 2;"):
        labels_of((1, 2), 2)
    with pytest.raises(
        ValueError, match=r"labels=1 finds a tensor of torch.float32 and shape \(3, 4\), not .*whole numbers.*argmax"
    ):
        labels_of((1, torch.ones(3, 4)), 1)
