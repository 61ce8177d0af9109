"""How long the search for symmetries takes, and how much memory, on GPT-2 small and on ResNet-50.

``python -m tests.benchmarks.search``; nothing is downloaded, the weights are random. Each model has a process of its
own. The memory is what the process held at most, beyond what it held once the model was built, in copies of the model.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from lightning_symmetry import find_symmetries


def gpt2_small() -> tuple[nn.Module, Mapping[str, Tensor]]:
    """124 million parameters, and 2 x 64 tokens."""
    tokens = torch.randint(0, 50257, (2, 64))
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))
    return model, {"input_ids": tokens, "labels": tokens}


def resnet50() -> tuple[nn.Module, Mapping[str, Tensor]]:
    """25 million parameters, and 2 images of 224 x 224 pixels."""
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
    return model, {"pixel_values": torch.randn(2, 3, 224, 224), "labels": torch.tensor([1, 2])}


def measure(build: Callable[[], tuple[nn.Module, Mapping[str, Tensor]]]) -> str:
    """The seconds, memory and groups of one search, beside the seconds of one training step."""
    model, batch = build()
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    started = time.perf_counter()
    symmetries = find_symmetries(model, batch)
    search = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held
    copies = peak / sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    model(**batch).loss.backward()  # the first step is slower than the others
    started = time.perf_counter()
    model(**batch).loss.backward()
    step = time.perf_counter() - started
    return (
        f"{build.__name__}: {len(symmetries)} groups in {search:.1f} s and {copies:.1f} copies of the model; "
        f"a training step takes {step:.2f} s: {search / step:.0f} steps"
    )


def main() -> None:
    """Measure one model after the other."""
    for build in (gpt2_small, resnet50):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(measure, (build,)), flush=True)


if __name__ == "__main__":
    main()
