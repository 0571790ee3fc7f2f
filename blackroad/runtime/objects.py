"""Edge: objects on this machine's disk, one file each, named by the digest of their content.

The store is a cache beside the journal: what must be kept is pinned, the rest leaves when room is
needed, longest unused first, and nothing outlives a restart.  This file must not know who wants
an object or how it travels.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter, OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blackroad.bus.parcels import is_name, write_segments
from blackroad.bus.payload import DIGEST_BYTES, Segment, digest_of, total_bytes
from blackroad.digest import blake2b
from blackroad.errors import Busy, DamagedObject, DiskProblem, invariant
from blackroad.limits import BALLAST_BYTES, BALLAST_SHARE, CHUNK_BYTES
from blackroad.runtime.shed import Shed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

OPEN_FILES_MAX: Final = 32  # kept open for reading
_NAME = re.compile(r"[0-9a-f]{64}")


def write_new(path: str, segments: Sequence[Segment]) -> bytes:
    """Write segments to a new file without joining them; return their digest.

    Raises  OSError, after the file was removed again.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_segments(fd, segments)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
    return digest_of(segments)


class ObjectStore:
    """All objects of one daemon, within `limit_bytes`."""

    def __init__(
        self,
        directory: str | Path,
        limit_bytes: int,
        keep: Collection[bytes] = (),
        shed: Shed | None = None,
    ) -> None:
        """What an earlier life left is removed, but for the objects named in `keep`.

        With a `shed`, objects may also be parcels that programs of this machine wrote.

        Raises  DiskProblem where the directory cannot be made or emptied.
        """
        self._directory = Path(directory)
        self._incoming = self._directory / "incoming"
        self.limit_bytes = limit_bytes
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # longest unused first
        self._pins: dict[bytes, Counter[str]] = {}
        self._files: OrderedDict[bytes, int] = OrderedDict()
        self._flushed: set[bytes] = set()
        self._shed = shed or Shed()
        self._parcels: dict[bytes, str] = {}  # where those are that are parcels
        self._reserved_bytes = 0
        self._unwritten_bytes = 0
        self._number = 0
        self.used_bytes = 0
        # Threads that work on its files: ended before anything is closed.
        self.closing: list[Callable[[], None]] = []
        self.on_dropped: Callable[[bytes], None] = lambda _digest: None
        self._wipe({digest.hex() for digest in keep})

    @classmethod
    def shared(
        cls, directory: Path, runtime_dir: Path, limit_bytes: int, keep: Collection[bytes]
    ) -> ObjectStore:
        """Return a store whose parcels the programs find by what stands in `runtime_dir`."""
        return cls(directory, limit_bytes, keep, Shed.made(directory, runtime_dir, limit_bytes))

    def _wipe(self, keep: Collection[str]) -> None:
        """Remove what an earlier life left, and nothing that is not ours."""
        try:
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
            _flush(str(self._directory.parent), os.O_DIRECTORY)
            for entry in os.scandir(self._directory):
                if not _NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                    continue
                if entry.name in keep:
                    size = entry.stat().st_size
                    self._sizes[bytes.fromhex(entry.name)] = size
                    self.used_bytes += size
                    # A row that names it was flushed after it.
                    self._flushed.add(bytes.fromhex(entry.name))
                else:
                    os.unlink(entry.path)
            for entry in os.scandir(self._incoming):
                if entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)
        except OSError as error:
            raise DiskProblem(
                f"the object directory `{self._directory}` cannot be used: {error.strerror}",
                hint="see who owns it, or change `state_dir`",
            ) from None

    def __len__(self) -> int:
        return len(self._sizes)

    # --- in -------------------------------------------------------------------------------------

    def put(self, data: Sequence[Segment] | bytes) -> tuple[bytes, int]:
        """Store content; return its digest and size.  Storing it again changes nothing.

        Raises  Busy where all room is taken by pinned objects, DiskProblem where the disk is full
                or the object is larger than the whole store.
        """
        segments = [data] if isinstance(data, bytes) else data
        size = total_bytes(segments)
        self._make_room(size)
        self._make_disk_room(size)
        path = self.temporary("put")
        try:
            digest = write_new(path, segments)
        except OSError as error:
            raise self._disk_problem(error) from None
        self.adopt(path, digest, size)
        return digest, size

    def adopt(self, path: str, digest: bytes, size: int) -> None:
        """Take over a finished file of the same file system; its digest is taken on trust.

        Raises  as `put`, and DamagedObject where the size differs; the file is gone then.
        """
        if is_name(digest) and self.claim(digest, size):
            return
        if digest in self._sizes:
            self._sizes.move_to_end(digest)
            _unlink(path)
            return
        try:
            found = os.stat(path).st_size
            if found != size or len(digest) != DIGEST_BYTES:
                raise DamagedObject(f"an object of {size} bytes came as a file of {found}")
            self._make_room(size)
            os.rename(path, self._path(digest))
        except OSError as error:
            _unlink(path)
            raise self._disk_problem(error) from None
        except (Busy, DiskProblem, DamagedObject):
            _unlink(path)
            raise
        self._sizes[digest] = size
        self.used_bytes += size

    def claim(self, digest: bytes, size: int) -> bool:
        """Take over what a program or a task process wrote as a parcel; False where it is none.

        Cost    no byte is read or copied.
        Raises  as `put`; the parcel is gone then.
        """
        if digest in self._sizes:
            return True
        path = self._shed.claim(digest, size)
        if path is None:
            return False
        self._register(path, digest, size)
        return True

    def keep(self, path: str, name: bytes, size: int) -> None:
        """Take over a parcel that was written here, to a path of the shed's.

        Raises  as `put`; the parcel is gone then.
        """
        try:
            kept = self._shed.keep(path, name)
        except OSError as error:
            _unlink(path)
            raise self._disk_problem(error) from None
        self._register(kept, name, size)

    def _register(self, path: str, digest: bytes, size: int) -> None:
        try:
            self._make_room(size)
            if is_name(digest):
                self._parcels[digest] = path
            else:
                # Its content names it, so it may be asked for again, and outlive this process.
                os.rename(path, self._lasting(digest))
        except OSError as error:
            self._shed.free(path)
            raise self._disk_problem(error) from None
        except (Busy, DiskProblem):
            self._shed.free(path)
            raise
        self._sizes[digest] = size
        self.used_bytes += size

    def writer(self, digest: bytes, size: int) -> ObjectWriter:
        """Begin an object that arrives in pieces; its room is reserved.

        Raises  as `put`.
        """
        self._make_room(size)
        blank = self._shed.blank(size) if is_name(digest) else None
        if blank is not None:
            return ObjectWriter(self, blank[1], digest, size, blank[0])
        self._make_disk_room(size)
        return ObjectWriter(self, self.temporary("pull"), digest, size)

    # --- out ------------------------------------------------------------------------------------

    def has(self, digest: bytes) -> bool:
        """Whether the object is here."""
        return digest in self._sizes

    def size(self, digest: bytes) -> int | None:
        """How large the object is, or None where it is not here."""
        return self._sizes.get(digest)

    def path(self, digest: bytes) -> str | None:
        """Where the object's file is, or None; pin it for as long as the path is in use."""
        if digest not in self._sizes:
            return None
        self._sizes.move_to_end(digest)
        return self._path(digest)

    def peek(self, digest: bytes) -> tuple[str, int] | None:
        """Where the object is and how large; for any thread, as it changes nothing."""
        size = self._sizes.get(digest)
        return (self._path(digest), size) if size is not None else None

    def read(self, digest: bytes, offset: int, count: int) -> bytes:
        """Read a piece; short at the end, empty beyond it or where the object is not here."""
        if digest not in self._sizes or offset < 0 or count <= 0:
            return b""
        self._sizes.move_to_end(digest)
        try:
            return os.pread(self._file(digest), count, offset)
        except OSError:
            # Somebody removed the file behind our back: then we do not have it.
            self._drop(digest)
            return b""

    def _file(self, digest: bytes) -> int:
        fd = self._files.get(digest)
        if fd is None:
            fd = os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC)
            self._files[digest] = fd
            if len(self._files) > OPEN_FILES_MAX:
                os.close(self._files.popitem(last=False)[1])
        else:
            self._files.move_to_end(digest)
        return fd

    def flush(self, digest: bytes) -> None:
        """Put an object on the disk for good, for a promise that outlives this process.

        Cost    two flushes, the first time.
        Raises  DiskProblem where the disk refuses, or the object is not here: whoever was about to
                promise something must stop, for nobody knows what the disk holds then.
        """
        if digest in self._flushed:
            return
        try:
            if digest in self._parcels:
                self._to_disk(digest)
            _flush(self._lasting(digest), 0)
            _flush(str(self._directory), os.O_DIRECTORY)
        except OSError as error:
            raise DiskProblem(
                f"an object could not be flushed to `{self._directory}`: {error.strerror}",
                hint="replace the disk, or give it room, then start the daemon again; nothing "
                "that was not flushed has been promised",
            ) from None
        self._flushed.add(digest)

    def _to_disk(self, digest: bytes) -> None:
        """Put a copy of a parcel where it outlives this process; tasks go on using the parcel."""
        part = self.temporary("copy")
        try:
            shutil.copyfile(self._parcels[digest], part)
            os.chmod(part, 0o600)
            os.rename(part, self._lasting(digest))
        except OSError:
            _unlink(part)
            raise

    # --- what stays -----------------------------------------------------------------------------

    def pin(self, digest: bytes, reason: str = "") -> None:
        """Keep an object, also one that is still to come, until as many `unpin` came."""
        self._pins.setdefault(digest, Counter())[reason] += 1

    def unpin(self, digest: bytes, reason: str = "") -> None:
        """Take back one `pin` of that reason; without one, nothing happens."""
        reasons = self._pins.get(digest)
        if reasons is None or not reasons[reason]:
            return
        reasons[reason] -= 1
        if not +reasons:
            del self._pins[digest]
            if is_name(digest) and digest in self._sizes:
                # Nobody can ask for it by its content, so nobody will.
                self._drop(digest)

    def pinned(self, digest: bytes) -> bool:
        """Whether somebody still needs the object."""
        return digest in self._pins

    def drop(self, digest: bytes) -> bool:
        """Remove an object that nobody needs; False where it is pinned or not here."""
        if digest in self._pins or digest not in self._sizes:
            return False
        self._drop(digest)
        return True

    def close(self) -> None:
        """Close all files; the objects stay until the next start, but for parcels."""
        while self.closing:
            self.closing.pop()()
        while self._files:
            os.close(self._files.popitem()[1])
        self._shed.close()

    def tidy(self, now_ms: int) -> None:
        """Give back what parcels no longer need."""
        self._shed.tidy(now_ms)

    def _make_room(self, size: int) -> None:
        if size > self.limit_bytes:
            raise DiskProblem(
                f"an object of {size} bytes is larger than the store ({self.limit_bytes} bytes)",
                hint="split it, or give the object store more room in the configuration",
            )
        room = self.limit_bytes - self._reserved_bytes - size
        if self.used_bytes <= room:
            return
        loose = [item for item in self._sizes if item not in self._pins]
        if self.used_bytes - sum(map(self._sizes.__getitem__, loose)) > room:
            raise Busy(
                f"no room for {size} bytes: what is stored is still needed",
                hint="wait for tasks to end, or give the object store more room",
            )
        for digest in loose:
            self._drop(digest)
            if self.used_bytes <= room:
                return

    def _make_disk_room(self, size: int) -> None:
        """See to it that the disk has room, and leave what the journal needs.

        Raises  DiskProblem: an object is refused as a whole, not given up half-way.
        """
        try:
            told = os.statvfs(self._directory)
        except OSError as error:
            raise self._disk_problem(error) from None
        spare = min(2 * BALLAST_BYTES, 2 * told.f_blocks * told.f_frsize // BALLAST_SHARE)
        free = told.f_bfree if os.geteuid() == 0 else told.f_bavail
        lacking = size + self._unwritten_bytes + spare - free * told.f_frsize
        if lacking <= 0:
            return
        loose = [item for item in self._sizes if item not in self._pins]
        if sum(map(self._sizes.__getitem__, loose)) < lacking:
            raise DiskProblem(
                f"no room for an object of {size} bytes on the disk of `{self._directory}`",
                hint="free some space on that disk; everything else goes on",
            )
        for digest in loose:
            lacking -= self._sizes[digest]
            self._drop(digest)
            if lacking <= 0:
                return

    def _drop(self, digest: bytes) -> None:
        self.used_bytes -= self._sizes.pop(digest)
        self._flushed.discard(digest)
        fd = self._files.pop(digest, None)
        if fd is not None:
            os.close(fd)
        parcel = self._parcels.pop(digest, None)
        if parcel is not None:
            self._shed.free(parcel)
        _unlink(self._lasting(digest))
        self.on_dropped(digest)

    def _path(self, digest: bytes) -> str:
        return self._parcels.get(digest) or self._lasting(digest)

    def _lasting(self, digest: bytes) -> str:
        return str(self._directory / digest.hex())

    def temporary(self, kind: str) -> str:
        """Return a path for a file that is to be adopted."""
        self._number += 1
        return str(self._incoming / f"{kind}-{self._number}")

    def _disk_problem(self, error: OSError) -> DiskProblem:
        return DiskProblem(
            f"cannot write to `{self._directory}`: {error.strerror}",
            hint="free some space on that disk",
        )

    def reserve(self, size: int) -> None:
        """Count room as taken (or given back, below zero) by an object on its way here."""
        self._reserved_bytes += size
        invariant(self._reserved_bytes >= 0, "more room given back than reserved")

    def awaits(self, size: int) -> None:
        """Count bytes that will be written (below zero: that were, or will not be)."""
        self._unwritten_bytes += size
        invariant(self._unwritten_bytes >= 0, "more was written than announced")


class ObjectWriter:
    """One object on its way here: pieces in any order, checked as a whole before it counts.

    Raises  DiskProblem where the disk is full.
    """

    def __init__(
        self, store: ObjectStore, path: str, digest: bytes, size: int, fd: int = -1
    ) -> None:
        """Write to `path`, or to the parcel that is open as `fd`."""
        self._store = store
        self._path = path
        self._digest = digest
        self._size = size
        # What has a name has no digest: the stream that brings it checks every record.
        self._state = None if is_name(digest) else blake2b(digest_size=DIGEST_BYTES)
        self._hashed_bytes = 0
        self._parcel = fd >= 0
        self._ahead: dict[int, int] = {}  # written but not hashed: offset -> length
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._fd = fd if self._parcel else os.open(path, flags, 0o600)
        except OSError as error:
            raise store._disk_problem(error) from None
        self._unwritten_bytes = 0 if self._parcel else size
        store.reserve(size)
        store.awaits(self._unwritten_bytes)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Place one piece; hash on as far as there is no gap, so that `finish` need not."""
        invariant(self._fd >= 0 and 0 <= offset <= self._size - len(data), "a piece out of place")
        rest, at = memoryview(data), offset
        try:
            while rest:
                written = os.pwrite(self._fd, rest, at)
                rest, at = rest[written:], at + written
        except OSError as error:
            self.abandon()
            raise self._store._disk_problem(error) from None
        written = min(len(data), self._unwritten_bytes)
        self._unwritten_bytes -= written
        self._store.awaits(-written)
        if offset == self._hashed_bytes:
            if self._state is not None:
                self._state.update(data)
            self._hashed_bytes += len(data)
            self._catch_up()
        elif offset > self._hashed_bytes:
            self._ahead[offset] = len(data)

    def _catch_up(self) -> None:
        while (length := self._ahead.pop(self._hashed_bytes, 0)) > 0:
            if self._state is not None:
                for start in range(self._hashed_bytes, self._hashed_bytes + length, CHUNK_BYTES):
                    end = min(start + CHUNK_BYTES, self._hashed_bytes + length)
                    self._state.update(os.pread(self._fd, end - start, start))
            self._hashed_bytes += length

    def lend(self) -> tuple[int, Any]:
        """Return a descriptor of its own for a thread that writes on, and what it is to hash with.

        Nothing may be written here until `given_back`.
        """
        return os.dup(self._fd), self._state

    def given_back(self, received_bytes: int) -> None:
        """That thread is done: all before this byte is written, and in the digest."""
        written = min(max(0, received_bytes - self._hashed_bytes), self._unwritten_bytes)
        self._unwritten_bytes -= written
        self._store.awaits(-written)
        self._hashed_bytes = max(self._hashed_bytes, received_bytes)
        self._catch_up()

    @property
    def ready_bytes(self) -> int:
        """All before this byte is here."""
        return self._hashed_bytes

    def finish(self) -> str:
        """Check the digest, hand the object to the store, and return its path.

        Raises  DamagedObject where it is not the object that was asked for; as `ObjectStore.put`.
        """
        complete = self._hashed_bytes == self._size and (
            self._state is None or self._state.digest() == self._digest
        )
        self._close()
        if not complete:
            _unlink(self._path)
            raise DamagedObject(
                f"object {self._digest.hex()[:12]} arrived damaged: its digest differs",
                hint="its holder has a bad disk or bad memory, or is not honest",
            )
        if self._parcel:
            self._store.keep(self._path, self._digest, self._size)
        else:
            self._store.adopt(self._path, self._digest, self._size)
        return self._store._path(self._digest)

    def abandon(self) -> None:
        """Give up and free the room; harmless when it was given up or finished before."""
        if self._fd >= 0:
            self._close()
            _unlink(self._path)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._store.reserve(-self._size)
            self._store.awaits(-self._unwritten_bytes)


def _flush(path: str, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
