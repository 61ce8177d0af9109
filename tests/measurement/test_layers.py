"""Which layers are listened to, and where in what they return the features are."""

import pytest
import torch
from torch import nn

from lightning_symmetry.functional import effective_rank
from lightning_symmetry.measurement.features import (
    attention_mask,
    batch_size_of,
    first_tensor,
    labels_of,
    layout_of,
    random_projection,
    spread_sample,
)
from lightning_symmetry.measurement.layers import (
    classifier_name,
    default_layers,
    inside_compiled,
    layer_names,
    layers_of_types,
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


def test_the_mask_and_the_size_of_a_batch_are_found():
    mask = torch.ones(2, 3)
    assert attention_mask({"input_ids": mask, "attention_mask": mask}) is mask
    assert attention_mask([{"attention_mask": mask}, torch.zeros(2)]) is mask
    assert attention_mask(torch.zeros(2)) is None and attention_mask({"attention_mask": torch.ones(2, 1, 3, 3)}) is None
    assert batch_size_of({"input_ids": mask}) == 2 and batch_size_of(3) is None


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
    with pytest.raises(ValueError, match=r"labels=1 finds a tensor of torch.float32, not .*whole numbers.*argmax"):
        labels_of((1, torch.ones(3, 4)), 1)
