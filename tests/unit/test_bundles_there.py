"""Bundles at their worker: one attempt that starts, waits, is divided, killed, owed and refused."""

from __future__ import annotations

from typing import Any

import pytest

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.ids import Token
from blackroad.limits import BUNDLE_LATE_MS, INLINE_BYTES_MAX, KILL_GUARD_MS, WAITING_BYTES_MAX
from blackroad.router import spool
from blackroad.router.effects import Divide, Effect, Kill, Outbox, Send, Start
from blackroad.router.worker import Worker
from tests.unit.builders import (
    INC,
    NO_FACTS,
    PEER,
    digest,
    grant,
    make_node,
    of_kind,
    task_id,
    worker,
)

T1, T2 = (Token(5 << 32, serial) for serial in (1, 2))
KEY = (PEER, T1)
HOLD, EXCLUSIVE, DURABLE = (
    int(one) for one in (m.GrantFlag.HOLD, m.GrantFlag.EXCLUSIVE, m.GrantFlag.DURABLE)
)
Bench = tuple[Worker, Outbox]


def along(*numbers: int, work: bytes = b"work") -> tuple[m.Small, ...]:
    return tuple(m.Small(task_id(number), work) for number in numbers)


def early(*numbers: int) -> tuple[m.Early, ...]:
    return tuple(m.Early(b"r%d" % number, 10 * number) for number in numbers)


def bundle(serial: int = 1, **changes: Any) -> m.Grant:
    """A Grant of the tasks 10, 11, 12, 13."""
    return grant(serial, **{"task": task_id(10), "more": along(11, 12, 13), **changes})


def did(bench: Bench) -> list[Effect]:
    bench[0].check()
    return bench[1].take()


def give(bench: Bench, one: m.Grant, now_ms: int = 1000) -> list[Effect]:
    bench[0].on_grant(PEER, one, now_ms)
    return did(bench)


def started(**changes: Any) -> Bench:
    """A worker of one slot that runs a bundle."""
    bench = worker(slots=1)
    assert of_kind(give(bench, bundle(**changes)), Start)
    return bench


def finish(bench: Bench, *before: int, now_ms: int = 1100, **changes: Any) -> list[Effect]:
    fields = {"status": m.Status.DONE, "result": b"42", "facts": NO_FACTS, **changes}
    bench[0].on_finished(KEY, **fields, now_ms=now_ms, before=early(*before))
    return did(bench)


def said(at: int, *before: int, **changes: Any) -> m.Outcome:
    """The Outcome of the bundle, with that task as the last that began."""
    fields = {"status": m.Status.DONE, "result": b"42", "facts": NO_FACTS, **changes}
    return m.Outcome(token=T1, task=task_id(at), inc=INC, before=early(*before), **fields)


def refusal(reason: m.Reason, now_ms: int) -> Send:
    return Send(PEER, m.Refused(T1, INC, now_ms, reason))


# --- start and wait -------------------------------------------------------------------------------


def test_a_bundle_starts_as_one_attempt() -> None:
    bench = worker(slots=2)
    one = bundle()
    until_ms = one.echo_ms + one.lease_ms - KILL_GUARD_MS
    start = Start(KEY, one.task, one.spec, None, one.work, 1, (), until_ms, one.more)
    assert give(bench, one) == [start]
    assert (bench[0].running, bench[0].ledger.leases()) == (1, 1)


@pytest.mark.parametrize("flag", [HOLD, EXCLUSIVE, DURABLE])
def test_a_bundle_that_asks_for_what_none_can_have_is_refused(flag: int) -> None:
    """R-bundle-8."""
    bench = worker(slots=2)
    assert give(bench, bundle(flags=flag)) == [refusal(m.Reason.NEEDS, 1000)]
    assert bench[0].works == {}
    # For good, as every refusal.
    assert give(bench, bundle()) == [refusal(m.Reason.NEEDS, 1000)]


def test_a_repeated_grant_of_a_bundle_does_nothing() -> None:
    bench = started()
    assert give(bench, bundle(), 1200) == []


def test_the_work_of_the_whole_bundle_counts_while_it_waits() -> None:
    """R-limit-1: a worker lets 4 MiB wait."""
    bench = started()
    large = along(*range(20, 20 + 63), work=b"w" * INLINE_BYTES_MAX)
    assert give(bench, grant(2, task=task_id(19), work=b"", more=large)) == []
    assert bench[0]._waiting_bytes == 63 * INLINE_BYTES_MAX
    room = WAITING_BYTES_MAX - 63 * INLINE_BYTES_MAX
    over = grant(3, task=task_id(99), work=b"1", more=along(98, work=b"w" * room))
    assert [one.reason for one in of_kind(give(bench, over), m.Refused)] == [m.Reason.FULL]
    bench[0].on_recall(PEER, m.Recall(T2, False), 1100)
    did(bench)
    assert bench[0]._waiting_bytes == 0


def test_a_bundle_is_one_line_in_renew() -> None:
    bench = started()
    bench[0].tick(2_000)
    [told] = of_kind(did(bench), m.Renew)
    assert told.attempts == (m.Listed(T1, m.AttemptState.RUNNING),)


# --- divided --------------------------------------------------------------------------------------


def test_a_recall_without_stop_divides_what_runs_each_time() -> None:
    """R-bundle-5: it is best effort, so it is asked again for each Recall."""
    bench = started()
    for now_ms in (1100, 1200):
        bench[0].on_recall(PEER, m.Recall(T1, False), now_ms)
        assert did(bench) == [Divide(KEY)]


def test_a_recall_gives_back_what_waits() -> None:
    bench = started()
    give(bench, bundle(2, task=task_id(20), more=along(21)))
    bench[0].on_recall(PEER, m.Recall(T2, False), 1100)
    assert did(bench) == [Send(PEER, m.Refused(T2, INC, 1100, m.Reason.RECALLED))]


def test_a_recall_with_stop_kills_the_whole() -> None:
    bench = started()
    bench[0].on_recall(PEER, m.Recall(T1, True), 1100)
    assert did(bench) == [Kill(KEY, "stop")]
    # Nothing is left to divide.
    bench[0].on_recall(PEER, m.Recall(T1, False), 1150)
    assert did(bench) == []
    bench[0].on_gone(KEY, 1200, early(10))
    stopped = said(11, 10, status=m.Status.STOPPED, result=b"", facts=m.Facts(text="stop"))
    assert did(bench) == [Send(PEER, stopped)]


def test_a_recall_leaves_a_single_task_alone() -> None:
    """R-cancel-2: without `stop`, of a running one it does nothing."""
    bench = worker(slots=1)
    give(bench, grant(1))
    bench[0].on_recall(PEER, m.Recall(T1, False), 1100)
    bench[0].on_split(KEY, early(1), 1150)
    assert did(bench) == []


def test_a_bundle_that_takes_long_is_divided_once() -> None:
    bench = started()
    assert bench[0].next_deadline_ms() == 1000 + BUNDLE_LATE_MS
    bench[0].tick(1000 + BUNDLE_LATE_MS - 1)
    assert did(bench) == []
    bench[0].tick(1000 + BUNDLE_LATE_MS)
    assert did(bench) == [Divide(KEY)]
    bench[0].tick(1000 + 3 * BUNDLE_LATE_MS)
    assert did(bench) == []
    assert bench[0].next_deadline_ms() > 1000 + 3 * BUNDLE_LATE_MS


def test_the_time_counts_from_the_moment_at_which_all_is_here() -> None:
    bench = worker(slots=1)
    give(bench, bundle(code=m.Ref(digest(1), 9)))
    bench[0].tick(1500)
    bench[0].on_recall(PEER, m.Recall(T1, False), 1500)
    assert of_kind(did(bench), Divide) == []
    bench[0].on_fetched(digest(1), 1600)
    assert of_kind(did(bench), Start)
    bench[0].tick(1600 + BUNDLE_LATE_MS)
    assert of_kind(did(bench), Divide) == [Divide(KEY)]


def test_what_was_divided_is_told_and_the_outcome_repeats_it() -> None:
    bench = started()
    bench[0].on_split(KEY, early(10), 1100)
    assert did(bench) == [Send(PEER, m.Divided(T1, INC, early(10)))]
    assert finish(bench, 10) == [Send(PEER, said(11, 10))]


def test_a_split_of_what_is_over_is_passed_over() -> None:
    bench = started()
    finish(bench, 10, 11, 12)
    bench[0].on_split(KEY, early(10), 1200)
    assert did(bench) == []


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "last"), [((), 10), ((10,), 11), ((10, 11), 12), ((10, 11, 12), 13)]
)
@pytest.mark.parametrize("status", [m.Status.DONE, m.Status.FAILED, m.Status.CRASHED])
def test_the_outcome_names_the_last_one_that_began(
    before: tuple[int, ...], last: int, status: m.Status
) -> None:
    """R-bundle-4."""
    bench = started()
    assert finish(bench, *before, status=status) == [Send(PEER, said(last, *before, status=status))]
    assert bench[0].done == 1 + len(before)
    assert (bench[0].running, bench[0].works, bench[0].ledger.leases()) == (0, {}, 0)


def test_what_waits_starts_when_the_whole_bundle_is_over() -> None:
    bench = started()
    give(bench, grant(2))
    bench[0].on_split(KEY, early(10, 11), 1100)
    assert of_kind(did(bench), Start) == []
    assert [one.key for one in of_kind(finish(bench, 10, 11), Start)] == [(PEER, T2)]


def test_a_lapsed_bundle_says_what_was_done_before() -> None:
    bench = started()
    deadline_ms = 1000 + 20_000 - KILL_GUARD_MS
    bench[0].tick(deadline_ms)
    assert Kill(KEY, "lapsed") in did(bench)
    bench[0].on_gone(KEY, deadline_ms + 5, early(10, 11))
    [told] = of_kind(did(bench), m.Outcome)
    assert (told.status, told.task, told.before) == (
        m.Status.LAPSED,
        task_id(12),
        early(10, 11),
    )


def test_input_that_cannot_be_had_means_that_none_began() -> None:
    bench = worker(slots=1)
    give(bench, bundle(code=m.Ref(digest(1), 9)))
    bench[0].on_fetch_failed(digest(1), "gone", 1100)
    [told] = of_kind(did(bench), m.Outcome)
    assert (told.status, told.task, told.before) == (m.Status.NO_INPUT, task_id(10), ())


def test_draining_hands_back_bundles_that_wait_and_lets_one_run() -> None:
    bench = started()
    give(bench, bundle(2, task=task_id(20), more=along(21)))
    bench[0].drain(True, 1100)
    assert did(bench) == [Send(PEER, m.Refused(T2, INC, 1100, m.Reason.DRAINING))]
    assert bench[0].running == 1


# --- the spool and tombstones ---------------------------------------------------------------------


def test_an_outcome_is_repeated_whole_and_its_token_never_starts_again() -> None:
    bench = started()
    finish(bench, 10, 11)
    whole = Send(PEER, said(12, 10, 11))
    assert give(bench, bundle(), 1200) == [whole]
    bench[0].on_recall(PEER, m.Recall(T1, False), 1300)
    assert did(bench) == [whole]
    bench[0].on_outcome_ack(PEER, m.OutcomeAck((T1,)), 1400)
    assert (bench[0].spool.owed, bench[0].spool.bytes) == ({}, 0)
    assert give(bench, bundle(), 1500) == [refusal(m.Reason.LATE, 1500)]
    bench[0].on_recall(PEER, m.Recall(T1, True), 1600)
    assert did(bench) == [refusal(m.Reason.LATE, 1600)]


def spooled(bench: Bench, serial: int, result: bytes, *before: int) -> None:
    """One more attempt that ended, a bundle if something was done before its last task."""
    numbers = range(10 * serial, 10 * serial + len(before) + 1)
    one = grant(serial, task=task_id(numbers[0]), more=along(*numbers[1:]))
    bench[0].on_grant(PEER, one, 1000)
    bench[0].on_finished(
        (PEER, one.token), m.Status.DONE, result, NO_FACTS, 1100 + serial, early(*before)
    )


def test_a_full_spool_drops_results_first_and_then_what_was_done_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R-bundle-8, R-outcome-6: the oldest first; how the attempt ended is owed all the same."""
    monkeypatch.setattr(spool, "SPOOL_BYTES_MAX", 12)
    bench = worker(slots=1)
    spooled(bench, 1, b"12345678", 10, 11)
    spooled(bench, 2, b"1234")
    assert (bench[0].spool.bytes, bench[0].spool.dropped) == (len(b"r10r11") + 4, 1)
    did(bench)
    [again] = of_kind(give(bench, bundle(), 1400), m.Outcome)
    assert (again.status, again.task, again.result) == (m.Status.LAPSED, task_id(12), b"")
    assert again.before == early(10, 11)
    # The result of the next one goes, and then, with no result left, what was done before.
    spooled(bench, 3, b"12345")
    assert (bench[0].spool.bytes, bench[0].spool.dropped) == (len(b"r10r11") + 5, 2)
    spooled(bench, 4, b"12345678", 40)
    assert (bench[0].spool.bytes, bench[0].spool.dropped) == (len(b"r40") + 8, 4)
    did(bench)
    [again] = of_kind(give(bench, bundle(), 1500), m.Outcome)
    assert (again.status, again.task, again.before) == (m.Status.LAPSED, task_id(12), ())
    for serial in (1, 2, 3, 4):
        bench[0].on_outcome_ack(PEER, m.OutcomeAck((Token(5 << 32, serial),)), 1700)
    assert (bench[0].spool.bytes, bench[0].spool.owed) == (0, {})


# --- through a whole node -------------------------------------------------------------------------


def test_a_node_takes_the_words_of_its_pool_to_its_worker() -> None:
    node = make_node()
    node.handle(n.FromPeer(PEER, (bundle(),), INC), 1000)
    split = node.handle(n.Split(KEY, early(10)), 1050)
    assert of_kind(split, m.Divided) == [m.Divided(T1, INC, early(10))]
    over = node.handle(n.Finished(KEY, m.Status.DONE, b"42", NO_FACTS, early(10)), 1060)
    assert of_kind(over, m.Outcome) == [said(11, 10)]


def test_a_node_that_killed_a_bundle_says_what_was_done() -> None:
    node = make_node()
    node.handle(n.FromPeer(PEER, (bundle(),), INC), 1000)
    node.handle(n.FromPeer(PEER, (m.Recall(T1, True),), INC), 1050)
    [told] = of_kind(node.handle(n.Killed(KEY, early(10, 11)), 1060), m.Outcome)
    assert (told.status, told.task, told.before) == (m.Status.STOPPED, task_id(12), early(10, 11))


def test_a_node_takes_divided_to_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    node = make_node()
    heard: list[object] = []
    monkeypatch.setattr(node.owner, "on_divided", lambda *what: heard.append(what))
    divided = m.Divided(T1, INC, early(10))
    node.handle(n.FromPeer(PEER, (divided,), INC), 1000)
    assert heard == [(PEER, divided, 1000)]
