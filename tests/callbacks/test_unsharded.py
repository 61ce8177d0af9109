"""A copy that one process can run of a model that is spread over several, and the model as it was."""

import pytest
import torch
import torch.distributed
from torch import nn
from torch._subclasses import FakeTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_symmetry import find_symmetries
from lightning_symmetry.callbacks.unsharded import own_class, shapes_alone, unsharded
from lightning_symmetry.measurement.measure import Ranks
from lightning_symmetry.measurement.snapshot import snapshot
from tests.zoo import ZOO


@pytest.fixture(scope="module")
def mesh():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def built():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def sharded(model, mesh):
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def parallel(model, mesh):
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


@pytest.mark.parametrize("spread", [sharded, parallel])
def test_the_copy_is_whole_and_computes_the_same(mesh, spread):
    batch = torch.randn(3, 4)
    expected = built()(batch)
    model = spread(built(), mesh)
    model(batch)
    whole = unsharded(model, snapshot(model, Ranks()))
    assert [type(module) for module in whole.modules()] == [nn.Sequential, nn.Linear, nn.Tanh, nn.Linear]
    assert [type(parameter) for parameter in whole.parameters()] == [nn.Parameter] * 4
    assert [len(module._forward_hooks) for module in whole] == [1, 0, 0]  # the user's own
    assert not any(module._forward_pre_hooks for module in whole.modules())
    assert torch.equal(whole(batch), expected)
    assert [str(group) for group in find_symmetries(whole, batch)] == [
        str(group) for group in find_symmetries(built(), batch)
    ]


@pytest.mark.parametrize("spread", [sharded, parallel])
def test_the_model_stays_as_it_was(mesh, spread):
    batch = torch.randn(3, 4)
    model = spread(built(), mesh)
    model(batch)
    tensors = snapshot(model, Ranks())
    before = [
        (type(module), list(module._forward_hooks), list(module._forward_pre_hooks), dict(vars(module)))
        for module in model.modules()
    ]
    unsharded(model, tensors)
    for module, (kind, hooks, pre_hooks, attributes) in zip(model.modules(), before, strict=True):
        assert type(module) is kind
        assert list(module._forward_hooks) == hooks
        assert list(module._forward_pre_hooks) == pre_hooks
        assert all(vars(module)[name] is value for name, value in attributes.items())
    assert isinstance(model, FSDPModule) is (spread is sharded)
    assert own_class(model) is nn.Sequential
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert model(batch).shape == (3, 2)


@pytest.mark.parametrize("name", ["conv stack", "gpt2", "llama", "lstm", "mixtral batched", "t5"])
def test_the_shapes_of_parameters_are_enough_to_find_the_same_groups(name):
    model, batch = ZOO[name].build(), ZOO[name].batch()
    by_shapes = unsharded(model, shapes_alone(model, dict(model.named_buffers())))
    assert all(isinstance(parameter.data, FakeTensor) for parameter in by_shapes.parameters())
    expected = find_symmetries(model, batch, verify_up_to=0)
    assert find_symmetries(by_shapes, batch, verify_up_to=0).to_dict() == expected.to_dict()
