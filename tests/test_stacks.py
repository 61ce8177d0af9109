"""Tensors of modules in lists, one upon another."""

import pytest
import torch

from lightning_symmetry.stacks import Stacked, first_of, list_of, members, n_stacked, stack_of, unstacked

TENSORS = {f"models.{m}.heads.{h}.bias": torch.full((2,), 10.0 * m + h) for m in range(2) for h in range(3)}


def test_a_stack_is_made_of_all_modules_of_a_list_in_order():
    assert stack_of("models.1.heads.*.bias", TENSORS)[:, 0].tolist() == [10, 11, 12]


def test_lists_within_lists_are_stacked_within_stacks():
    stack = Stacked(TENSORS)["models.*.heads.*.bias"]
    assert stack.shape == (2, 3, 2)
    assert stack[..., 0].tolist() == [[0, 1, 2], [10, 11, 12]]


def test_a_stack_comes_apart_into_what_it_was_made_of():
    name = "models.*.heads.*.bias"
    stack = stack_of(name, TENSORS)
    assert members(name, stack.shape) == list(TENSORS)
    for (found, part), (expected, tensor) in zip(unstacked(name, stack), TENSORS.items(), strict=True):
        assert found == expected
        assert torch.equal(part, tensor)


def test_a_tensor_that_is_none_is_itself():
    tensor = torch.ones(3)
    assert stack_of("bias", {"bias": tensor}) is tensor
    assert members("bias", tensor.shape) == ["bias"]
    assert list(unstacked("bias", tensor)) == [("bias", tensor)]


def test_a_stack_is_made_once_and_kept():
    tensors = Stacked(TENSORS)
    assert tensors["models.0.heads.*.bias"] is tensors["models.0.heads.*.bias"]
    assert "models.0.heads.*.bias" not in TENSORS


@pytest.mark.parametrize("name", ["heads.*.bias", "heads.bias", "models.*.bias"])
def test_what_is_not_there_is_named(name):
    with pytest.raises(KeyError):
        Stacked(TENSORS)[name]


NAMED = {
    f"critics.{name}.{k}.bias": torch.full((2,), 10.0 * k + len(name)) for name in ("one", "third") for k in (0, 1)
}


def test_modules_with_names_of_their_own_are_stacked_by_these():
    name = "critics.{third,one}.*.bias"
    stack = stack_of(name, NAMED)
    assert stack[..., 0].tolist() == [[5, 15], [3, 13]]
    assert members(name, stack.shape) == [f"critics.{each}.{k}.bias" for each in ("third", "one") for k in (0, 1)]
    assert [found for found, _ in unstacked(name, stack)] == members(name, stack.shape)
    assert (n_stacked(name), first_of(name)) == (2, "critics.third.0.bias")
    assert (list_of(name, 0), list_of(name, 1)) == ("critics.third,one", "critics.{third,one}")


@pytest.mark.parametrize("name", ["critics.{one,second}.0.bias", "critics.{one,second}.*.bias"])
def test_all_modules_that_are_named_must_be_there(name):
    with pytest.raises(KeyError):
        stack_of(name, NAMED)


@pytest.mark.parametrize("name", ["a*b.bias", "{a.b}", "x{a,b}.bias", "*x"])
def test_names_of_modules_that_look_like_those_of_stacks_are_none(name):
    assert n_stacked(name) == 0
    assert first_of(name) == name


def test_a_stack_has_a_first_tensor():
    assert first_of("models.*.heads.*.bias") == "models.0.heads.0.bias"
