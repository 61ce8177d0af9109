"""How long the monitors delay a step when W&B is in trouble: run with `python -m tests.benchmarks.wandb_trouble`.

The same training with a real WandbLogger against a server on the loopback interface: with the logger alone, and with
all three monitors, which measure at every step and draw heatmaps as often as they can, in every trouble that the tests
know. The first step, which finds the symmetries, is paid once and left out. On a busy machine the seconds in which the
processor was busy tell more than those that passed. Exits with 1 where a delay is over the limit.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.sinks import wandb_trainings
from tests.sinks.test_wandb_in_trouble import SCENARIOS
from tests.sinks.wandb_trainings import healthy, play
from tests.wandb_server import WandbServer

EPOCHS = 20
LIMIT = 0.05
"""The longest delay that is allowed, in seconds."""

CASES = {
    "logger alone, healthy": (healthy, False),
    **{f"monitors, {name}": (getattr(wandb_trainings, name), True) for name in SCENARIOS},
}


def main() -> bool:
    """Print the median and the worst step, and the worst delay by the monitors; tell whether that is too long."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.sinks.wandb_trainings"])
    table = Table("ms", "step, median", "step, worst", "delay by monitors, median", "worst", "worst, busy")
    worst = dict.fromkeys(("in_hooks", "busy_in_hooks"), 0.0)
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as executor:
        for name, (scenario, monitored) in CASES.items():
            with tempfile.TemporaryDirectory() as folder, WandbServer() as server:
                arguments = (scenario, Path(folder), server.environment, monitored, EPOCHS, 0.5)
                outcome = executor.submit(play, *arguments).result()
            steps, delays, busy = (outcome[key][1:] for key in ("seconds", "in_hooks", "busy_in_hooks"))
            median = statistics.median
            numbers = (median(steps), max(steps), median(delays), max(delays), max(busy))
            table.add_row(name, *(f"{1000 * number:.1f}" for number in numbers))
            worst = {key: max(longest, *outcome[key][1:]) for key, longest in worst.items()}
    console = Console(width=120)
    console.print(table)
    load, cores = os.getloadavg()[0], os.cpu_count()
    console.print(
        f"worst delay {1000 * worst['in_hooks']:.1f} ms, {1000 * worst['busy_in_hooks']:.1f} ms of them busy "
        f"(limit {1000 * LIMIT:.0f}); load {load:.1f} on {cores} cores"
    )
    return worst["in_hooks"] > LIMIT


if __name__ == "__main__":
    sys.exit(main())
