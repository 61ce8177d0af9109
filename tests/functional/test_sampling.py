"""Samples of rows that depend on the rows alone."""

import torch

from lightning_symmetry.functional.sampling import empty_sample, lowest, merge_samples, rows_of, with_priorities


def sample_of(rows, size, batches):
    samples = []
    for batch in rows.split(batches):
        samples.append(lowest(torch.cat([with_priorities(batch), empty_sample(size, rows.shape[1])]), size))
    return merge_samples(torch.stack(samples))


def test_the_sample_is_the_same_whatever_the_order_and_the_batches():
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).float().double()
    expected = sample_of(rows, 20, 200)
    for order, batches in ((torch.arange(200), 7), (torch.randperm(200), 50)):
        assert torch.equal(sample_of(rows[order], 20, batches), expected)
    assert len(rows_of(expected)) == 20


def test_rows_that_have_room_are_all_kept():
    rows = torch.arange(12.0).reshape(4, 3).double()
    assert sorted(rows_of(sample_of(rows, 6, 3)).tolist()) == rows.tolist()


def test_priorities_are_spread_evenly_and_tell_nothing_of_the_rows():
    """Rows in half precision, or of whole numbers, whose last bits are all zero."""
    generator = torch.Generator().manual_seed(0)
    for rows in (
        torch.randn(4000, 2, generator=generator).bfloat16().double(),
        torch.arange(4000.0).double()[:, None],
    ):
        distinct = rows.unique(dim=0)
        priorities = with_priorities(distinct)[:, 0]
        counts = torch.histc(priorities, 10, 0, 1) / len(priorities)
        assert (counts - 0.1).abs().max() < 0.02
        assert torch.corrcoef(torch.stack([priorities, distinct[:, 0]]))[0, 1].abs() < 0.05
