"""What waits for one subscriber: bounded, the oldest dropped first, every drop counted and told.

Source  docs/protocol.md, "Topics" (R-topic-8, R-topic-9).  Pure.  This file must not know where
values come from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from blackroad.bus.last_values import Key, LastValues
from blackroad.bus.patterns import Pattern
from blackroad.bus.topic_kinds import Updates, Value
from blackroad.limits import (
    TOPIC_LINE_BYTES_MAX,
    TOPIC_LINE_VALUES_MAX,
    UPDATES_BYTES_MAX,
    UPDATES_VALUES_MAX,
    UPDATES_WINDOW,
    UPDATES_WINDOW_BYTES,
)

# What a value costs on the wire beside its payload, and in tables.
ENVELOPE_BYTES = 200


class Subscription:
    """One pattern that one client subscribed to."""

    __slots__ = (
        "backlog",
        "held_ms",
        "id",
        "line",
        "missed",
        "pattern",
        "snapshot",
        "told",
        "until_ms",
    )

    def __init__(
        self, line: Line, id_: int, pattern: Pattern, snapshot: bool, until_ms: int
    ) -> None:
        self.line = line
        self.id = id_
        self.pattern = pattern
        self.snapshot = snapshot
        self.until_ms = until_ms
        self.missed = 0
        # Last values that are still to be sent: where they are kept, and which are not news.
        self.backlog: deque[_Snapshot] = deque()
        # The client was told that it began, which waits until peers have it, too.
        self.told = False
        self.held_ms = 0

    @property
    def due(self) -> bool:
        """Is there something to be said about this one alone?"""
        return bool(self.backlog) or not (self.told or self.held_ms)


class _Snapshot(NamedTuple):
    """What of one table was there when a subscription began."""

    kept: LastValues
    keys: deque[Key]
    order: int


class _Waiting(NamedTuple):
    value: Value
    subs: tuple[Subscription, ...]


class Total:
    """Bytes that wait for all clients together."""

    __slots__ = ("bytes", "bytes_max", "dropped")

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self.bytes_max = bytes_max
        self.dropped = 0


class Line:
    """Values on their way to one client, which says Taken as it receives them."""

    def __init__(self, total: Total) -> None:
        self.subs: dict[int, Subscription] = {}
        self.serial = 0
        self.waiting: deque[_Waiting] = deque()
        self.bytes = 0
        self._total = total
        self._sent: deque[tuple[int, int]] = deque()
        self._sent_bytes = 0

    # --- in ---------------------------------------------------------------------------------------

    def add(self, value: Value, subs: tuple[Subscription, ...]) -> None:
        """Put a value in line; where there is no room, the oldest ones go."""
        size = len(value.payload) + ENVELOPE_BYTES
        total = self._total
        self.waiting.append(_Waiting(value, subs))
        self.bytes += size
        total.bytes += size
        while (
            len(self.waiting) > TOPIC_LINE_VALUES_MAX
            or self.bytes > TOPIC_LINE_BYTES_MAX
            or total.bytes > total.bytes_max
        ) and self.waiting:
            self._drop()

    def _drop(self) -> None:
        value, subs = self.waiting.popleft()
        size = len(value.payload) + ENVELOPE_BYTES
        self.bytes -= size
        self._total.bytes -= size
        self._total.dropped += 1
        for sub in subs:
            sub.missed += 1

    def snapshot(self, sub: Subscription, *tables: LastValues) -> None:
        """Send what these tables hold for a subscription before anything newer."""
        for kept in tables:
            keys = deque(key for key, name in kept.names() if sub.pattern.matches(name))
            if keys:
                sub.backlog.append(_Snapshot(kept, keys, kept.order))

    def remove(self, id_: int) -> Subscription | None:
        """End a subscription; nothing more is sent for it."""
        sub = self.subs.pop(id_, None)
        if sub is not None:
            sub.backlog.clear()
        return sub

    def close(self) -> None:
        """The client is gone: nothing waits for it any more."""
        self._total.bytes -= self.bytes
        self.bytes = 0
        self.waiting.clear()
        self.subs.clear()

    # --- out --------------------------------------------------------------------------------------

    def taken(self, serial: int) -> None:
        """The client has received everything up to that serial."""
        while self._sent and self._sent[0][0] <= serial:
            self._sent_bytes -= self._sent.popleft()[1]

    @property
    def open(self) -> bool:
        """May one more Updates be sent?"""
        return len(self._sent) < UPDATES_WINDOW and self._sent_bytes < UPDATES_WINDOW_BYTES

    def ready(self) -> bool:
        """Is there something to send, and may it be sent?"""
        return self.open and (bool(self.waiting) or any(sub.due for sub in self.subs.values()))

    def take(self, values_max: int) -> Iterator[Updates]:
        """Messages that may leave now, with about that many values at most."""
        taken = 0
        for sub in list(self.subs.values()):
            while sub.due and self.open and taken < values_max:
                values = self._old_ones(sub)
                taken += len(values)
                began = not (sub.told or sub.held_ms)
                yield self._updates((sub,), values, began)
                sub.told = sub.told or began
        while self.waiting and self.open and taken < values_max:
            values, subs = self._next_ones()
            taken += len(values)
            if subs:
                yield self._updates(subs, values)

    def _old_ones(self, sub: Subscription) -> tuple[Value, ...]:
        """Some last values for a subscription that has just begun."""
        values: list[Value] = []
        size = 0
        while sub.backlog:
            kept, keys, order = sub.backlog[0]
            while keys:
                entry = kept.entry(keys[0])
                # What came since then waits in line as news, or was sent.
                if entry is not None and entry.order <= order:
                    size += len(entry.value.payload) + ENVELOPE_BYTES
                    if len(values) >= UPDATES_VALUES_MAX or (values and size > UPDATES_BYTES_MAX):
                        return tuple(values)
                    values.append(entry.value)
                keys.popleft()
            sub.backlog.popleft()
        return tuple(values)

    def _next_ones(self) -> tuple[tuple[Value, ...], tuple[Subscription, ...]]:
        """The values at the head of the line that are for the same subscriptions."""
        subs = self.waiting[0].subs
        values: list[Value] = []
        size = 0
        while self.waiting and self.waiting[0].subs == subs and len(values) < UPDATES_VALUES_MAX:
            value = self.waiting[0].value
            cost = len(value.payload) + ENVELOPE_BYTES
            if values and size + cost > UPDATES_BYTES_MAX:
                break
            size += cost
            values.append(value)
            self.waiting.popleft()
        self.bytes -= size
        self._total.bytes -= size
        return tuple(values), tuple(sub for sub in subs if self.subs.get(sub.id) is sub)

    def _updates(
        self, subs: tuple[Subscription, ...], values: tuple[Value, ...], began: bool = False
    ) -> Updates:
        self.serial += 1
        size = sum(len(value.payload) + ENVELOPE_BYTES for value in values)
        self._sent.append((self.serial, size))
        self._sent_bytes += size
        missed = tuple(sub.missed for sub in subs)
        for sub in subs:
            sub.missed = 0
        return Updates(self.serial, tuple(sub.id for sub in subs), missed, values, began)
