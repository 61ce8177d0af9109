"""What was found, as it is printed, and as it goes to JSON and comes back."""

import json

import pytest
import torch

from lightning_symmetry import find_symmetries
from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup
from tests.minis import MINIS
from tests.reference.completeness import generic
from tests.zoo import ZOO, search


def through_json(plain):
    return json.loads(json.dumps(plain, allow_nan=False))


@pytest.mark.parametrize("name", ZOO)
def test_every_group_of_the_zoo_comes_back_equal_and_moves_the_model_alike(name):
    symmetries, model = search(name, True).symmetries, ZOO[name].build()
    assert Symmetries.from_dict(through_json(symmetries.to_dict())) == symmetries
    tensors = {key: tensor.detach() for key, tensor in (*model.named_parameters(), *model.named_buffers())}
    for group in symmetries:
        again = SymmetryGroup.from_dict(through_json(group.to_dict()))
        assert again == group
        assert hash(again) == hash(group)
        for how in ("transform", "tangent"):
            moved, alike = (getattr(each, how)(tensors, torch.Generator().manual_seed(3)) for each in (group, again))
            assert moved.keys() == alike.keys()
            assert all(torch.equal(moved[key], alike[key]) for key in moved)


def test_what_is_shown_is_the_table_that_is_printed():
    symmetries = search("mlp relu", True).symmetries
    assert repr(symmetries) == str(symmetries)
    rows = [line.split() for line in str(symmetries).splitlines()]
    assert ["kind", "name", "units", "moves", "verified"] in rows
    assert ["rescaling", "0.rescaling", "11", "3", "parameters", "yes"] in rows
    assert rows[-1] == ["4", "groups", "move", "98.1%", "of", "the", "parameters"]


def test_the_table_says_what_holds_for_the_loss_alone_or_without_the_small_constants_of_norms():
    table = str(search("resnet basic", True).symmetries).splitlines()
    verdict = {line.split()[1]: line.partition(" yes")[2].strip() for line in table if " yes" in line}
    assert verdict["classifier.1.weight.translation"] == ", loss only"
    assert verdict["resnet.embedder.embedder.convolution.scale"] == ", at eps = 0"
    assert verdict["resnet.embedder.embedder.convolution"] == ""


def test_a_group_is_shown_in_a_line_that_names_what_it_moves():
    group = search("mlp relu", True).symmetries[0]
    assert repr(group) == (
        "SymmetryGroup(kind='permutation', name='0', axis='0', size=11, rows=(), "
        "parameters=('0.weight', '0.bias', '2.weight'), buffers=(), form='', preserves='output', exact=True, "
        "verified=True)"
    )


@pytest.mark.parametrize("name", ["mlp relu", "gpt2", "llama", "encoder pre-norm", "encoder post-norm", "lstm", "t5"])
def test_a_group_acts_on_the_device_of_the_parameters(name):
    """An element is drawn on the CPU; on the device "meta", as on any accelerator, nothing else may be met there."""
    model = ZOO[name].build().to("meta")
    tensors = {key: tensor.detach() for key, tensor in (*model.named_parameters(), *model.named_buffers())}
    for group in search(name, True).symmetries:
        moved = [group.tangent(tensors)] if group.folds else [group.tangent(tensors), group.transform(tensors)]
        assert all(each[key].device.type == "meta" for each in moved for key in group.parameters)


@pytest.mark.parametrize("name", ["residual", "length, read without a bias", "encoder pre-norm", "gpt2"])
def test_what_stands_behind_a_gain_of_zero_stays_as_it_is(name):
    """It could not be unfolded: of the rotations those are left that spare such a unit, of the shifts of means none."""
    model, batch = generic(MINIS[name].make()), MINIS[name].batch()
    folded = [group for group in find_symmetries(model, batch) if group.folds]
    gains = {fold.pivot.tensor for group in folded for fold in group.folds if fold.kind == "rescaling"}
    tensors = {key: tensor.detach() for key, tensor in model.named_parameters()}
    for unit, gain in enumerate(sorted(gains)):
        tensors[gain][unit] = 0
    outputs = MINIS[name].outputs(model(*batch))
    assert gains
    for group in folded:
        moved = group.transform(tensors, torch.Generator().manual_seed(0))
        after = MINIS[name].outputs(torch.func.functional_call(model, moved, batch))
        torch.testing.assert_close(after, outputs, rtol=1e-10, atol=1e-10)
        along = group.tangent(tensors, torch.Generator().manual_seed(0))
        behind = {fold.pivot.tensor for fold in group.folds if fold.kind == "rescaling"}
        for each in ({key: moved[key] - tensors[key] for key in along}, along):
            moves = max(float(change.abs().max()) for change in each.values()) > 1e-6
            assert moves == (group.kind == "rotation" or not behind)
