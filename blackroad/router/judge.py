"""Who decides what becomes of tasks, as attempts see that one; an attempt in words and rows.

Pure.  This file must not know how an attempt lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from blackroad.bus.messages import Early, Outcome, Reason, Status
from blackroad.router.effects import AttemptRow

if TYPE_CHECKING:
    from blackroad.router.records import Attempt, ClassState, Task, Use


class Judge(Protocol):
    """Who decides what becomes of a task."""

    def attempt_done(self, task: Task, outcome: Outcome, node: bytes, now_ms: int) -> None:
        """An attempt is done: set the outcome."""

    def attempt_lost(self, attempt: Attempt, now_ms: int) -> None:
        """The last proof of an attempt that is not done is here."""

    def welcomes(self, outcome: Outcome) -> Task | None:
        """The task that an outcome without a live attempt still counts for."""

    def again(self, task: Task, now_ms: int) -> None:
        """Another attempt may run beside a silent one."""

    def room(self, cls: ClassState) -> None:
        """Something of this class ended."""

    def refused(self, use: Use, reason: Reason, now_ms: int) -> None:
        """That worker would not take this class now."""

    def early(
        self, tasks: Sequence[Task], before: Sequence[Early], node: bytes, now_ms: int
    ) -> None:
        """These tasks of a bundle are done."""

    def unbegun(self, tasks: Sequence[Task], now_ms: int) -> None:
        """These tasks of a bundle never began there, and never will: no late word of it counts."""


def why_of(outcome: Outcome) -> str:
    """How it ended, for people; what the task itself has to say stands in its result."""
    name = outcome.status.name.lower()
    text = outcome.facts.text
    plain = outcome.status is Status.FAILED or name.startswith(text)
    return name if plain else f"{name}: {text}"


def attempt_row(task: Task, attempt: Attempt) -> AttemptRow:
    """What the journal says of an attempt; of one that has ended, only the counts."""
    members = tuple((one.node, one.inc) for one in attempt.members) if attempt.live() else ()
    stop, stop_reason = task.stop or (None, "")
    return AttemptRow(
        task.id,
        attempt.token,
        members,
        attempt.isolated,
        attempt.going,
        task.tries,
        task.crashes,
        task.losses,
        task.killers,
        task.failures,
        stop,
        stop_reason,
        attempt.lease_ms,
    )
