"""The one format a run leaves: `history.jsonl`, one JSON object per line, added to as the run goes on.

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

**Bounded.** However long the run, there are at most `MOST_VALUES` numbers, in memory and in the file (some 30 MB).
Where there are more, every series is thinned to half of its share by `decimate`, which keeps its first and last number
and the lowest and highest of each stretch: early training stays as dense as late, and no peak is lost. An event
`"thinned"` says so. The file is written anew beside the old one and put in its place, so that it is whole at any time.
"""

from __future__ import annotations

import json
import math
import os
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_symmetry.decimation import decimate

FILE_NAME = "history.jsonl"
"""Name of the file in a run's folder."""

MOST_VALUES = 400_000
"""Most numbers that a history holds: 12 bytes each in memory, some 70 in the file."""

MOST_EVENTS = 10_000
"""Most events that a history holds; of more, every second of those that are neither `"run"` nor `"symmetries"` goes."""


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
    """Measurements and events of one run, in memory and, where a path is given, in a file.

    A file that exists is read first, so a resumed run goes on where it stopped. Nothing is created before the first
    append. In long runs older measurements are thinned, in memory and in the file alike.

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
        self.events: list[Event] = []
        self._unterminated: tuple[int, bytes] | None = None
        self._forget()
        self._thin_beyond = MOST_VALUES
        if path is not None and path.exists():
            self._read(path)

    @property
    def measurements(self) -> list[Measurement]:
        """The measurements in the order in which they were taken, without the numbers that later ones replaced."""
        values: list[dict[str, float]] = [{} for _ in self._steps]
        for key, (rows, numbers) in self._series.items():
            for row, number in zip(rows, numbers, strict=True):
                values[row][key] = number
        rows_of_all = zip(self._steps, self._times, values, strict=True)
        return [Measurement(step, seconds, held) for step, seconds, held in rows_of_all if held]

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
        self._write(measurement)

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
        self._write(event)

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
        rows, values = self._series[key]
        return [self._steps[row] for row in rows], values.tolist()

    def _forget(self) -> None:
        """Hold no measurement."""
        self._steps: array[int] = array("q")
        self._times: array[float] = array("d")
        self._series: dict[str, tuple[array[int], array[float]]] = {}  # by key: which measurements hold it, its values
        self._size = 0

    def _remember(self, measurement: Measurement) -> None:
        row = len(self._steps)
        self._steps.append(measurement.step)
        self._times.append(measurement.time)
        for key, value in measurement.values.items():
            if key not in self._series:
                self._series[key] = array("I"), array("d")
            rows, values = self._series[key]
            while rows and self._steps[rows[-1]] >= measurement.step:
                rows.pop()
                values.pop()
                self._size -= 1
            rows.append(row)
            values.append(value)
            self._size += 1

    def _remember_event(self, event: Event) -> None:
        if event.kind == "run":
            self._go_back(event.step)
        self.events.append(event)

    def _go_back(self, step: int) -> None:
        """Forget what is of later steps."""
        self.events = [event for event in self.events if event.step <= step]
        if any(later > step for later in self._steps):
            kept = [measurement for measurement in self.measurements if measurement.step <= step]
            self._forget()
            for measurement in kept:
                self._remember(measurement)

    def _thin(self) -> bool:
        """Halve what has become too much, and say whether anything was."""
        too_many_events = len(self.events) > MOST_EVENTS
        if too_many_events:
            self.events = [
                event
                for number, event in enumerate(self.events)
                if number % 2 == 0 or event.kind in ("run", "symmetries")
            ]
        if self._size <= self._thin_beyond:
            return too_many_events
        share = MOST_VALUES // (2 * len(self._series))
        for key, (rows, values) in self._series.items():
            kept = decimate([self._steps[row] for row in rows], values, share)
            self._series[key] = array("I", [rows[i] for i in kept]), array("d", [values[i] for i in kept])
        measurements = self.measurements
        self._forget()
        for measurement in measurements:
            self._remember(measurement)
        self._thin_beyond = max(MOST_VALUES, 2 * self._size)  # the latter with so many keys that two each are too many
        self.events = [event for event in self.events if event.kind != "thinned"]
        self.events.append(Event(measurements[-1].step, time.time(), "thinned", {"numbers_per_series": share}))
        return True

    def _write(self, entry: Measurement | Event) -> None:
        """Append a line, or write the file anew where there has become too much of it."""
        if self._thin():
            self._write_anew()
        elif self.path is not None:
            self._append(_line(entry))

    def _append(self, line: bytes) -> None:
        assert self.path is not None
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

    def _write_anew(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                file.writelines(map(_line, self.events))  # first, so that none of a run begun takes measurements back
                file.writelines(map(_line, self.measurements))
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self.path)
        finally:
            unfinished.unlink(missing_ok=True)
        self._unterminated = None

    def _read(self, path: Path) -> None:
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, start=1):
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
                self._thin()
                if not terminated:
                    self._unterminated = (start, line + b"\n")
                start += len(line)


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


def _line(entry: Measurement | Event) -> bytes:
    record: dict[str, Any] = {"step": entry.step, "time": entry.time}
    if isinstance(entry, Event):
        record["event"] = {"kind": entry.kind, **entry.details}
    else:
        record["values"] = {key: value if math.isfinite(value) else None for key, value in entry.values.items()}
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _null_for_nonfinite(value: Any) -> Any:
    """Replace NaN and infinity, at any depth, by `None`: strict JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _null_for_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null_for_nonfinite(item) for item in value]
    return value
