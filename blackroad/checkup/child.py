"""The facts of a machine, gathered in a child process that may hang, for a daemon that may not.

Edge.  The child has the daemon's user, limits and control group, so it sees what the daemon sees.
This file must not know what the facts are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from blackroad.checkup.machine import Wish, facts
from blackroad.discovery.children import die_with_parent, limit_memory, private_stdout
from blackroad.discovery.line_child import LineChild

LIMIT_S: Final = 20
FRESH_MS: Final = 5_000
MEMORY_BYTES_MAX: Final = 1024 * 1024 * 1024
NICENESS: Final = 5

Watch = Callable[[int, Callable[[], None]], None]
Unwatch = Callable[[int], None]


class Checkup:
    """The daemon's end: at most one child at a time, and its last answer for a few seconds."""

    def __init__(
        self,
        wish: Callable[[], Wish],
        clock: Callable[[], int],
        watch: Watch,
        unwatch: Unwatch,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._wish = wish
        self._clock = clock
        self._watch, self._unwatch = watch, unwatch
        self._env = env
        self._child: LineChild | None = None
        self._began_ms = 0
        self._facts: dict[str, Any] | None = None
        self._problem = ""
        self._ended_ms = 0

    def told(self) -> dict[str, Any]:
        """Begin, go on, or tell: "running" (ask again), "done" with facts, "failed" with a problem.

        Cost  the start of a process where the last answer is older than 5 s; never a wait.
        """
        now_ms = self._clock()
        if self._child is not None:
            if now_ms - self._began_ms > LIMIT_S * 1000:
                return self._hangs(self._child.pid)
            self._read()
        elif not self._ended_ms or now_ms - self._ended_ms > FRESH_MS:
            self._begin(now_ms)
        if self._child is not None:
            return {"state": "running"}
        if self._facts is None:
            return {"state": "failed", "problem": self._problem}
        return {"state": "done", "facts": self._facts}

    def _hangs(self, pid: int) -> dict[str, Any]:
        """End it without waiting for that: who hangs in the kernel dies when the disk answers."""
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return {
            "state": "failed",
            "problem": f"it did not end within {LIMIT_S} s; does a disk hang?",
        }

    def _begin(self, now_ms: int) -> None:
        child = LineChild("blackroad.checkup.child", (), self._env)
        self._child, self._began_ms = child, now_ms
        self._watch(child.fileno(), self._read)
        child.tell(msgspec.json.encode(self._wish()))

    def _read(self) -> None:
        child = self._child
        if child is None:
            return
        lines = child.lines()
        if lines:
            try:
                self._end(msgspec.json.decode(lines[0], type=dict[str, Any]), "")
            except (msgspec.MsgspecError, ValueError):
                self._end(None, "its answer cannot be read")
        elif not child.pid:
            self._end(None, "its process ended early; is the machine out of memory?")

    def _end(self, found: dict[str, Any] | None, problem: str) -> None:
        child, self._child = self._child, None
        self._facts, self._problem = found, problem
        self._ended_ms = self._clock()
        if child is not None:
            self._unwatch(child.fileno())
            child.close()

    def close(self) -> None:
        """End the child, if one runs."""
        if self._child is not None:
            self._end(None, "the daemon stops")


def main() -> int:
    """Read one wish from standard input, print the facts on one line, and end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    die_with_parent(options.parent)
    out = private_stdout()
    limit_memory(MEMORY_BYTES_MAX)
    # Ends it whatever a library waits for.
    signal.alarm(LIMIT_S)
    os.nice(NICENESS)
    line = sys.stdin.buffer.readline()
    if line:
        out.write(json.dumps(facts(msgspec.json.decode(line, type=Wish))) + "\n")
        out.flush()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Libraries may have left threads behind.
    os._exit(status)
