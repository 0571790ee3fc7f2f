"""The thread that speaks with one daemon on behalf of a program.

Edge.  Programs put tasks in line and get futures; this thread sends what is in line in batches,
receives outcomes, serves objects the daemon asks for, and pulls large results.  It must not know
what work means.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.payload import Segment
from blackroad.bus.puller import GIVE_UP_MS
from blackroad.bus.sockets import Bus, Poller, connect, connected, drain, send
from blackroad.client.futures import TaskFuture
from blackroad.client.objects import Incoming, Outgoing
from blackroad.client.refusals import query_error, rejection
from blackroad.client.topics import TopicSide
from blackroad.errors import (
    BlackroadError,
    Busy,
    NoDaemon,
    OwnerLost,
    RemoteProtocolError,
    TaskError,
    Unreachable,
)
from blackroad.limits import (
    FOREVER_MS,
    SESSION_ALIVE_MS,
    SESSION_LEASE_MS,
    SESSION_TASKS_MAX,
    SUBMIT_BYTES_MAX,
    SUBMIT_TASKS_MAX,
)

if TYPE_CHECKING:
    from blackroad.bus.messages import ClassSpec, Message
    from blackroad.bus.sockets import CurveKeys

RESEND_MS = 2_000
QUERY_MS = 3_000
OWNER_GONE_MS = 5_000
SEEN_MAX = 1_024
SEEN_MS = 50
_SEEN_AT_ONCE = 256


class Pending:
    """One task in line: what Submit needs beside its spec."""

    __slots__ = (
        *("accepted", "code", "durable", "future", "in_line", "sent_ms", "spec", "wait", "work"),
    )

    def __init__(
        self,
        future: TaskFuture,
        spec: ClassSpec,
        code: m.Ref | None,
        work: m.Payload,
        durable: bool,
        wait: bool,
    ) -> None:
        self.future = future
        self.spec = spec
        self.code = code
        self.work = work
        self.durable = durable
        self.wait = wait
        self.sent_ms = 0
        self.accepted = False
        self.in_line = True


class _Asked:
    """A Query under way."""

    __slots__ = ("future", "pages", "until_ms")

    def __init__(self, until_ms: int) -> None:
        self.future: Future[bytes] = Future()
        self.pages: dict[int, bytes] = {}
        self.until_ms = until_ms


class Connection:
    """One session with one daemon."""

    def __init__(
        self, endpoint: str, user: str, keys: CurveKeys | None = None, daemon_key: bytes = b""
    ) -> None:
        """Speak with that daemon, over TCP as the owner of `keys` with that of `daemon_key`."""
        self.endpoint = endpoint
        self.user = user
        self.session = secrets.token_bytes(16)
        self.node = b""
        self.inc = 0
        self.name = ""
        self.credit = SESSION_TASKS_MAX
        self.opened: Future[None] = Future()
        self.tasks: dict[bytes, Pending] = {}
        self.outgoing = Outgoing()
        self.topics = TopicSide(self.post, user)
        self._incoming: dict[bytes, Incoming] = {}
        self._queue: deque[Pending] = deque()
        self._messages: deque[Message] = deque()
        self._asked: dict[int, _Asked] = {}
        self._query_serial = 0
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._sleeping = False
        self._closing = False
        self._sequence = 0
        self._seen: list[bytes] = []
        self._seen_due_ms = 0
        self._heard_ms = 0
        self._alive_ms = 0
        self._check_ms = 0
        self._unaccepted = 0
        self._retry: list[bytes] = []
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._bus = Bus(keys)
        self._socket = self._bus.client(daemon_key)
        self._monitor = self._bus.monitor(self._socket)
        self._lost_ms = 0
        self._cut_ms = 0
        # The daemon has ended this session: what was attached to it is gone.
        self._ended = False
        self._poller = Poller()
        self._thread = threading.Thread(target=self._run, name="blackroad-client", daemon=True)

    # --- called by any thread ---------------------------------------------------------------------

    def start(self, timeout_s: float) -> None:
        """Connect and open the session.

        Raises  NoDaemon where nobody answers in time; BlackroadError where the daemon refuses.
        """
        if not connect(self._socket, self.endpoint):
            # No thread is there to do it; sockets left to the collector would block it for ever.
            self._closing = True
            self._release()
            raise NoDaemon(f"{self.endpoint} is not an address")
        self._poller.watch(self._socket)
        self._poller.watch(self._monitor)
        self._poller.watch(self._wake_fd)
        self._thread.start()
        try:
            self.opened.result(timeout_s)
        except TimeoutError:
            self.close()
            raise NoDaemon(f"no daemon answers at {self.endpoint}") from None
        except BlackroadError:
            self.close()
            raise

    def submit(self, pending: Pending, timeout_s: float | None) -> bool:
        """Put a task in line; wait for credit where it is spent; False after `timeout_s`."""
        if len(self.tasks) >= self.credit:
            with self._room:
                done = self._room.wait_for(
                    lambda: len(self.tasks) < self.credit or self._closing, timeout_s
                )
            if not done:
                return False
        self.tasks[pending.future.task] = pending
        self._queue.append(pending)
        if self._sleeping:
            self._wake()
        return True

    def post(self, message: Message) -> None:
        """Put a message in line."""
        self._messages.append(message)
        self._wake()

    def query(self, name: str, args: bytes, target: bytes, timeout_s: float) -> bytes:
        """Ask a daemon something and wait for the whole answer.

        Raises  Unreachable where nobody answered; TaskError or UsageError where it said no.
        """
        asked = _Asked(_now_ms() + int(timeout_s * 1000))
        with self._lock:
            self._query_serial += 1
            serial = self._query_serial
            self._asked[serial] = asked
        self.post(m.Query(serial, target, name, args))
        try:
            return asked.future.result(timeout_s + 1)
        except TimeoutError:
            raise Unreachable(
                f"the daemon did not answer `{name}` within {timeout_s:g} s",
                hint="`blackroad nodes` shows who is there",
            ) from None
        finally:
            with self._lock:
                self._asked.pop(serial, None)

    def close(self) -> None:
        """End the session; attached tasks end with it."""
        if self._closing:
            return
        self._closing = True
        with self._room:
            self._room.notify_all()
        self._wake()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake_fd, 1)

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            self._fail_all(error)
            if not self.opened.done():
                self.opened.set_exception(error)
        finally:
            self._release()

    def _release(self) -> None:
        self._bus.close()
        os.close(self._wake_fd)

    def _loop(self) -> None:
        self._open()
        while not self._closing:
            self._sleeping = True
            busy = self._queue or self._messages
            timeout_ms = 0 if busy else max(0, min(1_000, self._check_ms - _now_ms()))
            ready = self._poller.wait(timeout_ms)
            self._sleeping = False
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
            now_ms = _now_ms()
            if any(what is self._monitor for what, _ in ready):
                self._watch_connection(now_ms)
            self._receive(now_ms)
            self._send_queue(now_ms)
            if now_ms >= self._check_ms:
                self._check(now_ms)
        self._send_queue(_now_ms())
        if self._seen:
            self._send(self._take_seen())
        self._send([m.Alive(self.session), m.Open(self.session, 1_000, self.user)])
        closed = NoDaemon("the client was closed before the task ended")
        self._fail_all(closed)

    def _watch_connection(self, now_ms: int) -> None:
        """A daemon that comes back is asked whether it still knows this session."""
        for there in connected(self._monitor):
            if not there:
                self._lost_ms = self._lost_ms or now_ms
            elif self._lost_ms:
                self._cut_ms, self._lost_ms = self._lost_ms, 0
                self._open()
                self.topics.reconnected()
                for incoming in self._incoming.values():
                    incoming.resume(now_ms)

    def _open(self) -> None:
        self._send([m.Open(self.session, SESSION_LEASE_MS, self.user)])
        self._alive_ms = _now_ms()

    # --- sending ----------------------------------------------------------------------------------

    def _send(self, messages: list[Message]) -> None:
        encoded = [codec.encode(message) for message in messages]
        for frames, _ in codec.batches(encoded):
            self._sequence += 1
            send(self._socket, [codec.encode_header(0, self._sequence), *frames])

    def _send_queue(self, now_ms: int) -> None:
        # Taken first and sent last: what a program says about a task comes after its submit in
        # the program, and so it must on the wire.
        posted = [self._messages.popleft() for _ in range(len(self._messages))]
        messages: list[Message] = []
        if self._seen and (posted or now_ms >= self._seen_due_ms or self._queue):
            messages += self._take_seen()
        queue = self._queue
        while queue:
            messages.append(self._next_submit(now_ms))
        messages += posted
        if messages:
            self._alive_ms = now_ms
            self._send(messages)

    def _take_seen(self) -> list[Message]:
        """What was seen since the last time; nobody waits for it, so it goes in company."""
        seen, self._seen = self._seen, []
        return [m.Seen(tuple(seen[at : at + SEEN_MAX])) for at in range(0, len(seen), SEEN_MAX)]

    def _next_submit(self, now_ms: int) -> m.Submit:
        """Gather tasks of one class from the head of the line into one message."""
        queue = self._queue
        first = queue[0]
        items: list[m.Item] = []
        size = 0
        while queue and len(items) < SUBMIT_TASKS_MAX:
            one = queue[0]
            if (
                one.spec is not first.spec
                or one.code is not first.code
                or one.durable != first.durable
                or one.wait != first.wait
            ):
                break
            size += len(one.work) + 24 if isinstance(one.work, bytes) else 64
            if items and size > SUBMIT_BYTES_MAX:
                break
            queue.popleft()
            one.in_line = False
            one.sent_ms = now_ms
            items.append(m.Item(one.future.task, one.work))
        return m.Submit(
            self.session, first.spec, first.code, first.durable, first.wait, tuple(items)
        )

    # --- receiving --------------------------------------------------------------------------------

    def _receive(self, now_ms: int) -> None:
        for frames in drain(self._socket):
            self._heard_ms = now_ms
            for frame in frames[1:]:
                try:
                    found, _ = codec.OWNER.decode(frame)
                except RemoteProtocolError:
                    continue
                for message in found:
                    self._take(message, now_ms)
        if len(self._seen) >= _SEEN_AT_ONCE:
            self._send(self._take_seen())

    def _take(self, message: Message, now_ms: int) -> None:
        match message:
            case m.Ended():
                self._on_ended(message, now_ms)
            case m.Accepted():
                for id_ in message.tasks:
                    pending = self.tasks.get(id_)
                    if pending is not None:
                        pending.accepted = True
                        if pending.future.wanted_gone:
                            # The wish may have come before the task was known there.
                            self._messages.append(m.Cancel((id_,)))
                        accepted = pending.future.accepted
                        if accepted is not None and not accepted.done():
                            accepted.set_result(None)
            case m.Updates() | m.Taken():
                self.topics.on_message(message)
            case m.Reply():
                self._on_reply(message)
            case m.Want():
                self._serve(message)
            case m.Chunk():
                self._on_chunk(message, now_ms)
            case m.Gone():
                self._on_gone(message.digest)
            case m.Rejected():
                self._on_rejected(message)
            case m.Opened():
                self._on_opened(message)
            case m.Busy():
                self._retry.extend(message.tasks)
            case m.Reject():
                self._on_reject(message)

    def _on_opened(self, opened: m.Opened) -> None:
        if opened.session != self.session:
            return
        if self.inc and (opened.node, opened.inc) != (self.node, self.inc):
            lost = OwnerLost(
                "the daemon was started anew: attached tasks ended with its earlier life",
                hint="submit again; tasks with durable=True go on by themselves",
            )
            # What was said after the connection broke never reached that life.
            self._lose_attached(lost, self._cut_ms or FOREVER_MS)
            # Durable ones are in the journal: naming them again binds them to this session.
            self._retry.extend(self.tasks)
        elif self._ended:
            over = OwnerLost(
                f"this program gave no sign for {SESSION_LEASE_MS // 1000} s (was it stopped?): "
                "its session ended, and its attached tasks with it",
                hint="submit again; tasks with durable=True go on by themselves",
            )
            for pending in list(self.tasks.values()):
                # What was not accepted was refused for want of the session, and is said again.
                if pending.accepted and not pending.durable:
                    self._fail(pending, over)
            self._retry.extend(self.tasks)
        self._ended = False
        self.node, self.inc, self.name = opened.node, opened.inc, opened.name
        self.credit = opened.credit
        if not self.opened.done():
            self.opened.set_result(None)

    def _on_reject(self, reject: m.Reject) -> None:
        if reject.reason == "session":
            self._ended = self.opened.done()
            self._open()
            return
        error = BlackroadError(f"the daemon refused: {reject.text or reject.reason}")
        if not self.opened.done():
            self.opened.set_exception(error)
        elif reject.reason != "role":
            # One thing that this key may not say; what it may goes on.
            self._fail_all(error)

    def _on_ended(self, ended: m.Ended, now_ms: int) -> None:
        pending = self.tasks.get(ended.task)
        if pending is None:
            self._saw(ended.task)
            return
        if isinstance(ended.result, m.Ref):
            self._pull(ended, now_ms)
            return
        self._settle(pending, ended, ended.result)

    def _settle(self, pending: Pending, ended: m.Ended, result: bytes | memoryview) -> None:
        self._forget(pending)
        self._saw(ended.task)
        accepted = pending.future.accepted
        if accepted is not None and not accepted.done():
            accepted.set_result(None)
        pending.future.settle(ended, result)

    def _saw(self, task: bytes) -> None:
        if not self._seen:
            self._seen_due_ms = _now_ms() + SEEN_MS
            self._check_ms = min(self._check_ms, self._seen_due_ms)
        self._seen.append(task)

    def _forget(self, pending: Pending) -> None:
        full = len(self.tasks) >= self.credit
        self.tasks.pop(pending.future.task, None)
        if isinstance(pending.work, m.Ref):
            self.outgoing.release(pending.work.digest)
        if full:
            with self._room:
                self._room.notify_all()

    def _on_rejected(self, rejected: m.Rejected) -> None:
        if rejected.reason == "session":
            self._ended = self.opened.done()
            self._open()
            self._retry.extend(rejected.tasks)
            return
        for id_ in rejected.tasks:
            pending = self.tasks.get(id_)
            if pending is None:
                continue
            self._forget(pending)
            error = rejection(rejected, pending.future.task_id)
            accepted = pending.future.accepted
            if accepted is not None and not accepted.done():
                accepted.set_exception(error)
            pending.future.fail(error)

    def _on_reply(self, reply: m.Reply) -> None:
        asked = self._asked.get(reply.query)
        if asked is None or asked.future.done():
            return
        if reply.error:
            asked.future.set_exception(query_error(reply.error))
            return
        asked.pages[reply.page] = reply.body
        if reply.last:
            asked.pages.setdefault(reply.page, b"")
        last = reply.page if reply.last else None
        if last is not None and len(asked.pages) == last + 1:
            asked.future.set_result(b"".join(asked.pages[n] for n in range(last + 1)))

    # --- objects ----------------------------------------------------------------------------------

    def _serve(self, want: m.Want) -> None:
        """The daemon asks for bytes of an object that this program holds."""
        answers = self.outgoing.chunks(want)
        for answer in answers:
            self._send([answer])

    def _pull(self, ended: m.Ended, now_ms: int) -> None:
        """A large result: fetch it from the owner before the future hears of it."""
        ref = ended.result
        if not isinstance(ref, m.Ref):
            return
        incoming = self._incoming.get(ref.digest)
        if incoming is None:
            try:
                incoming = self._incoming[ref.digest] = Incoming(ref)
            except Busy as error:
                pending = self.tasks.get(ended.task)
                if pending is not None:
                    self._saw(ended.task)
                    self._fail(pending, error)
                return
            self._send([*incoming.wants(now_ms)])
        if all(one.task != ended.task for one in incoming.waiting):
            incoming.waiting.append(ended)

    def fetch(self, ref: m.Ref) -> Future[memoryview]:
        """Pull an object that the daemon holds; callable from any thread."""
        future: Future[memoryview] = Future()
        self.outgoing.request(ref, future)
        self._wake()
        return future

    def _on_chunk(self, chunk: m.Chunk, now_ms: int) -> None:
        incoming = self._incoming.get(chunk.digest)
        if incoming is None:
            return
        try:
            complete = incoming.on_chunk(chunk, now_ms)
        except RemoteProtocolError:
            # Not a piece of this object: dropped, and asked for again if it stays away.
            return
        except BlackroadError as error:
            self._pull_failed(chunk.digest, error)
            return
        if not complete:
            self._send([*incoming.wants(now_ms)])
            return
        del self._incoming[chunk.digest]
        data = incoming.data()
        for ended in incoming.waiting:
            pending = self.tasks.get(ended.task)
            if pending is not None:
                self._settle(pending, ended, data)
        for future in incoming.futures:
            future.set_result(data)

    def _on_gone(self, digest: bytes) -> None:
        self._pull_failed(digest, TaskError("the result is no longer held by the daemon"))

    def _pull_failed(self, digest: bytes, error: BlackroadError) -> None:
        incoming = self._incoming.pop(digest, None)
        if incoming is None:
            return
        for ended in incoming.waiting:
            pending = self.tasks.get(ended.task)
            if pending is not None:
                self._forget(pending)
                self._saw(ended.task)
                accepted = pending.future.accepted
                if accepted is not None and not accepted.done():
                    # It ended, so it was accepted; only its result is not here.
                    accepted.set_result(None)
                pending.future.fail(error)
        _fail_futures(incoming, error)

    # --- time -------------------------------------------------------------------------------------

    def _check(self, now_ms: int) -> None:
        """Repeat what nobody answered; keep the session alive; notice a daemon that is gone."""
        self._check_ms = now_ms + 500
        self.topics.check(now_ms)
        for ref, future in self.outgoing.take_requests():
            incoming = self._incoming.get(ref.digest)
            if incoming is None:
                try:
                    incoming = self._incoming[ref.digest] = Incoming(ref)
                except Busy as error:
                    future.set_exception(error)
                    continue
            incoming.futures.append(future)
        self._check_pulls(now_ms)
        if not self.opened.done():
            self._open()
        if self._lost_ms and now_ms - self._lost_ms >= OWNER_GONE_MS and self.opened.done():
            lost = OwnerLost(
                "the daemon that owns these tasks is gone: attached tasks ended with it",
                hint="`blackroad nodes` shows who is there; tasks with durable=True go on when it "
                "is back, and `blackroad result ID` fetches them",
            )
            self._lose_attached(lost, FOREVER_MS)
        retry, self._retry = self._retry, []
        for id_ in retry:
            pending = self.tasks.get(id_)
            if pending is not None:
                pending.accepted = False
                self._line_up(pending)
        if self.tasks and now_ms - self._heard_ms >= RESEND_MS:
            self._resend(now_ms)
        elif now_ms - self._alive_ms >= SESSION_ALIVE_MS:
            self._alive_ms = now_ms
            self._send([m.Alive(self.session)])

    def _check_pulls(self, now_ms: int) -> None:
        """Ask again for what did not come; nobody waits for ever for what does not come.

        A durable task waits for its daemon's return, and so does its result.
        """
        for digest, incoming in list(self._incoming.items()):
            incoming.waiting = [one for one in incoming.waiting if one.task in self.tasks]
            if not incoming.waiting and not incoming.futures:
                del self._incoming[digest]
            elif not incoming.gave_up(now_ms):
                self._send([*incoming.wants(now_ms)])
            else:
                error = Unreachable(
                    f"a large value does not arrive: nothing of it came for {GIVE_UP_MS // 1000} s",
                    hint="`blackroad nodes` shows who is there; the result of a task with "
                    "durable=True is kept, and `blackroad result ID` fetches it",
                )
                if self._lost_ms:
                    _fail_futures(incoming, error)
                else:
                    self._pull_failed(digest, error)

    def _resend(self, now_ms: int) -> None:
        again = [
            pending
            for pending in self.tasks.values()
            if not pending.accepted and pending.sent_ms and now_ms - pending.sent_ms >= RESEND_MS
        ]
        if now_ms - self._alive_ms >= RESEND_MS:
            self._alive_ms = now_ms
            self._send([m.Alive(self.session)])
        for pending in again[:SUBMIT_TASKS_MAX]:
            pending.sent_ms = now_ms
            self._line_up(pending)

    def _line_up(self, pending: Pending) -> None:
        """Say it again, but only once."""
        if not pending.in_line:
            pending.in_line = True
            self._queue.append(pending)

    def _lose_attached(self, error: OwnerLost, said_before_ms: int) -> None:
        """The owner's life is over, and with it every task that it had and did not journal."""
        for pending in list(self.tasks.values()):
            journaled = pending.durable and pending.accepted
            unsaid = not pending.sent_ms and said_before_ms != FOREVER_MS
            if not journaled and not unsaid and pending.sent_ms < said_before_ms:
                self._fail(pending, error)

    def _fail(self, pending: Pending, error: BaseException) -> None:
        self._forget(pending)
        accepted = pending.future.accepted
        if accepted is not None and not accepted.done():
            accepted.set_exception(error)
        pending.future.fail(error)

    def _fail_all(self, error: BaseException) -> None:
        self.topics.close(error)
        for pending in list(self.tasks.values()):
            self._fail(pending, error)
        for asked in list(self._asked.values()):
            if not asked.future.done():
                asked.future.set_exception(error)
        for incoming in self._incoming.values():
            _fail_futures(incoming, error)
        for _, future in self.outgoing.take_requests():
            future.set_exception(error)

    def hold(self, ref: m.Ref, segments: list[Segment]) -> None:
        """Keep the bytes of an object until the daemon needs them no more."""
        self.outgoing.hold(ref, segments)


def _fail_futures(incoming: Incoming, error: BaseException) -> None:
    futures, incoming.futures = incoming.futures, []
    for future in futures:
        future.set_exception(error)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
