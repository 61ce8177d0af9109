from __future__ import annotations

import pytest
import torch

from lightning_symmetry.functional.units import PairGeometry, Units, pair_geometry


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "tensors",
    [
        {"parts": (random(3, 2), random(4, 2))},
        {"parts": (random(3),)},
        {"parts": (torch.tensor(1.0),)},
        {"parts": (random(0, 2),)},
        {"coupled": (random(3, 4, 1),)},
        {"coupled": (random(3, 3),)},
        {"inner": (random(3, 3),)},
        {"parts": (random(3, 2),), "inner": (random(4, 2, 2),)},
    ],
)
def test_shapes_that_disagree_are_refused_with_all_of_them(tensors: dict[str, tuple[torch.Tensor, ...]]) -> None:
    with pytest.raises(ValueError, match=r"agree on n_units.*got \{'parts': \["):
        Units(**tensors)


def test_no_tensor_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one tensor"):
        Units()


def test_parts_without_entries_are_units_too() -> None:
    assert Units(parts=(random(3, 0),)).n_units == 3


def geometry_of(units: Units, resolution: float = 1.0) -> PairGeometry:
    geometry = pair_geometry(units, resolution)
    assert geometry is not None
    return geometry


def test_tensors_of_ordinary_size_are_not_copied() -> None:
    part = random(3, 2)
    assert geometry_of(Units(parts=(part,))).parts[0].data_ptr() == part.data_ptr()


def test_a_resolution_beyond_float32_is_measured_in_float64() -> None:
    units = Units(parts=(random(3, 2),))
    assert geometry_of(units, 1e-2).gram().dtype == torch.float32
    assert geometry_of(units, 1e-4).gram().dtype == torch.float64


def test_blocks_of_rows_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    units = Units(parts=(random(7, 3),), coupled=(random(7, 7, 2),), inner=(random(7, 2, 2),))
    whole = geometry_of(units)
    (first, squares), gram = next(whole.square_blocks()), whole.gram()
    i, j = torch.triu_indices(7, 7, 1)
    exact = whole.exact_squares(i, j)
    assert first == 0 and len(squares) == 7
    torch.testing.assert_close(squares[i, j], exact)
    monkeypatch.setattr("lightning_symmetry.functional.units.BLOCK_ELEMENTS", 30)
    blocked = geometry_of(units)
    blocks = list(blocked.square_blocks())
    assert [start for start, _ in blocks] == [0, 2, 4, 6]
    torch.testing.assert_close(torch.cat([block[block < 2] for _, block in blocks]), squares[i, j])
    torch.testing.assert_close(blocked.gram(), gram)
    torch.testing.assert_close(blocked.exact_squares(i, j), exact)
    torch.testing.assert_close(gram, gram.T)


def test_in_float64_the_same_comes_out_with_more_digits() -> None:
    units = Units((random(7, 3),), (random(7, 7, 2),), (random(7, 2, 2),), signs=(1,), coupled_signs=((1, 1),))
    coarse, doubled = geometry_of(units), [tensor.double() for tensor in units.tensors]
    exact = geometry_of(Units(*((tensor,) for tensor in doubled), signs=(1,), coupled_signs=((1, 1),)))
    fine = coarse.in_float64()
    (_, approximate), (_, squares), (_, expected) = (next(each.square_blocks()) for each in (coarse, fine, exact))
    torch.testing.assert_close(approximate.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(squares, expected, rtol=1e-6, atol=1e-9)  # what is inner was rounded to float32
    assert squares.dtype == torch.float64 and next(iter(fine.parts)).dtype == torch.float32
