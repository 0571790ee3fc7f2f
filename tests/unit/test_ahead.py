"""Handing ahead, as the worker decides it: what follows whom, and what becomes of it."""

from __future__ import annotations

import pytest

from blackroad.bus import messages as m
from blackroad.ids import Token
from blackroad.limits import AHEAD_LATE_MS, AHEAD_RUN_US_MAX
from blackroad.requirements import Needs
from blackroad.router.effects import Divide, Effect, HandAhead, Kill, Outbox, Start, TakeBack
from blackroad.router.worker import Worker
from blackroad.router.works import State
from tests.unit.builders import OTHER, PEER, grant, spec, worker
from tests.unit.test_worker import done, give, refused, started, tick

Bench = tuple[Worker, Outbox]
T = [Token(5 << 32, serial) for serial in range(12)]
QUICK = m.Facts(run_us=100)


def end(
    bench: Bench, serial: int, now_ms: int, facts: m.Facts = QUICK, **more: object
) -> list[Effect]:
    status = more.get("status", m.Status.DONE)
    bench[0].on_finished((PEER, T[serial]), status, b"", facts, now_ms)  # type: ignore[arg-type]
    return [one for one in done(bench) if isinstance(one, Start | HandAhead | TakeBack | Kill)]


def sent(
    bench: Bench, serial: int, now_ms: int = 1000, owner: bytes = PEER, **changes: object
) -> list:
    return give(bench, grant(token=T[serial], **changes), now_ms, owner)


def busy(slots: int = 1, count: int = 3, **changes: object) -> Bench:
    """A worker that runs one of a class known to be short; `count` were sent, the first is over."""
    bench = worker(slots=slots)
    for serial in range(1, count + 1):
        sent(bench, serial, **changes)
    bench[0].on_finished((PEER, T[1]), m.Status.DONE, b"", QUICK, 1010)
    done(bench)
    return bench


def follows(bench: Bench) -> dict[int, int]:
    """Which token lies behind which."""
    handed = bench[0].handed.values()
    return {one.key[1].serial: one.after.key[1].serial for one in handed if one.after}


def test_what_starts_next_is_handed_to_what_runs() -> None:
    """R-ahead-1: once the class is known to be short, and in the order of the queue."""
    bench = worker(slots=1)
    for serial in (1, 2, 3):
        sent(bench, serial)
    assert follows(bench) == {}
    assert end(bench, 1, 1010) == [
        started(grant(token=T[2])),
        HandAhead(started(grant(token=T[3])), (PEER, T[2])),
    ]
    assert follows(bench) == {3: 2}
    assert bench[0].supply().waiting == 1
    assert bench[0].works[PEER, T[3]].state is State.WAITING


def test_each_process_gets_one() -> None:
    bench = busy(slots=2, count=6)
    assert follows(bench) == {4: 2, 5: 3}
    assert list(bench[0].waiting) == [(PEER, T[6])]
    assert end(bench, 3, 1020) == [
        started(grant(token=T[5])),
        HandAhead(started(grant(token=T[6])), (PEER, T[5])),
    ]


def test_what_comes_later_is_handed_when_it_comes() -> None:
    bench = busy(count=2)
    assert follows(bench) == {}
    assert sent(bench, 3, 1011) == [HandAhead(started(grant(token=T[3])), (PEER, T[2]))]


def test_it_takes_the_place_of_the_one_before_it() -> None:
    """R-ahead-3: it may have begun, so it is booked before anything else is."""
    bench = busy(slots=1)
    give(bench, grant(token=T[4]), 1011, OTHER)
    assert end(bench, 2, 1020)[0] == started(grant(token=T[3]))
    assert bench[0].works[PEER, T[3]].state is State.RUNNING


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": spec(timeout_ms=5_000)},
        {"spec": spec(once=True)},
        {"spec": spec(exclusive=True)},
        {"spec": spec(isolated=True)},
        {"flags": int(m.GrantFlag.EXCLUSIVE)},
    ],
)
def test_what_needs_a_moment_of_its_own_is_not_handed(changes: dict[str, object]) -> None:
    assert follows(busy(**changes)) == {}


def test_a_long_class_is_not_handed() -> None:
    """It would gain nothing; one that turned out long is the last that was."""
    bench = worker(slots=1)
    for serial in (1, 2, 3):
        sent(bench, serial)
    bench[0].on_finished((PEER, T[1]), m.Status.DONE, b"", m.Facts(AHEAD_RUN_US_MAX + 1), 1010)
    done(bench)
    assert follows(bench) == {}


def test_only_what_would_start_next_is_handed() -> None:
    """R-ahead-1: another owner's attempt is first in the queue, so nothing overtakes it."""
    bench = worker(slots=1)
    sent(bench, 1)
    sent(bench, 2)
    sent(bench, 3, owner=OTHER)
    sent(bench, 4)
    end(bench, 1, 1010)
    assert follows(bench) == {}
    assert end(bench, 2, 1020) == [started(grant(token=T[3]), owner=OTHER)]


def test_a_share_that_shrank_is_kept() -> None:
    """R-lease-17: where more run than may, nothing follows."""
    bench = busy(slots=2, count=4, share=2)
    assert follows(bench) == {4: 2}
    sent(bench, 5, 1011, share=1)
    assert follows(bench) == {4: 2}


def test_what_has_a_sooner_deadline_is_not_handed() -> None:
    """R-ahead-2: the supervisor watches the deadline of the one before it."""
    bench = worker(slots=1)
    sent(bench, 1)
    sent(bench, 2)
    sent(bench, 3, echo_ms=400)
    end(bench, 1, 1010)
    assert follows(bench) == {}


def test_other_needs_are_not_handed() -> None:
    """What runs frees what it held, and no more."""
    bench = worker(slots=2)
    sent(bench, 1)
    sent(bench, 2)
    sent(bench, 3, cls=2, spec=spec(Needs(cpu=2).to_wire()))
    end(bench, 1, 1010)
    assert follows(bench) == {}


def test_a_free_place_takes_back_what_lies_elsewhere() -> None:
    """R-ahead-4: nothing lies behind a busy process while another place is free."""
    bench = busy(slots=2, count=4)
    assert follows(bench) == {4: 2}
    assert end(bench, 3, 1020) == [TakeBack((PEER, T[4]))]
    # Asked once, however often the worker looks.
    assert sent(bench, 5, 1021, OTHER, cls=2) == [started(grant(token=T[5], cls=2), owner=OTHER)]
    bench[0].on_returned((PEER, T[4]), 1022)
    done(bench)
    # The place was taken meanwhile, so it is the next one as before.
    assert follows(bench) == {4: 2}


def test_what_returns_starts_where_there_is_room() -> None:
    bench = busy(slots=2, count=4)
    end(bench, 3, 1020)
    bench[0].on_returned((PEER, T[4]), 1021)
    assert done(bench) == [started(grant(token=T[4]))]
    assert end(bench, 2, 1030) == []


def test_what_lies_too_long_is_taken_back() -> None:
    """R-ahead-4: whoever it lies behind takes longer than was thought."""
    bench = busy()
    assert tick(bench, 1010 + AHEAD_LATE_MS - 1) == []
    assert bench[0].next_deadline_ms() == 1010 + AHEAD_LATE_MS
    assert TakeBack((PEER, T[3])) in tick(bench, 1010 + AHEAD_LATE_MS)
    bench[0].on_returned((PEER, T[3]), 1300)
    done(bench)
    assert follows(bench) == {}
    assert list(bench[0].waiting) == [(PEER, T[3])]


@pytest.mark.parametrize("stop", [False, True])
def test_a_recall_is_answered_when_it_is_known_what_became_of_it(stop: bool) -> None:
    """R-ahead-2: Refused is a proof, so nobody says it before the process was asked."""
    bench = busy()
    bench[0].on_recall(PEER, m.Recall(T[3], stop), 1020)
    assert done(bench) == [TakeBack((PEER, T[3]))]
    bench[0].on_recall(PEER, m.Recall(T[3], stop), 1021)
    assert done(bench) == []
    bench[0].on_returned((PEER, T[3]), 1022)
    assert done(bench) == [refused(T[3], 1022, m.Reason.RECALLED)]


@pytest.mark.parametrize("stop", [False, True])
def test_a_recall_of_what_has_begun(stop: bool) -> None:
    """Then the one before it ends, and it runs: it is stopped if that was asked."""
    bench = busy()
    bench[0].on_recall(PEER, m.Recall(T[3], stop), 1020)
    done(bench)
    kills = [Kill((PEER, T[3]), "stop")] if stop else []
    assert end(bench, 2, 1030) == [started(grant(token=T[3])), *kills]
    # What is answered late changes nothing.
    bench[0].on_returned((PEER, T[3]), 1031)
    assert done(bench) == []


def test_a_bundle_that_was_recalled_and_has_begun_is_divided() -> None:
    more = (m.Small(bytes(15) + b"\x09", b"w"),)
    bench = busy(more=more)
    bench[0].on_recall(PEER, m.Recall(T[3], False), 1020)
    bench[0].on_finished((PEER, T[2]), m.Status.DONE, b"", QUICK, 1030)
    assert Divide((PEER, T[3])) in done(bench)


def test_draining_hands_back_what_was_handed_ahead() -> None:
    bench = busy()
    bench[0].drain(True, 1020)
    assert done(bench) == [TakeBack((PEER, T[3]))]
    bench[0].on_returned((PEER, T[3]), 1021)
    assert done(bench) == [refused(T[3], 1021, m.Reason.DRAINING)]


def test_leaving_ends_what_began_by_itself() -> None:
    bench = busy()
    bench[0].drain(True, 1020)
    bench[0].leave(1020)
    assert done(bench) == [TakeBack((PEER, T[3])), Kill((PEER, T[2]), "leave")]
    ends = end(bench, 2, 1030)
    assert ends == [started(grant(token=T[3])), Kill((PEER, T[3]), "leave")]


def test_what_has_begun_in_spite_of_a_recall_has_its_deadline() -> None:
    """R-lease-11: it runs like any other from then on."""
    bench = busy()
    bench[0].drain(True, 1020)
    done(bench)
    bench[0].on_finished((PEER, T[2]), m.Status.DONE, b"", QUICK, 1030)
    done(bench)
    until_ms = bench[0].works[PEER, T[3]].deadline_ms
    assert bench[0].next_deadline_ms() <= until_ms
    for now_ms in (until_ms - 1, until_ms):
        effects = tick(bench, now_ms)
    assert Kill((PEER, T[3]), "lapsed") in effects


def test_a_deadline_that_passes_is_asked_for_first() -> None:
    """R-lease-11: Refused *lapsed* says that it never started."""
    bench = busy()
    work = bench[0].works[PEER, T[3]]
    bench[0].on_recall(PEER, m.Recall(T[9], False), 1020)
    done(bench)
    for key in list(bench[0].works):
        bench[0].works[key].deadline_ms = 5_000
    effects = tick(bench, 5_000)
    assert Kill((PEER, T[2]), "lapsed") in effects
    assert TakeBack((PEER, T[3])) in effects
    assert bench[0].next_deadline_ms() > 5_000
    bench[0].on_returned(work.key, 5_001)
    assert done(bench) == [refused(T[3], 5_001, m.Reason.LAPSED)]


def test_renewed_moves_the_later_one_first() -> None:
    """R-ahead-2: at no moment is the deadline that is watched the later one."""
    bench = busy()
    tick(bench, 2_000)
    stamp_ms = bench[0].renewing.owners[PEER].lists[-1][0]
    bench[0].on_renewed(PEER, m.Renewed(bench[0].inc, stamp_ms, ()), 2_050)
    moved = [one.key[1] for one in done(bench) if type(one).__name__ == "Extend"]
    assert moved == [T[3], T[2]]


def test_the_end_of_one_that_was_killed_starts_what_lay_behind_it() -> None:
    bench = busy()
    bench[0].on_recall(PEER, m.Recall(T[2], True), 1020)
    assert done(bench) == [Kill((PEER, T[2]), "stop")]
    bench[0].on_gone((PEER, T[2]), 1030)
    assert started(grant(token=T[3])) in done(bench)
