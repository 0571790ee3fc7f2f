"""What the daemon asks of its pool of task processes, and what the pool tells it.

This file must not know how processes are made or watched.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Hashable, Mapping

from msgspec import Struct

from blackroad.errors import EnvironmentProblem


class Run(Struct, frozen=True):
    """One task to run: give `work` or `work_path`, and code where the work is a function.

    Units  `deadline_ms` is of the boot-time clock, 0 for none: the fork server kills the task by
           then even when the daemon is stopped.
    """

    work: bytes = b""
    work_path: str = ""
    code_digest: bytes = b""
    code: bytes = b""
    code_path: str = ""
    task_id: str = ""
    token: tuple[int, int] = (0, 0)
    attempt: int = 1
    node: str = ""
    environment: Mapping[str, str] = {}
    deadline_ms: int = 0


class Finished(Struct, frozen=True):
    """The task ran to its end; a large result stands in the file `path`, not in `result`.

    `result` is a payload, or an encoded failure where `status` is "failed".
    """

    key: Hashable
    status: str
    result: bytes
    path: str
    digest: bytes
    size: int
    facts: dict[str, int | str]


class Crashed(Struct, frozen=True):
    """The process died under the task; `lost` where that was not the task's own doing.

    `started` is off only where there certainly was no process.
    """

    key: Hashable
    signal: int | None
    exit_status: int | None
    text: str
    lost: bool = False
    started: bool = True


class Gone(Struct, frozen=True):
    """A killed task: every process of it is verified to be gone."""

    key: Hashable
    why: str


class Output(Struct, frozen=True):
    """What a task printed; stream 1 or 2, as the descriptors are numbered."""

    key: Hashable
    stream: int
    data: bytes


class Clean(Struct, frozen=True):
    """Nothing that an earlier life of this pool started runs any more."""

    killed: int


class Problem(Struct, frozen=True):
    """The pool cannot do its work for now; it goes on trying."""

    error: EnvironmentProblem


PoolEvent = Finished | Crashed | Gone | Output | Clean | Problem


def crash(key: Hashable, status: int) -> Crashed:
    """Put a wait status into words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "unknown"
        text = f"the task process was ended by signal {number} ({name})"
        if number == signal.SIGKILL:
            text += "; the kernel does so when memory runs out"
        return Crashed(key, number, None, text)
    code = os.WEXITSTATUS(status)
    return Crashed(key, None, code, f"the task process left with status {code} (os._exit?)")
