"""Tensors of classes of their own are followed, however they are made."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_symmetry.symmetry.find import find_symmetries
from lightning_symmetry.tracing.subclassing import followed_subclasses


class Points(torch.Tensor):
    """Points whose coordinates have names; made anew when they are copied, as those of PINA are."""

    @staticmethod
    def __new__(cls, points, names):
        return super().__new__(cls, points)

    def __init__(self, points, names):
        self.names_of_coordinates = names

    def __deepcopy__(self, memo):
        return Points(self.as_subclass(torch.Tensor).clone(), self.names_of_coordinates)


class Solver(nn.Module):
    """Minimizes a derivative by its inputs; names what goes in and what comes out."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, points):
        assert points.names_of_coordinates == ["x", "t"]
        with torch.enable_grad():
            points.requires_grad_()
            field = Points(self.net(points).as_subclass(torch.Tensor), ["u"])
            (slopes,) = torch.autograd.grad(field.sum(), points, create_graph=True)
        assert type(field) is Points
        return F.mse_loss(slopes[:, 1:], field).as_subclass(torch.Tensor)


class Scan(torch.Tensor):
    """An image that knows where it was taken; what is computed of it knows too, as of MONAI's."""

    @staticmethod
    def __new__(cls, image, affine):
        return torch.as_tensor(image).as_subclass(cls)

    def __init__(self, image, affine):
        self.affine = affine

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        made = super().__torch_function__(function, types, args, kwargs)
        if isinstance(made, Scan):
            made.affine = next(each.affine for each in args if isinstance(each, Scan))
        return made

    def clone(self, **options):
        made = Scan(self.as_subclass(torch.Tensor).clone(**options), None)
        vars(made).update(copy.deepcopy(vars(self)))
        return made


class Reading(nn.Module):
    """Reads where a scan was taken, which its layers keep."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))

    def forward(self, scan):
        return self.net(scan) @ self.net[:3](scan).affine


def test_a_batch_keeps_its_class_and_what_it_knows():
    scan = Scan(torch.rand(7, 3), torch.rand(3, 2))
    groups = find_symmetries(Reading(), scan)
    assert [(group.kind, group.axis) for group in groups] == [("permutation", "net.0"), ("sign", "net.0")]
    assert not groups.rejected
    assert type(scan.affine) is torch.Tensor


def test_symmetries_are_found_where_a_step_names_its_tensors():
    points = Points(torch.rand(7, 2), ["x", "t"])
    groups = find_symmetries(Solver(), points)
    names = [(group.kind, group.name) for group in groups]
    assert names == [("permutation", "net.0"), ("sign", "net.0.sign"), ("sign", "net.2.sign")]
    assert not groups.rejected
    assert type(points) is Points


@pytest.mark.parametrize("arguments", [(2, 3), ([1.0, 2.0],), ()])
def test_what_is_made_of_no_tensor_is_made_as_ever_and_classes_are_as_before_afterwards(arguments):
    before = torch.Tensor.__new__, torch.Tensor.as_subclass
    with followed_subclasses():
        made = torch.Tensor(*arguments)
    assert made.shape == torch.Tensor(*arguments).shape
    assert (torch.Tensor.__new__, torch.Tensor.as_subclass) == before
    assert not {"__new__", "as_subclass"} & vars(torch.Tensor).keys()
    assert type(torch.ones(2).as_subclass(Points)) is Points
