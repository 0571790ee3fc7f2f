"""Attempts at their owner: proofs, leases, repeated Grants, gangs and poison."""

from __future__ import annotations

import pytest

from blackroad.bus import messages as m
from blackroad.ids import Token, incarnation
from blackroad.router.effects import (
    Effect,
    Persist,
    Pin,
    Send,
    Unpin,
)
from blackroad.router.records import TaskState
from tests.unit.builders import (
    CLIENT,
    INC,
    NO_FACTS,
    OTHER,
    PEER,
    OwnerBench,
    digest,
    of_kind,
    outcome,
    renew,
    task_id,
)
from tests.unit.owner_words import (
    BOUND_MS,
    GANG,
    HELD,
    NEWER,
    OLDER,
    RUNNING,
    ack,
    done,
    ended,
    forbid,
    grant_of,
    killed_twice,
    refused,
    running,
    says,
    state,
    stop,
    taken,
)

# --- proofs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [one for one in m.Reason if one is not m.Reason.INCARNATION])
def test_refused_is_proof(reason: m.Reason) -> None:
    """R-lease-3: its Refused: queued again, and nothing is counted."""
    bench = OwnerBench()
    token = bench.granted()
    forbid(bench)
    assert says(bench, 100, refused(token, reason)) == []
    task = bench.owner.tasks[task_id(1)]
    assert (task.state, task.losses, task.killers) == (TaskState.QUEUED, 0, 0)


@pytest.mark.parametrize("inc", [OLDER, incarnation(7, 99)])
def test_refused_by_another_life_is_no_proof(inc: int) -> None:
    """R-lease-3: nor a Refused from an older life than the one granted to."""
    bench = OwnerBench()
    token = bench.granted()
    says(bench, 100, refused(token, inc=inc))
    assert state(bench) is TaskState.GRANTED


def test_an_outcome_of_another_life_is_no_proof() -> None:
    """R-lease-3: nor an Outcome from an older life; it is acknowledged and dropped."""
    bench = OwnerBench()
    token = bench.granted()
    assert says(bench, 100, outcome(token, inc=OLDER)) == [ack(token)]
    assert state(bench) is TaskState.GRANTED


def test_an_outcome_for_another_task_is_no_proof() -> None:
    """R-outcome-2: matched by token and task, from the very node it was granted to."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token = bench.granted()
    assert says(bench, 100, outcome(token, 2)) == [ack(token)]
    assert says(bench, 100, outcome(token), OTHER) == [ack(token, to=OTHER)]
    assert state(bench) is TaskState.GRANTED


def test_a_newer_incarnation_is_proof_and_counts_as_killer() -> None:
    """R-lease-3, R-outcome-4: an incarnation with a higher counter; running work was hit."""
    bench = OwnerBench()
    running(bench, bench.granted())
    bench.owner.on_incarnation(PEER, NEWER, 200)
    assert bench.turn(200) == []
    task = bench.owner.tasks[task_id(1)]
    assert (task.state, task.killers) == (TaskState.QUEUED, 1)


@pytest.mark.parametrize("inc", [INC, OLDER, incarnation(7, 99)])
def test_an_equal_or_older_counter_proves_nothing(inc: int) -> None:
    """R-lease-3: a higher *counter*, and nothing else."""
    bench = OwnerBench()
    bench.granted()
    bench.owner.on_incarnation(PEER, inc, 200)
    assert state(bench) is TaskState.GRANTED


def test_goodbye_is_proof_and_a_free_loss() -> None:
    """R-lease-3, R-outcome-4: Goodbye of that incarnation: infrastructure."""
    bench = OwnerBench()
    running(bench, bench.granted())
    bench.owner.on_goodbye(PEER, OLDER, 200)
    assert state(bench) is TaskState.GRANTED
    bench.owner.on_goodbye(PEER, INC, 200)
    task = bench.owner.tasks[task_id(1)]
    assert (task.state, task.losses, task.killers) == (TaskState.QUEUED, 1, 0)


def test_the_bound_is_proof() -> None:
    """R-lease-3: own clock at or past the bound, send + L * (1 + rho) + K + M."""
    bench = OwnerBench()
    running(bench, bench.granted(now_ms=0), now_ms=50)
    bench.tick(50 + BOUND_MS - 1)
    assert state(bench) is TaskState.GRANTED
    assert bench.owner.next_deadline_ms() <= 50 + BOUND_MS + 1000
    for now_ms in (50 + BOUND_MS, 50 + BOUND_MS + 999):
        bench.tick(now_ms)
    task = bench.owner.tasks[task_id(1)]
    assert (task.state, task.losses) == (TaskState.QUEUED, 1)
    assert bench.owner.view.avoided(50 + BOUND_MS + 1000) == (PEER,)


def test_silence_death_and_absence_prove_nothing() -> None:
    """R-lease-3: silence, "dead" in the membership and absence from a Renew prove nothing."""
    bench = OwnerBench()
    token = bench.granted()
    running(bench, token)
    says(bench, 1000, renew(2000))
    bench.owner.on_suspect(PEER, 1100)
    bench.owner.view.get(PEER).present = False
    bench.tick(1200)
    bench.allow(PEER=4, ME=4)
    assert bench.turn(1300) == []
    assert state(bench) is TaskState.GRANTED


# --- Renew ---------------------------------------------------------------------------------------


def test_renewed_confirms_the_live_and_refuses_the_rest() -> None:
    """R-lease-6: every other listed token is in `refused`, unknown ones first of all."""
    bench = OwnerBench()
    token = bench.granted()
    unknown = Token(INC, 99)
    assert says(bench, 100, renew(1000, (token, RUNNING), (unknown, RUNNING))) == [
        Send(PEER, m.Renewed(INC, 1000, (unknown,)))
    ]


def test_renewed_moves_the_bound() -> None:
    """R-lease-4: the bound counts again from each Renewed that confirms the token."""
    bench = OwnerBench()
    token = bench.granted()
    running(bench, token, 10_000)
    member = bench.owner.attempts[token].members[0]
    assert member.bound_ms == 10_000 + BOUND_MS


def test_a_renew_of_another_life_confirms_nothing() -> None:
    """R-lease-6: the member's incarnation is the Renew's."""
    bench = OwnerBench()
    token = bench.granted()
    assert says(bench, 100, renew(1000, (token, RUNNING), inc=OLDER)) == [
        Send(PEER, m.Renewed(OLDER, 1000, (token,)))
    ]
    assert bench.owner.attempts[token].members[0].bound_ms == BOUND_MS


def test_what_is_being_stopped_is_not_confirmed() -> None:
    """R-lease-6: and it is not being stopped."""
    bench = OwnerBench()
    token = bench.granted()
    running(bench, token)
    bench.owner.on_cancel(CLIENT, m.Cancel((task_id(1),)), 200)
    bench.turn(200)
    assert says(bench, 300, renew(1300, (token, RUNNING))) == [
        Send(PEER, m.Renewed(INC, 1300, (token,)))
    ]


def test_another_node_cannot_keep_an_attempt_alive() -> None:
    """R-lease-6: a token lives on the node it was granted to."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token = bench.granted()
    assert says(bench, 100, renew(1000, (token, RUNNING)), OTHER) == [
        Send(OTHER, m.Renewed(INC, 1000, (token,)))
    ]


# --- repeated Grants -----------------------------------------------------------------------------


def test_a_grant_is_repeated_twice_and_then_stopped() -> None:
    """R-lease-5: twice at most, 2 s apart; afterwards Recall stop every R."""
    bench = OwnerBench()
    token = bench.granted()
    bench.owner.view.on_stamp(PEER, INC, 700, 100)
    again = grant_of(token, echo_ms=700)
    sent = {now_ms: bench.tick(now_ms) for now_ms in range(500, 9001, 500)}
    assert {now_ms: out for now_ms, out in sent.items() if out} == {
        2000: [again],
        4000: [again],
        6000: [stop(token)],
        7000: [stop(token)],
        8000: [stop(token)],
        9000: [stop(token)],
    }


def test_a_recall_moves_no_bound() -> None:
    """R-lease-5: a worker which is heard but cannot hear does not keep a task for ever."""
    bench = OwnerBench()
    token = bench.granted()
    forbid(bench)
    for now_ms in range(500, 30_001, 500):
        bench.tick(now_ms)
    assert token not in bench.owner.attempts
    assert state(bench) is TaskState.QUEUED


def test_a_silent_node_gets_no_repeated_grant() -> None:
    """R-lease-5: repeated only while Heartbeats of the same incarnation are fresh."""
    bench = OwnerBench()
    bench.granted()
    bench.owner.on_suspect(PEER, 1000)
    sent = [one for now_ms in range(1500, 8001, 500) for one in bench.tick(now_ms)]
    assert not of_kind(sent, m.Grant)


def test_what_a_renew_lists_is_not_granted_again() -> None:
    """Table: sent, a Renew lists it: waiting, held, running."""
    bench = OwnerBench()
    running(bench, bench.granted())
    assert [bench.tick(now_ms) for now_ms in (2100, 4200, 6300)] == [[], [], []]


# --- poison --------------------------------------------------------------------------------------


def isolated_grant(bench: OwnerBench, now_ms: int = 1000) -> m.Grant:
    cls = bench.owner.tasks[task_id(1)].cls
    assert (cls.spec.exclusive, cls.spec.isolated) == (True, True)
    bench.allow(cls.id, PEER=1)
    effects = bench.turn(now_ms)
    if bench.mark:
        effects += bench.flush(now_ms)
    [granted] = of_kind(effects, m.Grant)
    return granted


def test_after_two_killers_the_task_runs_alone_and_held() -> None:
    """R-isolate-1: a gang of one, alone on its node, granted with *hold*, then *go*."""
    bench = OwnerBench()
    inc = killed_twice(bench)
    granted = isolated_grant(bench)
    assert granted.flags == int(m.GrantFlag.HOLD | m.GrantFlag.EXCLUSIVE)
    effects = says(bench, 1100, renew(1000, (granted.token, HELD), inc=inc))
    assert [one.flags for one in of_kind(effects, m.Grant)] == [
        int(m.GrantFlag.GO | m.GrantFlag.EXCLUSIVE)
    ]


def test_the_third_killer_after_go_is_quarantined() -> None:
    """R-isolate-2: a third killer ending after *go* quarantines it."""
    bench = OwnerBench()
    inc = killed_twice(bench)
    granted = isolated_grant(bench)
    says(bench, 1100, renew(1000, (granted.token, HELD), inc=inc))
    bench.owner.on_incarnation(PEER, incarnation(10, 1), 1200)
    assert bench.turn(1200) == [ended(1, m.End.QUARANTINED, "poison", attempts=3)]


def test_a_crash_before_go_blames_nobody() -> None:
    """R-isolate-2: a member last listed *held* without *go*, or not listed at all."""
    bench = OwnerBench()
    killed_twice(bench)
    isolated_grant(bench)
    forbid(bench)
    bench.owner.on_incarnation(PEER, incarnation(10, 1), 1200)
    assert bench.turn(1200) == []
    task = bench.owner.tasks[task_id(1)]
    assert (task.state, task.killers) == (TaskState.QUEUED, 2)


def test_go_of_an_isolated_durable_task_is_journaled_first() -> None:
    """R-isolate-1: *go* journaled, then sent."""
    bench = OwnerBench()
    bench.allow(PEER=4)
    bench.submit(1, durable=True)
    bench.flush(0)
    for counter in (8, 9):
        inc = incarnation(counter, 1)
        bench.meet(PEER, 100 * counter, inc)
        bench.owner.on_incarnation(PEER, inc, 100 * counter)
        bench.turn(100 * counter)
        bench.flush(100 * counter)
    granted = isolated_grant(bench)
    effects = says(bench, 1100, renew(1000, (granted.token, HELD), inc=inc))
    assert not of_kind(effects, m.Grant)
    [row] = of_kind(effects, Persist)[0].rows
    assert (row.token, row.isolated, row.go) == (granted.token, True, True)
    assert of_kind(bench.flush(1200), m.Grant)[0].flags & int(m.GrantFlag.GO)


# --- gangs ---------------------------------------------------------------------------------------


def gang(bench: OwnerBench) -> tuple[Token, list[Effect]]:
    bench.allow(PEER=1, OTHER=1)
    effects = bench.submit(1, spec=GANG)
    granted = of_kind(effects, m.Grant)
    assert {one.token for one in granted} == {granted[0].token}
    return granted[0].token, effects


def test_a_gang_is_granted_with_one_token_and_held() -> None:
    """R-gang-1: one token, one member per node, Grant *hold* to each."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token, effects = gang(bench)
    hold = int(m.GrantFlag.HOLD)
    assert effects == [
        taken(1),
        grant_of(token, spec=GANG, flags=hold, share=0),
        grant_of(token, spec=GANG, flags=hold, share=0, to=OTHER),
    ]


def test_go_leaves_only_when_all_are_held() -> None:
    """R-gang-1: *go* only when all are held, repeated to any still listed held."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token, _ = gang(bench)
    go = int(m.GrantFlag.GO)
    assert not of_kind(says(bench, 100, renew(1000, (token, HELD))), m.Grant)
    effects = says(bench, 200, renew(1100, (token, HELD)), OTHER)
    assert [(one.to, one.message.flags) for one in effects[:2]] == [(PEER, go), (OTHER, go)]
    again = says(bench, 1100, renew(2000, (token, HELD)))
    assert [one.flags for one in of_kind(again, m.Grant)] == [go]
    assert not of_kind(says(bench, 1200, renew(2100, (token, RUNNING)), OTHER), m.Grant)


def going(bench: OwnerBench) -> Token:
    token, _ = gang(bench)
    says(bench, 100, renew(1000, (token, HELD)))
    says(bench, 200, renew(1100, (token, HELD)), OTHER)
    forbid(bench)
    return token


def test_a_gang_is_done_when_all_are() -> None:
    """Table of the gang: going, all *done*: ended."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token = going(bench)
    assert says(bench, 300, outcome(token, result=b"other"), OTHER) == [ack(token, to=OTHER)]
    assert says(bench, 400, outcome(token)) == [done(), ack(token)]


@pytest.mark.parametrize("last", [m.Status.DONE, m.Status.FAILED])
def test_the_large_result_of_a_gang_stays_until_the_others_have_ended(last: m.Status) -> None:
    """R-object-2: what was collected first must still be here when it is told."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token = going(bench)
    ref = m.Ref(digest(9), 10**6)
    says(bench, 300, outcome(token, result=ref))
    bench.owner.on_fetched(ref.digest, 350)
    assert [one for one in bench.turn(350) if isinstance(one, Pin | Unpin)] == [Pin(ref.digest)]
    effects = says(bench, 400, outcome(token, status=last, result=b"why"), OTHER)
    [told] = of_kind(effects, m.Ended)
    was_done = last is m.Status.DONE
    assert told.result == (ref if was_done else b"why")
    assert of_kind(effects, Unpin) == ([] if was_done else [Unpin(ref.digest)])


def test_one_that_ends_otherwise_stops_the_others() -> None:
    """R-gang-1, R-outcome-4: the first member that ended without *done* decides."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token = going(bench)
    failed = outcome(token, status=m.Status.FAILED, result=b"why", facts=NO_FACTS)
    assert says(bench, 300, failed) == [stop(token, OTHER), ack(token)]
    stopped = outcome(token, status=m.Status.STOPPED, result=b"", facts=NO_FACTS)
    assert says(bench, 400, stopped, OTHER) == [
        ended(1, m.End.FAILED, "TaskFailed", result=b"why"),
        ack(token, to=OTHER),
    ]


def test_a_gang_that_is_not_gathered_in_time_is_recalled() -> None:
    """R-gang-2: all held within 10 s, or all are recalled; then it waits 5 s and a spread."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token, _ = gang(bench)
    says(bench, 100, renew(1000, (token, HELD)))
    sent = {at: of_kind(bench.tick(at), m.Recall) for at in range(1000, 12_000, 1000)}
    assert all(not sent[at] for at in range(1000, 6000, 1000))
    assert all(one.stop for recalls in sent.values() for one in recalls)
    says(bench, 12_100, refused(token))
    assert state(bench) is TaskState.GRANTED
    assert not of_kind(says(bench, 12_200, refused(token), OTHER), m.Grant)
    assert state(bench) is TaskState.QUEUED
    later = []
    for now_ms in range(12_500, 25_000, 500):
        bench.beat(PEER, now_ms)
        bench.beat(OTHER, now_ms)
        later.append(bench.tick(now_ms))
    granted = [at for at, effects in enumerate(later) if of_kind(effects, m.Grant)]
    assert granted[0] * 500 + 12_500 >= 10_000 + 5_000
    assert len(of_kind(later[granted[0]], m.Grant)) == 2


def test_a_refused_member_aborts_the_gang() -> None:
    """Table of the gang: gathering, Refused: Recall stop to all."""
    bench = OwnerBench(nodes=(PEER, OTHER))
    token, _ = gang(bench)
    assert says(bench, 100, refused(token, m.Reason.FULL)) == [stop(token, OTHER)]
    assert bench.owner.tasks[task_id(1)].losses == 0
