"""Links to all peers over real sockets: one ROUTER to hear, one DEALER per peer to speak.

Source  docs/protocol.md, "Opening a link", "Framing on the wire".  Edge.  This file moves
messages; what they mean is the node's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.asides import Asides, send_alone
from blackroad.bus.lines import Lines
from blackroad.bus.link import GREET_MS_MAX, REJECT_GAP_MS, RETRY_MS, Link, common_version
from blackroad.bus.pasts import Past, Pasts
from blackroad.bus.sockets import Bus, Socket, bind, connect, disconnect, drain, send
from blackroad.errors import RemoteProtocolError
from blackroad.ids import inc_counter
from blackroad.limits import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    FOREVER_MS,
    HINTS_MAX,
    PEERS_MAX,
    PROTOCOL_VERSION_MAX,
    PROTOCOL_VERSION_MIN,
)

ROUTES_MAX = 4_096
RETRY_MS_MAX = 250
PEERS_TOLD_MAX = 64
DIAL_MS = 1_000
# The telemetry of a life that was followed by another is heard for so long: is it over?
FORMER_MS = 120_000


class Identity(NamedTuple):
    """Who this daemon is on the wire."""

    node: bytes
    inc: int
    name: str
    cluster: bytes


CLONE_TEXT = (
    "two machines use the identity of this node; stop the daemon on the copy, remove "
    "identity.json from its state directory (and the journal, if that is a copy too), then "
    "start both again"
)


def cluster_digest(name: str) -> bytes:
    """What tells the daemons of one mesh from those of another on the same network."""
    return hashlib.blake2b(name.encode(), digest_size=16, person=b"blackroad-mesh").digest()


class _Dial:
    """An address that somebody hinted at; who is there is not known yet."""

    __slots__ = (
        "due_ms",
        "endpoint",
        "every_ms",
        "refused",
        "retry_ms",
        "socket",
        "tries",
        "until_ms",
    )

    def __init__(self, endpoint: str, socket: Socket, now_ms: int, until_ms: int) -> None:
        self.endpoint = endpoint
        self.until_ms = until_ms
        self.socket = socket
        self.due_ms = now_ms
        self.every_ms = DIAL_MS
        self.retry_ms = RETRY_MS
        self.tries = 0
        self.refused = False


class Transport:
    """All links of one daemon, and the connections of its clients."""

    def __init__(
        self, bus: Bus, me: Identity, host: str, port: int, telemetry_port: int, bulk_port: int
    ) -> None:
        self.me = me
        self.links: dict[bytes, Link] = {}
        self.counters: dict[str, int] = {}
        self.endpoints: tuple[str, ...] = ()
        self._bus = bus
        self._host = host
        self.inbox = bus.inbox()
        self.port = bind(self.inbox, host, port, "port")
        self.publisher = bus.publisher()
        self.telemetry_port = bind(self.publisher, host, telemetry_port, "telemetry_port")
        self.bulk = bus.bulk_server()
        self.bulk_port = bind(self.bulk, host, bulk_port, "bulk_port")
        self.subscriber = bus.subscriber()
        self._subscribed: dict[bytes, str] = {}
        self._sockets: dict[bytes, Socket] = {}
        self._connected: dict[bytes, str] = {}
        self._lives: dict[bytes, int] = {}
        self._dials: dict[str, _Dial] = {}
        self._sessions: dict[int, Link] = {}
        self._routes: dict[bytes, bytes] = {}
        self._rejected_ms: dict[bytes, int] = {}
        self._speaking: dict[bytes, None] = {}
        self._owed: dict[bytes, m.Message] = {}
        self._asides = Asides(bus)
        self.clients = Lines(self._count)
        self.clients.sockets[b"t"] = self.inbox
        self._session_serial = 0
        self._published = 0
        self._retry_ms = FOREVER_MS
        self._retry_wait_ms = RETRY_MS
        self._pasts = Pasts()
        self._old_telemetry: dict[str, int] = {}
        # A greeting told of a life of its sender, the newest known of mine, and my journal's mark.
        self.on_met: Callable[[bytes, int, int, int], None] = lambda *_met: None
        self.on_refused: Callable[[bytes, m.Reject], None] = lambda *_refused: None

    def add_client_socket(self, prefix: bytes, socket: Socket) -> None:
        """Serve clients on one more socket; `prefix` is one byte that marks their handles."""
        self.clients.sockets[prefix] = socket

    # --- lives ------------------------------------------------------------------------------------

    def past(self, node: bytes) -> Past:
        """The newest life of that node which was ever heard of here."""
        return self._pasts.of(node)

    def remember(self, node: bytes, inc: int, mark: int = 0) -> None:
        """Hear of a life of that node, by whatever path."""
        self._pasts.remember(node, inc, mark, self.links)

    def begin_again(self, inc: int) -> None:
        """This node begins another life before it served: all sessions are void."""
        self.me = self.me._replace(inc=inc)
        self._sessions.clear()
        self._owed.clear()
        for link in self.links.values():
            link.begin_again()
        for dial in self._dials.values():
            dial.due_ms = 0

    def shun(self, node: bytes, now_ms: int) -> None:
        """Two machines use that identity: close the link, and tell both why."""
        link = self.links.pop(node, None)
        if link is None:
            self._pasts.shun(node, "", 0)
        else:
            self._sessions.pop(link.in_session, None)
            self._pasts.shun(node, link.endpoint(), link.inc)
        self._hang_up(node)
        self._owed.pop(node, None)
        self._tell_shunned(node, now_ms)

    def _tell_shunned(self, node: bytes, now_ms: int) -> None:
        for endpoint, inc in self._pasts.where(node):
            self._aside(endpoint, m.Reject("clone", CLONE_TEXT, "", inc), now_ms)

    # --- hints and dialling -----------------------------------------------------------------------

    def unanswered(self) -> Iterable[str]:
        """Addresses that were hinted at, and where nobody has said a word yet."""
        return [dial.endpoint for dial in self._dials.values() if not dial.refused]

    def hint(self, endpoint: str, now_ms: int, until_ms: int = FOREVER_MS) -> None:
        """Somebody may be there; say Hello until somebody answers, or until then."""
        if endpoint in self.endpoints or endpoint in self._dials:
            return
        if endpoint in self._connected.values() or len(self._dials) >= HINTS_MAX:
            return
        if any(endpoint in link.endpoints for link in self.links.values()):
            return
        socket = self._bus.peer()
        if not connect(socket, endpoint):
            self._bus.drop(socket)
            self._count("hint.bad")
            return
        self._dials[endpoint] = _Dial(endpoint, socket, now_ms, until_ms)

    def _dial(self, dial: _Dial, now_ms: int) -> None:
        if send_alone(dial.socket, self._hello(0, dial.endpoint)):
            dial.tries += 1
            if dial.tries > 3:
                dial.every_ms = min(GREET_MS_MAX, 2 * dial.every_ms)
            dial.due_ms = now_ms + dial.every_ms
            dial.retry_ms = RETRY_MS
        else:
            # Not connected yet: look again soon, without having said anything; and ever more
            # rarely, for a seed that is switched off must not keep this daemon awake.
            dial.due_ms = now_ms + dial.retry_ms
            dial.retry_ms = min(DIAL_MS, 2 * dial.retry_ms)

    def _hello(self, their_inc: int, dialled: str) -> m.Hello:
        me = self.me
        return m.Hello(
            PROTOCOL_VERSION_MIN,
            PROTOCOL_VERSION_MAX,
            me.cluster,
            me.node,
            me.inc,
            their_inc,
            me.name,
            self.endpoints,
            self.telemetry_port,
            self.bulk_port,
            dialled,
        )

    # --- receiving --------------------------------------------------------------------------------

    def receive(self, now_ms: int) -> Iterator[tuple[bytes, bytes, list[m.Message]]]:
        """Read the inbox until it would block.

        Yield (node, b"", messages) for a peer and (b"", client handle, messages) for a client.
        """
        for frames in drain(self.inbox):
            if len(frames) < 2:
                self._count("frames.short")
                continue
            route = frames[0]
            try:
                header = codec.decode_header(frames[1])
                if header.session:
                    yield from self._from_session(route, header, frames[2:], now_ms)
                else:
                    yield from self._from_stranger(route, frames[2:], now_ms)
            except RemoteProtocolError:
                self._breach(route)

    def receive_client(
        self, prefix: bytes, socket: Socket
    ) -> Iterator[tuple[bytes, list[m.Message]]]:
        """Read one client socket until it would block; yield (handle, messages)."""
        for frames in drain(socket):
            if len(frames) < 3:
                self._count("frames.short")
                continue
            try:
                codec.decode_header(frames[1])
                for frame in frames[2:]:
                    found, unknown = codec.CLIENT.decode(frame)
                    if unknown:
                        self._count("kinds.unknown", unknown)
                    yield prefix + frames[0], found
            except RemoteProtocolError as error:
                self._count("breach.client")
                self.tell(prefix + frames[0], m.Reject("protocol", error.message[:256]))

    def _from_session(
        self, route: bytes, header: codec.Header, frames: list[bytes], now_ms: int
    ) -> Iterator[tuple[bytes, bytes, list[m.Message]]]:
        link = self._sessions.get(header.session)
        if link is None or link.in_session != header.session:
            self._unknown_session(route, now_ms)
            return
        if not link.accepts(header):
            self._count("sequence.old")
            return
        if sum(map(len, frames)) > BATCH_BYTES_MAX:
            raise RemoteProtocolError("link: a multipart is too long")
        count = 0
        for frame in frames:
            found, unknown = codec.PEER.decode(frame)
            # A frame of nothing counts too.
            count += max(1, len(found) + unknown)
            if count > BATCH_MESSAGES_MAX:
                raise RemoteProtocolError("link: too many messages in one multipart")
            if unknown:
                self._count("kinds.unknown", unknown)
            yield link.node, b"", found

    def _from_stranger(
        self, route: bytes, frames: list[bytes], now_ms: int
    ) -> Iterator[tuple[bytes, bytes, list[m.Message]]]:
        """Session 0: a greeting between daemons, or a client over TCP."""
        for frame in frames:
            found, unknown = codec.INBOX.decode(frame)
            if unknown:
                self._count("kinds.unknown", unknown)
            said: list[m.Message] = []
            for message in found:
                match message:
                    case m.Hello():
                        self._on_hello(route, message, now_ms)
                    case m.Welcome():
                        self._on_welcome(message, now_ms)
                    case m.Reject():
                        self._on_reject(route, message, now_ms)
                    case _:
                        said.append(message)
            if said:
                yield b"", b"t" + route, said

    def _unknown_session(self, route: bytes, now_ms: int) -> None:
        """Whoever sent that believes in a session that is not: tell him, not too often."""
        self._count("session.unknown")
        node = self._routes.get(route)
        link = self.links.get(node) if node is not None else None
        if node is None or (link is None and not self._pasts.where(node)):
            return
        if now_ms - self._rejected_ms.get(node, -FOREVER_MS) >= REJECT_GAP_MS:
            self._rejected_ms[node] = now_ms
            if link is None:
                self._tell_shunned(node, now_ms)
            else:
                send_alone(self._socket(link), m.Reject("session"))

    def _breach(self, route: bytes) -> None:
        """A frame that cannot be read costs the peer its session, and nothing else."""
        self._count("breach")
        node = self._routes.get(route)
        link = self.links.get(node) if node is not None else None
        if link is not None:
            link.breaches += 1
            self._sessions.pop(link.in_session, None)
            link.in_session = 0

    # --- greetings --------------------------------------------------------------------------------

    def _on_hello(self, route: bytes, hello: m.Hello, now_ms: int) -> None:
        if hello.node == self.me.node and hello.inc == self.me.inc:
            self._count("hello.self")
            self._resolve(hello.dialled)
            return
        refusal = self._refusal(hello)
        if refusal is None or refusal.reason == "clone":
            self.on_met(hello.node, hello.inc, hello.your_inc, 0)
        if refusal is not None:
            self._count(f"reject.{refusal.reason}")
            self._aside(hello.endpoints[0], refusal, now_ms)
            return
        link = self.links.get(hello.node)
        if link is None:
            if len(self.links) >= PEERS_MAX:
                self._count("peers.full")
                return
            link = Link(hello.node, hello.endpoints, now_ms, self.past(hello.node).inc)
        if hello.node == self.me.node or link.is_other(hello.inc):
            self._answer_past(link, hello, now_ms)
            return
        self.remember(hello.node, hello.inc)
        self._speaking[hello.node] = None
        self.links[hello.node] = link
        self._session_serial += 1
        fresh = ((self.me.inc & 0xFFFFFFFF) << 24 | self._session_serial) & (2**63 - 1)
        session = link.in_session
        if not link.on_hello(hello, self.me.inc, fresh):
            return
        if link.in_session != session:
            self._sessions.pop(session, None)
            self._sessions[link.in_session] = link
        life, self._lives[link.node] = self._lives.get(link.node, link.inc), link.inc
        if life != link.inc and link.node in self._connected:
            self._pasts.elsewhere(link.node, self._connected[link.node], life)
        if life != link.inc and self._connected.get(link.node, "") not in link.endpoints:
            # Started anew at another address: at the old one nobody is going to answer.
            self._hang_up(link.node)
            link.endpoint_at = 0
        if len(self._routes) >= ROUTES_MAX:
            del self._routes[next(iter(self._routes))]
        self._routes[route] = hello.node
        socket = self._socket(link)
        peers = tuple(
            m.Peer(other.node, other.endpoint())
            for other in self.links.values()
            if other.node != hello.node and other.present
        )[:PEERS_TOLD_MAX]
        mark = self.past(link.node).mark
        answer = link.welcome(hello, self.me.node, self.me.inc, peers, mark)
        if send_alone(socket, answer):
            self._owed.pop(link.node, None)
        else:
            # The connection back is still being made; the Hello will be repeated.
            self._owed[link.node] = answer
            self._speaking[link.node] = None
            self._retry_soon(now_ms)
        self._subscribe(link, now_ms)

    def _refusal(self, hello: m.Hello) -> m.Reject | None:
        if hello.cluster != self.me.cluster:
            text = "this daemon belongs to another mesh"
            return m.Reject("cluster", text, hello.dialled)
        if not common_version(hello):
            text = (
                f"this daemon speaks protocol {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}, "
                f"yours {hello.version_min} to {hello.version_max}"
            )
            return m.Reject("version", text, hello.dialled, hello.inc)
        if self._pasts.is_shunned(hello.node, hello.inc):
            return m.Reject("clone", CLONE_TEXT, hello.dialled, hello.inc)
        return None

    def _aside(self, endpoint: str, message: m.Message, now_ms: int) -> None:
        """Say one thing where there is no link, on a connection that is closed again soon."""
        if self._asides.say(endpoint, message, now_ms):
            self._retry_soon(now_ms)

    def _answer_past(self, link: Link, hello: m.Hello, now_ms: int) -> None:
        """A life that somebody has outlived: tell it so, and issue no session."""
        self._count("hello.past")
        if link.node == self.me.node:
            # Another daemon is what I am: the higher counter is the newer one.
            link.inc = max(self.me.inc, hello.inc, key=inc_counter)
        else:
            self._pasts.elsewhere(link.node, hello.endpoints[0], hello.inc)
        mark = self.past(link.node).mark
        answer = link.welcome(hello, self.me.node, self.me.inc, (), mark)
        self._aside(hello.endpoints[0], answer, now_ms)

    def _on_welcome(self, welcome: m.Welcome, now_ms: int) -> None:
        self.on_met(welcome.node, welcome.inc, welcome.your_inc, welcome.your_mark)
        if welcome.node == self.me.node:
            # A twin: go on greeting it, so that both notice how long the other one lives.
            dial = self._dials.get(welcome.dialled)
            if dial is not None:
                dial.tries, dial.every_ms, dial.refused = 0, DIAL_MS, True
            return
        if self._pasts.is_shunned(welcome.node, welcome.inc):
            self._resolve(welcome.dialled)
            return
        link = self.links.get(welcome.node)
        if welcome.dialled:
            dial = self._dials.get(welcome.dialled)
            if link is None and dial is not None and len(self.links) < PEERS_MAX:
                # The address answered: it is the one to use, whatever else the peer announces.
                known = self.past(welcome.node).inc
                link = Link(welcome.node, (dial.endpoint,), now_ms, known)
                self.links[welcome.node] = link
                self._sockets[welcome.node] = dial.socket
                self._connected[welcome.node] = dial.endpoint
                del self._dials[welcome.dialled]
            else:
                self._resolve(welcome.dialled)
        if link is None:
            return
        session = link.in_session
        if link.on_welcome(welcome, self.me.inc):
            self._speaking[link.node] = None
            self._lives[link.node] = link.inc
        self.remember(link.node, link.inc)
        self._forget_session(link, session)
        for peer in welcome.peers:
            if peer.node not in self.links and peer.node != self.me.node:
                self.hint(peer.endpoint, now_ms)

    def _on_reject(self, route: bytes, reject: m.Reject, now_ms: int) -> None:
        self._count("rejected")
        dial = self._dials.get(reject.dialled)
        if dial is not None:
            dial.refused = True
            dial.every_ms = GREET_MS_MAX
            dial.due_ms = now_ms + GREET_MS_MAX
        node = self._routes.get(route)
        if node is None and reject.dialled:
            # Who refuses to talk answers on a connection made for that alone: what tells whose
            # answer it is, is the address that was greeted.
            greeted = self._connected.items()
            node = next((one for one, there in greeted if there == reject.dialled), None)
        if node is not None and node in self.links:
            self.links[node].on_reject(reject, now_ms)
        if reject.reason == "clone":
            self.on_refused(node or b"", reject)

    def _resolve(self, endpoint: str) -> None:
        """Who is behind that hint is known now: the hint has done its work."""
        dial = self._dials.pop(endpoint, None)
        if dial is not None:
            self._bus.drop(dial.socket)

    def meet(self, node: bytes, inc: int, mark: int = 0) -> None:
        """A Heartbeat told of a life of that peer, and how far its journal has come."""
        if node == self.me.node:
            return
        self.remember(node, inc, mark)
        link = self.links.get(node)
        if link is not None:
            session = link.in_session
            link.meet(inc)
            self._forget_session(link, session)

    def _forget_session(self, link: Link, session: int) -> None:
        """A session that a newer life of the peer made void is nobody's."""
        if session and link.in_session != session:
            self._sessions.pop(session, None)

    # --- sockets of one peer ----------------------------------------------------------------------

    def _socket(self, link: Link) -> Socket:
        socket = self._sockets.get(link.node)
        if socket is None:
            socket = self._sockets[link.node] = self._bus.peer()
            endpoint = link.endpoint()
            if connect(socket, endpoint):
                self._connected[link.node] = endpoint
        return socket

    def address(self, link: Link) -> str:
        """Where that peer's inbox is reached."""
        return self._connected.get(link.node, link.endpoint())

    def _subscribe(self, link: Link, now_ms: int) -> None:
        """Hear the peer's telemetry, on the host that its inbox is reached at."""
        host = self.address(link).rpartition(":")[0]
        endpoint = f"{host}:{link.telemetry_port}"
        before = self._subscribed.get(link.node)
        if not link.telemetry_port or not host or before == endpoint:
            return
        if before is not None:
            # Not hung up at once: if that life goes on beside this one, they are clones.
            self._old_telemetry[before] = now_ms + FORMER_MS
        if connect(self.subscriber, endpoint):
            self._subscribed[link.node] = endpoint
            self._old_telemetry.pop(endpoint, None)

    def _drop_old_telemetry(self, now_ms: int) -> None:
        """Whoever is still heard there is somebody's clone, and known as one by now."""
        for endpoint, until_ms in list(self._old_telemetry.items()):
            if now_ms >= until_ms:
                del self._old_telemetry[endpoint]
                disconnect(self.subscriber, endpoint)

    def bulk_endpoint(self, node: bytes) -> str:
        """Where that peer answers Want, or nothing while it is unknown."""
        link = self.links.get(node)
        if link is None or not link.bulk_port:
            return ""
        host = self.address(link).rpartition(":")[0]
        return f"{host}:{link.bulk_port}"

    def reset(self, node: bytes, now_ms: int) -> None:
        """The peer is dead: close its DEALER so that nothing stale leaves later, and greet on."""
        link = self.links.get(node)
        if link is None:
            return
        self._hang_up(node)
        self._owed.pop(node, None)
        link.out_session = 0
        link.present = False
        link.take()
        link.greet_due_ms = now_ms

    def forget(self, node: bytes) -> None:
        """The peer left: no link, no greeting, until it greets again."""
        link = self.links.pop(node, None)
        self._hang_up(node)
        self._owed.pop(node, None)
        self._rejected_ms.pop(node, None)
        self._lives.pop(node, None)
        if link is not None:
            self._sessions.pop(link.in_session, None)
        before = self._subscribed.pop(node, None)
        if before is not None:
            disconnect(self.subscriber, before)

    def _hang_up(self, node: bytes) -> None:
        """Close the DEALER to one peer; what had not left stays unsaid."""
        socket = self._sockets.pop(node, None)
        if socket is not None:
            self._bus.drop(socket)
        self._connected.pop(node, None)

    # --- sending ----------------------------------------------------------------------------------

    def send(self, node: bytes, message: m.Message) -> None:
        """Put a message in line for a peer; unknown peers are counted, the protocol repeats."""
        link = self.links.get(node)
        if link is None:
            self._count("send.unknown")
            return
        link.enqueue(codec.encode(message))
        self._speaking[node] = None

    def tell(self, client: bytes, message: m.Message) -> None:
        """Put a message in line for a client."""
        self.clients.tell(client, message)

    def publish(self, beat: m.Heartbeat) -> None:
        """Send a Heartbeat to whoever listens."""
        self._published += 1
        header = codec.encode_header(self.me.inc, self._published)
        send(self.publisher, (b"\x50", header, codec.frame_of((codec.encode(beat),))))

    def heartbeats(self) -> Iterator[m.Heartbeat]:
        """Read telemetry until it would block."""
        for frames in drain(self.subscriber):
            try:
                if len(frames) != 3:
                    raise RemoteProtocolError("telemetry: three frames are due")
                found, unknown = codec.TELEMETRY.decode(frames[2])
            except RemoteProtocolError:
                self._count("breach.telemetry")
                continue
            if unknown:
                self._count("kinds.unknown", unknown)
            for message in found:
                if isinstance(message, m.Heartbeat):
                    yield message

    def flush(self, now_ms: int) -> None:
        """Once per turn: send all that was put in line, in batches."""
        if self.clients:
            self.clients.flush()
        self.flush_links(now_ms)

    def flush_links(self, now_ms: int) -> None:
        """Send what is in line for peers, and leave what is for clients."""
        if self._speaking:
            for node in list(self._speaking):
                if self._flush_link(node):
                    del self._speaking[node]
        if self._speaking or self._asides:
            self._retry_soon(now_ms)
        else:
            self._retry_ms, self._retry_wait_ms = FOREVER_MS, RETRY_MS

    def _retry_soon(self, now_ms: int) -> None:
        """Somebody cannot be spoken to yet: look again, ever more rarely."""
        if self._retry_ms <= now_ms:
            self._retry_wait_ms = min(RETRY_MS_MAX, 2 * self._retry_wait_ms)
        elif self._retry_ms != FOREVER_MS:
            return
        self._retry_ms = now_ms + self._retry_wait_ms

    def _flush_link(self, node: bytes) -> bool:
        """Send what waits for one peer; return whether nothing is left that could be sent."""
        link = self.links.get(node)
        if link is None:
            return True
        owed = self._owed.pop(node, None)
        if owed is not None and not send_alone(self._socket(link), owed):
            self._owed[node] = owed
            return False
        if not link.open or not link.outbox:
            return True
        socket = self._socket(link)
        waiting = link.take()
        done = 0
        for frames, count in codec.batches(waiting):
            header = codec.encode_header(link.out_session, link.next_sequence())
            if not send(socket, [header, *frames]):
                link.out_sequence -= 1
                link.put_back(waiting[done:])
                return False
            done += count
        return True

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Greet where that is due."""
        for dial in list(self._dials.values()):
            if now_ms >= dial.until_ms:
                self._resolve(dial.endpoint)
            elif now_ms >= dial.due_ms:
                self._dial(dial, now_ms)
        for link in list(self.links.values()):
            if link.greeting_due(now_ms):
                hello = self._hello(link.inc, link.endpoint())
                if send_alone(self._socket(link), hello):
                    elsewhere = link.greeted(now_ms)
                else:
                    elsewhere = link.not_greeted(now_ms)
                if elsewhere:
                    self._hang_up(link.node)
                    link.endpoint_at += 1
        if self._asides:
            self._asides.tick(now_ms)
        if self._old_telemetry:
            self._drop_old_telemetry(now_ms)
        if now_ms >= self._retry_ms:
            self.flush(now_ms)

    def next_deadline_ms(self) -> int:
        """When `tick` next has something to do."""
        soonest = self._retry_ms
        for dial in self._dials.values():
            soonest = min(soonest, dial.due_ms)
        for link in self.links.values():
            if not link.open:
                soonest = min(soonest, link.greet_due_ms)
        return soonest

    def _count(self, name: str, by: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + by
