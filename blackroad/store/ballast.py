"""Room kept back on the state directory's disk, so that a full disk still takes what is promised.

Edge.  A file of real blocks that is given up when a commit finds no room, and made again when there
is room.  This file must not know what the room is used for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from blackroad.errors import EnvironmentProblem
from blackroad.limits import BALLAST_BYTES, BALLAST_SHARE

FILE: Final = "ballast"
T = TypeVar("T")


class Ballast:
    """The room kept back in one directory; `full` while nothing new should be promised."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.full = False
        self._directory = directory
        self.size = min(BALLAST_BYTES, self._room()[1] // BALLAST_SHARE)
        self.held = self._reserved_bytes() > 0

    def _room(self) -> tuple[int, int]:
        """Bytes that this process may still take on this disk, and bytes of the disk."""
        told = os.statvfs(self._directory)
        free = told.f_bfree if os.geteuid() == 0 else told.f_bavail
        return free * told.f_frsize, told.f_blocks * told.f_frsize

    def _reserved_bytes(self) -> int:
        try:
            return self.path.stat().st_blocks * 512
        except OSError:
            return 0

    def begin(self) -> None:
        """Take the room, or find that there is none."""
        self.full = not self.make()

    def make(self) -> bool:
        """Hold the room, as far as the disk has it and as much again; tell whether it is held.

        Cost  some milliseconds; as long as writing it where the disk cannot reserve.
        """
        self.held = self._reserved_bytes() >= self.size
        if not self.held and self._room()[0] >= 2 * self.size:
            self.held = self._reserve()
        return self.held and self._room()[0] >= self.size

    def _reserve(self) -> bool:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags, 0o600)
            try:
                os.posix_fallocate(fd, 0, self.size)
            finally:
                os.close(fd)
        except OSError:
            self._remove()
            return False
        return True

    def free(self) -> bool:
        """Give the room up, and take nothing new; False where it was given up before."""
        self.full = True
        held, self.held = self.held, False
        self._remove()
        return held

    def _remove(self) -> None:
        # The blocks go with the last name, but not before a reader of the file has closed it.
        with contextlib.suppress(OSError):
            os.truncate(self.path, 0)
        with contextlib.suppress(OSError):
            self.path.unlink()

    def behind(self, work: Callable[[], T]) -> T:
        """Do work that needs some room, if need be in the room that was kept back.

        Raises  what `work` raises, where that was not for want of room.
        """
        try:
            return work()
        except (OSError, EnvironmentProblem):
            if not self.scarce() or not self.free():
                raise
            return work()

    def scarce(self) -> bool:
        """Has the disk less room left than is kept back?"""
        return self._room()[0] < self.size

    def plenty(self) -> bool:
        """Has the disk room for the file, if it is not held, and twice as much?"""
        return self._room()[0] >= (2 if self.held else 3) * self.size
