"""Each row of the state table of "Opening a link", and the bounds of what waits on a link."""

from __future__ import annotations

import pytest

from blackroad.bus import messages as m
from blackroad.bus.codec import Header
from blackroad.bus.link import (
    GREET_MS,
    GREET_MS_MAX,
    NOBODYS_SESSION,
    OUTBOX_BYTES_MAX,
    OUTBOX_MESSAGES_MAX,
    Link,
    common_version,
)
from blackroad.ids import incarnation
from blackroad.limits import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, WAITING_BYTES_MAX
from tests.unit.builders import ME, OTHER, PEER

MINE = incarnation(7, 0xAAAA)
MINE_BEFORE = incarnation(6, 0xBBBB)
THEIRS = incarnation(3, 0xCCCC)
THEIRS_NEWER = incarnation(4, 0x0001)
THEIRS_OLDER = incarnation(2, 0xFFFF)
THEIRS_TWIN = incarnation(3, 0xFFFF)
THERE = "tcp://10.0.0.2:7701"


def a_link(now_ms: int = 0, endpoints: tuple[str, ...] = (THERE,)) -> Link:
    return Link(PEER, endpoints, now_ms)


def hello(inc: int = THEIRS, your_inc: int = MINE, **changes: object) -> m.Hello:
    fields: dict[str, object] = {
        "version_min": PROTOCOL_VERSION_MIN,
        "version_max": PROTOCOL_VERSION_MAX,
        "cluster": b"c" * 16,
        "node": PEER,
        "inc": inc,
        "your_inc": your_inc,
        "name": "cellar",
        "endpoints": (THERE,),
        "telemetry_port": 7702,
        "bulk_port": 7703,
    }
    return m.Hello(**{**fields, **changes})  # type: ignore[arg-type]


def welcome(session: int = 51, inc: int = THEIRS, your_inc: int = MINE) -> m.Welcome:
    return m.Welcome(PROTOCOL_VERSION_MAX, session, 1, your_inc, PEER, inc)


def opened() -> Link:
    """A link that is open in both directions."""
    link = a_link()
    assert link.on_hello(hello(), MINE, 1001)
    link.greeted(0)
    assert link.on_welcome(welcome(), MINE)
    return link


def header(sequence: int, session: int = 1001) -> Header:
    return Header(PROTOCOL_VERSION_MAX, session, sequence)


# --- closed, greeting ---------------------------------------------------------------------------


def test_an_address_is_greeted_at_once() -> None:
    link = a_link(500)
    assert not link.open
    assert link.greeting_due(500)


def test_a_greeting_is_repeated_after_a_second_and_not_before() -> None:
    link = a_link()
    link.greeted(100)
    assert not link.greeting_due(100 + GREET_MS - 1)
    assert link.greeting_due(100 + GREET_MS)


def test_every_third_silence_tries_the_next_address() -> None:
    link = a_link(endpoints=(THERE, "tcp://10.0.0.3:7701"))
    assert [link.greeted(n * GREET_MS) for n in range(6)] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]


def test_a_single_address_is_never_given_up() -> None:
    link = a_link()
    assert not any(link.greeted(n * GREET_MS) for n in range(10))
    assert link.endpoint() == THERE


def test_addresses_are_taken_in_turn() -> None:
    link = a_link(endpoints=("tcp://a:1", "tcp://b:1"))
    tried = []
    for number in range(3):
        link.endpoint_at = number
        tried.append(link.endpoint())
    assert tried == ["tcp://a:1", "tcp://b:1", "tcp://a:1"]
    assert a_link(endpoints=()).endpoint() == ""


# --- Welcome ------------------------------------------------------------------------------------


def test_a_welcome_to_my_present_life_opens() -> None:
    link = a_link()
    link.greeted(0)
    assert link.on_welcome(welcome(51), MINE)
    assert link.open
    assert not link.greeting_due(10 * GREET_MS)
    assert [link.next_sequence() for _ in range(3)] == [1, 2, 3]


def test_a_welcome_to_an_earlier_life_of_mine_is_dropped() -> None:
    link = a_link()
    link.greeted(0)
    assert not link.on_welcome(welcome(your_inc=MINE_BEFORE), MINE)
    assert not link.open


def test_a_welcome_from_an_older_life_of_the_peer_is_dropped() -> None:
    link = a_link()
    link.on_hello(hello(THEIRS_NEWER), MINE, 1001)
    assert not link.on_welcome(welcome(inc=THEIRS), MINE)
    assert not link.open
    assert link.inc == THEIRS_NEWER


def test_session_zero_opens_nothing() -> None:
    link = a_link()
    assert not link.on_welcome(welcome(0), MINE)
    assert not link.open


def test_nobodys_session_opens_nothing_and_changes_nothing() -> None:
    """It answers a late Hello of an earlier life; the true session goes on where it was."""
    fresh = a_link()
    assert not fresh.on_welcome(welcome(NOBODYS_SESSION), MINE)
    assert not fresh.open
    link = opened()
    assert [link.next_sequence() for _ in range(5)][-1] == 5
    assert not link.on_welcome(welcome(NOBODYS_SESSION), MINE)
    assert link.out_session == 51
    assert link.next_sequence() == 6


def test_a_restated_session_counts_onward() -> None:
    link = opened()
    assert link.next_sequence() == 1
    assert not link.on_welcome(welcome(51), MINE)
    assert link.next_sequence() == 2


def test_a_session_restated_after_the_peer_was_taken_for_dead_counts_onward() -> None:
    link = opened()
    assert [link.next_sequence() for _ in range(5)][-1] == 5
    # What the transport does with the link of a peer that is dead.
    link.out_session = 0
    assert link.on_welcome(welcome(51), MINE)
    assert link.next_sequence() == 6


def test_another_session_is_taken_and_counts_from_one() -> None:
    link = opened()
    link.enqueue(b"waits")
    assert [link.next_sequence() for _ in range(5)][-1] == 5
    assert link.on_welcome(welcome(52), MINE)
    assert link.out_session == 52
    assert link.next_sequence() == 1
    # Only a newer life makes what waits stale.
    assert list(link.outbox) == [b"waits"]


# --- Reject -------------------------------------------------------------------------------------


def test_a_rejected_greeting_backs_off_twice_as_long_each_time() -> None:
    link = a_link()
    waits = []
    now_ms = 0
    for _ in range(8):
        assert link.greeting_due(now_ms)
        link.greeted(now_ms)
        link.on_reject(m.Reject("cluster"), now_ms)
        waits.append(link.greet_due_ms - now_ms)
        assert not link.greeting_due(link.greet_due_ms - 1)
        now_ms = link.greet_due_ms
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]
    assert waits[-1] == GREET_MS_MAX


def test_the_back_off_ends_with_a_welcome() -> None:
    link = a_link()
    for _ in range(4):
        link.on_reject(m.Reject("version"), 0)
    assert link.on_welcome(welcome(), MINE)
    link.on_reject(m.Reject("version"), 0)
    assert link.greet_due_ms == 1_000


@pytest.mark.parametrize("reason", ["version", "cluster", "revoked", "clone"])
def test_a_reject_closes_an_open_link_and_drops_what_waits(reason: str) -> None:
    link = opened()
    link.enqueue(b"one")
    link.enqueue(b"two")
    link.on_reject(m.Reject(reason), 100)
    assert not link.open
    assert link.take() == []
    assert link.dropped == 2
    assert not link.greeting_due(100 + GREET_MS - 1)


def test_a_missing_session_is_asked_for_again_and_what_waits_stays() -> None:
    link = opened()
    link.enqueue(b"one")
    link.on_reject(m.Reject("session"), 100)
    assert not link.open
    assert link.greeting_due(100)
    assert link.take() == [b"one"]
    assert link.dropped == 0


# --- Hello --------------------------------------------------------------------------------------


def test_a_hello_tells_who_the_peer_is() -> None:
    link = a_link(endpoints=("tcp://somewhere:1",))
    assert link.on_hello(hello(), MINE, 1001)
    assert (link.inc, link.name) == (THEIRS, "cellar")
    assert link.endpoints == (THERE,)
    assert (link.telemetry_port, link.bulk_port) == (7702, 7703)


def test_a_repeated_hello_restates_the_session() -> None:
    link = opened()
    assert link.accepts(header(1))
    assert link.on_hello(hello(), MINE, 1002)
    assert link.in_session == 1001
    assert not link.accepts(header(1))
    assert link.accepts(header(2))


def test_a_hello_that_does_not_know_my_life_restates_too() -> None:
    link = opened()
    assert link.on_hello(hello(your_inc=0), MINE, 1002)
    assert link.in_session == 1001


def test_a_hello_that_knows_another_life_of_mine_gets_a_new_session() -> None:
    link = opened()
    assert link.accepts(header(9))
    assert link.on_hello(hello(your_inc=MINE_BEFORE), MINE, 1002)
    assert link.in_session == 1002
    assert link.accepts(header(1, 1002))


def test_a_hello_from_an_older_life_changes_nothing() -> None:
    link = opened()
    assert not link.on_hello(hello(THEIRS_OLDER, endpoints=("tcp://old:1",)), MINE, 1002)
    assert (link.inc, link.in_session, link.endpoints) == (THEIRS, 1001, (THERE,))
    assert link.open


def test_the_answer_repeats_what_the_caller_needs_to_know_it_by() -> None:
    link = a_link()
    greeting = hello(dialled="tcp://seed:7701")
    link.on_hello(greeting, MINE, 1001)
    told = link.welcome(greeting, ME, MINE, (m.Peer(OTHER, "tcp://10.0.0.3:7701"),), 77)
    assert told == m.Welcome(
        1,
        1001,
        WAITING_BYTES_MAX,
        THEIRS,
        ME,
        MINE,
        (m.Peer(OTHER, "tcp://10.0.0.3:7701"),),
        "tcp://seed:7701",
        77,
    )


@pytest.mark.parametrize("other", [THEIRS_OLDER, THEIRS_TWIN])
def test_another_life_than_the_newest_is_told_of_it_and_gets_no_session(other: int) -> None:
    """R-life-2: it is reminded; R-link-5: what it sends must not count."""
    link = opened()
    greeting = hello(other)
    assert not link.on_hello(greeting, MINE, 1002)
    told = link.welcome(greeting, ME, MINE, ())
    assert told.your_inc == THEIRS
    assert told.session not in (0, link.in_session)
    assert (link.inc, link.in_session) == (THEIRS, 1001)


@pytest.mark.parametrize(
    ("low", "high", "spoken"),
    [
        (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MAX),
        (1, 99, PROTOCOL_VERSION_MAX),
        (PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MAX + 1, PROTOCOL_VERSION_MAX),
        (PROTOCOL_VERSION_MAX + 1, PROTOCOL_VERSION_MAX + 2, 0),
        (0, PROTOCOL_VERSION_MIN - 1, 0),
        (2, 1, 0),
    ],
)
def test_the_highest_version_in_common(low: int, high: int, spoken: int) -> None:
    assert common_version(hello(version_min=low, version_max=high)) == spoken


# --- sequences ----------------------------------------------------------------------------------


def test_sequences_only_rise_and_gaps_are_counted() -> None:
    link = opened()
    assert [link.accepts(header(n)) for n in (1, 2, 2, 5, 4, 3, 6)] == [
        True,
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    assert link.gaps == 2


def test_a_first_sequence_beyond_one_is_a_gap() -> None:
    link = opened()
    assert link.accepts(header(4))
    assert link.gaps == 3


@pytest.mark.parametrize("session", [0, 51, 1000, 1002])
def test_a_session_that_was_not_issued_does_not_count(session: int) -> None:
    link = opened()
    assert not link.accepts(header(1, session))
    assert link.accepts(header(1))


def test_sequence_zero_is_never_news() -> None:
    assert not opened().accepts(header(0))


def test_nothing_counts_before_a_session_was_issued() -> None:
    link = a_link()
    assert not link.accepts(header(1))
    assert not link.accepts(header(1, 0)), "session 0 belongs to greetings"


# --- lives --------------------------------------------------------------------------------------


def test_a_newer_life_resets_both_directions() -> None:
    link = opened()
    link.accepts(header(3))
    link.next_sequence()
    link.enqueue(b"for the life before")
    assert link.meet(THEIRS_NEWER)
    assert not link.open
    assert link.greeting_due(0)
    assert link.take() == []
    assert link.dropped == 1
    assert not link.accepts(header(4))
    assert link.on_hello(hello(THEIRS_NEWER), MINE, 1002)
    assert link.accepts(header(1, 1002))
    assert link.on_welcome(welcome(77, THEIRS_NEWER), MINE)
    assert link.next_sequence() == 1


@pytest.mark.parametrize("how", ["hello", "welcome"])
def test_a_newer_life_is_learnt_from_greetings_too(how: str) -> None:
    link = opened()
    link.enqueue(b"for the life before")
    if how == "hello":
        assert link.on_hello(hello(THEIRS_NEWER), MINE, 1002)
        assert link.in_session == 1002
        assert not link.open
    else:
        assert link.on_welcome(welcome(77, THEIRS_NEWER), MINE)
        assert link.in_session == 0
        assert link.out_session == 77
    assert link.take() == []


def test_the_first_life_heard_of_drops_nothing() -> None:
    link = a_link()
    link.enqueue(b"first words")
    assert link.meet(THEIRS)
    assert link.take() == [b"first words"]
    assert link.dropped == 0


@pytest.mark.parametrize("inc", [THEIRS, THEIRS_OLDER, THEIRS_TWIN])
def test_the_same_or_an_older_life_is_no_news(inc: int) -> None:
    link = opened()
    link.enqueue(b"stays")
    assert not link.meet(inc)
    assert link.open
    assert link.take() == [b"stays"]


# --- what waits ---------------------------------------------------------------------------------


def test_what_waits_leaves_in_order_and_once() -> None:
    link = opened()
    for word in (b"a", b"b", b"c"):
        link.enqueue(word)
    assert link.take() == [b"a", b"b", b"c"]
    assert link.take() == []
    assert link.outbox_bytes == 0


def test_what_the_socket_refused_leaves_first_next_time() -> None:
    link = opened()
    for word in (b"a", b"b", b"c"):
        link.enqueue(word)
    taken = link.take()
    link.enqueue(b"d")
    link.put_back(taken[1:])
    assert link.outbox_bytes == 3
    assert link.take() == [b"b", b"c", b"d"]


def test_the_line_is_bounded_in_messages_and_the_oldest_go() -> None:
    link = a_link()
    for number in range(OUTBOX_MESSAGES_MAX + 3):
        link.enqueue(number.to_bytes(4, "big"))
    assert link.dropped == 3
    waiting = link.take()
    assert len(waiting) == OUTBOX_MESSAGES_MAX
    assert waiting[0] == (3).to_bytes(4, "big")


def test_the_line_is_bounded_in_bytes_and_the_oldest_go() -> None:
    link = a_link()
    large = bytes(64 * 1024)
    fit = OUTBOX_BYTES_MAX // len(large)
    for _ in range(fit + 2):
        link.enqueue(large)
    assert len(link.outbox) == fit
    assert link.dropped == 2
    assert link.outbox_bytes == fit * len(large)


def test_what_was_put_back_is_bounded_with_the_next_message() -> None:
    link = a_link()
    large = bytes(64 * 1024)
    fit = OUTBOX_BYTES_MAX // len(large)
    link.put_back([large] * (fit + 5))
    link.enqueue(large)
    assert link.outbox_bytes <= OUTBOX_BYTES_MAX
    assert link.dropped == 6
