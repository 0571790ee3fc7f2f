"""Edge: gives the content of a parcel its digest and a place on the disk, in a thread of its own.

A result that was promised to last must be found, and checked, by what it holds.  To read, write
and flush it takes longer than the daemon's loop may stand still.  This file must not know whose
result it is.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from blackroad.bus.parcels import mapped
from blackroad.bus.payload import DIGEST_BYTES
from blackroad.digest import blake2b
from blackroad.errors import BlackroadError
from blackroad.limits import MIB

if TYPE_CHECKING:
    from blackroad.runtime.objects import ObjectStore

STEP_BYTES: Final = 4 * MIB
PIN: Final = "seal"

Done = Callable[[bytes, str], None]


class _Job(NamedTuple):
    name: bytes
    size: int
    source: str
    target: str
    done: Done


class Sealer:
    """Turns parcels of one store into objects that last, one after the other."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ended: deque[tuple[_Job, bytes, str]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        store.closing.append(self.close)

    def fileno(self) -> int:
        """Readable when `read` has something to do."""
        return self._wake

    def seal(self, name: bytes, size: int, done: Done) -> None:
        """Call `done` with the digest once it lasts, or with b"" and why it cannot.

        It is called by `read`, or at once where the parcel is not here.
        """
        source = self._store.path(name)
        if source is None:
            done(b"", "it is not in the object store")
            return
        self._store.pin(name, PIN)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="seal", daemon=True)
            self._thread.start()
        self._jobs.put(_Job(name, size, source, self._store.temporary("seal"), done))

    def read(self) -> None:
        """Take in what the thread has done."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._ended:
            job, digest, text = self._ended.popleft()
            if digest:
                try:
                    self._store.adopt(job.target, digest, job.size)
                except BlackroadError as error:
                    digest, text = b"", error.message
            job.done(digest, text)
            # Only now may it go: a moment ago it was all that there was.
            self._store.unpin(job.name, PIN)

    def close(self) -> None:
        """End the thread, after what it has to do; nobody is told of that any more."""
        self.wait()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def wait(self) -> None:
        """Let the thread end what it has to do; `read` tells of it."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            digest, text = b"", ""
            try:
                digest = _copied(job.source, job.target)
            except OSError as error:
                text = error.strerror or str(error)
                with suppress(OSError):
                    os.unlink(job.target)
            self._ended.append((job, digest, text))
            os.eventfd_write(self._wake, 1)


def _copied(source: str, target: str) -> bytes:
    """Copy a file to the disk for good; return the digest of what was written."""
    state = blake2b(digest_size=DIGEST_BYTES)
    data = memoryview(mapped(source))
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for start in range(0, len(data), STEP_BYTES):
            rest = data[start : start + STEP_BYTES]
            state.update(rest)
            while rest:
                rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    return state.digest()
