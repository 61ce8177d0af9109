"""What a process holds, as Linux tells it: `peak_beyond` is to be called in a process of its own."""

from pathlib import Path

STATUS = Path("/proc/self/status")


def memory(entry):
    """What this process holds, in bytes: now, VmRSS, or at most so far, VmHWM."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def peak_beyond(run):
    """How many bytes more than before a process holds while it runs something, at most."""
    Path("/proc/self/clear_refs").write_text("5")  # what it held at most is counted from here
    before = memory("VmRSS")
    run()
    return memory("VmHWM") - before
