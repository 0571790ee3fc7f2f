"""What a damaged row of the journal comes to: every task ends, none runs twice at once."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from blackroad.bus import messages as m
from blackroad.ids import Token, incarnation
from blackroad.router.effects import AttemptRow, EndRow, TaskRow
from blackroad.router.records import TaskState
from blackroad.store.verdicts import LOST, NOBODY, Damage, Kept, somewhere, stand_ins
from tests.unit.builders import INC, NO_FACTS, PEER, OwnerBench, of_kind, outcome, spec, task_id
from tests.unit.owner_words import BOUND_MS, says, state, stop

TOKEN = Token(INC, 1)
NOTHING: frozenset[str] = frozenset()


def task(number: int, **changes: Any) -> TaskRow:
    return TaskRow(task_id(number), spec(**changes), None, b"work", False, 0)


def attempt(number: int) -> AttemptRow:
    return AttemptRow(task_id(number), TOKEN, ((PEER, INC),), False, True, 1, 0, 0, 0)


def end(number: int) -> EndRow:
    return EndRow(task_id(number), m.End.DONE, "", b"42", NO_FACTS, PEER, 1)


def kept(*rows: TaskRow | AttemptRow | EndRow, named: tuple[int, ...] = ()) -> Kept:
    return Kept(
        {row.task: row for row in rows if isinstance(row, TaskRow)},
        {row.task: row for row in rows if isinstance(row, AttemptRow)},
        {row.task: row for row in rows if isinstance(row, EndRow)},
        frozenset(map(task_id, named)),
    )


def damaged(table: str, number: int) -> list[Damage]:
    return [Damage(table, task_id(number), b"?", "wrong checksum")]


def lost(number: int) -> TaskRow:
    return TaskRow(task_id(number), LOST, None, b"", False, 0)


def ends(rows: list[Any]) -> dict[bytes, tuple[m.End, str]]:
    return {row.task: (row.end, row.reason) for row in rows if isinstance(row, EndRow)}


UNKNOWN = (m.End.UNKNOWN, "lost")


# --- rows -----------------------------------------------------------------------------------------


def test_nothing_damaged_changes_nothing() -> None:
    whole = kept(task(1), task(2), attempt(1), end(2), task(3), named=(1, 2, 3))
    assert stand_ins(whole, [], NOTHING) == []


def test_a_lost_task_that_was_queued_ends_unknown() -> None:
    rows = stand_ins(kept(task(1)), damaged("task", 2), NOTHING)
    assert rows[0] == lost(2)
    assert ends(rows) == {task_id(2): UNKNOWN}
    assert len(rows) == 2


def test_a_lost_task_that_only_the_index_names_ends_unknown() -> None:
    rows = stand_ins(kept(task(1), named=(1, 2)), [], NOTHING)
    assert ends(rows) == {task_id(2): UNKNOWN}


def test_a_lost_task_keeps_its_outcome() -> None:
    assert stand_ins(kept(end(2)), damaged("task", 2), NOTHING) == [lost(2)]


def test_a_lost_task_that_may_run_is_stopped() -> None:
    wish = replace(attempt(2), stop=m.End.UNKNOWN, stop_reason="lost")
    assert stand_ins(kept(attempt(2)), damaged("task", 2), NOTHING) == [lost(2), wish]


def test_a_lost_task_whose_attempt_was_over_ends_unknown() -> None:
    over = replace(attempt(2), members=())
    assert ends(stand_ins(kept(over), damaged("task", 2), NOTHING)) == {task_id(2): UNKNOWN}


def test_task_and_attempt_lost_together() -> None:
    both = damaged("task", 2) + damaged("attempt", 2)
    wish = replace(somewhere(task_id(2), 1), stop=m.End.UNKNOWN, stop_reason="lost")
    assert stand_ins(kept(task(1)), both, NOTHING) == [lost(2), wish]


def test_a_lost_attempt_may_be_anywhere() -> None:
    rows = stand_ins(kept(task(1), task(2)), damaged("attempt", 2), NOTHING)
    assert rows == [somewhere(task_id(2), 1)]
    assert somewhere(task_id(2), 1).members == ((NOBODY, 0),)


def test_a_lost_attempt_of_a_task_that_ended_is_nothing() -> None:
    assert stand_ins(kept(task(2), end(2)), damaged("attempt", 2), NOTHING) == []


def test_a_lost_outcome_is_unknown_and_not_run_again() -> None:
    rows = stand_ins(kept(task(1), task(2)), damaged("outcome", 2), NOTHING)
    assert ends(rows) == {task_id(2): UNKNOWN}
    assert len(rows) == 1


def test_a_lost_debt_is_no_tasks_matter() -> None:
    rows = stand_ins(kept(task(1)), [Damage("spool", b"key", b"?", "wrong")], NOTHING)
    assert rows == []


def test_rows_lost_without_a_name_hold_whatever_may_run() -> None:
    whole = kept(task(1), attempt(1), task(2), end(2), task(3), task(4))
    for damage, unreadable in (
        ([], frozenset({"attempt"})),
        ([], frozenset({"outcome"})),
        ([Damage("attempt", b"\x00", b"?", "wrong")], NOTHING),
        (damaged("outcome", 99), NOTHING),
    ):
        rows = stand_ins(whole, damage, unreadable)
        assert rows == [somewhere(task_id(3), 1), somewhere(task_id(4), 2)]


# --- what the owner makes of them -----------------------------------------------------------------


def restarted(*rows: TaskRow | AttemptRow | EndRow) -> OwnerBench:
    bench = OwnerBench(nodes=(PEER,), inc=incarnation(8, 5))
    book = kept(*rows)
    bench.owner.restore(
        list(book.tasks.values()), list(book.attempts.values()), list(book.ends.values()), 0
    )
    bench.owner.check()
    bench.allow(PEER=4)
    return bench


def test_what_may_run_anywhere_is_held_for_a_full_bound() -> None:
    """R-lease-12, R-lease-3: nobody can prove it ended but the bound."""
    bench = restarted(task(1), somewhere(task_id(1), 1))
    sent = [one for at in range(0, BOUND_MS, 500) for one in bench.tick(at)]
    assert of_kind(sent, m.Grant) == []
    bench.beat(PEER, BOUND_MS)
    bench.tick(BOUND_MS + 1_000)
    granted = of_kind(bench.flush(BOUND_MS + 1_000), m.Grant)
    assert [one.task for one in granted] == [task_id(1)]
    bench.owner.check()


def test_a_once_task_that_may_have_run_ends_unknown() -> None:
    """P5: it runs at most once."""
    bench = restarted(task(1, once=True), somewhere(task_id(1), 1))
    bench.tick(BOUND_MS + 1_000)
    ended = bench.owner.tasks[task_id(1)].ended
    assert ended is not None
    assert (ended.end, ended.reason) == UNKNOWN


def stopped() -> OwnerBench:
    return restarted(*stand_ins(kept(attempt(1)), damaged("task", 1), NOTHING))


def test_a_lost_task_is_stopped_and_ends_after_the_proof() -> None:
    """P7 holds for *unknown*, too."""
    bench = stopped()
    assert stop(TOKEN) in bench.turn(0)
    assert state(bench) is not TaskState.ENDED
    says(bench, 100, outcome(TOKEN, status=m.Status.STOPPED))
    ended = bench.owner.tasks[task_id(1)].ended
    assert ended is not None
    assert (ended.end, ended.reason) == UNKNOWN


def test_a_lost_task_that_was_done_first_is_done() -> None:
    bench = stopped()
    says(bench, 100, outcome(TOKEN))
    ended = bench.owner.tasks[task_id(1)].ended
    assert ended is not None
    assert ended.end is m.End.DONE


def test_a_lost_task_that_is_never_heard_of_ends_by_its_bound() -> None:
    bench = stopped()
    bench.tick(BOUND_MS + 1_000)
    ended = bench.owner.tasks[task_id(1)].ended
    assert ended is not None
    assert (ended.end, ended.reason) == UNKNOWN
    assert of_kind(bench.flush(BOUND_MS + 1_000), m.Grant) == []
