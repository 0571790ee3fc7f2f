"""Edge: appends to a history of chaos, and reads it.

A line is one write to a file opened for appending, so that many processes may write at once and a
killed one tears its own line at most.  This file must not know what lines mean.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from blackroad.cli.chaos_history import History, parse
from blackroad.errors import EnvironmentProblem


def boot_ms() -> int:
    """The boot-time clock, which counts suspend and is one for all processes of a machine."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def append(path: str | Path, what: str, **facts: Any) -> int:
    """Write one line with the present time; return that time.

    A fault is written before it is done, so that nothing that follows from it comes first.

    Raises  EnvironmentProblem where the file cannot be written.
    """
    now_ms = boot_ms()
    line = json.dumps({"what": what, **facts, "boot_ms": now_ms}, separators=(",", ":")) + "\n"
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
    except OSError as error:
        raise EnvironmentProblem(
            f"{path}: cannot be written: {error.strerror}",
            hint="make room, or choose another --keep",
        ) from error
    return now_ms


def read_end(path: str | Path, size: int) -> History:
    """Read what the last `size` bytes tell.

    Raises  EnvironmentProblem where the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return parse(file.read())
    except FileNotFoundError:
        return History()
    except OSError as error:
        raise EnvironmentProblem(
            f"{path}: cannot be read: {error.strerror}", hint="check the path"
        ) from error


def read(path: str | Path) -> History:
    """Read what has been written so far; nothing written is an empty history.

    Raises  EnvironmentProblem where the file cannot be read.
    """
    try:
        return parse(Path(path).read_bytes())
    except FileNotFoundError:
        return History()
    except OSError as error:
        raise EnvironmentProblem(
            f"{path}: cannot be read: {error.strerror}", hint="check the path"
        ) from error
