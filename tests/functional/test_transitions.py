"""What the detector tells of one series, what it does not, and how well it does in real trainings."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry.functional.transitions import ALARM, LONGEST_WAIT, Detector, Shift, observe
from tests.benchmarks import transitions as benchmark
from tests.reference.transitions import QUIET, modes_of_linear_networks, time_to_half


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only cost where matrices are so small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shifts(values, least=0.25, least_relative=0.0, detector=None) -> list[Shift]:
    detector, found = detector or Detector(), []
    for step, value in enumerate(values):
        detector, shift = observe(detector, step, float(value), least, least_relative)
        found += [shift] if shift else []
    return found


def after(values, least=0.25) -> Detector:
    detector = Detector()
    for step, value in enumerate(values):
        detector, _ = observe(detector, step, float(value), least)
    return detector


def noise(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n)


def step_at(at, n, height=1.0):
    return height * (np.arange(n) >= at)


def sigmoid(at, width, n):
    return 1 / (1 + np.exp(-(np.arange(n) - at) / width))


def test_a_jump_without_noise_is_certain_at_the_third_measurement():
    assert shifts([3.0] * 20 + [2.0] * 10) == [Shift(step=22, since=20, before=3.0, after=2.0, confidence=1.0)]


def test_an_exact_count_without_a_smallest_change_needs_none():
    assert [(shift.since, shift.size) for shift in shifts([12.0] * 20 + [11.0] * 20, least=0.0)] == [(20, -1.0)]


@pytest.mark.parametrize("level", [0.0, 1.0, 1e9])
def test_rounding_is_no_change(level):
    values = level + level * 1e-14 * noise(300)
    assert shifts(values, least=0.0) == []


def test_in_noise_the_jump_is_told_with_its_size_and_a_confidence_below_one():
    (shift,) = shifts(10 + 0.1 * noise(60) + step_at(40, 60, 2.0), least=0.01)
    assert shift.step == 42
    assert shift.since in (39, 40)  # noise may have begun it
    assert shift.size == pytest.approx(2.0, abs=0.3)
    assert 0.99 < shift.confidence < 1


@pytest.mark.parametrize("width", [0.5, 1, 2, 4])
def test_a_smooth_rise_is_told_once_and_near_its_middle(width):
    (shift,) = shifts(sigmoid(60, width, 160))
    assert shift.size > 0
    assert abs(shift.step - 60) <= max(3, 2 * width)
    assert shift.since < shift.step


@pytest.mark.parametrize("at", range(2, 12))
@pytest.mark.parametrize("after", [2.0, 45.0, 100.0])
def test_a_clean_step_among_the_first_measurements_is_told_with_the_measurement_at_which_it_began(at, after):
    (shift,) = shifts([64.0] * at + [after] * 20, least=5.0)
    assert (shift.step, shift.since, shift.before, shift.after) == (at + 2, at, 64.0, after)


@pytest.mark.parametrize("gap", range(2, 12))
def test_a_second_step_soon_after_the_first_is_told_as_another(gap):
    found = shifts([4.0] * 30 + [3.0] * gap + [2.0] * 20)
    assert [(shift.since, shift.before, shift.after) for shift in found] == [(30, 4.0, 3.0), (30 + gap, 3.0, 2.0)]


@pytest.mark.parametrize("gap", range(3, 12))
def test_a_step_that_is_taken_back_is_told_from_three_measurements_on(gap):
    assert [shift.size for shift in shifts([4.0] * 30 + [3.0] * gap + [4.0] * 20)] == [-1.0, 1.0]
    assert shifts([4.0] * 30 + [3.0] * 2 + [4.0] * 20) == []


def test_a_slide_that_comes_to_rest_is_told_once():
    values = [51.0] * 3 + [1 + 50 * 0.7**k for k in range(1, 30)]
    assert len(shifts(values, least_relative=0.1)) == 1


def test_a_staircase_is_told_step_by_step():
    values = sum(step_at(at, 120) for at in (20, 45, 70, 95))
    assert [shift.since for shift in shifts(values)] == [20, 45, 70, 95]


def test_what_is_smaller_than_what_matters_is_not_told():
    assert shifts(step_at(30, 60, 0.2)) == []
    assert shifts(100 + step_at(30, 60, 1.5), least_relative=0.02) == []
    assert len(shifts(100 + step_at(30, 60, 3.0), least_relative=0.02)) == 1


@pytest.mark.parametrize(
    "values",
    [
        10 + 5 * np.exp(-np.arange(200) / 30),  # a fall that slows down is no rise
        10 - 5 * np.exp(-np.arange(200) / 30),
        0.5 * np.arange(200),
        10 + np.where(np.arange(200) % 50 == 30, 1000.0, 0.0),  # outliers
        10 + np.where(np.arange(200) % 50 // 2 == 15, 1000.0, 0.0),  # and two in a row
        np.where(np.arange(200) < 100, 0.1, 3.0) * noise(200),  # a burst of noise
    ],
    ids=["relaxation down", "relaxation up", "drift", "outliers", "pairs of outliers", "burst"],
)
def test_what_is_no_shift_is_not_told(values):
    assert shifts(values) == []


def test_the_first_fast_relaxation_is_waited_for_and_the_jump_after_it_found():
    values = 6 * np.exp(-np.arange(80) / 3) + step_at(50, 80)
    assert [shift.since for shift in shifts(values)] == [50]


def test_after_the_longest_wait_what_still_moves_is_drift():
    assert after(0.5 * np.arange(LONGEST_WAIT - 1)).waited is not None
    assert after(0.5 * np.arange(LONGEST_WAIT)).waited is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_passed_over(value):
    detector = after(noise(30))
    assert observe(detector, 30, value) == (detector, None)


def test_the_state_is_of_constant_size_and_survives_json_at_any_moment():
    values = 10 + 0.1 * noise(400) + step_at(150, 400) - step_at(300, 400, 2.0)
    detector, found, sizes = Detector(), [], []
    for step, value in enumerate(values):
        text = json.dumps(asdict(detector), allow_nan=False)
        sizes.append(len(text))
        detector, shift = observe(Detector.from_dict(json.loads(text)), step, float(value), 0.25)
        found += [shift] if shift else []
    assert found == shifts(values)
    assert len(found) == 2
    assert max(sizes) < 1000


@given(st.integers(0, 1000), st.floats(-50, 50), st.sampled_from([-8.0, -1.0, 0.25, 4.0]))
def test_units_and_sign_of_the_indicator_do_not_matter(seed, offset, factor):
    values = noise(80, seed) + step_at(40, 80, 12.0)
    plain = shifts(values, least=0.25)
    scaled = shifts(factor * values + offset, least=0.25 * abs(factor))
    assert [(shift.step, shift.since) for shift in plain] == [(shift.step, shift.since) for shift in scaled]
    assert [factor * shift.size for shift in plain] == pytest.approx([shift.size for shift in scaled], rel=1e-6)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=120))
def test_no_series_breaks_it(values):
    detector = Detector()
    for step, value in enumerate(values):
        detector, shift = observe(detector, step, value, 0.25, 0.02)
        assert shift is None or 0 <= shift.confidence <= 1
        assert max(detector.rise.height, detector.fall.height) < ALARM + 3 * len(values)


def test_the_known_time_of_a_mode_is_saxes_and_that_of_the_training():
    strength, start = 2.0, 1e-6  # the rank of the map rises fastest where theory has it halfway
    saxe = math.log((strength - start) / start) / (2 * strength)
    assert time_to_half(strength, start, depth=2) == pytest.approx(saxe, rel=1e-6)
    (run,) = modes_of_linear_networks(1, 2, seed=0)
    for time, direction in run.known:
        rises = np.diff(run.values)[round(time) - 8 : round(time) + 8]
        assert direction == 1
        assert abs(int(np.argmax(rises)) - 8) <= 2


@pytest.mark.parametrize(
    ("name", "runs"), list(zip(benchmark.TRUTHS, [16, 16, 16, 12, 25, 12, 50, 25, 30], strict=True))
)
def test_in_real_trainings_known_transitions_are_found_in_time_and_no_others(name, runs):
    found = benchmark.score(benchmark.TRUTHS[name](runs, 7), benchmark.online)
    assert found.known >= 24
    assert found.recall >= 0.95
    assert found.delay <= 3
    assert found.false <= found.measurements / 10_000


def test_in_quiet_there_is_at_most_one_false_event_in_ten_thousand_measurements():
    for find in (benchmark.online, benchmark.sensitive):
        scores = {name: benchmark.quiet(name, find, series=28, seed=3) for name in QUIET}
        measurements = sum(score.measurements for score in scores.values())
        assert measurements >= 200_000
        assert sum(score.false for score in scores.values()) <= measurements / 10_000
        for name, score in scores.items():
            assert score.false <= 2, name


def test_it_finds_what_ruptures_finds_in_hindsight_and_is_quieter():
    pytest.importorskip("ruptures")
    for train in benchmark.TRUTHS.values():
        trained = train(3, 11)
        assert benchmark.score(trained, benchmark.online).f1 >= benchmark.best_offline(trained).f1
    hindsight = benchmark.offline(max(benchmark.PENALTIES))
    for name in ("linear drift", "relaxation"):
        ours, theirs = (benchmark.quiet(name, find, series=3) for find in (benchmark.online, hindsight))
        assert ours.false < theirs.false
