"""A bounded share of `make fuzz`: a member may say anything, and disturbs nobody else's work."""

from __future__ import annotations

import pytest

from tests.fuzz.hostile import World


@pytest.mark.parametrize("seed", range(4))
def test_a_hostile_member_disturbs_nobody_elses_work(seed: int) -> None:
    world = World(seed)
    for _ in range(25):
        world.turn()
        assert world.undisturbed() == ""
    assert world.finish() == ""


def test_the_fuzzer_says_things_that_are_understood_and_things_that_are_not() -> None:
    world = World(9)
    for _ in range(5):
        world.turn()
    assert world.decoded > 200
    assert world.refused > 200
