"""Objects on the move: pulled from nodes and clients, served to nodes and clients.

Source  docs/protocol.md, "Objects".  Edge.  One pull per digest, whoever needs it; the node hears
only that an object is here or cannot be had.  This file must not know why anybody wants one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.puller import Puller
from blackroad.bus.sockets import Bus, Poller, Socket, connect, drain, drain_keyed, send
from blackroad.errors import BlackroadError, DamagedObject, RemoteProtocolError
from blackroad.ids import short
from blackroad.limits import CHUNK_BYTES, FOREVER_MS
from blackroad.runtime.objects import ObjectStore, ObjectWriter

if TYPE_CHECKING:
    from blackroad.bus.messages import Ref

BULK_IDLE_MS = 60_000
# Each takes a descriptor and a window of chunks; the others wait their turn.
PULLS_MAX = 64


class _Pull:
    """One object on its way here."""

    __slots__ = ("client", "holder", "puller", "ref", "writer")

    def __init__(
        self, ref: Ref, holder: bytes, client: bytes, puller: Puller, writer: ObjectWriter
    ) -> None:
        self.ref = ref
        self.holder = holder
        self.client = client
        self.puller = puller
        self.writer = writer


class _Bulk:
    """The DEALER to one holder."""

    __slots__ = ("endpoint", "socket", "used_ms")

    def __init__(self, endpoint: str, socket: Socket, now_ms: int) -> None:
        self.endpoint = endpoint
        self.socket = socket
        self.used_ms = now_ms


class Exchange:
    """All pulls and all serving of one daemon."""

    def __init__(
        self,
        store: ObjectStore,
        bus: Bus,
        poller: Poller,
        server: Socket,
        bulk_endpoint: Callable[[bytes], str],
        tell: Callable[[bytes, m.Message], None],
        arrived: Callable[[bytes], None],
        failed: Callable[[bytes, str, bool, bool], None],
        key_of: Callable[[bytes], bytes] = lambda _node: b"",
        node_with: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Serve nodes on `server`; in a closed mesh only those that `node_with(key)` knows.

        `key_of(node)` is the key that a holder has to prove.
        """
        self._store = store
        self._bus = bus
        self._poller = poller
        self._server = server
        self._bulk_endpoint = bulk_endpoint
        self._tell = tell
        self._arrived = arrived
        self._failed = failed
        self._key_of = key_of
        self._node_with = node_with
        self._pulls: dict[bytes, _Pull] = {}
        self._waiting: dict[bytes, tuple[Ref, bytes, bytes]] = {}
        self._bulks: dict[bytes, _Bulk] = {}
        self.counters: dict[str, int] = {}

    # --- pulling ----------------------------------------------------------------------------------

    def fetch(self, ref: Ref, holder: bytes, client: bytes, now_ms: int) -> None:
        """Bring an object here, from a client if one is named, else from the node `holder`."""
        if self._store.has(ref.digest):
            self._arrived(ref.digest)
            return
        if ref.digest in self._pulls or ref.digest in self._waiting:
            return
        if len(self._pulls) >= PULLS_MAX:
            self._waiting[ref.digest] = (ref, holder, client)
            return
        try:
            writer = self._store.writer(ref.digest, ref.size)
        except BlackroadError as error:
            self._failed(ref.digest, error.message, True, ref.size <= self._store.limit_bytes)
            return
        pull = _Pull(ref, holder, client, Puller(ref.digest, ref.size), writer)
        self._pulls[ref.digest] = pull
        if pull.puller.complete:
            self._finish(pull, now_ms)
        else:
            self._ask(pull, now_ms)

    def _ask(self, pull: _Pull, now_ms: int) -> None:
        for offset, chunks in pull.puller.wants(now_ms):
            want = m.Want(pull.ref.digest, offset, chunks)
            if pull.client:
                self._tell(pull.client, want)
            else:
                self._send_want(pull.holder, want, now_ms)

    def _send_want(self, holder: bytes, want: m.Want, now_ms: int) -> None:
        bulk = self._bulks.get(holder)
        endpoint = self._bulk_endpoint(holder)
        if bulk is not None and endpoint and bulk.endpoint != endpoint:
            self._close(holder)
            bulk = None
        if bulk is None:
            if not endpoint:
                return
            key = self._key_of(holder)
            if self._bus.closed and not key:
                # No member: its objects are nothing to rely on.
                return
            socket = self._bus.bulk_client(key)
            if not connect(socket, endpoint):
                self._bus.drop(socket)
                return
            bulk = self._bulks[holder] = _Bulk(endpoint, socket, now_ms)
            self._poller.watch(socket)
        bulk.used_ms = now_ms
        frames = (codec.encode_header(0, 0), codec.frame_of((codec.encode(want),)))
        if not send(bulk.socket, frames):
            self._count("want.unsent")

    def on_chunk(self, chunk: m.Chunk, now_ms: int) -> None:
        """Bytes of an object; what nobody asked for is dropped."""
        pull = self._pulls.get(chunk.digest)
        if pull is None:
            self._count("chunk.unasked")
            return
        try:
            complete = pull.puller.on_chunk(chunk.offset, chunk.data, now_ms)
            if complete is not None:
                pull.writer.write(chunk.offset, chunk.data)
        except RemoteProtocolError:
            self._count("breach.bulk")
        except BlackroadError as error:
            self._end(pull, error.message, here=True)
        else:
            if complete:
                self._finish(pull, now_ms)
                self._start_waiting(now_ms)
            else:
                self._ask(pull, now_ms)

    def _finish(self, pull: _Pull, now_ms: int) -> None:
        """All bytes are here: if they are the right ones, so is the object."""
        try:
            pull.writer.finish()
        except DamagedObject as error:
            self._start_over(pull, error.message, now_ms)
        except BlackroadError as error:
            self._end(pull, error.message, here=True)
        else:
            del self._pulls[pull.ref.digest]
            self._arrived(pull.ref.digest)

    def _start_over(self, pull: _Pull, text: str, now_ms: int) -> None:
        """The bytes are wrong: fetch them all once more, then blame the holder."""
        if pull.ref.size and pull.puller.start_over(now_ms):
            try:
                pull.writer = self._store.writer(pull.ref.digest, pull.ref.size)
            except BlackroadError as error:
                self._end(pull, error.message, here=True)
                return
            self._count("object.again")
            self._ask(pull, now_ms)
            return
        self._count(f"object.damaged.{'client' if pull.client else short(pull.holder)}")
        self._end(pull, text)

    def _start_waiting(self, now_ms: int) -> None:
        """Pull what has waited longest, as far as there is room."""
        while self._waiting and len(self._pulls) < PULLS_MAX:
            ref, holder, client = self._waiting.pop(next(iter(self._waiting)))
            self.fetch(ref, holder, client, now_ms)

    def on_gone(self, digest: bytes) -> None:
        """The holder does not have it."""
        pull = self._pulls.get(digest)
        if pull is not None:
            self._end(pull, "its holder no longer has the object")

    def _end(self, pull: _Pull, text: str, *, gone: bool = True, here: bool = False) -> None:
        self._pulls.pop(pull.ref.digest, None)
        pull.writer.abandon()
        self._failed(pull.ref.digest, text, gone, here)

    # --- serving ----------------------------------------------------------------------------------

    def serve(self, want: m.Want, answer: Callable[[m.Message], bool]) -> None:
        """Answer one Want, chunk by chunk."""
        size = self._store.size(want.digest)
        if size is None:
            answer(m.Gone(want.digest))
            return
        for number in range(want.chunks):
            offset = want.offset + number * CHUNK_BYTES
            if offset >= size:
                return
            data = self._store.read(want.digest, offset, CHUNK_BYTES)
            if not answer(m.Chunk(want.digest, offset, data)):
                # Full: the puller asks again for what did not come.
                self._count("chunk.unsent")
                return

    def on_server_readable(self) -> None:
        """Read what other nodes want."""
        for frames in self._from_nodes():
            route = frames[0]
            try:
                if len(frames) != 3:
                    raise RemoteProtocolError("bulk: three frames are due")
                codec.decode_header(frames[1])
                found, _ = codec.BULK.decode(frames[2])
            except RemoteProtocolError:
                self._count("breach.bulk")
                continue
            for message in found:
                if isinstance(message, m.Want):
                    self.serve(message, functools.partial(self._answer, route))

    def _from_nodes(self) -> Iterator[list[bytes]]:
        node_with = self._node_with
        if node_with is None:
            yield from drain(self._server)
            return
        for key, frames, _ in drain_keyed(self._server):
            if node_with(key):
                yield frames
            else:
                self._count("refused.key")

    def _answer(self, route: bytes, message: m.Message) -> bool:
        frame = codec.frame_of((codec.encode(message),))
        return send(self._server, (route, codec.encode_header(0, 0), frame))

    def on_readable(self, socket: Socket, now_ms: int) -> bool:
        """Read what a holder sent; return whether that socket is one of ours."""
        bulk = next((one for one in self._bulks.values() if one.socket is socket), None)
        if bulk is None:
            return False
        for frames in drain(socket):
            try:
                found, _ = codec.BULK.decode(frames[-1])
            except RemoteProtocolError:
                self._count("breach.bulk")
                continue
            for message in found:
                if isinstance(message, m.Chunk):
                    self.on_chunk(message, now_ms)
                elif isinstance(message, m.Gone):
                    self.on_gone(message.digest)
        return True

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Ask again for what did not come; give up where nothing moves; close idle sockets."""
        for pull in list(self._pulls.values()):
            if pull.puller.gave_up(now_ms):
                self._end(pull, "the object did not arrive in time", gone=False)
            else:
                self._ask(pull, now_ms)
        self._start_waiting(now_ms)
        for holder, bulk in list(self._bulks.items()):
            if now_ms - bulk.used_ms > BULK_IDLE_MS:
                self._close(holder)

    def next_deadline_ms(self, now_ms: int) -> int:
        """When `tick` next has something to do."""
        return now_ms + 250 if self._pulls else FOREVER_MS

    def forget_holder(self, node: bytes) -> None:
        """That node is gone: what it was to send cannot come."""
        for pull in [one for one in self._pulls.values() if one.holder == node and not one.client]:
            self._end(pull, "its holder is gone")
        self._close(node)

    def _close(self, holder: bytes) -> None:
        bulk = self._bulks.pop(holder, None)
        if bulk is not None:
            self._poller.forget(bulk.socket)
            self._bus.drop(bulk.socket)

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1
