"""Trainings on two processes that are stopped in the midst, and gone on with; run as a script.

`python -m tests.callbacks.stopped_ranks FOLDER NAME ...` forks two processes for each of these `PAIRS`, so that torch
is imported once, and fails where one of them does. Rank R of each leaves ``FOLDER/NAME-R.pt``.
"""

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor

from lightning_symmetry import RepresentationMonitor, SpectrumMonitor, SymmetryMonitor
from lightning_symmetry.callbacks import session, symmetry_monitor
from lightning_symmetry.measurement import spectra
from tests.callbacks.stopped import Seen, fail, hooks, kill
from tests.callbacks.two_processes import Spread, rank, whole
from tests.measurement.behind import Threaded

STEPS_AN_EPOCH, EPOCHS, MERGED, CHECKPOINT, STOPPED = 5, 4, 9, 10, 13
CHECKPOINT_OF = f"checkpoints/step={CHECKPOINT}.ckpt"
PATIENCE = timedelta(seconds=20)
"""How long a rank waits for another: what ends sooner has waited for none."""


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Merging(Spread):
    """Four units of each half of its hidden layer become one after step `MERGED`, wherever the halves are.

    Args:
        sharded: Whether its parameters are spread over processes.
        stop: What stops it within step `STOPPED`.
    """

    def __init__(self, sharded=False, stop=None):
        super().__init__(sharded)
        self.stop = stop

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.stop is not None and self.trainer.global_step == STOPPED:
            self.stopped_at = time.monotonic()
            self.stop()
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_step == MERGED:
            with torch.no_grad():
                for units in (self.hidden.weight, self.hidden.bias, self.inner.weight.T):
                    for half in local(units).split(4):
                        half[1:] = half[0].clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def monitors(on_error="raise", **settings):
    settings = {"every_n_train_steps": 1, **settings, "on_error": on_error}
    of = ["weights", "gradients", "updates"]
    return [SymmetryMonitor(**settings), SpectrumMonitor(of=of, **settings), RepresentationMonitor(**settings)]


def fit(folder, sharded, callbacks=(), stop=None, ckpt_path=None, epochs=EPOCHS):
    """Train, stopped or not, and return all that is left."""
    seed_everything(0, verbose=False)
    kind = partial(ModelParallelStrategy, data_parallel_size=2, tensor_parallel_size=1) if sharded else DDPStrategy
    model, seen, before, raised = Merging(sharded, stop), Seen(), set(threading.enumerate()), None
    trainer = Trainer(
        max_epochs=epochs,
        strategy=kind(process_group_backend="gloo", timeout=PATIENCE),
        devices=2,
        logger=CSVLogger(folder, version=0),
        callbacks=[seen, *callbacks, ModelCheckpoint(folder / "checkpoints", "{step}", save_top_k=-1)],
        accelerator="cpu",
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    found_anew = AssertionError("a run that goes on knows its symmetries")
    known = patch.object(symmetry_monitor, "find_symmetries", side_effect=found_anew) if ckpt_path else nullcontext()
    try:
        with known:
            trainer.fit(model, ckpt_path=ckpt_path, weights_only=True)
    except BaseException as error:
        raised = f"{type(error).__name__}: {error}"
    ended = time.monotonic()
    left = {
        "raised": raised,
        "ended": ended,
        "seconds": ended - getattr(model, "stopped_at", ended),
        "hooks": hooks(model),
        "threads": [thread.name for thread in set(threading.enumerate()) - before],
        "seen": seen.steps,
    }
    if raised is None:
        left["state"] = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
    if callbacks:
        history = callbacks[0].history
        left |= {
            "listening": bool(callbacks[2]._listener and callbacks[2]._listener.handles),
            "history": [(row.step, dict(row.values)) for row in history.measurements],
            "events": [(event.step, event.kind, event.details.get("group")) for event in history.events],
            "symmetries": callbacks[0].symmetries.to_dict(),
            "kept": {type(monitor).__name__: monitor.state_dict() for monitor in callbacks},
            "told": {key: float(value) for key, value in trainer.callback_metrics.items() if "/" in key},
        }
    return left


def stopped_and_resumed(folder, sharded, stop):
    """Trainings without and with monitors: in one go, stopped, and gone on with from a checkpoint before that."""
    plain, in_one_go, in_two = (folder / each for each in ("plain", "in_one_go", "in_two"))
    return {
        "plain": fit(plain, sharded),
        "plain resumed": fit(folder / "plain_resumed", sharded, ckpt_path=plain / CHECKPOINT_OF),
        "in one go": fit(in_one_go, sharded, monitors()),
        "stopped": fit(in_two, sharded, monitors(), stop),
        "resumed": fit(in_two, sharded, monitors(), ckpt_path=in_two / CHECKPOINT_OF),
    }


def resumed(folder):
    """All that are gone on with: on one strategy, from one to another, and on a budget."""
    left = {
        "ddp": stopped_and_resumed(folder / "ddp", sharded=False, stop=fail),
        "sharded": stopped_and_resumed(folder / "sharded", sharded=True, stop=kill(signal.SIGTERM)),
    }
    left["moved"] = fit(folder / "moved", True, monitors(), ckpt_path=folder / "ddp" / "in_one_go" / CHECKPOINT_OF)
    lavish = partial(monitors, every_n_train_steps=None, max_overhead=0.5)
    for name in ("budget", "budget resumed"):
        where = {"ckpt_path": folder / "budget" / CHECKPOINT_OF} if "resumed" in name else {}
        left[name] = fit(folder / name, False, lavish(), epochs=12, **where)
    return left


def interrupted_while_measuring():
    """From now on a Ctrl-C comes whenever a spectrum is measured."""
    measure, stop = spectra.spectral_indicators, kill(signal.SIGINT)
    spectra.spectral_indicators = lambda *args, **kwargs: (stop(), measure(*args, **kwargs))[1]


def alone(stop):
    """What stops rank one alone."""
    return lambda: stop() if rank() == 1 else None


def stopped(sharded, stop):
    return lambda folder: fit(folder, sharded, monitors(on_error="warn"), stop)


def stopped_behind(folder):
    """On a device behind its host: what was measured at the step before is not read yet."""
    with patch.object(session, "device_of", lambda device: Threaded()):
        return fit(folder, False, monitors(on_error="warn", every_n_train_steps=3), alone(fail))


def stopped_in_search(folder):
    """A Ctrl-C comes to rank zero, for which rank one waits."""
    with patch.object(symmetry_monitor, "find_symmetries", lambda *args, **kwargs: kill(signal.SIGINT)()):
        return fit(folder, False, monitors(on_error="warn"))


PAIRS = {
    "resumed": resumed,
    "raising": stopped(False, alone(fail)),
    "raising_sharded": stopped(True, alone(fail)),
    "raising_behind": stopped_behind,
    "interrupted": stopped(False, interrupted_while_measuring),
    "interrupted_alone": stopped(False, alone(interrupted_while_measuring)),
    "interrupted_in_search": stopped_in_search,
}


def act(folder, name, number):
    """What one of two processes does; it ends without a word to the other, as one that is killed."""
    os.environ["LOCAL_RANK"] = str(number)
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*exists and is not empty.*")
    try:
        torch.save(PAIRS[name](folder / name), folder / f"{name}-{number}.pt")
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def forked(do):
    """The id of a process that does this."""
    child = os.fork()
    if child == 0:
        do()
    return child


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored by what runs in the background
    codes = []
    for name in sys.argv[2:]:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
        pair = [forked(partial(act, Path(sys.argv[1]), name, number)) for number in (0, 1)]
        codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in pair]
    sys.exit(any(codes))
