"""The language of axis rules, and their register."""

import pytest
import torch

from lightning_symmetry.labelling.axes import fresh
from lightning_symmetry.labelling.axis_rules import Binding, Rule, axis_rule, axis_table, parse, registered, rule_of
from lightning_symmetry.labelling.axis_rules.language import ELLIPSIS, TOLD_APART, Term

aten = torch.ops.aten
MATRICES = (torch.zeros(2, 3), torch.zeros(3, 5))


def test_a_rule_is_read_term_by_term():
    letters = {letter: Term((letter,)) for letter in "nmki"}
    assert parse("m k, k n -> m n") == Rule(
        "m k, k n -> m n",
        inputs=((letters["m"], letters["k"]), (letters["k"], letters["n"])),
        outputs=((letters["m"], letters["n"]),),
        input_indices=("", ""),
        output_indices=("",),
    )
    assert parse("n (g i) _ 1 ...").inputs == ((letters["n"], Term(("g", "i")), TOLD_APART, Term(()), ELLIPSIS),)
    assert parse("(a1 + b + c)").inputs == ((Term(("a1", "b", "c"), laid_end_to_end=True),),)
    assert parse("n k -> n k; n").within == ((letters["n"],),)
    rule = parse("k m, n @ k -> n m @ m, ")
    assert rule.inputs == ((letters["k"], letters["m"]), (letters["n"],))
    assert (rule.input_indices, rule.output_indices) == (("", "k"), ("m", ""))


@pytest.mark.parametrize(
    ("text", "inputs", "outputs"),
    [("k, k ->", 2, 1), (" -> ", 1, 1), ("k, -> ,", 2, 2), ("... -> ", 1, 1)],
)
def test_a_number_is_a_pattern_without_terms(text, inputs, outputs):
    rule = parse(text)
    assert (len(rule.inputs), len(rule.outputs)) == (inputs, outputs)
    assert rule.for_call(inputs, outputs) is rule


@pytest.mark.parametrize(
    "text",
    [
        "m-k -> m",
        "m k => m",
        "m k -> m -> k",
        "(g i -> g",
        "g i) -> g",
        "(g (i j)) -> g",
        "() -> ",
        "(g) -> g",
        "(a + b c) -> a",
        "(a ...) -> a",
        "(_ + a) -> a",
        "(1 a) -> a",
        "2 a -> a",
        "_a -> a",
        "... a ... -> a",
        "a @ -> a",
        "a @ a b -> a",
        "a @ (a b) -> a",
        "a @ _ -> a",
    ],
)
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(ValueError, match="axis rule part"):
        parse(text)


def test_a_pointwise_rule_is_repeated_for_every_tensor():
    rule = parse("...").for_call(3, 2)
    assert (rule.inputs, rule.outputs) == (((ELLIPSIS,),) * 3, ((ELLIPSIS,),) * 2)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 1), (2, 0), (2, 2)])
def test_another_number_of_tensors_is_refused(inputs, outputs):
    with pytest.raises(ValueError, match=f"has 2 inputs and 1 outputs, but the operation has {inputs} and {outputs}"):
        parse("m k, k n -> m n").for_call(inputs, outputs)


@pytest.mark.parametrize(("pattern", "shape"), [("a b", (3,)), ("a", (3, 5)), ("a ... b", (3,)), ("", (3,))])
def test_another_number_of_dimensions_is_refused(pattern, shape):
    with pytest.raises(ValueError, match=f"met a tensor of {len(shape)}"):
        Binding({}).read(parse(f"{pattern} -> ").inputs[0], [fresh(length) for length in shape])


def test_a_second_rule_for_an_operation_is_refused():
    before = rule_of(aten.mm.default, MATRICES, {})
    with pytest.raises(ValueError, match=r"aten\.mm\.default has two axis rules"):
        axis_table({aten.mm.default: "a b, b c -> a c"})
    with pytest.raises(ValueError, match=r"aten\.mm\.default has two axis rules"):
        axis_rule(aten.mm.default)(lambda left, right: "a b, b c -> a c")
    assert rule_of(aten.mm.default, MATRICES, {}) == before


def test_a_table_is_parsed_when_it_is_registered():
    with pytest.raises(ValueError, match="axis rule part"):
        axis_table({aten.roll.default: "a-b"})
    assert aten.roll.default not in registered()


def test_an_operation_without_a_rule_has_none():
    assert rule_of(aten.roll.default, (torch.zeros(3), [1]), {}) is None
