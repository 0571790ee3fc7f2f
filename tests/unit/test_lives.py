"""Lives of nodes: amnesia and clones, by greetings and Heartbeats (R-life-2, R-life-3)."""

from __future__ import annotations

import pytest

from blackroad.discovery.lives import Finding, Found, Lives, State, is_absurd, is_news
from blackroad.ids import incarnation
from blackroad.limits import DOUBT_MS_MIN, INC_JUMP_MAX, PEERS_MAX
from tests.unit.builders import ME, OTHER, PEER, node_id

DEAD_MS = 1_250
MINE = incarnation(7, 0xA)
MY_TWIN = incarnation(7, 0xB)
MINE_OLDER, MINE_NEWER = incarnation(6, 1), incarnation(9, 1)
THEIRS = incarnation(4, 0xC)
THEIRS_OLDER, THEIRS_TWIN, THEIRS_NEWER = incarnation(3, 1), incarnation(4, 2), incarnation(5, 1)
DOUBTED_MS = DOUBT_MS_MIN


def lives() -> Lives:
    return Lives(ME, MINE)


def beat(one: Lives, inc: int, now_ms: int, node: bytes = PEER, stamp_ms: int = -1) -> list[Found]:
    """A Heartbeat came, with a stamp that grows with time unless another is told."""
    stamp_ms = now_ms if stamp_ms < 0 else stamp_ms
    return one.on_sign(node, inc, stamp_ms, now_ms, DEAD_MS)


def met(
    one: Lives, your_inc: int, now_ms: int, node: bytes = PEER, inc: int = THEIRS
) -> list[Found]:
    return one.on_met(node, inc, your_inc, now_ms, DEAD_MS)


def both_speak(one: Lives, newest: int, other: int, until_ms: int, from_ms: int = 0) -> list[Found]:
    """Both lives of PEER are heard four times a second, the one that counts first."""
    found: list[Found] = []
    for now_ms in range(from_ms, until_ms, 250):
        found += beat(one, newest, now_ms)
        found += beat(one, other, now_ms + 10)
    return found


# --- mine: amnesia ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "news"),
    [
        (0, False),
        (MINE, False),
        (MINE_OLDER, False),
        (MY_TWIN, True),
        (MINE_NEWER, True),
        (incarnation(7 + INC_JUMP_MAX, 0), True),
        (incarnation(8 + INC_JUMP_MAX, 0), False),
    ],
)
def test_what_is_news_of_my_own_lives(told: int, news: bool) -> None:
    """R-life-2: not the present one, and its counter not lower; nor absurdly far ahead."""
    assert is_news(MINE, told) is news
    one = lives()
    expected = [Found(Finding.DOUBT, ME, MINE, told)] if news else []
    assert met(one, told, 1_000) == expected
    assert one.serves is not news
    assert one.absurd == is_absurd(MINE, told)


def test_a_tale_of_a_newer_life_without_a_sign_of_it_is_amnesia() -> None:
    one = lives()
    met(one, MINE_NEWER, 1_000)
    assert one.next_deadline_ms() == 1_000 + DOUBTED_MS
    assert one.tick(1_000 + DOUBTED_MS - 1) == []
    assert one.tick(1_000 + DOUBTED_MS) == [Found(Finding.AMNESIA, ME, MINE, MINE_NEWER)]
    assert one.state is State.OVER
    assert one.tick(99_999) == []
    assert met(one, incarnation(20, 1), 99_999) == []


def test_a_slow_cluster_is_given_three_times_t_dead() -> None:
    one = lives()
    one.on_met(PEER, THEIRS, MINE_NEWER, 1_000, 5_000)
    assert one.next_deadline_ms() == 16_000


def test_the_highest_life_told_is_the_one_to_rise_above() -> None:
    one = lives()
    met(one, MINE_NEWER, 1_000)
    assert met(one, incarnation(12, 3), 1_200, OTHER) == []
    assert met(one, incarnation(10, 3), 1_300, OTHER) == []
    assert one.tick(9_000) == [Found(Finding.AMNESIA, ME, MINE, incarnation(12, 3))]


def test_time_that_was_slept_through_decides_nothing() -> None:
    one = lives()
    met(one, MINE_NEWER, 1_000)
    one.on_overslept(60_000, 61_500)
    assert one.tick(61_500) == []
    assert one.tick(61_000 + DOUBTED_MS) != []


# --- mine: clone --------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [MINE_OLDER, MY_TWIN, MINE_NEWER])
def test_my_identity_that_goes_on_greeting_me_is_a_clone(other: int) -> None:
    """R-life-3: of whatever age the other one is, and before the doubt ends."""
    one = lives()
    told = {at: met(one, 0, at, ME, other) for at in range(1_000, 6_000, 1_000)}
    clone = Found(Finding.CLONE, ME, MINE, other)
    assert [at for at, found in told.items() if clone in found] == [4_000]
    assert one.state is State.CLONE
    assert not one.serves
    assert one.tick(99_999) == []


def test_my_identity_in_heartbeats_that_go_on_is_a_clone() -> None:
    one = lives()
    told = {at: beat(one, MY_TWIN, at, ME) for at in range(1_000, 6_000, 250)}
    assert [at for at, found in told.items() if found] == [3_500]
    assert told[3_500] == [Found(Finding.CLONE, ME, MINE, MY_TWIN)]


def test_my_own_heartbeats_are_no_clone() -> None:
    one = lives()
    assert [beat(one, MINE, at, ME) for at in range(0, 9_000, 250)] == [[]] * 36
    assert one.serves


def test_one_greeting_from_my_identity_is_doubt_and_then_amnesia() -> None:
    one = lives()
    assert met(one, 0, 1_000, ME, MINE_NEWER) == [Found(Finding.DOUBT, ME, MINE, MINE_NEWER)]
    assert one.tick(9_000) == [Found(Finding.AMNESIA, ME, MINE, MINE_NEWER)]


def test_a_peer_that_refuses_this_very_life_proves_a_clone() -> None:
    one = lives()
    assert one.on_refused(MINE_OLDER) == []
    assert one.on_refused(MY_TWIN) == []
    assert one.serves
    assert one.on_refused(MINE) == [Found(Finding.CLONE, ME, MINE, 0)]
    assert one.on_refused(MINE) == []
    assert not one.serves


def test_a_clone_does_not_outbid_the_other_one() -> None:
    """Who is one of two never raises its counter, or both would do so for ever."""
    one = lives()
    met(one, MINE_NEWER, 1_000)
    one.on_refused(MINE)
    assert one.next_deadline_ms() == 2**62
    assert met(one, incarnation(12, 3), 1_200) == []
    assert one.tick(99_999) == []


# --- a peer's -----------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [THEIRS_OLDER, THEIRS_TWIN])
def test_two_lives_of_a_peer_that_are_both_heard_are_clones(other: int) -> None:
    """R-life-3: told once, after signs for 2 T_dead."""
    one = lives()
    assert both_speak(one, THEIRS, other, 2_500) == []
    assert both_speak(one, THEIRS, other, 9_000, 2_500) == [
        Found(Finding.CLONE, PEER, THEIRS, other)
    ]
    assert one.is_clone(PEER)
    assert not one.is_clone(OTHER)
    assert one.serves


def test_a_restart_is_no_clone() -> None:
    """Late Heartbeats of the life before come for a while, and in any number."""
    one = lives()
    for now_ms in range(0, 2_000, 250):
        beat(one, THEIRS_OLDER, now_ms)
    for now_ms in range(2_000, 9_000, 250):
        assert beat(one, THEIRS, now_ms) == []
        if now_ms < 4_500:
            assert beat(one, THEIRS_OLDER, now_ms + 1) == []
    assert not one.is_clone(PEER)


def test_one_late_heartbeat_proves_nothing_however_often_it_comes() -> None:
    one = lives()
    for now_ms in range(0, 20_000, 250):
        beat(one, THEIRS, now_ms)
        assert beat(one, THEIRS_OLDER, now_ms, stamp_ms=77) == []


def test_a_burst_of_late_ones_proves_nothing() -> None:
    one = lives()
    beat(one, THEIRS, 5_000)
    assert [beat(one, THEIRS_OLDER, 5_000, stamp_ms=ms) for ms in range(0, 9_000, 250)] == [[]] * 36
    for now_ms in range(5_250, 8_000, 250):
        beat(one, THEIRS, now_ms)
    assert beat(one, THEIRS_OLDER, 8_000, stamp_ms=9_000) != [], "now they came for long enough"


def test_a_few_that_were_held_on_their_way_prove_nothing() -> None:
    """R-life-3: a living clone beats four times a second; every second one of them is enough."""
    for every_ms, clone in ((2_000, False), (500, True)):
        one, found = lives(), []
        for now_ms in range(40_000, 60_000, 250):
            found += beat(one, THEIRS, now_ms)
            if now_ms % every_ms == 0:
                found += beat(one, THEIRS_OLDER, now_ms, stamp_ms=now_ms - 30_000)
        assert [it.what is Finding.CLONE for it in found] == [True] * clone


def test_what_was_read_after_a_pause_proves_no_duration() -> None:
    one = lives()
    beat(one, THEIRS, 1_000)
    beat(one, THEIRS_OLDER, 1_010)
    one.on_overslept(60_000, 61_010)
    beat(one, THEIRS, 61_020)
    for stamp_ms in range(2_000, 5_000, 250):
        assert beat(one, THEIRS_OLDER, 61_020, stamp_ms=stamp_ms) == []


@pytest.mark.parametrize("other", [THEIRS_OLDER, THEIRS_TWIN])
def test_a_peer_that_forgot_its_age_is_no_clone(other: int) -> None:
    """R-life-2: the life that counts is silent; only the forgetful one speaks."""
    one = lives()
    beat(one, THEIRS, 1_000)
    for now_ms in range(1_100, 20_000, 250):
        assert beat(one, other, now_ms) == []
    for now_ms in range(20_000, 30_000, 1_000):
        assert met(one, 0, now_ms, PEER, other) == []
    assert not one.is_clone(PEER)


def test_greetings_of_the_other_life_count_as_signs() -> None:
    """It may have no telemetry that is heard here."""
    one = lives()
    found = []
    for now_ms in range(0, 70_000, 250):
        beat(one, THEIRS, now_ms)
        if now_ms % 30_000 == 0:
            found += met(one, 0, now_ms + 1, PEER, THEIRS_OLDER)
    assert found == [Found(Finding.CLONE, PEER, THEIRS, THEIRS_OLDER)]


def test_late_greetings_of_the_life_before_prove_nothing() -> None:
    """R-life-3: they carry no time, and any number of them may be half a minute late."""
    one = lives()
    for now_ms in range(0, 50_000, 250):
        beat(one, THEIRS, now_ms)
        assert met(one, 0, now_ms + 1, PEER, THEIRS_OLDER) == []
    assert not one.is_clone(PEER)


def test_a_newer_life_is_judged_anew() -> None:
    one = lives()
    both_speak(one, THEIRS, THEIRS_OLDER, 4_000)
    assert one.is_clone(PEER)
    assert beat(one, THEIRS_NEWER, 5_000) == []
    assert not one.is_clone(PEER)
    assert both_speak(one, THEIRS_NEWER, THEIRS, 9_000, 5_000) == [
        Found(Finding.CLONE, PEER, THEIRS_NEWER, THEIRS)
    ]


def test_the_table_is_bounded_and_clones_stay() -> None:
    one = lives()
    both_speak(one, THEIRS, THEIRS_OLDER, 4_000)
    for number in range(100, 100 + 2 * PEERS_MAX):
        beat(one, THEIRS, 5_000 + number, node_id(number))
    assert one.is_clone(PEER)
    assert len(one._peers) == PEERS_MAX


def test_many_lives_of_one_node_are_bounded() -> None:
    one = lives()
    for low in range(100):
        beat(one, incarnation(7, 1_000 + low), 1_000, ME)
    assert len(one._mine.tracks) == 8
