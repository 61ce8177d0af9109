"""What is inside units, against the same with everything written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_symmetry.functional import (
    Inner,
    Product,
    Units,
    nearest_distances,
    pair_distances,
    permutation_indicators,
)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_vectors(left: Tensor, right: Tensor) -> Tensor:
    """sqrt(2 / |P|) P of each unit, P = A^T B formed."""
    products = (left.mT @ right).flatten(1)
    return products * (2 / products.norm(dim=1, keepdim=True)).sqrt()


def test_a_product_counts_as_the_matrix_that_it_is() -> None:
    left, right = gaussian(4, 3, 5), gaussian(4, 3, 6, seed=1)
    units = Units(inner=(Inner(products=(Product((left[:, None],), (right[:, None],)),)),))
    expected = pair_distances(as_vectors(left, right))
    torch.testing.assert_close(pair_distances(units), expected)


def test_sides_in_several_tensors_are_laid_side_by_side() -> None:
    left, right = gaussian(4, 3, 5), gaussian(4, 3, 6, seed=1)
    split = Product((left[:, None, :, :2], left[:, None, :, 2:]), (right[:, None],))
    units = Units(inner=(Inner(products=(split,)),))
    torch.testing.assert_close(pair_distances(units), pair_distances(as_vectors(left, right)))


def test_units_that_differ_by_a_matrix_between_their_maps_are_equal() -> None:
    left, right, matrix = gaussian(3, 4, 5), gaussian(3, 4, 6, seed=1), torch.eye(4) + 0.2 * gaussian(4, 4, seed=2)
    left[2], right[2] = matrix @ left[0], torch.linalg.inv(matrix).T @ right[0]
    units = Units(inner=(Inner(products=(Product((left[:, None],), (right[:, None],)),)),))
    assert nearest_distances(units)[[0, 2]].tolist() == pytest.approx([0, 0], abs=1e-7)
    assert permutation_indicators(units)["distinct_units"] == 2


def test_planes_that_differ_by_an_angle_are_equal_and_others_are_not() -> None:
    left, right = gaussian(3, 1, 4, 5, 2), gaussian(3, 1, 4, 6, 2, seed=1)
    angles = gaussian(4, 1, seed=2)
    turn = torch.polar(torch.ones_like(angles), angles)
    for side in (left, right):
        side[2] = torch.view_as_real(turn * torch.view_as_complex(side[0]))
    units = Units(inner=(Inner(products=(Product((left,), (right,), mixed=False),)),))
    assert nearest_distances(units)[[0, 2]].tolist() == pytest.approx([0, 0], abs=1e-7)
    right[2] = torch.view_as_real(turn * torch.view_as_complex(right[2]))  # one side alone
    assert nearest_distances(units).min() > 0.1


def test_rows_are_matched_under_the_best_sign_of_each() -> None:
    gates, maps = gaussian(2, 5, 3), gaussian(2, 5, 4, seed=1)
    order, signs = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1.0, -1, -1, 1, -1])
    gates[1], maps[1] = gates[0][order], signs[:, None] * maps[0][order]
    units = Units(inner=(Inner((gates, maps), signs=((0, 0), (0, 1))),))
    assert (nearest_distances(units) == 0).all()
    gates[1] *= signs[:, None]  # what the sign leaves alone may not be flipped
    assert nearest_distances(units).min() > 0.1


def test_rows_that_share_a_map_are_matched_by_their_products() -> None:
    """Query heads of one key: A has a map for each, B one for all."""
    left, right = gaussian(2, 3, 4, 5), gaussian(2, 1, 4, 6, seed=1)
    matrix = torch.eye(4) + 0.2 * gaussian(4, 4, seed=2)
    left[1], right[1] = matrix @ left[0][torch.tensor([2, 0, 1])], torch.linalg.inv(matrix).T @ right[0]
    units = Units(inner=(Inner(products=(Product((left,), (right,)),)),))
    assert nearest_distances(units).max() < 1e-7


def test_a_unit_is_flipped_as_a_whole() -> None:
    odd, even = gaussian(3, 4), gaussian(3, 2, seed=1)
    odd[2], even[2] = -odd[0], even[0]
    assert nearest_distances(Units((odd, even), signs=(1, 0)))[[0, 2]].tolist() == [0, 0]
    assert nearest_distances(Units((odd, even), signs=(1, 1)))[0] > 0.1
    distances = pair_distances(Units((odd,), signs=(1,)))
    expected = torch.minimum(pair_distances(odd), pair_distances(torch.cat([odd, -odd]))[:3, 3:])
    torch.testing.assert_close(distances[0, 1], expected[0, 1])


@pytest.mark.parametrize("signs", [(0, 1), (1, 0), (1, 1)])
def test_a_recurrent_matrix_is_flipped_by_rows_and_columns(signs: tuple[int, int]) -> None:
    matrix, part = gaussian(5, 5, 1), gaussian(5, 3, seed=1)
    flip = torch.tensor([1.0, -1, 1, -1, -1], dtype=torch.float64)
    flipped = matrix * (flip[:, None, None] if signs[0] else 1) * (flip[None, :, None] if signs[1] else 1)
    before = Units((part,), (matrix,), signs=(1,), coupled_signs=(signs,))
    after = Units((part * flip[:, None],), (flipped,), signs=(1,), coupled_signs=(signs,))
    torch.testing.assert_close(pair_distances(after), pair_distances(before))
    for name, value in permutation_indicators(before).items():
        torch.testing.assert_close(permutation_indicators(after)[name], value)
    for i, j in ((0, 1), (2, 4)):
        exchange = torch.arange(5)
        exchange[[i, j]] = torch.tensor([j, i])
        mirrors = []
        for sign in (1.0, -1.0):
            units = torch.ones(5, dtype=torch.float64)
            units[[i, j]] = sign
            rows, columns = (units if odd else torch.ones(5) for odd in signs)
            moved = (matrix * rows[:, None, None] * columns[None, :, None])[exchange][:, exchange]
            square = (matrix - moved).square().sum() + (part - (part * units[:, None])[exchange]).square().sum()
            mirrors.append(float(square) / 2)
        entries = (
            matrix[[i, j]].square().sum() + matrix[:, [i, j]].square().sum() - matrix[[i, j]][:, [i, j]].square().sum()
        )
        size = float(entries + part[[i, j]].square().sum())
        assert pair_distances(before)[i, j].item() == pytest.approx(math.sqrt(min(mirrors) / (2 * size)))


def test_signs_of_another_number_than_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="signs must be empty, or one for each of 1 tensors"):
        Units((gaussian(3, 2),), signs=(1, 0))
