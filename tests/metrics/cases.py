"""Every metric with data to stream and its twin that sees them all at once; run as a script, on two processes."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

from lightning_symmetry import functional, metrics
from lightning_symmetry.functional.similarity import hsic, linear_cka_of

BATCHES = (9, 4, 17, 1, 8)
"""The sizes of the batches."""

OF_RANK = ((0, 2, 4), (1, 3))
"""Which batches each of two processes sees."""


@dataclass(frozen=True)
class Case:
    """One metric.

    Attributes:
        build: Makes the metric.
        twin: From all arguments of `update` to the value; of a metric over batches, from lists of them.
        data: The arguments of `update`, for all samples; a tensor that is no batch is the same in each.
        range: The least and the largest value.
    """

    build: Callable[[], Any]
    twin: Callable[..., Any]
    data: tuple[torch.Tensor, ...]
    range: tuple[float, float]
    by_batches: bool = False

    def batches(self):
        """The arguments of `update`, batch by batch."""
        starts = [sum(BATCHES[:k]) for k in range(len(BATCHES))]
        return [
            tuple(part[start : start + size] if len(part) == sum(BATCHES) else part for part in self.data)
            for start, size in zip(starts, BATCHES, strict=True)
        ]

    def expected(self, batches=None):
        """What the twin says of several batches, all by default."""
        batches = batches or self.batches()
        if self.by_batches:
            return self.twin(batches)
        return self.twin(
            *(
                torch.cat([batch[k] for batch in batches]) if len(part) == sum(BATCHES) else batches[0][k]
                for k, part in enumerate(self.data)
            )
        )


def cka_over(batches):
    return linear_cka_of(sum(hsic(list(batch)) for batch in batches))[0, 1]


def cases():
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    n, dim, n_classes = sum(BATCHES), 6, 4
    features = randn(n, dim) @ randn(dim, dim) + 1
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    classified, weight = features + 2 * randn(n_classes, dim)[labels], randn(n_classes, dim)
    predictions = (classified @ weight.T).argmax(-1)
    tokens = randn(n, 5, 3) + 1
    mask = torch.arange(5) < torch.randint(1, 6, (n, 1), generator=generator)
    silent = features * torch.tensor([1.0, 0.0, 1.0, 1e-3, 1.0, 1.0])
    spectra = {
        metrics.EffectiveRank: (functional.effective_rank, (1, dim)),
        metrics.CovarianceParticipationRatio: (functional.covariance_participation_ratio, (1, dim)),
        metrics.CovarianceStableRank: (functional.covariance_stable_rank, (1, dim)),
        metrics.Isotropy: (functional.isotropy, (0, 1)),
        metrics.AlphaReQ: (functional.alpha_req, (0, 10)),
        metrics.NESum: (functional.nesum, (1, dim)),
    }
    collapse = {
        metrics.NC1: (functional.nc1, (classified, labels), 100),
        metrics.NC2Equinorm: (functional.nc2_equinorm, (classified, labels), 2),
        metrics.NC2Equiangularity: (functional.nc2_equiangularity, (classified, labels), 2),
        metrics.NC3: (functional.nc3, (classified, labels, weight), 4),
        metrics.NC4: (functional.nc4, (classified, labels, predictions), 1),
    }
    return {
        **{
            metric.__name__: Case(lambda metric=metric: metric(dim), twin, (features,), bounds)
            for metric, (twin, bounds) in spectra.items()
        },
        **{
            metric.__name__: Case(lambda metric=metric: metric(n_classes, dim), twin, data, (0, most))
            for metric, (twin, data, most) in collapse.items()
        },
        "LinearCKA": Case(metrics.LinearCKA, cka_over, (features, classified), (-1, 1), by_batches=True),
        "CanonicalAlignment": Case(
            lambda: metrics.CanonicalAlignment(dim),
            functional.canonical_alignment,
            (features, classified, randn(dim, 3)),
            (0, 1),
        ),
        "DormantFraction": Case(lambda: metrics.DormantFraction(dim), functional.dormant_fraction, (silent,), (0, 1)),
        "NoiseImbalance": Case(
            lambda: metrics.NoiseImbalance(5, 3, 2),
            functional.noise_imbalance,
            (randn(n, 5, 3) + 1, 2 * randn(n, 5, 2)),
            (0, 1),
        ),
        "TokenRankResidual": Case(metrics.TokenRankResidual, functional.token_rank_residual, (tokens, mask), (0, 1)),
    }


def on_one_rank(rank, store, out):
    """Stream this rank's batches, with and without joining the values at each step."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for name, case in cases().items():
        metric, stepwise, batches = case.build(), case.build(), case.batches()
        stepwise.dist_sync_on_step = True
        for number in OF_RANK[rank]:
            metric.update(*batches[number])
        steps = [stepwise(*batches[OF_RANK[rank][step]]) for step in range(2)]
        before = {key: value.clone() for key, value in metric.metric_state.items()}
        value = metric.compute()
        left = all(torch.equal(before[key], value) for key, value in metric.metric_state.items())
        found[name] = {"value": value, "steps": steps, "unsynced": left}
    sampled = metrics.NC4(4, 6, max_samples=10)
    for number in OF_RANK[rank]:
        sampled.update(*cases()["NC4"].batches()[number])
    found["sampled"] = sampled.compute()
    torch.save(found, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    arguments = (f"{sys.argv[1]}/store", sys.argv[1])
    torch.multiprocessing.start_processes(on_one_rank, arguments, nprocs=2, start_method="fork")
