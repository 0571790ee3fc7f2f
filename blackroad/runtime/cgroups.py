"""Edge: one control group (v2) per task process, where this daemon was given a tree of its own.

A group is left by nobody: no double fork, new session or fork bomb gets out of it, and one write
kills all that is in it at once.  Where no group was delegated, the process table has to do
(`processes.py`).  No controller is switched on, so the daemon itself may stay where it is.
This file must not know pools, tasks or messages.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "blackroad-"
_MARKS: Final = ("user.delegate", "trusted.delegate")


def delegated(proc: Path = Path("/proc/self")) -> Path | None:
    """Find the group this process is in, if it may make groups of its own there.

    That is so below a unit with `Delegate=yes`, and where the group belongs to a user other than
    root.  Root could write anywhere, but a login session is not its own to fill.

    Source  systemd's CGROUP_DELEGATION page; the kernel's cgroup-v2 page, "Delegation".
    """
    try:
        mounted = _mount_point((proc / "mountinfo").read_text("utf-8", "replace"))
        lines = (proc / "cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    if mounted is None or own == "/":
        return None
    group = mounted / own.lstrip("/")
    if not os.access(group, os.W_OK) or not os.access(group / "cgroup.procs", os.W_OK):
        return None
    places = [group, *(above for above in group.parents if mounted in above.parents)]
    if any(_is_marked(place) for place in places) or _is_own(group):
        return group
    return None


def _mount_point(mountinfo: str) -> Path | None:
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            # Blanks and the like stand as octal escapes there.
            return Path(before.split(" ")[4].encode().decode("unicode_escape"))
    return None


def _is_marked(group: Path) -> bool:
    for name in _MARKS:
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _is_own(group: Path) -> bool:
    me = os.geteuid()
    with suppress(OSError):
        return me != 0 and group.stat().st_uid == me
    return False


def enter(group: Path) -> None:
    """Move the calling process into a group; what it forks later is born there."""
    (group / "cgroup.procs").write_text("0")


def populated(group: Path) -> bool:
    """Does anything live in this group or below it?"""
    try:
        return "populated 1" in (group / "cgroup.events").read_text("ascii")
    except OSError:
        return False


def kill(group: Path) -> None:
    """Kill all that is in this group and below it."""
    try:
        (group / "cgroup.kill").write_text("1")
    except OSError:
        # Kernels before 5.14 have no such file; whoever asks again gets those forked meanwhile.
        for procs in group.rglob("cgroup.procs"):
            _kill_listed(procs)


def _kill_listed(procs: Path) -> None:
    with suppress(OSError, ValueError):
        for word in procs.read_text("ascii").split():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(word), signal.SIGKILL)


def remove(group: Path) -> bool:
    """Take an empty group away with what was made in it; False while something lives there."""
    for below, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(below)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def end(group: Path) -> bool:
    """Kill what is left in a group; True when it is empty and gone."""
    if populated(group):
        kill(group)
        return False
    return remove(group)


class Groups:
    """The groups of one generation of one pool, below a delegated one."""

    def __init__(self, base: Path, pool: str, generation: str) -> None:
        """Raises OSError where no group can be made there."""
        self._base = base
        self._pool = f"{_PREFIX}{pool}-"
        self._own = base / f"{self._pool}{generation}"
        self._own.mkdir()

    def make(self, number: int) -> Path | None:
        """Make the group of one task process, or None where the kernel allows no more."""
        group = self._own / str(number)
        try:
            group.mkdir()
        except OSError:
            return None
        return group

    def leftovers(self) -> list[Path]:
        """Groups of earlier generations of this pool."""
        try:
            names = os.listdir(self._base)
        except OSError:
            return []
        return [
            self._base / name
            for name in names
            if name.startswith(self._pool) and name != self._own.name
        ]

    def close(self) -> None:
        """Take this generation's group away; nothing lives in it any more."""
        remove(self._own)
