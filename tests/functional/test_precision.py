from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from lightning_symmetry.functional import effective_rank, nearest_distances
from lightning_symmetry.functional.precision import binary_scale, for_measuring, working_dtype


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def test_half_precision_is_measured_in_float32_and_float64_in_float64() -> None:
    half, double = torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float64)
    assert working_dtype(half) == torch.float32
    assert working_dtype(half, double) == torch.float64


def test_where_float32_products_are_rounded_float64_ones_are_taken() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert working_dtype(torch.ones(1)) == torch.float64
    for precision in ("high", "medium"):
        with matmul_precision(precision):
            assert working_dtype(torch.ones(1)) == torch.float64
    assert working_dtype(torch.ones(1)) == torch.float32


@pytest.mark.parametrize("measure", [effective_rank, nearest_distances])
def test_autocast_does_not_coarsen_a_measurement(measure) -> None:  # type: ignore[no-untyped-def]
    matrix = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = measure(matrix)
    torch.testing.assert_close(inside, measure(matrix), rtol=1e-5, atol=0, check_dtype=False)


def test_what_needs_no_conversion_is_not_copied() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    measured = for_measuring(parameter, torch.float32)
    assert measured.data_ptr() == parameter.data_ptr()
    assert not measured.requires_grad


@pytest.mark.parametrize("magnitude", [1.0, 3.0, 1e-45, 3e38])
def test_the_scale_is_a_power_of_two_that_float32_can_divide_by(magnitude: float) -> None:
    scaled = torch.tensor(magnitude) / binary_scale(magnitude)
    assert 0 < scaled < 4
    assert scaled * binary_scale(magnitude) == torch.tensor(magnitude)
