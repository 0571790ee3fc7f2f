"""The spool: records on their way to the database, in segments of bounded number and size.

Edge: files in one directory.  The daemon appends, one other process reads and takes away what it
has stored; both may end at any moment.  This file must not know what the records say, nor any
database.  Nothing is flushed to the disk here: what a power cut takes are the last seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from blackroad.history.records import FRAME_BYTES_MAX, HEAD, MAGIC, Record, counts, frame
from blackroad.limits import MIB

SEGMENT_BYTES: Final = 4 * MIB
SPOOL_BYTES_MAX: Final = 256 * MIB
# The history must never be what fills the disk that the journal is on.
FREE_BYTES_MIN: Final = 512 * MIB
PENDING_MAX: Final = 20_000
SUFFIX: Final = ".spool"
LOCK: Final = "reader.lock"
_NAME = re.compile(r"[a-z0-9]+-([0-9]{10})-([0-9]{8})-[0-9a-f]{8}\.spool")


class Segment(NamedTuple):
    """One file of the spool; its name is unique over all nodes and all their lives."""

    path: Path
    life: int
    number: int

    @property
    def id(self) -> str:
        """What the database knows it by."""
        return self.path.name.removesuffix(SUFFIX)


def segments(directory: Path) -> list[Segment]:
    """All segments, the oldest first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            match = _NAME.fullmatch(name)
            if match is not None:
                found.append(Segment(directory / name, int(match[1]), int(match[2])))
    return sorted(found, key=lambda one: (one.life, one.number))


class Spool:
    """The daemon's end: records go in, and out to the disk a few times a second at most."""

    def __init__(
        self, directory: Path, node: str, life: int, bytes_max: int = SPOOL_BYTES_MAX
    ) -> None:
        self.directory = directory
        self.bytes_max = bytes_max
        self.segment_bytes = min(SEGMENT_BYTES, max(4096, bytes_max // 8))
        # Records that nobody will ever see, and why the last of them were lost.
        self.lost = 0
        self.why_lost = ""
        self.written = 0
        self.problem = ""
        self._node = node
        self._number = 0
        self._pending: list[Record] = []
        self._fd = -1
        self._size = 0
        # Who reads takes the last segment for the one that is written.  A new identity, or a
        # state put back from a copy, counts its lives from further below.
        self._life = max([life, *(one.life + 1 for one in self._segments())])

    def add(self, record: Record) -> None:
        """Take a record; it is on the disk after the next `flush`."""
        if len(self._pending) < PENDING_MAX:
            self._pending.append(record)
        else:
            self._lose(1, "more records in a moment than can be kept")

    def flush(self) -> bool:
        """Write what is pending; tell whether anything was written.

        Cost  one write; nothing is flushed to the disk.
        """
        records, self._pending = self._pending, []
        if not records:
            return False
        data = frame(records)
        if len(data) - HEAD.size > FRAME_BYTES_MAX:
            return self._halves(records)
        try:
            if self._fd < 0 or self._size >= self.segment_bytes:
                self._next()
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError("no room for a whole write")
        except OSError as error:
            self.problem = error.strerror or str(error)
            self._lose(len(records), f"the spool cannot be written: {self.problem}")
            self._give_up()
            return False
        self._size += len(data)
        self.written += len(data)
        self.problem = ""
        return True

    def _halves(self, records: list[Record]) -> bool:
        if len(records) < 2:
            self._lose(len(records), "a record larger than a segment")
            return False
        told = False
        for part in (records[: len(records) // 2], records[len(records) // 2 :]):
            self._pending = part
            told |= self.flush()
        return told

    def _next(self) -> None:
        """Begin another segment, after making room for it."""
        self._close()
        make_private(self.directory)
        self._make_room()
        told = os.statvfs(self.directory)
        if told.f_bavail * told.f_frsize < FREE_BYTES_MIN:
            raise OSError("the disk is nearly full")
        # A state directory put back from a copy counts its lives again: chance tells them apart.
        mark = os.urandom(4).hex()
        name = f"{self._node}-{self._life:010}-{self._number:08}-{mark}{SUFFIX}"
        self._number += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self.directory / name, flags, 0o600)
        os.write(self._fd, MAGIC)
        self._size = len(MAGIC)

    def _make_room(self) -> None:
        """Take the oldest segments away until one more fits below the cap."""
        there = [(one, _size(one.path)) for one in segments(self.directory)]
        total = sum(size for _, size in there) + self.segment_bytes
        for one, size in there:
            if total <= self.bytes_max:
                return
            with contextlib.suppress(OSError):
                data = one.path.read_bytes()
                one.path.unlink()
                total -= size
                self._lose(counts(data), "the database took nothing in, and the spool is full")

    def _lose(self, records: int, why: str) -> None:
        self.lost += records
        self.why_lost = why

    def _give_up(self) -> None:
        """Leave a segment that may end in half a record: whoever reads it stops there."""
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def bytes(self) -> int:
        """How much lies here, unread or being read."""
        return sum(_size(one.path) for one in self._segments())

    def _segments(self) -> list[Segment]:
        with contextlib.suppress(OSError):
            return segments(self.directory)
        return []

    def close(self) -> None:
        """Write what is left."""
        self.flush()
        self._close()


def make_private(directory: Path) -> None:
    """Make a directory and the one around it, for this user alone."""
    for one in (directory.parent, directory):
        one.mkdir(mode=0o700, exist_ok=True)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[bool]:
    """Be the one who reads this spool; False where another process does already."""
    make_private(directory)
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
