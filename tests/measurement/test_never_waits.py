"""What runs in the stream of a training asks it for no number, and for no shape that depends on one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_symmetry.measurement import listening
from lightning_symmetry.measurement.listening import Listener

aten = torch.ops.aten
ASKS = {aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.masked_select, aten.nonzero, aten._unique2}


class Asked(TorchDispatchMode):
    """Raises where a host would wait for an accelerator."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        packet = operation.overloadpacket
        indices = args[1] if packet in (aten.index, aten.index_put, aten.index_put_) else ()
        if packet in ASKS or any(index is not None and index.dtype == torch.bool for index in indices):
            raise AssertionError(f"{operation} waits for its input")
        return operation(*args, **(kwargs or {}))


def images():
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 8), nn.ReLU(), nn.Linear(8, 4)]
    batch = torch.randn(32, 3, 8, 8), torch.randint(0, 4, (32,))
    return nn.Sequential(*layers), batch, batch[0], lambda logits: F.cross_entropy(logits, batch[1])


def tokens():
    ids, mask = torch.randint(0, 10, (4, 12)), torch.arange(12).lt(torch.tensor([[12], [7], [9], [12]])).long()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 6, (4, 12))}
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 6)), batch, ids, lambda logits: logits.square().mean()


@pytest.mark.parametrize("make", [images, tokens])
def test_listening_to_a_step(make, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(listening, "_not_the_step", lambda: False)  # it is silent where operations are watched
    net, batch, given, loss = make()
    layers = dict(net.named_children())
    last = list(layers)[-1]
    labels = "labels" if isinstance(batch, dict) else 1
    listener = Listener(layers, (last, net[-1]), True, True, labels, "pooled", 16, 100)
    for _ in range(3):
        with Asked():
            listener.listen(batch)
            loss(net(given)).backward()
            listener.stop()
    assert listener.error is None
    assert listener.sums.keys() == layers.keys() and all("gradient" in sums for sums in listener.sums.values())
    assert listener.of_classes and listener.hsics.count_nonzero()
