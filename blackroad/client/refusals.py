"""What a daemon refuses, as exceptions.

This file must not know sockets or threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.errors import (
    BlackroadError,
    DiskProblem,
    TaskError,
    Unplaceable,
    Unreachable,
    UsageError,
)

if TYPE_CHECKING:
    from blackroad.bus import messages as m


def rejection(rejected: m.Rejected, task_id: str) -> BaseException:
    """What a future of a task that was not taken raises."""
    if rejected.reason == "unplaceable":
        rows = [(row.item, row.asked, row.nearest, row.verdict) for row in rejected.rows]
        return Unplaceable(
            rejected.text,
            rows=rows,
            nodes_answered=rejected.nodes,
            task_id=task_id,
            hint="ask for less, or wait for a node that has it: `wait_for_node=True`, "
            "`blackroad submit --wait-for-node`",
        )
    if rejected.reason in ("needs", "conflict"):
        return UsageError(rejected.text)
    if rejected.reason == "no_space":
        message, _, hint = rejected.text.partition(": ")
        return DiskProblem(message, hint=hint)
    return TaskError(f"the daemon did not take the task: {rejected.text}", task_id=task_id)


def query_error(text: str) -> BlackroadError:
    """What a question raises that was answered with an error."""
    if text.startswith("unreachable"):
        return Unreachable(text, hint="`blackroad nodes` shows who is there")
    return UsageError(text, hint="`blackroad tasks` lists what is known")
