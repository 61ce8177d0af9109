"""Real trainings whose transitions are known beforehand, and noise in which nothing happens.

Every training is full-batch or mini-batch gradient descent in float64, many runs side by side, and is measured by the
package's own indicators. The times of the transitions come from theory or are set by hand, never from the series.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import quad, solve_ivp
from torch import Tensor

from lightning_symmetry.functional.continuous import alive_units, product_rank
from lightning_symmetry.functional.feature_spectrum import feature_indicators, moments
from lightning_symmetry.functional.order_parameters import distinct_units
from lightning_symmetry.functional.spectrum import effective_rank

Generator = np.random.Generator


@dataclass(frozen=True)
class Run:
    """One series of measurements, and what happened in it.

    Attributes:
        values: The series.
        known: (measurement, direction) of every transition: direction 1 is a rise, -1 a fall.
        indicator: As what production watches the series.
        falls_until: Until which measurement falls are no transition but how the training begins.
    """

    values: list[float]
    known: list[tuple[float, int]]
    indicator: str
    falls_until: float = 0.0


def time_to_half(strength: float, start: float, depth: int) -> float:
    """When a mode of a linear network reaches half its strength under gradient flow from balanced layers.

    du/dt = L u^(2 - 2/L) (s - u) for the mode u of the product of L layers (Saxe, McClelland, Ganguli,
    arXiv:1312.6120); for L = 2 the integral is ln((s - u0) / u0) / (2 s).
    """

    def per_log(log_u: float) -> float:
        u = math.exp(log_u)
        return u / (depth * u ** (2 - 2 / depth) * (strength - u))

    return quad(per_log, math.log(start), math.log(strength / 2), limit=200)[0]


def rank_rises(strengths: NDArray[np.float64], start: float, depth: int, until: float) -> list[float]:
    """When the effective rank of all modes together is halfway from that of the first k to that of the first k + 1.

    By the same law. The entropy counts a mode long before it has half its strength, so this is earlier than that.
    """

    def growth(_: float, logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return depth * np.exp((1 - 2 / depth) * logs) * (strengths - np.exp(logs))

    def rank(u: NDArray[np.float64]) -> float:
        share = u / u.sum()
        return float(np.exp(-(share * np.log(share)).sum()))

    times = np.linspace(0, 1.4 * until, 4000)
    logs = solve_ivp(growth, (0, times[-1]), np.full(len(strengths), math.log(start)), t_eval=times, rtol=1e-8).y
    ranks = np.array([rank(u) for u in np.exp(logs.T)])
    settled = [rank(strengths[:k]) for k in range(1, len(strengths) + 1)]
    begun = int(np.argmin(ranks))
    return [float(times[begun + np.argmax(ranks[begun:] >= (low + high) / 2)]) for low, high in pairwise(settled)]


def modes_of_linear_networks(
    runs: int, depth: int, seed: int, batch: int | None = None, modes: int = 4, dim: int = 6
) -> list[Run]:
    """Linear networks that learn `modes` separated modes one by one: the effective rank of their function jumps.

    From small balanced layers all modes are alike at first, the strongest outgrows the others (a fall of the rank to
    one), and each other one adds to the rank when it reaches its strength.

    Args:
        runs: How many.
        depth: Layers.
        seed: Of what differs between runs: singular vectors, strengths, size of the start, mini-batches.
        batch: The effective rank is that of the features of so many random inputs; None takes the map itself.
        modes: Modes of the target; `modes - 1` jumps follow the first fall.
        dim: Inputs and outputs.
    """
    rng = np.random.default_rng(seed)
    strengths = 4.0 * 0.6 ** np.arange(modes) * rng.uniform(0.95, 1.05, (runs, modes))
    start = {2: 1e-10, 3: 2e-5}[depth] * rng.uniform(0.5, 2.0, runs)
    interval = {2: 0.15, 3: 0.4}[depth]
    left, right, *between = (_rotations(rng, runs, dim) for _ in range(depth + 1))
    target = torch.from_numpy((left[:, :, :modes] * strengths[:, None]) @ right[:, :, :modes].transpose(0, 2, 1))
    bases = [right, *between, left]
    size = (start ** (1 / depth))[:, None, None]
    layers = [torch.from_numpy(size * bases[i + 1] @ bases[i].transpose(0, 2, 1)) for i in range(depth)]
    halves = [[time_to_half(s, u, depth) for s in row] for row, u in zip(strengths, start, strict=True)]
    rises = [rank_rises(row, u, depth, max(half)) for row, u, half in zip(strengths, start, halves, strict=True)]
    rate = 0.01
    every = round(interval / rate)
    series: list[list[float]] = [[] for _ in range(runs)]
    for step in range(round(1.4 * np.max(halves) / rate)):
        if step % every == 0:
            product = _chain(layers)
            for i in range(runs):
                features = product[i]
                if batch is not None:
                    features = features @ torch.from_numpy(rng.standard_normal((dim, batch)))
                series[i].append(float(effective_rank(features)))
        layers = _descend(layers, target, rate)
    return [
        Run(values, [(t / interval, 1) for t in rise], "spectrum/effective_rank", falls_until=half[0] / interval)
        for values, rise, half in zip(series, rises, halves, strict=True)
    ]


def _chain(layers: list[Tensor]) -> Tensor:
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product
    return product


def _descend(layers: list[Tensor], target: Tensor, rate: float) -> list[Tensor]:
    """One step of gradient descent on |W_L ... W_1 - Y|^2 / 2."""
    error = _chain(layers) - target
    stepped = []
    for i, layer in enumerate(layers):
        gradient = error
        if i + 1 < len(layers):
            gradient = _chain(layers[i + 1 :]).mT @ gradient
        if i > 0:
            gradient = gradient @ _chain(layers[:i]).mT
        stepped.append(layer - rate * gradient)
    return stepped


def _rotations(rng: Generator, runs: int, dim: int) -> NDArray[np.float64]:
    return np.linalg.qr(rng.standard_normal((runs, dim, dim)))[0]


def rank_by_weight_decay(runs: int, seed: int, dim: int = 6, every: int = 200) -> list[Run]:
    """|UV - Y|^2 / 2 + g (|U|^2 + |V|^2) / 2 with g raised a little at each measurement: mode k is lost where g > s_k.

    The gradients are noisy, and the weights come to rest between measurements. Measured is the rank of the product.
    """
    rng = np.random.default_rng(seed)
    strengths = np.linspace(1.0, 0.3, dim) * rng.uniform(0.97, 1.03, (runs, dim))
    left, right = _rotations(rng, runs, dim), _rotations(rng, runs, dim)
    target = torch.from_numpy((left * strengths[:, None]) @ right.transpose(0, 2, 1))
    root = strengths[:, None] ** 0.5
    u, v = torch.from_numpy(left * root), torch.from_numpy((right * root).transpose(0, 2, 1).copy())
    decays = np.concatenate([np.zeros(20), np.linspace(0.0, 0.66, 53), np.full(10, 0.66)])
    series: list[list[float]] = [[] for _ in range(runs)]
    rate = 0.8
    for decay in decays:
        for _ in range(every):
            error = u @ v - target + 1e-3 * torch.from_numpy(rng.standard_normal(target.shape))
            u, v = u - rate * (error @ v.mT + decay * u), v - rate * (u.mT @ error + decay * v)
        for i in range(runs):
            series[i].append(float(product_rank(u[i].mT, v[i])))
    return [
        Run(
            series[i],
            [(float(np.searchsorted(decays, s)), -1) for s in sorted(strengths[i]) if s < 0.66],
            "symmetry/product_rank",
        )
        for i in range(runs)
    ]


def death_by_weight_decay(runs: int, seed: int, units: int = 6, every: int = 200) -> list[Run]:
    """(u w - c)^2 / 2 + g (u^2 + w^2) / 2 for each unit, g raised a little at each measurement: it dies where g > c."""
    rng = np.random.default_rng(seed)
    strengths = np.linspace(1.0, 0.3, units) * rng.uniform(0.97, 1.03, (runs, units))
    u = torch.from_numpy(strengths**0.5)
    w = u.clone()
    target = torch.from_numpy(strengths)
    decays = np.concatenate([np.zeros(20), np.linspace(0.0, 0.66, 53), np.full(10, 0.66)])
    series: list[list[float]] = [[] for _ in range(runs)]
    rate = 0.8
    for decay in decays:
        for _ in range(every):
            error = u * w - target + 1e-3 * torch.from_numpy(rng.standard_normal(target.shape))
            u, w = u - rate * (error * w + decay * u), w - rate * (error * u + decay * w)
        for i in range(runs):
            series[i].append(float(alive_units(u[i, :, None], w[i, :, None])))
    return [
        Run(
            series[i],
            [(float(np.searchsorted(decays, s)), -1) for s in sorted(strengths[i]) if s < 0.66],
            "symmetry/alive_units",
        )
        for i in range(runs)
    ]


def planted_duplicates(runs: int, seed: int, units: int = 12, measurements: int = 120) -> list[Run]:
    """Tanh networks trained on mini-batches: units are made equal at one step, and kicked apart at a later one.

    Equal units have equal gradients and stay equal until the kick. Measured are the distinct units.
    """
    rng = np.random.default_rng(seed)
    inputs, every, rate = 4, 5, 0.02
    first = torch.from_numpy(rng.standard_normal((runs, units, inputs)))
    second = torch.from_numpy(rng.standard_normal((runs, 1, units)))
    teacher = torch.from_numpy(rng.standard_normal((runs, 1, inputs)))
    planted = rng.integers(20, 60, runs)
    kicked = planted + rng.integers(20, 40, runs)
    pairs = rng.integers(1, 4, runs)
    series: list[list[float]] = [[] for _ in range(runs)]
    for measurement in range(measurements):
        for i in range(runs):
            n = int(pairs[i])
            if measurement == planted[i]:
                first[i, :n], second[i, :, :n] = first[i, n : 2 * n], second[i, :, n : 2 * n]
            if measurement == kicked[i]:
                first[i, :n] += torch.from_numpy(0.3 * rng.standard_normal((n, inputs)))
            series[i].append(float(distinct_units(torch.cat([first[i], second[i].mT], 1))))
        for _ in range(every):
            x = torch.from_numpy(rng.standard_normal((runs, inputs, 32)))
            hidden = torch.tanh(first @ x)
            error = (second @ hidden - torch.sin(teacher @ x)) / 32
            back = (second.mT @ error) * (1 - hidden**2)
            first, second = first - rate * back @ x.mT, second - rate * error @ hidden.mT
    return [
        Run(series[i], [(float(planted[i]), -1), (float(kicked[i]), 1)], "symmetry/distinct_units") for i in range(runs)
    ]


def planted(rng: Generator, changes: Sequence[tuple[int, int]], units: int = 64, dim: int = 40) -> list[float]:
    """Distinct units of random vectors that noise moves: at each change so many are left, the others copies of them."""
    vectors, series = rng.standard_normal((units, dim)), []
    copies, left = np.arange(units), dict(changes)
    for measurement in range(60):
        if measurement in left:
            copies = np.arange(units) % left[measurement]
            vectors = rng.standard_normal((units, dim))[copies]
        vectors = vectors + 0.05 * rng.standard_normal((units, dim))[copies]
        series.append(float(distinct_units(torch.from_numpy(vectors))))
    return series


def planted_early(runs: int, seed: int, units: int = 64) -> list[Run]:
    """Units become copies of at most three quarters of them between the second measurement and the sixth."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(runs):
        at, left = int(rng.integers(2, 7)), int(rng.integers(1, 3 * units // 4))
        found.append(Run(planted(rng, [(at, left)]), [(float(at), -1)], "symmetry/distinct_units"))
    return found


def planted_pairs(runs: int, seed: int, units: int = 64) -> list[Run]:
    """Two changes 3 to 5 measurements apart, the second in either direction, or 2 apart in the same direction.

    What is undone after two measurements is an outlier, by the definition of a shift.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(runs):
        at, gap, middle = (
            int(rng.integers(5, 40)),
            int(rng.integers(2, 6)),
            int(rng.integers(units // 4, 3 * units // 4)),
        )
        falls = gap == 2 or rng.random() < 0.5
        last = int(rng.integers(1, 2 * middle // 3)) if falls else units
        series = planted(rng, [(at, middle), (at + gap, last)])
        known = [(float(at), -1), (float(at + gap), -1 if falls else 1)]
        found.append(Run(series, known, "symmetry/distinct_units"))
    return found


def collapsing_features(runs: int, seed: int, dim: int = 8, measurements: int = 60) -> list[Run]:
    """Tanh encoders trained to reconstruct their inputs, then to tell one number, with weight decay: features collapse.

    The objective changes at a random measurement, in half of the runs among the first. Measured is the effective rank
    of the features of mini-batches, as production measures it.
    """
    rng = np.random.default_rng(seed)
    encoder = torch.from_numpy(rng.standard_normal((runs, dim, dim)) / math.sqrt(dim))
    decoder = torch.from_numpy(rng.standard_normal((runs, dim, dim)) / math.sqrt(dim))
    change = np.where(rng.random(runs) < 0.5, rng.integers(2, 7, runs), rng.integers(7, 40, runs))
    teacher = torch.from_numpy(rng.standard_normal((runs, 1, dim)) / math.sqrt(dim))
    rate, every = 0.1, 40
    series: list[list[float]] = [[] for _ in range(runs)]
    for measurement in range(measurements):
        features = torch.tanh(encoder @ torch.from_numpy(rng.standard_normal((runs, dim, 256))))
        for i in range(runs):
            found = feature_indicators(moments(features[i].mT), ["effective_rank"])
            series[i].append(float(found["effective_rank"]))
        changed = torch.from_numpy(measurement >= change)[:, None, None]
        decay = 0.3 * changed
        for _ in range(every):
            x = torch.from_numpy(rng.standard_normal((runs, dim, 64)))
            hidden = torch.tanh(encoder @ x)
            target = torch.where(changed, (teacher @ x).expand(-1, dim, -1), x)
            error = (decoder @ hidden - target) / 64
            back = (decoder.mT @ error) * (1 - hidden**2)
            encoder = encoder - rate * (back @ x.mT + decay * encoder)
            decoder = decoder - rate * (error @ hidden.mT + decay * decoder)
    return [Run(series[i], [(float(change[i]), -1)], "representation/effective_rank") for i in range(runs)]


def autocorrelated(noise: NDArray[np.float64], memory: float) -> NDArray[np.float64]:
    """x_t = memory x_(t-1) + sqrt(1 - memory^2) e_t."""
    series = noise.copy()
    for t in range(1, len(series)):
        series[t] = memory * series[t - 1] + math.sqrt(1 - memory**2) * noise[t]
    return series


QUIET: dict[str, Callable[[Generator, int], NDArray[np.float64]]] = {
    "white": lambda rng, n: rng.standard_normal(n),
    "autocorrelated 0.5": lambda rng, n: autocorrelated(rng.standard_normal(n), 0.5),
    "autocorrelated 0.9": lambda rng, n: autocorrelated(rng.standard_normal(n), 0.9),
    "autocorrelated 0.98": lambda rng, n: autocorrelated(rng.standard_normal(n), 0.98),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "Student, 3 degrees": lambda rng, n: rng.standard_t(3, n),
    "Student, 2 degrees": lambda rng, n: rng.standard_t(2, n),
    "one in twenty tenfold": lambda rng, n: rng.standard_normal(n) * np.where(rng.random(n) < 0.05, 10, 1),
    "linear drift": lambda rng, n: rng.standard_normal(n) + rng.choice([-0.05, 0.05]) * np.arange(n),
    "slow wave": lambda rng, n: rng.standard_normal(n) + 10 * np.sin(2 * np.pi * (np.arange(n) / 500 + rng.random())),
    "relaxation": lambda rng, n: rng.standard_normal(n) + 100 * np.exp(-np.arange(n) / 60),
    "random walk": lambda rng, n: 0.3 * np.cumsum(rng.standard_normal(n)) + rng.standard_normal(n),
    "vanishing": lambda rng, n: rng.standard_normal(n) * np.exp(-np.arange(n) / 200),
    "constant": lambda rng, n: np.ones(n),
    "flickering count": lambda rng, n: 12.0 - (rng.random(n) < 0.05),
}
"""Series in which nothing happens, by name."""
