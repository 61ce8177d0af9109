"""What `copy.deepcopy` makes of tensors while a step is followed."""

import copy
from threading import Thread

import torch

from lightning_symmetry.tracing.copying import tensors_copied


def test_tensors_are_copied_as_is_said_in_this_thread_alone():
    kept = {"one": torch.ones(2), "another": torch.ones(2, requires_grad=True) * 2}
    elsewhere = []
    with tensors_copied(lambda tensor: tensor.detach() + 1):
        here = copy.deepcopy(kept)
        thread = Thread(target=lambda: elsewhere.append(copy.deepcopy(kept["one"])))
        thread.start()
        thread.join()
    assert here["one"].equal(torch.full((2,), 2.0))
    assert here["another"].equal(torch.full((2,), 3.0))
    assert elsewhere[0].equal(kept["one"])
    assert copy.deepcopy(kept["one"]).equal(kept["one"])


def test_a_tensor_of_a_class_of_its_own_keeps_it_and_copies_of_its_attributes():
    class Named(torch.Tensor):
        pass

    named = torch.ones(2).as_subclass(Named)
    named.names_of_entries, named.scale = ["x", "y"], torch.ones(1)
    with tensors_copied(torch.clone):
        copied = copy.deepcopy(named)
    assert type(copied) is Named
    assert copied.names_of_entries == ["x", "y"]
    assert copied.names_of_entries is not named.names_of_entries
    assert copied.scale is not named.scale
