"""DeepSpeed on two processes; ``pip install wheel ninja && pip install --no-build-isolation deepspeed`` runs these.

It is no requirement of the tests: it is built where it is installed, and compiles a kernel when it begins.
"""

import os
import subprocess
import sys

import pytest
import torch

from tests.callbacks.test_untouched_training import assert_identical

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")


@pytest.fixture(scope="module", params=[1, 2, 3])
def trained(request, tmp_path_factory):
    """What a training of a stage leaves on both ranks, without monitors and with them, and what the latter said."""
    left = []
    for monitored in (False, True):
        folder = tmp_path_factory.mktemp("deepspeed")
        command = [sys.executable, "-m", "tests.callbacks.deepspeed_on_cpu", folder, str(request.param), str(monitored)]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
        assert run.returncode == 0, run.stderr
        left.append([torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)])
    return request.param, *left, run.stderr


def test_the_losses_are_what_they_are_without_monitors(trained):
    _, without, monitored, _ = trained
    for rank in range(2):
        assert without[rank]["losses"]
        assert_identical(monitored[rank]["losses"], without[rank]["losses"])


def test_models_that_are_whole_are_measured_and_of_others_each_monitor_says_that_it_stands_down(trained):
    stage, _, monitored, said = trained
    if stage == 3:
        assert "parameters that DeepSpeed's ZeRO stage 3 has flattened" in said
        assert not monitored[0]["groups"] and not monitored[0]["steps"]
    else:
        assert {"conv", "hidden"} <= set(monitored[0]["groups"])
        assert monitored[0]["steps"] == [0, 3, 6]
