"""The functions that every measured system runs; one definition for all of them.

Importing this file costs a worker nothing: NumPy is loaded by the tasks that compute with it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

DARTS = 2_000_000
STEP_S = 0.05
LINGER_S = 0.02


def noop(value: Any) -> Any:
    """Give back what came: the least a task can do that can still be checked."""
    return value


def echo(array: Any) -> Any:
    """Give an array back."""
    return array


def whoami(_: Any) -> int:
    """Tell the process; slowly, so that one worker cannot take what is meant for two."""
    time.sleep(LINGER_S)
    return os.getpid()


def pi(seed: int) -> float:
    """Estimate pi by Monte Carlo: some tens of milliseconds of one core."""
    import numpy as np

    chance = np.random.default_rng(seed)
    across, up = chance.random(DARTS), chance.random(DARTS)
    return float(4.0 * np.count_nonzero(across * across + up * up <= 1.0) / DARTS)


def slow(number: int, log: str) -> int:
    """Sleep, and write to a log when that began and ended."""
    _write(log, f"start {number} {os.getpid()}\n")
    time.sleep(STEP_S)
    _write(log, f"done {number} {os.getpid()}\n")
    return number


def _write(path: str, line: str) -> None:
    """Append one line; a short write to a file opened for appending is never torn."""
    file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(file, line.encode())
    os.close(file)


class Diary:
    """What the slow tasks of one run wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _lines(self, word: str) -> list[list[str]]:
        text = self.path.read_text() if self.path.exists() else ""
        rows = [line.split() for line in text.splitlines()]
        return [row for row in rows if len(row) == 3 and row[0] == word]

    def starts(self) -> list[tuple[int, int]]:
        """Each start so far, in order: the task and the process it began in."""
        return [(int(number), int(pid)) for _, number, pid in self._lines("start")]

    def twice(self) -> tuple[int, int]:
        """How many tasks were started more than once, and how many of them ended twice."""
        counted = []
        for word in ("start", "done"):
            numbers = [row[1] for row in self._lines(word)]
            counted.append(sum(numbers.count(one) > 1 for one in set(numbers)))
        return counted[0], counted[1]
