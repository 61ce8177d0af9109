"""What was found, as it is printed, and as it goes to JSON and comes back."""

import json

import pytest
import torch

from lightning_symmetry.symmetry.groups import Symmetries, SymmetryGroup
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
