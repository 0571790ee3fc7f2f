"""A private mesh of one node inside the calling process: a real node, real task processes.

Edge.  No network, no disk that lasts: what a program submits to it ends with the program.  It is
a wire like any other to the session that uses it, but one whose other end is turned by whoever
uses it, in that thread: there is nobody in between.  This file must not know futures.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from blackroad import chance
from blackroad.answering import Answering
from blackroad.bus import messages as m
from blackroad.config import Config
from blackroad.directories import default_cache
from blackroad.discovery import probe
from blackroad.errors import BlackroadError, DiskProblem
from blackroad.ids import incarnation
from blackroad.limits import CHUNK_BYTES, LEASE_MS_MAX, OBJECT_BYTES_MAX
from blackroad.node import Evicted, Fetched, FetchFailed, Flushed, FromClient, Node, Tick
from blackroad.router import effects as fx
from blackroad.running import Running
from blackroad.runtime import pool as tasks
from blackroad.runtime.objects import ObjectStore
from blackroad.starting import boot_ms, task_environment

if TYPE_CHECKING:
    from blackroad.bus.messages import Message
    from blackroad.node import AnyEvent

NAME: Final = "embedded"
CLIENT: Final = b"e"  # the handle of the one client there is
HEARTBEAT_MS: Final = 1_000  # nobody hears it; the node's timers are multiples of it
# A node that starts waits for others, for a coordinator above all.  Here are none.
LIVED_MS: Final = 20_000
HOUSEKEEPING_MS: Final = 1_000
IDLE_MS: Final = 60_000
PREFORKED_MAX: Final = 4
CODES_KEPT: Final = 64
_PREFIX: Final = "blackroad-embedded-"
_LOCK: Final = "lock"
_YOUNG_S: Final = 60.0  # its process may be about to lock it
_TOPICS: Final = "an embedded mesh has no topics: start a daemon (`blackroad up`) for them"
_ALONE: Final = "an embedded mesh has one node, and keeps nothing"
_NEEDS_MORE: Final = frozenset({"retry"})

Held = Callable[[m.Want], Iterable[m.Message]]


class _Log:
    """The driver's words, for a program's own log: only what goes wrong."""

    def __init__(self) -> None:
        self._log = logging.getLogger("blackroad.embedded")

    def info(self, name: str, **facts: object) -> None:
        self._log.debug("%s %s", name, facts)

    def warning(self, name: str, **facts: object) -> None:
        self._log.warning("%s %s", name, facts)

    def error(self, name: str, **facts: object) -> None:
        self._log.error("%s %s", name, facts)


class EmbeddedWire:
    """One node and its task processes; a `Wire` for the session of a client.

    All its methods are called by one thread at a time, whichever it is.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._directory, lock = _own_directory()
        # Where a program looks for the way to hand large values over.
        self.where = f"ipc://{self._directory / 'client.sock'}"
        # The program's objects: answers a Want with Chunks, or Gone.
        self.held: Held = lambda want: (m.Gone(want.digest),)
        self._epoll = select.epoll()
        self.fds: tuple[int, ...] = (self._epoll.fileno(),)
        self._watched: set[int] = set()
        self._version = -1
        self._events: list[AnyEvent] = []
        self._inbox: list[Message] = []
        self._housekeeping_due_ms = 0
        self._node_due_ms = 0
        # Code that was submitted lately, and whether it is kept here for what comes next.
        self._codes: OrderedDict[bytes, bool] = OrderedDict()
        self._started = False
        self._closers: list[Callable[[], None]] = [
            self._epoll.close,
            self._remove,
            partial(os.close, lock),
        ]

    # --- what a session calls ---------------------------------------------------------------------

    def start(self) -> bool:
        """Start the fork server, and while it comes up the node.

        Raises  EnvironmentProblem; DiskProblem.
        """
        config = Config(slots=self._workers)
        # Compiled kernels are for the next program, too.
        cache = default_cache(os.environ)
        objects = self._directory / "objects"
        environment = task_environment(config, cache)
        self._pool = tasks.Pool(
            objects_dir=str(objects),
            environment=environment,
            idle_ms=IDLE_MS,
            keep=self._workers,
        )
        self._pool.start()
        self._pool.prefork(min(self._workers, PREFORKED_MAX))
        self._closers.insert(0, self._pool.close)
        self._store = ObjectStore.shared(objects, self._directory, OBJECT_BYTES_MAX, ())
        self._store.on_dropped = self._on_evicted
        self._closers.insert(1, self._store.close)
        self._start_node()
        self._watch_pool()
        self._started = True
        return True

    def _start_node(self) -> None:
        now_ms = boot_ms()
        caps = msgspec.structs.replace(probe.quick(NAME), cores=self._workers)
        self.node = Node(
            chance.token_bytes(16),
            incarnation(1, chance.randbits(32)),
            caps,
            self._workers,
            now_ms - LIVED_MS,
            heartbeat_ms=HEARTBEAT_MS,
            # Node and tasks end together: nobody has to prove anything to anybody.
            lease_ms=LEASE_MS_MAX,
        )
        at_ms = now_ms - LIVED_MS
        while at_ms < now_ms:
            self.node.handle(Tick(), at_ms)
            at_ms = max(at_ms + 1, min(now_ms, self.node.next_deadline_ms()))
        log = _Log()
        self._running = Running(
            self.node, self._pool, self._store, self._events.append, log, lookers=1
        )
        around = cast(Any, _Around(self))
        self._answering = Answering(
            self.node, around, self._running, self._store, around, boot_ms, dict
        )
        self._answering.net = lambda lookup: self._answering.refuse(lookup, _ALONE)

    def send(self, messages: list[Message]) -> None:
        """Let the node have messages, and do at once what it makes of them."""
        kept: list[Message] = []
        for message in messages:
            match message:
                case m.Submit():
                    if message.code is not None:
                        self._remember(message.code.digest)
                    kept.append(message)
                case m.Want():
                    self._serve(message)
                case m.Query() if message.name in _NEEDS_MORE:
                    refusal = f"`{message.name}` is for durable tasks, and {_ALONE}"
                    reply = m.Reply(message.query, self.node.me, 0, True, b"", refusal)
                    self._inbox.append(reply)
                case m.Publish():
                    self._inbox.append(m.Taken(message.serial, _TOPICS))
                case m.Subscribe():
                    self._inbox.append(m.Updates(0, (message.sub,), (0,), error=_TOPICS))
                case m.Unsubscribe() | m.Taken() | m.Chunk() | m.Gone():
                    pass
                case _:
                    kept.append(message)
        if kept:
            self._events.append(FromClient(CLIENT, kept))
            self._apply(boot_ms())

    def receive(self) -> Iterable[Message]:
        """Return what the node has to say, after a look at its task processes and the time."""
        now_ms = boot_ms()
        while ready := self._epoll.poll(0):
            for fd, _ in ready:
                for event in self._pool.read(fd):
                    self._running.on_event(event)
            self._apply(now_ms)
        if now_ms >= self._due_ms():
            self._tick(now_ms)
        inbox, self._inbox = self._inbox, []
        return inbox

    def news(self, ready: Collection[int]) -> Iterator[bool]:
        """Nothing ever comes between a program and itself."""
        return iter(())

    def due_ms(self) -> int:
        """When the node or its driver has something to do."""
        if not self._started:
            return 0
        return time.monotonic_ns() // 1_000_000 + max(0, self._due_ms() - boot_ms())

    def close(self) -> None:
        """End all tasks and leave nothing behind.

        Cost  waits for the fork server, usually some milliseconds.
        """
        self._started = False
        while self._closers:
            with contextlib.suppress(OSError, BlackroadError):
                self._closers.pop(0)()

    # --- the driver -------------------------------------------------------------------------------

    def _due_ms(self) -> int:
        return min(self._node_due_ms, self._housekeeping_due_ms)

    def _tick(self, now_ms: int) -> None:
        self._events.append(Tick())
        if now_ms >= self._housekeeping_due_ms:
            self._housekeeping_due_ms = now_ms + HOUSEKEEPING_MS
            self._pool.tick(now_ms)
            self._store.tidy(now_ms)
        self._apply(now_ms)

    def _apply(self, now_ms: int) -> None:
        """Handle what was gathered, and what handling it brought about."""
        while self._events:
            events = self._events.copy()
            self._events.clear()
            for effect in self.node.handle_all(events, now_ms):
                self._perform(effect)
        self._node_due_ms = self.node.next_deadline_ms()
        if self._pool.version != self._version:
            self._watch_pool()

    def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Tell():
                self._inbox.append(effect.message)
            case fx.Start():
                self._running.launch(effect)
            case fx.HandAhead() | fx.TakeBack() | fx.Divide() | fx.Kill() | fx.Extend():
                self._running.perform(effect)
            case fx.Fetch():
                self.fetch(effect.ref)
            case fx.Pin():
                self._store.pin(effect.digest, "task")
            case fx.Unpin():
                self._store.unpin(effect.digest, "task")
            case fx.Lookup():
                self._answering.answer(effect)
            case fx.Persist():
                # Nothing here was promised to last, so nothing is waited for.
                self._events.append(Flushed(effect.mark))
            case _:
                pass  # words to other nodes, of which there are none

    def _watch_pool(self) -> None:
        self._version = self._pool.version
        now = set(self._pool.fds())
        for fd in self._watched - now:
            # One that was closed has left by itself.
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
        for fd in now:
            # The number may be that of another file by now.
            with contextlib.suppress(FileExistsError):
                self._epoll.register(fd, select.EPOLLIN)
        self._watched = now

    # --- objects ----------------------------------------------------------------------------------

    def fetch(self, ref: m.Ref) -> None:
        """Bring an object of the program into the store; a parcel is there already."""
        try:
            here = self._store.has(ref.digest) or self._store.claim(ref.digest, ref.size)
            if not here and not self._copy(ref):
                text = "the program holds it no more"
                self._events.append(FetchFailed(ref.digest, text))
                self._answering.failed(ref.digest, text)
                return
        except BlackroadError as error:
            self._events.append(FetchFailed(ref.digest, error.message, False, True))
            self._answering.failed(ref.digest, error.message)
            return
        self._events.append(Fetched(ref.digest))
        self._answering.arrived(ref.digest)
        if self._codes.get(ref.digest) is False:
            # One reason of our own: else each single task would have its code brought anew.
            self._codes[ref.digest] = True
            self.node.owner.pins.pin(ref.digest)

    def _remember(self, digest: bytes) -> None:
        """This code was submitted; what was not for long need not be kept."""
        if digest in self._codes:
            self._codes.move_to_end(digest)
            return
        self._codes[digest] = False
        if len(self._codes) > CODES_KEPT:
            oldest, kept = self._codes.popitem(last=False)
            if kept:
                self.node.owner.pins.unpin(oldest)

    def _copy(self, ref: m.Ref) -> bool:
        """Copy an object of the program's; return whether it had it."""
        writer = self._store.writer(ref.digest, ref.size)
        try:
            for offset in range(0, ref.size, CHUNK_BYTES):
                for piece in self.held(m.Want(ref.digest, offset, 1)):
                    if not isinstance(piece, m.Chunk):
                        return False
                    writer.write(piece.offset, piece.data)
            writer.finish()
        finally:
            # Nothing is left to give up where it was finished.
            writer.abandon()
        return True

    def _serve(self, want: m.Want) -> None:
        """The program wants an object that it cannot map."""
        if not self._store.has(want.digest):
            self._inbox.append(m.Gone(want.digest))
            return
        for number in range(want.chunks):
            offset = want.offset + number * CHUNK_BYTES
            data = self._store.read(want.digest, offset, CHUNK_BYTES)
            if not data:
                break
            self._inbox.append(m.Chunk(want.digest, offset, data))

    def _on_evicted(self, digest: bytes) -> None:
        self._running.dropped(digest)
        self._events.append(Evicted(digest))

    def tell(self, message: Message) -> None:
        """Put a message in line for the program."""
        self._inbox.append(message)

    def _remove(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class _Around:
    """What answers to queries expect around a node, where there is only a program."""

    def __init__(self, wire: EmbeddedWire) -> None:
        self._wire = wire
        self.counters: dict[str, int] = {}
        self.links: dict[bytes, Any] = {}

    def tell(self, client: bytes, message: Message) -> None:
        self._wire.tell(message)

    def fetch(self, ref: m.Ref, holder: bytes, client: bytes, now_ms: int) -> None:
        self._wire.fetch(ref)


def _own_directory() -> tuple[Path, int]:
    """Make a directory for this process, and its lock; remove those of processes that are gone.

    Raises  DiskProblem.
    """
    base = Path(tempfile.gettempdir())
    _sweep(base)
    try:
        found = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        fd = os.open(found / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Held for as long as this process lives.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DiskProblem(
            f"cannot make a directory below `{base}`: {error.strerror}",
            hint="free some space there, or name another place in TMPDIR",
        ) from None
    return found, fd


def _sweep(base: Path) -> None:
    for directory in base.glob(f"{_PREFIX}*"):
        try:
            if time.time() - directory.stat().st_mtime < _YOUNG_S:
                continue
            # One that was half removed has no lock any more.
            fd = os.open(directory / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(fd)
