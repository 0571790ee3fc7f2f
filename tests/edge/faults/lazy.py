"""What a power cut leaves of a directory: replays the log of disk.c up to any of its records.

A file keeps what was flushed; of each later write all, nothing or some sectors; of each later
change of its size, the change or not.  A directory keeps the names that were flushed with it, and
of the later changes a first part.  Nothing is in an order that no flush gave it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SECTOR_BYTES = 512
CREATE, WRITE, TRUNCATE, SYNC, UNLINK, RENAME, LINK, MKDIR, ACK = range(1, 10)
_HEAD = struct.Struct("=IIQQQ")


class Record(NamedTuple):
    """One change, flush or promise."""

    what: int
    names: tuple[str, ...]
    inode: int
    at: int
    data: bytes


def records(log: Path) -> Iterator[Record]:
    """All of a log, in order."""
    with log.open("rb") as file:
        while head := file.read(_HEAD.size):
            what, length, inode, at, count = _HEAD.unpack(head)
            names = tuple(file.read(length).decode().split("\0")) if length else ()
            yield Record(what, names, inode, at, file.read(count) if what in (WRITE, ACK) else b"")


class _File:
    """One inode: what is on the disk for certain, and what was done to it since."""

    def __init__(self) -> None:
        self.flushed = bytearray()
        self.later: list[Record] = []

    def flush(self) -> None:
        for record in self.later:
            _apply(self.flushed, record)
        self.later.clear()

    def after_cut(self, chance: random.Random) -> bytearray:
        left = bytearray(self.flushed)
        # Mostly the whole of it, or nothing, is what tests nothing: draw how much survives.
        share = chance.choice((0.0, 0.3, 0.7, 0.95, 1.0))
        for record in self.later:
            if chance.random() < share:
                _apply(left, record)
            elif record.what == WRITE and chance.random() < 0.5:
                for at in range(0, len(record.data), SECTOR_BYTES):
                    if chance.random() < 0.5:
                        sector = record.data[at : at + SECTOR_BYTES]
                        _apply(left, record._replace(at=record.at + at, data=sector))
        return left


def _apply(data: bytearray, record: Record) -> None:
    if record.what == TRUNCATE:
        del data[record.at :]
        data.extend(bytes(record.at - len(data)))
    else:
        data.extend(bytes(max(0, record.at - len(data))))
        data[record.at : record.at + len(record.data)] = record.data


class _Names:
    """One directory: names on the disk for certain, and changes since."""

    def __init__(self) -> None:
        self.flushed: dict[str, int] = {}
        self.later: list[tuple[str, int]] = []

    def flush(self) -> None:
        self._play(self.flushed, len(self.later))
        self.later.clear()

    def _play(self, names: dict[str, int], count: int) -> None:
        for name, inode in self.later[:count]:
            if inode:
                names[name] = inode
            else:
                names.pop(name, None)

    def now(self) -> dict[str, int]:
        names = dict(self.flushed)
        self._play(names, len(self.later))
        return names

    def after_cut(self, chance: random.Random) -> dict[str, int]:
        names = dict(self.flushed)
        self._play(names, chance.randint(0, len(self.later)))
        return names


class LazyDisk:
    """A directory on a disk that keeps nothing but what was flushed."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.files: dict[int, _File] = {}
        self.directories: dict[str, _Names] = {self.root: _Names()}
        self.promised: list[bytes] = []

    def play(self, record: Record) -> None:
        """Do what the record says."""
        match record.what:
            case 1 | 8:
                if record.what == MKDIR:
                    self.directories[record.names[0]] = _Names()
                self.files[record.inode] = _File()
                self._name(record.names[0], record.inode)
            case 2 | 3:
                self.files[record.inode].later.append(record)
            case 4:
                if record.names:
                    self.directories[record.names[0]].flush()
                else:
                    self.files[record.inode].flush()
            case 5:
                self._name(record.names[0], 0)
            case 6 | 7:
                before, after = record.names
                self._name(after, self._inode(before))
                if record.what == RENAME:
                    self._name(before, 0)
            case 9:
                self.promised.append(record.data)

    def _split(self, path: str) -> tuple[_Names, str]:
        directory, _, name = path.rpartition("/")
        return self.directories[directory], name

    def _name(self, path: str, inode: int) -> None:
        names, name = self._split(path)
        names.later.append((name, inode))

    def _inode(self, path: str) -> int:
        names, name = self._split(path)
        return names.now()[name]

    def cut(self, target: Path, chance: random.Random) -> None:
        """Write what is left when the power fails now into a new directory."""
        self._leave(self.root, target, chance)

    def _leave(self, directory: str, target: Path, chance: random.Random) -> None:
        target.mkdir(mode=0o700)
        for name, inode in self.directories[directory].after_cut(chance).items():
            path = f"{directory}/{name}"
            if path in self.directories:
                self._leave(path, target / name, chance)
            else:
                (target / name).write_bytes(self.files[inode].after_cut(chance))
