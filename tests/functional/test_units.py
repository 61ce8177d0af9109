from __future__ import annotations

import weakref

import pytest
import torch

from lightning_symmetry.functional.order_parameters import permutation_indicators
from lightning_symmetry.functional.units import Deferred, PairGeometry, Units, pair_geometry


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
    assert next(geometry_of(Units(parts=(part,))).parts).data_ptr() == part.data_ptr()


def test_deferred_parts_are_measured_as_held_ones_are_and_never_two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state with equal units and signs, in each precision; what was read is let go before the next is read."""
    monkeypatch.setattr("lightning_symmetry.functional.units.FEWEST_COLUMNS", 2)
    monkeypatch.setattr("lightning_symmetry.functional.units.BLOCK_ELEMENTS", 40)
    alive: list[weakref.ref[torch.Tensor]] = []

    def deferred(part: torch.Tensor) -> Deferred:
        def read() -> torch.Tensor:
            assert not any(each() is not None for each in alive)
            copy = part.clone()
            alive.append(weakref.ref(copy))
            return copy

        return Deferred(read, (part.shape[0], part.shape[1]), part)

    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.complex64):
        for signs in ((), (0, 1, 3)):
            parts = [random(7, 9).to(dtype), random(7, 5).to(dtype), random(7, 1).to(dtype)]
            for part in parts:
                part[4] = part[2]
            for scale in (1, 2.0**30):
                held = tuple(scale * part for part in parts)
                others = permutation_indicators(Units(parts=tuple(map(deferred, held)), signs=signs))
                for name, value in permutation_indicators(Units(parts=held, signs=signs)).items():
                    torch.testing.assert_close(others[name], value)
                assert others["nearest_distance_min"] == 0
    assert len(alive) > 9


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
