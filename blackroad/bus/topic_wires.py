"""Topics on real sockets: values to whoever listens, an ear for each peer while somebody here does.

Source  docs/protocol.md, "Topics".  Edge.  What any of it means is the business of `topics.py`.
Each peer's topics come on a socket of their own: a flood of them must not fill the one on which
its Heartbeats come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.sockets import connect, drain, subscribe, unsubscribe
from blackroad.bus.topics import LOOK_MS, Topics
from blackroad.errors import RemoteProtocolError
from blackroad.limits import BATCH_MESSAGES_MAX, HEAR_STEP

if TYPE_CHECKING:
    from blackroad.bus.sockets import Bus, Socket
    from blackroad.bus.topic_kinds import Value
    from blackroad.bus.transport import Transport

KEY = b"\x52"
SPREAD_BYTES_MAX = 16 * 1024
_ENVELOPE_BYTES = 160
_OF_PEERS = (m.AskTopics, m.Topics)


class _Ear(NamedTuple):
    """One peer's topics, and where it publishes them."""

    endpoint: str
    socket: Socket


class TopicWires:
    """The topics of one daemon, connected to its peers and clients."""

    def __init__(
        self,
        bus: Bus,
        transport: Transport,
        keep_bytes: int,
        wall_ms: Callable[[], int],
        watch: Callable[[Socket, Callable[[], None]], None],
        unwatch: Callable[[Socket], None],
    ) -> None:
        self.topics = Topics(transport.me.node, transport.me.inc, keep_bytes)
        self._bus = bus
        self._transport = transport
        self._wall_ms = wall_ms
        self._watch = watch
        self._unwatch = unwatch
        self._ears: dict[bytes, _Ear] = {}
        self._prefixes: tuple[str, ...] = ()
        self._chosen: tuple[bytes, ...] = ()
        self._heard = 0
        self._listen_ms = 0
        # The time of the last turn is near enough for what is read between two.
        self._now_ms = 0
        transport.clients.on_lost = self.topics.lost

    # --- in ---------------------------------------------------------------------------------------

    def on_client(self, client: bytes, message: m.Message, now_ms: int) -> None:
        """A program publishes, subscribes, or has taken what it was sent."""
        self.topics.on_client(client, message, now_ms)

    def sift(self, node: bytes, found: list[m.Message], now_ms: int) -> list[m.Message]:
        """Take what a peer says of topics; return the rest."""
        rest = [one for one in found if not isinstance(one, _OF_PEERS)]
        if len(rest) < len(found):
            for one in found:
                if isinstance(one, _OF_PEERS):
                    self.topics.on_peer(node, one, now_ms)
        return rest

    def _hear(self, node: bytes, socket: Socket) -> None:
        """Read what a peer publishes; in one turn only so much of all peers together."""
        while self._heard < HEAR_STEP:
            frames = next(drain(socket, 1), None)
            if frames is None:
                return
            try:
                if len(frames) != 3:
                    raise RemoteProtocolError("topics: three frames are due")
                found, _ = codec.TELEMETRY.decode(frames[2])
            except RemoteProtocolError:
                self.topics.count("breach")
                self._heard += 1
                continue
            self._heard += max(1, len(found))
            for one in found:
                if isinstance(one, m.Topic) and one.name:
                    self.topics.on_topic(node, one)
                elif isinstance(one, m.Topic) and one.node == self.topics.me:
                    self.topics.on_mark(node, one.inc, one.seq, self._now_ms)

    # --- out --------------------------------------------------------------------------------------

    def turn(self, now_ms: int) -> None:
        """Once per turn of the loop, before it flushes."""
        self._heard = 0
        self._now_ms = now_ms
        topics = self.topics
        topics.turn(self._present, now_ms, self._wall_ms())
        if topics.spreads:
            self._spread(topics.spreads)
            topics.spreads.clear()
        for node, mark, ask in topics.marks:
            # No name begins with a NUL: only who hears everything hears it, too.
            message = m.Topic("", b"", ask, node, mark)
            self._transport.telemetry.publish((message,), _mark_key(node, mark))
        topics.marks.clear()
        for client, told in topics.tells:
            self._transport.tell(client, told)
        topics.tells.clear()
        for node, sent in topics.sends:
            self._transport.send(node, sent)
        topics.sends.clear()
        if topics.prefixes != self._prefixes or (topics.prefixes and now_ms >= self._listen_ms):
            self._listen_ms = now_ms + LOOK_MS
            self._listen()

    def _present(self) -> dict[bytes, int]:
        """Peers that can be asked, and their lives."""
        links = self._transport.links.items()
        return {node: link.inc for node, link in links if link.open}

    def next_deadline_ms(self) -> int:
        """When `turn` next has something to do."""
        return self.topics.next_deadline_ms()

    def status(self) -> dict[str, int]:
        """Figures for people and tests."""
        return {**self.topics.status(), "ears": len(self._ears)}

    def _spread(self, values: Sequence[Value]) -> None:
        """Publish to peers; values of one topic travel together."""
        of_topic: dict[str, list[Value]] = {}
        for value in values:
            of_topic.setdefault(value.name, []).append(value)
        for name, group in of_topic.items():
            key = KEY + name.encode() + b"/"
            batch: list[m.Message] = []
            size = 0
            for value in group:
                size += len(value.payload) + _ENVELOPE_BYTES
                if batch and (size > SPREAD_BYTES_MAX or len(batch) >= BATCH_MESSAGES_MAX):
                    self._transport.telemetry.publish(batch, key)
                    batch, size = [], len(value.payload) + _ENVELOPE_BYTES
                batch.append(_topic(value))
            self._transport.telemetry.publish(batch, key)

    # --- ears -------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Hear those topics of each peer that somebody here wants, and nothing else."""
        wanted = self.topics.prefixes
        there = {}
        if wanted:
            for node, link in self._transport.links.items():
                before = self._ears.get(node)
                if link.open and link.telemetry_port:
                    host = self._transport.address(link).rpartition(":")[0]
                    there[node] = f"{host}:{link.telemetry_port}"
                elif before is not None:
                    # A link that is being made anew is no reason to hang up.
                    there[node] = before.endpoint
        for node, ear in list(self._ears.items()):
            if there.get(node) != ear.endpoint:
                del self._ears[node]
                self._unwatch(ear.socket)
                self._bus.drop(ear.socket)
        chosen = self._choices()
        if chosen != self._chosen:
            for ear in self._ears.values():
                self._choose(ear.socket, chosen, self._chosen)
        self._prefixes, self._chosen = wanted, chosen
        for node, endpoint in there.items():
            if node not in self._ears:
                self._open(node, endpoint)

    def _open(self, node: bytes, endpoint: str) -> None:
        key = self._transport.key_of(node)
        if self._bus.closed and not key:
            return
        socket = self._bus.subscriber(key, None)
        self._choose(socket, self._chosen, ())
        if not connect(socket, endpoint):
            self._bus.drop(socket)
            return
        self._ears[node] = _Ear(endpoint, socket)
        self._watch(socket, lambda: self._hear(node, socket))

    def _choices(self) -> tuple[bytes, ...]:
        """What ears subscribe to: the mark last, so that whoever hears it hears the others."""
        topics = self.topics
        wanted = tuple(KEY + prefix.encode() for prefix in topics.prefixes)
        return (*wanted, _mark_key(topics.me, topics.mark)) if wanted else ()

    def _choose(self, socket: Socket, now: tuple[bytes, ...], before: tuple[bytes, ...]) -> None:
        # First what is new: what both cover must not be unheard in between.
        for key in now:
            if key not in before:
                subscribe(socket, key)
        for key in before:
            if key not in now:
                unsubscribe(socket, key)


def _mark_key(node: bytes, mark: int) -> bytes:
    return KEY + b"\0" + node + mark.to_bytes(4, "big")


def _topic(value: Value) -> m.Topic:
    return m.Topic(
        value.name,
        value.payload,
        value.seq,
        value.node,
        value.inc,
        value.nth,
        value.time_ms,
        value.user,
    )
