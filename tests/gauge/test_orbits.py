"""The share of a step that goes along the orbits, of which the gradient has none."""

import functools
import math

import pytest
import torch
from torch import nn

from lightning_symmetry import find_symmetries
from lightning_symmetry.gauge.orbits import orbit_fraction
from lightning_symmetry.measurement.snapshot import snapshot
from tests.minis import MINIS
from tests.reference import orbits as reference
from tests.reference.completeness import generic
from tests.zoo import ZOO

ZOO_MODELS = ("mlp relu", "conv stack")
MODELS = (*ZOO_MODELS, "lora", "gpt2", "llama", "encoder post-norm")
"""Which between them have groups of all kinds and forms, carried on and folded; the first two are of the zoo."""


@functools.cache
def case(name):
    """A model of float64, at generic parameters, with its symmetries and a loss."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = generic(ZOO[name].make() if name in ZOO_MODELS else MINIS[name].make())
    finally:
        torch.set_default_dtype(default)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12  # scales hold as far as it is zero
    batch = (ZOO[name].batch().double(),) if name in ZOO_MODELS else MINIS[name].batch()

    def loss():
        outputs = model(*batch) if name in ZOO_MODELS else MINIS[name].outputs(model(*batch))
        outputs = outputs.flatten(0, -2)
        return nn.functional.cross_entropy(outputs, torch.arange(len(outputs)) % outputs.shape[1])

    return model, find_symmetries(model, batch), loss


def gradient(model, loss):
    of_trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss(), list(of_trained.values()))
    return dict(zip(of_trained, gradients, strict=True))


def tangent(groups, model, seed=3):
    """One random tangent of the groups together."""
    tensors = snapshot(model)
    total = {key: torch.zeros_like(p) for key, p in model.named_parameters() if p.requires_grad}
    for group in groups:
        if total.keys() >= set(group.parameters):
            for key, change in group.tangent(tensors, torch.Generator().manual_seed(seed)).items():
                if key in total:
                    total[key] += change
    return total


def drawn(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for key, p in model.named_parameters()
        if p.requires_grad
    }


def square(step):
    return float(sum(change.square().sum() for change in step.values()))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_gradient_descent_has_no_part_along_any_orbit(name):
    model, symmetries, loss = case(name)
    step = {key: -0.1 * each for key, each in gradient(model, loss).items()}
    assert orbit_fraction(symmetries, snapshot(model), step) < 1e-8
    for group in symmetries:
        assert orbit_fraction([group], snapshot(model), step) < 1e-8


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_behind_a_gain_of_zero_too(name):
    """No orbit leads through what could not be unfolded from it: the projection is on the tangents that are left."""
    model, symmetries, loss = case.__wrapped__(name)
    gains = {fold.pivot.tensor for group in symmetries for fold in group.folds if fold.kind == "rescaling"}
    with torch.no_grad():
        for unit, gain in enumerate(sorted(gains)):
            model.get_parameter(gain)[unit] = 0
    step = drawn(model)
    expected = reference.orbit_fraction(symmetries, model, step)
    assert 1e-3 < expected < 1
    assert float(orbit_fraction(symmetries, snapshot(model), step)) == pytest.approx(expected, rel=1e-6)
    down = {key: -0.1 * each for key, each in gradient(model, loss).items()}
    assert orbit_fraction(symmetries, snapshot(model), down) < 1e-8
    assert all(orbit_fraction([group], snapshot(model), down) < 1e-8 for group in symmetries if group.folds)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_along_a_tangent_has_no_other(name):
    model, symmetries, _ = case(name)
    along = tangent(symmetries, model)
    assert orbit_fraction(symmetries, snapshot(model), along) == pytest.approx(1, abs=1e-6)
    for group in symmetries:
        along = tangent([group], model)
        expected = 1 if square(along) else 0
        assert expected == (group.dimension > 0 and along.keys() >= set(group.parameters))
        assert orbit_fraction([group], snapshot(model), along) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_squares_of_both_parts_add_up(name):
    model, symmetries, loss = case(name)
    down, along = gradient(model, loss), tangent(symmetries, model)
    ratio = 0.7 * math.sqrt(square(down) / square(along))
    step = {key: ratio * along[key] - down[key] for key in down}
    assert float(orbit_fraction(symmetries, snapshot(model), step)) == pytest.approx(0.49 / 1.49, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_projection_on_all_tangents(name):
    model, symmetries, _ = case(name)
    step = drawn(model)
    expected = reference.orbit_fraction(symmetries, model, step)
    assert 1e-3 < expected < 1
    assert float(orbit_fraction(symmetries, snapshot(model), step)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "encoder post-norm"])
def test_of_one_group_too(name):
    model, symmetries, _ = case(name)
    step = drawn(model)
    different = {
        (group.kind, group.form, len(group.carried), len(group.folds)): group for group in symmetries if group.dimension
    }
    for group in different.values():
        expected = reference.orbit_fraction([group], model, step)
        assert float(orbit_fraction([group], snapshot(model), step)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda parameters: torch.optim.AdamW(parameters, 1e-3, weight_decay=0.0),
        lambda parameters: torch.optim.SGD(parameters, 1e-3, weight_decay=0.1),
    ],
    ids=["adam", "weight decay"],
)
def test_preconditioners_and_weight_decay_go_along_the_orbits(build):
    model, symmetries, loss = case("mlp relu")
    before = {key: tensor.clone() for key, tensor in snapshot(model).items()}
    optimizer = build(model.parameters())
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    step = {key: tensor - before[key] for key, tensor in snapshot(model).items()}
    assert 1e-4 < orbit_fraction(symmetries, before, step) < 1


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_in_the_precision_of_a_training(dtype, accuracy):
    model, symmetries, _ = case("mlp relu")
    step = drawn(model)
    exact = orbit_fraction(symmetries, snapshot(model), step)
    rounded = {key: tensor.to(dtype) for key, tensor in snapshot(model).items()}
    value = orbit_fraction(symmetries, rounded, {key: each.to(dtype) for key, each in step.items()})
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(float(exact), rel=accuracy)


def test_groups_of_what_does_not_step_are_left_out():
    """A frozen weight cannot be rescaled against what reads it; a step of nothing has no part along anything."""
    model, symmetries, _ = case("mlp relu")
    before, step = snapshot(model), tangent(symmetries, model)
    del step["0.weight"]
    second = [group for group in symmetries if group.parameters[0] == "2.weight"]
    assert orbit_fraction(symmetries, before, step) == orbit_fraction(second, before, step) > 0
    assert orbit_fraction(symmetries, before, {key: 0 * each for key, each in step.items()}) == 0
    assert orbit_fraction([], before, step) == 0
    step["2.bias"][0] = math.inf
    assert orbit_fraction(symmetries, before, step).isnan()


def test_it_draws_no_random_number():
    model, symmetries, _ = case("gpt2")
    state = torch.get_rng_state()
    orbit_fraction(symmetries, snapshot(model), drawn(model))
    assert torch.equal(state, torch.get_rng_state())
