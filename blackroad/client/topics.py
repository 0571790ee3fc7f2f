"""Publish and subscribe from a program: values out, updates in, losses counted.

Source  docs/topics.md; docs/protocol.md, "Topics".  Edge: called by any thread, and by the one
that speaks with the daemon.  This file must not know sockets or tasks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from blackroad.bus import messages as m
from blackroad.bus.patterns import Pattern, check_name
from blackroad.errors import BlackroadError, Busy, NoDaemon, Unreachable, UsageError
from blackroad.ids import U32_MAX
from blackroad.limits import (
    PUBLISH_WINDOW,
    PUBLISH_WINDOW_BYTES,
    SUBSCRIBER_BYTES_MAX,
    SUBSCRIBER_VALUES_MAX,
    SUBSCRIPTION_LEASE_MS,
    SUBSCRIPTIONS_OF_CLIENT_MAX,
    TOPIC_PAYLOAD_BYTES_MAX,
)

if TYPE_CHECKING:
    from types import TracebackType

    from blackroad.bus.topic_kinds import Value

ROOM_S = 5.0
BEGIN_S = 5.0
RENEW_MS = SUBSCRIPTION_LEASE_MS // 3
STALL_MS = 15_000
ACK_MESSAGES = 16
ACK_BYTES = 256 * 1024
ENVELOPE_BYTES = 200


class Update(NamedTuple):
    """One value that somebody published.

    Units  `time_ms` is the wall clock of the node it was published on; `missed` counts values of
           this subscription that were lost between the one before and this one.
    """

    topic: str
    value: Any
    node: bytes
    user: str
    time_ms: int
    missed: int


class Subscription:
    """Values of the topics that a pattern chooses, as they come; iterate over it, or `get`.

    It is a context manager.  What a program does not read in time is lost, the oldest first, and
    the next update says how many in `missed`.  `restarts` counts how often the daemon had lost
    the subscription (it was started anew): what was missed meanwhile is in no `missed`.
    """

    def __init__(self, side: TopicSide, id_: int, pattern: str, snapshot: bool) -> None:
        self.pattern = pattern
        self.snapshot = snapshot
        self.restarts = -1
        self.missed = 0
        self._side = side
        self._id = id_
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._waiting: deque[tuple[Value, int]] = deque()
        self._bytes = 0
        self._pending = 0
        self._error: BaseException | None = None
        self._closed = False

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Update]:
        return self

    def __next__(self) -> Update:
        try:
            return self.get()
        except _Closed:
            raise StopIteration from None

    def get(self, timeout: float | None = None) -> Update:
        """Return the next update; wait for it, at most `timeout` seconds.

        Raises  TimeoutError; NoDaemon where the client was closed; UsageError where the daemon
                refused the subscription, or after `close`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._news:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self._news.wait_for(self._is_due, left):
                    raise TimeoutError(f"nothing came on `{self.pattern}` within {timeout:g} s")
                if not self._waiting:
                    raise self._error or _Closed(
                        f"the subscription to `{self.pattern}` is closed",
                        hint="subscribe again",
                    )
                value, missed = self._waiting.popleft()
                self._bytes -= len(value.payload) + ENVELOPE_BYTES
            try:
                found = msgspec.msgpack.decode(value.payload)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                # Not written by a program that keeps to the rules: as good as lost.
                self._lose(missed + 1)
                continue
            return Update(value.name, found, value.node, value.user, value.time_ms, missed)

    def _is_due(self) -> bool:
        return bool(self._waiting) or self._closed or self._error is not None

    def close(self) -> None:
        """End the subscription; whoever waits for an update stops waiting."""
        with self._news:
            if self._closed:
                return
            self._closed = True
            self._waiting.clear()
            self._news.notify_all()
        self._side.leave(self._id)

    # --- called by the thread that speaks with the daemon -----------------------------------------

    def feed(self, values: tuple[Value, ...], missed: int) -> None:
        """Values came; what is not read is dropped, the oldest first."""
        with self._news:
            if self._closed:
                return
            self._pending += missed
            self.missed += missed
            for value in values:
                self._waiting.append((value, self._pending))
                self._pending = 0
                self._bytes += len(value.payload) + ENVELOPE_BYTES
            while len(self._waiting) > SUBSCRIBER_VALUES_MAX or self._bytes > SUBSCRIBER_BYTES_MAX:
                value, lost = self._waiting.popleft()
                self._bytes -= len(value.payload) + ENVELOPE_BYTES
                self.missed += 1
                self._hand_on(lost + 1)
            self._news.notify_all()

    def _lose(self, count: int) -> None:
        with self._news:
            self.missed += 1
            self._hand_on(count)

    def _hand_on(self, count: int) -> None:
        """Let the next update tell of so many more that are missing before it."""
        if self._waiting:
            value, missed = self._waiting[0]
            self._waiting[0] = (value, missed + count)
        else:
            self._pending += count

    def began(self) -> None:
        """The daemon knows of the subscription, now or again."""
        with self._news:
            self.restarts += 1
            self._news.notify_all()

    def fail(self, error: BaseException) -> None:
        """There is no subscription, or no daemon, any more."""
        with self._news:
            self._error = self._error or error
            self._news.notify_all()

    def wait_until_began(self, timeout_s: float) -> None:
        """Wait until the daemon has the subscription.

        Raises  Unreachable; what the daemon refused it with.
        """
        with self._news:
            done = self._news.wait_for(
                lambda: self.restarts >= 0 or self._closed or self._error is not None, timeout_s
            )
            if self._error is not None and self.restarts < 0:
                raise self._error
        if not done:
            self.close()
            raise Unreachable(
                f"the daemon did not take the subscription to `{self.pattern}` within "
                f"{timeout_s:g} s",
                hint="`blackroad nodes` shows whether it answers, and which version it has",
            )


class _Closed(UsageError):
    """The program itself ended the subscription."""


class TopicSide:
    """Topics of one connection: what this program publishes and what it subscribed to."""

    def __init__(self, post: Callable[[m.Message], None], user: str) -> None:
        self._post = post
        self._user = user[:64]
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._subs: dict[int, Subscription] = {}
        self._sub_serial = 0
        self._serial = 0
        self._taken = 0
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._refused: BlackroadError | None = None
        self._gone: BaseException | None = None
        self._untaken = 0
        self._untaken_bytes = 0
        self._renew_ms = 0
        # How far the daemon had come when it was looked at, and when it had come no further.
        self._seen = 0
        self._seen_ms = 0

    # --- called by any thread ---------------------------------------------------------------------

    def publish(self, topic: str, value: Any) -> None:
        """Hand a value to the daemon; wait where it has not taken what came before.

        Raises  UsageError, also for what it refused earlier; Busy; NoDaemon.
        """
        check_name(topic)
        payload = encode(value)
        with self._room:
            if not self._room.wait_for(self._has_room, ROOM_S):
                raise Busy(
                    f"the daemon has not taken the last {len(self._sizes)} values within "
                    f"{ROOM_S:g} s",
                    hint="publish less often, or look at `blackroad nodes`: is it overloaded?",
                )
            self._raise_refusal()
            self._serial += 1
            size = len(payload) + ENVELOPE_BYTES
            self._sizes.append(size)
            self._bytes += size
            # Under the lock: the order of serials is the order on the wire.
            self._post(m.Publish(self._serial, topic, payload, self._user))

    def _has_room(self) -> bool:
        full = len(self._sizes) >= PUBLISH_WINDOW or self._bytes >= PUBLISH_WINDOW_BYTES
        return not full or self._refused is not None or self._gone is not None

    def _raise_refusal(self) -> None:
        if self._gone is not None:
            raise self._gone
        refused, self._refused = self._refused, None
        if refused is not None:
            raise refused

    def published(self, timeout_s: float) -> None:
        """Wait until the daemon has taken everything.

        Raises  what it refused; Unreachable where it does not come to that in time.
        """
        with self._room:
            done = self._room.wait_for(
                lambda: not self._sizes or self._refused is not None or self._gone is not None,
                timeout_s,
            )
            self._raise_refusal()
        if not done:
            raise Unreachable(
                f"the daemon has not taken what was published within {timeout_s:g} s",
                hint="`blackroad nodes` shows whether it answers",
            )

    def subscribe(self, pattern: str, snapshot: bool) -> Subscription:
        """Subscribe; return when the daemon has it.

        Raises  UsageError where the pattern is none; Unreachable; what the daemon refused it with.
        """
        Pattern(pattern)
        with self._lock:
            if self._gone is not None:
                raise self._gone
            if len(self._subs) >= SUBSCRIPTIONS_OF_CLIENT_MAX:
                raise UsageError(
                    f"a client has at most {SUBSCRIPTIONS_OF_CLIENT_MAX} subscriptions",
                    hint="close one, or subscribe to a wider pattern",
                )
            self._sub_serial = self._sub_serial % U32_MAX + 1
            id_ = self._sub_serial
            sub = self._subs[id_] = Subscription(self, id_, pattern, snapshot)
        self._post(m.Subscribe(id_, pattern, snapshot))
        try:
            sub.wait_until_began(BEGIN_S)
        except BaseException:
            sub.close()
            raise
        return sub

    def leave(self, id_: int) -> None:
        """A subscription was closed."""
        with self._lock:
            known = self._subs.pop(id_, None)
        if known is not None and self._gone is None:
            self._post(m.Unsubscribe(id_))

    # --- called by the thread that speaks with the daemon -----------------------------------------

    def on_message(self, message: m.Message) -> None:
        """Something about topics came from the daemon."""
        match message:
            case m.Updates():
                self._on_updates(message)
            case m.Taken():
                if message.error:
                    self.refused(message.error)
                self._settle(message.serial)

    def _on_updates(self, updates: m.Updates) -> None:
        for id_, missed in zip(updates.subs, updates.missed, strict=False):
            with self._lock:
                sub = self._subs.get(id_)
            if sub is None:
                continue
            if updates.error:
                sub.fail(UsageError(updates.error))
                continue
            if updates.began:
                sub.began()
            sub.feed(updates.values, missed)
        if updates.error:
            return
        self._untaken += 1
        self._untaken_bytes += sum(len(one.payload) + ENVELOPE_BYTES for one in updates.values)
        if self._untaken >= ACK_MESSAGES or self._untaken_bytes >= ACK_BYTES:
            self._untaken = self._untaken_bytes = 0
            self._post(m.Taken(updates.serial))

    def _settle(self, serial: int) -> None:
        with self._room:
            count = min(max(0, serial - self._taken), len(self._sizes))
            self._taken = max(self._taken, serial)
            for _ in range(count):
                self._bytes -= self._sizes.popleft()
            if count:
                self._room.notify_all()

    def refused(self, text: str) -> None:
        """The daemon did not take a value."""
        with self._room:
            self._refused = UsageError(f"the daemon did not take a value: {text}")
            self._room.notify_all()

    def reconnected(self) -> None:
        """The daemon came back: what was on its way is lost, and it may know nobody any more."""
        self._settle(self._serial)
        self._untaken = self._untaken_bytes = 0
        self._renew()

    def check(self, now_ms: int) -> None:
        """Keep subscriptions alive; called about twice a second."""
        if now_ms >= self._renew_ms:
            self._renew_ms = now_ms + RENEW_MS
            self._renew()
        if self._taken != self._seen or not self._sizes:
            self._seen, self._seen_ms = self._taken, now_ms
        elif now_ms - self._seen_ms >= STALL_MS:
            # Nothing is repeated: values are newer than that, or are gone.
            self._settle(self._serial)

    def _renew(self) -> None:
        with self._lock:
            subs = [(id_, sub) for id_, sub in self._subs.items() if sub.restarts >= 0]
        for id_, sub in subs:
            self._post(m.Subscribe(id_, sub.pattern, sub.snapshot))

    def close(self, error: BaseException) -> None:
        """There is no daemon any more."""
        if isinstance(error, NoDaemon):
            error = NoDaemon("the client was closed", hint="make another one: Client()")
        with self._room:
            self._gone = error
            self._room.notify_all()
            subs = list(self._subs.values())
        for sub in subs:
            sub.fail(error)


def encode(value: Any) -> bytes:
    """Write a value as it travels.

    Raises  UsageError where it is too large, or of a kind that other programs could not read.
    """
    try:
        payload = msgspec.msgpack.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"that value cannot be published: {error}",
            hint="numbers, texts, bytes, lists and maps can be; for anything else publish the "
            "reference that `put` returns",
        ) from None
    if len(payload) > TOPIC_PAYLOAD_BYTES_MAX:
        raise UsageError(
            f"a value of {len(payload)} bytes is too large for a topic, which takes "
            f"{TOPIC_PAYLOAD_BYTES_MAX // 1024} KiB",
            hint="store it with `put` and publish the reference: "
            "client.publish(topic, client.put(value))",
        )
    return payload


def _plain(value: Any) -> Any:
    """Numbers of numpy are numbers."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no number, text, bytes, list or map")
