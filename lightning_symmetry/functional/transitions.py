r"""When an indicator leaves the path it was on: one series of measurements in, shifts out, one at a time.

An indicator x_1, x_2, ... is taken for a local line plus noise, x_t = l_t + r_t, with a level and a trend that may
drift. A shift is a departure from that line that lasts, is larger than the noise explains, and matters:

- **Line.** Discounted least squares with memory M measurements (delta = 1 - 1/M; Brown 1963): the level moves by
  1 - delta^2, the trend by (1 - delta)^2 of each residual, residuals cut off at twice the scale so that neither an
  outlier nor the shift itself moves the line (Gelper, Fried, Croux 2010, robust Holt-Winters smoothing).
- **Scale.** The root mean square of the residuals, each cut off at 2.5 times the scale, exponentially weighted and made
  consistent for normal noise. At first little is known of it, so it counts 1 + 8 / n fold after n measurements.
- **Test.** Two one-sided cumulative sums (Page 1954) of the standardised residuals z, cut off at four:
  S <- max(0, S + z - 1), alarm at S > 8. No single measurement can raise an alarm, whatever the tails of the noise;
  a jump raises it at the third measurement. Where the noise is below a quarter of `least`, the smallest change that
  matters, that quarter stands for the scale: series without noise, counts and exact ranks are no special case.
- **Guards.** An excursion is the time since S was last 0. Its departure is the median of the last three values less
  the line as it was when the excursion began. An alarm is a shift if the departure is at least `least`, 5 times the
  scale at the beginning, or 2.5 sqrt(n) times after an excursion of n measurements (so far a random walk gets), 3 times
  the scale now and 3 times the largest departure that came to nothing (autocorrelated noise and random walks depart
  often, and teach their own threshold); if the value itself moved as far in that direction (a fall that slows down is
  no rise); and if the last three values agree (a burst of noise does not).

After a shift the detector waits until the series has calmed, at most 32 measurements, learns its line anew from the
last eight and is armed again; so it begins, too, which leaves out the first, fast relaxation of a training. Where three
values lie still, as counts do, it is armed at once. Meanwhile two changes are told that need no scale, from the first
three values or from where the last shift led: a clean step, after which three values lie still; and, of an indicator
whose zero means something, three values in a row that are off by a large ratio. Of a shift that goes on in its
direction no more is told. Time is counted in measurements: a change of the interval between them bends the line, and no
more.

Everything known is in a `Detector`, of constant size and made of plain numbers: it survives in a checkpoint.

Sources: Page, "Continuous inspection schemes", Biometrika 41 (1954); Brown, "Smoothing, forecasting and prediction"
(1963); Gelper, Fried, Croux, "Robust forecasting with exponential and Holt-Winters smoothing", Journal of Forecasting
29 (2010).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import median
from types import NoneType
from typing import Any

WINDOW = 8
"""From how many measurements a line is learnt."""

LONGEST_WAIT = 32
"""After how many measurements the detector is armed even though the series has not calmed: what still moves drifts."""

MEMORY = 20
"""M, how many measurements the line remembers."""

SCALE_GAIN = 0.03
"""The weight of the newest residual in the scale, once 1 / n is less."""

ALARM = 8.0
"""The height at which a cumulative sum raises an alarm."""

FORGETTING = 0.999
"""By what the largest departure that came to nothing shrinks at each measurement."""

_LEVEL_GAIN, _TREND_GAIN = 1 - (1 - 1 / MEMORY) ** 2, (1 / MEMORY) ** 2
_CUT = 2.5
_MEAN_OF_CUT_SQUARES = 0.9775  # E[min(z^2, _CUT^2)] of a standard normal z
_MAD_TO_SIGMA = 1.4826
_RESOLUTION = 1e-9  # relative; below it a difference is rounding


@dataclass(frozen=True)
class Shift:
    """A change of an indicator that lasted, was larger than its noise, and mattered.

    Attributes:
        step: The step of the measurement at which it was certain.
        since: The step of the measurement at which it began.
        before: The level before.
        after: The median of the last three measurements; a slow shift may go on from there.
        confidence: In [0, 1]: 1 - 1 / (1 + q^2), q the change over the scale of the noise. By Cantelli's inequality
            noise of that scale, whatever its distribution, reaches so far with at most probability 1 / (1 + q^2).
    """

    step: int
    since: int
    before: float
    after: float
    confidence: float

    @property
    def size(self) -> float:
        """How much the indicator changed: above 0 for a rise, below for a fall."""
        return self.after - self.before


@dataclass(frozen=True)
class Excursion:
    """One of the two cumulative sums, and how things were when it was last 0.

    Attributes:
        height: The sum S.
        length: How many measurements it has been above 0.
        since: The step of the first of them.
        level: The level before them.
        slope: The trend before them, per measurement.
        scale: The scale before them.
        reach: The largest departure so far.
    """

    height: float = 0.0
    length: int = 0
    since: int = 0
    level: float = 0.0
    slope: float = 0.0
    scale: float = 0.0
    reach: float = 0.0


@dataclass(frozen=True)
class Detector:
    """What is known of one series: of constant size, changed by `observe` alone.

    Attributes:
        recent: The last measurements: up to eight while a line is learnt, else three.
        waited: For how many measurements a line has been learnt; None when there is one.
        start: The first three values since then, or three times the level to which the last shift led.
        told: The sign of the last shift, while a line is learnt; else 0.
        beyond: How many values in a row are as far from the start as matters: above 0 where they are above it.
        since: The step of the first of them.
        seen: How many residuals the scale has seen.
        level: The level of the line at the last measurement.
        slope: Its trend, per measurement.
        scale: The scale of the noise.
        futile: The largest departure that came to nothing, shrinking.
        rise: The cumulative sum of what lies above the line.
        fall: The cumulative sum of what lies below.
    """

    recent: tuple[float, ...] = ()
    waited: int | None = 0
    start: tuple[float, ...] = ()
    told: int = 0
    beyond: int = 0
    since: int = 0
    seen: int = 0
    level: float = 0.0
    slope: float = 0.0
    scale: float = 0.0
    futile: float = 0.0
    rise: Excursion = field(default_factory=Excursion)
    fall: Excursion = field(default_factory=Excursion)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Detector:
        """The detector that `dataclasses.asdict` made a dictionary of; JSON may lie between.

        Raises:
            KeyError: Something is missing.
            TypeError: Something is unknown, or no number.

        Example:
            >>> import dataclasses, json
            >>> detector, _ = observe(Detector(), step=0, value=1.0)
            >>> Detector.from_dict(json.loads(json.dumps(dataclasses.asdict(detector)))) == detector
            True
        """
        numbers = {key: value for key, value in state.items() if key not in ("recent", "start", "rise", "fall")}
        lists = (*state["recent"], *state["start"])
        for value in (*numbers.values(), *lists, *state["rise"].values(), *state["fall"].values()):
            if not isinstance(value, (int, float, NoneType)):
                raise TypeError(f"{value!r} is no number")
        rise, fall = Excursion(**state["rise"]), Excursion(**state["fall"])
        return cls(**numbers, recent=tuple(state["recent"]), start=tuple(state["start"]), rise=rise, fall=fall)


def observe(
    detector: Detector,
    step: int,
    value: float,
    least: float = 0.0,
    least_relative: float = 0.0,
    least_ratio: float = math.inf,
) -> tuple[Detector, Shift | None]:
    """Take in one measurement.

    Args:
        detector: What is known so far; `Detector()` at first.
        step: The step of the measurement, for the shift to tell.
        value: What was measured; NaN and infinity leave the detector as it is.
        least: The smallest change that matters, in the units of the value.
        least_relative: The same, relative to the level; the larger of the two counts.
        least_ratio: The smallest ratio of two levels, above 1, that is told while a line is learnt; for an indicator
            that is never below 0.

    Returns:
        What is known now, and the shift of which this measurement made certain, if any.

    Example:
        >>> detector, shifts = Detector(), []
        >>> for step, rank in enumerate([1.0] * 20 + [2.0] * 10):
        ...     detector, shift = observe(detector, step, rank, least=0.25)
        ...     shifts += [shift] if shift else []
        >>> shifts
        [Shift(step=22, since=20, before=1.0, after=2.0, confidence=1.0)]
    """
    if not math.isfinite(value):
        return detector, None
    if detector.waited is not None:
        at_start = max(least, least_relative * abs(median(detector.start or (value,))))
        detector = _compared(detector, step, value, at_start)
        shift = _early_shift(detector, step, value, at_start, least_ratio)
        now = max(least, least_relative * abs(value))
        if shift is None:
            return _learn(detector, value, now), None
        recent = (*detector.recent[-2:], value)
        return _after(shift, recent, detector.seen, detector.scale, detector.futile, now), shift
    least = max(least, least_relative * abs(detector.level))
    floor = max(least / 4, _RESOLUTION * abs(detector.level))
    line = detector.level + detector.slope
    residual = value - line
    doubt = 1 + WINDOW / detector.seen
    scale = max(detector.scale * doubt, floor)
    recent = (*detector.recent, value)[-3:]
    futile = detector.futile * FORGETTING
    sides = []
    for excursion, sign in ((detector.rise, 1), (detector.fall, -1)):
        if excursion.height == 0:
            futile = max(futile, excursion.reach)
            excursion = Excursion(since=step, level=detector.level, slope=detector.slope, scale=detector.scale)
        excursion = _extended(excursion, sign * residual / scale if scale else 0.0, sign * median(recent), sign)
        if excursion.height > ALARM and _is_shift(excursion, sign, recent, least, detector.scale, doubt, futile):
            shift = _shift(excursion, step, median(recent))
            return _after(shift, recent, detector.seen, excursion.scale, futile, least), shift
        sides.append(excursion)
    pull = math.copysign(min(abs(residual), 2 * scale), residual)
    gain = max(SCALE_GAIN, 1 / (detector.seen + 1))
    square = min(abs(residual), _CUT * max(detector.scale, floor)) ** 2 / _MEAN_OF_CUT_SQUARES
    return (
        Detector(
            recent=recent,
            waited=None,
            seen=detector.seen + 1,
            level=line + _LEVEL_GAIN * pull,
            slope=detector.slope + _TREND_GAIN * pull,
            scale=math.sqrt((1 - gain) * detector.scale**2 + gain * square),
            futile=futile,
            rise=sides[0],
            fall=sides[1],
        ),
        None,
    )


def _after(shift: Shift, recent: tuple[float, ...], seen: int, scale: float, futile: float, least: float) -> Detector:
    """A line is learnt anew: at once where the series lies still already."""
    told = 1 if shift.size > 0 else -1
    start = (shift.after,) * 3
    detector = Detector(recent, waited=0, start=start, told=told, seen=seen, scale=scale, futile=futile)
    if _still(recent, least):
        return _armed(detector, recent, 0.0, least)
    return _compared(detector, shift.step, recent[-1], least)


def _still(window: tuple[float, ...], least: float) -> bool:
    """Whether the last three values are so close that at their pace nothing would matter within the longest wait."""
    last = window[-3:]
    reach = max(2 * least / LONGEST_WAIT, _RESOLUTION * abs(last[-1]))
    return len(last) == 3 and max(last) - min(last) <= reach and _jitter(window) <= reach / 2


def _jitter(window: tuple[float, ...]) -> float:
    """The scale of the noise by how a window bends: blind to slow motion."""
    bends = [abs(a - 2 * b + c) for a, b, c in zip(window, window[1:], window[2:], strict=False)]
    return _MAD_TO_SIGMA * median(bends) / math.sqrt(6)


def _compared(detector: Detector, step: int, value: float, least: float) -> Detector:
    """Count how many values in a row are on the same side of the start, and as far from it as matters."""
    start = detector.start if len(detector.start) == 3 else (*detector.start, value)
    if len(start) < 3:
        return replace(detector, start=start)
    size = value - median(start)
    side = (size > 0) - (size < 0) if abs(size) >= least else 0
    if side == 0:
        return replace(detector, start=start, beyond=0)
    if side * detector.beyond > 0:
        return replace(detector, beyond=detector.beyond + side)
    return replace(detector, start=start, beyond=side, since=step)


def _early_shift(detector: Detector, step: int, value: float, least: float, least_ratio: float) -> Shift | None:
    """While a line is learnt: a clean step to where the series lies still, or three values off by a large ratio."""
    recent = (*detector.recent[-2:], value)
    if abs(detector.beyond) < 3:
        return None
    before, after = median(detector.start), median(recent)
    spread = max(max(values) - min(values) for values in (_first_two_alike(detector.start), recent)) / 2
    side = 1 if detector.beyond > 0 else -1
    clean = abs(detector.beyond) == 3 and _still(recent, least) and spread <= abs(after - before) / 8
    if len(detector.recent) >= 3:  # no slide that comes to rest
        clean = clean and abs(detector.recent[-3] - before) <= abs(after - before) / 4
    ratio = least_ratio < math.inf and side != detector.told
    ratio = ratio and all(max(x, before) >= least_ratio * min(x, before) for x in recent)
    if not (clean or ratio):
        return None
    size = after - before
    return Shift(step, detector.since, before, after, confidence=size**2 / (size**2 + spread**2))


def _first_two_alike(start: tuple[float, ...]) -> tuple[float, ...]:
    """The two of three values that are closest: the third may belong to what came after."""
    low, middle, high = sorted(start)
    return (low, middle) if middle - low <= high - middle else (middle, high)


def _extended(excursion: Excursion, z: float, value: float, sign: int) -> Excursion:
    """Add one standardised residual; residual and value are given with the sign of the side."""
    height = max(0.0, excursion.height + max(-4.0, min(4.0, z)) - 1)
    if height == 0:
        return replace(excursion, height=0.0, length=0)
    departure = value - sign * (excursion.level + excursion.slope * excursion.length)
    return replace(excursion, height=height, length=excursion.length + 1, reach=max(excursion.reach, departure))


def _is_shift(
    excursion: Excursion, sign: int, recent: tuple[float, ...], least: float, scale: float, doubt: float, futile: float
) -> bool:
    moves = [sign * (value - excursion.level) for value in recent]
    departure = median(moves) - sign * excursion.slope * (excursion.length - 1)
    enough = max(least, max(5.0, 2.5 * math.sqrt(excursion.length)) * excursion.scale * doubt, 3 * scale)
    agree = min(moves) > max(moves) / 4
    return agree and min(departure, median(moves)) >= enough and departure >= 3 * futile


def _shift(excursion: Excursion, step: int, after: float) -> Shift:
    size = after - excursion.level
    confidence = size**2 / (size**2 + excursion.scale**2)
    return Shift(step, excursion.since, excursion.level, after, confidence)


def _learn(detector: Detector, value: float, least: float) -> Detector:
    """Wait for a window in which the series moves no more than noise or less than matters, and take its line."""
    window = (*detector.recent, value)[-WINDOW:]
    waited = (detector.waited or 0) + 1
    undecided = 0 < abs(detector.beyond) < 3
    if _still(window, least) and not undecided:
        return _armed(detector, window[-3:], 0.0, least)
    if len(window) < WINDOW or undecided:
        return replace(detector, recent=window, waited=waited)
    slope = median((y - x) / (j - i) for (i, x), (j, y) in combinations(enumerate(window), 2))
    if waited < LONGEST_WAIT and abs(slope) * (WINDOW - 1) > max(least / 2, 3 * _jitter(window)):
        return replace(detector, recent=window, waited=waited)
    return _armed(detector, window, slope, least)


def _armed(detector: Detector, window: tuple[float, ...], slope: float, least: float) -> Detector:
    """The detector with the line of a window, and its scale where none is known."""
    scale = detector.scale
    if not detector.seen:  # twice, since few values show less of a slow noise than there is
        middle = median(window)
        scale = 2 * _MAD_TO_SIGMA * median(abs(y - middle) for y in window)
    # a slope that noise may have made is no trend
    span = len(window) - 1
    rise = math.copysign(max(0.0, abs(slope) * span - 2 * max(scale, least / 4)), slope)
    slope = rise / span
    return Detector(
        recent=window[-3:],
        waited=None,
        seen=max(detector.seen, WINDOW),
        level=median(y - slope * i for i, y in enumerate(window)) + rise,
        slope=slope,
        scale=scale,
        futile=detector.futile,
    )
