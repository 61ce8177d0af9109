"""Work that recurs, kept within a share of the time."""

from lightning_symmetry.sinks.upkeep import Upkeep


def test_the_first_time_waits_until_what_it_is_expected_to_take_is_earned():
    now = [5.0]
    upkeep = Upkeep(0.01, first=0.5, clock=lambda: now[0])
    now[0] = 54.9
    assert not upkeep.due
    now[0] = 55.1
    assert upkeep.due
    with upkeep.at_work():
        now[0] += 2.0
    assert not upkeep.due and upkeep.spent == 2.0
    now[0] += 200.1
    assert upkeep.due
