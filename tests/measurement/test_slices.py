"""Work in slices: the same results, nothing in between, and nothing of a thread is changed."""

import os
import threading
import time
from contextlib import suppress

import pytest
import torch

from lightning_symmetry.measurement.slices import Slices, clock, within_one


class Sum:
    """Adds numbers up, one at a time, and notes the time of each."""

    def __init__(self, numbers=20, act=lambda: None):
        self.total, self.times, self.numbers, self.act = torch.zeros(()), [], numbers, act

    def __call__(self):
        for number in range(self.numbers):
            self.total = torch.add(self.total, number)
            self.times.append(time.perf_counter())
            self.act()


def test_each_slice_is_one_function_long_at_the_least_and_the_work_comes_to_its_end():
    slices = Slices(work := Sum(5))
    done = [slices.go_on(0.0) for _ in range(6)]
    assert done == [False] * 5 + [True]
    assert work.total == 10


def test_nothing_is_done_between_slices():
    slices = Slices(work := Sum(act=lambda: torch.ones(64, 64) @ torch.ones(64, 64)))
    allowed = []
    while True:
        began = time.perf_counter()
        done = slices.go_on(1e-4)
        allowed.append((began, time.perf_counter()))
        if done:
            break
        torch.ones(300, 300).matrix_exp()  # a step of the training
    assert all(any(began <= at <= ended for began, ended in allowed) for at in work.times)
    assert work.total == 190


def test_without_a_limit_all_is_done_at_once():
    assert Slices(work := Sum()).go_on() and work.total == 190


def test_what_is_within_one_slice_is_not_cut():
    first, then = Sum(), Sum()
    slices = Slices(lambda: (within_one(first), then()))
    assert not slices.go_on(0.0)
    assert (len(first.times), len(then.times)) == (20, 0)
    assert slices.go_on() and then.total == 190


def test_the_clock_stands_still_while_the_work_waits():
    seconds = []

    def timed():
        began = clock()
        Sum()()
        seconds.append(clock() - began)

    slices, began = Slices(timed), time.perf_counter()
    while not slices.go_on(0.0):
        torch.ones(500, 500).matrix_exp()
    assert 0 < seconds[0] < (time.perf_counter() - began) / 2
    assert abs(clock() - time.perf_counter()) < 1e-3  # of what never waits


def test_what_the_work_raises_is_raised_where_it_is_waited_for():
    def fails():
        torch.zeros(()) + 1
        raise ValueError("no")

    slices = Slices(fails)
    assert not slices.go_on(0.0)
    with pytest.raises(ValueError, match="no"):
        slices.go_on()


@pytest.mark.parametrize("turns", [0, 1, 3, 30])
def test_work_that_is_given_up_ends_where_it_is(turns):
    """However far it is, done included; it may catch what fails, and not this."""

    def patient():
        for _ in range(20):
            with suppress(Exception):
                reached.append(torch.zeros(()))

    reached = []
    slices = Slices(patient)
    for _ in range(turns):
        if slices.go_on(0.0):
            break
    slices.give_up()
    assert len(reached) == min(max(turns - 1, 0), 20)


def test_what_tidies_up_after_work_that_is_given_up_is_done():
    def tidy():
        try:
            torch.zeros(())
        finally:
            tidied.append(torch.zeros(()) + 1)

    tidied = []
    slices = Slices(tidy)
    slices.go_on(0.0)
    slices.give_up()
    assert tidied == [1]


def test_its_gradient_mode_and_its_modes_are_its_own():
    def work():
        with torch.no_grad():
            torch.zeros(()) + 1
            torch.zeros(()) + 1

    slices = Slices(work)
    slices.go_on(0.0)
    slices.go_on(0.0)
    assert torch.is_grad_enabled()
    assert (torch.ones((), requires_grad=True) + 1).requires_grad
    assert slices.go_on()


def test_the_gradient_mode_of_the_training_is_what_it_is_then():
    """Also where it was another one when the work began."""

    def work():
        with torch.no_grad():
            torch.zeros(()) + 1
            modes.append(torch.is_grad_enabled())

    modes, slices = [], Slices(work)
    with torch.no_grad():
        slices.go_on(0.0)
    slices.go_on(0.0)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert slices.go_on()
        assert not torch.is_grad_enabled()
    assert modes == [False] and torch.is_grad_enabled()


def test_it_has_the_threads_of_the_training_and_none_of_its_own():
    """Those of a second thread would be as many again, and slow the first's down while they wait."""
    product = torch.ones(512, 512)
    slices = Slices(lambda: [product @ product for _ in range(5)])
    product @ product
    before, counted = len(os.listdir("/proc/self/task")), threading.active_count()
    while not slices.go_on(0.0):
        product @ product
        assert len(os.listdir("/proc/self/task")) == before and threading.active_count() == counted
