from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    history.append(4, {"loss": 1.5})
    assert history.series("loss") == ([4], [1.5])
    assert len(history.measurements) == 2


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
