"""When waiting looks before it sleeps: a clock that only moves when it is told to."""

from __future__ import annotations

from blackroad.bus.patience import Patience, processors

MOST_US = 1_000
LOOK_US = 10


class World:
    """Something comes `after_us` the wait began; each look takes some time."""

    def __init__(self) -> None:
        self.now_us = 0
        self.due_us = 0
        self.looks = 0
        self.sleeps = 0
        self.between_us = LOOK_US

    def clock_ns(self) -> int:
        return self.now_us * 1_000

    def poll(self, timeout: float) -> list[int]:
        if timeout:
            self.sleeps += 1
            self.now_us = max(self.now_us, self.due_us)
        else:
            self.looks += 1
            self.now_us += self.between_us
        return [1] if self.now_us >= self.due_us else []

    def wait(self, patience: Patience, after_us: int, *, look: bool = True) -> None:
        self.due_us = self.now_us + after_us
        self.looks = self.sleeps = 0
        assert patience.wait(self.poll, 5.0, look=look) == [1]


def used_to_short_waits() -> tuple[World, Patience]:
    world = World()
    patience = Patience(MOST_US, world.clock_ns)
    for _ in range(40):
        world.wait(patience, 200)
    assert patience.looks
    return world, patience


def test_who_knows_nothing_sleeps_at_once() -> None:
    world = World()
    world.wait(Patience(MOST_US, world.clock_ns), 200)
    assert (world.looks, world.sleeps) == (0, 1)


def test_short_waits_are_looked_through() -> None:
    world, patience = used_to_short_waits()
    world.wait(patience, 200)
    assert (world.looks, world.sleeps) == (20, 0)


def test_who_may_not_look_sleeps_and_still_learns() -> None:
    world, patience = used_to_short_waits()
    world.wait(patience, 200, look=False)
    assert (world.looks, world.sleeps) == (0, 1)
    assert patience.looks


def test_a_look_ends_and_sleep_follows() -> None:
    world, patience = used_to_short_waits()
    world.wait(patience, 100_000)
    assert (world.looks, world.sleeps) == (MOST_US // LOOK_US, 1)
    # A long wait counts for eight whole looks: the next one is not tried.
    assert not patience.looks


def test_long_waits_cost_one_look_in_vain() -> None:
    world, patience = used_to_short_waits()
    looked = 0
    for _ in range(1_000):
        world.wait(patience, 24_000)
        looked += world.looks
    assert looked <= MOST_US // LOOK_US


def test_it_comes_back_when_waits_are_short_again() -> None:
    world, patience = used_to_short_waits()
    for _ in range(50):
        world.wait(patience, 24_000)
    for _ in range(40):
        world.wait(patience, 200)
    assert (world.looks, world.sleeps) == (20, 0)


def test_who_is_kept_from_looking_leaves_the_processor_to_others() -> None:
    world, patience = used_to_short_waits()
    world.between_us = 700
    world.wait(patience, 200)
    assert not patience.looks
    world.between_us = LOOK_US
    slept = 0
    while not patience.looks:
        world.wait(patience, 200)
        slept += world.sleeps
    assert slept == 63


def test_what_comes_while_it_is_kept_away_is_not_lost() -> None:
    world, patience = used_to_short_waits()
    world.between_us = 700
    world.wait(patience, 200)
    assert (world.looks, world.sleeps) == (1, 0)


def test_this_machine_has_a_processor() -> None:
    assert processors() >= 1
