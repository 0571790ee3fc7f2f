"""What the daemon asks of its pool of task processes, and what the pool tells it.

This file must not know how processes are made or watched.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Hashable, Mapping, Sequence

from msgspec import Struct

from blackroad.bus.messages import Early, Small
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
    task: bytes = b""
    token: tuple[int, int] = (0, 0)
    attempt: int = 1
    node: str = ""
    environment: Mapping[str, str] = {}
    deadline_ms: int = 0
    # A bundle: the tasks that run after it, with the same code.
    more: Sequence[Small] = ()

    @property
    def inline_bytes(self) -> int:
        """How much of it travels in one packet, but for names."""
        return len(self.work) + len(self.code) + sum([len(one.work) for one in self.more])

    @property
    def kind(self) -> tuple[tuple[str, str], ...]:
        """What the environment of its process has to be."""
        return tuple(sorted(self.environment.items())) if self.environment else ()


class Finished(Struct, frozen=True):
    """The task ran to its end; a large result stands in the file `path`, not in `result`.

    Of a bundle this is the last task that began, and those `before` it are done.

    `result` is a payload, or an encoded failure where `status` is "failed".
    """

    key: Hashable
    status: str
    result: bytes
    path: str
    digest: bytes
    size: int
    facts: dict[str, int | str]
    before: tuple[Early, ...] = ()


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
    before: tuple[Early, ...] = ()


class Gone(Struct, frozen=True):
    """A killed task: every process of it is verified to be gone."""

    key: Hashable
    why: str
    before: tuple[Early, ...] = ()


class Apart(Struct, frozen=True):
    """A bundle was divided: these are done, the next one runs, and nothing further begins."""

    key: Hashable
    before: tuple[Early, ...]


class Returned(Struct, frozen=True):
    """What was handed ahead was taken back: it has not begun, and will not."""

    key: Hashable


class Output(Struct, frozen=True):
    """What a task printed; stream 1 or 2, as the descriptors are numbered.

    `place` is that of the task in its bundle.
    """

    key: Hashable
    stream: int
    data: bytes
    place: int = 0


class Clean(Struct, frozen=True):
    """Nothing that an earlier life of this pool started runs any more."""

    killed: int


class Problem(Struct, frozen=True):
    """The pool cannot do its work for now; it goes on trying."""

    error: EnvironmentProblem


PoolEvent = Finished | Crashed | Gone | Apart | Returned | Output | Clean | Problem


def crash(key: Hashable, status: int, before: tuple[Early, ...] = ()) -> Crashed:
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
        return Crashed(key, number, None, text, before=before)
    code = os.WEXITSTATUS(status)
    text = f"the task process left with status {code} (os._exit?)"
    return Crashed(key, None, code, text, before=before)
