"""The owner and its clients: submit, durable order, cancel, deadline, session end."""

from __future__ import annotations

from typing import Any

import pytest

from blackroad.bus import messages as m
from blackroad.ids import Token
from blackroad.requirements import Needs
from blackroad.router import bulk
from blackroad.router.effects import (
    Effect,
    EndRow,
    Fetch,
    ForgetRow,
    Persist,
    Pin,
    TaskRow,
    Tell,
    Unpin,
)
from blackroad.router.records import TaskState
from tests.unit.builders import (
    CLIENT,
    INC,
    ME,
    NO_FACTS,
    OTHER,
    PEER,
    SESSION,
    OwnerBench,
    digest,
    of_kind,
    outcome,
    renew,
    spec,
    submit,
    task_id,
)
from tests.unit.owner_words import (
    BOUND_MS,
    HELD,
    NEWER,
    OWN,
    RUNNING,
    WAITING,
    accepted,
    ack,
    done,
    durable,
    ended,
    forbid,
    grant_of,
    killed_twice,
    refused,
    rejected,
    row_of,
    running,
    says,
    state,
    stop,
    taken,
)

# --- submit --------------------------------------------------------------------------------------


def test_an_attached_task_is_accepted_and_granted_in_one_turn() -> None:
    """R-submit-1, cold submit: attached: set in memory, and Accepted at once."""
    bench = OwnerBench()
    bench.allow(PEER=1)
    assert bench.submit(1) == [taken(1), grant_of(OWN, share=1)]


def test_without_a_table_it_waits() -> None:
    """R-demand-5: an owner with a live coordinator asks it first."""
    bench = OwnerBench()
    assert bench.submit(1) == [taken(1)]
    assert state(bench) is TaskState.QUEUED


def test_the_same_submit_gets_the_same_answer() -> None:
    """R-submit-4: a known id and the same content."""
    bench = OwnerBench()
    bench.submit(1)
    assert bench.submit(1, 2) == [accepted(1), taken(2)]
    assert len(bench.owner.tasks) == 2


def test_what_its_session_has_seen_is_not_begun_again() -> None:
    """R-submit-4: a Submit that was said before Seen and is read after it."""
    bench = OwnerBench()
    token = bench.granted()
    says(bench, 100, outcome(token))
    bench.owner.on_seen(SESSION, (task_id(1),))
    assert bench.submit(1, now_ms=200) == [accepted(1)]
    code = m.Ref(digest(1), 70_000)
    assert bench.submit(1, code=code, now_ms=250) == [accepted(1)]
    both = bench.submit(1, 2, now_ms=300)
    assert both[:2] == [accepted(1), taken(2)]
    assert [task.id for task in bench.owner.tasks.values()] == [task_id(2)]


def test_what_ended_with_an_earlier_session_is_new_work() -> None:
    """R-submit-2: nobody has seen its outcome, and who opens that session again asks anew."""
    bench = OwnerBench()
    token = bench.granted()
    says(bench, 100, outcome(token))
    bench.owner.end_session(SESSION, 200)
    bench.owner.sessions.open(CLIENT, m.Open(SESSION, 600_000), 300)
    bench.submit(1, now_ms=300)
    assert [task.id for task in bench.owner.tasks.values()] == [task_id(1)]


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": (m.Item(task_id(1), b"other"),)},
        {"spec": spec(name="other")},
        {"durable": True},
    ],
)
def test_other_content_under_the_same_id_is_a_conflict(changes: dict[str, Any]) -> None:
    """R-submit-4: the content is spec, code, durable flag and work."""
    bench = OwnerBench()
    bench.submit(1)
    assert rejected(bench.submit(1, **changes)) == [("conflict", 1)]


@pytest.mark.parametrize("durable", [False, True])
def test_a_task_that_one_submit_names_twice_is_one_task(durable: bool) -> None:
    """R-submit-4: a client that repeats itself may do so within one message."""
    bench = OwnerBench()
    item = m.Item(task_id(1), b"work")
    effects = bench.submit(1, tasks=(item, m.Item(task_id(2), b"work"), item), durable=durable)
    assert len(bench.owner.tasks) == 2
    assert sum(cls.queued for cls in bench.owner.classes.values()) == 2
    assert effects.count(taken(1, 2)) == (0 if durable else 1)
    assert sum(isinstance(one, Persist) for one in effects) == durable


def test_an_id_with_two_works_in_one_submit_is_a_conflict() -> None:
    bench = OwnerBench()
    twice = (m.Item(task_id(1), b"work"), m.Item(task_id(1), b"other"))
    assert rejected(bench.submit(1, tasks=twice)) == [("conflict", 1)]
    assert [task.work for task in bench.owner.tasks.values()] == [b"work"]


def test_a_task_that_was_isolated_is_still_the_same_task() -> None:
    """R-submit-10: moving to the isolated class changes nothing of what was submitted."""
    bench = OwnerBench()
    killed_twice(bench)
    forbid(bench)
    assert bench.submit(1) == [accepted(1)]


def test_without_a_session_nothing_is_taken() -> None:
    """Section 5: Submit without a session is Rejected *session*."""
    bench = OwnerBench()
    assert rejected(bench.submit(1, session=b"x" * 16)) == [("session", 1)]


def test_needs_that_cannot_be_read_are_rejected() -> None:
    """R-submit-5."""
    assert rejected(OwnerBench().submit(1, 2, spec=spec(b"\xff"))) == [("needs", 2)]


def test_what_nobody_can_run_waits_for_an_answer_and_is_rejected_then() -> None:
    """R-submit-6: answered when the owner lived for 2 s, with the shortfall."""
    bench = OwnerBench()
    large = spec(Needs(cpu=64).to_wire(), name="big")
    assert bench.submit(1, spec=large) == []
    assert bench.tick(1999) == []
    [told] = of_kind(bench.tick(2000), m.Rejected)
    assert (told.reason, told.nodes) == ("unplaceable", 2)
    assert [(row.item, row.asked) for row in told.rows] == [("cpu", "64")]
    assert "big" in told.text
    assert not bench.owner.tasks


def test_a_copy_that_waits_for_nodes_is_not_begun_when_the_task_is_over() -> None:
    """R-submit-6: a repetition takes the place of the Submit that waits."""
    bench = OwnerBench(nodes=())
    assert bench.submit(1, spec=spec(gang=2), now_ms=100) == []
    bench.meet(PEER, 200)
    assert bench.submit(1, spec=spec(gang=2), now_ms=300) == [taken(1)]
    bench.owner.on_cancel(CLIENT, m.Cancel((task_id(1),)), 400)
    bench.owner.on_seen(SESSION, (task_id(1),))
    assert of_kind(bench.turn(400), m.Ended)
    bench.owner.memory.recent.clear()
    assert bench.turn(5_000) == []
    assert not bench.owner.tasks


def test_a_table_ends_the_waiting() -> None:
    """R-submit-6: the answer waits until the owner has had an Allocation."""
    bench = OwnerBench()
    bench.submit(1, spec=spec(Needs(cpu=64).to_wire()))
    told = m.Allocation(m.Epoch(1, OTHER), 1, INC, 1, ())
    bench.owner.on_allocation(OTHER, told, 0)
    assert rejected(bench.turn(100)) == [("unplaceable", 1)]


def test_a_gang_needs_that_many_nodes() -> None:
    """R-submit-6: no node present could meet the needs, so many of them."""
    bench = OwnerBench()
    bench.submit(1, spec=spec(gang=3))
    assert rejected(bench.tick(2000)) == [("unplaceable", 1)]


def test_wait_for_node_is_accepted_and_queued() -> None:
    """R-submit-6: with `wait_for_node` it is Accepted and stays queued."""
    bench = OwnerBench()
    large = spec(Needs(cpu=64).to_wire())
    assert bench.submit(1, spec=large, wait_for_node=True) == [taken(1)]


def test_objects_are_pulled_before_the_answer() -> None:
    """R-submit-5: the owner pulls what it lacks from the client, and only then says Accepted."""
    bench = OwnerBench()
    code = m.Ref(digest(1), 70_000)
    assert bench.submit(1, code=code) == [Fetch(code, ME, CLIENT)]
    assert bench.submit(2, code=code) == []
    bench.owner.on_fetched(code.digest, 50)
    assert bench.turn(50) == [Pin(code.digest), taken(1), taken(2)]


def test_objects_that_cannot_be_had_reject_the_submit() -> None:
    """R-submit-5, R-object-5: *no_object*."""
    bench = OwnerBench()
    bench.submit(1, 2, code=m.Ref(digest(1), 70_000))
    bench.owner.on_fetch_failed(digest(1), "gone", 50)
    assert rejected(bench.turn(50)) == [("no_object", 2)]


# --- durable order -------------------------------------------------------------------------------


def test_durable_nothing_is_told_or_granted_before_the_flush() -> None:
    """R-submit-1, R-lease-1: no Accepted and no Grant before their rows are on disk."""
    bench = OwnerBench()
    bench.allow(PEER=1)
    task = TaskRow(task_id(1), spec(), None, b"work", False, 0)
    assert bench.submit(1, durable=True) == [Persist((task, row_of(OWN)), 1)]
    assert bench.tick(3000) == []
    assert bench.flush(3001) == [accepted(1), grant_of(OWN, flags=8, share=1)]


def test_a_repeated_durable_submit_waits_for_the_flush_too() -> None:
    """R-submit-4, R-submit-1: the same answer, and not a moment earlier."""
    bench = OwnerBench()
    bench.submit(1, durable=True)
    assert bench.submit(1, durable=True) == []
    assert bench.flush(10) == [accepted(1), accepted(1)]


def test_durable_the_end_is_flushed_before_ended_and_outcome_ack() -> None:
    """R-submit-1, R-outcome-3: neither Ended nor OutcomeAck leaves before."""
    bench = OwnerBench()
    token = durable(bench)
    facts = m.Facts(run_us=5000)
    row = EndRow(task_id(1), m.End.DONE, "", b"42", facts, PEER, 1)
    assert says(bench, 100, outcome(token)) == [Persist((row,), 2)]
    assert says(bench, 200, outcome(token)) == []
    assert bench.flush(300) == [done(), ack(token, token)]


def test_a_stop_while_writing_sends_no_grant() -> None:
    """R-cancel-1: writing: the Grant is not sent; the outcome is set when the flush returns."""
    bench = OwnerBench()
    bench.allow(PEER=1)
    bench.submit(1, durable=True)
    bench.owner.on_cancel(CLIENT, m.Cancel((task_id(1),)), 10)
    [wish] = of_kind(bench.turn(10), Persist)
    assert wish.rows[0].stop is m.End.CANCELLED
    effects = bench.flush(20)
    assert not of_kind(effects, m.Grant)
    assert of_kind(effects, Persist)[0].rows[-1].end is m.End.CANCELLED
    assert bench.flush(30) == [ended(1, m.End.CANCELLED, "cancelled")]


def test_a_restart_of_the_worker_while_writing_sends_no_grant() -> None:
    """Table: writing, flushed but newer incarnation: ended, unsent, queued again."""
    bench = OwnerBench()
    bench.allow(PEER=1)
    bench.submit(1, durable=True)
    bench.meet(PEER, 10, NEWER)
    bench.owner.on_incarnation(PEER, NEWER, 10)
    bench.turn(10)
    effects = bench.flush(20)
    assert [one.token for one in of_kind(effects, m.Grant)] == []
    [again] = of_kind(bench.flush(30), m.Grant)
    assert (again.token, again.inc) == (Token(INC, 2), NEWER)


# --- cancel, deadline, session end ---------------------------------------------------------------


def cancel(bench: OwnerBench, now_ms: int) -> list[Effect]:
    bench.owner.on_cancel(CLIENT, m.Cancel((task_id(1), task_id(77))), now_ms)
    bench.owner.check()
    return bench.turn(now_ms)


def cancelled(**changes: Any) -> Tell:
    return ended(1, m.End.CANCELLED, "cancelled", **changes)


def test_cancel_of_a_queued_task_is_told_at_once() -> None:
    """R-cancel-1: without a live attempt the outcome is set."""
    bench = OwnerBench()
    bench.submit(1)
    assert cancel(bench, 10) == [cancelled(node=b"", attempts=0)]
    assert cancel(bench, 20) == []


@pytest.mark.parametrize("listed", [None, WAITING, HELD, RUNNING])
def test_cancel_of_a_granted_task_waits_for_proof(listed: m.AttemptState | None) -> None:
    """R-cancel-1, P7: Recall stop every R; the last proof sets the outcome."""
    bench = OwnerBench()
    token = bench.granted()
    forbid(bench)
    if listed is not None:
        says(bench, 50, renew(1000, (token, listed)))
    assert cancel(bench, 100) == [stop(token)]
    assert cancel(bench, 150) == []
    assert bench.tick(1099) == []
    assert bench.tick(1100) == [stop(token)]
    assert bench.tick(2100) == [stop(token)]
    assert says(bench, 2200, refused(token)) == [cancelled()]


def test_a_stopped_outcome_ends_a_cancelled_task() -> None:
    """R-cancel-1: the Outcome *stopped* is proof as well."""
    bench = OwnerBench()
    token = bench.granted()
    running(bench, token)
    cancel(bench, 200)
    stopped = outcome(token, status=m.Status.STOPPED, result=b"", facts=m.Facts(text="stop"))
    assert says(bench, 300, stopped) == [cancelled(facts=m.Facts(text="stop")), ack(token)]


def test_done_first_is_done() -> None:
    """R-cancel-1: work that was *done* first is done; the cancel finds nothing to do."""
    bench = OwnerBench()
    token = bench.granted()
    cancel(bench, 100)
    assert says(bench, 200, outcome(token)) == [done(), ack(token)]
    assert cancel(bench, 300) == []


def test_cancel_ends_with_the_bound_at_the_latest() -> None:
    """P7: *cancelled* is told only when every process is proven ended."""
    bench = OwnerBench()
    running(bench, bench.granted(), 0)
    cancel(bench, 100)
    for now_ms in range(1000, BOUND_MS, 1000):
        assert not of_kind(bench.tick(now_ms), m.Ended)
    assert of_kind(bench.tick(BOUND_MS + 1000), m.Ended)


def test_a_deadline_expires_the_task() -> None:
    """R-cancel-1, R-submit-9: counts from acceptance; a queued task ends at once."""
    bench = OwnerBench()
    bench.submit(1, deadline_ms=5000, now_ms=100)
    assert bench.owner.next_deadline_ms() <= 5100
    assert bench.tick(5099) == []
    assert bench.tick(5100) == [ended(1, m.End.EXPIRED, "deadline", node=b"", attempts=0)]


def test_a_deadline_stops_what_runs() -> None:
    """R-cancel-1: else all members are stopped and the last proof sets the outcome."""
    bench = OwnerBench()
    token = bench.granted(deadline_ms=5000)
    running(bench, token)
    assert bench.tick(5000) == [stop(token)]
    stopped = outcome(token, status=m.Status.STOPPED, result=b"", facts=NO_FACTS)
    assert says(bench, 5100, stopped) == [ended(1, m.End.EXPIRED, "deadline"), ack(token)]


def test_a_session_takes_its_attached_tasks_along() -> None:
    """Section 5, R-cancel-1: attached tasks end as by Cancel; durable ones go on."""
    bench = OwnerBench()
    token = bench.granted()
    bench.submit(2, durable=True)
    bench.flush(0)
    effects = bench.tick(700_000)
    assert stop(token) in effects
    assert task_id(2) in bench.owner.tasks
    assert bench.owner.tasks[task_id(2)].stop is None
    forbid(bench)
    says(bench, 700_100, refused(token))
    assert task_id(1) not in bench.owner.tasks


def test_nobody_is_told_after_the_session() -> None:
    """R-submit-8: Ended is repeated until Seen or until the session is over."""
    bench = OwnerBench()
    bench.submit(1)
    effects = bench.tick(700_000)
    assert not of_kind(effects, Tell)
    assert not bench.owner.tasks


def test_ended_is_repeated_until_seen() -> None:
    """R-submit-8: after 2 s, doubled, until Seen."""
    bench = OwnerBench()
    token = bench.granted()
    says(bench, 100, outcome(token))
    told = [now_ms for now_ms in range(500, 9000, 500) if of_kind(bench.tick(now_ms), m.Ended)]
    assert told == [2500, 6500]
    bench.owner.on_seen(SESSION, (task_id(1),))
    assert not of_kind([x for at in range(9000, 15_000, 500) for x in bench.tick(at)], m.Ended)
    assert task_id(1) not in bench.owner.tasks


def test_a_durable_outcome_is_kept_until_retention_ends() -> None:
    """R-submit-8, P3: the same answer for whoever asks again, until it is forgotten."""
    bench = OwnerBench()
    token = durable(bench)
    says(bench, 100, outcome(token))
    bench.flush(200)
    bench.owner.on_seen(SESSION, (task_id(1),))
    assert bench.submit(1, durable=True, now_ms=300) == [accepted(1), done()]
    bench.owner.forget_durable(task_id(1))
    assert bench.turn(400) == [Persist((ForgetRow(task_id(1)),), 3)]


def test_pins_follow_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """R-object-2: an owner pins work and code until the outcome, a result as long as that.

    Functions that were used lately stay, so that the next task finds them without asking.
    """
    monkeypatch.setattr(bulk, "WARM_CODES_MAX", 1)
    bench = OwnerBench()
    bench.allow(PEER=1)
    code, ref = m.Ref(digest(1), 70_000), m.Ref(digest(2), 90_000)
    bench.owner.on_submit(CLIENT, submit(1, code=code), 0)
    bench.turn(0)
    bench.owner.on_fetched(code.digest, 10)
    [granted] = of_kind(bench.turn(10), m.Grant)
    says(bench, 20, outcome(granted.token, result=ref))
    bench.owner.on_fetched(ref.digest, 30)
    effects = bench.turn(30)
    assert of_kind(effects, Pin) == [Pin(ref.digest)]
    assert of_kind(effects, Unpin) == []
    bench.owner.on_seen(SESSION, (task_id(1),))
    assert bench.turn(40) == [Unpin(ref.digest)]
    bench.owner.pins.pin(digest(3))
    effects = bench.submit(2, code=m.Ref(digest(3), 10), now_ms=50)
    assert of_kind(effects, Unpin) == [Unpin(code.digest)]
