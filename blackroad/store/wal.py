"""Damage in SQLite's write-ahead log, which SQLite would pass over in silence.

Edge.  After a stop without an end in order, commits live in the log alone.  SQLite reads it up to
the first frame whose checksum is wrong and takes the rest for what a power cut left.  Where later
commits stand behind that frame it was flushed, and the disk has changed it since: then its sums are
made anew, and the checksums of the rows say what is damaged in it.  This file must not know rows.

Source  "WAL-mode file format", sqlite.org: header, frames, and the sum that runs through them.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from array import array
from operator import mul
from pathlib import Path
from typing import Final, NamedTuple

from blackroad.store.identity import flush_directory
from blackroad.store.schema import PAGE_BYTES

_HEADER: Final = struct.Struct(">8I")  # magic, format, page size, sequence, salts, sums
_FRAME: Final = struct.Struct(">6I")  # page, pages after commit or 0, salts, sums
_FRAME_BYTES: Final = _FRAME.size + PAGE_BYTES
_MAGIC: Final = 0x377F0682  # its lowest bit is set where sums read big-endian words
_FORMAT: Final = 3_007_000
_MASK: Final = 0xFFFFFFFF
_PAGES_MAX: Final = 2**30

Sums = tuple[int, int]


@functools.cache
def _weights(pairs: int) -> tuple[tuple[int, int, int], list[int], list[int]]:
    """How the sums before, and each word of so many pairs, count in the sums after them.

    A pair (x, y) makes of (s, t) first s + t + x, then t + y + that: the matrix (1 1, 1 2), whose
    powers are symmetric, applied to (s, t), and (x, x + y) added.
    """
    one, both, four = 1, 0, 1
    firsts: list[int] = []
    seconds: list[int] = []
    for _ in range(pairs):
        firsts += [both, (one + both) & _MASK]
        seconds += [four, (both + four) & _MASK]
        one, both, four = (one + both) & _MASK, (one + 2 * both) & _MASK, (both + 2 * four) & _MASK
    return (one, both, four), firsts[::-1], seconds[::-1]


class Mended(NamedTuple):
    """What was found in a log: frames in all, how many were damaged, where the old file is."""

    frames: int
    damaged: int
    aside: Path


class _Log:
    """One log as it lies on the disk."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.magic, _, page_bytes, self.sequence, *rest = _HEADER.unpack_from(data)
        self.salts = (rest[0], rest[1])
        self.sums: Sums = (rest[2], rest[3])
        self.swapped = (self.magic & 1 == 0) != (sys.byteorder == "little")
        self.sound = (
            self.magic | 1 == _MAGIC | 1
            and page_bytes == PAGE_BYTES
            and self.run((0, 0), data[:24]) == self.sums
        )
        if not self.sound:
            # The frames know which log they belong to.
            self.magic, self.swapped = _MAGIC, sys.byteorder != "little"
            self.salts = (self.frame(0)[2], self.frame(0)[3])

    def __len__(self) -> int:
        return (len(self.data) - _HEADER.size) // _FRAME_BYTES

    def frame(self, number: int) -> tuple[int, ...]:
        return _FRAME.unpack_from(self.data, _HEADER.size + number * _FRAME_BYTES)

    def run(self, sums: Sums, data: bytes | bytearray | memoryview) -> Sums:
        """Carry the running sums over some bytes."""
        words = array("I", bytes(data))
        if self.swapped:
            words.byteswap()
        (one, both, four), firsts, seconds = _weights(len(words) // 2)
        first = one * sums[0] + both * sums[1] + sum(map(mul, words, firsts))
        second = both * sums[0] + four * sums[1] + sum(map(mul, words, seconds))
        return first & _MASK, second & _MASK

    def sums_of(self, number: int, before: Sums) -> Sums:
        """Sums after a frame, from those before it."""
        at = _HEADER.size + number * _FRAME_BYTES
        return self.run(self.run(before, self.data[at : at + 8]), self.body(number))

    def body(self, number: int) -> bytes:
        """The page in a frame."""
        at = _HEADER.size + number * _FRAME_BYTES
        return bytes(self.data[at + _FRAME.size : at + _FRAME_BYTES])

    def put(self, number: int, page: int, pages: int, body: bytes) -> None:
        """Let a frame hold that page; its sums are made later."""
        at = _HEADER.size + number * _FRAME_BYTES
        struct.pack_into(">2I", self.data, at, page, pages)
        self.data[at + _FRAME.size : at + _FRAME_BYTES] = body

    def write_frame(self, number: int, before: Sums) -> Sums:
        """Give a frame the salts and sums that it should have."""
        page, pages = self.frame(number)[:2]
        sums = self.sums_of(number, before)
        at = _HEADER.size + number * _FRAME_BYTES
        _FRAME.pack_into(self.data, at, page, pages, *self.salts, *sums)
        return sums

    def write_header(self) -> Sums:
        """Give the log a header that fits its frames."""
        values = (self.magic, _FORMAT, PAGE_BYTES, self.sequence & _MASK, *self.salts)
        _HEADER.pack_into(self.data, 0, *values, 0, 0)
        sums = self.run((0, 0), self.data[:24])
        _HEADER.pack_into(self.data, 0, *values, *sums)
        return sums


def mend(path: Path) -> Mended | None:
    """Make a log readable to its last commit; None where it was, or no flushed commit is hurt.

    The log as it was stays beside it.
    Cost    0.1 ms a frame; call it only after a stop without an end in order.
    Raises  OSError.
    """
    try:
        data = bytearray(path.read_bytes())
    except FileNotFoundError:
        return None
    if len(data) < _HEADER.size + _FRAME_BYTES:
        return None
    log = _Log(data)
    damaged, last = _look(log)
    if last < 0 or not damaged:
        return None
    sums = log.write_header()
    for number in range(last + 1):
        sums = log.write_frame(number, sums)
    aside = _free_name(path)
    fresh = path.with_name(path.name + ".new")
    _write_flushed(fresh, memoryview(data)[: _HEADER.size + (last + 1) * _FRAME_BYTES])
    os.link(path, aside)
    os.replace(fresh, path)
    # The index was made from the log as it was; it is made anew when it is not there.
    path.with_name(path.name.removesuffix("-wal") + "-shm").unlink(missing_ok=True)
    flush_directory(path.parent)
    return Mended(last + 1, damaged, aside)


def _look(log: _Log) -> tuple[int, int]:
    """Count what is damaged up to the last commit that certainly was one; return it, too.

    The number of the last frame is -1 where there is no commit.
    """
    bad: list[int] = []
    commits: list[int] = []
    before = log.sums if log.sound else None
    for number in range(len(log)):
        _, _, *rest = log.frame(number)
        salts, sums = (rest[0], rest[1]), (rest[2], rest[3])
        if salts != log.salts and not _goes_on(log, number):
            break
        # Where the header is damaged, nothing tells about the first frame.
        right = before is None or log.sums_of(number, before) == sums
        if salts != log.salts or not right:
            bad.append(number)
            if not right and before is not None:
                _set_right(log, number, before, ours=salts == log.salts)
        if 0 < log.frame(number)[1] < _PAGES_MAX:
            commits.append(number)
        before = sums
    # A commit is written only after the one before it was flushed: behind all but the last of them
    # every byte was on the disk, and only the disk can have changed it.  In the last one a damaged
    # frame is what a power cut leaves, and nothing in it was promised.
    whole = commits[-2] if len(commits) > 1 else -1
    if commits and any(whole < number <= commits[-1] for number in bad):
        commits.pop()
    last = commits[-1] if commits else -1
    return sum(number <= last for number in bad) + (not log.sound), last


def _set_right(log: _Log, number: int, before: Sums, *, ours: bool) -> None:
    """See to it that a damaged frame is no second damage: its page may have a wrong number."""
    page, pages, _, _, *sums = log.frame(number)
    body = log.body(number)
    for bit in range(31):
        one = page ^ (1 << bit)
        if log.run(log.run(before, struct.pack(">2I", one, pages)), body) == tuple(sums):
            log.put(number, one, pages, body)
            return
    known = max((log.frame(one)[1] for one in range(len(log)) if one != number), default=0)
    if not ours or not 0 < page <= known:
        # Nobody can say which page it was: let it be one that stands in the log anyway.
        other = number - 1 if number else 1
        log.put(number, log.frame(other)[0], 0, log.body(other))


def _goes_on(log: _Log, number: int) -> bool:
    """Do frames of this log follow, so that the one before them is damaged, not the end?"""
    ours = [log.frame(one)[2:4] == log.salts for one in range(number + 1, len(log))]
    for one in range(number + 2, len(log)):
        if ours[one - number - 1] and ours[one - number - 2]:
            before = log.frame(one - 1)[4:6]
            if log.sums_of(one, (before[0], before[1])) == log.frame(one)[4:6]:
                return True
    if number + 1 < len(log) and ours[0]:
        before = log.frame(number)[4:6]
        return log.sums_of(number + 1, (before[0], before[1])) == log.frame(number + 1)[4:6]
    return False


def _free_name(path: Path) -> Path:
    number = 1
    while (found := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return found


def _write_flushed(path: Path, data: memoryview) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)
