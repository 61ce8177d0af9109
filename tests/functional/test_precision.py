from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from lightning_symmetry.functional import effective_rank, nearest_distances
from lightning_symmetry.functional.precision import (
    binary_scale,
    common_scale,
    for_measuring,
    row_scales,
    working_dtype,
)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_is_a_power_of_two_that_can_be_divided_by(magnitude: float, dtype: torch.dtype) -> None:
    scale = binary_scale(magnitude, dtype)
    scaled = torch.tensor(magnitude, dtype=dtype) / scale
    assert 0 < scaled < 4 and math.frexp(scale)[0] == 0.5
    assert scaled * scale == torch.tensor(magnitude, dtype=dtype)


@pytest.mark.parametrize("magnitude", [5e-324, 1e-300, 1e300, 1.7e308])
def test_in_float64_it_goes_as_far_as_float64_goes(magnitude: float) -> None:
    assert 2.0**-53 <= magnitude / binary_scale(magnitude, torch.float64) < 4


def test_several_tensors_share_the_scale_of_their_largest_entry() -> None:
    assert common_scale(torch.tensor([[-0.3], [0.2]]), torch.tensor([6.0]), torch.zeros(0, 3)) == 8
    assert common_scale(torch.zeros(3)) == common_scale(torch.tensor([1e9, math.inf])) == 1


def test_every_row_has_a_scale_of_its_own() -> None:
    sides = torch.tensor([[5e300, 1.0], [0.0, 0.0], [0.0, -5e-324], [math.inf, 1.0]], dtype=torch.float64)
    scales = row_scales(sides, sides.new_zeros(4, 0), sides[:, :1])
    scaled = (sides / scales).abs().amax(1)
    assert scales.shape == (4, 1) and (scaled[[0, 2]] >= 1).all() and (scaled[[0, 2]] < 2).all()
    assert scales[1] == 1 and scales[3].isnan()
    assert row_scales(torch.ones(2, 0)).tolist() == [[1.0], [1.0]]
