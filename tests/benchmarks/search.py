"""How long the search for symmetries takes on GPT-2 small, beside one of its training steps.

``python -m tests.benchmarks.search``; nothing is downloaded, the weights are random.
"""

import time

import torch
import transformers

from lightning_symmetry import find_symmetries


def main() -> None:
    """Print the seconds of one search and of one step, and how many groups were found."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))
    tokens = torch.randint(0, 50257, (2, 64))
    batch = {"input_ids": tokens, "labels": tokens}
    model(**batch).loss.backward()  # the first step is slower than the others
    started = time.perf_counter()
    model(**batch).loss.backward()
    step = time.perf_counter() - started
    started = time.perf_counter()
    symmetries = find_symmetries(model, batch)
    search = time.perf_counter() - started
    print(f"{len(symmetries)} groups in {search:.1f} s; a training step takes {step:.2f} s: {search / step:.0f} steps")


if __name__ == "__main__":
    main()
