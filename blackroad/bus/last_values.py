"""The last value of each topic from each node, as many as there is room for.

Source  docs/protocol.md, "Topics" (R-topic-6).  Pure.  This file must not know who publishes or
who listens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from blackroad.bus.topic_kinds import Value
from blackroad.limits import TOPIC_PAGE_BYTES, TOPIC_PAGE_VALUES_MAX

# What a value costs beside its payload: names, numbers, tables.
ENVELOPE_BYTES = 300
_WIRE_BYTES = 128

Key = tuple[bytes, str]


class Kept(NamedTuple):
    """A value, and when it came: `order` counts what was kept here."""

    value: Value
    order: int


class LastValues:
    """Newest values, the one that came last at the end; the oldest go first."""

    def __init__(self, bytes_max: int, count_max: int) -> None:
        self.bytes = 0
        self.evicted = 0
        self.order = 0
        self._bytes_max = bytes_max
        self._count_max = count_max
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, node: bytes, name: str) -> Value | None:
        """The last value of that topic from that node."""
        kept = self._kept.get((node, name))
        return kept.value if kept is not None else None

    def entry(self, key: Key) -> Kept | None:
        """The last value under that key, and when it came."""
        return self._kept.get(key)

    def put(self, value: Value) -> list[Value]:
        """Keep a value in place of the one before; return what had to go for want of room."""
        key = (value.node, value.name)
        before = self._kept.pop(key, None)
        if before is not None:
            self.bytes -= _size(before.value)
        self.order += 1
        self._kept[key] = Kept(value, self.order)
        self.bytes += _size(value)
        gone = []
        while self.bytes > self._bytes_max or len(self._kept) > self._count_max:
            _, kept = self._kept.popitem(last=False)
            self.bytes -= _size(kept.value)
            gone.append(kept.value)
        self.evicted += len(gone)
        return gone

    def names(self) -> Iterator[tuple[Key, str]]:
        """All keys with their topics, those whose values came first at the beginning."""
        for key in self._kept:
            yield key, key[1]

    def narrow(self, prefixes: tuple[str, ...]) -> None:
        """Forget what does not begin like one of these; nobody repairs it any more."""
        for key in [key for key in self._kept if not f"{key[1]}/".startswith(prefixes)]:
            self.bytes -= _size(self._kept.pop(key).value)

    def page(self, prefixes: tuple[str, ...], since: int) -> tuple[tuple[Value, ...], bool]:
        """Values published after `since` that begin like this, oldest first, as fit a message.

        Only where all values are of one life of one node: their order is that of their `seq`.
        Return also whether there are more.

        Cost  one step for each value published after `since`.
        """
        found: list[Value] = []
        for kept in reversed(self._kept.values()):
            if kept.value.seq <= since:
                break
            if f"{kept.value.name}/".startswith(prefixes):
                found.append(kept.value)
        found.reverse()
        size = 0
        for at, value in enumerate(found):
            size += len(value.payload) + _WIRE_BYTES + len(value.name) + len(value.user.encode())
            if at and (size > TOPIC_PAGE_BYTES or at >= TOPIC_PAGE_VALUES_MAX):
                return tuple(found[:at]), True
        return tuple(found), False


def _size(value: Value) -> int:
    return len(value.payload) + ENVELOPE_BYTES
