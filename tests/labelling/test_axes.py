"""The algebra of axes: what splitting, cutting and unifying do to the positions of an axis."""

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_symmetry.labelling.axes import (
    Atom,
    Concatenation,
    Place,
    atoms,
    cut,
    fresh,
    narrow,
    pin,
    resolve,
    size,
    split,
    unify,
)
from lightning_symmetry.labelling.labelling import Labelling
from lightning_symmetry.tracing.step import Step
from lightning_symmetry.tracing.tracing import trace
from tests.reference.positions import SEGMENT, positions

torch.set_num_threads(1)


def atom(length):
    return (Place(Atom(length)),)


def laid_end_to_end(*segments):
    return (Concatenation(list(segments)),)


def shape(axis):
    """The sizes of an axis's factors, a list of such for a concatenation."""
    return [
        [shape(segment) for segment in factor.segments] if isinstance(factor, Concatenation) else factor.size
        for factor in resolve(axis)
    ]


def digits(axis):
    """What tells each position of an axis from the others."""
    return [tuple(digit for digit in position if digit[0] != SEGMENT) for position in positions(axis)]


def is_pinned(axis):
    return all(found.pinned for found in atoms(axis))


# ------------------------------------------------------------------------------------------------ single operations


def test_one_position_is_the_empty_product():
    assert fresh(1) == ()
    assert size(()) == 1
    assert shape((Place(Atom(1)), Place(Atom(3)), Place(Atom(1)))) == [3]


def test_split_of_an_atom_binds_it_to_a_product():
    axis = atom(12)
    outer, inner = split(axis, 3)
    assert resolve(axis) == outer + inner
    assert shape(axis) == [3, 4]


@pytest.mark.parametrize("outer_size", [1, 12])
def test_split_off_one_position_changes_nothing(outer_size):
    axis = atom(12)
    assert split(axis, outer_size) == ((), axis) if outer_size == 1 else (axis, ())
    assert shape(axis) == [12]


def test_split_between_and_within_factors():
    heads, dims = Place(Atom(3)), Place(Atom(8))
    assert split((heads, dims), 3) == ((heads,), (dims,))
    outer, inner = split((heads, dims), 6)
    assert (shape(outer), shape(inner)) == ([3, 2], [4])
    assert shape((dims,)) == [2, 4]


def test_split_that_does_not_align_pins():
    axis = (Place(Atom(6)), Place(Atom(2)))
    outer, inner = split(axis, 4)
    assert (size(outer), size(inner)) == (4, 3)
    assert is_pinned(axis) and is_pinned(outer) and is_pinned(inner)


def test_split_of_a_concatenation_splits_every_segment_by_one_inner_axis():
    left, right = atom(4), atom(6)
    outer, inner = split(laid_end_to_end(left, right), 5)
    assert (shape(outer), shape(inner)) == ([[[2], [3]]], [2])
    assert resolve(left)[1:] == resolve(right)[1:] == resolve(inner)


def test_split_of_a_concatenation_whose_segments_do_not_align_pins():
    left, right = atom(3), atom(5)
    outer, inner = split(laid_end_to_end(left, right), 4)
    assert (size(outer), size(inner)) == (4, 2)
    assert all(map(is_pinned, (left, right, outer, inner)))


def test_cut_of_an_atom_binds_it_to_a_concatenation():
    axis = atom(12)
    left, right = cut(axis, 5)
    assert shape(axis) == [[[5], [7]]]
    assert digits(left) + digits(right) == digits(axis)


def test_cut_of_a_product_cuts_its_slowest_factor():
    rows, columns = atom(5), atom(3)
    left, right = cut(rows + columns, 6)
    assert (shape(left), shape(right)) == ([2, 3], [3, 3])
    assert resolve(left)[1:] == resolve(right)[1:] == columns
    assert shape(rows) == [[[2], [3]]]


def test_cut_within_a_row_pins():
    axis = (Place(Atom(5)), Place(Atom(3)))
    left, right = cut(axis, 7)
    assert (size(left), size(right)) == (7, 8)
    assert is_pinned(axis) and is_pinned(left) and is_pinned(right)


def test_cut_at_and_within_the_segments_of_a_concatenation():
    first, second = atom(3), atom(5)
    assert cut(laid_end_to_end(first, second), 3) == (first, second)
    left, right = cut(laid_end_to_end(first, second), 5)
    assert (shape(left), shape(right)) == ([[[3], [2]]], [3])
    assert shape(first) == [3]


@pytest.mark.parametrize("position", [0, 12])
def test_cut_at_an_end_leaves_the_axis_whole(position):
    axis = atom(12)
    parts = cut(axis, position)
    assert shape(axis) == [12]
    assert sorted(map(size, parts)) == [0, 12]


def test_narrow_leaves_three_parts():
    axis = atom(12)
    middle = narrow(axis, 3, 8)
    assert shape(axis) == [[[3], [5], [4]]]
    assert digits(middle) == digits(axis)[3:8]
    assert narrow(axis, 0, 12) == axis


def test_a_pin_reaches_every_atom_and_keeps_its_first_reason():
    inner, outer = atom(3), atom(5)
    axis = laid_end_to_end(inner, outer)
    pin(inner, "first")
    pin(axis, "second")
    assert [found.pinned for found in atoms(axis)] == ["first", "second"]


@pytest.mark.parametrize("divide", [lambda axis: split(axis, 3), lambda axis: cut(axis, 5)])
def test_what_comes_of_a_pinned_atom_is_pinned(divide):
    assert all(map(is_pinned, divide(fresh(12, "mask"))))


@pytest.mark.parametrize("outer_size", [0, 1, 2])
def test_an_axis_without_positions_may_be_split(outer_size):
    outer, inner = split((Place(Atom(2)), Place(Atom(0)), Place(Atom(7))), outer_size)
    assert (shape(outer), shape(inner)) == {0: ([2, 0], [7]), 1: ([], [2, 0, 7]), 2: ([2], [0, 7])}[outer_size]
    assert split(atom(0), 5)[0][0].size == 5


# ------------------------------------------------------------------------------------------------------ unification


def test_two_atoms_become_one():
    left, right = atom(5), atom(5)
    unify(left, right)
    assert resolve(left) == resolve(right)


def test_an_axis_is_one_with_itself():
    axis = (Place(Atom(3)), *laid_end_to_end(atom(2), atom(5)))
    unify(axis, axis)
    assert shape(axis) == [3, [[2], [5]]]
    assert not any(found.pinned for found in atoms(axis))


@pytest.mark.parametrize("left_is_pinned", [True, False])
def test_a_pinned_atom_pins_what_it_is_unified_with(left_is_pinned):
    pinned, free = fresh(12, "mask"), (Place(Atom(3)), Place(Atom(4)))
    unify(*((pinned, free) if left_is_pinned else (free, pinned)))
    assert [found.pinned for found in atoms(free)] == ["mask", "mask"]


def test_an_atom_splits_to_meet_a_product():
    left, right = atom(12), (Place(Atom(3)), Place(Atom(4)))
    unify(left, right)
    assert resolve(left) == resolve(right)
    assert shape(left) == [3, 4]


def test_two_products_refine_each_other():
    left, right = (Place(Atom(2)), Place(Atom(12))), (Place(Atom(6)), Place(Atom(4)))
    unify(left, right)
    assert resolve(left) == resolve(right)
    assert shape(left) == [2, 3, 4]


def test_products_that_do_not_align_are_pinned():
    left, right = (Place(Atom(2)), Place(Atom(3))), (Place(Atom(3)), Place(Atom(2)))
    unify(left, right)
    assert is_pinned(left) and is_pinned(right)


def test_an_axis_that_reads_one_way_and_the_other_is_one():
    rows, columns = Place(Atom(3)), Place(Atom(3))
    unify((rows, columns), (columns, rows))
    assert resolve((rows,)) == resolve((columns,))


def test_an_atom_becomes_a_concatenation():
    left, right = atom(8), laid_end_to_end(atom(3), atom(5))
    unify(left, right)
    assert shape(left) == [[[3], [5]]]
    assert digits(left) == digits(right)


def test_two_concatenations_refine_each_others_boundaries():
    left, right = laid_end_to_end(atom(3), atom(5)), laid_end_to_end(atom(6), atom(2))
    unify(left, right)
    assert shape(left) == shape(right) == [[[3], [3], [2]]]
    assert digits(left) == digits(right)


def test_a_concatenation_splits_to_meet_a_product():
    left, right = laid_end_to_end(atom(4), atom(6)), (Place(Atom(5)), Place(Atom(2)))
    unify(left, right)
    assert digits(left) == digits(right)
    assert shape(right) == [[[2], [3]], 2]


def test_a_concatenation_that_is_shifted_against_itself_has_no_free_position():
    first, second = atom(2), atom(3)
    unify(laid_end_to_end(first, second), laid_end_to_end(second, first))
    assert list(atoms(first)) == list(atoms(second)) == []


def test_axes_of_unequal_size_are_refused():
    with pytest.raises(ValueError, match="12 positions cannot be one of 15"):
        unify(atom(12), (Place(Atom(3)), Place(Atom(5))))


# ---------------------------------------------------------------------------------------------- any axes whatsoever


@st.composite
def factorizations(draw, length):
    """An axis of so many positions: an atom, or a product or a concatenation of such axes."""
    if length == 1:
        return ()
    kind = draw(st.sampled_from(["atom", "product", "concatenation"]))
    if kind == "product":
        outer = draw(st.sampled_from([divisor for divisor in range(2, length + 1) if length % divisor == 0]))
        return draw(factorizations(outer)) + draw(factorizations(length // outer)) if outer < length else atom(length)
    if kind == "concatenation":
        boundary = draw(st.integers(1, length - 1))
        return laid_end_to_end(draw(factorizations(boundary)), draw(factorizations(length - boundary)))
    return (Place(Atom(length, draw(st.sampled_from([None, None, None, "pinned"])))),)


@st.composite
def products(draw, length):
    """An axis that is a product of atoms."""
    factors = []
    while length > 1:
        factors.append(draw(st.sampled_from([divisor for divisor in range(2, length + 1) if length % divisor == 0])))
        length //= factors[-1]
    return tuple(Place(Atom(length)) for length in factors)


LENGTHS = st.sampled_from([2, 6, 12, 16, 24])


def free(axis):
    return [digit for position in digits(axis) for digit in position if not digit[0].pinned]


@given(st.data())
def test_unify_makes_products_one_where_they_align_and_pins_the_rest(data):
    length = data.draw(LENGTHS)
    left, right = data.draw(products(length)), data.draw(products(length))
    boundaries = [set(accumulate((factor.size for factor in axis), int.__mul__)) for axis in (left, right)]
    ordered = sorted(boundaries[0] | boundaries[1])
    unify(left, right)
    if all(after % before == 0 for before, after in pairwise(ordered)):
        assert resolve(left) == resolve(right)
        assert not any(found.pinned for found in atoms(left))
        assert list(accumulate(shape(left), int.__mul__)) == ordered
    else:
        assert any(found.pinned for found in atoms(left))


@given(st.data())
def test_unify_leaves_two_axes_with_the_same_free_digits_at_each_position(data):
    length = data.draw(LENGTHS)
    left, right = data.draw(factorizations(length)), data.draw(factorizations(length))
    unify(left, right)
    assert size(left) == size(right) == len(positions(left)) == len(positions(right)) == length
    for here, there in zip(digits(left), digits(right), strict=True):
        assert [digit for digit in here if not digit[0].pinned] == [digit for digit in there if not digit[0].pinned]
    before = free(left)
    unify(left, right)
    assert free(left) == free(right) == before


@given(st.data())
def test_what_is_unified_with_a_pinned_axis_is_pinned(data):
    length = data.draw(LENGTHS)
    left, right = data.draw(factorizations(length)), data.draw(factorizations(length))
    pin(left, "mask")
    unify(left, right)
    assert is_pinned(left) and is_pinned(right)


@given(st.data())
def test_split_is_a_product_or_pinned(data):
    length = data.draw(LENGTHS)
    axis = data.draw(factorizations(length))
    outer_size = data.draw(st.sampled_from([divisor for divisor in range(1, length + 1) if length % divisor == 0]))
    outer, inner = split(axis, outer_size)
    assert (size(axis), size(outer), size(inner)) == (length, outer_size, length // outer_size)
    assert free(axis) == free(outer + inner)


@given(st.data())
def test_cut_is_a_concatenation_or_pinned(data):
    length = data.draw(LENGTHS)
    axis = data.draw(factorizations(length))
    position = data.draw(st.integers(0, length))
    left, right = cut(axis, position)
    assert (size(axis), size(left), size(right)) == (length, position, length - position)
    assert free(axis) == free(left) + free(right)


@given(st.data())
def test_narrow_is_a_stretch_of_the_positions_or_pinned(data):
    length = data.draw(LENGTHS)
    axis = data.draw(factorizations(length))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, length), st.integers(0, length))))
    part = narrow(axis, start, stop)
    assert (size(axis), size(part)) == (length, stop - start)
    if is_pinned(part):
        return
    assert free(part) == [digit for position in digits(axis)[start:stop] for digit in position if not digit[0].pinned]


# ------------------------------------------------------------------------------------- the axes of a model's tensors


class ThreeInOne(nn.Module):
    """Three maps fused into one, taken apart in some way, each with a map of its own after it."""

    def __init__(self, take_apart):
        super().__init__()
        self.fused = nn.Linear(5, 21)
        self.after = nn.ModuleList(nn.Linear(7, 4) for _ in range(3))
        self.take_apart = take_apart

    def forward(self, batch):
        parts = self.take_apart(self.fused(batch))
        return sum(layer(part.tanh()) for layer, part in zip(self.after, parts, strict=True))


TAKEN_APART = {
    "view and select": lambda fused: [fused.view(2, 6, 3, 7)[:, :, k] for k in range(3)],
    "view, permute and unbind": lambda fused: fused.view(2, 6, 3, 7).permute(2, 0, 1, 3).unbind(0),
    "unflatten and unbind": lambda fused: fused.unflatten(-1, (3, 7)).unbind(2),
    "chunk": lambda fused: fused.chunk(3, -1),
    "split": lambda fused: fused.split([7, 7, 7], -1),
    "slices": lambda fused: [fused[..., k : k + 7] for k in (0, 7, 14)],
}


def leaves_of(model, batch):
    tape = trace(Step(model, batch))
    labelling = Labelling(tape)
    return {name: [resolve(axis) for axis in labelling.leaf(value)] for name, value in tape.leaves.items()}


@pytest.mark.parametrize("take_apart", TAKEN_APART.values(), ids=TAKEN_APART)
def test_the_parts_of_a_fused_map_are_three_axes(take_apart):
    leaves = leaves_of(ThreeInOne(take_apart), torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)))
    rows = leaves["fused.weight"][0]
    parts = [leaves[f"after.{k}.weight"][1] for k in range(3)]
    assert shape(rows) == [[[7], [7], [7]]]
    assert digits(rows) == digits(leaves["fused.bias"][0]) == [digit for part in parts for digit in digits(part)]
    assert len({found for part in parts for found in atoms(part)}) == 3
    assert not any(found.pinned for found in atoms(rows))


def test_a_view_of_a_tensor_without_entries_has_axes():
    class Expert(nn.Module):
        """An expert that no token is sent to, and the sum of what it returns."""

        def __init__(self):
            super().__init__()
            self.expand, self.contract = nn.Linear(5, 7), nn.Linear(7, 5)

        def forward(self, batch):
            tokens = batch[batch.isnan().any(1)]
            return batch + self.contract(self.expand(tokens).view(-1, 1, 7).relu()).sum()

    leaves = leaves_of(Expert(), torch.zeros(3, 5))
    assert {name: list(map(shape, axes)) for name, axes in leaves.items()} == {
        "expand.weight": [[7], [5]],
        "expand.bias": [[7]],
        "contract.weight": [[5], [7]],
        "contract.bias": [[5]],
    }


def test_axes_that_became_one_in_a_loop_of_any_length_are_one():
    axes = [fresh(5) for _ in range(3000)]
    for first, second in pairwise(axes):
        unify(first, second)
    assert len({atom for axis in axes for atom in atoms(axis)}) == 1
