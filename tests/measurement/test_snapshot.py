"""The tensors of a model at one moment: what is spread over processes is made whole when it is read."""

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lightning_symmetry.measurement import snapshot as module
from lightning_symmetry.measurement.measure import Ranks
from lightning_symmetry.measurement.snapshot import Snapshot, attend, held, refuse_flattened, snapshot


@pytest.fixture(scope="module")
def mesh():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_it_is_of_parameters_and_buffers_without_their_graph_and_without_a_copy():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    tensors = snapshot(model)
    assert list(tensors) == [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    assert not tensors["0.weight"].requires_grad
    assert tensors["0.weight"].data_ptr() == model[0].weight.data_ptr()
    assert not tensors.spread
    assert held({"x": tensors["0.bias"]}) == {"x": tensors["0.bias"]}
    attend({})


def test_tied_parameters_are_there_once_and_more_tensors_may_be_added():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert list(snapshot(model, besides={"sum": torch.ones(())})) == ["0.weight", "0.bias", "1.bias", "sum"]


def test_what_is_spread_is_read_whole_and_what_every_rank_has_is_not_asked_for(mesh):
    whole = torch.arange(6.0).reshape(3, 2)
    sums = []
    ranks = Ranks(sum=lambda tensor: sums.append(tensor) or tensor)
    spread, everywhere = (distribute_tensor(whole, mesh, [where]) for where in (Shard(0), Replicate()))
    model = nn.ParameterDict({"spread": nn.Parameter(spread), "everywhere": nn.Parameter(everywhere)})
    tensors = snapshot(model, ranks)
    assert tensors.spread == ("spread",)
    assert type(tensors["everywhere"]) is torch.Tensor
    assert not sums
    assert torch.equal(tensors["spread"], whole)
    assert tensors["spread"] is tensors["spread"]
    assert len(sums) == 1
    tensors.attend()
    assert len(sums) == 2
    assert sums[1].tolist() == [[0.0], [0.0]]


def test_no_more_than_a_few_small_ones_are_kept(mesh, monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", 100)
    sums = []
    ranks = Ranks(sum=lambda tensor: sums.append(tensor) or tensor)
    spread = {f"{n}": distribute_tensor(torch.full((10,), float(n)), mesh, [Shard(0)]) for n in range(4)}
    tensors = Snapshot(spread, ranks)
    for n in (0, 1, 0, 2, 3, 3):
        assert tensors[f"{n}"].tolist() == [float(n)] * 10
    assert len(sums) == 4  # two of 40 bytes are kept
    assert tensors["0"].tolist() == [0.0] * 10
    assert len(sums) == 5


def test_a_rank_without_room_gathers_nothing_and_is_named(mesh, monkeypatch):
    def full(*shape, **options):
        raise torch.OutOfMemoryError("no room")

    tensors = Snapshot({"weight": distribute_tensor(torch.ones(3), mesh, [Shard(0)])}, Ranks())
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(MemoryError, match="rank 0 has no room to gather weight"):
        tensors["weight"]
    tensors.attend()


def test_what_cannot_be_gathered_is_told_to_who_reads_it_and_not_to_who_attends(mesh, monkeypatch):
    votes = [[[2.0], [0.0]], [[1.0], [0.0]], [[0.0], [0.0]]]
    tensors = Snapshot(
        {name: distribute_tensor(torch.ones(3), mesh, [Shard(0)]) for name in ("weight", "bias")},
        Ranks(sum=lambda tensor: torch.tensor(votes.pop(0))),
    )

    def fails(tensor):
        raise RuntimeError("no backend for this device")

    monkeypatch.setattr(DTensor, "full_tensor", fails)
    with pytest.raises(RuntimeError, match="no backend for this device"):
        tensors["bias"]
    tensors.attend()
    assert not votes


@pytest.mark.parametrize(
    ("mark", "value", "strategy"),
    [("_fsdp_flattened", True, "FSDPStrategy"), ("_is_flat_param", True, "FSDPStrategy"), ("ds_id", 0, "DeepSpeed")],
)
def test_parameters_of_which_no_process_knows_the_shape_are_refused(mark, value, strategy):
    """As the libraries mark them; DeepSpeed itself runs on no CPU."""
    model = nn.Linear(2, 2)
    refuse_flattened(model)
    setattr(model.bias, mark, value)
    with pytest.raises(NotImplementedError, match=f"{strategy}.*this monitor stands down"):
        refuse_flattened(model)


def test_copies_stay_as_they_are_when_the_model_changes():
    model = nn.BatchNorm1d(2)
    live, copied = snapshot(model), snapshot(model).copied()
    with torch.no_grad():
        model.weight.fill_(3.0)
    assert set(copied) == set(live)
    assert live["weight"].tolist() == [3.0, 3.0] and copied["weight"].tolist() == [1.0, 1.0]
