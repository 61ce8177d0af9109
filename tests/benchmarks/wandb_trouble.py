"""How long the monitors delay a step when W&B is in trouble: run with `python -m tests.benchmarks.wandb_trouble`.

The same training with a real WandbLogger against a server on the loopback interface: with the logger alone and a
healthy server, and with all three monitors, which measure at every step and draw heatmaps as often as they can, and a
server that is healthy, takes 3 s for each request, or is gone. The first step, which finds the symmetries, is paid once
and left out. On a busy machine the seconds in which the processor was busy tell more than those that passed.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.sinks.wandb_trainings import dead, healthy, lost, play, slow
from tests.wandb_server import WandbServer

EPOCHS = 20
LIMIT = 0.05
"""The longest delay that is allowed, in seconds."""

CASES = {
    "logger alone, healthy server": (healthy, False),
    "monitors, healthy server": (healthy, True),
    "monitors, 3 s for each request": (slow, True),
    "monitors, server lost after 6 steps": (lost, True),
    "monitors, server gone before the first row": (dead, True),
}


def main() -> None:
    """Print the median and the worst step, and the worst delay by the monitors."""
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


if __name__ == "__main__":
    main()
