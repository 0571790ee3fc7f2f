"""The switch between the machines: every rule does what it says, in its direction only."""

from __future__ import annotations

import pytest

from tests.chaos.wires import CLEAR, QUEUE_BYTES, Rule, Switch

MS = 1_000_000


def frame(to: int, size: int = 100) -> bytes:
    return b"\x02\0\0\0\0" + bytes([to]) + bytes(size - 6)


def through(switch: Switch, source: int, one: bytes, now_ns: int = 0) -> list[int]:
    return [to for to, _ in switch.take(source, one, now_ns)]


def test_a_frame_goes_where_it_is_addressed_and_a_call_to_all_others() -> None:
    switch = Switch(3, seed=1)
    assert through(switch, 0, frame(2)) == [2]
    assert through(switch, 2, b"\xff" * 6 + bytes(40)) == [0, 1]
    assert through(switch, 1, frame(1)) == []


def test_a_cut_is_one_way_until_it_is_cleared() -> None:
    switch = Switch(3, seed=1)
    switch.set([(0, 1)], Rule(cut=True))
    assert through(switch, 0, frame(1)) == []
    assert through(switch, 1, frame(0)) == [0]
    assert through(switch, 0, b"\xff" * 6 + bytes(40)) == [2]
    assert switch.seen["dropped"] == 2
    switch.set([(0, 1)], CLEAR)
    assert through(switch, 0, frame(1)) == [1]


def test_loss_is_about_what_was_asked_and_the_same_for_the_same_seed() -> None:
    def passed(seed: int) -> list[int]:
        switch = Switch(2, seed)
        switch.set([(0, 1)], Rule(loss=0.2))
        for number in range(2000):
            assert through(switch, 0, frame(1, 100 + number % 7)) == []
        return [len(one) for _, one in switch.due(1)]

    first = passed(5)
    assert first == passed(5) != passed(6)
    assert 1500 < len(first) < 1700


def test_late_frames_leave_in_their_time_and_some_overtake() -> None:
    switch = Switch(2, seed=3)
    switch.set([(0, 1)], Rule(delay_ms=300, jitter_ms=200, overtake=0.25))
    for number in range(400):
        through(switch, 0, frame(1, 100 + number), now_ns=0)
    early = [len(one) for _, one in switch.due(0)]
    assert 50 < len(early) < 150
    assert [one for _, one in switch.due(99 * MS)] == []
    rest = [len(one) for _, one in switch.due(500 * MS)]
    assert len(early) + len(rest) == 400
    assert rest != sorted(rest)
    assert switch.next_ns() is None


@pytest.mark.parametrize("rate_bit_s", [1_000_000, 8_000_000])
def test_a_narrow_line_carries_its_rate_and_drops_what_does_not_fit(rate_bit_s: int) -> None:
    switch = Switch(2, seed=1)
    switch.set([(0, 1)], Rule(rate_bit_s=rate_bit_s))
    for _ in range(1000):
        through(switch, 0, frame(1, 1000), now_ns=0)
    assert switch.seen["dropped"] == 1000 - switch.seen["delayed"] > 0
    assert switch.seen["delayed"] * 1000 <= QUEUE_BYTES + 2000
    within = sum(len(one) for _, one in switch.due(100 * MS))
    assert within == rate_bit_s // 8 // 10 // 1000 * 1000
