"""What is measured of modules in a list is what is measured of the same model with one tensor for all of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_symmetry.measurement.charges import charge_pieces
from lightning_symmetry.measurement.indicators import SharedGauge, symmetry_pieces
from lightning_symmetry.measurement.products import product_pieces
from lightning_symmetry.measurement.snapshot import snapshot
from lightning_symmetry.measurement.units import why_not_matched
from lightning_symmetry.symmetry.find import find_symmetries
from tests.module_lists import Experts, Heads, NamedBranches, NormedMembers


class FusedHeads(nn.Module):
    """The heads of a list as one map for queries, one for keys, one for values."""

    def __init__(self, model):
        super().__init__()
        self.n_heads, self.out = len(model.heads), model.out
        for name in ("query", "key", "value"):
            weights = [getattr(head, name).weight.detach() for head in model.heads]
            setattr(self, name, nn.Parameter(torch.cat(weights)))

    def forward(self, tokens):
        maps = (self.query, self.key, self.value)
        queries, keys, values = (F.linear(tokens, w).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for w in maps)
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.out(seen.transpose(1, 2).flatten(2))


class BatchedExperts(nn.Module):
    """The experts of a list as one tensor for each of their maps and biases."""

    def __init__(self, model):
        super().__init__()
        self.router = model.router
        for name, _ in model.experts[0].named_parameters():
            stack = torch.stack([expert.get_parameter(name).detach() for expert in model.experts])
            setattr(self, name.replace(".", "_"), nn.Parameter(stack))

    def forward(self, tokens):
        hidden = torch.tanh(torch.einsum("ehd,nd->neh", self.up_weight, tokens) + self.up_bias)
        outputs = torch.einsum("edh,neh->ned", self.down_weight, hidden) + self.down_bias
        return torch.einsum("ne,ned->nd", F.softmax(self.router(tokens), -1), outputs)


class BatchedMembers(nn.Module):
    """The members of a list as one tensor for each of their maps, norms and biases."""

    def __init__(self, model):
        super().__init__()
        for name, _ in model.members[0].named_parameters():
            stack = torch.stack([member.get_parameter(name).detach() for member in model.members])
            setattr(self, f"layer{name}".replace(".", "_"), nn.Parameter(stack))

    def forward(self, inputs):
        hidden = F.layer_norm(
            torch.einsum("mhd,nd->nmh", self.layer0_weight, inputs) + self.layer0_bias, (5,), eps=1e-12
        )
        hidden = F.gelu(hidden * self.layer1_weight + self.layer1_bias)
        return torch.einsum("moh,nmh->nmo", self.layer3_weight, hidden).mean(1)


def measured(model, batch):
    """All indicators of one model, by their names and the number of units of their groups."""
    symmetries = find_symmetries(model, (batch,))
    gauge = SharedGauge(symmetries)
    pieces = [
        *symmetry_pieces(symmetries, 1e-2, gauge),
        *product_pieces(symmetries, gauge),
        *charge_pieces(symmetries, ["imbalance"], lambda name: (0.1, False), lambda: 0),
    ]
    tensors = snapshot(model)
    with torch.no_grad():
        found = [
            (key.split("/")[1], float(value))
            for piece in pieces
            for key, value in zip(piece.keys, piece.measure(tensors), strict=True)
        ]
    return sorted(found)


@pytest.mark.parametrize(
    ("listed", "fused", "batch"),
    [(Heads, FusedHeads, (2, 5, 6)), (Experts, BatchedExperts, (16, 4)), (NormedMembers, BatchedMembers, (16, 4))],
)
def test_the_same_is_measured_of_a_list_as_of_one_tensor(listed, fused, batch):
    torch.manual_seed(0)
    model, batch = listed(), torch.randn(batch)
    twin = fused(model)
    assert torch.allclose(model(batch), twin(batch), atol=1e-6)
    ours, theirs = measured(model, batch), measured(twin, batch)
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-5)
    assert len(ours) > 10


@pytest.mark.parametrize(("alike", "distinct"), [(0, 3), (1, 2), (2, 1)])
def test_modules_that_have_become_equal_are_counted(alike, distinct):
    """However their units are ordered, and whatever their signs."""
    torch.manual_seed(0)
    model = Experts()
    symmetries = find_symmetries(model, (torch.randn(16, 4),))
    with torch.no_grad():
        for k in range(1, alike + 1):
            model.experts[k].load_state_dict(model.experts[0].state_dict())
            model.experts[k].up.weight.copy_(-model.experts[0].up.weight.flip(0))
            model.experts[k].up.bias.copy_(-model.experts[0].up.bias.flip(0))
            model.experts[k].down.weight.copy_(-model.experts[0].down.weight.flip(1))
            model.router.weight[k] = model.router.weight[0]
            model.router.bias[k] = model.router.bias[0]
    pieces = symmetry_pieces(symmetries, 1e-2)
    piece = next(each for each in pieces if "symmetry/distinct_units/experts" in each.keys)
    with torch.no_grad():
        values = dict(zip(piece.keys, map(float, piece.measure(snapshot(model))), strict=True))
    assert values["symmetry/distinct_units/experts"] == distinct


class NumberedBranches(nn.Module):
    """The branches of a model with names of their own as a list."""

    def __init__(self, model):
        super().__init__()
        self.branches, self.out = nn.ModuleList([model.left, model.right]), model.out

    def forward(self, inputs):
        return self.out(F.gelu(sum(branch(inputs) for branch in self.branches)))


def test_modules_with_names_of_their_own_are_measured_as_those_of_a_list():
    torch.manual_seed(0)
    named = NamedBranches()
    measured = []
    for model, names in (
        (named, ("left,right", "{left,right}.up")),
        (NumberedBranches(named), ("branches", "branches.*.up")),
    ):
        symmetries = find_symmetries(model, (torch.randn(16, 4),))
        exchanged, units = ({group.name: group for group in symmetries}[name] for name in names)
        assert (exchanged.size, units.size, [size for _, size in units.rows]) == (2, 6, [2])
        pieces = symmetry_pieces(symmetries, 1e-2)
        with torch.no_grad():
            measured.append([float(value) for piece in pieces for value in piece.measure(snapshot(model))])
    assert measured[0] == pytest.approx(measured[1])
    assert len(measured[0]) > 4


def test_modules_of_several_layers_are_exchanged_but_not_compared():
    """Which unit of one is which of another would have to be found for both layers of hidden units at once."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            layers = lambda: (nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))  # noqa: E731
            self.members = nn.ModuleList(nn.Sequential(*layers()) for _ in range(3))

        def forward(self, inputs):
            return sum(member(inputs) for member in self.members)

    symmetries = find_symmetries(Deep(), (torch.randn(16, 4),))
    found = {group.name: why_not_matched(group, symmetries) for group in symmetries if group.kind == "permutation"}
    assert found == {
        "members": "maps from units to units within each",
        "members.*.0": None,
        "members.*.2": None,
    }


def test_units_that_are_alike_in_all_modules_are_measured_module_by_module():
    """Exchanged by units, and permuted by modules, they would all be alike."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.windows, self.out = nn.ModuleList(nn.Linear(6, 4) for _ in range(3)), nn.Linear(12, 5)

        def forward(self, inputs):
            return self.out(torch.relu(torch.cat([window(inputs) for window in self.windows], 1)))

    symmetries = find_symmetries(Windows(), (torch.randn(8, 6),))
    permuted = {group.name: (group.rows, group.size) for group in symmetries if group.kind == "permutation"}
    assert permuted == {f"windows.{k}": ((), 4) for k in range(3)}
