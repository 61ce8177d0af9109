"""What groups do to blocks of tensors."""

import pytest
import torch

from lightning_symmetry.symmetry.actions import Action, Block, derive, transform
from lightning_symmetry.symmetry.kinds import KINDS

# a fused map: three segments of two heads of four coordinates, and five inputs; the middle segment
FUSED = Block("qkv", ((0, 8, 8), (0, (2, 4))), ("heads", "dims", ""), 40)


def fused():
    return torch.arange(24 * 5, dtype=torch.float64).reshape(24, 5)


def test_a_block_is_a_view_of_its_part_of_the_tensor():
    tensor = fused()
    assert torch.equal(FUSED.of(tensor), tensor[8:16].reshape(2, 4, 5))
    FUSED.of(tensor).zero_()
    assert not tensor[8:16].any() and tensor[:8].any() and tensor[16:].any()
    assert FUSED.dims("dims") == (1,)
    assert FUSED.dims("other") == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_an_element_is_never_the_identity_and_differs_between_rows(kind, seed):
    elements = KINDS[kind].element(3, 4, torch.Generator().manual_seed(seed))
    unmoved = torch.arange(12.0).reshape(3, 4, 1) + 1
    moved = KINDS[kind].act(unmoved if elements.dtype == torch.long else unmoved.double(), elements, 1)
    assert not torch.equal(moved, unmoved)
    assert any(not torch.equal(elements[0], other) for other in elements[1:])


def test_a_permutation_by_row_moves_each_head_by_itself():
    tensor, permutations = fused(), torch.tensor([[1, 0, 3, 2], [0, 1, 2, 3]])
    transform(tensor, Action(FUSED, (0, 1, 0)), ["heads"], KINDS["permutation"], permutations)
    assert torch.equal(tensor[8:12], fused()[[9, 8, 11, 10]])
    assert torch.equal(tensor[12:], fused()[12:])
    assert torch.equal(tensor[:8], fused()[:8])


def test_a_permutation_of_the_outer_axis_moves_whole_heads():
    tensor = fused()
    transform(tensor, Action(FUSED, (1, 0, 0)), [], KINDS["permutation"], torch.tensor([[1, 0]]))
    assert torch.equal(tensor[8:16], fused()[[12, 13, 14, 15, 8, 9, 10, 11]])


def test_degrees_are_powers_of_a_scale_and_of_a_sign():
    block = Block("w", (), ("units", ""), 6)
    for degree, factors in ((1, [2.0, 3.0]), (-2, [0.25, 1 / 9])):
        tensor = torch.ones(2, 3, dtype=torch.float64)
        transform(tensor, Action(block, (degree, 0)), [], KINDS["rescaling"], torch.tensor([[2.0, 3.0]]))
        assert torch.allclose(tensor, torch.tensor(factors, dtype=torch.float64)[:, None].expand(2, 3))
    tensor = torch.ones(2, 3, dtype=torch.float64)
    transform(tensor, Action(block, (2, 0)), [], KINDS["sign"], torch.tensor([[-1.0, 1.0]]))
    assert torch.equal(tensor, torch.ones(2, 3, dtype=torch.float64))


def test_what_a_rotation_mixes_in_one_tensor_it_unmixes_in_the_other():
    torch.manual_seed(0)
    incoming, outgoing = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    product = outgoing @ incoming
    matrix = KINDS["rotation"].element(1, 3, torch.Generator().manual_seed(0))
    transform(incoming, Action(Block("a", (), ("d", ""), 15), (1, 0)), [], KINDS["rotation"], matrix)
    transform(outgoing, Action(Block("b", (), ("", "d"), 12), (0, -1)), [], KINDS["rotation"], matrix)
    assert torch.allclose(outgoing @ incoming, product)


def test_an_axis_that_a_matrix_has_twice_is_moved_twice():
    tensor = torch.arange(9.0).reshape(3, 3)
    order = torch.tensor([[2, 0, 1]])
    transform(tensor, Action(Block("w", (), ("units", "units"), 9), (1, 1)), [], KINDS["permutation"], order)
    assert torch.equal(tensor, torch.arange(9.0).reshape(3, 3)[order[0]][:, order[0]])


@pytest.mark.parametrize("degree", [1, -1])
@pytest.mark.parametrize("kind", ["rescaling", "rotation"])
def test_a_derivative_is_that_of_the_action(kind, degree):
    torch.manual_seed(0)
    step = 1e-6
    tensor = torch.randn(24, 5, dtype=torch.float64)
    action = Action(FUSED, (0, degree, 0))
    direction = KINDS[kind].direction(2, 4, torch.Generator().manual_seed(0))
    derivative = torch.zeros_like(tensor)
    derive(tensor, derivative, action, ["heads"], KINDS[kind], direction)
    near = 1 + step * direction if kind == "rescaling" else torch.eye(4, dtype=torch.float64) + step * direction
    moved = tensor.clone()
    transform(moved, action, ["heads"], KINDS[kind], near)
    assert torch.allclose((moved - tensor) / step, derivative, atol=1e-5)
    assert not derivative[:8].any()
