"""One peer's link: who greets whom, which session counts, what waits to be sent.

Source  docs/protocol.md, "Opening a link".  Pure: the transport owns the sockets and tells the
time.  Both directions of one peer live here, since a newer life of the peer resets both.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from blackroad.bus.messages import Hello, Reject, Welcome
from blackroad.ids import inc_counter
from blackroad.limits import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN, WAITING_BYTES_MAX

if TYPE_CHECKING:
    from blackroad.bus.codec import Header
    from blackroad.bus.messages import Peer

GREET_MS = 1_000
GREET_MS_MAX = 30_000
OUTBOX_MESSAGES_MAX = 20_000
OUTBOX_BYTES_MAX = 16 * 1024 * 1024
REJECT_GAP_MS = 1_000
RETRY_MS = 20
# What a Welcome names where it only tells the caller of a newer life of its own.
NOBODYS_SESSION = 1
ADDRESS_TRIES_MAX = 8


class Link:
    """Both directions with one peer, as this node sees them."""

    __slots__ = (
        "breaches",
        "bulk_port",
        "counted_session",
        "dropped",
        "endpoint_at",
        "endpoints",
        "gaps",
        "greet_due_ms",
        "greet_ms",
        "in_sequence",
        "in_session",
        "inc",
        "name",
        "node",
        "out_sequence",
        "out_session",
        "outbox",
        "outbox_bytes",
        "present",
        "retry_ms",
        "telemetry_port",
        "unsent",
        "welcomes",
    )

    def __init__(self, node: bytes, endpoints: tuple[str, ...], now_ms: int, inc: int = 0) -> None:
        self.node = node
        self.inc = inc
        self.name = ""
        self.endpoints = endpoints
        self.endpoint_at = 0
        self.telemetry_port = 0
        self.bulk_port = 0
        self.out_session = 0
        self.out_sequence = 0
        # The session that `out_sequence` counts in; it outlives a link that was closed meanwhile.
        self.counted_session = 0
        self.outbox: deque[bytes] = deque()
        self.outbox_bytes = 0
        self.greet_due_ms = now_ms
        self.greet_ms = GREET_MS
        self.in_session = 0
        self.in_sequence = 0
        self.gaps = 0
        self.dropped = 0
        self.breaches = 0
        self.welcomes = 0
        self.present = False
        self.retry_ms = RETRY_MS
        self.unsent = 0

    @property
    def open(self) -> bool:
        """May messages leave?"""
        return self.out_session != 0

    def endpoint(self) -> str:
        """The address being tried."""
        return self.endpoints[self.endpoint_at % len(self.endpoints)] if self.endpoints else ""

    # --- outgoing ---------------------------------------------------------------------------------

    def greeting_due(self, now_ms: int) -> bool:
        """Is it time to say Hello (again)?"""
        return not self.open and now_ms >= self.greet_due_ms

    def greeted(self, now_ms: int) -> bool:
        """A Hello left; return whether the next one should try the next address."""
        self.greet_due_ms = now_ms + GREET_MS
        self.retry_ms, self.unsent = RETRY_MS, 0
        self.welcomes += 1
        return self.welcomes % 3 == 0 and len(self.endpoints) > 1

    def not_greeted(self, now_ms: int) -> bool:
        """Nobody is connected there yet; return whether to try the next address.

        Looks again soon, but ever more rarely: an absent peer must not keep a daemon awake.
        """
        self.greet_due_ms = now_ms + self.retry_ms
        self.retry_ms = min(GREET_MS, 2 * self.retry_ms)
        self.unsent += 1
        return self.unsent % ADDRESS_TRIES_MAX == 0 and len(self.endpoints) > 1

    def on_welcome(self, welcome: Welcome, my_inc: int) -> bool:
        """The peer takes what I send under this session; return whether that is news."""
        if welcome.your_inc != my_inc or welcome.session == 0:
            return False
        if self.is_other(welcome.inc):
            return False
        self.meet(welcome.inc)
        self.present = True
        # Nobody's session is an answer to a Hello of an earlier life of mine that came late: who
        # took it would be sent back to the true one, and count from 1 where more has been seen.
        if welcome.session in (self.out_session, NOBODYS_SESSION):
            return False
        self.out_session = welcome.session
        if welcome.session != self.counted_session:
            self.counted_session, self.out_sequence = welcome.session, 0
        self.welcomes = 0
        self.greet_ms = GREET_MS
        return True

    def on_reject(self, reject: Reject, now_ms: int) -> None:
        """The peer will not have it: back off, or greet at once where only a session is missing."""
        self.out_session = 0
        if reject.reason == "session":
            self.greet_due_ms = now_ms
            return
        self._clear_outbox()
        self.greet_due_ms = now_ms + self.greet_ms
        self.greet_ms = min(GREET_MS_MAX, 2 * self.greet_ms)

    def enqueue(self, encoded: bytes) -> None:
        """Put a message in line; beyond the bound the oldest goes, counted: all are repeated."""
        self.outbox.append(encoded)
        self.outbox_bytes += len(encoded)
        while len(self.outbox) > OUTBOX_MESSAGES_MAX or self.outbox_bytes > OUTBOX_BYTES_MAX:
            self.outbox_bytes -= len(self.outbox.popleft())
            self.dropped += 1

    def take(self) -> list[bytes]:
        """All that waits, to be sent now."""
        waiting = list(self.outbox)
        self.outbox.clear()
        self.outbox_bytes = 0
        return waiting

    def put_back(self, encoded: list[bytes]) -> None:
        """What the socket would not take goes back to the head of the line."""
        self.outbox.extendleft(reversed(encoded))
        self.outbox_bytes += sum(map(len, encoded))

    def next_sequence(self) -> int:
        """Number the next multipart."""
        self.out_sequence += 1
        return self.out_sequence

    # --- incoming ---------------------------------------------------------------------------------

    def on_hello(self, hello: Hello, my_inc: int, fresh_session: int) -> bool:
        """The peer greets: issue a session for these two lives, or restate it.

        Return False where the Hello comes from another life than the newest.
        """
        if self.is_other(hello.inc):
            return False
        self.meet(hello.inc)
        self.present = True
        self.name = hello.name
        self.endpoints = hello.endpoints
        self.telemetry_port, self.bulk_port = hello.telemetry_port, hello.bulk_port
        if not self.in_session or hello.your_inc not in (0, my_inc):
            self.in_session = fresh_session
            self.in_sequence = 0
        return True

    def welcome(
        self, hello: Hello, me: bytes, my_inc: int, peers: tuple[Peer, ...], your_mark: int = 0
    ) -> Welcome:
        """The answer to that Hello; it names the newest life of the peer, whoever greeted."""
        version = common_version(hello)
        session = self.in_session if hello.inc == self.inc else 0
        return Welcome(
            version,
            session or NOBODYS_SESSION,
            WAITING_BYTES_MAX,
            self.inc,
            me,
            my_inc,
            peers,
            hello.dialled,
            your_mark,
        )

    def accepts(self, header: Header) -> bool:
        """Does this multipart count?  Older sequences are repetitions of the network."""
        if not self.in_session or header.session != self.in_session:
            return False
        if header.sequence <= self.in_sequence:
            return False
        self.gaps += header.sequence - self.in_sequence - 1
        self.in_sequence = header.sequence
        return True

    # --- lives ------------------------------------------------------------------------------------

    def meet(self, inc: int) -> bool:
        """Hear of a life of the peer; a newer one resets both directions."""
        if inc == self.inc or self.is_other(inc):
            return False
        known = self.inc
        self.inc = inc
        if known:
            self.begin_again()
        return True

    def begin_again(self) -> None:
        """A new life, the peer's or mine: what was said and issued before counts no more."""
        self.out_session = self.in_session = 0
        self.in_sequence = self.out_sequence = self.counted_session = 0
        self.greet_due_ms = 0
        self._clear_outbox()

    def is_other(self, inc: int) -> bool:
        """Is that a life that does not count: older, or one of two with the same counter?"""
        return bool(self.inc) and inc != self.inc and inc_counter(inc) <= inc_counter(self.inc)

    def _clear_outbox(self) -> None:
        self.dropped += len(self.outbox)
        self.outbox.clear()
        self.outbox_bytes = 0


def common_version(hello: Hello) -> int:
    """The highest version both speak, 0 where there is none."""
    version = min(hello.version_max, PROTOCOL_VERSION_MAX)
    return version if version >= max(hello.version_min, PROTOCOL_VERSION_MIN) else 0
