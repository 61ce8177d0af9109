"""The one format a run leaves: `history.jsonl`, append-only, one JSON object per line.

A **measurement** holds numbers taken at one step, an **event** something that happened at one step:

```
{"step": 100, "time": 1767225600.0, "values": {"loss": 0.7, "symmetry/broken_fraction": 1.0}}
{"step": 100, "time": 1767225600.1, "event": {"kind": "nonfinite", "parameter": "fc1.weight"}}
```

A run that resumes from an earlier checkpoint goes back: an event of kind `"run"` says at which step a run begins or
goes on, and what had been written of later steps is read no more.

`step` counts optimizer steps, `time` is seconds since the Unix epoch. The lines are strict JSON, which knows neither
NaN nor infinity: both are written as `null`, and a value of `null` reads as NaN. Each append writes one whole line, so
a run that is killed loses at most the line that it was writing; a last line that was torn so is left out on reading
and cleared away by the next append.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "history.jsonl"
"""Name of the file in a run's folder."""


@dataclass(frozen=True)
class Measurement:
    """Numbers taken at one step.

    Attributes:
        step: Optimizer steps done.
        time: When it was written, in seconds since the Unix epoch.
        values: Key to value, e.g. `{"symmetry/broken_fraction": 1.0}`; finite, or NaN.
    """

    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Event:
    """Something that happened at one step.

    Attributes:
        step: Optimizer steps done.
        time: When it was written, in seconds since the Unix epoch.
        kind: What happened: `"run"` (started), `"symmetries"` (found), `"nonfinite"`, `"error"`, ...
        details: What is told about it, as plain JSON values.
    """

    step: int
    time: float
    kind: str
    details: Mapping[str, Any]


class History:
    """Measurements and events of one run, in memory and, where a path is given, in a file that only grows.

    A file that exists is read first, so a resumed run goes on where it stopped. Nothing is created before the first
    append.

    Args:
        path: The file to keep; `None` keeps the history in memory only, where nothing may be written.

    Raises:
        ValueError: If the file exists and a line of it, other than a torn last one, is not of this format.

    Example:
        >>> history = History(None)
        >>> history.append(0, {"loss": 2.3, "symmetry/broken_fraction/fc1": 1.0})
        >>> history.append(100, {"loss": 0.7, "symmetry/broken_fraction/fc1": 0.9})
        >>> history.append_event(100, "nonfinite", parameter="fc2.weight")
        >>> history.series("loss")
        ([0, 100], [2.3, 0.7])
        >>> history.keys("symmetry/")
        ['symmetry/broken_fraction/fc1']
        >>> history.events[0].details
        {'parameter': 'fc2.weight'}
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.measurements: list[Measurement] = []
        self.events: list[Event] = []
        self._series: dict[str, tuple[list[int], list[float]]] = {}
        self._unterminated: tuple[int, bytes] | None = None
        if path is not None and path.exists():
            self._read(path)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add a measurement.

        Args:
            step: Optimizer steps done.
            values: Key to value; NaN and infinite values are kept as NaN.

        Raises:
            OSError: If the file cannot be written.
        """
        finite = {key: float(value) if math.isfinite(value) else math.nan for key, value in values.items()}
        measurement = Measurement(int(step), time.time(), finite)
        self._remember(measurement)
        self._write({"step": measurement.step, "time": measurement.time, "values": finite})

    def append_event(self, step: int, kind: str, **details: Any) -> None:
        """Add an event.

        Args:
            step: Optimizer steps done.
            kind: What happened, in one word; ``"run"`` takes back what was added of later steps.
            **details: What is told about it: JSON values (NaN and infinite numbers are kept as `None`).

        Raises:
            OSError: If the file cannot be written.
            TypeError: If a detail is not a JSON value.
        """
        details = json.loads(json.dumps(_null_for_nonfinite(details), allow_nan=False))
        event = Event(int(step), time.time(), kind, details)
        self._remember_event(event)
        self._write({"step": event.step, "time": event.time, "event": {"kind": kind, **details}})

    def __contains__(self, key: str) -> bool:
        return key in self._series

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, in the order in which they first appeared."""
        return [key for key in self._series if key.startswith(prefix)]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return one key over the run.

        Steps increase strictly. Where a run went back, as one does that resumes from an earlier checkpoint, what was
        measured later replaces what had been measured from that step on.

        Args:
            key: A key of `keys()`.

        Returns:
            The steps whose measurements hold the key, and its values there.

        Raises:
            KeyError: If no measurement holds the key.
        """
        if key not in self._series:
            raise KeyError(f"no measurement holds {key!r}; the history has {len(self._series)} keys, see keys()")
        steps, values = self._series[key]
        return list(steps), list(values)

    def _remember(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)
        for key, value in measurement.values.items():
            steps, values = self._series.setdefault(key, ([], []))
            while steps and steps[-1] >= measurement.step:
                steps.pop()
                values.pop()
            steps.append(measurement.step)
            values.append(value)

    def _remember_event(self, event: Event) -> None:
        if event.kind == "run":
            self._go_back(event.step)
        self.events.append(event)

    def _go_back(self, step: int) -> None:
        """Forget what is of later steps."""
        self.events = [event for event in self.events if event.step <= step]
        if any(measurement.step > step for measurement in self.measurements):
            kept = [measurement for measurement in self.measurements if measurement.step <= step]
            self.measurements, self._series = [], {}
            for measurement in kept:
                self._remember(measurement)

    def _write(self, record: dict[str, Any]) -> None:
        if self.path is None:
            return
        line = json.dumps(_null_for_nonfinite(record), allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._unterminated is not None:
            whole_lines, readable_rest = self._unterminated
            os.truncate(self.path, whole_lines)
            line = readable_rest + line
            self._unterminated = None
        with self.path.open("ab", buffering=0) as file:
            whole_lines = file.tell()
            if file.write(line) != len(line):  # as on a full disk
                self._unterminated = (whole_lines, b"")
                raise OSError(f"{self.path}: only a part of a line could be written; is the disk full?")

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        for number, start, line in _lines(data):
            terminated = line.endswith(b"\n")
            try:
                entry = _parse(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if not terminated:
                    self._unterminated = (start, b"")
                    return
                raise ValueError(
                    f"{path}, line {number} is not a line of a symmetry history ({type(error).__name__}: {error}): "
                    f"{line[:80]!r}. Expected one JSON object with 'step', 'time' and either 'values' or 'event'; "
                    "remove the line to read the rest."
                ) from error
            if isinstance(entry, Event):
                self._remember_event(entry)
            elif entry is not None:
                self._remember(entry)
            if not terminated:
                self._unterminated = (start, line + b"\n")


def read_history(path: Path | str) -> History:
    """Read back what a run left.

    Args:
        path: The `history.jsonl` of a run, or the folder that holds it.

    Returns:
        The history; what is appended to it goes to the same file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line, other than a torn last one, is not of this format.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     History(Path(folder) / "history.jsonl").append(0, {"loss": 2.3})
        ...     read_history(folder).series("loss")
        ([0], [2.3])
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    if not file.is_file():
        raise FileNotFoundError(
            f"no history at path={str(path)!r}: looked for {file}. Give the {FILE_NAME} of a run or the folder that "
            "holds it; the path is printed when a run ends."
        )
    return History(file)


def _lines(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, offset in bytes, the line with its end)."""
    start = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        end = start + len(line) + 1
        if line:
            yield number, start, data[start:end]
        start = end


def _parse(line: bytes) -> Measurement | Event | None:
    """Read one line; a blank one is nothing."""
    if not line.strip():
        return None
    record = json.loads(line)
    step, seconds = int(record["step"]), float(record["time"])
    if "event" in record:
        details = dict(record["event"])
        return Event(step, seconds, str(details.pop("kind")), details)
    values = {key: math.nan if value is None else float(value) for key, value in record["values"].items()}
    return Measurement(step, seconds, values)


def _null_for_nonfinite(value: Any) -> Any:
    """Replace NaN and infinity, at any depth, by `None`: strict JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _null_for_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null_for_nonfinite(item) for item in value]
    return value
