"""What is measured beside a step: it ends before what it reads is changed, whoever changes it, and leaves nothing."""

import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from lightning_symmetry.measurement.beside import Beside
from lightning_symmetry.measurement.device import Accelerator, Host
from tests.measurement.behind import Threaded


class Work:
    """Reads a parameter when it is let on."""

    def __init__(self, parameter):
        self.parameter, self.may, self.read = parameter, threading.Event(), None

    def __call__(self):
        assert self.may.wait(timeout=60)
        self.read = self.parameter.detach().clone()


@pytest.fixture
def beside():
    found = Beside(Threaded())
    yield found
    found.close()


def stepping(lr=1.0):
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    return parameter, torch.optim.SGD([parameter], lr=lr)


def test_on_a_cpu_the_work_is_done_at_once():
    done = []
    beside = Beside(Host())
    beside.begin(lambda: done.append(1))
    assert done == [1] and not beside.works


def test_the_work_is_waited_for_when_it_is_joined(beside):
    work = Work(torch.ones(2))
    beside.begin(work)
    assert beside.works and work.read is None
    work.may.set()
    beside.join()
    assert not beside.works and work.read is not None


def test_an_optimizer_that_no_trainer_tells_of_waits(beside):
    parameter, optimizer = stepping()
    work = Work(parameter)
    beside.begin(work)
    threading.Timer(0.05, work.may.set).start()
    optimizer.step()
    assert torch.equal(work.read, torch.ones(3)) and torch.equal(parameter.detach(), torch.zeros(3))


def test_an_optimizer_whose_closure_is_the_users_waits(beside):
    parameter, optimizer = stepping()
    work = Work(parameter)
    beside.begin(work)
    work.may.set()
    optimizer.step(lambda: torch.zeros(()))
    assert not beside.works and torch.equal(work.read, torch.ones(3))


def test_an_optimizer_with_the_closure_of_a_trainer_does_not_wait_before_it(beside):
    """The closure runs the step, and then tells that the optimizer goes on."""
    parameter, optimizer = stepping()
    work = Work(parameter)
    beside.begin(work)

    def closure():
        assert beside.works
        work.may.set()
        beside.join()

    closure.__module__ = "lightning.pytorch.plugins.precision.precision"
    optimizer.step(closure)
    assert torch.equal(work.read, torch.ones(3))


def test_no_hook_of_optimizers_and_no_thread_is_left_in_the_end():
    hooks, threads = len(_global_optimizer_pre_hooks), threading.active_count()
    beside = Beside(Threaded())
    for _ in range(3):
        beside.begin(lambda: None)
        assert len(_global_optimizer_pre_hooks) == hooks + 1
    beside.close()
    assert len(_global_optimizer_pre_hooks) == hooks and threading.active_count() == threads


def test_a_failure_of_the_work_does_not_reach_the_optimizer():
    caught = []

    @contextmanager
    def fenced():
        try:
            yield
        except ZeroDivisionError as error:
            caught.append(error)

    beside = Beside(Threaded(), fenced=fenced)
    beside.begin(lambda: 1 / 0)
    stepping()[1].step()
    assert len(caught) == 1 and not beside.works
    beside.close()


class Stream:
    """Stands for the stream of an accelerator, of which none is here; it notes what is called in which thread."""

    def __init__(self, device=None):
        self.calls = []

    def wait_stream(self, other):
        self.calls.append(("waits for the training's", threading.current_thread()))

    def synchronize(self):
        self.calls.append(("is waited for", threading.current_thread()))


def test_an_accelerator_works_in_a_thread_of_its_own_on_its_own_stream(monkeypatch):
    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.accelerator, "current_stream", Stream)
    monkeypatch.setattr(
        torch.accelerator, "set_stream", lambda own: own.calls.append(("is set", threading.current_thread()))
    )
    host = Accelerator(torch.device("cpu"))
    stream, beside = host._stream, Beside(host)
    beside.begin(lambda: stream.calls.append(("has work", threading.current_thread())))
    beside.join()
    names, threads = zip(*stream.calls, strict=True)
    assert names == ("waits for the training's", "is set", "has work", "is waited for")
    assert [thread is threading.main_thread() for thread in threads] == [True, False, False, False]
    beside.close()
    assert not threads[1].is_alive()
