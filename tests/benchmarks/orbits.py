"""How much of an optimizer's steps goes along the orbits of the symmetries, on the model of the quickstart.

``python -m tests.benchmarks.orbits`` trains it with several optimizers, as it is (its sigmoids leave one continuous
symmetry, the shift of all logits) and with ReLU in place of them (each of 192 hidden units may be rescaled).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from examples.quickstart import DigitClassifier, digits
from lightning_symmetry import find_symmetries, orbit_fraction

OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "SGD, weight decay 3.5e-3": lambda parameters: torch.optim.SGD(parameters, 0.1, weight_decay=3.5e-3),
    "SGD, momentum 0.9": lambda parameters: torch.optim.SGD(parameters, 0.03, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 1e-3),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 1e-3),
}


def fractions(activation: type[nn.Module], optimizer: str, steps: int = 460, every: int = 23) -> list[float]:
    """The orbit fraction of every so manieth step."""
    torch.manual_seed(0)
    model = DigitClassifier().double()
    model.net = nn.Sequential(*(activation() if isinstance(each, nn.Sigmoid) else each for each in model.net)).double()
    train, _ = digits()
    batches = [(images.double(), labels) for _ in range(1 + steps // len(train)) for images, labels in train]
    symmetries = find_symmetries(model, batches[0])
    stepping, found = OPTIMIZERS[optimizer](model.parameters()), []
    for number, (images, labels) in enumerate(batches[:steps], start=1):
        stepping.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        stepping.step()
        if number % every == 0:
            step = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
            found.append(float(orbit_fraction(symmetries, before, step)))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{'activation':11} {'optimizer':26} {'mean':>9} {'largest':>9}")
    for activation in (nn.Sigmoid, nn.ReLU):
        for optimizer in OPTIMIZERS:
            values = fractions(activation, optimizer)
            mean = sum(values) / len(values)
            print(f"{activation.__name__:11} {optimizer:26} {mean:9.2g} {max(values):9.2g}", flush=True)
