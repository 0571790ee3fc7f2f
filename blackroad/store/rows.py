"""What journal rows rest on besides the journal: objects, and the wall clock.

Pure.  The node counts in boot-time milliseconds, which mean nothing after a restart; a row keeps
its deadline by the wall clock, and gets back what remains of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from blackroad.bus.messages import Ref
from blackroad.router.effects import EndRow, JournalRow, SpoolRow, TaskRow


def objects_of(rows: Iterable[JournalRow]) -> set[bytes]:
    """Digests of the objects without which these rows are worth nothing."""
    found = set()
    for row in rows:
        match row:
            case TaskRow():
                refs: tuple[object, ...] = (row.code, row.work)
            case EndRow():
                refs = (row.result,)
            case SpoolRow():
                refs = (row.outcome.result,)
            case _:
                continue
        found |= {ref.digest for ref in refs if isinstance(ref, Ref)}
    return found


def by_wall_clock(rows: Iterable[JournalRow], wall_ms: int) -> tuple[JournalRow, ...]:
    """Rows as they are written: a deadline as a time of the wall clock."""
    return tuple(
        msgspec.structs.replace(row, deadline_ms=wall_ms + row.deadline_ms)
        if isinstance(row, TaskRow) and row.deadline_ms
        else row
        for row in rows
    )


def remaining(rows: Sequence[TaskRow], wall_ms: int) -> list[TaskRow]:
    """Rows as they are read back: what is left of each deadline, at least a moment."""
    return [
        msgspec.structs.replace(row, deadline_ms=max(1, row.deadline_ms - wall_ms))
        if row.deadline_ms
        else row
        for row in rows
    ]
