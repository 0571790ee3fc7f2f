"""Real links between made-up machines: the daemon's own Link, its sessions and sequences.

Messages are encoded, and leave in multiparts as the daemon's transport cuts them.  What one life
keeps of the others, and what it tells its node of greetings, is as in `lives.py`.
Source  docs/protocol.md, "Opening a link".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blackroad import node as n
from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.link import REJECT_GAP_MS, Link
from blackroad.limits import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN
from tests.sim.lives import Lives

if TYPE_CHECKING:
    from tests.sim.machine import Machine

NEVER_MS = 2**62


class Links(Lives):
    """All links of one machine's present life."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.links: dict[bytes, Link] = {}
        self._sessions: dict[int, Link] = {}
        self._serial = 0
        self._rejected_ms: dict[bytes, int] = {}
        self._due_ms = NEVER_MS

    def begin(self) -> None:
        """A life begins: it has no sessions, and greets everybody."""
        self.links.clear()
        self._sessions.clear()
        self._rejected_ms.clear()
        self._due_ms = NEVER_MS
        super().begin()

    # --- greetings --------------------------------------------------------------------------------

    def greet(self, other: Machine) -> None:
        """Say Hello to a peer until it answers; a twin is greeted without a link."""
        if other.id == self._machine.id:
            super().greet(other)
            return
        if other.id not in self.links:
            now_ms = self._machine.clock()
            self.links[other.id] = Link(other.id, (_endpoint(other),), now_ms)
        self._arm()

    def _arm(self) -> None:
        """Look again when the next greeting is due."""
        world, machine = self._world, self._machine
        due_ms = min(
            (one.greet_due_ms for one in self.links.values() if not one.open), default=NEVER_MS
        )
        if due_ms < NEVER_MS:
            at = max(machine.true(due_ms), world.now)
            if at < self._due_ms:
                self._due_ms = at
                world.at(at, self._tick, machine.life, at)

    def _tick(self, life: int, at: int) -> None:
        machine = self._machine
        if machine.node is None or life != machine.life or at != self._due_ms:
            return
        self._due_ms = NEVER_MS
        if machine.paused:
            machine.driver(self._arm)
            return
        now_ms = machine.clock()
        for link in self.links.values():
            if link.greeting_due(now_ms):
                target = machine.routed(link.node)
                if target is None or target.node is None:
                    link.not_greeted(now_ms)
                    continue
                link.greeted(now_ms)
                self._say_hello(link, target)
        self._arm()

    def _say_hello(self, link: Link, target: Machine) -> None:
        machine, node = self._machine, self._machine.node
        if node is None:
            return
        known = max(link.inc, self.newest(link.node))
        hello = m.Hello(
            PROTOCOL_VERSION_MIN,
            PROTOCOL_VERSION_MAX,
            b"",
            machine.id,
            node.inc,
            known,
            machine.name,
            (_endpoint(machine),),
            1,
            1,
            _endpoint(target),
        )
        self._alone(target, hello)

    def _alone(self, target: Machine, message: m.Message) -> None:
        """A greeting or its answer travels alone, with session 0."""
        links = target.lives
        if isinstance(links, Links):
            self._world.carry(
                self._machine,
                target,
                (message,),
                target.driver,
                links.on_alone,
                self._machine,
                message,
            )

    def on_alone(self, source: Machine, message: m.Message) -> None:
        """What came with session 0."""
        match message:
            case m.Hello():
                self._hello_from(source, message)
            case m.Welcome():
                self._welcome_from(source, message)
            case m.Reject():
                link = self.links.get(source.id)
                if link is not None:
                    link.on_reject(message, self._machine.clock())
                    self._arm()
                if message.reason == "clone":
                    self.on_reject(source, message.inc)

    def _hello_from(self, source: Machine, hello: m.Hello) -> None:
        machine = self._machine
        node = machine.node
        if node is None:
            return
        if not self._meets(source, hello.inc, hello.your_inc):
            if self.refuses(source.id, hello.inc):
                self._alone(source, m.Reject("clone", "", hello.dialled, hello.inc))
            return
        if source.id in self.shunned:
            # An older life that is new here has to learn its age, and no more.
            aside = Link(source.id, hello.endpoints, machine.clock(), self.newest(source.id))
            self._alone(source, aside.welcome(hello, machine.id, node.inc, ()))
            return
        link = self.links.get(source.id)
        if link is None:
            link = Link(source.id, hello.endpoints, machine.clock(), self.newest(source.id))
            self.links[source.id] = link
        self._serial += 1
        fresh = ((node.inc & 0xFFFFFFFF) << 24 | self._serial) & (2**63 - 1)
        before = link.in_session
        if link.on_hello(hello, node.inc, fresh) and link.in_session != before:
            self._sessions.pop(before, None)
            self._sessions[link.in_session] = link
        self._alone(source, link.welcome(hello, machine.id, node.inc, ()))
        self._arm()

    def _welcome_from(self, source: Machine, welcome: m.Welcome) -> None:
        node = self._machine.node
        self._meets(source, welcome.inc, welcome.your_inc)
        link = self.links.get(source.id)
        if link is None or node is not self._machine.node or node is None:
            return
        before = link.in_session
        if source.id not in self.shunned and link.on_welcome(welcome, node.inc):
            self._flush(link)
        self._forget(link, before)

    # --- messages ---------------------------------------------------------------------------------

    def send(self, to: bytes, messages: Sequence[m.Message]) -> None:
        """Put messages in line; they leave once the link is open."""
        link = self.links.get(to)
        if link is None:
            return
        for message in messages:
            link.enqueue(self._world.spoken(message, self._machine.version))
        self._flush(link)

    def _flush(self, link: Link) -> None:
        target = self._machine.routed(link.node)
        if not link.open or not link.outbox or target is None:
            return
        links = target.lives
        if not isinstance(links, Links):
            return
        for frames, _ in codec.batches(link.take()):
            header = codec.Header(PROTOCOL_VERSION_MAX, link.out_session, link.next_sequence())
            shown = [one for frame in frames for one in codec.PEER.decode(frame)[0]]
            self._world.carry(
                self._machine,
                target,
                shown,
                target.driver,
                links.on_frames,
                self._machine,
                header,
                shown,
            )

    def on_frames(self, source: Machine, header: codec.Header, found: list[m.Message]) -> None:
        """A multipart of a session: it counts once, and in its order."""
        machine, world = self._machine, self._world
        link = self._sessions.get(header.session)
        if link is None or link.in_session != header.session:
            last_ms = self._rejected_ms.get(source.id, -NEVER_MS)
            if world.now - last_ms >= REJECT_GAP_MS:
                self._rejected_ms[source.id] = world.now
                self._alone(source, m.Reject("session"))
        elif link.accepts(header) and link.node not in self.shunned:
            machine.feed(n.FromPeer(link.node, found, link.inc))

    # --- lives ------------------------------------------------------------------------------------

    def heard(self, node: bytes, inc: int) -> None:
        """A Heartbeat told of a life of a peer."""
        link = self.links.get(node)
        if link is not None:
            before = link.in_session
            if link.meet(inc):
                self._forget(link, before)
                self._arm()

    def _forget(self, link: Link, session: int) -> None:
        if session and link.in_session != session:
            self._sessions.pop(session, None)

    def died(self, other: Machine) -> None:
        """The peer is dead: nothing stale leaves later, and it is greeted on."""
        link = self.links.get(other.id)
        if link is not None:
            link.out_session = 0
            link.present = False
            link.take()
            link.greet_due_ms = self._machine.clock()
            self._arm()

    def shun(self, node: bytes, reason: str) -> None:
        """Close the link to that peer, and say why."""
        super().shun(node, reason)
        link = self.links.pop(node, None)
        if link is None:
            return
        self._sessions.pop(link.in_session, None)
        for other in self._world.machines:
            known = self.newest(node)
            if other.id == node and other is not self._machine:
                self._alone(other, m.Reject("clone", "", _endpoint(other), known))


def _endpoint(machine: Machine) -> str:
    return f"sim://{machine.index}"
