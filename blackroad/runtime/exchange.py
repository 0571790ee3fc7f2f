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
from blackroad.limits import CHUNK_BYTES, FOREVER_MS, MIB
from blackroad.runtime.objects import ObjectStore, ObjectWriter
from blackroad.runtime.streams import Job, Streams

if TYPE_CHECKING:
    from blackroad.bus.messages import Ref

BULK_IDLE_MS = 60_000
# Below this a line is not worth its making: four chunks are asked for at once.
STREAM_BYTES_MIN = 1 * MIB
# A holder that does not answer a Dial by then gets Wants, and is not dialled again for a minute.
DIAL_MS = 1_000
WITHOUT_MS = 60_000
# Each takes a descriptor and a window of chunks; the others wait their turn.
PULLS_MAX = 64


class _Pull:
    """One object on its way here, by chunks unless it has a `job` on a line."""

    __slots__ = ("client", "holder", "job", "moved_bytes", "puller", "ref", "tried_bytes", "writer")

    def __init__(
        self, ref: Ref, holder: bytes, client: bytes, puller: Puller, writer: ObjectWriter
    ) -> None:
        self.ref = ref
        self.holder = holder
        self.client = client
        self.puller = puller
        self.writer = writer
        self.job: Job | None = None
        # How far it was when it was last looked at, and when its line last broke.
        self.moved_bytes = self.tried_bytes = -1


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
        streams: Streams | None = None,
    ) -> None:
        """Serve nodes on `server`; in a closed mesh only those that `node_with(key)` knows.

        `key_of(node)` is the key that a holder has to prove.  Without `streams` large objects go
        in chunks like all others.
        """
        self._streams = streams
        # Holders that were asked for a line: since when; or that have none to give, until when.
        self._dialled_ms: dict[bytes, int] = {}
        self._without_ms: dict[bytes, int] = {}
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
        if streams is not None:
            poller.watch(streams.fileno())
            store.closing.append(self.close)

    def close(self) -> None:
        """End all lines."""
        if self._streams is not None:
            self._poller.forget(self._streams.fileno())
            self._streams.close()
            self._streams = None

    # --- pulling ----------------------------------------------------------------------------------

    def fetch(self, ref: Ref, holder: bytes, client: bytes, now_ms: int) -> None:
        """Bring an object here, from a client if one is named, else from the node `holder`."""
        if self._store.has(ref.digest):
            self._arrived(ref.digest)
            return
        if ref.digest in self._pulls or ref.digest in self._waiting:
            return
        if client and self._claimed(ref):
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
            self._go_on(pull, now_ms)

    def _claimed(self, ref: Ref) -> bool:
        """Whether a client of this machine has laid it ready, be there room for it or not."""
        try:
            if not self._store.claim(ref.digest, ref.size):
                return False
        except BlackroadError as error:
            self._failed(ref.digest, error.message, True, ref.size <= self._store.limit_bytes)
            return True
        self._arrived(ref.digest)
        return True

    def _go_on(self, pull: _Pull, now_ms: int) -> None:
        """Pull over a line where the object is worth one and there is one, else by chunks."""
        if self._streamed(pull, now_ms):
            return
        self._ask(pull, now_ms)

    def _ask(self, pull: _Pull, now_ms: int) -> None:
        for offset, chunks in pull.puller.wants(now_ms):
            want = m.Want(pull.ref.digest, offset, chunks)
            if pull.client:
                self._tell(pull.client, want)
            else:
                self._send_want(pull.holder, want, now_ms)

    def _send_want(self, holder: bytes, want: m.Want | m.Dial, now_ms: int) -> bool:
        """Say something to a holder; False where nothing was sent."""
        bulk = self._bulks.get(holder)
        endpoint = self._bulk_endpoint(holder)
        if bulk is not None and endpoint and bulk.endpoint != endpoint:
            self._close(holder)
            bulk = None
        if bulk is None:
            if not endpoint:
                return False
            key = self._key_of(holder)
            if self._bus.closed and not key:
                # No member: its objects are nothing to rely on.
                return False
            socket = self._bus.bulk_client(key)
            if not connect(socket, endpoint):
                self._bus.drop(socket)
                return False
            bulk = self._bulks[holder] = _Bulk(endpoint, socket, now_ms)
            self._poller.watch(socket)
        bulk.used_ms = now_ms
        frames = (codec.encode_header(0, 0), codec.frame_of((codec.encode(want),)))
        if not send(bulk.socket, frames):
            self._count("want.unsent")
            return False
        return True

    # --- lines ------------------------------------------------------------------------------------

    def _streamed(self, pull: _Pull, now_ms: int) -> bool:
        """Put a large object on the line to its holder, or wait for that line."""
        streams, holder = self._streams, pull.holder
        if streams is None or pull.client or pull.ref.size < STREAM_BYTES_MIN:
            return False
        if self._without_ms.get(holder, 0) > now_ms:
            return False
        if streams.connected(holder):
            try:
                fd, state = pull.writer.lend()
            except OSError:
                # Out of descriptors: a chunk needs none.
                return False
            pull.job = Job(pull.ref, fd, pull.writer.ready_bytes, state)
            pull.puller.waits(now_ms, moved=True)
            streams.pull(holder, pull.job)
            return True
        if holder not in self._dialled_ms:
            if not self._send_want(holder, streams.dial(), now_ms):
                return False
            self._dialled_ms[holder] = now_ms
        return True

    def _on_line(self, holder: bytes, line: m.Line, now_ms: int) -> None:
        """A holder offers a line: what waits for it goes there."""
        streams = self._streams
        if streams is None or self._dialled_ms.pop(holder, None) is None:
            return
        host = self._bulk_endpoint(holder).removeprefix("tcp://").rpartition(":")[0]
        if not host or (self._bus.closed and not line.cipher):
            self._do_without(holder, now_ms)
            return
        streams.connect(holder, host.strip("[]"), line)
        self._move_all(holder, now_ms)

    def _do_without(self, holder: bytes, now_ms: int) -> None:
        """No line to be had: chunks do as well, only slower."""
        self._dialled_ms.pop(holder, None)
        self._without_ms[holder] = now_ms + WITHOUT_MS
        self._count("stream.none")
        self._move_all(holder, now_ms)

    def _move_all(self, holder: bytes, now_ms: int) -> None:
        for pull in list(self._pulls.values()):
            if pull.holder == holder and not pull.client and pull.job is None:
                self._go_on(pull, now_ms)

    def _on_streams(self, now_ms: int) -> None:
        """Some jobs are over, or lines are."""
        if self._streams is None:
            return
        broken: set[bytes] = set()
        for holder, job in self._streams.ended():
            if job is None:
                broken.add(holder)
                continue
            pull = self._pulls.get(job.digest)
            if pull is None or pull.job is not job:
                continue
            pull.job = None
            pull.writer.given_back(job.received)
            pull.puller.have(job.received, now_ms)
            if job.complete:
                self._finish(pull, now_ms)
                self._start_waiting(now_ms)
            elif job.gone:
                self._end(pull, "its holder no longer has the object")
            elif job.text:
                self._end(pull, f"it cannot be written: {job.text}", here=True)
            else:
                # Then its line is over, whether that was told yet or not.
                self._streams.hang_up(holder)
                broken.add(holder)
                if pull.tried_bytes == job.received:
                    # Twice without a byte in between: the line is no good.
                    self._without_ms[holder] = now_ms + WITHOUT_MS
                    self._count("stream.broken")
                pull.tried_bytes = job.received
        for holder in broken:
            self._move_all(holder, now_ms)

    def _awaits_line(self, pull: _Pull) -> bool:
        large = pull.ref.size >= STREAM_BYTES_MIN and not pull.client
        return large and pull.holder in self._dialled_ms

    def _look_at_lines(self, now_ms: int) -> None:
        if self._streams is not None:
            self.counters.update(self._streams.told())
        for holder, since_ms in list(self._dialled_ms.items()):
            if now_ms - since_ms >= DIAL_MS:
                self._do_without(holder, now_ms)
        for pull in self._pulls.values():
            if pull.job is not None:
                pull.puller.waits(now_ms, moved=pull.moved_bytes != pull.job.received)
                pull.moved_bytes = pull.job.received

    def on_chunk(self, chunk: m.Chunk, now_ms: int) -> None:
        """Bytes of an object; what nobody asked for is dropped."""
        pull = self._pulls.get(chunk.digest)
        if pull is None or pull.job is not None:
            # Nobody asked, or it comes over a line by now.
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
            pull.tried_bytes = -1
            self._go_on(pull, now_ms)
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
        if pull.job is not None:
            pull.job.cancelled = True
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
        for node, frames in self._from_nodes():
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
                elif isinstance(message, m.Dial) and self._streams is not None:
                    self._answer(route, self._streams.offer(node, message))

    def _from_nodes(self) -> Iterator[tuple[bytes, list[bytes]]]:
        node_with = self._node_with
        if node_with is None:
            for frames in drain(self._server):
                yield b"", frames
            return
        for key, frames, _ in drain_keyed(self._server):
            node = node_with(key)
            if node:
                yield node, frames
            else:
                self._count("refused.key")

    def _answer(self, route: bytes, message: m.Message) -> bool:
        frame = codec.frame_of((codec.encode(message),))
        return send(self._server, (route, codec.encode_header(0, 0), frame))

    def on_readable(self, socket: Socket | int, now_ms: int) -> bool:
        """Read what a holder sent; return whether that socket is one of ours."""
        if isinstance(socket, int):
            ours = self._streams is not None and socket == self._streams.fileno()
            if ours:
                self._on_streams(now_ms)
            return ours
        found_bulk = next((one for one in self._bulks.items() if one[1].socket is socket), None)
        if found_bulk is None:
            return False
        holder = found_bulk[0]
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
                elif isinstance(message, m.Line):
                    self._on_line(holder, message, now_ms)
        return True

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Ask again for what did not come; give up where nothing moves; close idle sockets."""
        self._look_at_lines(now_ms)
        for pull in list(self._pulls.values()):
            if pull.puller.gave_up(now_ms):
                self._end(pull, "the object did not arrive in time", gone=False)
            elif pull.job is None and not self._awaits_line(pull):
                self._ask(pull, now_ms)
        self._start_waiting(now_ms)
        self._store.tidy(now_ms)
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
        self._dialled_ms.pop(node, None)
        self._without_ms.pop(node, None)
        if self._streams is not None:
            self._streams.cut(node)
        self._close(node)

    def _close(self, holder: bytes) -> None:
        bulk = self._bulks.pop(holder, None)
        if bulk is not None:
            self._poller.forget(bulk.socket)
            self._bus.drop(bulk.socket)

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1
