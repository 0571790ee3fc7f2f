"""Edge: runs a program inside a task process.

Its output goes wherever the task's own output goes.  This file must not know tasks or payloads.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Ending = tuple[int | None, str, str]


def run(argv: Sequence[str], env: Mapping[str, str], cwd: str, stdin: object, node: str) -> Ending:
    """Run a program to its end; return (exit status, kind of failure, what to tell the user).

    The status is negative where a signal ended it and None where it never began; the two texts
    are empty where all went well.
    """
    program = argv[0]
    environment = {**os.environ, **env}
    with _input(stdin) as source:
        try:
            process = subprocess.Popen(
                argv, env=environment, cwd=cwd or None, stdin=source or subprocess.DEVNULL
            )
        except (OSError, ValueError) as error:
            return None, *_not_started(error, program, environment, cwd, node)
    status = process.wait()
    if status == 0:
        return 0, "", ""
    if status > 0:
        return status, "CommandFailed", f"`{program}` exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    return status, "CommandFailed", f"`{program}` was ended by signal {-status} ({name})"


class _input:
    """A file in memory that the program reads: it can be of any size and needs no thread."""

    def __init__(self, data: object) -> None:
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogateescape")
        if not isinstance(data, bytes | bytearray):
            raise TypeError(f"stdin must be bytes or text, not {type(data).__name__}")
        self._data = data
        self._fd: int | None = None

    def __enter__(self) -> int | None:
        if not self._data:
            return None
        self._fd = os.memfd_create("stdin")
        rest = memoryview(self._data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        os.lseek(self._fd, 0, os.SEEK_SET)
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)


def _not_started(
    error: Exception, program: str, environment: Mapping[str, str], cwd: str, node: str
) -> tuple[str, str]:
    where = f"node {node}" if node else "the node"
    kind = type(error).__name__
    if cwd and not os.path.isdir(cwd):
        return kind, f"`{program}` cannot start: {where} has no directory `{cwd}`"
    if isinstance(error, FileNotFoundError):
        path = environment.get("PATH", os.defpath)
        if shutil.which(program, path=path) is not None:
            return kind, f"`{program}` cannot start: the interpreter it names is not on {where}"
        return kind, f"{where} has no program `{program}`; install it, or ask for a node with it"
    if isinstance(error, PermissionError):
        return kind, f"`{program}` on {where} may not be executed"
    if isinstance(error, OSError):
        machine = platform.machine()
        return kind, f"`{program}` cannot start on {where} ({machine}): {error.strerror}"
    return kind, f"`{program}` cannot start: {error}"
