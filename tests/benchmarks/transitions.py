"""How well transitions are found in real trainings whose transitions are known, and in noise in which there are none.

``python -m tests.benchmarks.transitions [SEED]`` takes a few minutes; without a seed it draws one, and prints it.
Beside it `ruptures` sees each series as a whole, after the fact: PELT with squared error, for each kind of training at
the best of some penalties.
"""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np
import torch

from lightning_symmetry.functional.transitions import Detector, observe
from lightning_symmetry.measurement.transitions import LEAST_RATIO
from tests.reference.transitions import (
    QUIET,
    Run,
    death_by_weight_decay,
    modes_of_linear_networks,
    planted_duplicates,
    planted_early,
    rank_by_weight_decay,
)

Found = list[tuple[int, int]]
"""(measurement, direction) of what was found."""

Find = Callable[[Sequence[float], float], Found]
"""From a series and the smallest change that matters."""

TRUTHS: dict[str, Callable[[int, int], list[Run]]] = {
    "modes, two layers": lambda runs, seed: modes_of_linear_networks(runs, 2, seed),
    "modes, two layers, mini-batches": lambda runs, seed: modes_of_linear_networks(runs, 2, seed, batch=256),
    "modes, three layers, mini-batches": lambda runs, seed: modes_of_linear_networks(runs, 3, seed, batch=256),
    "rank by weight decay": rank_by_weight_decay,
    "death by weight decay": death_by_weight_decay,
    "planted duplicates": planted_duplicates,
    "planted early": planted_early,
}
"""Trainings with known transitions: from how many runs, and a seed."""

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Penalties of PELT, times the variance of the noise and log n."""


@dataclass
class Score:
    """What was found of what is known."""

    known: int = 0
    false: int = 0
    measurements: int = 0
    delays: list[float] = field(default_factory=list)

    @property
    def recall(self) -> float:
        return len(self.delays) / self.known

    @property
    def delay(self) -> float:
        return median(self.delays)

    @property
    def f1(self) -> float:
        return 2 * len(self.delays) / (self.known + len(self.delays) + self.false)


def online(values: Sequence[float], least: float) -> Found:
    """What the detector finds, and at which measurement it says so."""
    detector, found = Detector(), []
    for i, value in enumerate(values):
        detector, shift = observe(detector, i, value, least, least_ratio=LEAST_RATIO)
        if shift is not None:
            found.append((i, 1 if shift.size > 0 else -1))
    return found


def offline(penalty: float) -> Find:
    """What PELT finds in the whole series, where the means of neighbouring segments differ by what matters."""
    import ruptures

    def find(values: Sequence[float], least: float) -> Found:
        series = np.asarray(values)
        noise = max(1.4826 * np.median(np.abs(np.diff(series))) / math.sqrt(2), least / 4)
        pelt = ruptures.Pelt(model="l2", min_size=3, jump=1).fit(series)
        ends = [0, *pelt.predict(pen=penalty * noise**2 * math.log(len(series)))]
        means = [series[start:end].mean() for start, end in pairwise(ends)]
        changes = zip(ends[1:], means, means[1:], strict=False)
        return [(at, 1 if after > before else -1) for at, before, after in changes if abs(after - before) >= least]

    return find


def score(runs: Sequence[Run], find: Find) -> Score:
    """Match what was found to what is known: same direction, and within half of the way to the next transition."""
    total = Score()
    for run in runs:
        found = find(run.values, run.least)
        times = [time for time, _ in run.known]
        for time, direction in run.known:
            reach = min([20.0, *(abs(time - other) / 2 for other in times if other != time)])
            match = next((one for one in found if one[1] == direction and abs(one[0] - time) <= reach), None)
            if match is not None:
                found.remove(match)
                total.delays.append(match[0] - time)
        total.known += len(run.known)
        total.false += sum(not (direction < 0 and at < run.falls_until) for at, direction in found)
        total.measurements += len(run.values)
    return total


def quiet(name: str, find: Find, series: int, length: int = 500, seed: int = 0) -> Score:
    """What is found in noise of standard deviation 1 about 50, in which changes of 0.01 matter: all of it is false."""
    rng = np.random.default_rng(seed)
    return score([Run((50 + QUIET[name](rng, length)).tolist(), [], 0.01) for _ in range(series)], find)


def best_offline(runs: Sequence[Run]) -> Score:
    """The best of `PENALTIES` by F1 score, chosen in the knowledge of the answer."""
    return max((score(runs, offline(penalty)) for penalty in PENALTIES), key=lambda one: one.f1)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    first = int(sys.argv[1]) if len(sys.argv) > 1 else secrets.randbelow(10**6)
    print(f"seed {first}")
    print(f"{'50 trainings each':36}{'known':>6}{'recall':>8}{'delay':>7}{'false':>7}   ruptures: recall  delay  false")
    for seed, (name, train) in enumerate(TRUTHS.items(), start=first):
        runs = train(50, seed)
        ours, theirs = score(runs, online), best_offline(runs)
        print(
            f"{name:36}{ours.known:6}{ours.recall:8.3f}{ours.delay:7.1f}{ours.false:7}"
            f"{theirs.recall:19.3f}{theirs.delay:7.1f}{theirs.false:7}"
        )
    print(f"\n{'quiet':36}{'measurements':>14}{'false':>7}{'per 10,000':>12}   ruptures at its largest penalty")
    total = Score()
    for name in QUIET:
        found = quiet(name, online, series=100, seed=first)
        total.false += found.false
        total.measurements += found.measurements
        theirs = quiet(name, offline(PENALTIES[-1]), series=5)
        print(
            f"{name:36}{found.measurements:14,}{found.false:7}{1e4 * found.false / found.measurements:12.2f}"
            f"{1e4 * theirs.false / theirs.measurements:12.2f}"
        )
    print(f"{'all':36}{total.measurements:14,}{total.false:7}{1e4 * total.false / total.measurements:12.2f}")


if __name__ == "__main__":
    main()
