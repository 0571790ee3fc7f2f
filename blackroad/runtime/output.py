"""What attempts have printed: the last part of each, within a bound for all together.

This file must not know where output comes from or who reads it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

from blackroad.limits import KIB, MIB

TAIL_BYTES: Final = 64 * KIB  # kept of one attempt
TOTAL_BYTES: Final = 16 * MIB  # kept of all attempts, ended and running
RECENT_MAX: Final = 4096  # ended attempts remembered, also those that printed nothing
_PIECE_COST: Final = 64  # what a piece weighs beyond its bytes
_PIECE_BYTES: Final = 2 * KIB  # shorter pieces are joined, so that many short lines weigh little


class Page(NamedTuple):
    """A piece of an attempt's output.

    `start` and `end` count all bytes the attempt ever printed; `cut` says how many before `start`
    and after the reader's last position are gone.  Ask again from `end` to follow.
    """

    start: int
    end: int
    cut: int
    data: bytes
    ended: bool


class _Ring:
    __slots__ = ("ended", "kept", "pieces", "printed", "weight")

    def __init__(self) -> None:
        self.pieces: deque[tuple[int, bytes]] = deque()  # stream, data
        self.kept = 0
        self.weight = 0
        self.printed = 0
        self.ended = False

    def append(self, stream: int, data: bytes, tail_bytes: int) -> None:
        self.printed += len(data)
        data = data[-tail_bytes:]
        self.kept += len(data)
        self.weight += len(data)
        if self.pieces and self.pieces[-1][0] == stream and len(self.pieces[-1][1]) < _PIECE_BYTES:
            self.pieces[-1] = (stream, self.pieces[-1][1] + data)
        else:
            self.pieces.append((stream, data))
            self.weight += _PIECE_COST
        while self.weight > tail_bytes + _PIECE_COST:
            self._shorten(self.weight - tail_bytes - _PIECE_COST)

    def _shorten(self, surplus: int) -> None:
        stream, data = self.pieces.popleft()
        if surplus < len(data):
            # Not a byte more than needed, or one long line would take all before it away.
            self.pieces.appendleft((stream, data[surplus:]))
            self.kept -= surplus
            self.weight -= surplus
        else:
            self.kept -= len(data)
            self.weight -= len(data) + _PIECE_COST


class OutputStore:
    """Rings of bytes, one an attempt; the oldest ended ones go first."""

    def __init__(self, tail_bytes: int = TAIL_BYTES, total_bytes: int = TOTAL_BYTES) -> None:
        self._tail_bytes = tail_bytes
        self._total_bytes = total_bytes
        self._rings: OrderedDict[Hashable, _Ring] = OrderedDict()
        self._ended: OrderedDict[Hashable, None] = OrderedDict()
        self.kept_bytes = 0

    def append(self, key: Hashable, stream: int, data: bytes) -> None:
        """Add what an attempt printed."""
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = _Ring()
        before = ring.weight
        ring.append(stream, data, self._tail_bytes)
        self.kept_bytes += ring.weight - before
        self._forget_surplus()

    def ended(self, key: Hashable) -> None:
        """The attempt prints no more; its tail is kept for a while."""
        ring = self._rings.get(key)
        if ring is None:
            return
        ring.ended = True
        self._ended[key] = None
        self._forget_surplus()

    def read(
        self, key: Hashable, after: int = 0, limit_bytes: int = TAIL_BYTES, stream: int = 0
    ) -> Page | None:
        """Return what came after byte `after`, of one stream or (0) of both as they were mixed.

        None where nothing is known of the attempt.
        """
        ring = self._rings.get(key)
        if ring is None:
            return None
        first = ring.printed - ring.kept
        start = min(max(after, first), ring.printed)
        end = min(start + limit_bytes, ring.printed)
        at = first
        parts = []
        for found, data in ring.pieces:
            if stream in (0, found):
                parts.append(data[max(start - at, 0) : max(end - at, 0)])
            at += len(data)
        return Page(start, end, start - min(after, start), b"".join(parts), ring.ended)

    def newest(self, wanted: Callable[[Hashable], bool]) -> Hashable | None:
        """The attempt that printed last among those `wanted`."""
        return next((key for key in reversed(self._rings) if wanted(key)), None)

    def tail(self, key: Hashable, limit_bytes: int = TAIL_BYTES) -> bytes:
        """Return the end of an attempt's output, after a line that says how much was cut."""
        ring = self._rings.get(key)
        if ring is None:
            return b""
        page = self.read(key, max(ring.printed - limit_bytes, 0), limit_bytes)
        if page is None or not page.start:
            return page.data if page is not None else b""
        return b"[%d bytes cut]\n%b" % (page.start, page.data)

    def forget(self, key: Hashable) -> None:
        """Drop an attempt's output."""
        ring = self._rings.pop(key, None)
        self._ended.pop(key, None)
        if ring is not None:
            self.kept_bytes -= ring.weight

    def _forget_surplus(self) -> None:
        while self._ended and (
            self.kept_bytes > self._total_bytes or len(self._ended) > RECENT_MAX
        ):
            self.forget(next(iter(self._ended)))
        # Only running attempts are left: the one that has printed for longest pays.
        while self.kept_bytes > self._total_bytes and len(self._rings) > 1:
            self.forget(next(iter(self._rings)))
