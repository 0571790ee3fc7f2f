"""Topics under whatever clients and peers say: nothing raises, all stays within its bounds."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.topics import Topics
from blackroad.ids import incarnation
from blackroad.limits import TOPIC_PREFIXES_MAX, UPDATES_WINDOW
from tests.protocol.shapes import any_values

ME, PEER = b"m" * 16, b"p" * 16
KEEP = 3_000
CLIENTS = st.sampled_from([b"one", b"two"])
NAMES = st.sampled_from(["a", "a/b", "a/b/c", "d", "sys/x", "", "a//b", "\x00", "#"])
PATTERNS = st.sampled_from(["#", "a/#", "*/b", "a", "d/*", "", "+", "a/#/b"])
SMALL = st.integers(0, 4)
INCS = st.builds(incarnation, st.integers(1, 3), st.integers(0, 1))
VALUES = st.builds(
    m.Value,
    NAMES,
    st.binary(max_size=900),
    SMALL,
    st.sampled_from([PEER, ME, b"x" * 16]),
    INCS,
    SMALL,
    SMALL,
)


def anything(*kinds: type[m.Message]) -> st.SearchStrategy[m.Message]:
    """Any message of these kinds, as it comes out of the codec."""
    return st.one_of([any_values(kind) for kind in kinds]).map(_decoded)


def _decoded(values: list[Any]) -> m.Message:
    frame = msgpack.packb([values])
    for scope in (codec.CLIENT, codec.PEER, codec.TELEMETRY):
        found, unknown = scope.decode(frame)
        if not unknown:
            return found[0]
    raise AssertionError("no scope has it")


PUBLISHES = st.builds(m.Publish, SMALL, NAMES, st.binary(max_size=900))
SUBSCRIBES = st.builds(m.Subscribe, SMALL, PATTERNS, st.booleans())
BY_CLIENT = st.tuples(
    st.just("client"),
    CLIENTS,
    PUBLISHES
    | SUBSCRIBES
    | st.builds(m.Unsubscribe, SMALL)
    | st.builds(m.Taken, SMALL)
    | anything(m.Publish, m.Subscribe, m.Unsubscribe, m.Taken),
)
BY_PEER = st.tuples(
    st.just("peer"),
    st.just(PEER),
    st.builds(m.AskTopics, SMALL, st.just(("",)) | st.just(("a/", "d/")), SMALL, SMALL)
    | st.builds(m.Topics, SMALL, SMALL, st.booleans(), st.lists(VALUES, max_size=5).map(tuple))
    | anything(m.AskTopics, m.Topics),
)
BY_PUB = st.tuples(
    st.just("pub"),
    st.just(PEER),
    VALUES.map(lambda v: m.Topic(*(getattr(v, name) for name in m.Topic.__struct_fields__)))
    | anything(m.Topic),
)
MARKS = st.tuples(st.just("mark"), SMALL, SMALL)
LOST = st.tuples(st.just("lost"), CLIENTS, st.none())
TURNS = st.tuples(st.just("turn"), st.sampled_from([0, 20, 1_000, 40_000]), st.booleans())


@settings(max_examples=300, deadline=None)
@given(st.lists(BY_CLIENT | BY_PEER | BY_PUB | MARKS | LOST | TURNS | TURNS, max_size=60), INCS)
def test_nothing_that_is_said_breaks_it(steps: list[tuple[str, Any, Any]], inc: int) -> None:
    topics = Topics(ME, incarnation(1, 1), KEEP)
    now_ms = 1_000
    for what, who, said in [*steps, ("turn", 50_000, True), ("turn", 50_000, False)]:
        match what:
            case "client":
                topics.on_client(who, said, now_ms)
            case "peer":
                topics.on_peer(who, said, now_ms)
            case "pub":
                topics.on_topic(who, said)
            case "mark":
                topics.on_mark(PEER, who, said, now_ms)
            case "lost":
                topics.lost(who)
            case "turn":
                now_ms += who
                there = {PEER: inc} if said else {}
                topics.turn(lambda there=there: there, now_ms, 7)  # type: ignore[misc]
        for message in [one for _, one in topics.tells] + [one for _, one in topics.sends]:
            codec.encode(message)
        for _, message in topics.tells:
            if isinstance(message, m.Updates) and message.serial:
                assert len(message.subs) == len(message.missed) > 0
        for value in topics.spreads:
            assert value.node == ME
            assert not value.name.startswith("sys")
        for waiting in (topics.tells, topics.sends, topics.spreads, topics.marks):
            waiting.clear()
        hold(topics)
    # All clients have been silent for longer than a subscription lives.
    status = topics.status()
    assert (status["subscriptions"], status["waiting_bytes"]) == (0, 0)
    assert (topics.prefixes, len(topics.heard)) == ((), 0)


def hold(topics: Topics) -> None:
    """What holds after every step."""
    for kept in (topics.own, topics.heard):
        assert 0 <= kept.bytes <= KEEP
        assert kept.bytes == sum(
            len(entry.value.payload) + 300
            for key, _ in kept.names()
            if (entry := kept.entry(key)) is not None
        )
    assert all(key[0] == ME for key, _ in topics.own.names())
    assert all(key[0] != ME for key, _ in topics.heard.names())
    lines = topics._lines.values()
    assert topics.status()["subscriptions"] == sum(len(line.subs) for line in lines)
    assert topics._total.bytes == sum(line.bytes for line in lines) >= 0
    assert all(len(line._sent) <= UPDATES_WINDOW for line in lines)
    assert len(topics.prefixes) <= TOPIC_PREFIXES_MAX
    assert bool(topics.prefixes) == any(line.subs for line in lines)
