from __future__ import annotations

import json
import math
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_symmetry import history as module
from lightning_symmetry.decimation import decimate
from lightning_symmetry.history import History, read_history


def test_a_measurement_is_one_json_line_with_step_time_and_values(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    History(path).append(3, {"loss": 0.5, "symmetry/broken_fraction/fc1": 1.0})
    (line,) = path.read_text().splitlines()
    record = json.loads(line)
    assert record.keys() == {"step", "time", "values"}
    assert record["step"] == 3
    assert record["values"] == {"loss": 0.5, "symmetry/broken_fraction/fc1": 1.0}


def test_an_event_is_one_json_line_with_its_kind_among_its_details(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    History(path).append_event(7, "nonfinite", parameter="fc1.weight")
    record = json.loads(path.read_text())
    assert record.keys() == {"step", "time", "event"}
    assert record["event"] == {"kind": "nonfinite", "parameter": "fc1.weight"}


def test_nothing_is_created_before_the_first_append_which_creates_the_folder(tmp_path: Path) -> None:
    history = History(tmp_path / "symmetry" / "run" / "history.jsonl")
    assert list(tmp_path.iterdir()) == []
    history.append(0, {"loss": 1.0})
    assert history.path is not None and history.path.is_file()


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    history = History(None)
    history.append(0, {"loss": 1.0})
    history.append_event(0, "run", name="a")
    assert list(tmp_path.iterdir()) == []
    assert history.series("loss") == ([0], [1.0])
    assert history.events[0].kind == "run"


@given(
    rows=st.lists(st.tuples(st.integers(0, 10), st.dictionaries(st.text(max_size=5), st.floats(), max_size=3))),
)
def test_what_is_read_back_is_what_was_in_memory(
    rows: list[tuple[int, dict[str, float]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "history.jsonl"
    history = History(path)
    history.append_event(0, "run", name="round trip", nested=[{"a": (1, 2)}])
    for step, values in rows:
        history.append(step, values)
    again = read_history(path)
    assert repr(again.measurements) == repr(history.measurements)  # repr: NaN differs from itself
    assert again.events == history.events
    assert again.keys("") == history.keys("")
    assert repr([again.series(key) for key in again.keys("")]) == repr([history.series(key) for key in again.keys("")])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null_in_the_file_and_nan_in_memory(tmp_path: Path, value: float) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.append(0, {"loss": value})
    history.append_event(0, "error", where="spectrum", value=value)
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines())
    assert first["values"] == {"loss": None}
    assert second["event"]["value"] is None
    assert math.isnan(history.series("loss")[1][0])
    assert math.isnan(read_history(path).series("loss")[1][0])


def test_a_series_has_the_rows_that_hold_its_key() -> None:
    history = History(None)
    history.append(0, {"loss": 2.0, "symmetry/broken_fraction": 1.0})
    history.append(0, {"spectrum/effective_rank/fc1": 8.0})
    history.append(5, {"loss": 1.0})
    assert history.series("loss") == ([0, 5], [2.0, 1.0])
    assert history.series("spectrum/effective_rank/fc1") == ([0], [8.0])


def test_of_two_values_at_one_step_the_later_counts() -> None:
    history = History(None)
    history.append(4, {"loss": 2.0})
    history.append(4, {"loss": 1.5, "accuracy": 0.5})
    history.append(4, {"accuracy": 0.75})
    assert history.series("loss") == ([4], [1.5])
    assert [measurement.values for measurement in history.measurements] == [{"loss": 1.5}, {"accuracy": 0.75}]


def test_a_run_that_goes_back_replaces_what_it_had_measured_from_there_on() -> None:
    history = History(None)
    for step, loss in [(0, 4.0), (10, 3.0), (20, 2.0), (15, 2.5), (25, 1.0)]:
        history.append(step, {"loss": loss})
    assert history.series("loss") == ([0, 10, 15, 25], [4.0, 3.0, 2.5, 1.0])


def test_keys_come_in_order_of_appearance_and_by_prefix() -> None:
    history = History(None)
    history.append(0, {"symmetry/b": 1.0, "loss": 1.0})
    history.append(1, {"symmetry/a": 1.0})
    assert history.keys() == ["symmetry/b", "loss", "symmetry/a"]
    assert history.keys("symmetry/") == ["symmetry/b", "symmetry/a"]


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(KeyError, match="'accuracy'"):
        History(None).series("accuracy")


def test_the_folder_of_a_run_reads_as_its_file(tmp_path: Path) -> None:
    History(tmp_path / "history.jsonl").append(0, {"loss": 1.0})
    assert read_history(tmp_path).series("loss") == read_history(str(tmp_path / "history.jsonl")).series("loss")


def test_a_missing_file_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"looked for .*history\.jsonl"):
        read_history(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        read_history(tmp_path / "nowhere.jsonl")


def test_a_torn_last_line_is_left_out_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.append(0, {"loss": 2.0})
    whole = path.read_bytes()
    history.append(1, {"loss": 1.0})
    last = path.read_bytes()[len(whole) :]
    for length in range(len(last) - 1):
        path.write_bytes(whole + last[:length])
        assert read_history(path).series("loss") == ([0], [2.0])
    path.write_bytes(whole + last[:-1])  # only its end is missing
    assert read_history(path).series("loss") == ([0, 1], [2.0, 1.0])


@pytest.mark.parametrize(("kept", "expected"), [(20, [0, 9]), (-1, [0, 1, 9])])
def test_a_resumed_run_goes_on_after_a_torn_line(tmp_path: Path, kept: int, expected: list[int]) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.append(0, {"loss": 2.0})
    whole = path.read_bytes()
    history.append(1, {"loss": 1.0})
    path.write_bytes(whole + path.read_bytes()[len(whole) :][:kept])
    History(path).append(9, {"loss": 0.5})
    assert read_history(path).series("loss")[0] == expected
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"step": 1}', '{"step": 1, "time": 0.0, "values": 3}', '{"time": 1}']
)
def test_any_other_bad_line_is_an_error_that_names_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    good = '{"step": 0, "time": 0.0, "values": {"loss": 1.0}}'
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 2") as error:
        read_history(path)
    assert str(path) in str(error.value)


def test_an_event_whose_details_are_not_json_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    with pytest.raises(TypeError):
        history.append_event(0, "error", cause=object())
    assert history.events == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def room_for_400(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_VALUES", 400)


@pytest.mark.usefixtures("room_for_400")
def test_a_long_run_is_thinned_in_memory_and_in_the_file_alike(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.append_event(0, "run", name="long")
    sizes = []
    for step in range(5_000):
        history.append(step, {"loss": 1.0, "symmetry/broken_fraction": 5_000.0 - step})
        sizes.append(sum(len(measurement.values) for measurement in history.measurements) if step % 50 == 0 else 0)
    history.append_event(5_000, "error", where="here")
    assert 200 <= max(sizes) <= 400
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) < 400
    again = read_history(tmp_path)
    assert again.measurements == history.measurements
    assert again.events == history.events
    assert [event.kind for event in again.events] == ["run", "thinned", "error"]
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]


@pytest.mark.usefixtures("room_for_400")
def test_thinning_keeps_first_last_and_every_peak_and_early_training_as_dense_as_late() -> None:
    history = History(None)
    peaks = {117: 9.0, 2_503: math.nan, 4_001: -9.0}
    for step in range(5_000):
        history.append(step, {"loss": peaks.get(step, 0.0), "other": float(step)})
    steps, losses = history.series("loss")
    held = dict(zip(steps, losses, strict=True))
    assert {step: held[step] for step in peaks if step in held} == pytest.approx(peaks, nan_ok=True)
    assert (steps[0], steps[-1]) == (0, 4_999)
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    assert max(gaps[: len(gaps) // 2]) <= 2 * 5_000 / 50  # the share of a series is 100, its stretches 49


@pytest.mark.usefixtures("room_for_400")
def test_a_key_measured_seldom_loses_nothing_to_those_measured_often() -> None:
    history = History(None)
    for step in range(3_000):
        history.append(step, {"often": 1.0} | ({"seldom": float(step)} if step % 100 == 0 else {}))
    assert history.series("seldom")[0] == list(range(0, 3_000, 100))


def test_too_many_events_are_thinned_but_not_what_says_what_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EVENTS", 100)
    history = History(None)
    history.append_event(0, "error", where="first")
    history.append_event(0, "run", name="a")
    for step in range(1_000):
        history.append_event(step, "breaking", group="fc")
    assert len(history.events) <= 100
    assert [event.kind for event in history.events].count("run") == 1


@pytest.mark.usefixtures("room_for_400")
def test_a_file_that_was_left_oversize_is_read_thinned_and_left_as_it_is(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "time": 0.0, "values": {"loss": float(step)}}) for step in range(2_000)]
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")
    steps, losses = read_history(tmp_path).series("loss")
    assert len(steps) <= 400
    assert (losses[0], losses[-1]) == (0.0, 1_999.0)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2_000


@pytest.mark.usefixtures("room_for_400")
def test_where_thinning_cannot_be_written_the_file_stays_whole_and_is_written_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(tmp_path / "history.jsonl")
    for step in range(400):
        history.append(step, {"loss": float(step)})
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            history.append(400, {"loss": 400.0})
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
    assert read_history(tmp_path).series("loss")[0] == list(range(400))
    for step in range(401, 700):
        history.append(step, {"loss": float(step)})
    assert read_history(tmp_path).measurements == history.measurements


def test_twenty_thousand_measurements_of_many_keys_hold_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_VALUES", 20_000)
    history = History(None)
    keys = [f"spectrum/effective_rank/layer_{i}" for i in range(50)]
    tracemalloc.start()
    try:
        for step in range(20_000):
            history.append(step, dict.fromkeys(keys[: 50 if step % 10 == 0 else 2], float(step)))
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 50 * 20_000  # bytes: with 12 a number, and 16 a measurement, far from a float object for each


@given(
    points=st.lists(st.tuples(st.integers(1, 50), st.sampled_from([0.0, 1.0, 2.0, math.nan]) | st.floats(-9, 9))),
    at_most=st.integers(2, 20),
)
def test_decimate_keeps_no_more_than_asked_with_both_ends_and_both_extremes(
    points: list[tuple[int, float]], at_most: int
) -> None:
    steps = [sum(gap for gap, _ in points[: i + 1]) for i in range(len(points))]
    values = [value for _, value in points]
    kept = decimate(steps, values, at_most)
    assert kept == sorted(set(kept))
    assert len(kept) <= at_most or len(kept) == 2
    if values:
        assert {kept[0], kept[-1]} == {0, len(values) - 1}
    if at_most >= 4 and values:
        numbers = [values[i] for i in kept]
        assert any(map(math.isnan, values)) == any(map(math.isnan, numbers))
        finite = [value for value in values if not math.isnan(value)]
        if finite and len(finite) == len(values):
            assert (min(numbers), max(numbers)) == (min(finite), max(finite))


def test_decimate_takes_the_extremes_of_stretches_of_equally_many_steps() -> None:
    steps = [0, 1, 2, 3, 4, 5, 6, 50, 60, 100]  # two stretches: up to 49, and beyond
    values = [0, 3, 1, -2, 5, 1, 0, 2, 7, 0]
    assert decimate(steps, values, at_most=6) == [0, 3, 4, 7, 8, 9]


@pytest.mark.usefixtures("room_for_400")
def test_what_a_resumed_run_measured_survives_thinning_and_reading(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    for start in (0, 300):
        history.append_event(start, "run", name="resumed")
        for step in range(start, start + 600):
            history.append(step, {"loss": float(step)})
    again = read_history(tmp_path)
    assert [event.step for event in again.events if event.kind == "run"] == [0, 300]
    assert again.measurements == history.measurements
    assert again.series("loss")[1][-1] == 899.0
