"""What a damaged row of the journal means for its task, and for everything else nothing.

Pure.  Whatever cannot be known is decided so that no two attempts overlap, no outcome is set twice,
and each task that was accepted ends: run again where that is allowed, *unknown* where it is not.
This file must not know how rows are stored.

A task's own row is lost: what it was cannot be known, so it ends *unknown*; if an attempt may
still run, only after that is over.  Its outcome stands if that row is whole.

An attempt's row is lost: it may run on any node that ever was, under the lease of its task.  It is
taken over as an attempt on a node that nobody is: it ends by its bound, a full one from the start
of this life, and then counts as lost; a `once` task ends *unknown* with it.

An outcome's row is lost: it may have been told, so the task must not run again; it ends *unknown*.

A row of the spool is lost: its owner takes this node's new life for the proof that the attempt is
over, and runs the task again.

Rows are lost and nobody can say of which tasks: each task without an outcome and without an attempt
is treated as if an attempt's row were lost.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from blackroad.bus.messages import ClassSpec, End, Facts
from blackroad.ids import TASK_BYTES, Token
from blackroad.requirements import Needs
from blackroad.router.effects import AttemptRow, EndRow, TaskRow

# A node that there is not: no key has this hash, so no Hello, Heartbeat or Outcome comes from it.
NOBODY = bytes(16)
LOST = ClassSpec(Needs().to_wire(), name="damaged", once=True)
_TASK_TEXT = "the journal's row of this task was damaged on the disk"
_OUTCOME_TEXT = "the task had ended, and its outcome was damaged on the disk"


class Damage(NamedTuple):
    """One row that is not what was written: its table, its key as found, its bytes, and why."""

    table: str
    key: bytes
    row: bytes
    reason: str


class Kept(NamedTuple):
    """Rows of tasks that are whole, by task; and every task that some index still names."""

    tasks: dict[bytes, TaskRow]
    attempts: dict[bytes, AttemptRow]
    ends: dict[bytes, EndRow]
    named: frozenset[bytes]


def stand_ins(
    kept: Kept, damaged: list[Damage], unreadable: frozenset[str]
) -> list[TaskRow | AttemptRow | EndRow]:
    """Rows to write in place of those that are lost; `unreadable` tables may lack any row."""
    keys: dict[str, set[bytes]] = {"task": set(), "attempt": set(), "outcome": set()}
    for one in damaged:
        if one.table in keys and len(one.key) == TASK_BYTES:
            keys[one.table].add(one.key)
    named = kept.named | kept.tasks.keys() | keys["task"] | kept.attempts.keys() | kept.ends.keys()
    # A damaged key names nobody's task: then it may be anybody's.
    anybody = bool(unreadable & {"attempt", "outcome"}) or any(
        one.table in ("attempt", "outcome") and one.key not in named for one in damaged
    )
    rows: list[TaskRow | AttemptRow | EndRow] = []
    # A journal may be damaged twice: tokens of stand-ins must differ, too.
    serial = max(
        (row.token.serial for row in kept.attempts.values() if not row.token.inc), default=0
    )
    for task in sorted(named):
        lost = task not in kept.tasks
        if lost:
            rows.append(TaskRow(task, LOST, None, b"", False, 0))
        if task in kept.ends:
            continue
        if task in keys["outcome"]:
            rows.append(_unknown(task, _OUTCOME_TEXT))
            continue
        attempt = kept.attempts.get(task)
        if attempt is None and (anybody or task in keys["attempt"]):
            serial += 1
            attempt = somewhere(task, serial)
            if not lost:
                rows.append(attempt)
        if lost and attempt is not None and attempt.members:
            rows.append(_stopped(attempt))
        elif lost:
            rows.append(_unknown(task, _TASK_TEXT))
    return rows


def _unknown(task: bytes, text: str) -> EndRow:
    return EndRow(task, End.UNKNOWN, "lost", b"", Facts(text=text), b"", 1)


def _stopped(attempt: AttemptRow) -> AttemptRow:
    """The same attempt, which is to end so that its task ends *unknown*."""
    return replace(attempt, stop=End.UNKNOWN, stop_reason="lost")


def somewhere(task: bytes, serial: int) -> AttemptRow:
    """An attempt of which nothing is known but that it may run."""
    token = Token(0, serial)
    return AttemptRow(task, token, ((NOBODY, 0),), False, True, 1, 0, 0, 0)
