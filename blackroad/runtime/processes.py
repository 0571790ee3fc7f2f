"""Edge: Linux processes, seen through /proc, and how to be sure that they are gone.

This file must not know pools, tasks or messages.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Entry(NamedTuple):
    """One line of the process table; (pid, start_ticks) never names two processes."""

    pid: int
    parent: int
    group: int
    state: str
    start_ticks: int

    @property
    def alive(self) -> bool:
        """A zombie runs nothing any more."""
        return self.state not in "ZX"


def entry(pid: int) -> Entry | None:
    """Read one process, or None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except OSError:
        return None
    # The name in parentheses may hold anything, parentheses and spaces included.
    fields = line[line.rindex(b")") + 2 :].split()
    return Entry(pid, int(fields[1]), int(fields[2]), fields[0].decode(), int(fields[19]))


def table() -> list[Entry]:
    """Read all processes.

    Cost  about 15 us for each process of the machine.
    """
    found = (entry(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [item for item in found if item is not None]


def below(roots: Iterable[Entry], entries: list[Entry]) -> list[Entry]:
    """Return `roots` and everything that descends from them, parents first."""
    children: dict[int, list[Entry]] = {}
    for item in entries:
        children.setdefault(item.parent, []).append(item)
    found = list(roots)
    for item in found:
        found.extend(children.get(item.pid, ()))
    return found


def kill_exactly(item: Entry) -> None:
    """Kill this very process, never another one that got its number meanwhile."""
    with suppress(ProcessLookupError, PermissionError):
        handle = os.pidfd_open(item.pid)
        try:
            now = entry(item.pid)
            if now is not None and now.start_ticks == item.start_ticks:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def kill_group(group: int) -> None:
    """Kill a whole process group at once, so that a fork bomb in it has no time to go on."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def marked(variable: str, prefix: str) -> list[tuple[Entry, str]]:
    """Find processes whose environment at their start had `variable` begin with `prefix`."""
    wanted = f"{variable}={prefix}".encode()
    found = []
    for item in table():
        try:
            with open(f"/proc/{item.pid}/environ", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        for word in words:
            if word.startswith(wanted):
                found.append((item, word.partition(b"=")[2].decode("utf-8", "replace")))
                break
    return found


def boot_ms() -> int:
    """Read the boot-time clock, which also counts while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process, so that none can get away."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, even if it died just now."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
