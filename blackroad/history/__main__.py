"""The process that writes the history: `python -m blackroad.history`, started by the daemon.

Edge.  It reads the spool and writes into the database, for as long as its standard input is open;
a line there says that something new was spooled.  On standard output it says, a JSON object a
line, when it can no longer write and when it can again.  The address, which may hold a password,
is the first line of its input.  This file must not know who started it.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any, Final

from blackroad.discovery.children import die_with_parent, private_stdout
from blackroad.errors import BlackroadError

IDLE_MS: Final = 5_000
BUSY_MS: Final = 500
AGAIN_MS: Final = 1_000
AGAIN_MS_MAX: Final = 5_000
TIDY_MS: Final = 3_600_000
TIDY_FIRST_MS: Final = 30_000


class Writer:
    """Takes the spool in again and again, and waits longer while the database is away."""

    def __init__(self, url: str, directory: Path, keep_days: int, say: Any) -> None:
        from blackroad.history.database import Database
        from blackroad.history.ingest import Ingest

        self._database = Database(url)
        self._ingest = Ingest(self._database, directory)
        self._directory = directory
        self._keep_days = keep_days
        self._say = say
        self._ready = False
        self._problem = ""
        self._again_ms = AGAIN_MS
        self._tidy_due_ms = _boot_ms() + TIDY_FIRST_MS

    def turn(self) -> int:
        """Write what there is; return for how many milliseconds there is nothing to do."""
        from blackroad.history.spool import reading

        try:
            with reading(self._directory) as mine:
                if not mine:
                    return BUSY_MS
                if not self._ready:
                    self._database.prepare()
                    self._ready = True
                self._ingest.run()
                self._told("")
                self._tidy()
        except BlackroadError as error:
            return self._later(error.message)
        except OSError as error:
            # Such as a disk that the kernel has made read-only.
            return self._later(f"{error.filename or self._directory}: {error.strerror or error}")
        self._again_ms = AGAIN_MS
        return IDLE_MS

    def _later(self, problem: str) -> int:
        self._ready = False
        self._told(problem)
        self._again_ms = min(AGAIN_MS_MAX, 2 * self._again_ms)
        return self._again_ms

    def _tidy(self) -> None:
        if _boot_ms() < self._tidy_due_ms:
            return
        from blackroad.history.retention import tidy

        tidy(self._database, self._keep_days, time.time_ns() // 1_000_000)
        self._tidy_due_ms = _boot_ms() + TIDY_MS

    def _told(self, problem: str) -> None:
        if problem != self._problem:
            self._say({"problem": problem, "refused": self._ingest.refused})
        self._problem = problem


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _first_line() -> str:
    """Read the address, and nothing of what follows it."""
    line = b""
    while (letter := os.read(0, 1)) not in (b"", b"\n"):
        line += letter
    return line.decode()


def _wait(limit_ms: int) -> bool:
    """Wait for a line or for the time; False when nobody wants this process any more."""
    if select.select([0], [], [], limit_ms / 1000)[0]:
        return bool(os.read(0, 4096))
    return True


def main(words: list[str]) -> int:
    """Write until standard input is closed, and then what is left."""
    parent, directory, keep_days = int(words[0]), Path(words[1]), int(words[2])
    die_with_parent(parent)
    os.nice(5)
    out = private_stdout()

    def say(told: dict[str, Any]) -> None:
        out.write(json.dumps(told) + "\n")

    try:
        writer = Writer(_first_line(), directory, keep_days, say)
    except BlackroadError as error:
        say({"problem": error.message, "hint": error.hint, "fatal": True})
        return error.exit_code
    say({"ready": True})
    idle_ms = writer.turn()
    while _wait(idle_ms):
        idle_ms = writer.turn()
    writer.turn()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
