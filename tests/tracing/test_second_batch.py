"""The second batch that verification makes of the first: other contents, of the same form and the same ranges."""

import dataclasses

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.tracing.second_batch import second_batches

GENERATOR = torch.Generator().manual_seed(0)


@dataclasses.dataclass
class Batch:
    images: torch.Tensor
    labels: torch.Tensor
    name: str = "train"


def test_any_object_is_changed_wherever_it_holds_a_tensor_and_left_as_it_is_elsewhere():
    batch = {"a": [Batch(torch.rand(4, 3), torch.tensor([0, 1, 2, 3]))], "length": 7}
    images, labels = batch["a"][0].images.clone(), batch["a"][0].labels.clone()
    first, *_ = second_batches(batch)
    assert (first["length"], first["a"][0].name) == (7, "train")
    assert not torch.equal(first["a"][0].images, images)
    assert torch.equal(batch["a"][0].images, images)
    assert torch.equal(batch["a"][0].labels, labels)


def test_a_tensor_that_is_there_twice_is_one_tensor_still():
    tokens = torch.randint(0, 50, (2, 7), generator=GENERATOR)
    first, *_ = second_batches({"input_ids": tokens, "labels": tokens})
    assert first["input_ids"] is first["labels"]


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_real_numbers_move_within_their_range(dtype, scale, shape):
    numbers = (torch.rand(2, *shape, generator=GENERATOR) * scale).to(dtype)
    for moved in second_batches(numbers):
        assert moved.shape == numbers.shape
        assert moved.dtype == dtype
        assert not torch.equal(moved, numbers)
        assert numbers.min() <= moved.min() <= moved.max() <= numbers.max()


def test_numbers_that_are_all_the_same_move_too():
    for number, furthest in ((0.0, 0.6), (1e3, 600)):
        moved, *_ = second_batches(torch.full((9,), number))
        assert len(moved.unique()) == 9
        assert (moved - number).abs().max() < furthest


@given(st.lists(st.lists(st.integers(-100, 5), min_size=6, max_size=6), min_size=2, max_size=5))
def test_whole_numbers_are_shuffled_within_the_tensor_or_each_row_or_each_column(rows):
    for tensor in (torch.tensor(rows), torch.tensor(rows, dtype=torch.float32), torch.tensor(rows) > 0):
        if tensor.is_floating_point() and len(tensor.unique()) == 1:
            continue
        whole, in_rows, in_columns = second_batches(tensor)
        assert whole.dtype == in_rows.dtype == in_columns.dtype == tensor.dtype
        assert torch.equal(whole.flatten().sort().values, tensor.flatten().sort().values)
        assert torch.equal(in_rows.sort(1).values, tensor.sort(1).values)
        assert torch.equal(in_columns.sort(0).values, tensor.sort(0).values)


def test_what_is_not_finite_stays():
    mask = torch.tensor([[0.0, -torch.inf, 0.0], [0.0, 0.0, -torch.inf]])
    for shuffled in second_batches(mask):
        assert shuffled.isinf().sum() == 2
    missing = torch.tensor([0.5, torch.nan, 1.5])
    for moved in second_batches(missing):
        assert moved.isnan().tolist() == [False, True, False]


def test_complex_numbers_move():
    numbers = torch.randn(5, dtype=torch.complex64, generator=GENERATOR)
    for moved in second_batches(numbers):
        assert moved.dtype == numbers.dtype
        assert not (moved == numbers).all()
