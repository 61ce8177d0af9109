"""Modules of a list that may be exchanged, and those that may not.

That the groups of heads, experts and ensembles in lists are all that there are, and which they are, is in the tests of
the zoo and of completeness.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_symmetry.symmetry.exchange import propose_with_exchanges
from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.symmetry.groups import Symmetries
from lightning_symmetry.symmetry.kinds import KINDS
from lightning_symmetry.symmetry.proposals import propose
from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tracing import trace
from tests.module_lists import (
    Branches,
    Ensemble,
    Expert,
    Experts,
    Factors,
    Filled,
    FlattenedExperts,
    GatedInTurn,
    Heads,
    MistralExperts,
    NormedExperts,
    NormedMembers,
    RoutedExperts,
    StackedExperts,
    Towers,
)
from tests.zoo import ZOO, found


def lists_of(model, *batch):
    step = Step(model, batch)
    tape = trace(step)
    apart = propose(tape, step.parameters)
    return list(propose_with_exchanges(tape, step.parameters, tuple(KINDS), apart, left=())[1])


def exchanges(model, *batch):
    symmetries = find_symmetries(model, batch)
    assert symmetries.rejected == ()
    return {group.name: group.size for group in symmetries if group.kind == "permutation" and not group.rows}


def test_the_elements_of_a_group_exchange_whole_modules():
    torch.manual_seed(0)
    model = Heads(6, 3, 2)
    (group,) = [group for group in find_symmetries(model, (torch.randn(2, 5, 6),)) if group.name == "heads"]
    before = {name: parameter.detach() for name, parameter in model.named_parameters()}
    after = group.transform(before, torch.Generator().manual_seed(1))
    assert after.keys() == before.keys()
    came_from = [
        next(k for k in range(3) if torch.equal(after[f"heads.{n}.key.weight"], before[f"heads.{k}.key.weight"]))
        for n in range(3)
    ]
    assert came_from != [0, 1, 2]
    for n, k in enumerate(came_from):
        for name in ("query", "key", "value"):
            assert torch.equal(after[f"heads.{n}.{name}.weight"], before[f"heads.{k}.{name}.weight"])
        assert torch.equal(after["out.weight"][:, 2 * n : 2 * n + 2], before["out.weight"][:, 2 * k : 2 * k + 2])


def test_the_parameters_of_a_group_are_named_as_the_model_names_them():
    for name in ("heads in a list", "experts in a list", "ensemble"):
        model = ZOO[name].build()
        own = {each for each, _ in model.named_parameters()}
        for group in found(name):
            assert set(group.parameters) <= own
            assert group.tangent(dict(model.named_parameters())).keys() == set(group.parameters)


def test_what_was_found_goes_through_json():
    symmetries = found("experts in a list")
    assert Symmetries.from_dict(json.loads(json.dumps(symmetries.to_dict()))) == symmetries


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        (Experts, (32, 4)),
        (StackedExperts, (32, 4)),
        (RoutedExperts, (32, 4)),
        (FlattenedExperts, (8, 4, 4)),
        (MistralExperts, (32, 4)),
        (GatedInTurn, (32, 4)),
    ],
)
def test_experts_are_exchanged_with_what_their_router_gives_them(kind, tokens):
    torch.manual_seed(0)
    model = kind()
    symmetries = find_symmetries(model, (torch.randn(tokens),))
    group = next(group for group in symmetries if group.name == "experts")
    assert set(group.parameters) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("kind", "tokens"), [(RoutedExperts, (4, 4)), (FlattenedExperts, (2, 2, 4))])
def test_experts_that_no_token_of_this_batch_is_sent_to_are_exchanged_too(kind, tokens):
    """And whatever goes on to all experts goes on to these, which other parameters may send tokens to."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), kind(n_experts=9), nn.Linear(4, 2))
    batch = torch.randn(*tokens[:-1], 3)
    model(batch).sum().backward()
    unused = [expert for expert in model[1].experts if expert.up.weight.grad is None]
    assert len(unused) > 1
    symmetries = find_symmetries(model, (batch,))
    assert symmetries.rejected == ()
    assert symmetries.share == 1 - 2 / sum(parameter.numel() for parameter in model.parameters())  # but for the outputs
    assert {group.name: group.size for group in symmetries if group.kind == "permutation"} == {
        "1.experts": 9,
        "1.experts.*.up": 5,
    }


def test_experts_that_hold_norms_are_exchanged_though_some_are_sent_no_token():
    torch.manual_seed(0)
    model = RoutedExperts(n_experts=9)
    for k in range(9):
        model.experts[k] = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 4))
    symmetries = find_symmetries(model, (torch.randn(3, 4),))
    assert symmetries.rejected == ()
    assert symmetries.share == 1
    found = {group.name: group.size for group in symmetries if group.axis == "experts"}
    assert found == {"experts": 9, "experts.*.0.scale": 9, "experts.*.0.sign": 9}


class Summed(nn.Module):
    """Modules of a list whose outputs are added up."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs):
        return sum(member(inputs) for member in self.members)


def net(width=7):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))


class TwinCritics(nn.Module):
    """Of the smaller of two targets both critics learn."""

    def __init__(self):
        super().__init__()
        self.q1, self.q2, self.q1_target, self.q2_target = (net() for _ in range(4))

    def forward(self, states):
        with torch.no_grad():
            target = torch.minimum(self.q1_target(states), self.q2_target(states))
        return sum((critic(states) - target).square().mean() for critic in (self.q1, self.q2))


def test_modules_with_names_of_their_own_are_exchanged_with_those_that_do_the_same():
    torch.manual_seed(0)
    model, batch = TwinCritics(), (torch.randn(6, 4),)
    assert lists_of(model, *batch) == ["{q1,q2}", "{q1_target,q2_target}"]
    symmetries = find_symmetries(model, batch)
    assert symmetries.rejected == ()
    groups = {group.name: group for group in symmetries if group.kind == "permutation"}
    assert {name: (group.rows, group.size) for name, group in groups.items()} == {
        "q1,q2": ((), 2),
        "{q1,q2}.0": ((("q1,q2", 2),), 7),
        "q1_target,q2_target": ((), 2),
        "{q1_target,q2_target}.0": ((("q1_target,q2_target", 2),), 7),
    }
    (shift,) = (group for group in symmetries if group.kind == "translation")  # of critics and targets, told once
    assert set(shift.parameters) == {name for name, _ in model.named_parameters() if name.endswith("2.bias")}
    assert set(groups["q1,q2"].parameters) == {name for name, _ in model.named_parameters() if "target" not in name}
    assert Symmetries.from_dict(json.loads(json.dumps(symmetries.to_dict()))) == symmetries


@pytest.mark.parametrize("both", [True, False])
def test_factors_are_exchanged_unit_by_unit_where_both_are_made_alike(both):
    torch.manual_seed(0)
    symmetries = find_symmetries(Factors(both), (torch.randn(6, 4),))
    permutations = {group.name: (group.rows, group.size) for group in symmetries if group.kind == "permutation"}
    assert symmetries.rejected == ()
    if both:
        assert permutations == {"{one,two}": ((), 6), "one,two": ((("{one,two}", 6),), 2)}
    else:
        assert permutations == {"one": ((), 6)}
        assert {group.name for group in symmetries if group.kind != "permutation"} == {"two.sign", "two.rescaling"}


def test_modules_that_write_to_columns_of_the_output_are_exchanged():
    torch.manual_seed(0)
    symmetries = find_symmetries(Filled(), (torch.randn(6, 4),))
    assert symmetries.rejected == ()
    assert {(group.kind, group.name): (*(length for _, length in group.rows), group.size) for group in symmetries} == {
        ("permutation", "members"): (3,),
        ("permutation", "members.*.0"): (3, 5),
        ("sign", "members.*.0.sign"): (3, 5),
        ("rotation", "members.*.2.rotation"): (3, 2),
        ("translation", "members.*.2.translation"): (3, 2),
    }


class Near(nn.Module):
    """Two maps that are alike but for what they look at."""

    def __init__(self):
        super().__init__()
        self.near, self.far = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 3, padding=2, dilation=2)
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, inputs):
        return self.out(F.gelu(self.near(inputs) + self.far(inputs)))


class Bilinear(nn.Module):
    """Two maps that are alike, and of which units may be rescaled one against the other."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, inputs):
        return self.out(self.gate(inputs) * self.up(inputs))


@pytest.mark.parametrize(
    ("member", "shape", "within"),
    [(Near, (2, 2, 6, 6), {"members.*.near": 4}), (Bilinear, (8, 4), {"members.*.gate": 6})],
)
def test_modules_are_exchanged_though_what_is_within_them_is_not(member, shape, within):
    torch.manual_seed(0)
    model = Summed(member() for _ in range(3))
    found = {g.name: g.size for g in find_symmetries(model, torch.randn(shape)) if g.kind == "permutation"}
    assert found == {"members": 3, **within}


def test_modules_of_two_lists_whose_outputs_are_added_up_are_exchanged_in_each():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.spare = net(6), net(6), net(6)
            self.members = nn.ModuleList(net(5) for _ in range(3))

        def forward(self, inputs):
            return sum(each(inputs) for each in (self.one, self.two, *self.members))

    torch.manual_seed(0)
    symmetries = find_symmetries(Both(), (torch.randn(8, 4),))
    found = {group.name: group.size for group in symmetries if group.kind == "permutation"}
    assert found == {"one,two": 2, "{one,two}.0": 6, "members": 3, "members.*.0": 5}
    assert sum(group.dimension for group in symmetries if group.kind == "translation") == 4  # of five biases


def test_what_comes_of_modules_is_joined_term_by_term():
    class Adversaries(nn.Module):
        def __init__(self):
            super().__init__()
            self.coarse, self.fine = net(), net()

        def forward(self, real, fake):
            loss = 0.0
            for each in (self.coarse, self.fine):
                loss = loss + F.softplus(-each(real)).mean() + F.softplus(each(fake)).mean()
            return loss

    torch.manual_seed(0)
    model = Adversaries()
    assert lists_of(model, torch.randn(8, 4), torch.randn(8, 4)) == ["{coarse,fine}"]


@pytest.mark.parametrize("name", ["*", "{a,b}"])
def test_a_module_with_the_name_of_several_is_refused(name):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(4, 2))
    with pytest.raises(ValueError, match="give its module another one"):
        find_symmetries(model, torch.randn(3, 4))


def test_some_modules_of_a_list_are_exchanged_where_others_do_something_else():
    torch.manual_seed(0)
    kinds = (nn.Tanh, nn.Tanh, nn.GELU, nn.Tanh)
    model = Summed(nn.Sequential(nn.Linear(4, 5), kind(), nn.Linear(5, 3)) for kind in kinds)
    found = exchanges(model, torch.randn(9, 4))
    assert found == {"members.0,1,3": 3, "members.2.0": 5}


def test_modules_that_no_step_uses_are_not_exchanged_with_others():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(Expert(4, 5) for _ in range(4))

        def forward(self, inputs):
            return self.branches[0](inputs) + self.branches[2](inputs)

    symmetries = find_symmetries(Two(), (torch.randn(8, 4),), verify_up_to=0)
    names = {group.name for group in symmetries if group.kind == "permutation"}
    assert names == {"branches.0.up", "branches.2.up"}


def test_running_statistics_are_exchanged_too():
    symmetries = find_symmetries(Branches(), (torch.randn(4, 2, 5, 5),))
    group = next(group for group in symmetries if group.name == "branches")
    assert set(group.buffers) == {f"branches.{k}.1.running_{what}" for k in range(3) for what in ("mean", "var")}


@pytest.mark.parametrize("first", [True, False])
def test_modules_that_begin_or_end_with_a_norm_are_exchanged(first):
    torch.manual_seed(0)
    model = nn.Sequential(NormedExperts(first), nn.Linear(4, 2))
    groups = {group.name: group for group in find_symmetries(model, (torch.randn(16, 4),))}
    assert groups["0.experts"].size == 3
    scaled = {name: group.size for name, group in groups.items() if group.kind in ("rescaling", "scale")}
    assert scaled == (
        {"0.experts.*.0.rescaling": 4}
        if first
        else {"0.experts.*.0.down.scale": 3, "0.experts.*.1.rescaling": 4}  # of each module, and of each unit
    )
    assert first or groups["0.experts.*.0.down.sign"].size == 3


def test_each_module_has_a_scale_and_a_sign_before_its_norm():
    symmetries = find_symmetries(NormedMembers(), (torch.randn(16, 4),))
    found = {group.name: (group.axis, group.rows, group.size, group.parameters) for group in symmetries}
    layers = tuple(f"members.{k}.0.{name}" for name in ("weight", "bias") for k in range(3))
    assert found["members"][:3] == ("members", (), 3)
    assert found["members.*.0.scale"] == ("members", (), 3, layers)
    assert found["members.*.0.sign"] == ("members", (), 3, (*layers, *(f"members.{k}.1.weight" for k in range(3))))


def test_lists_within_lists_are_exchanged_each():
    class Committee(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList(Heads(6, 3, 2) for _ in range(2))

        def forward(self, tokens):
            return sum(member(tokens) for member in self.members)

    symmetries = find_symmetries(Committee(), (torch.randn(2, 5, 6),))
    found = {group.name: (group.rows, group.size) for group in symmetries}
    assert found["members"] == ((), 2)
    assert found["members.*.heads"] == ((("members", 2),), 3)
    assert found["members.*.heads.*.query.rotation"] == ((("members", 2), ("members.*.heads", 3)), 2)


def test_layers_one_after_the_other_are_not_tried():
    torch.manual_seed(0)
    deep = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    assert lists_of(deep, torch.randn(8, 4)) == []
    assert exchanges(nn.Sequential(Expert(4, 5), Expert(4, 5)), torch.randn(8, 4)).keys() == {"0.up", "1.up"}


def test_modules_whose_outputs_are_told_apart_are_not_tried():
    class Tasks(nn.Module):
        def __init__(self):
            super().__init__()
            self.tasks = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))

        def forward(self, inputs):
            return [task(inputs) for task in self.tasks]

    assert lists_of(Tasks(), torch.randn(8, 4)) == []


def test_modules_that_read_inputs_of_their_own_are_not_tried():
    assert lists_of(Towers(), torch.randn(9, 3, 4)) == []
    names = {f"towers.{k}.0": 5 for k in range(3)}
    assert exchanges(Towers(), torch.randn(9, 3, 4)) == names


def test_modules_that_do_different_things_are_not_exchanged():
    """That they do no tape tells: they are tried, and what is within each is found as before."""

    class Uneven(Ensemble):
        def forward(self, inputs):
            return sum((k + 1) * member(inputs) for k, member in enumerate(self.members))

    assert exchanges(Uneven(), torch.randn(9, 4)) == {f"members.{k}.0": 5 for k in range(3)}


class Power(nn.Module):
    def __init__(self, exponent):
        super().__init__()
        self.exponent = exponent

    def forward(self, inputs):
        return inputs**self.exponent


def test_a_list_that_hides_what_is_within_its_modules_leaves_another_list_as_it_is():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            powers = (Power(2), Power(3), Power(3))  # of which the signs of units differ
            self.mixed = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), power, nn.Linear(5, 3)) for power in powers)
            self.alike = nn.ModuleList(Expert(3, 6) for _ in range(3))

        def forward(self, inputs):
            hidden = torch.sin(sum(member(inputs) for member in self.mixed))
            return sum(member(hidden) for member in self.alike)

    assert lists_of(Mixed(), torch.randn(9, 4)) == ["alike.*"]
    sizes = {**{f"mixed.{k}.0": 5 for k in range(3)}, "mixed.0.2": 3, "alike": 3}
    assert exchanges(Mixed(), torch.randn(9, 4)) == sizes


def test_modules_of_different_shapes_are_not_tried():
    class Sizes(Ensemble):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList(Expert(4, hidden) for hidden in (5, 5, 6))

    assert lists_of(Sizes(), torch.randn(9, 4)) == []


def test_groups_of_kinds_that_were_not_asked_for_are_left_out():
    kinds = {group.kind for group in find_symmetries(Experts(), (torch.randn(16, 4),), kinds=["sign"])}
    assert kinds == {"sign"}


def test_what_is_within_each_module_is_found_once():
    """Also where a map of each has several blocks: here one that reads what is laid end to end."""

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 5)
            self.members = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))
            self.out = nn.Linear(4, 2)

        def forward(self, inputs):
            features = torch.cat([self.left(inputs), torch.tanh(self.right(inputs))], -1)
            return self.out(torch.tanh(sum(member(features) for member in self.members)))

    symmetries = find_symmetries(Fused(), (torch.randn(9, 4),))
    assert "members" in [group.name for group in symmetries]
    moved = [(group.kind, group.parameters) for group in symmetries]
    assert len(moved) == len(set(moved))


def test_what_is_added_before_modules_of_a_list_is_taken_up_by_each():
    class TextConvolutions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = nn.Embedding(11, 6), nn.Linear(15, 3)
            self.windows = nn.ModuleList(nn.Conv1d(6, 5, 2) for _ in range(3))

        def forward(self, tokens):
            embedded = self.embedding(tokens).mT
            return self.out(torch.cat([torch.tanh(window(embedded)).amax(-1) for window in self.windows], 1))

    torch.manual_seed(0)
    symmetries = find_symmetries(TextConvolutions(), (torch.randint(11, (8, 7)),))
    (shift,) = [group for group in symmetries if group.kind == "translation"]
    assert shift.size == 6
    assert shift.parameters == ("embedding.weight", *(f"windows.{k}.bias" for k in range(3)))
    assert symmetries.rejected == ()


@pytest.mark.parametrize("joined", [sum, lambda outputs: torch.cat(outputs, -1)])
def test_what_is_added_within_each_module_is_taken_up_within_it(joined):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)) for _ in range(3))

        def forward(self, inputs):
            return torch.tanh(joined([member(inputs) for member in self.members])).sum(-1)

    torch.manual_seed(0)
    symmetries = find_symmetries(Linear(), (torch.randn(9, 4),))
    (shift,) = [group for group in symmetries if group.kind == "translation" and group.rows]
    assert (shift.rows, shift.size) == ((("members", 3),), 6)
    assert set(shift.parameters) == {f"members.{k}.{layer}.bias" for k in range(3) for layer in (0, 1)}
    assert symmetries.rejected == ()


@pytest.mark.parametrize("joined", [sum, lambda outputs: torch.stack(outputs).mean(0)])
@pytest.mark.parametrize("deep", [True, False])
def test_what_is_added_is_taken_up_behind_modules_whose_outputs_are_added_up(joined, deep):
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.bias = nn.Embedding(9, 4), nn.Parameter(torch.randn(3))
            self.members = nn.ModuleList(
                nn.Sequential(*[nn.Tanh(), nn.Linear(4, 6)] * deep, nn.Linear(6 if deep else 4, 3, bias=False))
                for _ in range(3)
            )

        def forward(self, tokens):
            read = self.first(tokens)
            return torch.tanh(joined([member(read) for member in self.members]) + self.bias)

    torch.manual_seed(0)
    symmetries = find_symmetries(Biased(), (torch.randint(9, (5, 6)),))
    (shift,) = [group for group in symmetries if group.kind == "translation"]
    moved = [f"members.{k}.1.bias" for k in range(3)] if deep else ["first.weight"]
    assert set(shift.parameters) == {*moved, "bias"}
    assert "members" in [group.name for group in symmetries]
    assert symmetries.rejected == ()


def test_a_gain_of_each_module_that_is_kept_as_its_difference_from_one_is_rescaled():
    class Gained(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.gain, self.out = nn.Linear(4, 5), nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

        def forward(self, inputs):
            return self.out(self.into(inputs).relu() * (1 + self.gain))

    torch.manual_seed(0)
    symmetries = find_symmetries(Summed(Gained() for _ in range(3)), (torch.randn(7, 4),))
    moved = {group.name: group.rows for group in symmetries if group.kind in ("permutation", "rescaling")}
    assert {"members": (), "members.*.gain.rescaling": (("members", 3),)}.items() <= moved.items()
    assert symmetries.rejected == ()


def test_parts_of_different_lengths_that_modules_give_are_laid_end_to_end():
    class Levels(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in range(3))

        def forward(self, images):
            levels = [head(nn.functional.avg_pool2d(images, 2**k)) for k, head in enumerate(self.heads)]
            return torch.cat([level.flatten(2) for level in levels], -1)

    assert len(find_symmetries(Levels(), (torch.randn(2, 3, 8, 8),))) == 0
