"""The orders retry, drain, resume and cancel: what each changes and answers (R-query-2)."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from blackroad.bus import messages as m
from blackroad.ids import Token, incarnation, task_text, text32
from blackroad.limits import RETENTION_MS
from blackroad.node import Drain, Finished, Flushed, Heard, Node, Space, Tick
from blackroad.router import memory, sessions
from blackroad.router.effects import (
    AttemptRow,
    Effect,
    EndRow,
    KeepDrain,
    Kill,
    Persist,
    Publish,
    Send,
    Start,
    TaskRow,
)
from blackroad.router.records import TaskState
from blackroad.router.retry import retry as again
from tests.unit.builders import (
    INC,
    ME,
    NO_FACTS,
    PEER,
    SESSION,
    OwnerBench,
    beat,
    client,
    digest,
    grant,
    make_node,
    of_kind,
    outcome,
    spec,
    submit,
    task_id,
    worker,
)
from tests.unit.owner_words import durable, rejected, row_of, says, state, stop

OLD, NEW = task_id(1), b"n" * 16
FAILED = {"status": m.Status.FAILED, "result": b"why", "facts": NO_FACTS}


def opened() -> Node:
    node = make_node()
    node.handle(client(m.Open(SESSION, 600_000)), 0)
    return node


def ask(node: Node, name: str, now_ms: int = 100, **args: Any) -> list[Effect]:
    return node.handle(client(m.Query(7, b"", name, msgpack.packb(args) if args else b"")), now_ms)


def retry(node: Node, new: bytes = NEW, old: bytes = OLD, now_ms: int = 100) -> list[Effect]:
    return ask(node, "retry", now_ms, task=text32(old), new=new)


def flushed(node: Node, now_ms: int = 100) -> list[Effect]:
    """Everything written so far is on disk."""
    return node.handle(Flushed(node.out.mark), now_ms)


def answer(effects: list[Effect]) -> dict[str, Any]:
    [reply] = of_kind(effects, m.Reply)
    assert reply.error == ""
    found: dict[str, Any] = msgpack.unpackb(reply.body)
    return found


def refusal(effects: list[Effect]) -> str:
    [reply] = of_kind(effects, m.Reply)
    assert reply.body == b""
    return str(reply.error)


def failed_on_disk() -> Node:
    """A node with one durable task that has failed there."""
    node = opened()
    node.handle(client(submit(1, durable=True)), 10)
    [started] = of_kind(flushed(node), Start)
    node.handle(Finished(started.key, **FAILED), 20)
    flushed(node)
    flushed(node)
    return node


def failed(**changes: Any) -> Node:
    """A node with one task that has failed there and whose client knows."""
    node = opened()
    [started] = of_kind(node.handle(client(submit(1, **changes)), 10), Start)
    node.handle(Finished(started.key, **FAILED), 20)
    node.handle(client(m.Seen((OLD,))), 30)
    return node


# --- retry ----------------------------------------------------------------------------------------


def test_retry_submits_the_work_anew_as_a_durable_task() -> None:
    """R-isolate-2, R-submit-1: journaled first, then told, then granted."""
    node = failed(spec=spec(name="render"))
    written = retry(node)
    [persisted] = of_kind(written, Persist)
    assert persisted.rows[0] == TaskRow(NEW, spec(name="render"), None, b"work", False, 0)
    assert not of_kind(written, m.Reply)
    assert not of_kind(written, Start)
    on_disk = flushed(node)
    told = answer(on_disk)
    assert (told["id"], told["durable"], told["state"]) == (task_text(ME, NEW), True, "queued")
    [started] = of_kind(on_disk, Start)
    assert (started.task, started.work) == (NEW, b"work")


def test_the_same_retry_again_is_the_same_task() -> None:
    """R-query-2: each sets a state and may be repeated."""
    node = failed()
    retry(node)
    flushed(node)
    assert answer(retry(node))["id"] == task_text(ME, NEW)
    assert [id_ for id_ in node.owner.tasks if id_ != OLD] == [NEW]
    other = b"m" * 16
    retry(node, other)
    assert other in node.owner.tasks


def test_a_repeated_retry_is_answered_when_the_old_task_is_forgotten() -> None:
    """What was submitted is the client's, whatever became of the old story."""
    node = failed()
    retry(node)
    flushed(node)
    node.owner.memory.recent.clear()
    assert answer(retry(node))["id"] == task_text(ME, NEW)
    assert "no task" in refusal(retry(node, b"m" * 16))


def test_an_id_that_stands_for_something_else_is_refused() -> None:
    """R-submit-4: other content under a known id is a conflict."""
    node = failed()
    node.handle(client(submit(2, spec=spec(name="other"))), 40)
    assert "different work" in refusal(retry(node, task_id(2)))
    assert "different work" in refusal(retry(failed_on_disk(), OLD))


@pytest.mark.parametrize("end", [m.End.CANCELLED, m.End.EXPIRED, m.End.UNKNOWN, m.End.QUARANTINED])
@pytest.mark.parametrize("kept", [False, True])
def test_whatever_did_not_end_well_can_be_tried_again(end: m.End, kept: bool) -> None:
    """`retry` takes every end but *done*."""
    bench = OwnerBench()
    token = durable(bench) if kept else bench.granted()
    task = bench.owner.tasks[OLD]
    bench.owner.runs.stop(task.attempts[0], 50)
    task.stop = (end, "by the test")
    says(bench, 100, outcome(token, status=m.Status.STOPPED))
    if kept:
        bench.flush(110)
    assert task.ended is not None
    assert task.ended.end is end
    bench.owner.on_seen(SESSION, (OLD,))
    made = again(bench.owner, task, NEW, 120)
    assert (made.work, made.durable, made.state) == (b"work", True, TaskState.QUEUED)
    bench.owner.check()


def test_a_quarantined_task_is_free_again() -> None:
    """R-isolate-2: `retry` frees it: it runs with others, and its past counts no more."""
    bench = OwnerBench()
    bench.granted()
    task = bench.owner.tasks[OLD]
    task.killers = 2
    bench.owner.isolate(task)
    bench.owner.stop(task, m.End.QUARANTINED, "poison", 10)
    says(bench, 20, outcome(task.attempts[0].token, status=m.Status.STOPPED))
    made = again(bench.owner, task, NEW, 30)
    assert (made.killers, made.cls.spec.isolated, made.cls.spec) == (0, False, spec())


def test_done_running_and_unknown_tasks_are_refused_with_advice() -> None:
    node = opened()
    [started] = of_kind(node.handle(client(submit(1)), 10), Start)
    assert "has not ended: `blackroad cancel`" in refusal(retry(node))
    node.handle(Finished(started.key, m.Status.DONE, b"42", NO_FACTS), 20)
    assert "is done: submit it anew" in refusal(retry(node))
    assert "no task" in refusal(retry(node, old=task_id(9)))
    assert NEW not in node.owner.tasks


@pytest.mark.parametrize("args", [{}, {"task": "a"}, {"task": "a", "new": b"short"}, {"new": NEW}])
def test_a_retry_that_cannot_be_read_is_refused(args: dict[str, Any]) -> None:
    """R-frame-4: checked before anything is done."""
    assert "query `retry`" in refusal(ask(failed(), "retry", **args))


def test_work_that_is_gone_is_said_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept within bounds: beyond them the answer says what to do."""
    monkeypatch.setattr(memory, "SPARE_BYTES_MAX", 3)
    node = failed()
    assert "is not kept any more: submit it anew" in refusal(retry(node))
    assert node.owner.bytes == 0


def test_a_failed_durable_task_keeps_its_work_as_long_as_its_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R-isolate-2: without any other bound."""
    monkeypatch.setattr(memory, "SPARE_BYTES_MAX", 0)
    bench = OwnerBench()
    token = durable(bench)
    says(bench, 100, outcome(token, **FAILED))
    bench.flush(110)
    task = bench.owner.tasks[OLD]
    assert (task.kept, task.work) == (True, b"work")
    bench.owner.tick(100 + RETENTION_MS)
    assert (task.kept, bench.owner.bytes) == (False, 0)


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        (m.End.FAILED, True),
        (m.End.QUARANTINED, True),
        (m.End.CANCELLED, True),
        (m.End.DONE, False),
    ],
)
def test_work_is_kept_over_a_restart(end: m.End, kept: bool) -> None:
    """R-isolate-2 after R-life-1: the journal has the work, and objects are pinned anew."""
    bench = OwnerBench(inc=incarnation(8, 1))
    ref = m.Ref(digest(1), 99)
    rows = [TaskRow(OLD, spec(), None, ref, False, 0)]
    bench.owner.restore(rows, [], [EndRow(OLD, end, "", b"", NO_FACTS, PEER, 1)], 0)
    assert (bench.owner.tasks[OLD].kept, ref.digest in bench.owner.pins) == (kept, kept)


def test_no_retry_while_the_disk_is_full() -> None:
    """A task on disk needs room there."""
    node = failed()
    node.handle(Space(True), 50)
    assert "disk" in refusal(retry(node))
    node.handle(Space(False), 60)
    retry(node)
    assert NEW in node.owner.tasks


# --- cancel ---------------------------------------------------------------------------------------


def test_a_cancel_is_told_when_it_is_on_disk() -> None:
    """R-submit-1: no reply shows a state before that state is flushed."""
    node = opened()
    node.handle(client(submit(1, durable=True)), 10)
    flushed(node)
    effects = ask(node, "cancel", task=text32(OLD))
    [wish] = of_kind(effects, Persist)
    assert [(row.stop, row.stop_reason) for row in wish.rows] == [(m.End.CANCELLED, "cancelled")]
    assert of_kind(effects, Kill)
    assert not of_kind(effects, m.Reply)
    assert answer(flushed(node))["state"] == "cancelling"


def test_an_end_is_told_when_it_is_on_disk() -> None:
    """R-submit-1: neither `status` nor `tasks` runs ahead of the journal."""
    node = opened()
    node.handle(client(submit(1, durable=True)), 10)
    [started] = of_kind(flushed(node), Start)
    node.handle(Finished(started.key, m.Status.DONE, b"42", NO_FACTS), 20)
    flushed(node)
    assert node.owner.tasks[OLD].ended is not None
    assert not of_kind(ask(node, "status", task=text32(OLD)), m.Reply)
    assert not of_kind(ask(node, "tasks"), m.Reply)
    told = [msgpack.unpackb(one.body) for one in of_kind(flushed(node), m.Reply)]
    assert (told[0]["state"], told[1]["counts"]) == ("done", {"done": 1})


def test_a_cancel_outlives_the_owner() -> None:
    """R-cancel-1: what was told as wished is stopped by the next life, too."""
    bench = OwnerBench(nodes=(PEER,), inc=incarnation(8, 1))
    token = Token(INC, 1)
    row = row_of(token, stop=m.End.CANCELLED, stop_reason="cancelled")
    bench.owner.restore([TaskRow(OLD, spec(), None, b"work", False, 0)], [row], [], 0)
    assert stop(token) in bench.turn(0)
    [persisted] = of_kind(says(bench, 100, outcome(token, status=m.Status.STOPPED)), Persist)
    assert (persisted.rows[0].end, persisted.rows[0].reason) == (m.End.CANCELLED, "cancelled")


def test_a_cancelled_attempt_on_the_owners_own_node_ends_with_its_restart() -> None:
    """R-lease-12, R-cancel-1: proven ended, so the wish is fulfilled; it is not run again."""
    bench = OwnerBench(inc=incarnation(8, 1))
    row = row_of(Token(INC, 1), members=((ME, INC),), stop=m.End.CANCELLED, stop_reason="cancelled")
    bench.owner.restore([TaskRow(OLD, spec(), None, b"work", False, 0)], [row], [], 0)
    assert state(bench) is TaskState.ENDED
    bench.owner.check()


def test_a_task_that_was_queued_again_is_not_stopped_by_an_old_wish() -> None:
    """A row without members says only what counts."""
    bench = OwnerBench(inc=incarnation(8, 1))
    row = AttemptRow(OLD, Token(INC, 1), (), False, False, 1, 0, 0, 0)
    bench.owner.restore([TaskRow(OLD, spec(), None, b"work", False, 0)], [row], [], 0)
    assert state(bench) is TaskState.QUEUED


# --- drain and resume -----------------------------------------------------------------------------


def test_drain_takes_nothing_new_and_lets_run_what_runs() -> None:
    """R-life-8: what waits is handed back, what runs ends, and the Heartbeat says so."""
    node = opened()
    node.handle(client(submit(1)), 10)
    effects = ask(node, "drain")
    assert KeepDrain(True) in effects
    told = answer(effects)
    assert (told["draining"], told["running"], told["waiting"]) == (True, 1, 0)
    assert not of_kind(effects, Kill)
    assert not of_kind(node.handle(client(submit(2)), 110), Start)
    [published] = of_kind(node.handle(Tick(), 120), Publish)
    assert published.beat.supply.draining
    assert node.owner.tasks[OLD].attempts


def test_resume_takes_work_again() -> None:
    node = opened()
    ask(node, "drain")
    node.handle(client(submit(1)), 110)
    effects = ask(node, "resume", 120)
    assert KeepDrain(False) in effects
    assert answer(effects)["draining"] is False
    started = [
        one
        for now_ms in range(150, 3000, 50)
        for one in of_kind(node.handle(Tick(), now_ms), Start)
    ]
    assert [one.task for one in started] == [OLD]


def test_a_repeated_drain_changes_and_writes_nothing() -> None:
    """R-query-2: each sets a state and may be repeated."""
    node = opened()
    assert not of_kind(ask(node, "resume"), KeepDrain)
    ask(node, "drain")
    again = ask(node, "drain")
    assert (of_kind(again, KeepDrain), answer(again)["draining"]) == ([], True)


def test_a_stop_of_the_daemon_is_no_order_to_drain() -> None:
    """Only an order is remembered beyond the life."""
    assert not of_kind(opened().handle(Drain(True), 10), KeepDrain)


@pytest.mark.parametrize("name", ["drain", "resume", "retry"])
def test_orders_are_relayed_once(name: str) -> None:
    """R-query-1: to the node concerned, as they are."""
    node = opened()
    node.handle(Heard(beat(PEER, 1)), 100)
    [sent] = of_kind(node.handle(client(m.Query(7, PEER, name, b"\x80")), 110), Send)
    assert (sent.to, sent.message.name, sent.message.args) == (PEER, name, b"\x80")
    assert not node.worker.draining


# --- no space -------------------------------------------------------------------------------------


def test_a_full_disk_refuses_durable_tasks_only() -> None:
    """Rejected *no_space* says what to do; attached tasks are taken as ever."""
    bench = OwnerBench()
    bench.owner.full = True
    effects = bench.submit(1, durable=True)
    assert rejected(effects) == [("no_space", 1)]
    assert "make room" in of_kind(effects, m.Rejected)[0].text
    assert of_kind(bench.submit(2), m.Accepted)
    bench.owner.full = False
    assert of_kind(bench.submit(1, durable=True), Persist)


def test_a_full_disk_fetches_nothing_for_a_task_that_it_will_refuse() -> None:
    """R-object-3 in spirit: refused at once, not after the pull."""
    bench = OwnerBench()
    bench.owner.full = True
    item = m.Item(OLD, m.Ref(digest(1), 99))
    assert rejected(bench.submit(tasks=(item,), durable=True)) == [("no_space", 1)]


def test_what_was_accepted_before_gets_its_answer_again() -> None:
    """R-submit-4: a known id gets the same answer, and its task goes on to its end."""
    bench = OwnerBench()
    token = durable(bench)
    bench.owner.full = True
    effects = bench.submit(1, 2, durable=True)
    assert rejected(effects) == [("no_space", 1)]
    assert of_kind(effects, m.Accepted) == [m.Accepted((OLD,))]
    [persisted] = of_kind(says(bench, 100, outcome(token)), Persist)
    assert persisted.rows[0].end is m.End.DONE


def test_a_full_disk_ends_by_itself() -> None:
    """Event Space: the owner and the worker of a node share a disk."""
    node = opened()
    node.handle(Space(True), 10)
    assert (node.owner.full, node.worker.full) == (True, True)
    node.handle(Space(False), 20)
    assert (node.owner.full, node.worker.full) == (False, False)


DURABLE = int(m.GrantFlag.DURABLE)
CODE = m.Ref(digest(1), 9)


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"flags": DURABLE}, False),
        ({"code": CODE}, False),
        ({"work": CODE}, False),
        ({"flags": DURABLE, "inc": INC - 1}, False),
    ],
)
def test_a_worker_without_room_refuses_what_needs_room(
    changes: dict[str, Any], taken: bool
) -> None:
    """R-lease-7: an outcome to flush or an object to fetch cannot be promised."""
    bench, out = worker()
    bench.full = True
    bench.on_grant(PEER, grant(1, **changes), 1000)
    effects = out.take()
    assert bool(of_kind(effects, Start)) is taken
    reasons = [one.reason for one in of_kind(effects, m.Refused)]
    if taken:
        assert reasons == []
    elif "inc" in changes:
        assert reasons == [m.Reason.INCARNATION]
    else:
        assert reasons == [m.Reason.NO_SPACE]
    bench.check()


def test_a_worker_without_room_runs_what_it_has_the_code_for() -> None:
    bench, out = worker()
    bench.known.add(CODE.digest)
    bench.full = True
    bench.on_grant(PEER, grant(1, code=CODE), 1000)
    assert of_kind(out.take(), Start)


def test_what_runs_when_the_disk_fills_up_ends_as_ever() -> None:
    """What runs finishes; its outcome is flushed and told."""
    bench, out = worker()
    bench.on_grant(PEER, grant(1, flags=DURABLE), 1000)
    bench.full = True
    bench.on_finished((PEER, Token(5 << 32, 1)), m.Status.DONE, b"42", NO_FACTS, 1100)
    [persisted] = of_kind(out.take(), Persist)
    assert persisted.rows[0].outcome.result == b"42"
    out.on_flushed(persisted.mark, 1200)
    assert of_kind(out.take(), m.Outcome)


# --- credit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_session_gets_no_more_than_its_credit(
    monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    """R-submit-7: beyond it the answer is Busy, until one of its tasks ends."""
    monkeypatch.setattr(sessions, "SESSION_TASKS_MAX", 2)
    bench = OwnerBench()
    bench.submit(1, 2, durable=on_disk)
    [told] = of_kind(bench.submit(3, durable=on_disk), m.Busy)
    assert told.tasks == (task_id(3),)
    bench.flush(10)
    assert not of_kind(bench.submit(1, durable=on_disk), m.Busy)
    bench.owner.stop(bench.owner.tasks[OLD], m.End.CANCELLED, "cancelled", 20)
    assert not of_kind(bench.submit(3, durable=on_disk), m.Busy)
    assert of_kind(bench.submit(4, durable=on_disk), m.Busy)


def test_a_durable_task_counts_for_whoever_named_it_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """R-submit-8: its outcome is told to that session, so it spends that one's credit."""
    monkeypatch.setattr(sessions, "SESSION_TASKS_MAX", 1)
    bench = OwnerBench()
    bench.submit(1, durable=True)
    other = b"o" * 16
    bench.owner.sessions.open(b"client-2", m.Open(other, 600_000), 5)
    bench.submit(1, durable=True, session=other)
    assert not of_kind(bench.submit(2), m.Busy)
    assert of_kind(bench.submit(3, session=other), m.Busy)
