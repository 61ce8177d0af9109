"""A training by DeepSpeed on two processes without a GPU, run as a script.

``DS_ACCELERATOR=cpu python -m tests.callbacks.deepspeed_on_cpu FOLDER STAGE MONITORED`` leaves ``FOLDER/RANK.pt``.
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import DeepSpeedStrategy

from tests.callbacks.trainings import Losses, monitors, train


class OnCPU(DeepSpeedStrategy):
    """Lightning's strategy, which else refuses whatever is no GPU."""

    root_device = torch.device("cpu", 0)

    def setup_environment(self):
        import deepspeed  # where it is not installed, this file is read all the same

        self._set_node_environment_variables()
        deepspeed.init_distributed(dist_backend="gloo", distributed_port=self.cluster_environment.main_port)
        self._format_config()
        self._config_initialized = True


def main(folder, stage, monitored):
    """Train, and leave the losses, the groups found and the steps measured."""
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    losses, watching = Losses(), monitors(on_error="warn") if monitored == "True" else []
    _, trainer = train(folder, [losses, *watching], strategy=OnCPU(stage=int(stage)), devices=2)
    left = {
        "losses": losses.values,
        "groups": [group.name for monitor in watching[:1] for group in monitor.symmetries or ()],
        "steps": sorted({measured.step for monitor in watching[:1] for measured in monitor.history.measurements}),
    }
    torch.save(left, Path(folder) / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
