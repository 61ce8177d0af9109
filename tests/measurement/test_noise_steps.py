"""Where the gradients' noise pushes units, against the definition on gradients that were recorded."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_symmetry import find_symmetries
from lightning_symmetry.functional import noise_imbalance
from lightning_symmetry.measurement.noise_steps import NoiseSteps
from lightning_symmetry.measurement.step_listeners import StepListeners

FIRST, LAST = "symmetry/noise_imbalance/0_rescaling", "symmetry/noise_imbalance/2_rescaling"


class Squared(nn.Module):
    def forward(self, inputs):
        return F.relu(inputs).square()


def built(activation=nn.ReLU):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 2))
    return model, find_symmetries(model, torch.randn(16, 4))


def backward(model):
    model.zero_grad()
    F.mse_loss(model(torch.randn(3, 4)), torch.randn(3, 2)).backward()


def recorded(model):
    """Both sides of the units of both hidden layers: n_units x dim."""
    first, second, last = model[0], model[2], model[4]
    return [
        side.clone()
        for inner, outer in ((first, second), (second, last))
        for side in (torch.cat([inner.weight.grad, inner.bias.grad[:, None]], 1), outer.weight.grad.T)
    ]


def expected(sides, degree=1.0):
    return [
        float(noise_imbalance(torch.stack(a), degree**0.5 * torch.stack(b)))
        for a, b in (list(zip(*sides, strict=True))[:2], list(zip(*sides, strict=True))[2:])
    ]


def measured(steps):
    """What a measurement would hold: by key, of what is known."""
    taken = steps.take()
    assert {name: tuple(each.shape) for name, each in taken.items()} == steps.sums
    found = {piece.keys[0]: float(piece.measure(taken)[0]) for piece in steps.pieces()}
    return {key: value for key, value in found.items() if key not in steps.unknown(taken)}


def stepped(steps, model, optimizer, left):
    """One step, and the gradients that it was made with."""
    steps.listen(left)
    backward(model)
    sides = recorded(model)
    steps.before(optimizer)
    optimizer.step()
    steps.after()
    return sides


@pytest.mark.parametrize(("activation", "degree"), [(nn.ReLU, 1), (Squared, 2)])
def test_it_is_the_imbalance_of_the_last_gradients_before_a_measurement(activation, degree):
    """After the square of ReLU what comes out counts twice, as its charge does."""
    model, symmetries = built(activation)
    steps, optimizer = NoiseSteps(symmetries, model, window=5), torch.optim.SGD(model.parameters(), 0.1)
    sides = [stepped(steps, model, optimizer, left) for left in (9, 8, 7, 6, 5, 4, 3, 2, 1)]
    first, last = expected(sides[-5:], degree)
    assert measured(steps) == {FIRST: pytest.approx(first), LAST: pytest.approx(last)}
    assert 0 < first < 1
    assert measured(steps) == {}, "what was told is forgotten"


def test_measurements_that_are_closer_than_the_window_wait_for_it_to_be_full():
    model, symmetries = built()
    steps, optimizer = NoiseSteps(symmetries, model, window=5), torch.optim.SGD(model.parameters(), 0.1)
    sides, told = [], []
    for _ in range(3):
        sides += [stepped(steps, model, optimizer, left) for left in (2, 1)]
        told.append(measured(steps))
    assert told[:2] == [{}, {}]
    first, last = expected([*sides[:4], sides[5]])  # of the third interval only the last step was needed
    assert told[2] == {FIRST: pytest.approx(first), LAST: pytest.approx(last)}


def test_what_was_heard_long_ago_is_forgotten():
    """As where a measurement on a budget is put off."""
    model, symmetries = built()
    steps, optimizer = NoiseSteps(symmetries, model, window=3), torch.optim.SGD(model.parameters(), 0.1)
    sides = [stepped(steps, model, optimizer, left) for left in (3, 2, 9, 8, 7, 6, 5, 4, 3, 2, 1)]
    first, last = expected(sides[-3:])
    assert measured(steps) == {FIRST: pytest.approx(first), LAST: pytest.approx(last)}


def test_a_full_window_is_told_of_however_long_ago_unless_there_is_time_for_a_new_one():
    model, symmetries = built()
    steps, optimizer = NoiseSteps(symmetries, model, window=3), torch.optim.SGD(model.parameters(), 0.1)
    full = [stepped(steps, model, optimizer, left) for left in (3, 2, 1)]
    for left in (40, 39, 38, 37, 36, 2, 1):  # a plan that was made anew
        stepped(steps, model, optimizer, left)
    assert measured(steps)[FIRST] == pytest.approx(expected(full)[0])
    [stepped(steps, model, optimizer, left) for left in (3, 2, 1)]
    anew = [stepped(steps, model, optimizer, left) for left in (5, 4, 3, 2, 1)][-3:]
    assert measured(steps)[FIRST] == pytest.approx(expected(anew)[0])


def test_a_gradient_that_stays_the_same_has_no_noise():
    model, symmetries = built()
    steps, optimizer = NoiseSteps(symmetries, model, window=3), torch.optim.SGD(model.parameters(), 0.0)
    backward(model)
    for left in (3, 2, 1):
        steps.listen(left)
        steps.before(optimizer)
        steps.after()
    assert measured(steps) == {FIRST: 0, LAST: 0}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_optimizers_may_share_out_a_unit(order):
    model, symmetries = built()
    steps = NoiseSteps(symmetries, model, window=4)
    optimizers = [torch.optim.SGD(part.parameters(), 0.1) for part in (model[:3], model[3:])]
    sides = []
    for left in (4, 3, 2, 1):
        steps.listen(left)
        backward(model)
        sides.append(recorded(model))
        for place in order:
            steps.before(optimizers[place])
        steps.after()
    first, last = expected(sides)
    assert measured(steps) == {FIRST: pytest.approx(first), LAST: pytest.approx(last)}


def test_units_whose_sides_make_different_steps_have_no_value():
    model, symmetries = built()
    steps = NoiseSteps(symmetries, model, window=4)
    often, seldom = (torch.optim.SGD(part.parameters(), 0.1) for part in (model[:3], model[3:]))
    for left in (4, 3, 2, 1):
        steps.listen(left)
        backward(model)
        steps.before(often)
        if left % 2:
            steps.before(seldom)
        steps.after()
    assert measured(steps).keys() == {FIRST}


def test_a_frozen_side_has_no_noise_and_frozen_units_have_no_value():
    model, symmetries = built()
    for module in (model[2], model[4]):
        module.requires_grad_(False)
    steps, optimizer = NoiseSteps(symmetries, model, window=3), torch.optim.SGD(model[0].parameters(), 0.1)
    for left in (3, 2, 1):
        steps.listen(left)
        backward(model)
        steps.before(optimizer)
        steps.after()
    assert measured(steps) == {FIRST: pytest.approx(1)}


def test_ranks_share_the_groups_and_their_sum_is_what_one_rank_finds():
    model, symmetries = built()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    every = [NoiseSteps(symmetries, model, *ranks, window=4) for ranks in ((0, 1), (0, 2), (1, 2), (2, 3))]
    for left in (4, 3, 2, 1):
        backward(model)
        for steps in every:
            steps.listen(left)
            steps.before(optimizer)
            steps.after()
    alone, first, second, idle = (steps.take() for steps in every)
    assert all(torch.equal(first[name] + second[name], alone[name]) for name in alone)
    assert not any(each.any() for each in idle.values())


class Scaler:
    """As much as is asked of a GradScaler."""

    def get_scale(self):
        return 1024.0


class SelfScaling(torch.optim.SGD):
    """Undoes the scale in its step, as fused optimizers do."""

    _step_supports_amp_scaling = True


@pytest.mark.parametrize("kind", [torch.optim.SGD, SelfScaling])
def test_gradients_are_unscaled_and_steps_that_a_scaler_passes_over_are_not_counted(kind):
    model, symmetries = built()
    steps, optimizer = NoiseSteps(symmetries, model, window=3), kind(model.parameters(), 0.1)
    sides = []
    for number, left in enumerate((3, 2, 2, 1)):
        steps.listen(left)
        backward(model)
        if number == 1:
            model[0].weight.grad[0, 0] = torch.inf
        else:
            sides.append(recorded(model))
        for parameter in model.parameters():
            parameter.grad *= Scaler().get_scale() if kind is SelfScaling else 1.0
        steps.before(optimizer, Scaler())
        steps.after()
    first, last = expected(sides)
    assert measured(steps) == {FIRST: pytest.approx(first), LAST: pytest.approx(last)}


def test_a_gradient_that_is_not_finite_is_told_of():
    model, symmetries = built()
    steps, optimizer = NoiseSteps(symmetries, model, window=3), torch.optim.SGD(model.parameters(), 0.1)
    for left in (3, 2, 1):
        steps.listen(left)
        backward(model)
        model[0].weight.grad[0, 0] = torch.inf
        steps.before(optimizer)
        steps.after()
    found = measured(steps)
    assert found[FIRST] != found[FIRST]
    assert 0 < found[LAST] < 1


def test_only_the_sums_of_gradients_are_kept_and_only_while_listening():
    model, symmetries = built()
    steps, optimizer = NoiseSteps(symmetries, model, window=2), torch.optim.SGD(model.parameters(), 0.1)
    kept = []
    for left in (3, 2, 1):
        stepped(steps, model, optimizer, left)
        kept.append(sum(each.numel() for each in steps._sums.values()))
    moved = {name for group in symmetries if group.kind == "rescaling" for name in group.parameters}
    numel = sum(model.get_parameter(name).numel() for name in moved)
    assert kept == [0, numel, numel]
    steps.take()
    assert not steps._sums


def test_listeners_are_told_and_tell_as_one():
    model, symmetries = built()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first, last = (symmetries.select([group]) for group in symmetries if group.kind == "rescaling")
    alone = NoiseSteps(symmetries, model, window=3)
    steps = StepListeners([NoiseSteps(each, model, window=3) for each in (first, last)])
    for left in (3, 2, 1):
        backward(model)
        for each in (alone, steps):
            each.listen(left)
            each.before(optimizer)
            each.after()
    assert measured(steps) == measured(alone)
    assert len(steps) == 2
    nobody = StepListeners([])
    assert (len(nobody), nobody.sums, nobody.take(), nobody.pieces(), nobody.unknown({})) == (0, {}, {}, [], set())
