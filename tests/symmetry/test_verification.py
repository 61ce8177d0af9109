"""What a proposed group is put to, and at which parameters."""

from dataclasses import replace
from math import inf, nan

import pytest
import torch
import transformers
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.symmetry.groups import Symmetries
from lightning_symmetry.symmetry.verification import _make_generic, relative_change, verify
from lightning_symmetry.tracing.precision import InFloat64
from lightning_symmetry.tracing.step import Step


class Complex(nn.Module):
    """A layer of complex weights, whose moduli a real layer reads."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Parameter(torch.randn(5, 7, dtype=torch.complex64))
        self.outer = nn.Linear(7, 3)

    def forward(self, inputs):
        return self.outer((inputs.to(torch.complex64) @ self.inner).abs())


def test_complex_parameters_are_perturbed_and_their_groups_verified_in_double_precision():
    torch.manual_seed(0)
    model = Complex()
    symmetries = find_symmetries(model, torch.randn(6, 5), kinds=["permutation"])
    assert [(group.name, group.size, group.verified) for group in symmetries] == [("inner", 7, True)]
    assert not symmetries.rejected
    generic = torch.empty(5, 7, dtype=torch.complex128)
    _make_generic(generic, model.inner.detach(), seed=0)
    difference = generic - model.inner.detach()
    assert difference.real.abs().min() > 0
    assert difference.imag.abs().min() > 0


class CountedStep(Step):
    """Counts how often it is run."""

    runs = 0

    def __call__(self, parameters, buffers, batch):
        self.runs += 1
        return super().__call__(parameters, buffers, batch)


def test_a_proposal_that_fits_no_tensor_is_rejected_and_the_others_pass():
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(6, 5)
    groups = find_symmetries(model, batch).groups
    misfit = replace(groups[0], name="misfit", size=8)
    verified = verify(Step(model, batch), [*groups, misfit])
    assert verified.groups == list(groups)
    assert verified.rejected == [misfit]


def test_a_false_group_does_not_pass_by_the_name_of_a_true_one():
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(6, 5)
    permutation, rescaling = find_symmetries(model, batch)
    false = replace(permutation, actions=permutation.actions[:2])
    for groups in ([rescaling, permutation, false], [false, permutation, rescaling]):
        verified = verify(Step(model, batch), groups)
        assert verified.groups == [group for group in groups if group is not false]
        assert verified.rejected == [false]


class Recurrent(nn.Module):
    """Reads its inputs and a state, of which the first batch has zeros alone."""

    def __init__(self, at_zero_alone):
        super().__init__()
        self.read, self.recall, self.out = nn.Linear(5, 7), nn.Linear(4, 7, bias=False), nn.Linear(7, 3)
        self.at_zero_alone = at_zero_alone

    def forward(self, inputs, state):
        if self.at_zero_alone and state.any():
            raise ValueError("the state is not zero")
        return self.out(F.gelu(self.read(inputs) + self.recall(state)))


def test_a_false_group_that_passes_on_the_batch_given_is_rejected_on_a_second_one():
    """What reads zeros may be anything. A step that refuses a second batch shows that the first lets this pass."""
    torch.manual_seed(0)
    batch = (torch.randn(6, 5), torch.zeros(6, 4))
    on_one = find_symmetries(Recurrent(at_zero_alone=True), batch)
    assert [(group.kind, group.name, group.size) for group in on_one] == [
        ("permutation", "read", 7),
        ("rotation", "recall.rotation", 4),
    ]
    assert on_one.one_batch == "the step fails on another one: ValueError: the state is not zero"
    assert "verified on one batch alone: the step fails on another one" in str(on_one)
    assert Symmetries.from_dict(on_one.to_dict()) == on_one

    model = Recurrent(at_zero_alone=False)
    verified = verify(Step(model, batch), on_one.groups)
    assert [group.name for group in verified.groups] == ["read"]
    assert [group.name for group in verified.rejected] == ["recall.rotation"]
    assert verified.one_batch is None
    assert not find_symmetries(model, batch).rejected


class Classifying(Recurrent):
    """Returns a loss beside the logits, which a translation of the last layer changes."""

    def forward(self, inputs, state):
        logits = super().forward(inputs, state)
        return {"loss": F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)), "logits": logits}


def test_groups_are_moved_on_top_of_those_that_pass_and_apart_from_one_that_fails_on_the_second_batch():
    torch.manual_seed(0)
    model, batch = Classifying(at_zero_alone=False), (torch.randn(6, 5), torch.randn(6, 4))
    true = find_symmetries(model, batch).groups
    assert {(group.kind, group.name, group.preserves) for group in true} == {
        ("permutation", "read", "output"),
        ("translation", "out.bias.translation", "loss"),
        ("translation", "out.weight.translation", "loss"),
    }
    step = CountedStep(model, batch)
    assert verify(step, true).groups == list(true)
    # As it is on both; by both translations, by each, and by the permutation on the first; by all on the second.
    assert step.runs == 2 + 1 + 2 + 1 + 1
    zeros = (batch[0], torch.zeros(6, 4))
    (false,) = (group for group in find_symmetries(Recurrent(at_zero_alone=True), zeros) if group.kind == "rotation")
    verified = verify(Step(model, zeros), [false, *true])
    assert (verified.groups, verified.rejected) == (list(true), [false])


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda inputs: inputs.sum() * 0, "what the step returns is the same on another one"),
        (lambda inputs: torch.nan if inputs.ne(1).any() else 1.0, "what the step returns is not finite on another one"),
    ],
)
def test_the_reason_for_one_batch_is_told(step, reason):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs):
            return self.layer(torch.ones(3)) * (1 + step(inputs))

    symmetries = find_symmetries(Scaled(), torch.ones(4, 3))
    assert symmetries.one_batch == reason


class Padded(nn.Module):
    """Norms what it reads with zeros beside it, as windows have that reach over the edge of an image."""

    def __init__(self):
        super().__init__()
        self.read, self.norm, self.out = nn.Linear(5, 7, bias=False), nn.LayerNorm(7), nn.Linear(7, 3)

    def forward(self, inputs):
        return self.out(F.gelu(self.norm(F.pad(self.read(inputs), (0, 0, 1, 2)))))


def test_scales_are_verified_where_a_norm_divides_zeros_by_its_small_constant():
    torch.manual_seed(0)
    symmetries = find_symmetries(Padded(), torch.randn(6, 5))
    scales = [(group.name, group.verified, group.exact) for group in symmetries if group.kind == "scale"]
    assert scales == [("read.scale", True, False)]
    assert not symmetries.rejected


class Logarithms(nn.Module):
    """The logarithms of numbers, of which half are negative; of their mean it is told where asked."""

    def __init__(self, mean):
        super().__init__()
        self.read, self.out, self.mean = nn.Linear(5, 7), nn.Linear(7, 3), mean

    def forward(self, inputs):
        logarithms = self.out(F.gelu(self.read(inputs))).log()
        return logarithms.mean() if self.mean else logarithms


def test_what_is_no_number_is_to_stay_so_and_hides_no_change_of_the_numbers():
    torch.manual_seed(0)
    model, batch = Logarithms(mean=False), torch.randn(6, 5)
    symmetries = find_symmetries(model, batch)
    assert [(group.kind, group.name) for group in symmetries] == [("permutation", "read")]
    false = replace(symmetries.groups[0], actions=symmetries.groups[0].actions[:2], name="false")
    assert verify(Step(model, batch), [*symmetries, false]).rejected == [false]


@pytest.mark.parametrize(
    ("moved", "reference", "change"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 3.0], [1.0, -2.0], 2.5),
        ([1e-3], [0.0], 1e-3),
        ([], [], 0.0),
        ([1.0], [1.0, 2.0], inf),
        ([1.0, inf], [1.0, inf], 0.0),
        ([1.0, inf], [1.0, -inf], inf),
        ([1.0, inf], [1.0, 2.0], inf),
        ([-inf], [-inf], 0.0),
        ([3.0, nan], [2.0, nan], 0.5),
        ([3.0, nan], [2.0, 1.0], inf),
        ([nan], [nan], inf),
        ([3.0 + 4.0j, 0.0j], [0.0j, 10.0j], 1.0),
    ],
)
def test_a_change_is_of_the_largest_entry_and_none_where_nothing_is_a_number(moved, reference, change):
    assert relative_change([torch.tensor(moved)], [torch.tensor(reference)]) == pytest.approx(change)


def test_a_step_that_gives_no_number_at_all_is_not_rerun_for_each_group():
    torch.manual_seed(0)
    batch = torch.randn(6, 5)
    (group,) = find_symmetries(Logarithms(mean=False), batch).groups
    groups, step = [replace(group, name=str(number)) for number in range(20)], CountedStep(Logarithms(True), batch)
    assert verify(step, groups).rejected == groups
    assert step.runs <= 3


def test_culprits_of_one_kind_are_found_together_wherever_they_stand():
    torch.manual_seed(0)
    model, batch = nn.Sequential(*(nn.Tanh() if k % 2 else nn.Linear(4, 4) for k in range(33))), torch.randn(6, 4)
    true = [group for group in find_symmetries(model, batch) if group.kind in ("permutation", "sign")]
    assert len(true) == 32
    false = [replace(group, kind="rescaling", name=f"{group.name}.false") for group in true if group.kind == "sign"]
    mixed = [group for three in zip(true[::2], false, true[1::2], strict=True) for group in three]
    step = CountedStep(model, batch)
    assert verify(step, mixed).rejected == false
    assert step.runs < 100  # 83; 161 where they are tried in the order given


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made and alive."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(n_bytes for _, n_bytes in self.alive.values()))
        return result


def test_less_than_four_copies_of_the_parameters_are_held_at_once():
    config = transformers.GPT2Config(
        vocab_size=500, n_positions=16, n_embd=96, n_layer=3, n_head=4, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(0, 500, (2, 7), generator=torch.Generator().manual_seed(0))
    with Live() as live:
        symmetries = find_symmetries(model, {"input_ids": tokens, "labels": tokens})
    assert all(group.verified for group in symmetries)
    copy = sum(4 * parameter.numel() for parameter in model.parameters())
    assert 2 * copy < live.peak < 4 * copy


class Grouped(nn.Module):
    """Rows in stretches, each with a map of its own, as tokens sorted by their experts."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.experts = nn.Parameter(torch.randn(3, 16, 8))

    def forward(self, rows):
        ends = torch.tensor([2, 2, 7], dtype=torch.int32)
        return torch.ops.aten._grouped_mm(F.relu(self.first(rows)), self.experts, ends)


def test_products_by_expert_are_verified_in_float64_though_their_kernel_refuses_it():
    torch.manual_seed(0)
    model, rows = Grouped(), torch.randn(9, 8)
    symmetries = find_symmetries(model, rows)
    assert [(group.kind, group.parameters[0]) for group in symmetries] == [
        ("permutation", "experts"),
        ("rescaling", "experts"),
    ]
    with InFloat64():
        lifted = model(rows)
    torch.testing.assert_close(lifted[:7], model(rows)[:7].double(), rtol=1e-4, atol=1e-4)
