"""Objects on the move between made-up machines: the daemon's own pull machine, made-up chunks.

Chunks carry a length and whether they are what the holder once stored, no bytes.
Source  docs/protocol.md, "Objects".  This file must not know why anybody wants an object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad import node as n
from blackroad.bus.puller import Puller
from blackroad.errors import RemoteProtocolError
from blackroad.limits import CHUNK_BYTES

if TYPE_CHECKING:
    from blackroad.router import effects as e
    from tests.sim.machine import Machine

REQUEST_BYTES = 60


class Span:
    """A chunk's bytes, without them."""

    __slots__ = ("bytes", "fine")

    def __init__(self, size: int, fine: bool) -> None:
        self.bytes = size
        self.fine = fine

    def __len__(self) -> int:
        return self.bytes


def spans(size: int, offset: int, chunks: int) -> list[tuple[int, int]]:
    """Offset and length of each chunk of an object that a request names."""
    ends = min(size, offset + chunks * CHUNK_BYTES)
    return [(at, min(CHUNK_BYTES, size - at)) for at in range(offset, ends, CHUNK_BYTES)]


class Pull:
    """One object on its way here."""

    __slots__ = ("fetch", "fine", "puller")

    def __init__(self, fetch: e.Fetch) -> None:
        self.fetch = fetch
        self.puller = Puller(fetch.ref.digest, fetch.ref.size)
        self.fine = True


class Objects:
    """What one machine pulls, and what it serves."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._world = machine.world
        self.pulls: dict[bytes, Pull] = {}

    # --- pulling ----------------------------------------------------------------------------------

    def fetch(self, fetch: e.Fetch) -> None:
        """Bring an object here, from a client if one is named, else from a node."""
        machine = self._machine
        digest = fetch.ref.digest
        if digest in machine.disk.objects:
            self._tell(n.Fetched(digest))
        elif machine.disk.full:
            self._tell(n.FetchFailed(digest, "there is no room for it", here=True))
        elif digest not in self.pulls:
            pull = self.pulls[digest] = Pull(fetch)
            self._go_on(pull)

    def _tell(self, event: n.AnyEvent) -> None:
        """Tell the node, after the turn that is under way."""
        self._world.at(self._world.now, self._machine.feed, event, self._machine.life)

    def _go_on(self, pull: Pull) -> None:
        """Ask for what is missing, and look again when that is overdue."""
        machine, world = self._machine, self._world
        now_ms = machine.clock()
        digest = pull.fetch.ref.digest
        if pull.puller.gave_up(now_ms):
            self._end(pull, "it did not arrive in time", gone=False)
            return
        for offset, chunks in pull.puller.wants(now_ms):
            if pull.fetch.client:
                client = world.clients.get(pull.fetch.client)
                if client is not None:
                    world.at(world.now + 1, client.hand_over, digest, offset, chunks)
                continue
            holder = machine.routed(pull.fetch.holder)
            if holder is None:
                continue
            for delay_ms in world.bulk(machine, holder, REQUEST_BYTES):
                at = world.now + delay_ms
                world.at(at, holder.driver, holder.bulk.serve, machine, digest, offset, chunks)
        due_ms = pull.puller.next_deadline_ms()
        if due_ms is not None:
            at = max(machine.true(due_ms), world.now + 1)
            world.at(at, machine.driver, self._look, pull, due_ms)

    def _look(self, pull: Pull, due_ms: int) -> None:
        if self.pulls.get(pull.fetch.ref.digest) is pull:
            next_ms = pull.puller.next_deadline_ms()
            if next_ms is not None and next_ms <= self._machine.clock():
                self._go_on(pull)

    def on_chunk(self, digest: bytes, offset: int, span: Span) -> None:
        """Part of an object is here; what nobody asked for is dropped."""
        pull = self.pulls.get(digest)
        if pull is None:
            return
        if self._machine.disk.full:
            self._end(pull, "there is no room for it")
            return
        try:
            now_ms = self._machine.clock()
            complete = pull.puller.on_chunk(offset, span, now_ms)  # type: ignore[arg-type]
        except RemoteProtocolError:
            self._world.broken("objects", "a chunk that this object does not have")
            return
        if complete is None:
            return
        pull.fine = pull.fine and span.fine
        if not complete:
            self._go_on(pull)
        elif pull.fine:
            del self.pulls[digest]
            self._machine.disk.objects[digest] = pull.fetch.ref.size
            self._machine.disk.rotten.discard(digest)
            self._machine.feed(n.Fetched(digest))
        elif pull.puller.start_over(self._machine.clock()):
            pull.fine = True
            self._go_on(pull)
        else:
            self._end(pull, "its content is not what its name says")

    def on_gone(self, digest: bytes) -> None:
        """The holder does not have it."""
        pull = self.pulls.get(digest)
        if pull is not None:
            self._end(pull, "its holder no longer has the object")

    def holder_gone(self, node: bytes) -> None:
        """That node is gone: what it was to send cannot come."""
        for pull in list(self.pulls.values()):
            if pull.fetch.holder == node and not pull.fetch.client:
                self._end(pull, "its holder is gone")

    def _end(self, pull: Pull, text: str, *, gone: bool = True) -> None:
        digest = pull.fetch.ref.digest
        self.pulls.pop(digest, None)
        self._tell(n.FetchFailed(digest, text, gone))

    # --- serving ----------------------------------------------------------------------------------

    def serve(self, puller: Machine, digest: bytes, offset: int, chunks: int) -> None:
        """Answer one request of another machine, chunk by chunk."""
        world, machine = self._world, self._machine
        size = machine.disk.objects.get(digest)
        if size is None:
            for delay_ms in world.bulk(machine, puller, REQUEST_BYTES):
                at = world.now + delay_ms
                world.at(at, puller.driver, puller.bulk.on_gone, digest)
            return
        for at, length in spans(size, offset, chunks):
            fine = digest not in machine.disk.rotten
            for delay_ms in world.bulk(machine, puller, length):
                span = Span(length, fine and not world.flips())
                when = world.now + delay_ms
                world.at(when, puller.driver, puller.bulk.on_chunk, digest, at, span)
