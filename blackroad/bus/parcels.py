"""Large values on one machine: files in shared memory that its processes hand to each other.

A program writes a value once; whoever needs it maps that file, and nothing is copied or sent.
Only processes of one user do so, in a directory that lets nobody else in, and they trust each
other: a parcel has a name that nothing else ever had, not a digest.  A file is used again when
nobody maps it any more, for fresh memory costs more than the copy into it.

Edge.  This file must not know what a parcel holds, nor who waits for it.

Source  docs/protocol.md, "Objects" (R-object-6 to R-object-8).
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import stat
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from blackroad import chance
from blackroad.bus.payload import DIGEST_BYTES, Segment, total_bytes
from blackroad.limits import BALLAST_BYTES, MIB

GUIDE: Final = "parcels.json"  # beside the client socket, and beside what task processes write
MAP_BYTES_MIN: Final = 1 * MIB  # smaller ones are read: that costs less than a mapping
MAPPINGS_MAX: Final = 256  # of one process: each keeps a descriptor, of which there may be 1024
WRITE_SEGMENTS_MAX: Final = 512  # of one writev; the kernel takes 1024
LOOK_ENTRIES_MAX: Final = 64  # with more files than this a look at the directory is not repeated
LOOK_S: Final = 0.05  # for so long
_MARK: Final = b"blackroad/parcel"
_TAG_BYTES: Final = 8

# What the first letter of a file's name says.
WRITING: Final = "w-"  # somebody writes it
HANDED: Final = "n-"  # written, and on its way to the daemon
KEPT: Final = "d-"  # the daemon has it
SPARE: Final = "s-"  # nobody needs it: to be used again
OWNER: Final = "o-"  # locked by a process for as long as it lives


class Root(msgspec.Struct, frozen=True):
    """One directory of parcels, and how much may be in it."""

    path: str
    limit_bytes: int
    # Does it take memory, as opposed to room on a disk?
    memory: bool = True


def is_name(digest: bytes) -> bool:
    """Whether this is the name of a parcel, and so no digest of anything."""
    return digest.startswith(_MARK)


def owner_of(file_name: str) -> str:
    """Return the tag of the process that wrote a file of this name, "" where there is none."""
    kind, rest = file_name[:2], file_name[2:]
    if kind == WRITING:
        return rest[: 2 * _TAG_BYTES]
    start = 2 * len(_MARK)
    named = len(rest) == 2 * DIGEST_BYTES and rest.startswith(_MARK.hex())
    return rest[start : start + 2 * _TAG_BYTES] if named else ""


def read_guide(directory: str | Path) -> tuple[Root, ...]:
    """Return where the daemon of this directory takes parcels; nothing where it takes none.

    A file of somebody else, or one that others may write to, counts as none.
    """
    try:
        fd = os.open(Path(directory) / GUIDE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ()
    with open(fd, "rb") as file:
        facts = os.fstat(fd)
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            return ()
        try:
            roots = msgspec.json.decode(file.read(64 * 1024), type=tuple[Root, ...])
        except msgspec.DecodeError:
            return ()
    return tuple(root for root in roots if private(root.path))


def private(path: str) -> bool:
    """Whether this is a directory of this user that nobody else can enter."""
    try:
        facts = os.lstat(path)
    except OSError:
        return False
    return (
        stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
    )


def spare_name(size: int, serial: int) -> str:
    """Return what a spare file of that size is called: whoever looks for one need not ask."""
    return f"{SPARE}{size:x}.{serial:x}"


class _Spares(NamedTuple):
    """Which spare files stood in a directory a moment ago."""

    at_s: float
    entries: int
    files: list[tuple[int, str]]  # size and name


class _Used(NamedTuple):
    """How full a directory was a moment ago."""

    at_s: float
    entries: int
    bytes: int


def _will_do(last: _Spares | _Used, now_s: float) -> bool:
    """Was a look at a full directory recent enough to stand for another one?"""
    return last.entries > LOOK_ENTRIES_MAX and now_s - last.at_s < LOOK_S


class Parcels:
    """One process's way of writing and opening parcels."""

    def __init__(self, roots: Sequence[Root]) -> None:
        self.roots = tuple(roots)
        self._tag = chance.token_bytes(_TAG_BYTES)
        self._serials = itertools.count(chance.randbits(32))
        self._owner_fds: dict[str, int] = {}
        self._spares: dict[str, _Spares] = {}
        self._used: dict[str, _Used] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self.roots)

    def close(self) -> None:
        """Say that this process is gone: what it wrote and nobody took may be removed."""
        while self._owner_fds:
            root, fd = self._owner_fds.popitem()
            _unlink(os.path.join(root, OWNER + self._tag.hex()))
            os.close(fd)

    def new_name(self) -> bytes:
        """Return a name, as long as a digest, that no other object has or ever had."""
        serial = next(self._serials).to_bytes(8, "big")
        return _MARK + self._tag + serial

    # --- writing ----------------------------------------------------------------------------------

    def write(self, name: bytes, segments: Sequence[Segment], *, lasting: bool = False) -> bool:
        """Write a parcel, `lasting` ones to a disk; False where there is no room for it."""
        size = total_bytes(segments)
        for root in self.roots:
            if lasting and root.memory:
                continue
            with suppress(OSError):
                if self._write(root, name, segments, size):
                    return True
        return False

    def blank(self, size: int) -> tuple[int, str] | None:
        """Return the descriptor and path of a new parcel to be filled, None without room."""
        for root in self.roots:
            with suppress(OSError), self._lock:
                found = self._blank(root, size)
                if found is not None:
                    return found
        return None

    def _blank(self, root: Root, size: int) -> tuple[int, str] | None:
        self._sign(root)
        spares = self._look(root)
        found = self._recycled(root, spares, size)
        if found is not None:
            return found
        if not self._has_room(root, spares, size):
            return None
        path = os.path.join(root.path, self._temporary())
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path

    def _write(self, root: Root, name: bytes, segments: Sequence[Segment], size: int) -> bool:
        with self._lock:
            found = self._blank(root, size)
        if found is None:
            return False
        fd, path = found
        try:
            write_segments(fd, segments)
            os.rename(path, os.path.join(root.path, HANDED + name.hex()))
        except BaseException:
            _unlink(path)
            raise
        finally:
            os.close(fd)
        return True

    def take_back(self, name: bytes) -> None:
        """Remove a parcel that the daemon has not taken."""
        for root in self.roots:
            _unlink(os.path.join(root.path, HANDED + name.hex()))

    def _temporary(self) -> str:
        return f"{WRITING}{self._tag.hex()}{next(self._serials):x}"

    def _sign(self, root: Root) -> None:
        """Be seen to live by whoever tidies up, also by a daemon that was started anew."""
        path = os.path.join(root.path, OWNER + self._tag.hex())
        last = self._owner_fds.get(root.path, -1)
        if last >= 0:
            with suppress(FileNotFoundError):
                if _called(path, os.fstat(last)):
                    return
            del self._owner_fds[root.path]
            os.close(last)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._owner_fds[root.path] = fd

    def _look(self, root: Root) -> list[tuple[int, str]]:
        """Return size and name of each spare file."""
        last = self._spares.get(root.path)
        now_s = time.monotonic()
        if last and _will_do(last, now_s):
            return last.files
        names = os.listdir(root.path)
        files = []
        for name in names:
            if name.startswith(SPARE):
                with suppress(ValueError):
                    files.append((int(name[len(SPARE) :].partition(".")[0], 16), name))
        self._spares[root.path] = _Spares(now_s, len(names), files)
        return files

    def _recycled(
        self, root: Root, spares: list[tuple[int, str]], size: int
    ) -> tuple[int, str] | None:
        """Take a spare file of about that size, cut to it; None where there is none."""
        fitting = [one for one in spares if size // 2 <= one[0] <= 2 * size]
        for found, name in sorted(fitting, key=lambda one: abs(one[0] - size)):
            if found < size and not self._has_room(root, spares, size - found):
                continue
            fd = _taken(os.path.join(root.path, name))
            if fd < 0:
                continue
            path = os.path.join(root.path, self._temporary())
            try:
                os.rename(os.path.join(root.path, name), path)
            except OSError:
                os.close(fd)
                continue
            spares.remove((found, name))
            if os.fstat(fd).st_size > size:
                os.ftruncate(fd, size)
            return fd, path
        return None

    def _has_room(self, root: Root, spares: list[tuple[int, str]], size: int) -> bool:
        """Whether so much may be added, if need be instead of spare files."""
        told = os.statvfs(root.path)
        spare = 0 if root.memory else 2 * BALLAST_BYTES
        lacking = max(
            self._used_bytes(root) + size - root.limit_bytes,
            size + spare - told.f_bavail * told.f_frsize,
        )
        while lacking > 0 and spares:
            found, name = spares.pop()
            fd = _taken(os.path.join(root.path, name))
            if fd >= 0:
                _unlink(os.path.join(root.path, name))
                os.close(fd)
                lacking -= found
        return lacking <= 0

    def _used_bytes(self, root: Root) -> int:
        """Return how much room the files of a directory take."""
        last = self._used.get(root.path)
        now_s = time.monotonic()
        if last and _will_do(last, now_s):
            return last.bytes
        used = count = 0
        with os.scandir(root.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    used += 512 * entry.stat(follow_symlinks=False).st_blocks
                    count += 1
        self._used[root.path] = _Used(now_s, count, used)
        return used

    # --- reading ----------------------------------------------------------------------------------

    def open(self, name: bytes, size: int) -> memoryview | None:
        """Return the whole of a parcel that the daemon keeps, None where it is not to be had.

        It can be written to, and what is written stays with this process.
        """
        for root in self.roots:
            try:
                data = mapped(os.path.join(root.path, KEPT + name.hex()))
            except (OSError, ValueError):
                continue
            if len(data) == size:
                return memoryview(data)
        return None

    def handed(self, name: bytes, offset: int, count: int) -> bytes | None:
        """Read a piece of a parcel that was written here and that nobody has taken."""
        for root in self.roots:
            with suppress(OSError):
                fd = os.open(
                    os.path.join(root.path, HANDED + name.hex()), os.O_RDONLY | os.O_CLOEXEC
                )
                try:
                    return os.pread(fd, count, offset)
                finally:
                    os.close(fd)
        return None


_mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def mapped(path: str) -> mmap.mmap | bytearray:
    """Open a file of this user; what is written into the result stays with this process.

    While it is mapped the file is locked, so that nobody uses it for something else.

    Raises  OSError where it is not there, or is no plain file, or is somebody else's.
    """
    fd, size = _shared(path)
    try:
        if size < MAP_BYTES_MIN or len(_mappings) >= MAPPINGS_MAX:
            return _read(fd, size)
        data = mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
        _mappings.add(data)
        # The mapping has a descriptor of its own, and with it the lock.
        return data
    finally:
        os.close(fd)


def shared(path: str) -> mmap.mmap:
    """Open a file of this user to be read, locked like that for as long as it is mapped.

    Raises  OSError as `mapped`; ValueError where it is empty.
    """
    fd, size = _shared(path)
    try:
        return mmap.mmap(fd, size, access=mmap.ACCESS_READ)
    finally:
        os.close(fd)


def _shared(path: str) -> tuple[int, int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
            raise PermissionError(f"{path} is no plain file of this user")
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # It may have become another parcel between the two calls.
        if not _called(path, facts):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(fd)
        raise
    return fd, facts.st_size


def _called(path: str | os.PathLike[str], facts: os.stat_result) -> bool:
    """Whether an open file is still what its path names; Raises  OSError where nothing is."""
    return os.stat(path, follow_symlinks=False).st_ino == facts.st_ino


def _read(fd: int, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = os.readv(fd, [rest])
        if not count:
            raise OSError("the file is shorter than it was")
        rest = rest[count:]
    return data


def _taken(path: str) -> int:
    """Lock a file that nobody maps and that is still called so; -1 where it is in use or gone."""
    return locked(path, os.O_RDWR)


def locked(path: str | os.PathLike[str], flags: int) -> int:
    """Lock what is still called so, without waiting; -1 where somebody has it or it is gone."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _called(path, os.fstat(fd)):
            return fd
    except OSError:
        pass
    os.close(fd)
    return -1


def write_segments(fd: int, segments: Sequence[Segment]) -> None:
    """Write all segments from the beginning of a file without joining them.

    Raises  OSError.
    """
    for first in range(0, len(segments), WRITE_SEGMENTS_MAX):
        part = [memoryview(piece) for piece in segments[first : first + WRITE_SEGMENTS_MAX]]
        while part:
            # One call takes at most 2 GiB and may take less.
            written = os.writev(fd, part)
            while part and written >= len(part[0]):
                written -= len(part[0])
                del part[0]
            if part:
                part[0] = part[0][written:]


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
