"""Each axis rule is put to its operation: permute a letter in the inputs, run, compare.

The rules are read twice: as they are written, by a plain reading of the language below, and by the package's `Binding`.
"""

import math
import random
from collections import Counter
from itertools import combinations

import pytest
import torch

from lightning_symmetry.symmetry.axes import Atom, Concatenation, Place, atoms, fresh, size
from lightning_symmetry.symmetry.axis_rules import Binding, registered
from lightning_symmetry.symmetry.axis_rules.language import ELLIPSIS, TOLD_APART, Term
from tests.reference.positions import SEGMENT, positions
from tests.symmetry.sample_calls import SAMPLES

of_each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def as_written(sample):
    """The axes of the inputs, the outputs and the tensors within, each letter an atom: the language read literally."""
    rule, given = sample.rule
    patterns = [*rule.inputs, *rule.outputs]
    tensors = [*sample.inputs, *sample.result[0]]
    spread = [list(zip(numbered(*pair), pair[1].shape, strict=True)) for pair in zip(patterns, tensors, strict=True)]
    sizes = dict(given)
    for terms in spread:
        for term, length in terms:
            if len(term.letters) == 1 and term != TOLD_APART and length > 1:
                assert sizes.setdefault(term.letters[0], length) == length
    for terms in spread:
        for term, length in terms:
            unknown = [letter for letter in term.letters if letter not in sizes]
            if len(unknown) == 1 and term != TOLD_APART:
                known = [sizes[letter] for letter in term.letters if letter in sizes]
                sizes[unknown[0]] = length - sum(known) if term.laid_end_to_end else length // math.prod(known)
    letters = {letter: fresh(length) for letter, length in sizes.items()}

    def axis(term, length):
        if length == 1:
            return ()
        if term == TOLD_APART:
            return fresh(length, "positions told apart")
        parts = [letters.get(letter, ()) for letter in term.letters]
        return (Concatenation(parts),) if term.laid_end_to_end else sum(parts, ())

    axes = [[axis(*pair) for pair in terms] if all(n for _, n in terms) else None for terms in spread]
    within = [[axis(term, None) for term in pattern] for pattern in rule.within]
    n_inputs = len(sample.inputs)
    return axes[:n_inputs], axes[n_inputs:], within


def numbered(pattern, tensor):
    """The pattern with its '...' replaced by letters for the dimensions, numbered from the right."""
    n_broadcast = tensor.dim() - len([term for term in pattern if term != ELLIPSIS])
    spread = []
    for term in pattern:
        spread += [Term((f"...{k}",)) for k in range(n_broadcast, 0, -1)] if term == ELLIPSIS else [term]
    return spread


def as_bound(sample):
    """The axes of the inputs and the outputs by the package's own reading."""
    rule, sizes = sample.rule
    binding = Binding(sizes)
    inputs = [[fresh(length) for length in tensor.shape] for tensor in sample.inputs]
    for pattern, axes in zip(rule.inputs, inputs, strict=True):
        binding.read(pattern, axes)
    outputs = [
        binding.write(pattern, output.shape) if output.numel() else None
        for pattern, output in zip(rule.outputs, sample.result[0], strict=True)
    ]
    return inputs, outputs, [binding.write(pattern, [1] * len(pattern)) for pattern in rule.within]


def labels(axes):
    """The positions of all entries of a tensor; None stands for one without entries."""
    return [()] if axes is None else positions(sum(axes, ()))


def holders(atom, labelled):
    return {number for number, tensor in enumerate(labelled) if any((atom, 0) in label for label in tensor)}


def permutations_of(atom, n_rows, seed):
    """For each row a permutation, none like the one before; the first moves something."""
    rng = random.Random(seed)
    drawn = [list(range(atom.size))]
    while len(drawn) <= n_rows:
        permutation = rng.sample(range(atom.size), atom.size)
        if permutation != drawn[-1]:
            drawn.append(permutation)
    return drawn[1:]


def moved(tensor, labelled, atom, permutations, row=None):
    """A tensor with the positions of an atom permuted, by a permutation for each position of the row."""
    if tensor.numel() == 0:
        return tensor
    place = {label: number for number, label in enumerate(labelled)}
    index = []
    for label in labelled:
        permutation = permutations[dict(label).get(row, 0)]
        index.append(place[tuple((what, permutation[n] if what is atom else n) for what, n in label)])
    return tensor.flatten()[index].view(tensor.shape)


def same(left, right):
    return left.shape == right.shape and torch.allclose(left, right, rtol=1e-12, atol=1e-12, equal_nan=True)


def keeps(sample, labelled, atom, row=None, among=None, seed=0):
    """Whether the operation agrees: it takes inputs permuted along an atom to outputs permuted along it.

    Only the tensors among those named are permuted, all where none are.
    """
    permutations = permutations_of(atom, 1 if row is None else row.size, seed)
    n_inputs = len(sample.inputs)
    outputs, after = sample.result

    def move(number, tensor):
        if among is not None and number not in among:
            return tensor
        return moved(tensor, labelled[number], atom, permutations, row)

    got_outputs, got_after = sample.run([move(k, tensor) for k, tensor in enumerate(sample.inputs)])
    expected = [move(n_inputs + k, tensor) for k, tensor in enumerate(outputs)]
    expected_after = [move(k, tensor) for k, tensor in enumerate(after)]
    return all(map(same, [*got_outputs, *got_after], [*expected, *expected_after]))


def free_atoms(labelled):
    found = dict.fromkeys(what for tensor in labelled for label in tensor for what, _ in label if what != SEGMENT)
    return [atom for atom in found if not atom.pinned]


def test_every_operation_with_a_rule_has_a_sample():
    assert registered() == {sample.operation for sample in SAMPLES}


@of_each_sample
@pytest.mark.parametrize("reading", [as_written, as_bound])
def test_permuting_a_letter_in_the_inputs_permutes_it_in_the_outputs(sample, reading):
    inputs, outputs, _ = reading(sample)
    labelled = [labels(axes) for axes in [*inputs, *outputs]]
    for atom in free_atoms(labelled):
        assert keeps(sample, labelled, atom)


@of_each_sample
def test_rows_that_are_in_every_tensor_may_be_permuted_each_by_itself(sample):
    inputs, outputs, within = as_written(sample)
    labelled = [labels(axes) for axes in [*inputs, *outputs]]
    everywhere = [label for tensor in [*labelled, *map(labels, within)] for label in map(dict, tensor)]
    for atom in free_atoms(labelled):
        beside = set.intersection(*(set(label) for label in everywhere if atom in label)) - {atom, SEGMENT}
        for row in beside:
            assert keeps(sample, labelled, atom, row)


@of_each_sample
def test_binding_reads_a_rule_as_it_is_written(sample):
    inputs, outputs, within = as_written(sample)
    letters = free_atoms([labels(axes) for axes in [*inputs, *outputs]])
    bound_inputs, bound_outputs, bound_within = as_bound(sample)
    for axes, tensor in zip([*bound_inputs, *bound_outputs], [*sample.inputs, *sample.result[0]], strict=True):
        assert axes is None or [size(axis) for axis in axes] == list(tensor.shape)
    met = dict.fromkeys(atom for axes in [*bound_inputs, *bound_outputs] for axis in axes or () for atom in atoms(axis))
    assert Counter(atom.size for atom in met if not atom.pinned) == Counter(atom.size for atom in letters)
    assert [[size(axis) for axis in axes] for axes in bound_within] == [
        [size(axis) for axis in axes] for axes in within
    ]


@of_each_sample
def test_no_letter_ties_what_could_be_permuted_apart(sample):
    inputs, outputs, _ = as_written(sample)
    labelled = [labels(axes) for axes in [*inputs, *outputs]]
    for atom in free_atoms(labelled):
        tied = holders(atom, labelled)
        if min(tied) >= len(inputs):
            continue  # new in the outputs, all the same
        for count in range(1, len(tied)):
            for among in combinations(tied, count):
                assert not all(keeps(sample, labelled, atom, among=among, seed=seed) for seed in range(3)), among


@of_each_sample
def test_what_a_rule_tells_apart_is_told_apart(sample):
    inputs, outputs, _ = as_written(sample)
    tensors = [*inputs, *outputs]
    places = {
        (number, dim): axis[0].size
        for number, axes in enumerate(tensors)
        for dim, axis in enumerate(axes or ())
        if len(axis) == 1 and isinstance(axis[0], Place) and axis[0].atom.pinned
    }
    for length in set(places.values()):
        told_apart = [place for place, found in places.items() if found == length]
        for count in range(1, len(told_apart) + 1):
            for among in combinations(told_apart, count):
                if min(among)[0] >= len(inputs):
                    continue
                atom = Atom(length)
                labelled = [
                    labels(
                        axes and [(Place(atom),) if (number, dim) in among else axis for dim, axis in enumerate(axes)]
                    )
                    for number, axes in enumerate(tensors)
                ]
                assert not all(keeps(sample, labelled, atom, seed=seed) for seed in range(3)), among
