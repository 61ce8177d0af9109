"""Where a measurement runs: on the host, in line; on an accelerator, beside the training.

An accelerator works through its stream behind the host, by up to a step. What the host reads from it at once, it waits
for, and the accelerator then runs dry. But decompositions, matchings and gauges look at numbers on their way. So pieces
are measured by a thread of their own, on a stream of their own, from the beginning of a step until the optimizer
changes the parameters that they read: it is the thread that waits, and the training's stream is fed all the while. On a
CPU a thread would only compete.

Results are copied to pinned memory, and read `lag` steps later, when the copy is a whole step old: then nothing is left
to wait for, and a step of work lies ahead in the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from lightning_symmetry.measurement.slices import clock

Stopwatch = Callable[[], float]


class Host:
    """A CPU: results are there when asked for.

    Attributes:
        lag: After how many steps a result may be read.
    """

    lag = 0

    def beside(self, work: Callable[[], None]) -> Callable[[], None]:
        """Begin to work beside the training; what is returned waits for the end of it. Here it is done at once."""
        work()
        return lambda: None

    def kept(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies of those tensors that the training would change while they are read."""
        return {}

    def close(self) -> None:
        """Leave no thread."""

    def stopwatch(self) -> Callable[[], Stopwatch]:
        """Start timing; what is returned stops it, and what that returns tells the seconds."""
        started = clock()

        def stop() -> Stopwatch:
            seconds = clock() - started
            return lambda: seconds

        return stop

    def copied(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to copy a tensor to the host; what is returned is to be called after `lag` steps, for the copy."""
        return tensor.cpu if tensor.device.type != "meta" else lambda: tensor

    def gathered(self, tensor: Tensor) -> Tensor:
        """A small result where those of a measurement are kept, in float64."""
        return tensor.detach().to("cpu", torch.float64)


class Accelerator(Host):
    """A device with a stream of its own, such as CUDA.

    Args:
        device: The device.
    """

    lag = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.Stream(device)
        self._thread = ThreadPoolExecutor(1, "lightning_symmetry")

    def beside(self, work: Callable[[], None]) -> Callable[[], None]:
        """Begin to work in the thread and on the stream, on what the training's stream has computed until now.

        The thread waits for its stream: memory that the work no longer needs is then free for the training's.
        """
        self._stream.wait_stream(torch.accelerator.current_stream(self.device))

        def on_stream() -> None:
            torch.accelerator.set_stream(self._stream)  # of this thread alone
            work()
            self._stream.synchronize()

        done = self._thread.submit(on_stream)
        return lambda: done.result()

    def kept(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies of the tensors, made in the training's stream."""
        return {name: tensor.detach().clone() for name, tensor in tensors}

    def close(self) -> None:
        """Wait for what is at work, and end the thread."""
        self._thread.shutdown()

    def stopwatch(self) -> Callable[[], Stopwatch]:
        """Start timing, of the host and of the device, of which the longer counts."""
        on_host, begin = super().stopwatch(), self._event()

        def stop() -> Stopwatch:
            seconds, end = on_host(), self._event()

            def told() -> float:
                end.synchronize()
                return max(seconds(), float(begin.elapsed_time(end)) / 1000)

            return told

        return stop

    def copied(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to copy a tensor to pinned memory, in the stream."""
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        pinned.copy_(tensor.detach(), non_blocking=True)
        done = self._event()

        def read() -> Tensor:
            done.synchronize()
            return pinned

        return read

    def gathered(self, tensor: Tensor) -> Tensor:
        """A small result on the device, in float64."""
        return tensor.detach().to(self.device, torch.float64, non_blocking=True)

    def _event(self) -> Any:
        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event


def device_of(device: torch.device | str) -> Host:
    """How a measurement runs on a device; as on the host where the device has no float64, as MPS has none."""
    device = torch.device(device)
    return Accelerator(device) if device.type in ("cuda", "xpu") else Host()
