"""What `/proc` says of processes: whose they are, what they cost, and who else was busy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
QUIET_PERCENT = 6.0
# Some systems never use less than 8 % of a processor.
SETTLE_SHARE = 0.15
SETTLE_STEP_S = 0.2
SETTLE_QUIET = 2
SETTLE_S = 4.0
_SET_SUBREAPER = 36  # prctl(2)


def adopt_orphans() -> None:
    """Let what descendants leave behind become children of this process, so that it is found."""
    ctypes.CDLL(None).prctl(_SET_SUBREAPER, 1, 0, 0, 0)


def end_in_order() -> None:
    """Let SIGTERM end this program as an exception does: with all that it started."""
    me = os.getpid()

    def end(number: int, _frame: object) -> None:
        if os.getpid() != me:
            # A copy of this process, made by a pool: it has nothing to put in order.
            os._exit(128 + number)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _fields(pid: int) -> list[str]:
    """The fields of a process's stat line from its state on; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def below(pid: int) -> list[int]:
    """All living descendants of a process, nearest first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _fields(int(name))
            if fields and fields[0] not in "ZX":
                children.setdefault(int(fields[1]), []).append(int(name))
    found = list(children.get(pid, ()))
    for one in found:
        found += children.get(one, ())
    return found


def cpu_s(pids: list[int], *, ended: bool = False) -> float:
    """Processor seconds these processes have used, with `ended` also what they have reaped."""
    last = 15 if ended else 13
    return sum(sum(map(int, _fields(pid)[11:last])) for pid in pids) / TICKS_PER_S


def pss_mib(pids: list[int]) -> float:
    """Proportional memory: a page that several share is divided among them."""
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kib += sum(int(row.split()[1]) for row in text.splitlines() if row.startswith("Pss:"))
    return kib / 1024


def end_all_below(pid: int, but: Collection[int] = ()) -> None:
    """Kill every descendant but some, and reap those that are children of this process."""
    killed: set[int] = set()
    for _ in range(10):
        left = [one for one in below(pid) if one not in but]
        for one in left:
            with contextlib.suppress(OSError):
                os.kill(one, signal.SIGKILL)
        for one in killed:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one, os.WNOHANG)
        if not left:
            return
        killed.update(left)
        time.sleep(0.02)


def reap() -> None:
    """Take note of all ended children, also of those that were adopted: their time is ours."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


class Others:
    """How busy the machine is with what does not belong to this process, from now on.

    The hypervisor's share counts too.  Processes whose parent ignores their end are taken for
    somebody else's.
    """

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._busy_s, self._own_s = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        user, nice, system, _, _, _, _, steal = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        own = [os.getpid(), *below(os.getpid())]
        return (user + nice + system + steal) / TICKS_PER_S, cpu_s(own, ended=True)

    def percent(self) -> float:
        """Their part of all processors' time since this was made."""
        busy_s, own_s = self._now()
        whole_s = (time.monotonic() - self._began_s) * (os.cpu_count() or 1)
        foreign_s = (busy_s - self._busy_s) - (own_s - self._own_s)
        return 100 * max(0.0, foreign_s) / max(whole_s, 1e-3)


def settle(processes: Callable[[], list[int]]) -> None:
    """Let a system finish what it does at its start: it uses little for a moment, or time is up."""
    until_s = time.monotonic() + SETTLE_S
    quiet = 0
    while quiet < SETTLE_QUIET and time.monotonic() < until_s:
        before = {one: cpu_s([one]) for one in processes()}
        time.sleep(SETTLE_STEP_S)
        used_s = sum(cpu_s([one]) - before.get(one, 0.0) for one in processes())
        quiet = quiet + 1 if used_s <= SETTLE_SHARE * SETTLE_STEP_S else 0


def wait_quiet(limit_s: float) -> None:
    """Wait until others have left the processors alone for a second, or the time is up."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        others = Others()
        time.sleep(1)
        if others.percent() <= QUIET_PERCENT:
            return
