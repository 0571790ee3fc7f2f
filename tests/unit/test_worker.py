"""The worker: what starts, what waits, what is refused, and when a lease ends."""

from __future__ import annotations

import pytest

from blackroad.bus import messages as m
from blackroad.ids import Token, incarnation
from blackroad.limits import KILL_GUARD_MS, TOMBSTONES_MAX
from blackroad.requirements import Needs
from blackroad.router.effects import (
    Effect,
    Extend,
    Fetch,
    Kill,
    Outbox,
    Persist,
    Pin,
    Send,
    SpoolRow,
    Start,
    Unpin,
    UnspoolRow,
)
from blackroad.router.worker import Worker
from blackroad.router.works import State
from tests.unit.builders import (
    GIB,
    INC,
    NO_FACTS,
    OTHER,
    PEER,
    caps,
    digest,
    gpu,
    grant,
    spec,
    task_id,
    worker,
)

T1, T2, T3 = (Token(5 << 32, serial) for serial in (1, 2, 3))
WAITING, HELD, RUNNING = m.AttemptState.WAITING, m.AttemptState.HELD, m.AttemptState.RUNNING


def give(
    bench: tuple[Worker, Outbox], one: m.Grant, now_ms: int = 1000, owner: bytes = PEER
) -> list[Effect]:
    bench[0].on_grant(owner, one, now_ms)
    return done(bench)


def done(bench: tuple[Worker, Outbox]) -> list[Effect]:
    bench[0].check()
    return bench[1].take()


def tick(bench: tuple[Worker, Outbox], now_ms: int) -> list[Effect]:
    bench[0].tick(now_ms)
    return done(bench)


def finish(bench: tuple[Worker, Outbox], token: Token, now_ms: int, **changes: object) -> list:
    status = changes.pop("status", m.Status.DONE)
    bench[0].on_finished((PEER, token), status, b"42", NO_FACTS, now_ms)
    return done(bench)


def started(one: m.Grant, devices: tuple[int, ...] = (), owner: bytes = PEER) -> Start:
    key = (owner, one.token)
    until_ms = one.echo_ms + one.lease_ms - KILL_GUARD_MS
    return Start(key, one.task, one.spec, one.code, one.work, one.attempt, devices, until_ms)


def refused(token: Token, now_ms: int, reason: m.Reason, owner: bytes = PEER) -> Send:
    return Send(owner, m.Refused(token, INC, now_ms, reason))


def listing(stamp_ms: int, *pairs: tuple[Token, m.AttemptState]) -> Send:
    return Send(PEER, m.Renew(INC, stamp_ms, tuple(m.Listed(*pair) for pair in pairs)))


# --- Grant ----------------------------------------------------------------------------------------


def test_a_sound_grant_starts_at_once() -> None:
    """R-lease-7: everything holds and the ledger has room."""
    one = grant()
    assert give(worker(), one) == [started(one)]


@pytest.mark.parametrize(
    ("changes", "now_ms", "reason"),
    [
        ({"inc": INC + 1}, 1000, m.Reason.INCARNATION),
        ({"inc": incarnation(6, 9)}, 1000, m.Reason.INCARNATION),
        ({"echo_ms": 1001}, 1000, m.Reason.LATE),
        ({}, 20_000, m.Reason.LATE),
        ({"flags": int(m.GrantFlag.GO)}, 1000, m.Reason.LATE),
        ({"spec": spec(Needs(cpu=64).to_wire())}, 1000, m.Reason.NEEDS),
        ({"spec": spec(Needs(arch="x86_64").to_wire())}, 1000, m.Reason.NEEDS),
        ({"spec": spec(b"\x91\x91\xc0")}, 1000, m.Reason.NEEDS),
    ],
)
def test_a_grant_that_fails_is_refused(
    changes: dict[str, object], now_ms: int, reason: m.Reason
) -> None:
    """R-lease-7: each condition has its reason, and nothing starts."""
    assert give(worker(), grant(**changes), now_ms) == [refused(T1, now_ms, reason)]


def test_a_grant_may_start_one_millisecond_before_its_deadline() -> None:
    """R-lease-7: now < echo + L - K."""
    one = grant()
    assert give(worker(), one, 19_999) == [started(one)]


def test_a_draining_worker_refuses() -> None:
    """R-lease-7: not while I am draining."""
    bench = worker()
    bench[0].drain(True, 1000)
    assert give(bench, grant()) == [refused(T1, 1000, m.Reason.DRAINING)]


def test_only_a_wrong_incarnation_leaves_no_tombstone() -> None:
    """R-lease-7: refused for its incarnation, the token may still start with the right one."""
    bench = worker()
    give(bench, grant(inc=INC - (1 << 32)))
    assert give(bench, grant()) == [started(grant())]


def test_a_refused_token_stays_refused() -> None:
    """R-lease-8: the repeated Grant of a tombstoned token gets its Refused again."""
    bench = worker()
    give(bench, grant(echo_ms=1001))
    assert give(bench, grant(), 1100) == [refused(T1, 1100, m.Reason.LATE)]


def test_tokens_of_two_owners_are_two_tokens() -> None:
    """R-lease-7: told apart by owner, incarnation and serial together."""
    bench = worker(slots=4)
    one = grant()
    again = grant(token=Token(6 << 32, 1))
    assert give(bench, one) == [started(one)]
    assert give(bench, one, owner=OTHER) == [started(one, owner=OTHER)]
    assert give(bench, again) == [started(again)]


def test_a_repeated_grant_of_a_live_attempt_does_nothing() -> None:
    """R-lease-8: a live one is left as it is, with its deadline."""
    bench = worker()
    give(bench, grant())
    assert give(bench, grant(echo_ms=5000), 6000) == []
    assert bench[0].works[PEER, T1].deadline_ms == 1000 + 20_000 - 1000


def test_a_repeated_grant_of_an_ended_attempt_gets_its_outcome() -> None:
    """R-lease-8: of an ended one, its Outcome again."""
    bench = worker()
    give(bench, grant())
    first = finish(bench, T1, 2000)
    assert give(bench, grant(), 2500) == first
    expected = m.Outcome(T1, task_id(1), INC, m.Status.DONE, b"42", NO_FACTS)
    assert first == [Send(PEER, expected)]


def test_what_finds_no_room_waits_and_starts_when_a_slot_is_free() -> None:
    """R-lease-7: only the queue has room; room in the ledger starts it."""
    bench = worker(slots=1)
    give(bench, grant(1))
    assert give(bench, grant(2)) == []
    assert finish(bench, T1, 1500)[1:] == [started(grant(2))]


def test_no_more_of_a_class_run_than_its_share() -> None:
    """R-lease-17: what was sent ahead takes the place of one of its class, no free place."""
    bench = worker(slots=4)
    assert give(bench, grant(1, share=1)) == [started(grant(1, share=1))]
    assert give(bench, grant(2, share=1)) == []
    assert give(bench, grant(3, cls=2)) == [started(grant(3, cls=2))]
    assert give(bench, grant(4, share=1), owner=OTHER) == [started(grant(4, share=1), owner=OTHER)]
    assert finish(bench, T1, 1500)[1:] == [started(grant(2, share=1))]


def test_the_newest_grant_of_a_class_says_its_share() -> None:
    """R-lease-17: a larger share lets those that wait start."""
    bench = worker(slots=4)
    give(bench, grant(1, share=1))
    give(bench, grant(2, share=1))
    assert give(bench, grant(3, share=3)) == [
        started(grant(2, share=1)),
        started(grant(3, share=3)),
    ]
    assert give(bench, grant(4, share=1)) == []
    finish(bench, T1, 1500)
    assert [key[1].serial for key in bench[0].waiting] == [4]


def test_the_waiting_queue_is_bounded_in_items() -> None:
    """R-limit-1: 16 per slot may wait, then Refused *full*."""
    bench = worker(slots=1)
    refusals = [give(bench, grant(n))[-1:] for n in range(1, 40)]
    full = [out for out in refusals if out and isinstance(out[0], Send)]
    waiting = len(bench[0].waiting)
    assert 16 <= waiting <= 17
    assert len(full) == 39 - 1 - waiting
    assert full[0][0].message.reason is m.Reason.FULL


def test_the_waiting_queue_is_bounded_in_bytes() -> None:
    """R-limit-1: 4 MiB of inline work may wait."""
    bench = worker(slots=8)
    work = b"x" * 65_536
    for serial in range(1, 80):
        give(bench, grant(serial, work=work))
    assert len(bench[0].waiting) == 64


def test_the_ledger_counts_memory_and_devices() -> None:
    """R-lease-7: the needs are mine to give, and never given twice."""
    bench = worker(slots=4, machine=caps(devices=(gpu(),)))
    asks = spec(Needs(gpu=1).to_wire())
    one, two = grant(1, spec=asks), grant(2, spec=asks)
    assert give(bench, one) == [started(one, devices=(0,))]
    assert give(bench, two) == []
    large = spec(Needs(memory=6 * GIB).to_wire())
    three, four = grant(3, spec=large), grant(4, spec=large)
    assert bench[0].waiting.keys() == {(PEER, T2)}
    assert give(worker(slots=4), three) == [started(three)]
    both = worker(slots=4)
    give(both, three)
    assert give(both, four) == []


def test_an_exclusive_attempt_runs_alone() -> None:
    """R-alloc-5: exclusive takes the whole node, or waits for it."""
    bench = worker(slots=4)
    alone = grant(2, flags=int(m.GrantFlag.EXCLUSIVE))
    give(bench, grant(1))
    assert give(bench, alone) == []
    assert finish(bench, T1, 1500)[1:] == [started(alone)]
    assert give(bench, grant(3), 1600) == []
    assert finish(bench, T2, 1700)[1:] == [started(grant(3))]


# --- hold and go ----------------------------------------------------------------------------------


def held(bench: tuple[Worker, Outbox], serial: int = 1) -> list[Effect]:
    return give(bench, grant(serial, flags=int(m.GrantFlag.HOLD)))


def test_hold_books_and_says_so_at_once() -> None:
    """R-gang-1: a worker that holds says so by Renew at once."""
    bench = worker(slots=1)
    assert held(bench) == [listing(1000, (T1, HELD))]
    assert bench[0].ledger.free().cpu_units == 0


def test_hold_without_room_is_refused() -> None:
    """R-lease-7: a held attempt must fit the ledger; it never waits."""
    bench = worker(slots=1)
    give(bench, grant(1))
    assert held(bench, 2) == [refused(T2, 1000, m.Reason.FULL)]


def test_go_starts_what_is_held() -> None:
    """Table of the attempt at the worker: held, Grant *go*, deadline ahead: running."""
    bench = worker()
    held(bench)
    go = grant(1, flags=int(m.GrantFlag.GO))
    assert give(bench, go, 2000) == [started(grant(1, flags=int(m.GrantFlag.HOLD)))]
    assert give(bench, go, 2100) == []


def test_hold_again_answers_by_renew() -> None:
    """R-lease-8: if held, the repeated Grant is answered by Renew at once."""
    bench = worker()
    held(bench)
    again = grant(1, flags=int(m.GrantFlag.HOLD))
    assert give(bench, again, 1700) == [listing(1700, (T1, HELD))]


def test_go_after_the_deadline_does_not_start() -> None:
    """R-lease-11: a held attempt whose deadline passed lapses, whatever is said then."""
    bench = worker()
    held(bench)
    effects = give(bench, grant(1, flags=int(m.GrantFlag.GO)), 20_000)
    assert not [one for one in effects if isinstance(one, Start)]
    assert tick(bench, 20_000)[0] == refused(T1, 20_000, m.Reason.LAPSED)


# --- Recall ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [False, True])
def test_recall_of_an_unknown_token_buries_it(stop: bool) -> None:
    """R-cancel-2: a tombstone, and Refused; the Grant that comes later never starts."""
    bench = worker()
    bench[0].on_recall(PEER, m.Recall(T1, stop), 900)
    assert done(bench) == [refused(T1, 900, m.Reason.RECALLED)]
    assert give(bench, grant()) == [refused(T1, 1000, m.Reason.RECALLED)]


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("flags", [0, int(m.GrantFlag.HOLD)])
def test_recall_takes_back_what_has_not_started(stop: bool, flags: int) -> None:
    """R-cancel-2: of a waiting or held one it removes it, and frees what it held."""
    bench = worker(slots=1)
    if not flags:
        give(bench, grant(3))
    give(bench, grant(1, flags=flags))
    bench[0].on_recall(PEER, m.Recall(T1, stop), 1200)
    assert done(bench) == [refused(T1, 1200, m.Reason.RECALLED)]
    assert (PEER, T1) not in bench[0].works


def test_recall_without_stop_leaves_a_running_attempt_alone() -> None:
    """R-cancel-2: of a running one it does nothing, and never grows into a stop."""
    bench = worker()
    give(bench, grant())
    for now_ms in (1100, 2100, 3100):
        bench[0].on_recall(PEER, m.Recall(T1, False), now_ms)
    assert done(bench) == []
    assert bench[0].works[PEER, T1].state is State.RUNNING


def test_recall_with_stop_kills_and_the_slot_waits_for_the_processes() -> None:
    """R-cancel-3: *stopped* is said, and the slot offered, only when the tree is gone."""
    bench = worker(slots=1)
    give(bench, grant(1))
    give(bench, grant(2))
    bench[0].on_recall(PEER, m.Recall(T1, True), 1500)
    assert done(bench) == [Kill((PEER, T1), "stop")]
    bench[0].on_recall(PEER, m.Recall(T1, True), 2500)
    assert done(bench) == []
    bench[0].on_gone((PEER, T1), 2600)
    stopped = m.Outcome(T1, task_id(1), INC, m.Status.STOPPED, b"", m.Facts(text="stop"))
    assert done(bench) == [Send(PEER, stopped), started(grant(2))]


def test_recall_of_a_spooled_attempt_gets_its_outcome() -> None:
    """R-lease-8: what has ended answers with its Outcome, whoever asks."""
    bench = worker()
    give(bench, grant())
    ended = finish(bench, T1, 1500)
    bench[0].on_recall(PEER, m.Recall(T1, True), 1600)
    assert done(bench) == ended


def test_done_wins_over_a_stop_that_came_too_late() -> None:
    """R-cancel-1: work that was *done* first is done."""
    bench = worker()
    give(bench, grant())
    bench[0].on_recall(PEER, m.Recall(T1, True), 1500)
    done(bench)
    effects = finish(bench, T1, 1501)
    assert effects[0].message.status is m.Status.DONE


# --- Renew and Renewed ----------------------------------------------------------------------------


def renewed(
    bench: tuple[Worker, Outbox], stamp_ms: int, now_ms: int, *no: Token, inc: int = INC
) -> list[Effect]:
    bench[0].on_renewed(PEER, m.Renewed(inc, stamp_ms, no), now_ms)
    return done(bench)


def deadline(bench: tuple[Worker, Outbox], token: Token = T1) -> int:
    return bench[0].works[PEER, token].deadline_ms


def test_renew_lists_all_live_attempts_of_one_owner_every_second() -> None:
    """R-lease-13: every R to each owner with live attempts, ending ones as running."""
    bench = worker(slots=1)
    give(bench, grant(1))
    give(bench, grant(2))
    give(bench, grant(3), owner=OTHER)
    bench[0].on_recall(PEER, m.Recall(T1, True), 1500)
    done(bench)
    assert tick(bench, 1999) == []
    assert tick(bench, 2000) == [
        listing(2000, (T1, RUNNING), (T2, WAITING)),
        Send(OTHER, m.Renew(INC, 2000, (m.Listed(T3, WAITING),))),
    ]
    assert tick(bench, 2999) == []


def test_nothing_live_is_nothing_to_renew() -> None:
    """R-lease-13: a spooled attempt is not live."""
    bench = worker()
    give(bench, grant())
    finish(bench, T1, 1500)
    effects = tick(bench, 2400)
    assert effects == []


def test_renewed_moves_the_deadline_from_its_own_stamp() -> None:
    """R-lease-10: to its stamp + L - K, wherever the answer lingered."""
    bench = worker()
    give(bench, grant())
    tick(bench, 2000)
    assert renewed(bench, 2000, 9000) == [Extend((PEER, T1), 21_000)]
    assert deadline(bench) == 2000 + 20_000 - 1000


def test_a_deadline_never_moves_back() -> None:
    """R-lease-10: an old answer that arrives late changes nothing."""
    bench = worker()
    give(bench, grant())
    tick(bench, 2000)
    tick(bench, 3000)
    renewed(bench, 3000, 3100)
    renewed(bench, 2000, 3200)
    assert deadline(bench) == 3000 + 19_000


def test_a_deadline_that_has_passed_does_not_move() -> None:
    """R-lease-10: never once it has passed."""
    bench = worker()
    give(bench, grant())
    tick(bench, 2000)
    renewed(bench, 2000, 20_000)
    assert deadline(bench) == 20_000
    assert tick(bench, 20_000)[0] == Kill((PEER, T1), "lapsed")


@pytest.mark.parametrize(("stamp_ms", "inc"), [(1999, INC), (2001, INC), (2000, INC - (1 << 32))])
def test_only_a_renewed_of_that_very_renew_counts(stamp_ms: int, inc: int) -> None:
    """R-lease-10: my incarnation, and a stamp at which I sent a list."""
    bench = worker()
    give(bench, grant())
    tick(bench, 2000)
    renewed(bench, stamp_ms, 2100, inc=inc)
    assert deadline(bench) == 20_000


def test_renewed_confirms_only_what_that_renew_listed() -> None:
    """R-lease-10: a token granted after the Renew left is not meant."""
    bench = worker()
    give(bench, grant(1))
    tick(bench, 2000)
    give(bench, grant(2), 2050)
    renewed(bench, 2000, 2100)
    assert (deadline(bench, T1), deadline(bench, T2)) == (21_000, 20_000)


def test_only_the_last_eight_lists_are_kept() -> None:
    """R-lease-10: a stamp older than the last 8 lists moves nothing."""
    bench = worker()
    give(bench, grant())
    for second in range(2, 11):
        tick(bench, second * 1000)
    renewed(bench, 2000, 10_100)
    assert deadline(bench) == 20_000
    renewed(bench, 3000, 10_100)
    assert deadline(bench) == 22_000


def test_no_two_renews_to_one_owner_share_a_stamp() -> None:
    """R-lease-13: else the answer to a shorter list would confirm a longer one."""
    bench = worker(slots=4)
    effects = held(bench, 1) + held(bench, 2)
    for now_ms in (1001, 1002):
        effects += tick(bench, now_ms)
    stamps = [one.message.stamp_ms for one in effects]
    assert len(set(stamps)) == len(stamps)
    assert effects[-1].message.attempts == (m.Listed(T1, HELD), m.Listed(T2, HELD))


def test_what_renewed_refuses_is_stopped_or_given_back() -> None:
    """R-lease-6, table: running is killed, waiting and held are Refused *recalled*."""
    bench = worker(slots=1)
    give(bench, grant(1))
    give(bench, grant(2))
    tick(bench, 2000)
    assert renewed(bench, 2000, 2100, T1, T2) == [
        refused(T2, 2100, m.Reason.RECALLED),
        Kill((PEER, T1), "stop"),
    ]


# --- the end of a lease ---------------------------------------------------------------------------


def test_a_running_attempt_is_killed_at_its_deadline() -> None:
    """R-lease-7: the attempt may run until echo + L - K, and not a moment longer."""
    bench = worker()
    give(bench, grant())
    before = tick(bench, 19_999)
    assert not [one for one in before if isinstance(one, Kill)]
    assert tick(bench, 20_000) == [Kill((PEER, T1), "lapsed")]
    bench[0].on_gone((PEER, T1), 20_050)
    lapsed = m.Outcome(T1, task_id(1), INC, m.Status.LAPSED, b"", m.Facts(text="lapsed"))
    assert done(bench) == [Send(PEER, lapsed)]


def test_what_waits_or_is_held_lapses_as_refused() -> None:
    """R-lease-11: a waiting or held attempt whose deadline passed is Refused *lapsed*."""
    bench = worker(slots=2)
    give(bench, grant(1, lease_ms=100_000))
    held(bench, 2)
    give(bench, grant(3))
    effects = tick(bench, 20_000)
    assert effects[:2] == [
        refused(T2, 20_000, m.Reason.LAPSED),
        refused(T3, 20_000, m.Reason.LAPSED),
    ]
    assert effects[2:] == [listing(20_000, (T1, RUNNING))]


def test_the_timeout_counts_from_the_start() -> None:
    """Table: running, timeout: the supervisor kills; it is charged to the task."""
    bench = worker()
    give(bench, grant(spec=spec(timeout_ms=300)), 1100)
    assert tick(bench, 1399) == []
    assert tick(bench, 1400) == [Kill((PEER, T1), "timeout")]
    bench[0].on_gone((PEER, T1), 1450)
    assert done(bench)[0].message.status is m.Status.TIMEOUT


def test_outcomes_are_repeated_until_acknowledged() -> None:
    """R-outcome-6: after 2 s, doubled up to 30 s, until OutcomeAck."""
    bench = worker()
    give(bench, grant())
    finish(bench, T1, 2000)
    sent = [now_ms for now_ms in range(2000, 100_000, 500) if tick(bench, now_ms)]
    assert sent == [4000, 8000, 16_000, 32_000, 62_000, 92_000]
    bench[0].on_outcome_ack(PEER, m.OutcomeAck((T1,)), 92_100)
    assert tick(bench, 200_000) == []


def test_an_acknowledged_token_never_starts_again() -> None:
    """R-lease-7, R-lease-9: a seen token is a tombstone after OutcomeAck."""
    bench = worker()
    give(bench, grant())
    finish(bench, T1, 2000)
    bench[0].on_outcome_ack(PEER, m.OutcomeAck((T1, T2)), 2100)
    assert give(bench, grant(echo_ms=2000), 2200) == [refused(T1, 2200, m.Reason.LATE)]


def test_an_ack_of_a_live_attempt_is_passed_over() -> None:
    """OutcomeAck: only what is spooled can be acknowledged."""
    bench = worker()
    give(bench, grant())
    bench[0].on_outcome_ack(PEER, m.OutcomeAck((T1,)), 1500)
    assert bench[0].works[PEER, T1].state is State.RUNNING


# --- tombstones and floors ------------------------------------------------------------------------


def test_a_forgotten_token_becomes_the_floor() -> None:
    """R-lease-9: unknown tokens at or below the highest forgotten serial are refused *late*."""
    bench = worker()
    bench[0].on_recall(PEER, m.Recall(Token(5 << 32, 7), False), 1000)
    done(bench)
    tick(bench, 41_001)
    assert not bench[0].tombstones
    for serial in (3, 7):
        assert give(bench, grant(serial, echo_ms=41_000), 41_002) == [
            refused(Token(5 << 32, serial), 41_002, m.Reason.LATE)
        ]
    fresh = grant(8, echo_ms=41_000)
    assert give(bench, fresh, 41_002) == [started(fresh)]


def test_a_touched_tombstone_lasts_longer() -> None:
    """R-lease-9: 2 L after the last touch."""
    bench = worker()
    give(bench, grant(echo_ms=1001))
    give(bench, grant(), 30_000)
    tick(bench, 41_500)
    assert (PEER, T1) in bench[0].tombstones
    tick(bench, 70_001)
    assert (PEER, T1) not in bench[0].tombstones


def test_tombstones_are_bounded_and_the_oldest_go_first() -> None:
    """R-lease-9: 65 536 at most; whoever forgets raises the floor."""
    bench = worker()
    for serial in range(1, TOMBSTONES_MAX + 3):
        bench[0].on_recall(PEER, m.Recall(Token(5 << 32, serial), False), 1000)
    assert len(bench[0].tombstones) == TOMBSTONES_MAX
    bench[1].take()
    assert give(bench, grant(2)) == [refused(T2, 1000, m.Reason.LATE)]
    assert (PEER, Token(5 << 32, 4)) in bench[0].tombstones
    assert len(bench[0].tombstones) == TOMBSTONES_MAX


def test_a_floor_of_one_owner_is_not_that_of_another() -> None:
    """R-lease-9: the floor is kept per owner incarnation."""
    bench = worker()
    bench[0].on_recall(PEER, m.Recall(Token(5 << 32, 7), False), 1000)
    tick(bench, 41_001)
    one = grant(3, echo_ms=41_000)
    assert give(bench, one, 41_002, owner=OTHER)[0] == started(one, owner=OTHER)
    newer = grant(3, token=Token(6 << 32, 3), echo_ms=41_000)
    assert give(bench, newer, 41_002)[0] == started(newer)


# --- drain and objects ----------------------------------------------------------------------------


def test_drain_hands_back_what_has_not_started() -> None:
    """R-life-8: waiting attempts are handed back as Refused *draining*, running ones end."""
    bench = worker(slots=1)
    give(bench, grant(1))
    give(bench, grant(2))
    bench[0].drain(True, 1500)
    assert done(bench) == [refused(T2, 1500, m.Reason.DRAINING)]
    assert finish(bench, T1, 1600)[0].message.status is m.Status.DONE


def test_objects_are_fetched_once_and_waited_for() -> None:
    """R-lease-15, R-object-2: one fetch per digest; fetching is part of running."""
    bench = worker(slots=2)
    ref = m.Ref(digest(1), 100_000)
    one, two = grant(1, code=ref), grant(2, code=ref)
    assert give(bench, one) == [Pin(ref.digest), Fetch(ref, PEER)]
    assert give(bench, two) == []
    assert bench[0].ledger.leases() == 2
    bench[0].on_fetched(ref.digest, 1200)
    assert done(bench) == [started(one), started(two)]


def test_what_waits_fetches_ahead() -> None:
    """R-lease-15: waiting attempts may fetch ahead, and start without delay."""
    bench = worker(slots=1)
    ref = m.Ref(digest(1), 100_000)
    give(bench, grant(1))
    assert give(bench, grant(2, work=ref)) == [Pin(ref.digest), Fetch(ref, PEER)]
    bench[0].on_fetched(ref.digest, 1200)
    assert done(bench) == []
    assert finish(bench, T1, 1500)[1:] == [started(grant(2, work=ref))]


def test_what_cannot_be_fetched_is_no_input() -> None:
    """R-lease-15: what it lacks and cannot get makes it Outcome *no_input*."""
    bench = worker()
    give(bench, grant(code=m.Ref(digest(1), 100_000)))
    bench[0].on_fetch_failed(digest(1), "gone", 1300)
    expected = m.Outcome(T1, task_id(1), INC, m.Status.NO_INPUT, b"", m.Facts(text="gone"))
    assert done(bench) == [Unpin(digest(1)), Send(PEER, expected)]
    assert bench[0].ledger.leases() == 0


def test_what_was_killed_while_it_fetched_has_no_process_to_wait_for() -> None:
    """R-cancel-3: *stopped* at once, since nothing ran; the object is not started later."""
    bench = worker()
    give(bench, grant(code=m.Ref(digest(1), 100_000)))
    bench[0].on_recall(PEER, m.Recall(T1, True), 1100)
    effects = done(bench)
    assert [x.message.status for x in effects if isinstance(x, Send)] == [m.Status.STOPPED]
    assert not [x for x in effects if isinstance(x, Kill)]
    bench[0].on_fetched(digest(1), 1200)
    assert done(bench) == []


# --- the spool ------------------------------------------------------------------------------------


def test_a_durable_outcome_is_flushed_before_it_is_sent() -> None:
    """R-outcome-6: flushed to the spool before they are sent, and kept until OutcomeAck."""
    bench = worker()
    give(bench, grant(flags=int(m.GrantFlag.DURABLE)))
    expected = m.Outcome(T1, task_id(1), INC, m.Status.DONE, b"42", NO_FACTS)
    assert finish(bench, T1, 2000) == [Persist((SpoolRow(PEER, expected),), 1)]
    assert tick(bench, 2900) == []
    bench[1].on_flushed(1, 3000)
    assert done(bench) == [Send(PEER, expected)]
    bench[0].on_outcome_ack(PEER, m.OutcomeAck((T1,)), 3100)
    assert done(bench) == [Persist((UnspoolRow(PEER, T1),), 2)]


def test_a_restarted_worker_sends_its_spool() -> None:
    """R-life-1: read journal and spool; send the spool; repeated until acknowledged."""
    bench = worker()
    older = m.Outcome(T1, task_id(1), INC - (1 << 32), m.Status.DONE, b"42", NO_FACTS)
    bench[0].restore([SpoolRow(PEER, older)], 100)
    assert done(bench) == [Send(PEER, older)]
    assert tick(bench, 2100) == [Send(PEER, older)]
    assert give(bench, grant(), 2200) == [Send(PEER, older)]


def test_supply_tells_the_ledger() -> None:
    """Heartbeat: totals, free, running and waiting as they are now."""
    bench = worker(slots=1)
    give(bench, grant(1))
    give(bench, grant(2))
    told = bench[0].supply()
    assert (told.cpu_units, told.free_cpu_units) == (10_000, 0)
    assert (told.running, told.waiting, told.draining) == (1, 1, False)
    assert told.memory_bytes == 8 * GIB
