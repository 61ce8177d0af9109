"""An operation without a rule is asked by experiment which of its dimensions are one axis."""

from functools import cached_property

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_symmetry import find_symmetries
from lightning_symmetry.labelling.axes import Place, resolve
from lightning_symmetry.labelling.axis_rules import parse
from lightning_symmetry.labelling.experiment import rule_by_experiment
from lightning_symmetry.tracing.tape import Operation, Value
from tests.labelling.sample_calls import SAMPLES, Sample, real
from tests.labelling.test_axis_rules import as_bound, as_written, free_atoms, keeps, labelled, positions

aten = torch.ops.aten


def asked(operation, *args, **kwargs):
    """The rule of a call, in which every tensor of real numbers depends on parameters."""

    def value(leaf):
        if not isinstance(leaf, Tensor):
            return leaf
        return Value(tuple(leaf.shape), leaf.dtype, constant=None if leaf.is_floating_point() else leaf)

    call = Operation(operation, *tree_map(value, (args, kwargs)))
    outputs = tree_leaves(Sample(operation, args, kwargs).result[0])
    call.outputs = [Value(tuple(output.shape), output.dtype) for output in outputs]
    return rule_by_experiment(call)


class Asked(Sample):
    """A sample call, with the rule that the experiment answers."""

    @cached_property
    def rule(self):
        text = asked(self.operation, *self.args, **self.kwargs)
        return text and (parse(text).for_call(len(self.inputs), len(self.result[0])), {})


FIRST_OF_EACH = list({sample.operation: sample for sample in reversed(SAMPLES)}.values())
of_each_operation = pytest.mark.parametrize("sample", FIRST_OF_EACH, ids=str)


def axes_of(sample):
    """The dimensions (tensor, dimension) that are one axis, for every axis of inputs that nothing tells apart.

    Axes of two positions are left out: more may be done to them, as the order of two numbers tells which is larger.
    """
    inputs, outputs, _, _ = as_bound(sample)
    found = {}
    for number, axes in enumerate([*inputs, *outputs]):
        for dim, axis in enumerate(axes or ()):
            for factor in resolve(axis):
                if isinstance(factor, Place) and not factor.atom.pinned and factor.size > 2:
                    found.setdefault(factor.atom, set()).add((number, dim))
    return {frozenset(dims) for dims in found.values() if min(dims)[0] < len(inputs)}


@of_each_operation
def test_the_answer_never_contradicts_a_rule_written_by_hand(sample):
    answered = Asked(sample.operation, sample.args, sample.kwargs)
    if answered.rule is None:
        # write to statistics, leave memory as it was, or have tensors without entries; has no float64
        refused = ("batch_norm", "_ctc_loss", "_embedding_bag", "_grouped_mm")
        assert any(name in str(sample) for name in refused)
        return
    assert axes_of(answered) <= axes_of(sample)
    inputs, outputs, within, indexed = as_written(answered)
    tensors = labelled([*inputs, *outputs], indexed)
    everywhere = [tensor.places for tensor in tensors] + [positions(sum(axes, ())) for axes in within]
    for atom in free_atoms(tensors):
        assert keeps(answered, tensors, atom)
        holding = [{what for what, _ in label} for places in everywhere for label in places if (atom, 0) in label]
        for row in set.intersection(*holding) - {atom}:
            assert keeps(answered, tensors, atom, row)


@pytest.mark.parametrize(
    ("operation", "args", "rule"),
    [
        (aten.mm, (real(5, 7), real(7, 3)), "a0 a1, a1 a2 -> a0 a2"),
        (aten.mm, (real(4, 4), real(4, 4)), "a0 a2, a2 a1 -> a0 a1"),
        (aten.addmm, (real(3), real(3, 3), real(3, 3)), "a1, a0 a2, a2 a1 -> a0 a1"),
        (aten.mm, (real(300, 500), real(500, 200)), "a0 a1, a1 a2 -> a0 a2"),  # shrunk
        (aten.gelu, (real(3, 5, 2),), "a0 a1 a2 -> a0 a1 a2"),
        (aten._softmax, (real(3, 5), 1, False), "a0 a1 -> a0 a1; a0"),
        (aten._cdist_forward, (real(3, 5), real(7, 5), 2.0, None), "a0 a1, a2 a1 -> a0 a2"),
        (
            aten._scaled_dot_product_attention_math,
            (real(1, 3, 5, 4), real(1, 3, 7, 4), real(1, 3, 7, 2)),
            "1 a0 a1 a2, 1 a0 a3 a2, 1 a0 a3 a4 -> 1 a0 a1 a4, 1 a0 a1 a3",
        ),
        (aten.linalg_det, (real(3, 3),), "a0 a0 -> "),  # each alone turns its sign, both together keep it
        (aten.roll, (real(2, 5), [1], [1]), "a0 _ -> a0 _"),
        (aten.flip, (real(5, 2), [0]), "_ a0 -> _ a0"),
        (aten.cumsum, (real(5, 2), 0), "_ a0 -> _ a0"),
        (aten.hardshrink, (real(5), 1e9), "_ -> _"),  # all the same, whatever is given
        (aten.acosh, (real(5),), "a0 -> a0"),
        (aten.repeat, (real(3), [2]), "_ -> _"),  # products are beyond it
        (aten.glu, (real(3, 6),), "a0 _ -> a0 _"),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else str(value),
)
def test_the_fewest_dimensions_that_pass_together_are_one_axis(operation, args, rule):
    assert asked(operation.default, *args) == rule


@torch.library.custom_op("lightning_symmetry_tests::bias_gelu", mutates_args=())
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.gelu(x + bias)


@torch.library.custom_op("lightning_symmetry_tests::matmul", mutates_args=())
def matmul(x: Tensor, weight: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() @ weight.numpy())


@torch.library.custom_op("lightning_symmetry_tests::ramp", mutates_args=())
def ramp(x: Tensor) -> Tensor:
    return x * torch.arange(1, x.shape[-1] + 1)


@torch.library.custom_op("lightning_symmetry_tests::noisy", mutates_args=())
def noisy(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


@torch.library.custom_op("lightning_symmetry_tests::double_", mutates_args={"hidden"})
def double_(hidden: Tensor) -> None:
    hidden.mul_(2)


@torch.library.custom_op("lightning_symmetry_tests::pair", mutates_args=())
def pair(both: list[Tensor], factor: float) -> tuple[Tensor, Tensor]:
    return both[0] * both[1] * factor, both[0].softmax(-1)


class Net(nn.Module):
    """Two layers and a bias, with an operation between."""

    def __init__(self, operation):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.bias = nn.Parameter(torch.randn(8))
        self.mixing = nn.Parameter(torch.randn(8, 7))
        self.second = nn.Linear(8, 3)
        self.third = nn.Linear(7, 3)
        self.operation = operation

    def forward(self, x):
        return self.operation(self, self.first(x))


def found(operation):
    torch.manual_seed(0)
    return find_symmetries(Net(operation), torch.randn(6, 4))


def test_a_fused_activation_keeps_its_units():
    symmetries = found(lambda net, hidden: net.second(bias_gelu(hidden, net.bias)))
    (group,) = (group for group in symmetries if group.kind == "permutation")
    assert set(group.parameters) == {"first.weight", "first.bias", "bias", "second.weight"}
    assert not symmetries.without_rule
    assert not symmetries.rejected


def test_a_product_of_matrices_keeps_the_axis_it_sums_and_the_axis_it_returns():
    symmetries = found(lambda net, hidden: net.third(matmul(hidden, net.mixing)))
    moved = [set(group.parameters) for group in symmetries if group.kind == "permutation"]
    assert moved == [{"first.weight", "first.bias", "mixing"}, {"mixing", "third.weight"}]
    assert not symmetries.without_rule


def test_operations_on_lists_with_several_outputs_are_asked_too():
    symmetries = found(lambda net, hidden: net.second(sum(pair([hidden, net.bias.expand_as(hidden)], 0.5))))
    (group,) = (group for group in symmetries if group.kind == "permutation")
    assert set(group.parameters) == {"first.weight", "first.bias", "bias", "second.weight"}
    assert not symmetries.without_rule


@pytest.mark.parametrize(("operation", "left_out"), [("ramp", 2), ("noisy", 4)])
def test_what_tells_positions_apart_is_named_and_left_out(operation, left_out):
    symmetries = found(lambda net, hidden: net.second(getattr(torch.ops.lightning_symmetry_tests, operation)(hidden)))
    assert not any(group.kind == "permutation" for group in symmetries)
    assert symmetries.without_rule == {f"lightning_symmetry_tests.{operation}.default": left_out}
    assert not symmetries.rejected


def test_what_writes_to_its_arguments_is_named_and_left_out():
    def step(net, hidden):
        hidden = hidden.clone()
        torch.ops.lightning_symmetry_tests.double_(hidden)
        return net.second(hidden)

    symmetries = found(step)
    assert len(symmetries) == 0
    assert symmetries.without_rule == {"lightning_symmetry_tests.double_.default": 4}


def test_random_streams_are_not_disturbed():
    call = Operation(torch.ops.lightning_symmetry_tests.noisy.default, (Value((5,), torch.float32),), {})
    call.outputs = [Value((5,), torch.float32)]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert rule_by_experiment(call) is None
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_whole_numbers_that_depend_on_parameters_give_no_answer():
    call = Operation(aten.bincount.default, (Value((5,), torch.int64),), {})
    call.outputs = [Value((3,), torch.int64)]
    assert rule_by_experiment(call) is None


def test_what_writes_into_its_inputs_gives_no_answer():
    call = Operation(aten.relu_.default, (Value((5,), torch.float32),), {})
    call.outputs = [Value((5,), torch.float32)]
    assert rule_by_experiment(call) is None
