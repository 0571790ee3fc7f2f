"""The functions that the demo ships to the nodes.

Each is made inside another function, so that it always travels as code and never by its name:
what happens to them is what happens to a function typed at a prompt.  They import what they need
themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def word_counter() -> Callable[[list[str]], tuple[int, dict[str, int]]]:
    """Make a function that counts the words of some files: (bytes read, count by word)."""

    def count_words(paths: list[str]) -> tuple[int, dict[str, int]]:
        import collections
        import re

        word = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
        size = 0
        found: collections.Counter[str] = collections.Counter()
        for path in paths:
            with open(path, "rb") as file:
                text = file.read()
            size += len(text)
            found.update(word.findall(text.decode("utf-8", "replace")))
        return size, dict(found)

    return count_words


def searcher(pattern: str) -> Callable[[str], dict[str, int]]:
    """Make a function that searches one file: how often each first group was found."""

    def search(path: str) -> dict[str, int]:
        import collections
        import re

        with open(path, encoding="utf-8", errors="replace") as file:
            return dict(collections.Counter(re.findall(pattern, file.read())))

    return search


def introducer() -> Callable[[], dict[str, str]]:
    """Make a function that says where it runs."""

    def introduce() -> dict[str, str]:
        import platform

        from blackroad.runtime.context import current

        here = current()
        return {"node": here.node if here else "", "machine": platform.machine()}

    return introduce


def reader() -> Callable[[list[str]], float]:
    """Make a function with a mistake in it."""

    def mean_temperature(readings: list[str]) -> float:
        degrees = [float(reading.removesuffix("C")) for reading in readings]
        return sum(degrees) / len(degrees)

    return mean_temperature


def diarist() -> Callable[[str, str, float], int]:
    """Make a function that notes each of its starts, then waits until it may go on."""

    def keep_diary(diary: str, gate: str, patience_s: float) -> int:
        import json
        import os
        import time

        from blackroad.runtime.context import current

        here = current()
        if here is None:
            raise RuntimeError("this runs as a task only")
        line: dict[str, Any] = {
            "attempt": here.attempt,
            "token": list(here.token),
            "node": here.node,
            "pid": os.getpid(),
            "monotonic_s": time.monotonic(),
        }
        with open(diary, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        until = time.monotonic() + patience_s
        while not os.path.exists(gate):
            if time.monotonic() > until:
                raise TimeoutError(f"nobody made {gate}")
            time.sleep(0.02)
        return here.attempt

    return keep_diary
