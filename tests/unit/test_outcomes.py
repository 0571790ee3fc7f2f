"""What becomes of a task: outcomes, retries, and what a restart brings back."""

from __future__ import annotations

from typing import Any

import pytest

from blackroad.bus import messages as m
from blackroad.ids import Token, incarnation
from blackroad.limits import DISK_PROBLEM
from blackroad.router.effects import (
    AttemptRow,
    Effect,
    EndRow,
    Fetch,
    Persist,
    Pin,
    Send,
    TaskRow,
)
from blackroad.router.judge import attempt_row
from blackroad.router.records import TaskState
from tests.unit.builders import (
    CLIENT,
    INC,
    ME,
    NEEDS,
    NO_FACTS,
    OTHER,
    PEER,
    OwnerBench,
    digest,
    messages,
    of_kind,
    outcome,
    renew,
    spec,
    task_id,
)
from tests.unit.owner_words import (
    BOUND_MS,
    GANG,
    HELD,
    NEWER,
    OLDER,
    OWN,
    RUNNING,
    accepted,
    ack,
    done,
    ended,
    forbid,
    refused,
    rejected,
    row_of,
    says,
    state,
    stop,
)

# --- outcomes ------------------------------------------------------------------------------------


def test_done_is_told_and_acknowledged() -> None:
    """Table of the task: granted, last proof, done."""
    bench = OwnerBench()
    token = bench.granted()
    assert says(bench, 100, outcome(token)) == [done(), ack(token)]


def test_a_second_done_is_acknowledged_and_dropped() -> None:
    """R-outcome-2: ended is final and knows one outcome."""
    bench = OwnerBench()
    token = bench.granted()
    says(bench, 100, outcome(token))
    assert says(bench, 200, outcome(token, result=b"43")) == [ack(token)]


def lose(bench: OwnerBench, token: Token, now_ms: int = 100) -> None:
    """The attempt lapses at its worker; the task stays queued."""
    forbid(bench)
    bench.owner.on_goodbye(PEER, INC, now_ms)
    assert token not in bench.owner.attempts
    bench.turn(now_ms)


def test_a_late_done_counts_while_the_task_is_queued() -> None:
    """R-outcome-2: a past token of this very task, queued without a live attempt."""
    bench = OwnerBench()
    token = bench.granted()
    lose(bench, token)
    assert says(bench, 300, outcome(token)) == [done(), ack(token)]


def test_a_late_done_does_not_count_beside_a_live_attempt() -> None:
    """R-outcome-2, lost worker: the newer token lives: acknowledged, dropped."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token = bench.granted()
    lose(bench, token)
    bench.allow(OTHER=1)
    [granted] = of_kind(bench.turn(200), m.Grant)
    assert granted.token > token
    assert says(bench, 300, outcome(token)) == [ack(token)]
    assert state(bench) is TaskState.GRANTED


@pytest.mark.parametrize(
    "stale", [Token(INC, 99), Token(OLDER, 1)], ids=["never granted", "of an earlier life"]
)
def test_a_done_under_a_strange_token_is_dropped(stale: Token) -> None:
    """R-outcome-2: the token must be known in this life of the owner."""
    bench = OwnerBench()
    lose(bench, bench.granted())
    assert says(bench, 300, outcome(stale)) == [ack(stale)]
    assert state(bench) is TaskState.QUEUED


def test_a_late_failure_is_dropped() -> None:
    """R-outcome-2: only *done*."""
    bench = OwnerBench()
    token = bench.granted()
    lose(bench, token)
    assert says(bench, 300, outcome(token, status=m.Status.FAILED)) == [ack(token)]
    assert state(bench) is TaskState.QUEUED


def test_a_large_result_is_collected_first() -> None:
    """R-outcome-5: proof at once, but granted until the object is here; then acknowledged."""
    bench = OwnerBench()
    token = bench.granted()
    ref = m.Ref(digest(9), 100_000)
    assert says(bench, 100, outcome(token, result=ref)) == [Fetch(ref, PEER)]
    assert says(bench, 200, outcome(token, result=ref)) == []
    assert state(bench) is TaskState.GRANTED
    bench.tick(100_000)
    bench.owner.on_fetched(ref.digest, 100_100)
    assert bench.turn(100_100) == [Pin(ref.digest), done(result=ref), ack(token)]


@pytest.mark.parametrize(("gone", "answer"), [(True, True), (False, False)])
def test_a_result_that_cannot_be_had_is_a_loss(gone: bool, answer: bool) -> None:
    """R-outcome-5: after Gone it is acknowledged; after a standstill it is not."""
    bench = OwnerBench()
    token = bench.granted()
    says(bench, 100, outcome(token, result=m.Ref(digest(9), 100_000)))
    forbid(bench)
    bench.owner.on_fetch_failed(digest(9), "gone", 300, gone)
    assert bench.turn(300) == ([ack(token)] if answer else [])
    assert bench.owner.tasks[task_id(1)].losses == 1
    assert state(bench) is TaskState.QUEUED


# --- retries -------------------------------------------------------------------------------------


def without_back_off(bench: OwnerBench, now_ms: int) -> list[Effect]:
    """PEER may be asked again at once."""
    for cls in bench.owner.by_id.values():
        cls.use(PEER).backoff_until_ms = 0
        bench.owner.granting.dirty(cls)
    return bench.turn(now_ms)


def again_and_again(
    bench: OwnerBench, status: m.Status, limit: int = 40, **changes: Any
) -> tuple[int, list[Effect]]:
    """Let every attempt end like this; return how many there were, and what was told last."""
    token: Token | None = bench.granted(**changes)
    count = 0
    effects: list[Effect] = []
    while token is not None and count < limit:
        count += 1
        ends = outcome(token, status=status, result=b"", facts=NO_FACTS)
        effects = says(bench, count * 10, ends)
        bench.owner.view.get(PEER).avoid_until_ms = 0
        effects += without_back_off(bench, count * 10)
        granted = of_kind(effects, m.Grant)
        token = granted[0].token if granted else None
    return count, effects


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (m.Status.FAILED, "TaskFailed"),
        (m.Status.TIMEOUT, "TaskTimeout"),
        (m.Status.OUT_OF_MEMORY, "OutOfMemory"),
    ],
)
@pytest.mark.parametrize("retries", [0, 2])
def test_user_errors_use_up_the_retries(status: m.Status, reason: str, retries: int) -> None:
    """R-outcome-4: queued while `retries` last (default 0), then failed."""
    count, effects = again_and_again(OwnerBench(), status, spec=spec(retries=retries))
    assert count == retries + 1
    assert ended(1, m.End.FAILED, reason, attempts=count) in effects


def test_crashes_are_tried_twice_more() -> None:
    """R-outcome-4: its process died, the node lived: queued twice, then WorkerCrashed."""
    count, effects = again_and_again(OwnerBench(), m.Status.CRASHED)
    assert count == 3
    assert ended(1, m.End.FAILED, "WorkerCrashed", attempts=3) in effects


@pytest.mark.parametrize("status", [m.Status.LAPSED, m.Status.NO_INPUT, m.Status.STOPPED])
def test_infrastructure_is_free_twenty_times(status: m.Status) -> None:
    """R-outcome-4: lapsed, no_input, stopped unasked: queued 20 times, then failed."""
    count, effects = again_and_again(OwnerBench(), status)
    assert count == 21
    [told] = of_kind(effects, m.Ended)
    assert (told.end, told.reason) == (m.End.FAILED, "Infrastructure")


def test_tokens_only_grow() -> None:
    """P6, R-outcome-1: serials never repeat within an incarnation."""
    bench = OwnerBench()
    tokens = [bench.granted()]
    for now_ms in range(1, 6):
        lost = says(bench, now_ms, outcome(tokens[-1], status=m.Status.LAPSED))
        tokens.append(of_kind(lost, m.Grant)[0].token)
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize(
    ("status", "end", "reason"),
    [
        (m.Status.FAILED, m.End.FAILED, "TaskFailed"),
        (m.Status.CRASHED, m.End.FAILED, "WorkerCrashed"),
        (m.Status.LAPSED, m.End.UNKNOWN, "lost"),
        (m.Status.STOPPED, m.End.UNKNOWN, "lost"),
    ],
)
def test_once_runs_at_most_once(status: m.Status, end: m.End, reason: str) -> None:
    """R-outcome-4, P5: what ran and failed ends *failed*, what may have run ends *unknown*."""
    once = spec(once=True, retries=5)
    count, effects = again_and_again(OwnerBench(), status, spec=once)
    assert count == 1
    assert ended(1, end, reason) in effects


def test_once_what_never_started_is_queued_again() -> None:
    """R-outcome-4: only what certainly never started is queued again."""
    bench = OwnerBench()
    token = bench.granted(spec=spec(once=True))
    assert of_kind(says(bench, 100, refused(token)), m.Grant)
    other = OwnerBench()
    no_input = outcome(other.granted(spec=spec(once=True)), status=m.Status.NO_INPUT)
    assert not of_kind(says(other, 100, no_input), m.Grant)
    assert of_kind(without_back_off(other, 200), m.Grant)


@pytest.mark.parametrize(
    ("status", "type_name", "left_alone"),
    [
        (m.Status.NO_INPUT, "", True),
        (m.Status.LAPSED, DISK_PROBLEM, True),
        (m.Status.LAPSED, "", False),
        (m.Status.CRASHED, "", False),
    ],
)
def test_a_node_without_room_or_input_is_left_alone_for_a_while(
    status: m.Status, type_name: str, left_alone: bool
) -> None:
    """R-demand-8: asked again at once, it would use up the free retries in no time."""
    bench = OwnerBench()
    facts = m.Facts(text="no room for its result", type_name=type_name)
    lost = outcome(bench.granted(), status=status, facts=facts)
    assert bool(of_kind(says(bench, 100, lost), m.Grant)) is not left_alone
    assert bench.owner.tasks[task_id(1)].last_status == (
        f"{status.name.lower()}: no room for its result"
    )
    bench.meet(PEER, 700)
    assert bool(of_kind(bench.tick(700), m.Grant)) is left_alone


@pytest.mark.parametrize("how", ["goodbye", "restart", "bound"])
def test_once_what_may_have_run_ends_unknown(how: str) -> None:
    """R-outcome-4: whatever may have run and was lost ends *unknown*, listed running or not."""
    bench = OwnerBench()
    bench.granted(spec=spec(once=True))
    if how == "goodbye":
        bench.owner.on_goodbye(PEER, INC, 200)
    elif how == "restart":
        bench.owner.on_incarnation(PEER, NEWER, 200)
    else:
        bench.owner.on_suspect(PEER, 200)
        bench.tick(BOUND_MS + 1000)
    assert (
        of_kind(bench.turn(BOUND_MS + 1000), m.Ended)
        or bench.owner.tasks[task_id(1)].ended.end is m.End.UNKNOWN
    )
    assert bench.owner.tasks[task_id(1)].ended.reason == "lost"


def test_a_pure_task_may_run_elsewhere_when_its_node_is_silent() -> None:
    """R-demand-4, P4: `pure` opts out; the first Outcome wins and the other is stopped."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    first = bench.granted(spec=spec(pure=True))
    bench.allow(OTHER=1)
    bench.owner.on_suspect(PEER, 800)
    [second] = of_kind(bench.turn(800), m.Grant)
    effects = says(bench, 900, outcome(second.token, inc=INC), OTHER)
    assert effects == [stop(first), done(node=OTHER, attempts=2), ack(second.token, to=OTHER)]
    assert says(bench, 950, outcome(first)) == [ack(first)]


def test_an_impure_task_waits_for_proof() -> None:
    """R-lease-2: at most one live attempt; it lives until each member is proven ended."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    bench.granted()
    bench.allow(OTHER=1)
    bench.owner.on_suspect(PEER, 800)
    assert bench.turn(800) == []


def test_a_result_that_finds_no_room_here_is_fetched_when_there_is_room() -> None:
    """R-outcome-5: a full disk at the owner is no fault of the attempt; nothing runs twice."""
    bench = OwnerBench()
    token = bench.granted()
    large = outcome(token, result=m.Ref(digest(9), 10**6))
    assert of_kind(says(bench, 100, large), Fetch)
    for now_ms in (200, 4_000, 30_000):
        bench.owner.on_fetch_failed(digest(9), "no room", now_ms, here=True)
        assert bench.turn(now_ms) == []
        assert bench.tick(now_ms + 1_000) == []
        assert of_kind(says(bench, now_ms + 2_000, large), Fetch)
        assert not of_kind(says(bench, now_ms + 2_500, large), Fetch)
    bench.owner.on_fetched(digest(9), 40_000)
    assert [one.result for one in of_kind(bench.turn(40_000), m.Ended)] == [large.result]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_result_without_room_is_not_waited_for_for_ever(cancelled: bool) -> None:
    """R-outcome-5: nobody offers it again for 60 s, or nobody wants it."""
    bench = OwnerBench()
    token = bench.granted()
    says(bench, 100, outcome(token, result=m.Ref(digest(9), 10**6)))
    bench.owner.on_fetch_failed(digest(9), "no room", 200, here=True)
    bench.turn(200)
    bench.meet(PEER, 2_000)
    if cancelled:
        bench.owner.on_cancel(CLIENT, m.Cancel((task_id(1),)), 2_000)
        effects = bench.tick(3_000)
        assert [one.end for one in of_kind(effects, m.Ended)] == [m.End.CANCELLED]
        return
    assert not of_kind(bench.tick(60_000), m.Grant)
    bench.beat(PEER, 60_100)
    assert of_kind(bench.tick(61_300), m.Grant)
    assert bench.owner.tasks[task_id(1)].losses == 1


# --- restart -------------------------------------------------------------------------------------

LATER = incarnation(8, 5)
TASK = TaskRow(task_id(1), spec(), None, b"work", False, 0)


def restarted(
    *rows: AttemptRow, ends: tuple[EndRow, ...] = (), task: TaskRow = TASK
) -> tuple[OwnerBench, list[Effect]]:
    """An owner that came back with this journal, and what it sends at once."""
    bench = OwnerBench(nodes=(PEER, OTHER), inc=LATER)
    bench.owner.restore([task], list(rows), list(ends), 0)
    bench.owner.check()
    return bench, bench.turn(0)


def test_what_was_queued_is_queued_again() -> None:
    """R-life-1, P2: nothing is forgotten; the new token is greater than any before."""
    bench, effects = restarted()
    assert effects == []
    bench.allow(PEER=1)
    bench.turn(100)
    [granted] = of_kind(bench.flush(200), m.Grant)
    assert granted.token == Token(LATER, 1) > OWN


def test_an_attempt_keeps_the_lease_it_was_granted_for() -> None:
    """R-lease-16: a default that was shortened meanwhile must not shorten the bound."""
    bench = OwnerBench(nodes=(PEER, OTHER), inc=LATER)
    bench.owner.runs.lease_ms = 5_000
    bench.owner.restore([TASK], [row_of(OWN, lease_ms=20_000)], [], 0)
    [attempt] = bench.owner.tasks[task_id(1)].attempts
    assert [member.bound_ms for member in attempt.members] == [BOUND_MS]


def test_what_had_ended_is_told_to_whoever_asks() -> None:
    """P3, R-submit-4: the one outcome survives the restart."""
    end = EndRow(task_id(1), m.End.DONE, "", b"42", m.Facts(run_us=5000), PEER, 1)
    bench, _ = restarted(ends=(end,))
    assert bench.submit(1, durable=True) == [accepted(1), done()]
    assert rejected(bench.submit(1, durable=True, tasks=(m.Item(task_id(1), b"x"),))) == [
        ("conflict", 1)
    ]


def test_an_attempt_in_the_journal_lives_for_a_full_bound() -> None:
    """R-lease-12: live again with a fresh full bound from now; nothing is issued early."""
    bench, effects = restarted(row_of(OWN))
    assert not of_kind(effects, m.Grant)
    bench.allow(PEER=1)
    bench.owner.on_suspect(PEER, 1)
    sent = [one for at in range(500, BOUND_MS, 500) for one in bench.tick(at)]
    assert OWN in bench.owner.attempts
    assert not [one for one in of_kind(sent, m.Grant) if one.token != OWN]
    bench.tick(BOUND_MS + 1000)
    assert OWN not in bench.owner.attempts


def test_an_adopted_attempt_goes_on() -> None:
    """R-lease-12, S5: adopted, not run again: listed running it is confirmed, and done."""
    bench, _ = restarted(row_of(OWN))
    assert says(bench, 100, renew(1000, (OWN, RUNNING))) == [Send(PEER, m.Renewed(INC, 1000, ()))]
    [persisted] = says(bench, 200, outcome(OWN))
    assert persisted.rows[0].end is m.End.DONE
    assert bench.flush(300) == [ack(OWN)]


def test_an_adopted_attempt_that_is_held_is_stopped() -> None:
    """R-lease-12: for nobody can know whether *go* was meant."""
    bench, _ = restarted(row_of(OWN, isolated=True, killers=2))
    effects = says(bench, 100, renew(1000, (OWN, HELD)))
    assert stop(OWN) in effects
    assert not of_kind(effects, m.Grant)


def test_a_gang_in_the_journal_is_recalled() -> None:
    """R-lease-12: gang attempts are recalled with stop."""
    members = ((PEER, INC), (OTHER, INC))
    task = TaskRow(task_id(1), GANG, None, b"work", False, 0)
    _, effects = restarted(row_of(OWN, members=members), task=task)
    assert effects == [stop(OWN), stop(OWN, OTHER)]


def test_an_attempt_on_the_owners_own_node_is_over() -> None:
    """R-lease-12: proven ended by its own new incarnation."""
    bench, effects = restarted(row_of(OWN, members=((ME, INC),)))
    assert OWN not in bench.owner.attempts
    assert not of_kind(effects, m.Grant)
    task = bench.owner.tasks[task_id(1)]
    assert (task.state, task.killers) == (TaskState.QUEUED, 1)


def test_counts_survive_the_restart() -> None:
    """R-outcome-4: tries, crashes, losses and killers stand in the last row."""
    bench, _ = restarted(
        row_of(OWN, tries=4, crashes=1, losses=2), row_of(Token(INC, 9), tries=5, crashes=2)
    )
    task = bench.owner.tasks[task_id(1)]
    assert (task.tries, task.crashes, task.losses) == (5, 2, 0)
    [attempt] = task.attempts
    assert attempt_row(task, attempt) == row_of(Token(INC, 9), tries=5, crashes=2)


def test_a_done_from_before_the_restart_of_a_pure_task_counts() -> None:
    """R-outcome-2: or if the task is pure, not ended, and the token one of its own."""
    task = TaskRow(task_id(1), spec(pure=True), None, b"work", False, 0)
    bench, _ = restarted(task=task)
    effects = says(bench, 100, outcome(OWN))
    assert of_kind(effects, Persist)[0].rows[0].end is m.End.DONE


def test_needs_of_the_builders_are_what_the_tests_think() -> None:
    """One core: every node of the bench fits."""
    bench = OwnerBench()
    assert bench.owner.view.fits(PEER, NEEDS)
    assert messages(bench.submit(1)) == [m.Accepted((task_id(1),))]
