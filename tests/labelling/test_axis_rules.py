"""Each axis rule is put to its operation: permute a letter in the inputs, run, compare.

The rules are read twice: as they are written, by a plain reading of the language below, and by the package's `Binding`.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch

from lightning_symmetry.labelling.axes import Atom, Concatenation, Place, atoms, fresh, size
from lightning_symmetry.labelling.axis_rules import Binding, registered
from lightning_symmetry.labelling.axis_rules.language import ELLIPSIS, TOLD_APART, Term
from tests.labelling.sample_calls import SAMPLES
from tests.reference.positions import SEGMENT, positions

of_each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def as_written(sample):
    """The axes of the inputs, the outputs and the tensors within, each letter an atom: the language read literally.

    Last, for each input and output, the axis along which its entries are indices, or None.
    """
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
    indexed = [letters.get(letter) for letter in (*rule.input_indices, *rule.output_indices)]
    return axes[:n_inputs], axes[n_inputs:], within, indexed


def numbered(pattern, tensor):
    """The pattern with its '...' replaced by letters for the dimensions, numbered from the right."""
    n_broadcast = tensor.dim() - len([term for term in pattern if term != ELLIPSIS])
    spread = []
    for term in pattern:
        spread += [Term((f"...{k}",)) for k in range(n_broadcast, 0, -1)] if term == ELLIPSIS else [term]
    return spread


def as_bound(sample):
    """The same by the package's own reading."""
    rule, sizes = sample.rule
    binding = Binding(sizes)
    inputs = [[fresh(length) for length in tensor.shape] for tensor in sample.inputs]
    for pattern, axes in zip(rule.inputs, inputs, strict=True):
        binding.read(pattern, axes)
    for letter in filter(None, rule.input_indices):
        binding.point(letter, fresh(size(binding.axis(letter))))
    outputs = [
        binding.write(pattern, output.shape) if output.numel() else None
        for pattern, output in zip(rule.outputs, sample.result[0], strict=True)
    ]
    within = [binding.write(pattern, [1] * len(pattern)) for pattern in rule.within]
    indexed = [binding.axis(letter) if letter else None for letter in (*rule.input_indices, *rule.output_indices)]
    return inputs, outputs, within, indexed


@dataclass
class Labelled:
    """The position of each entry of a tensor, and the positions along the axis of which its entries are indices."""

    places: list
    indexed: list | None

    def holds(self, atom):
        return any((atom, 0) in label for label in [*self.places, *(self.indexed or [])])


def labelled(axes, indexed):
    return [
        Labelled(positions(sum(of_tensor, ())) if of_tensor is not None else [()], positions(along) if along else None)
        for of_tensor, along in zip(axes, indexed, strict=True)
    ]


def holders(atom, tensors):
    return {number for number, tensor in enumerate(tensors) if tensor.holds(atom)}


def permutations_of(atom, n_rows, seed):
    """For each row a permutation, none like the one before; the first moves something."""
    rng = random.Random(seed)
    drawn = [list(range(atom.size))]
    while len(drawn) <= n_rows:
        permutation = rng.sample(range(atom.size), atom.size)
        if permutation != drawn[-1]:
            drawn.append(permutation)
    return drawn[1:]


def moved(tensor, label, atom, permutations, row=None):
    """A tensor with the positions of an atom permuted, by a permutation for each position of the row."""
    if tensor.numel() == 0:
        return tensor
    place = {where: number for number, where in enumerate(label.places)}
    index = []
    for where in label.places:
        permutation = permutations[dict(where).get(row, 0)]
        index.append(place[tuple((what, permutation[n] if what is atom else n) for what, n in where)])
    tensor = tensor.flatten()[index].view(tensor.shape)
    return tensor if label.indexed is None else renumbered(tensor, label, atom, permutations, row)


def renumbered(tensor, label, atom, permutations, row):
    """Indices along an axis whose positions were permuted: what was at ``permutation[n]`` is at ``n`` now."""
    numbers = []
    for where, number in zip(label.places, tensor.flatten().tolist(), strict=True):
        permutation = permutations[dict(where).get(row, 0)]
        target = tuple((what, permutation.index(n) if what is atom else n) for what, n in label.indexed[int(number)])
        numbers.append(label.indexed.index(target))
    return torch.tensor(numbers, dtype=tensor.dtype).view(tensor.shape)


def same(left, right):
    return left.shape == right.shape and torch.allclose(left, right, rtol=1e-12, atol=1e-12, equal_nan=True)


def keeps(sample, tensors, atom, row=None, among=None, seed=0):
    """Whether the operation agrees: it takes inputs permuted along an atom to outputs permuted along it.

    Only the tensors among those named are permuted, all where none are.
    """
    permutations = permutations_of(atom, 1 if row is None else row.size, seed)
    n_inputs = len(sample.inputs)
    outputs, after = sample.result

    def move(number, tensor):
        if among is not None and number not in among:
            return tensor
        return moved(tensor, tensors[number], atom, permutations, row)

    try:
        got_outputs, got_after = sample.run([move(k, tensor) for k, tensor in enumerate(sample.inputs)])
    except RuntimeError:  # the operation refuses them: the first offset of a bag is zero
        return False
    expected = [move(n_inputs + k, tensor) for k, tensor in enumerate(outputs)]
    expected_after = [move(k, tensor) for k, tensor in enumerate(after)]
    return all(map(same, [*got_outputs, *got_after], [*expected, *expected_after]))


def free_atoms(tensors):
    found = dict.fromkeys(what for tensor in tensors for label in tensor.places for what, _ in label if what != SEGMENT)
    return [atom for atom in found if not atom.pinned]


def test_every_operation_with_a_rule_has_a_sample():
    assert registered() == {sample.operation for sample in SAMPLES}


@of_each_sample
@pytest.mark.parametrize("reading", [as_written, as_bound])
def test_permuting_a_letter_in_the_inputs_permutes_it_in_the_outputs(sample, reading):
    inputs, outputs, _, indexed = reading(sample)
    tensors = labelled([*inputs, *outputs], indexed)
    for atom in free_atoms(tensors):
        assert keeps(sample, tensors, atom)


@of_each_sample
def test_rows_that_are_in_every_tensor_may_be_permuted_each_by_itself(sample):
    inputs, outputs, within, indexed = as_written(sample)
    tensors = labelled([*inputs, *outputs], indexed)
    everywhere = [tensor.places for tensor in tensors] + [positions(sum(axes, ())) for axes in within]
    everywhere += [
        [(*where, *pointed) for where in tensor.places for pointed in tensor.indexed]
        for tensor in tensors
        if tensor.indexed
    ]
    for atom in free_atoms(tensors):
        beside = set.intersection(
            *({what for what, _ in label} for places in everywhere for label in places if (atom, 0) in label)
        ) - {atom, SEGMENT}
        for row in beside:
            assert keeps(sample, tensors, atom, row)


@of_each_sample
def test_binding_reads_a_rule_as_it_is_written(sample):
    inputs, outputs, within, indexed = as_written(sample)
    letters = free_atoms(labelled([*inputs, *outputs], indexed))
    bound_inputs, bound_outputs, bound_within, bound_indexed = as_bound(sample)
    for axes, tensor in zip([*bound_inputs, *bound_outputs], [*sample.inputs, *sample.result[0]], strict=True):
        assert axes is None or [size(axis) for axis in axes] == list(tensor.shape)
    met = dict.fromkeys(atom for axes in [*bound_inputs, *bound_outputs] for axis in axes or () for atom in atoms(axis))
    assert Counter(atom.size for atom in met if not atom.pinned) == Counter(atom.size for atom in letters)
    assert [[size(axis) for axis in axes] for axes in bound_within] == [
        [size(axis) for axis in axes] for axes in within
    ]
    assert [along and size(along) for along in bound_indexed] == [along and size(along) for along in indexed]


@of_each_sample
def test_no_letter_ties_what_could_be_permuted_apart(sample):
    inputs, outputs, _, indexed = as_written(sample)
    tensors = labelled([*inputs, *outputs], indexed)
    for atom in free_atoms(tensors):
        tied = holders(atom, tensors)
        if min(tied) >= len(inputs):
            continue  # new in the outputs, all the same
        for count in range(1, len(tied)):
            for among in combinations(tied, count):
                assert not all(keeps(sample, tensors, atom, among=among, seed=seed) for seed in range(3)), among


@of_each_sample
def test_what_a_rule_tells_apart_is_told_apart(sample):
    inputs, outputs, _, indexed = as_written(sample)
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
                freed = [
                    axes and [(Place(atom),) if (number, dim) in among else axis for dim, axis in enumerate(axes)]
                    for number, axes in enumerate(tensors)
                ]
                found = labelled(freed, indexed)
                assert not all(keeps(sample, found, atom, seed=seed) for seed in range(3)), among
