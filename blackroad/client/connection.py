"""A program's session with one daemon.

Edge.  Programs put tasks in line and get futures; each turn sends what is in line in batches,
receives outcomes, serves objects the daemon asks for, and pulls large results.  Who takes the
turns is decided in `turns.py`, what carries the messages in `wire.py`.  It must not know what
work means.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from blackroad import chance
from blackroad.bus import messages as m
from blackroad.bus.patience import processors
from blackroad.bus.payload import Segment
from blackroad.bus.puller import GIVE_UP_MS
from blackroad.client.asking import Asking
from blackroad.client.futures import TaskFuture, settle_all
from blackroad.client.objects import Incoming, Outgoing
from blackroad.client.refusals import rejection
from blackroad.client.topics import TopicSide
from blackroad.client.turns import Turns, now_ms
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
    from blackroad.bus.messages import Message
    from blackroad.client.wire import Wire

RESEND_MS = 2_000
OWNER_GONE_MS = 5_000
SEEN_MAX = 1_024
SEEN_MS = 50
CLOSE_S = 15.0
_SEEN_AT_ONCE = 256


class Connection:
    """One session with one daemon."""

    def __init__(self, wire: Wire, user: str, where: str) -> None:
        """Speak over that wire; `where` it leads is for people."""
        self.user = user
        self.session = chance.token_bytes(16)
        self.node = b""
        self.inc = 0
        self.name = ""
        self.credit = SESSION_TASKS_MAX
        self.opened: Future[None] = Future()
        self.tasks: dict[bytes, TaskFuture] = {}
        self.outgoing = Outgoing(where)
        self.topics = TopicSide(self.post, user)
        self._where = where
        self._incoming: dict[bytes, Incoming] = {}
        self._queue: deque[TaskFuture] = deque()
        self._messages: deque[Message] = deque()
        # What may run code of the program, with its arguments.
        self._later: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._room = threading.Condition()
        self._processors = processors()
        self._sent = 0
        self._seen: list[bytes] = []
        self._seen_due_ms = 0
        self._heard_ms = 0
        self._alive_ms = 0
        self._check_ms = 0
        self._retry: list[bytes] = []
        self._lost_ms = 0
        self._cut_ms = 0
        # The daemon has ended this session: what was attached to it is gone.
        self._ended = False
        self._wire = wire
        self._turns = Turns(self, wire.fds)
        self.lead, self.nudge = self._turns.lead, self._turns.nudge
        self._asking = Asking(self.post, self.lead)
        self._thread = threading.Thread(target=self._run, name="blackroad-client", daemon=True)

    # --- called by any thread ---------------------------------------------------------------------

    def start(self, timeout_s: float) -> None:
        """Connect and open the session.

        Raises  NoDaemon where nobody answers in time; BlackroadError where the daemon refuses.
        """
        try:
            there = self._wire.start()
        except BaseException:
            self._release()
            raise
        if not there:
            # No thread is there to do it; sockets left to the collector would block it for ever.
            self._release()
            raise NoDaemon(f"{self._where} is not an address")
        self._thread.start()
        try:
            self.opened.result(timeout_s)
        except TimeoutError:
            self.close()
            raise NoDaemon(f"no daemon answers at {self._where}") from None
        except BlackroadError:
            self.close()
            raise

    def submit(self, future: TaskFuture, timeout_s: float | None) -> bool:
        """Put a task in line; wait for credit where it is spent; False after `timeout_s`.

        Raises  NoDaemon where this client was closed, or belongs to another process.
        """
        tasks = self.tasks
        turns = self._turns
        if turns.stopped():
            turns.check()
            raise _closed()
        if len(tasks) >= self.credit and not self._await_room(timeout_s):
            return False
        alone = not tasks
        try:
            tasks[future.task] = future
            self._queue.append(future)
            if alone:
                # Nobody's company is worth waiting for.
                turns.now()
            else:
                turns.wake()
        except BaseException:
            # A signal handler cut in: the task goes its way all the same.
            if future.task in tasks and not future.sent_ms:
                self._queue.append(future)
            turns.wake()
            raise
        if turns.stopped():
            self._later.append((future.fail, (_closed(),)))
            self.deliver()
        return True

    def _await_room(self, timeout_s: float | None) -> bool:
        with self._room:
            return self._room.wait_for(
                lambda: len(self.tasks) < self.credit or self._turns.stopped(), timeout_s
            )

    def post(self, message: Message) -> None:
        """Put a message in line."""
        self._messages.append(message)
        self._turns.wake()

    def query(self, name: str, args: bytes, target: bytes, timeout_s: float) -> bytes:
        """Ask a daemon something and wait for the whole answer.

        Raises  Unreachable where nobody answered; TaskError or UsageError where it said no.
        """
        self._turns.check()
        return self._asking.ask(name, args, target, timeout_s)

    def close(self) -> None:
        """End the session; attached tasks end with it."""
        if self._turns.stopped():
            return
        self._turns.stop()
        with self._room:
            self._room.notify_all()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=CLOSE_S)

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException = _closed()
        try:
            self._turns.run()
            self._send_queue(now_ms())
            self._send(self._take_seen())
            self._send([m.Alive(self.session), m.Open(self.session, 1_000, self.user)])
        except BaseException as wrong:
            error = wrong
            self._turns.stop()
        finally:
            self._fail_all(error)
            self.deliver()
            if not self.opened.done():
                self.opened.set_exception(error)
            self._release()

    def _release(self) -> None:
        self._turns.stop()
        self._turns.close()
        self._wire.close()
        self.outgoing.close()

    # --- turns, in whichever thread ---------------------------------------------------------------

    def turn(self, ready: Collection[int]) -> None:
        """Send what is in line, take what has come, look at the time."""
        at_ms = now_ms()
        for there in self._wire.news(ready):
            self._on_news(there, at_ms)
        self._send_queue(at_ms)
        sent = -1
        while sent != self._sent:
            sent = self._sent
            for message in self._wire.receive():
                self._heard_ms = at_ms
                self._take(message, at_ms)
            if len(self._seen) >= _SEEN_AT_ONCE:
                self._send(self._take_seen())
            if at_ms >= self._check_ms:
                self._check(at_ms)
            self._send_queue(at_ms)

    def waiting(self) -> bool:
        """Is anything in line?"""
        return bool(self._queue or self._messages or self._later)

    def due_ms(self) -> int:
        """When a turn has to be taken at the latest."""
        return min(self._check_ms, self._wire.due_ms())

    def few(self) -> bool:
        """Is so little under way that a processor is free for looking?"""
        return 0 < len(self.tasks) < self._processors

    def deliver(self) -> bool:
        """Run what may run code of the program: never within a turn."""
        later = self._later
        if not later:
            return False
        while later:
            try:
                call, arguments = later.popleft()
            except IndexError:
                # Another thread took it.
                break
            call(*arguments)
        return True

    def _on_news(self, there: bool, at_ms: int) -> None:
        """A daemon that comes back is asked whether it still knows this session."""
        if not there:
            self._lost_ms = self._lost_ms or at_ms
        elif self._lost_ms:
            self._cut_ms, self._lost_ms = self._lost_ms, 0
            self._open()
            self.topics.reconnected()
            for incoming in self._incoming.values():
                incoming.resume(at_ms)

    def _open(self) -> None:
        self._send([m.Open(self.session, SESSION_LEASE_MS, self.user)])
        self._alive_ms = now_ms()

    # --- sending ----------------------------------------------------------------------------------

    def _send(self, messages: list[Message]) -> None:
        if messages:
            self._sent += 1
            self._wire.send(messages)

    def _send_queue(self, at_ms: int) -> None:
        queue = self._queue
        if not (queue or self._messages or (self._seen and at_ms >= self._seen_due_ms)):
            return
        # Taken first and sent last: what a program says about a task comes after its submit in
        # the program, and so it must on the wire.
        posted = [self._messages.popleft() for _ in range(len(self._messages))]
        messages: list[Message] = []
        if self._seen and (posted or at_ms >= self._seen_due_ms):
            messages += self._take_seen()
        while queue:
            if queue[0].work is None:
                queue.popleft()  # over before it was said
            else:
                messages.append(self._next_submit(at_ms))
        messages += posted
        self._alive_ms = at_ms
        self._send(messages)

    def _take_seen(self) -> list[Message]:
        """What was seen since the last time; nobody waits for it, so it goes in company."""
        seen, self._seen = self._seen, []
        return [m.Seen(tuple(seen[at : at + SEEN_MAX])) for at in range(0, len(seen), SEEN_MAX)]

    def _next_submit(self, at_ms: int) -> m.Submit:
        """Gather tasks of one class from the head of the line into one message."""
        queue = self._queue
        template = queue[0].template
        items: list[m.Item] = []
        size = 0
        while queue and len(items) < SUBMIT_TASKS_MAX:
            one = queue[0]
            if one.template is not template and not one.template.alike(template):
                break
            work = one.work
            if work is None:
                break
            size += len(work) + 24 if isinstance(work, bytes) else 64
            if items and size > SUBMIT_BYTES_MAX:
                break
            queue.popleft()
            one.in_line = False
            one.sent_ms = at_ms
            items.append(m.Item(one.task, work))
        return m.Submit(
            self.session,
            template.spec,
            template.code,
            template.durable,
            template.wait,
            tuple(items),
        )

    # --- receiving --------------------------------------------------------------------------------

    def _take(self, message: Message, at_ms: int) -> None:
        match message:
            case m.Ended():
                self._on_ended(message, at_ms)
            case m.Results():
                self._on_results(message, at_ms)
            case m.Accepted():
                self._on_accepted(message)
            case m.Updates() | m.Taken():
                self.topics.on_message(message)
            case m.Reply():
                self._asking.on_reply(message)
            case m.Want():
                self._serve(message)
            case m.Chunk():
                self._on_chunk(message, at_ms)
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
            for future in list(self.tasks.values()):
                # What was not accepted was refused for want of the session, and is said again.
                if future.taken and not future.template.durable:
                    self._fail(future, over)
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

    def _on_accepted(self, accepted: m.Accepted) -> None:
        known = self.tasks.get
        for id_ in accepted.tasks:
            future = known(id_)
            if future is not None:
                future.taken = True
                if future.wanted_gone:
                    # The wish may have come before the task was known there.
                    self._messages.append(m.Cancel((id_,)))
                if future.accepted is not None:
                    self._tell_accepted(future)

    def _tell_accepted(self, future: TaskFuture, error: BaseException | None = None) -> None:
        if future.accepted is not None:
            self._later.append((_decide, (future.accepted, error)))

    def _on_results(self, results: m.Results, at_ms: int) -> None:
        """Many tasks are done; what one of them left may be too large to be in here."""
        known = self.tasks.get
        found: list[tuple[TaskFuture, m.Result]] = []
        for one in results.results:
            future = known(one.task)
            if future is None:
                self._saw(one.task, at_ms)
            elif isinstance(one.result, m.Ref) or future.accepted is not None:
                told = m.Facts(one.run_us)
                ended = m.Ended(one.task, m.End.DONE, "", one.result, told, results.node, 1)
                self._on_ended(ended, at_ms)
            else:
                found.append((future, one))
        for future, one in settle_all(found, results.node):
            told = m.Facts(one.run_us)
            ended = m.Ended(one.task, m.End.DONE, "", b"", told, results.node, 1)
            self._later.append((future.settle, (ended, one.result)))
        self._forget([future for future, _ in found])
        if not self._seen:
            self._seen_due_ms = at_ms + SEEN_MS
        self._seen += [one.task for _, one in found]

    def _on_ended(self, ended: m.Ended, at_ms: int) -> None:
        future = self.tasks.get(ended.task)
        if future is None:
            self._saw(ended.task, at_ms)
        elif isinstance(ended.result, m.Ref):
            parcel = self.outgoing.opened(ended.result)
            if parcel is None:
                self._pull(ended, at_ms)
            else:
                self._settle(future, ended, parcel, at_ms)
        else:
            self._settle(future, ended, ended.result, at_ms)

    def _settle(
        self, future: TaskFuture, ended: m.Ended, result: bytes | memoryview, at_ms: int
    ) -> None:
        done = ended.end is m.End.DONE and future.accepted is None
        if not (done and future.done_with(result, ended.node, ended.facts.run_us, ended)):
            self._tell_accepted(future)
            self._later.append((future.settle, (ended, result)))
        self._forget((future,))
        self._saw(ended.task, at_ms)

    def _saw(self, task: bytes, at_ms: int) -> None:
        if not self._seen:
            self._seen_due_ms = at_ms + SEEN_MS
        self._seen.append(task)

    def _forget(self, futures: Collection[TaskFuture]) -> None:
        """These are over: nothing about them need be said again."""
        tasks = self.tasks
        full = len(tasks) >= self.credit
        for future in futures:
            tasks.pop(future.task, None)
            if isinstance(future.work, m.Ref):
                self.outgoing.release(future.work.digest)
            future.work = None
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
            future = self.tasks.get(id_)
            if future is not None:
                self._fail(future, rejection(rejected, future.task_id))

    # --- objects ----------------------------------------------------------------------------------

    def _serve(self, want: m.Want) -> None:
        """The daemon asks for bytes of an object that this program holds."""
        answers = self.outgoing.chunks(want)
        for answer in answers:
            self._send([answer])

    def _pull(self, ended: m.Ended, at_ms: int) -> None:
        """A large result: fetch it from the owner before the future hears of it."""
        ref = ended.result
        if not isinstance(ref, m.Ref):
            return
        incoming = self._incoming.get(ref.digest)
        if incoming is None:
            try:
                incoming = self._incoming[ref.digest] = Incoming(ref)
            except Busy as error:
                future = self.tasks.get(ended.task)
                if future is not None:
                    self._saw(ended.task, at_ms)
                    self._tell_accepted(future)
                    self._fail(future, error)
                return
            self._send([*incoming.wants(at_ms)])
        if all(one.task != ended.task for one in incoming.waiting):
            incoming.waiting.append(ended)

    def fetch(self, ref: m.Ref) -> Future[memoryview]:
        """Pull an object that the daemon holds; callable from any thread."""
        future: Future[memoryview] = Future()
        self.outgoing.request(ref, future)
        self._check_ms = 0
        self._turns.wake()
        return future

    def _on_chunk(self, chunk: m.Chunk, at_ms: int) -> None:
        incoming = self._incoming.get(chunk.digest)
        if incoming is None:
            return
        try:
            complete = incoming.on_chunk(chunk, at_ms)
        except RemoteProtocolError:
            # Not a piece of this object: dropped, and asked for again if it stays away.
            return
        except BlackroadError as error:
            self._pull_failed(chunk.digest, error)
            return
        if not complete:
            self._send([*incoming.wants(at_ms)])
            return
        del self._incoming[chunk.digest]
        data = incoming.data()
        for ended in incoming.waiting:
            task = self.tasks.get(ended.task)
            if task is not None:
                self._settle(task, ended, data, at_ms)
        for future in incoming.futures:
            future.set_result(data)

    def _on_gone(self, digest: bytes) -> None:
        self._pull_failed(digest, TaskError("the result is no longer held by the daemon"))

    def _pull_failed(self, digest: bytes, error: BlackroadError) -> None:
        incoming = self._incoming.pop(digest, None)
        if incoming is None:
            return
        for ended in incoming.waiting:
            future = self.tasks.get(ended.task)
            if future is not None:
                self._saw(ended.task, now_ms())
                # It ended, so it was accepted; only its result is not here.
                self._tell_accepted(future)
                self._fail(future, error)
        _fail_futures(incoming, error)

    # --- time -------------------------------------------------------------------------------------

    def _check(self, at_ms: int) -> None:
        """Repeat what nobody answered; keep the session alive; notice a daemon that is gone."""
        self._check_ms = at_ms + 500
        self.topics.check(at_ms)
        for ref, future in self.outgoing.take_requests():
            incoming = self._incoming.get(ref.digest)
            if incoming is None:
                try:
                    incoming = self._incoming[ref.digest] = Incoming(ref)
                except Busy as error:
                    future.set_exception(error)
                    continue
            incoming.futures.append(future)
        self._check_pulls(at_ms)
        if not self.opened.done():
            self._open()
        if self._lost_ms and at_ms - self._lost_ms >= OWNER_GONE_MS and self.opened.done():
            lost = OwnerLost(
                "the daemon that owns these tasks is gone: attached tasks ended with it",
                hint="`blackroad nodes` shows who is there; tasks with durable=True go on when it "
                "is back, and `blackroad result ID` fetches them",
            )
            self._lose_attached(lost, FOREVER_MS)
        retry, self._retry = self._retry, []
        for id_ in retry:
            task = self.tasks.get(id_)
            if task is not None:
                task.taken = False
                self._line_up(task)
        if self.tasks and at_ms - self._heard_ms >= RESEND_MS:
            self._resend(at_ms)
        elif at_ms - self._alive_ms >= SESSION_ALIVE_MS:
            self._alive_ms = at_ms
            self._send([m.Alive(self.session)])

    def _check_pulls(self, at_ms: int) -> None:
        """Ask again for what did not come; nobody waits for ever for what does not come.

        A durable task waits for its daemon's return, and so does its result.
        """
        for digest, incoming in list(self._incoming.items()):
            incoming.waiting = [one for one in incoming.waiting if one.task in self.tasks]
            if not incoming.waiting and not incoming.futures:
                del self._incoming[digest]
            elif not incoming.gave_up(at_ms):
                self._send([*incoming.wants(at_ms)])
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

    def _resend(self, at_ms: int) -> None:
        again = [
            future
            for future in list(self.tasks.values())
            if not future.taken and future.sent_ms and at_ms - future.sent_ms >= RESEND_MS
        ]
        if at_ms - self._alive_ms >= RESEND_MS:
            self._alive_ms = at_ms
            self._send([m.Alive(self.session)])
        for future in again[:SUBMIT_TASKS_MAX]:
            future.sent_ms = at_ms
            self._line_up(future)

    def _line_up(self, future: TaskFuture) -> None:
        """Say it again, but only once."""
        if not future.in_line:
            future.in_line = True
            self._queue.append(future)

    def _lose_attached(self, error: OwnerLost, said_before_ms: int) -> None:
        """The owner's life is over, and with it every task that it had and did not journal."""
        for future in list(self.tasks.values()):
            journaled = future.template.durable and future.taken
            unsaid = not future.sent_ms and said_before_ms != FOREVER_MS
            if not journaled and not unsaid and future.sent_ms < said_before_ms:
                self._fail(future, error)

    def _fail(self, future: TaskFuture, error: BaseException) -> None:
        self._forget((future,))
        self._tell_accepted(future, error)
        self._later.append((future.fail, (error,)))

    def _fail_all(self, error: BaseException) -> None:
        self.topics.close(error)
        for future in list(self.tasks.values()):
            self._fail(future, error)
        self._asking.fail_all(error)
        for incoming in self._incoming.values():
            _fail_futures(incoming, error)
        for _, wanted in self.outgoing.take_requests():
            wanted.set_exception(error)

    def hold(self, ref: m.Ref, segments: list[Segment]) -> None:
        """Keep the bytes of an object until the daemon needs them no more."""
        self.outgoing.hold(ref, segments)


def _fail_futures(incoming: Incoming, error: BaseException) -> None:
    futures, incoming.futures = incoming.futures, []
    for future in futures:
        future.set_exception(error)


def _decide(accepted: Future[None], error: BaseException | None) -> None:
    if accepted.done():
        return
    if error is None:
        accepted.set_result(None)
    else:
        accepted.set_exception(error)


def _closed() -> NoDaemon:
    return NoDaemon("the client was closed before the task ended")
