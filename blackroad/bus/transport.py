"""Links to all peers over real sockets: one ROUTER to hear, one DEALER per peer to speak.

Source  docs/protocol.md, "Opening a link", "Framing on the wire".  Edge.  This file moves
messages; what they mean is the node's business.  With a guard, each multipart is judged by the key
that its connection proved: who it is, and what its role may say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.allowing import speaks_for
from blackroad.bus.asides import Asides, send_alone
from blackroad.bus.dialling import Dialler
from blackroad.bus.identity import Identity as Identity
from blackroad.bus.identity import closed_cluster_digest as closed_cluster_digest
from blackroad.bus.identity import cluster_digest as cluster_digest
from blackroad.bus.lines import Lines
from blackroad.bus.link import REJECT_GAP_MS, RETRY_MS, Link
from blackroad.bus.members import Member, Role
from blackroad.bus.pasts import Past, Pasts
from blackroad.bus.refusals import CLONE_TEXT, refusal_of
from blackroad.bus.sockets import Bus, Socket, bind, drain, drain_keyed, send
from blackroad.bus.telemetry import Telemetry
from blackroad.bus.visitors import Visitors
from blackroad.errors import RemoteProtocolError
from blackroad.ids import inc_counter
from blackroad.limits import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    FOREVER_MS,
    PEERS_MAX,
    PROTOCOL_VERSION_MAX,
    PROTOCOL_VERSION_MIN,
)

if TYPE_CHECKING:
    from blackroad.bus.guard import Guard

ROUTES_MAX = 4_096
RETRY_MS_MAX = 250
PEERS_TOLD_MAX = 64
GREETINGS_UNANSWERED_MAX = 3


class Transport:
    """All links of one daemon, and the connections of its clients."""

    def __init__(
        self,
        bus: Bus,
        me: Identity,
        host: str,
        port: int,
        telemetry_port: int,
        bulk_port: int,
        guard: Guard | None = None,
    ) -> None:
        self.me = me
        self.links: dict[bytes, Link] = {}
        self.counters: dict[str, int] = {}
        self.endpoints: tuple[str, ...] = ()
        self._bus = bus
        self._guard = guard
        self.inbox = bus.inbox()
        self.port = bind(self.inbox, host, port, "port")
        self.telemetry = Telemetry(bus, lambda: self.me.inc, host, telemetry_port, self._count)
        self.telemetry_port = self.telemetry.port
        self.bulk = bus.bulk_server()
        self.bulk_port = bind(self.bulk, host, bulk_port, "bulk_port")
        self._sockets: dict[bytes, Socket] = {}
        self._connected: dict[bytes, str] = {}
        self._lives: dict[bytes, int] = {}
        self.dialler = Dialler(
            bus,
            lambda there, node: self._hello(self.past(node).inc if node else 0, there),
            self._is_known,
            self._keys_for,
            self._count,
            lambda there: there in self.endpoints,
        )
        self.dialler.on_found = self._on_found
        self._sessions: dict[int, Link] = {}
        self._routes: dict[bytes, bytes] = {}
        self._rejected_ms: dict[bytes, int] = {}
        self._speaking: dict[bytes, None] = {}
        self._owed: dict[bytes, m.Message] = {}
        self._asides = Asides(bus)
        self.clients = Lines(self._count)
        self.visitors = Visitors(guard, self.clients.tell)
        self.clients.senders[b"t"] = self._send_client
        self._session_serial = 0
        self._retry_ms = FOREVER_MS
        self._retry_wait_ms = RETRY_MS
        self.pasts = Pasts()
        # A greeting told of a life of its sender, the newest known of mine, and my journal's mark.
        self.on_met: Callable[[bytes, int, int, int], None] = lambda *_met: None
        # A peer takes messages from now on.
        self.on_open: Callable[[bytes], None] = lambda _node: None
        self.on_refused: Callable[[bytes, m.Reject], None] = lambda *_refused: None

    def _send_client(self, route: bytes, sequence: int, frames: list[bytes]) -> bool:
        return send(self.inbox, [route, codec.encode_header(0, sequence), *frames])

    # --- lives ------------------------------------------------------------------------------------

    def past(self, node: bytes) -> Past:
        """The newest life of that node which was ever heard of here."""
        return self.pasts.of(node)

    def remember(self, node: bytes, inc: int, mark: int = 0) -> None:
        """Hear of a life of that node, by whatever path."""
        self.pasts.remember(node, inc, mark, self.links)

    def begin_again(self, inc: int) -> None:
        """This node begins another life before it served: all sessions are void."""
        self.me = self.me._replace(inc=inc)
        self._sessions.clear()
        self._owed.clear()
        for link in self.links.values():
            link.begin_again()
        self.dialler.begin_again()

    def shun(self, node: bytes, now_ms: int) -> None:
        """Two machines use that identity: close the link, and tell both why."""
        link = self.links.pop(node, None)
        if link is None:
            self.pasts.shun(node, "", 0)
        else:
            self._sessions.pop(link.in_session, None)
            self.pasts.shun(node, link.endpoint(), link.inc)
        self._hang_up(node)
        self.dialler.forget(node)
        self._tell_shunned(node, now_ms)

    def _tell_shunned(self, node: bytes, now_ms: int) -> None:
        for endpoint, inc in self.pasts.where(node):
            self._aside(node, endpoint, m.Reject("clone", CLONE_TEXT, "", inc), now_ms)

    # --- hints ------------------------------------------------------------------------------------

    def unanswered(self) -> Iterable[str]:
        """Addresses that were hinted at, and where nobody has said a word yet."""
        return self.dialler.unanswered()

    def hint(
        self,
        endpoint: str,
        now_ms: int,
        until_ms: int = FOREVER_MS,
        node: bytes = b"",
        source: str = "static",
    ) -> None:
        """Somebody may be there; say Hello until somebody answers, or until then."""
        self.dialler.hint(endpoint, now_ms, until_ms, node, source)

    def _keys_for(self, node: bytes) -> list[bytes]:
        """Keys that may be behind an address of that node, of anybody for b""."""
        return [b""] if self._guard is None else self._guard.keys_for(node)

    def key_of(self, node: bytes) -> bytes:
        """The key to expect of that node; b"" in an open mesh, or where it must not be met."""
        return b"" if self._guard is None else self._guard.key_of(node)

    def _is_known(self, endpoint: str) -> bool:
        if endpoint in self.endpoints or endpoint in self._connected.values():
            return True
        return any(endpoint in link.endpoints for link in self.links.values())

    def _hello(self, their_inc: int, dialled: str) -> m.Hello:
        me, ports = self.me, (self.telemetry_port, self.bulk_port)
        versions = (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION_MAX)
        return m.Hello(
            *versions,
            me.cluster,
            me.node,
            me.inc,
            their_inc,
            me.name,
            self.endpoints,
            *ports,
            dialled,
        )

    # --- receiving --------------------------------------------------------------------------------

    def receive(self, now_ms: int) -> Iterator[tuple[bytes, bytes, list[m.Message]]]:
        """Read the inbox until it would block.

        Yield (node, b"", messages) for a peer and (b"", client handle, messages) for a client.
        """
        if self._guard is None:
            for frames in drain(self.inbox):
                yield from self._multipart(frames, None, now_ms)
            return
        for key, frames, _ in drain_keyed(self.inbox):
            member = self._guard.member(key)
            if member is None:
                # It got in before it was revoked.
                self._count("refused.key")
                self._guard.turned_away("revoked")
                continue
            yield from self._multipart(frames, member, now_ms)

    def _multipart(
        self, frames: list[bytes], member: Member | None, now_ms: int
    ) -> Iterator[tuple[bytes, bytes, list[m.Message]]]:
        if len(frames) < 2:
            self._count("frames.short")
            return
        route = frames[0]
        try:
            header = codec.decode_header(frames[1])
            if header.session:
                yield from self._from_session(route, header, frames[2:], member, now_ms)
            else:
                yield from self._from_stranger(route, frames[2:], member, now_ms)
        except RemoteProtocolError:
            self._breach(route)

    def _from_session(
        self,
        route: bytes,
        header: codec.Header,
        frames: list[bytes],
        member: Member | None,
        now_ms: int,
    ) -> Iterator[tuple[bytes, bytes, list[m.Message]]]:
        link = self._sessions.get(header.session)
        if link is None or link.in_session != header.session:
            self._unknown_session(route, now_ms)
            return
        if member is not None and not speaks_for(member, link.node):
            self._foreign()
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

    def _foreign(self) -> None:
        """A member spoke for a node that it is not."""
        self._count("refused.foreign")
        if self._guard is not None:
            self._guard.turned_away("foreign")

    def _from_stranger(
        self, route: bytes, frames: list[bytes], member: Member | None, now_ms: int
    ) -> Iterator[tuple[bytes, bytes, list[m.Message]]]:
        """Session 0: a greeting between daemons, or a client over TCP."""
        for frame in frames:
            found, unknown = codec.INBOX.decode(frame)
            if unknown:
                self._count("kinds.unknown", unknown)
            said: list[m.Message] = []
            for message in found:
                match message:
                    case m.Hello() | m.Welcome() if not (
                        member is None or speaks_for(member, message.node)
                    ):
                        self._foreign()
                    case m.Hello():
                        self._on_hello(route, message, now_ms)
                    case m.Welcome():
                        self._on_welcome(message, now_ms)
                    case m.Reject() if member is not None and member.role < Role.NODE:
                        self._foreign()
                    case m.Reject():
                        self._on_reject(route, message, now_ms)
                    case _:
                        said.append(message)
            if said and member is not None:
                said = self.visitors.allowed(route, said, member, self.me.node)
            if said:
                yield b"", b"t" + route, said

    def _unknown_session(self, route: bytes, now_ms: int) -> None:
        """Whoever sent that believes in a session that is not: tell him, not too often."""
        self._count("session.unknown")
        node = self._routes.get(route)
        link = self.links.get(node) if node is not None else None
        if node is None or (link is None and not self.pasts.where(node)):
            return
        if now_ms - self._rejected_ms.get(node, -FOREVER_MS) >= REJECT_GAP_MS:
            self._rejected_ms[node] = now_ms
            socket = self._sockets.get(node)
            if link is None:
                self._tell_shunned(node, now_ms)
            elif socket is None or not send_alone(socket, m.Reject("session")):
                self.dialler.say(node, m.Reject("session"))

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
            self.dialler.is_me(hello.dialled)
            return
        refusal = refusal_of(hello, self.me.cluster, self.pasts)
        if refusal is None or refusal.reason == "clone":
            self.on_met(hello.node, hello.inc, hello.your_inc, 0)
        if refusal is not None:
            self._count(f"reject.{refusal.reason}")
            self._aside(hello.node, hello.endpoints[0], refusal, now_ms)
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
            self.pasts.elsewhere(link.node, self._connected[link.node], life)
        if life != link.inc and self._connected.get(link.node, "") not in link.endpoints:
            # Started anew at another address: at the old one nobody is going to answer.
            self._hang_up(link.node)
        if len(self._routes) >= ROUTES_MAX:
            del self._routes[next(iter(self._routes))]
        self._routes[route] = hello.node
        self.dialler.learn(link.node, hello.endpoints, now_ms)
        peers, mark = self._peers_told(link.node), self.past(link.node).mark
        self._answer(link, link.welcome(hello, self.me.node, self.me.inc, peers, mark), now_ms)
        self._subscribe(link, now_ms)

    def _answer(self, link: Link, welcome: m.Welcome, now_ms: int) -> None:
        """Say it on the connection back, or on whichever comes to be; the Hello is repeated."""
        socket = self._sockets.get(link.node)
        if socket is not None and send_alone(socket, welcome):
            self._owed.pop(link.node, None)
            return
        if socket is not None:
            self._owed[link.node] = welcome
            self._speaking[link.node] = None
            self._retry_soon(now_ms)
        self.dialler.race(link.node, now_ms)
        self.dialler.owe(link.node, welcome)

    def _peers_told(self, to: bytes) -> tuple[m.Peer, ...]:
        """Where the others are."""
        others = (node for node, link in self.links.items() if link.present and node != to)
        known = ((node, self.dialler.addresses(node)) for node in islice(others, PEERS_TOLD_MAX))
        return tuple(m.Peer(node, there[0]) for node, there in known if there)

    def _aside(self, node: bytes, endpoint: str, message: m.Message, now_ms: int) -> None:
        """Say one thing where there is no link, on a connection that is closed again soon."""
        key = self.key_of(node)
        if self._guard is not None and not key:
            return
        if self._asides.say(endpoint, key, message, now_ms):
            self._retry_soon(now_ms)

    def _answer_past(self, link: Link, hello: m.Hello, now_ms: int) -> None:
        """A life that somebody has outlived: tell it so, and issue no session."""
        self._count("hello.past")
        if link.node == self.me.node:
            # Another daemon is what I am: the higher counter is the newer one.
            link.inc = max(self.me.inc, hello.inc, key=inc_counter)
        else:
            self.pasts.elsewhere(link.node, hello.endpoints[0], hello.inc)
        mark = self.past(link.node).mark
        answer = link.welcome(hello, self.me.node, self.me.inc, (), mark)
        self._aside(hello.node, hello.endpoints[0], answer, now_ms)

    def _on_welcome(self, welcome: m.Welcome, now_ms: int) -> None:
        self.on_met(welcome.node, welcome.inc, welcome.your_inc, welcome.your_mark)
        if welcome.node == self.me.node:
            # A twin: go on greeting it, so that both notice how long the other one lives.
            self.dialler.twin(welcome.dialled)
            return
        if self.pasts.is_shunned(welcome.node, welcome.inc):
            self.dialler.resolve(welcome.dialled)
            return
        link = self.links.get(welcome.node)
        if welcome.dialled and link is None and len(self.links) >= PEERS_MAX:
            self.dialler.resolve(welcome.dialled)
        elif link is not None and link.is_other(welcome.inc):
            self.dialler.is_other(welcome.node, welcome.dialled)
        elif welcome.dialled:
            key, in_use = self.key_of(welcome.node), self._connected.get(welcome.node, "")
            self.dialler.answered(welcome.node, key, welcome.dialled, now_ms, in_use)
            link = self.links.get(welcome.node)
        if link is None:
            return
        session = link.in_session
        if link.on_welcome(welcome, self.me.inc):
            self._speaking[link.node] = None
            self._lives[link.node] = link.inc
            self.on_open(link.node)
        self.remember(link.node, link.inc)
        self._forget_session(link, session)
        for peer in welcome.peers:
            if peer.node != self.me.node:
                self.hint(peer.endpoint, now_ms, node=peer.node, source="peers")

    def _on_reject(self, route: bytes, reject: m.Reject, now_ms: int) -> None:
        self._count("rejected")
        sought = self.dialler.refuse(reject.dialled, reject.reason, now_ms)
        node = self._routes.get(route)
        if node is None and reject.dialled:
            # Who refuses to talk answers on a connection made for that alone: what tells whose
            # answer it is, is the address that was greeted.
            greeted = self._connected.items()
            node = next((one for one, there in greeted if there == reject.dialled), sought)
        if node is not None and node in self.links:
            self.links[node].on_reject(reject, now_ms)
        if reject.reason == "clone":
            self.on_refused(node or b"", reject)

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

    def _on_found(self, node: bytes, endpoint: str, socket: Socket, now_ms: int) -> None:
        """The peer answered there: that is the address to use, whatever else it announces."""
        self._hang_up(node, lost=False)
        self._sockets[node], self._connected[node] = socket, endpoint
        link = self.links.get(node)
        if link is None:
            link = self.links[node] = Link(node, (endpoint,), now_ms, self.past(node).inc)
        self._speaking[node] = None
        self._subscribe(link, now_ms)

    def announce(self, endpoints: tuple[str, ...], now_ms: int) -> None:
        """This node listens elsewhere, or at more addresses: say Hello to everybody again."""
        self.endpoints = endpoints
        self.dialler.probe_all(now_ms)
        for link in self.links.values():
            socket = self._sockets.get(link.node)
            if socket is not None:
                send_alone(socket, self._hello(link.inc, self._connected[link.node]))

    def connected(self, node: bytes) -> str:
        """The address at which that peer answered, "" while it is sought."""
        return self._connected.get(node, "")

    @property
    def closed(self) -> bool:
        """Do only the owners of known keys get in?"""
        return self._guard is not None

    def address(self, link: Link) -> str:
        """Where that peer's inbox is reached."""
        return self._connected.get(link.node, link.endpoint())

    def _subscribe(self, link: Link, now_ms: int) -> None:
        """Hear the peer's telemetry, on the host that its inbox is reached at."""
        host = self._connected.get(link.node, "").rpartition(":")[0]
        if link.telemetry_port and host:
            endpoint = f"{host}:{link.telemetry_port}"
            self.telemetry.hear(link.node, self.key_of(link.node), endpoint, now_ms)

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
        link.out_session = 0
        link.present = False
        link.take()
        link.greet_due_ms = now_ms

    def forget(self, node: bytes) -> None:
        """The peer left: no link, no greeting, until it greets again."""
        link = self.links.pop(node, None)
        self._hang_up(node)
        self.dialler.forget(node)
        self._rejected_ms.pop(node, None)
        self._lives.pop(node, None)
        if link is not None:
            self._sessions.pop(link.in_session, None)
        self.telemetry.deafen(node)

    def cut(self, now_ms: int, last: Mapping[bytes, m.Message]) -> list[bytes]:
        """Drop everybody whose key does not count any more; return the nodes among them.

        `last` says what a node hears of it.

        Cost  a look at each link and client; where somebody was dropped, all who listen to this
              node's telemetry have to come back.
        """
        guard = self._guard
        if guard is None:
            return []
        nodes = {*self.links, *self.telemetry.nodes()}
        gone = [node for node in nodes if node != self.me.node and not guard.key_of(node)]
        for node in gone:
            if node in last:
                self._say_last(node, last[node], now_ms)
            self.forget(node)
        for route, node in list(self._routes.items()):
            if node in gone:
                del self._routes[route]
        for client in self.visitors.leave():
            self.clients.forget(client)
        if gone:
            self._count("cut", len(gone))
        return gone

    def _say_last(self, node: bytes, last: m.Message, now_ms: int) -> None:
        """Say this instead of what waits, and close the DEALER when it has left."""
        link = self.links.get(node)
        if link is not None and link.open and node in self._sockets:
            link.take()
            link.enqueue(codec.encode(last))
            self._flush_link(node, now_ms)
            self._bus.finish(self._sockets.pop(node))

    def _hang_up(self, node: bytes, *, lost: bool = True) -> None:
        """Close the DEALER to one peer; what had not left stays unsaid."""
        socket = self._sockets.pop(node, None)
        if socket is not None:
            self._bus.drop(socket)
        self._connected.pop(node, None)
        self._owed.pop(node, None)
        if lost:
            self.dialler.lost(node)

    # --- sending ----------------------------------------------------------------------------------

    def send(self, node: bytes, message: m.Message) -> None:
        """Put a message in line for a peer; unknown peers are counted, the protocol repeats."""
        link = self.links.get(node)
        if link is None:
            self._count("send.unknown")
            return
        link.enqueue(codec.encode(message))
        self._speaking[node] = None

    def tell(self, client: bytes, message: m.Message, lazy: bool = False) -> None:
        """Put a message in line for a client; a `lazy` one waits for company, or for a tick."""
        if self.visitors.may_hear(client):
            self.clients.tell(client, message, lazy)
        else:
            self._count("tell.cut")

    def publish(self, beat: m.Heartbeat) -> None:
        """Send a Heartbeat to whoever listens."""
        self.telemetry.publish((beat,))

    def heartbeats(self, socket: Socket | None = None) -> Iterator[m.Heartbeat]:
        """Read telemetry until it would block, on one socket or on all."""
        for message in self.telemetry.read(socket):
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
                if self._flush_link(node, now_ms):
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

    def _flush_link(self, node: bytes, now_ms: int) -> bool:
        """Send what waits for one peer; return whether nothing is left that could be sent."""
        link = self.links.get(node)
        if link is None:
            return True
        socket = self._sockets.get(node)
        if socket is None:
            # The address that wins is spoken to next.
            self.dialler.race(node, now_ms)
            return True
        owed = self._owed.pop(node, None)
        if owed is not None and not send_alone(socket, owed):
            self._owed[node] = owed
            return False
        if not link.open or not link.outbox:
            return True
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
        self.clients.waken()
        self.dialler.tick(now_ms)
        for link in list(self.links.values()):
            if link.greeting_due(now_ms):
                self._greet(link, now_ms)
        if self._asides:
            self._asides.tick(now_ms)
        self.telemetry.tick(now_ms)
        if now_ms >= self._retry_ms:
            self.flush(now_ms)

    def _greet(self, link: Link, now_ms: int) -> None:
        socket = self._sockets.get(link.node)
        hello = self._hello(link.inc, self._connected.get(link.node, ""))
        if socket is not None and send_alone(socket, hello):
            link.greeted(now_ms)
            if link.welcomes >= GREETINGS_UNANSWERED_MAX:
                self._hang_up(link.node)
        else:
            link.not_greeted(now_ms)
            self.dialler.learn(link.node, link.endpoints, now_ms)
            self.dialler.race(link.node, now_ms)

    def next_deadline_ms(self) -> int:
        """When `tick` next has something to do."""
        soonest = min(self._retry_ms, self.dialler.next_deadline_ms())
        for link in self.links.values():
            if not link.open:
                soonest = min(soonest, link.greet_due_ms)
        return soonest

    def _count(self, name: str, by: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + by
