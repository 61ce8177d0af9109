"""A device that is behind its host by up to a step, as one with a stream of its own is: what no CPU does by itself."""

from concurrent.futures import ThreadPoolExecutor

import torch

from lightning_symmetry.measurement.device import Host


class Behind(Host):
    """Copies have no numbers until the device has caught up; who reads one before waits for it.

    Attributes:
        waits: How often a copy was read before it had its numbers.
    """

    lag = 1

    def __init__(self):
        self.copies = []
        self.waits = 0

    def copied(self, tensor):
        copy = torch.full_like(tensor, torch.nan)
        self.copies.append((tensor, copy))

        def read():
            if any(copy is each for _, each in self.copies):
                self.waits += 1
                self.catch_up()
            return copy

        return read

    def catch_up(self):
        """A step later."""
        for tensor, copy in self.copies:
            copy.copy_(tensor)
        self.copies.clear()


class Threaded(Behind):
    """One whose pieces are measured beside the training, by a thread; what it copied is there a step later.

    Attributes:
        begun: How many pieces of work were begun.
    """

    def __init__(self):
        super().__init__()
        self.begun = 0
        self.thread = ThreadPoolExecutor(1, "lightning_symmetry")

    def beside(self, work):
        self.catch_up()
        self.begun += 1
        return self.thread.submit(work).result

    def kept(self, tensors):
        return {name: tensor.detach().clone() for name, tensor in tensors}

    def copied(self, tensor):
        return super().copied(tensor.detach().clone())

    def close(self):
        self.thread.shutdown()
