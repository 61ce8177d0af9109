"""How well transitions are found in real trainings whose transitions are known, and in noise in which there are none.

``python -m tests.benchmarks.transitions [--seed SEED]`` takes three minutes; without a seed it draws and prints one.
What is scored is what production does: `Transitions.observe`, with the settings of `WATCHED`. Beside it `ruptures` sees
each series as a whole, after the fact: PELT with squared error, for each kind at the best of some penalties.
"""

from __future__ import annotations

import argparse
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np
import torch

from lightning_symmetry.functional.transitions import Detector, observe
from lightning_symmetry.measurement.transitions import LEAST_RATIO, WATCHED, Transitions
from tests.reference.transitions import (
    QUIET,
    Run,
    collapsing_features,
    death_by_weight_decay,
    modes_of_linear_networks,
    planted_duplicates,
    planted_early,
    planted_pairs,
    rank_by_weight_decay,
)

Found = list[tuple[int, int]]
"""(measurement, direction) of what was found."""

Find = Callable[[Sequence[float], str], Found]
"""From a series and the indicator as which it is watched."""

TRUTHS: dict[str, Callable[[int, int], list[Run]]] = {
    "modes, two layers": lambda runs, seed: modes_of_linear_networks(runs, 2, seed),
    "modes, two layers, mini-batches": lambda runs, seed: modes_of_linear_networks(runs, 2, seed, batch=256),
    "modes, three layers, mini-batches": lambda runs, seed: modes_of_linear_networks(runs, 3, seed, batch=256),
    "rank by weight decay": rank_by_weight_decay,
    "death by weight decay": death_by_weight_decay,
    "planted duplicates": planted_duplicates,
    "planted early": planted_early,
    "planted pairs": planted_pairs,
    "collapsing features": collapsing_features,
}
"""Trainings with known transitions: from how many runs, and a seed."""

EARLIEST, LATEST = -2, 10
"""Within how many measurements of a transition what is found is taken for it."""

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Penalties of PELT, times the variance of the noise and log n."""


@dataclass
class Score:
    """What was found of what is known; what was found a little before its time has no delay."""

    known: int = 0
    false: int = 0
    measurements: int = 0
    delays: list[float] = field(default_factory=list)

    @property
    def recall(self) -> float:
        return len(self.delays) / self.known

    @property
    def delay(self) -> float:
        return median(max(0.0, delay) for delay in self.delays)

    @property
    def f1(self) -> float:
        return 2 * len(self.delays) / (self.known + len(self.delays) + self.false)

    @property
    def rate(self) -> float:
        """False events in 10,000 measurements."""
        return 1e4 * self.false / self.measurements


def online(values: Sequence[float], indicator: str) -> Found:
    """What production finds, and at which measurement it says so."""
    transitions = Transitions()
    found = [one for i, value in enumerate(values) for one in transitions.observe(i, {f"{indicator}/group": value})]
    return [(one.step, 1 if one.size > 0 else -1) for one in found]


def sensitive(values: Sequence[float], indicator: str = "") -> Found:
    """What the detector would find if the smallest changes mattered: what its statistics alone keep quiet."""
    detector, found = Detector(), []
    for i, value in enumerate(values):
        detector, shift = observe(detector, i, value, least=0.01, least_ratio=LEAST_RATIO)
        if shift is not None:
            found.append((i, 1 if shift.size > 0 else -1))
    return found


def offline(penalty: float) -> Find:
    """What PELT finds in the whole series, where the means of neighbouring segments differ by what matters."""
    import ruptures

    def find(values: Sequence[float], indicator: str) -> Found:
        series, watch = np.asarray(values), WATCHED[indicator]
        level = series.max() if watch.of_largest else np.median(series)
        least = max(watch.least, watch.least_relative * level)
        noise = max(1.4826 * np.median(np.abs(np.diff(series))) / math.sqrt(2), least / 4)
        pelt = ruptures.Pelt(model="l2", min_size=2, jump=1).fit(series)
        ends = [0, *pelt.predict(pen=penalty * noise**2 * math.log(len(series)))]
        means = [series[start:end].mean() for start, end in pairwise(ends)]
        changes = [(at, after - before, before) for at, before, after in zip(ends[1:], means, means[1:], strict=False)]
        return [
            (at, 1 if size > 0 else -1)
            for at, size, before in changes
            if abs(size) >= max(watch.least, watch.least_relative * (level if watch.of_largest else before))
            and (size < 0 or watch.rise)
        ]

    return find


def score(runs: Sequence[Run], find: Find) -> Score:
    """Match what was found to what is known, each once: in order, of the same direction, neither early nor late."""
    total = Score()
    for run in runs:
        found = find(run.values, run.indicator)
        for time, direction in run.known:
            near = (one for one in found if one[1] == direction and EARLIEST <= one[0] - time <= LATEST)
            match = next(near, None)
            if match is not None:
                found.remove(match)
                total.delays.append(match[0] - time)
        total.known += len(run.known)
        total.false += sum(not (direction < 0 and at < run.falls_until) for at, direction in found)
        total.measurements += len(run.values)
    return total


def quiet(name: str, find: Find, series: int, length: int = 500, seed: int = 0, noise: float = 1.0) -> Score:
    """What is found in noise about 50, watched as an effective rank: all of it is false."""
    rng = np.random.default_rng(seed)
    values = [50 + noise * QUIET[name](rng, length) for _ in range(series)]
    return score([Run(one.tolist(), [], "spectrum/effective_rank") for one in values], find)


def best_offline(runs: Sequence[Run]) -> Score:
    """The best of `PENALTIES` by F1 score, chosen in the knowledge of the answer."""
    return max((score(runs, offline(penalty)) for penalty in PENALTIES), key=lambda one: one.f1)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="of a table that was printed; by default a new one is drawn")
    given = parser.parse_args().seed
    first = secrets.randbelow(10**6) if given is None else given
    print(f"seed {first}")
    print(f"{'50 runs each':36}{'known':>6}{'recall':>8}{'delay':>7}{'false':>7}   ruptures: recall  delay  false")
    for seed, (name, train) in enumerate(TRUTHS.items(), start=first):
        runs = train(50, seed)
        ours, theirs = score(runs, online), best_offline(runs)
        print(
            f"{name:36}{ours.known:6}{ours.recall:8.3f}{ours.delay:7.1f}{ours.false:7}"
            f"{theirs.recall:19.3f}{theirs.delay:7.1f}{theirs.false:7}"
        )
    print(
        "\nfalse in 10,000 quiet measurements: noise of 2 and 10 % as production watches it, noise of which all matters"
    )
    print(f"{'quiet':36}{'measurements':>14}{'2 %':>8}{'10 %':>8}{'all':>8}   ruptures at its largest penalty")
    totals = [Score(), Score(), Score()]
    for name in QUIET:
        found = [
            quiet(name, find, series=100, seed=first, noise=noise)
            for find, noise in ((online, 1.0), (online, 5.0), (sensitive, 1.0))
        ]
        for total, one in zip(totals, found, strict=True):
            total.false += one.false
            total.measurements += one.measurements
        theirs = quiet(name, offline(PENALTIES[-1]), series=5)
        print(
            f"{name:36}{found[0].measurements:14,}"
            + "".join(f"{one.rate:8.2f}" for one in found)
            + f"{theirs.rate:12.2f}"
        )
    print(f"{'all':36}{totals[0].measurements:14,}" + "".join(f"{one.rate:8.2f}" for one in totals))


if __name__ == "__main__":
    main()
