"""What is told of gradients and of updates, against the optimizer's own arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_symmetry.functional import effective_rank, spectral_norm, stable_rank, update_ratio, update_stable_rank
from lightning_symmetry.measurement.optimizer_steps import OptimizerSteps


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def layers(*shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    """Weights with gradients."""
    made = {f"layer{k}": parameter(*shape, seed=k) for k, shape in enumerate(shapes)}
    for k, weight in enumerate(made.values()):
        weight.grad = parameter(*weight.shape, seed=100 + k).detach()
    return made


def measured(steps: OptimizerSteps) -> dict[str, float]:
    """What a measurement would hold: by key, of what is known."""
    taken = steps.take()
    found = {
        key: float(value)
        for piece in steps.pieces()
        for key, value in zip(piece.keys, piece.measure(taken), strict=True)
    }
    return {key: value for key, value in found.items() if key not in steps.unknown(taken)}


def step(steps: OptimizerSteps, optimizer: torch.optim.Optimizer, steps_left: float = 1) -> None:
    steps.listen(steps_left)
    steps.before(optimizer)
    optimizer.step()
    steps.after()


def test_a_step_of_gradient_descent_is_the_learning_rate_times_the_gradient() -> None:
    weights = layers((5, 7), (4, 3, 2, 2))
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    steps = OptimizerSteps(weights, ["effective_rank", "spectral_norm"], updates=True)
    step(steps, torch.optim.SGD(weights.values(), lr=0.1))
    found = measured(steps)
    for name, weight in weights.items():
        gradient = weight.grad
        assert gradient is not None
        expected = {
            "gradient_effective_rank": effective_rank(gradient),
            "gradient_spectral_norm": spectral_norm(gradient),
            "update_ratio": 0.1 * spectral_norm(gradient) / spectral_norm(before[name]),
            "update_stable_rank": stable_rank(gradient),
        }
        for indicator, value in expected.items():
            assert found[f"spectrum/{indicator}/{name}"] == pytest.approx(float(value), rel=1e-4), indicator


def test_nothing_is_known_before_the_first_step_nor_a_second_time() -> None:
    weights = layers((3, 4))
    steps = OptimizerSteps(weights, ["stable_rank"], updates=True)
    assert not measured(steps)
    step(steps, torch.optim.SGD(weights.values(), lr=0.1))
    assert len(measured(steps)) == 3
    assert not measured(steps)


def test_only_what_is_asked_for_is_measured() -> None:
    weights = layers((3, 4))
    assert OptimizerSteps(weights, ["alpha"], updates=False).names == ("gradient_alpha",)
    assert OptimizerSteps(weights, (), updates=True).names == ("update_ratio", "update_stable_rank")


def test_layers_have_their_turn_a_few_at_each_step_and_no_others_are_copied() -> None:
    weights = layers(*[(3, 4)] * 5)
    steps, optimizer = OptimizerSteps(weights, (), updates=True), torch.optim.SGD(weights.values(), lr=0.1)
    copied = []
    for left in (7, 6, 5, 4, 3, 2, 1):
        steps.listen(left)
        steps.before(optimizer)
        copied.append(len(steps._copies))
        optimizer.step()
        steps.after()
    assert copied == [0, 0, 1, 1, 1, 1, 1]
    assert len(measured(steps)) == 10


def test_a_short_interval_leaves_more_layers_to_each_step() -> None:
    weights = layers(*[(3, 4)] * 5)
    steps, optimizer = OptimizerSteps(weights, (), updates=True), torch.optim.SGD(weights.values(), lr=0.1)
    for left in (2, 1):
        step(steps, optimizer, left)
    assert len(measured(steps)) == 10


def test_what_was_never_taken_is_forgotten_when_listening_begins_again() -> None:
    weights = layers((3, 4))
    steps, optimizer = OptimizerSteps(weights, (), updates=True), torch.optim.SGD(weights.values(), lr=0.1)
    step(steps, optimizer)
    steps.listen(100)
    steps.listen(1)
    assert not measured(steps)


def test_ranks_share_the_layers_and_their_sum_is_what_one_rank_finds() -> None:
    weights = layers(*[(3, 4)] * 5)
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    found = []
    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(start[name])
        steps = OptimizerSteps(weights, ["effective_rank"], True, rank, world_size)
        step(steps, torch.optim.SGD(weights.values(), lr=0.1))
        found.append(steps.take())
    alone, first, second = found
    assert alone.keys() == first.keys() == second.keys()
    for name, values in alone.items():
        torch.testing.assert_close(first[name] + second[name], values, rtol=0, atol=0)
    assert sum(bool(values.any()) for values in first.values()) == 3


def test_of_two_optimizers_each_tells_of_its_own_layers_where_both_step_in_one_batch() -> None:
    weights = layers((3, 4), (5, 6))
    first, second = weights.values()
    optimizers = [torch.optim.SGD([first], lr=0.1), torch.optim.SGD([second], lr=0.3)]
    before = [first.detach().clone(), second.detach().clone()]
    steps = OptimizerSteps(weights, (), updates=True)
    steps.listen(1)
    for optimizer in optimizers:
        steps.before(optimizer)
        optimizer.step()
    steps.after()
    found = measured(steps)
    for (name, weight), was in zip(weights.items(), before, strict=True):
        assert found[f"spectrum/update_ratio/{name}"] == pytest.approx(float(update_ratio(was, weight)))


def test_a_layer_whose_optimizer_does_not_step_is_unknown_and_a_frozen_one_is_not_changed() -> None:
    weights = layers((3, 4), (5, 6), (4, 4))
    weights["layer2"].requires_grad_(False)
    weights["layer2"].grad = None
    steps = OptimizerSteps(weights, ["effective_rank"], updates=True)
    step(steps, torch.optim.SGD([weights["layer0"]], lr=0.1))
    found = measured(steps)
    assert found["spectrum/update_ratio/layer0"] > 0
    assert not any(key.endswith("layer1") for key in found)
    assert {found[f"spectrum/{indicator}/layer2"] for indicator in steps.names} == {0.0}


def test_a_sparse_gradient_is_read_as_a_matrix() -> None:
    table = nn.Embedding(6, 4, sparse=True)
    table(torch.tensor([1, 1, 3])).square().sum().backward()
    steps = OptimizerSteps({"table": table.weight}, ["numerical_rank"], updates=True)
    step(steps, torch.optim.SGD(table.parameters(), lr=0.1))
    found = measured(steps)
    assert found["spectrum/gradient_numerical_rank/table"] == 2
    assert found["spectrum/update_stable_rank/table"] >= 1


class Halved(torch.optim.SGD):
    """Keeps master weights in its state, as optimizers for half precision do."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                master = self.state[weight].setdefault("master_weight", weight.float())
                master.sub_(weight.grad.float(), alpha=group["lr"])
                weight.copy_(master)


@pytest.mark.parametrize("kind", [torch.optim.SGD, Halved])
def test_master_weights_tell_of_updates_that_half_precision_hides(kind: type[torch.optim.SGD]) -> None:
    weight = parameter(8, 8, dtype=torch.bfloat16)
    weight.grad = weight.detach().clone()
    steps, optimizer = OptimizerSteps({"layer": weight}, (), updates=True), kind([weight], lr=2.0**-12)
    optimizer.step()  # makes the state
    step(steps, optimizer)
    ratio = measured(steps)["spectrum/update_ratio/layer"]
    assert ratio == pytest.approx(2.0**-12 if kind is Halved else 0.0, rel=0.02)
    assert steps.without_master_weights == (set() if kind is Halved else {"layer"})


def test_a_scaled_gradient_is_unscaled_and_a_step_that_the_scaler_passes_over_tells_nothing() -> None:
    weight = parameter(4, 5)
    optimizer = torch.optim.Adam([weight], fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((weight.square() / 2).sum()).backward()
    steps = OptimizerSteps({"layer": weight}, ["spectral_norm"], updates=False)
    steps.listen(1)
    steps.before(optimizer, scaler)
    expected = spectral_norm(weight).item()
    assert measured(steps)["spectrum/gradient_spectral_norm/layer"] == pytest.approx(expected, rel=1e-5)
    assert weight.grad is not None
    weight.grad[0, 0] = math.inf
    steps.listen(1)
    steps.before(optimizer, scaler)
    assert not measured(steps)


def test_changes_of_a_matrix_have_the_known_values() -> None:
    before, after = torch.diag(torch.tensor([4.0, 2.0])), torch.diag(torch.tensor([4.5, 2.5]))
    assert update_ratio(before, after).item() == pytest.approx(0.5 / 4)
    assert update_stable_rank(before, after).item() == pytest.approx(2)
    assert update_ratio(before, before) == update_stable_rank(before, before) == 0
    assert update_ratio(torch.zeros(2, 2), torch.zeros(2, 2)) == 0
    assert update_ratio(torch.zeros(2, 2), before) == math.inf
    assert update_ratio(before, before * math.nan).isnan() and update_ratio(before * math.nan, before).isnan()
    with pytest.raises(ValueError, match=r"one matrix at two times; got shapes \(2, 2\), \(2, 3\)"):
        update_ratio(before, torch.ones(2, 3))
