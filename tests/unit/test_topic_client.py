"""What a program sees of topics: windows, losses, refusals, the end; without a daemon."""

from __future__ import annotations

import threading

import pytest

from blackroad.bus import messages as m
from blackroad.client import topics
from blackroad.client.topics import TopicSide, encode
from blackroad.errors import BlackroadError, Busy, NoDaemon, Unreachable, UsageError
from blackroad.limits import (
    PUBLISH_WINDOW,
    PUBLISH_WINDOW_BYTES,
    SUBSCRIBER_BYTES_MAX,
    SUBSCRIBER_VALUES_MAX,
    SUBSCRIPTIONS_OF_CLIENT_MAX,
)

NODE = b"n" * 16


class Daemon:
    """Takes what is posted, and confirms subscriptions unless it is told to refuse them."""

    def __init__(self) -> None:
        self.said: list[m.Message] = []
        self.refuses = ""
        self.silent = False
        self.serial = 0
        self.side = TopicSide(self._post, "ada")

    def _post(self, message: m.Message) -> None:
        self.said.append(message)
        if isinstance(message, m.Subscribe) and not self.silent:
            if self.refuses:
                self.side.on_message(m.Updates(0, (message.sub,), (0,), error=self.refuses))
            else:
                self.updates((message.sub,), (0,), began=True)

    def updates(
        self, subs: tuple[int, ...], missed: tuple[int, ...], *values: m.Value, began: bool = False
    ) -> None:
        self.serial += 1
        self.side.on_message(m.Updates(self.serial, subs, missed, values, began))

    def kinds(self, kind: type) -> list[m.Message]:
        return [one for one in self.said if isinstance(one, kind)]


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setattr(topics, "ROOM_S", 0.01)
    monkeypatch.setattr(topics, "BEGIN_S", 0.01)
    return Daemon()


def value(payload: bytes, name: str = "x") -> m.Value:
    return m.Value(name, payload, 1, NODE, 1, 1, 5, "bob")


# --- publishing ---------------------------------------------------------------------------------


def test_no_more_is_under_way_than_the_window(daemon: Daemon) -> None:
    for number in range(PUBLISH_WINDOW):
        daemon.side.publish("x", number)
    with pytest.raises(Busy, match=str(PUBLISH_WINDOW)):
        daemon.side.publish("x", 0)
    daemon.side.on_message(m.Taken(1))
    daemon.side.publish("x", 0)
    with pytest.raises(Busy):
        daemon.side.publish("x", 0)
    with pytest.raises(Unreachable):
        daemon.side.published(0.01)
    daemon.side.on_message(m.Taken(PUBLISH_WINDOW + 1))
    daemon.side.published(0.01)
    serials = [one.serial for one in daemon.kinds(m.Publish)]  # type: ignore[attr-defined]
    assert serials == list(range(1, PUBLISH_WINDOW + 2))


def test_the_window_counts_bytes_too(daemon: Daemon) -> None:
    fit = PUBLISH_WINDOW_BYTES // 16_203 + 1
    for _ in range(fit):
        daemon.side.publish("x", bytes(16_000))
    with pytest.raises(Busy):
        daemon.side.publish("x", b"")
    assert len(daemon.said) == fit < PUBLISH_WINDOW


def test_a_refusal_is_raised_once_at_the_next_occasion(daemon: Daemon) -> None:
    daemon.side.publish("x", 1)
    daemon.side.on_message(m.Taken(1, "the role `view` of your key does not allow this"))
    with pytest.raises(UsageError, match="role `view`"):
        daemon.side.publish("x", 2)
    daemon.side.publish("x", 3)
    assert len(daemon.said) == 2


def test_what_was_under_way_when_the_daemon_went_is_not_waited_for(daemon: Daemon) -> None:
    sub = daemon.side.subscribe("#", True)
    for number in range(PUBLISH_WINDOW):
        daemon.side.publish("x", number)
    daemon.side.reconnected()
    daemon.side.publish("x", 0)
    assert len(daemon.kinds(m.Subscribe)) == 2
    assert sub.restarts == 1


def test_a_lost_taken_does_not_stop_a_program_for_ever(daemon: Daemon) -> None:
    for number in range(PUBLISH_WINDOW):
        daemon.side.publish("x", number)
    daemon.side.check(0)
    daemon.side.check(topics.STALL_MS - 1)
    with pytest.raises(Busy):
        daemon.side.publish("x", 0)
    daemon.side.check(topics.STALL_MS)
    daemon.side.publish("x", 0)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (object(), "object is no number"),
        (2**64, "cannot be published"),
        ([{1, "a"}, object()], "object"),
        (bytes(16 * 1024 - 2), "16 KiB"),
    ],
)
def test_what_is_no_value(wrong: object, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        encode(wrong)
    assert told in caught.value.message
    assert "put" in caught.value.hint


def test_numbers_of_numpy_are_numbers() -> None:
    import numpy as np

    assert encode(np.float64(21.5)) == encode(21.5)
    assert encode([np.int32(7)]) == encode([7])
    with pytest.raises(UsageError):
        encode(np.zeros(3))


# --- subscribing --------------------------------------------------------------------------------


def test_updates_go_to_their_subscriptions(daemon: Daemon) -> None:
    one, two = daemon.side.subscribe("a/#", True), daemon.side.subscribe("#", False)
    daemon.updates((1, 2), (0, 3), value(b"\x01", "a/x"), value(b"\x02", "a/y"))
    daemon.updates((9,), (0,), value(b"\x03"))
    assert [(u.topic, u.value, u.missed) for u in (one.get(0), one.get(0))] == [
        ("a/x", 1, 0),
        ("a/y", 2, 0),
    ]
    got = [two.get(0), two.get(0)]
    assert [u.missed for u in got] == [3, 0]
    assert (got[0].node, got[0].user, got[0].time_ms) == (NODE, "bob", 5)
    assert two.missed == 3
    with pytest.raises(TimeoutError):
        one.get(0)


def test_the_oldest_are_dropped_and_counted(daemon: Daemon) -> None:
    sub = daemon.side.subscribe("#", True)
    for number in range(SUBSCRIBER_VALUES_MAX + 10):
        daemon.updates((1,), (1 if number == 2 else 0,), value(b"\xcd" + number.to_bytes(2, "big")))
    first = sub.get(0)
    assert (first.value, first.missed) == (10, 11)
    assert sub.get(0).missed == 0
    assert sub.missed == 11


def test_what_waits_is_bounded_in_bytes(daemon: Daemon) -> None:
    sub = daemon.side.subscribe("#", True)
    big = b"\xc5\x3e\x80" + bytes(16_000)
    for _ in range(400):
        daemon.updates((1,), (0,), value(big))
    missed = sub.get(0).missed
    daemon.side.close(NoDaemon("gone"))
    left = 400 - missed
    assert left * 16_203 <= SUBSCRIBER_BYTES_MAX < (left + 1) * 16_203
    assert [sub.get(0).missed for _ in range(left - 1)] == [0] * (left - 1)
    with pytest.raises(NoDaemon):
        sub.get(0)


def test_what_cannot_be_read_counts_as_lost(daemon: Daemon) -> None:
    sub = daemon.side.subscribe("#", True)
    daemon.updates((1,), (2,), value(b"\xc1"))
    daemon.updates((1,), (0,), value(b"\xff\xff"), value(b"\x07"))
    update = sub.get(0)
    assert (update.value, update.missed) == (7, 4)
    assert sub.missed == 4


def test_taken_is_said_before_the_window_is_used_up(daemon: Daemon) -> None:
    daemon.side.subscribe("#", True)
    for _ in range(200):
        daemon.updates((1,), (0,), value(b"\x01"))
    serials = [one.serial for one in daemon.kinds(m.Taken)]  # type: ignore[attr-defined]
    assert serials == list(range(topics.ACK_MESSAGES, 201, topics.ACK_MESSAGES))


def test_closing_ends_the_iteration_and_tells_the_daemon(daemon: Daemon) -> None:
    with daemon.side.subscribe("#", True) as sub:
        daemon.updates((1,), (0,), value(b"\x01"))
        got = []
        for update in sub:
            got.append(update.value)
            sub.close()
    assert got == [1]
    assert [type(one) for one in daemon.said] == [m.Subscribe, m.Unsubscribe]
    with pytest.raises(UsageError, match="is closed"):
        sub.get(0)


def test_another_thread_that_waits_is_woken_by_close(daemon: Daemon) -> None:
    sub = daemon.side.subscribe("#", True)
    got: list[list[object]] = []
    waiting = threading.Thread(target=lambda: got.append(list(sub)))
    waiting.start()
    sub.close()
    waiting.join(10)
    assert got == [[]]


def test_refused_subscriptions_raise(daemon: Daemon) -> None:
    daemon.refuses = "too many subscriptions"
    with pytest.raises(UsageError, match="too many"):
        daemon.side.subscribe("#", True)
    daemon.refuses = ""
    daemon.silent = True
    with pytest.raises(Unreachable):
        daemon.side.subscribe("#", True)
    daemon.silent = False
    for number in range(SUBSCRIPTIONS_OF_CLIENT_MAX):
        daemon.side.subscribe(f"n{number}", True)
    with pytest.raises(UsageError, match="at most"):
        daemon.side.subscribe("#", True)


def test_subscriptions_are_renewed(daemon: Daemon) -> None:
    daemon.side.check(0)
    daemon.side.subscribe("#", False)
    daemon.side.check(topics.RENEW_MS - 1)
    assert len(daemon.kinds(m.Subscribe)) == 1
    daemon.side.check(topics.RENEW_MS)
    assert daemon.kinds(m.Subscribe) == [m.Subscribe(1, "#", False)] * 2


@pytest.mark.parametrize("end", [NoDaemon("gone"), BlackroadError("the daemon refused")])
def test_the_end_of_the_connection_is_everybodys(daemon: Daemon, end: BlackroadError) -> None:
    sub = daemon.side.subscribe("#", True)
    daemon.updates((1,), (0,), value(b"\x01"))
    daemon.side.close(end)
    assert sub.get(0).value == 1
    for call in (
        lambda: sub.get(0),
        lambda: daemon.side.publish("x", 1),
        lambda: daemon.side.subscribe("x", True),
        lambda: daemon.side.published(1),
    ):
        with pytest.raises(type(end)):
            call()
