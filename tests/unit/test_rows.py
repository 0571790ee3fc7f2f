"""What journal rows rest on: objects and the wall clock."""

from __future__ import annotations

from blackroad.bus import messages as m
from blackroad.ids import Token
from blackroad.router.effects import EndRow, ForgetRow, SpoolRow, TaskRow
from blackroad.store.rows import by_wall_clock, objects_of, remaining
from tests.unit.builders import INC, NO_FACTS, PEER, outcome, spec, task_id


def ref(number: int) -> m.Ref:
    return m.Ref(bytes([number]) * 32, 100_000)


def task(deadline_ms: int = 0, code: m.Ref | None = None, work: m.Payload = b"") -> TaskRow:
    return TaskRow(task_id(1), spec(), code, work, False, deadline_ms)


def test_objects_of_rows() -> None:
    rows = [
        task(code=ref(1), work=ref(2)),
        task(work=b"inline"),
        EndRow(task_id(1), m.End.DONE, "", ref(3), NO_FACTS, PEER, 1),
        SpoolRow(PEER, outcome(Token(INC, 1), result=ref(4))),
        ForgetRow(task_id(2)),
    ]
    assert objects_of(rows) == {ref(number).digest for number in (1, 2, 3, 4)}


def test_a_deadline_goes_on_counting_while_the_owner_is_down() -> None:
    """R-time-1: what remained of a deadline is the wall clock's to say."""
    written = by_wall_clock([task(60_000), task(), ForgetRow(task_id(2))], 1_000_000)
    assert written == (task(1_060_000), task(), ForgetRow(task_id(2)))
    read = [row for row in written if isinstance(row, TaskRow)]
    assert remaining(read, 1_045_000) == [task(15_000), task()]


def test_a_deadline_that_passed_meanwhile_leaves_a_moment() -> None:
    assert remaining([task(1_060_000)], 2_000_000) == [task(1)]
