"""What a running task may know about itself.

This file must not know processes or pools: the task process sets the context, user code reads it.
"""

from __future__ import annotations

from typing import NamedTuple

from blackroad.ids import text32


class TaskContext(NamedTuple):
    """The attempt that runs now.

    `token` is (incarnation, serial): it only grows from one attempt of a task to the next, so a
    resource that remembers the highest token it has seen can refuse a forgotten earlier attempt.
    """

    task: bytes
    token: tuple[int, int]
    attempt: int
    node: str

    @property
    def task_id(self) -> str:
        """The task's id, as it is printed."""
        return text32(self.task)

    def environment(self) -> dict[str, str]:
        """Spell the context as environment variables, for commands."""
        return {
            "BLACKROAD_TASK_ID": self.task_id,
            "BLACKROAD_TOKEN": f"{self.token[0]}/{self.token[1]}",
            "BLACKROAD_ATTEMPT": str(self.attempt),
            "BLACKROAD_NODE": self.node,
        }


_current: TaskContext | None = None


def current() -> TaskContext | None:
    """Return the context of the task this process runs, or None outside of a task."""
    return _current


def enter(context: TaskContext | None) -> None:
    """Say which task begins, or None when it has ended."""
    global _current
    _current = context
