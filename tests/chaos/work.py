"""What the tasks of the suite do: sleep, and write their own history.

They run in task processes of nodes, possibly under a false clock, and believe nobody: their time
is the kernel's, asked for without the library in between.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
from typing import Any

_BOOTTIME = 7
_SYSCALL = {"x86_64": 228, "aarch64": 113}


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def true_boot_ms() -> int:
    """The boot-time clock as the kernel has it, whatever a library says."""
    libc = ctypes.CDLL(None, use_errno=True)
    spec = _Timespec()
    number = _SYSCALL[os.uname().machine]
    if libc.syscall(number, _BOOTTIME, ctypes.byref(spec)):
        raise OSError(ctypes.get_errno(), "clock_gettime")
    return int(spec.seconds) * 1000 + int(spec.nanoseconds) // 1_000_000


def append(path: str, event: dict[str, Any]) -> None:
    """Add one line in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(event, separators=(",", ":")).encode() + b"\n")
    finally:
        os.close(fd)


def sleeper(task: str, place: str, ms: int, beat_ms: int, result_bytes: int = 0) -> str:
    """Sleep for `ms`, and write when it started, that it lives, and when it stopped.

    The lock is the kernel's: it is free again only when the process that took it has ended.
    """
    from blackroad.runtime.context import current

    context = current()
    assert context is not None
    inc, serial = context.token
    mine: dict[str, Any] = {
        "task": task,
        "attempt": context.attempt,
        "token": f"{inc}/{serial}",
        "node": context.node,
        "pid": os.getpid(),
    }
    history = f"{place}/history"
    lock = os.open(f"{place}/locks/{task}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    alone = True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        alone = False
    start_ms = true_boot_ms()
    append(history, {**mine, "what": "start", "boot_ms": start_ms, "alone": alone})
    # Time that passes for nobody, while the machine is frozen, counts as time slept.
    while (left_ms := start_ms + ms - true_boot_ms()) > 0:
        select.select([], [], [], min(beat_ms, left_ms) / 1000)
        append(history, {**mine, "what": "beat", "boot_ms": true_boot_ms()})
    made = f"{task} {mine['token']}" + "." * result_bytes
    short = made[:80]
    append(history, {**mine, "what": "stop", "boot_ms": true_boot_ms(), "result": short})
    os.close(lock)
    return made
