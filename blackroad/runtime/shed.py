"""Edge: the daemon's side of parcels: makes their directories, takes what is handed over, tidies.

What a process wrote and never handed over goes when that process is gone, what nobody needs any
more is kept for a moment to be written to again.  This file must not know what is in a parcel.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from blackroad.bus import parcels
from blackroad.bus.parcels import HANDED, KEPT, OWNER, SPARE, WRITING, Root
from blackroad.digest import blake2b
from blackroad.limits import MIB

SHARED_MEMORY: Final = Path("/dev/shm")
MEMORY_SHARE: Final = 4  # parcels take at most a quarter of this machine's memory
ROOM_SHARE: Final = 2  # and half of what the directory in memory may hold
MEMORY_BYTES_MIN: Final = 16 * MIB  # with less than that there is no use in it
SPARE_SHARE: Final = 2  # half of it may wait to be used again,
SPARE_MS: Final = 3_000  # for so long
ORPHAN_MS: Final = 60_000  # what nobody claims, of a process that is gone, goes after this
TIDY_MS: Final = 1_000
_PREFIX: Final = "blackroad-"
_LOCK_TRIES: Final = 3
_TMPFS: Final = frozenset({"tmpfs", "ramfs"})


class Shed:
    """All parcels of one daemon."""

    def __init__(self, roots: tuple[Root, ...] = ()) -> None:
        """Remove what an earlier life left in these directories, which belong to the daemon."""
        self.roots = roots
        self._locks: list[int] = []
        self._own = parcels.Parcels(roots)
        self._guides: list[Path] = []
        self._numbers = itertools.count()
        self._seen_ms: dict[tuple[str, str], int] = {}
        self._due_ms = 0
        for root in roots:
            _clear(root.path)

    @classmethod
    def made(cls, objects_dir: str | Path, runtime_dir: str | Path, limit_bytes: int) -> Shed:
        """Make the directories, and tell programs and task processes where they are.

        Without room in shared memory parcels go to the disk alone; where not even that is to be
        had, large values travel in pieces as they do between machines.
        """
        objects = Path(objects_dir).resolve()
        roots = []
        _sweep()
        memory, lock = _memory_root(objects, limit_bytes)
        if memory is not None:
            roots.append(memory)
        disk = objects / "parcels"
        with suppress(OSError):
            disk.mkdir(mode=0o700, parents=True, exist_ok=True)
        if parcels.private(str(disk)):
            roots.append(Root(str(disk), limit_bytes, memory=False))
        shed = cls(tuple(roots))
        if lock >= 0:
            shed._locks.append(lock)
        for directory in (Path(runtime_dir), objects):
            shed._announce(directory)
        return shed

    def _announce(self, directory: Path) -> None:
        guide = directory / parcels.GUIDE
        temporary = guide.with_suffix(".new")
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(msgspec.json.encode(self.roots))
            temporary.replace(guide)
            self._guides.append(guide)

    def close(self) -> None:
        """Give all memory back; the mappings of others keep what they hold."""
        for guide in self._guides:
            with suppress(OSError):
                guide.unlink()
        self._guides.clear()
        self._own.close()
        for root in self.roots:
            _clear(root.path)
            if root.memory:
                with suppress(OSError):
                    os.rmdir(root.path)
        while self._locks:
            os.close(self._locks.pop())

    # --- one parcel -------------------------------------------------------------------------------

    def claim(self, name: bytes, size: int) -> str | None:
        """Take over a parcel that was handed in; return its path, None where there is none.

        What is no plain file of this user, or of another size, is removed.
        """
        for root in self.roots:
            path = os.path.join(root.path, HANDED + name.hex())
            try:
                facts = os.lstat(path)
            except OSError:
                continue
            good = (
                stat.S_ISREG(facts.st_mode)
                and facts.st_uid == os.geteuid()
                and facts.st_nlink == 1
                and facts.st_size == size
            )
            try:
                if not good:
                    os.unlink(path)
                    continue
                kept = os.path.join(root.path, KEPT + name.hex())
                os.rename(path, kept)
            except OSError:
                continue
            return kept
        return None

    def blank(self, size: int) -> tuple[int, str] | None:
        """Return the descriptor and path of a parcel to be filled here, None without room."""
        return self._own.blank(size)

    def keep(self, path: str, name: bytes) -> str:
        """A parcel from `blank` is full: return its path from now on.

        Raises  OSError.
        """
        kept = os.path.join(os.path.dirname(path), KEPT + name.hex())
        os.rename(path, kept)
        return kept

    def free(self, path: str) -> None:
        """Nobody needs this parcel any more: its memory may be written to again for a while."""
        root, name = os.path.split(path)
        if not name.startswith(KEPT):
            _unlink(path)
            return
        try:
            spare = parcels.spare_name(os.lstat(path).st_size, next(self._numbers))
            os.rename(path, os.path.join(root, spare))
        except OSError:
            _unlink(path)

    # --- order ------------------------------------------------------------------------------------

    def tidy(self, now_ms: int) -> None:
        """Remove what was spare for long or too much, and what dead processes left behind."""
        if now_ms < self._due_ms:
            return
        self._due_ms = now_ms + TIDY_MS
        seen: dict[tuple[str, str], int] = {}
        for root in self.roots:
            self._tidy(root, now_ms, seen)
        self._seen_ms = seen

    def _tidy(self, root: Root, now_ms: int, seen: dict[tuple[str, str], int]) -> None:
        spare_bytes = 0
        try:
            names = os.listdir(root.path)
        except OSError:
            return
        for name in names:
            if name.startswith(KEPT):
                continue
            since_ms = self._seen_ms.get((root.path, name), now_ms)
            seen[root.path, name] = since_ms
            path = os.path.join(root.path, name)
            if name.startswith(SPARE):
                with suppress(OSError):
                    spare_bytes += os.lstat(path).st_size
                if spare_bytes > root.limit_bytes // SPARE_SHARE or now_ms - since_ms >= SPARE_MS:
                    # Whoever still maps it keeps its memory; nobody else can get at it.
                    _unlink(path)
            elif name.startswith(OWNER):
                # Not at first sight: who has just made it may be about to lock it.
                if now_ms - since_ms >= SPARE_MS and not _locked(path):
                    _unlink(path)
            elif now_ms - since_ms >= ORPHAN_MS:
                owner = parcels.owner_of(name) if name.startswith((WRITING, HANDED)) else ""
                if not owner or not _locked(os.path.join(root.path, OWNER + owner)):
                    _unlink(path)


def _memory_root(objects: Path, limit_bytes: int) -> tuple[Root | None, int]:
    """A directory of this state directory in shared memory, and its lock; None and -1 without.

    The lock says that its daemon lives.
    """
    mark = blake2b(os.fsencode(objects), digest_size=8).hexdigest()
    path = SHARED_MEMORY / f"{_PREFIX}{os.geteuid()}-{mark}"
    try:
        if _kind_of(SHARED_MEMORY) not in _TMPFS:
            return None, -1
        told = os.statvfs(SHARED_MEMORY)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        room = told.f_blocks * told.f_frsize
        bound = min(memory // MEMORY_SHARE, room // ROOM_SHARE, limit_bytes)
        if bound < MEMORY_BYTES_MIN:
            return None, -1
        for _ in range(_LOCK_TRIES):
            path.mkdir(mode=0o700, exist_ok=True)
            # Anybody may make directories there: this one counts only if it is ours alone.
            if not parcels.private(str(path)):
                return None, -1
            lock = _lock(path)
            if lock >= 0:
                return Root(str(path), bound), lock
    except (OSError, ValueError):
        pass
    return None, -1


def _lock(path: Path) -> int:
    """Lock a directory that is still called so; -1 where somebody else has it or removed it."""
    return parcels.locked(path, os.O_RDONLY | os.O_DIRECTORY)


def _sweep() -> None:
    """Give back what daemons of this user held that were killed and never started again."""
    for path in SHARED_MEMORY.glob(f"{_PREFIX}{os.geteuid()}-*"):
        if not parcels.private(str(path)):
            continue
        lock = _lock(path)
        if lock < 0:
            continue
        _clear(str(path))
        with suppress(OSError):
            os.rmdir(path)
        os.close(lock)


def _kind_of(directory: Path) -> str:
    """The kind of file system that is mounted there, "" where nothing is."""
    kind = ""
    for line in Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines():
        fields = line.split(" ")
        if len(fields) > 2 and fields[1] == str(directory):
            kind = fields[2]
    return kind


def _locked(path: str) -> bool:
    """Whether a process holds the lock of this file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _clear(directory: str) -> None:
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            _unlink(entry.path)


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
