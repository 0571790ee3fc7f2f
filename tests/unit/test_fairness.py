"""Turns: who comes next at one priority level."""

from __future__ import annotations

import pytest

from blackroad.requirements import Needs
from blackroad.router.fairness import Turns, effective_priority
from blackroad.router.placement import Want
from tests.unit.builders import NEEDS, OTHER, PEER

ONE = Needs().requirement


def want(cls: int, user: str, oldest_wait_ms: int = 0, owner: bytes = PEER) -> Want:
    return Want(owner, cls, NEEDS, ONE, user=user, queued=9, oldest_wait_ms=oldest_wait_ms)


def deal(turns: Turns, count: int, speed: float = 1.0) -> list[int]:
    order = []
    for _ in range(count):
        one = turns.next()
        assert one is not None
        order.append(one.cls)
        turns.dealt(one, speed)
    return order


@pytest.mark.parametrize(
    ("priority", "wait_ms", "expected"),
    [(0, 0, 0), (0, 29_999, 0), (0, 30_000, 1), (-128, 90_000, -125), (127, 60_000, 129)],
)
def test_waiting_raises_the_priority(priority: int, wait_ms: int, expected: int) -> None:
    """R-alloc-2: effective priority is priority + 1 per 30 s of oldest wait."""
    assert effective_priority(priority, wait_ms) == expected


def test_users_take_turns_whatever_their_number_of_classes() -> None:
    """R-alloc-2: users by weighted share."""
    turns = Turns([want(1, "ada"), want(2, "bob"), want(3, "bob")], {}, {})
    assert deal(turns, 4) == [1, 2, 1, 2]


def test_a_weight_is_a_larger_share() -> None:
    """R-alloc-2: share over weight."""
    turns = Turns([want(1, "ada"), want(2, "bob")], {}, {"bob": 3.0})
    order = deal(turns, 40)
    assert order.count(2) == 30


def test_what_a_user_has_already_counts() -> None:
    """R-alloc-2: shares go on from one level to the next."""
    turns = Turns([want(1, "ada"), want(2, "bob")], {"ada": 2.0}, {})
    assert deal(turns, 4) == [2, 2, 1, 2]


def test_a_fast_slot_counts_more() -> None:
    """R-alloc-2: counted in slots * node speed."""
    turns = Turns([want(1, "ada"), want(2, "bob")], {}, {})
    first = turns.next()
    assert first is not None
    turns.dealt(first, 3.0)
    assert deal(turns, 3) == [2, 2, 2]


def test_within_a_user_the_oldest_wait_comes_first() -> None:
    """R-alloc-2: within a user, classes by oldest wait; then by owner and number."""
    turns = Turns([want(1, "ada"), want(2, "ada", 500), want(3, "ada", 500, OTHER)], {}, {})
    seen = []
    while (one := turns.next()) is not None:
        seen.append(one.cls)
        turns.satisfied(one)
    assert seen == [2, 3, 1]


def test_who_is_satisfied_leaves_the_line() -> None:
    """R-alloc-2: nobody waits for a user that wants nothing more."""
    one, two = want(1, "ada"), want(2, "bob")
    turns = Turns([one, two], {}, {})
    turns.satisfied(one)
    assert deal(turns, 2) == [2, 2]
    turns.satisfied(two)
    assert turns.next() is None
