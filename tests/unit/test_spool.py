"""What a worker owes: when it is told, and what goes when there is no room for it."""

from __future__ import annotations

import pytest

from blackroad.bus import messages as m
from blackroad.ids import Token
from blackroad.router import spool
from blackroad.router.effects import Kill, Persist
from tests.unit.builders import NO_FACTS, PEER, digest, grant, of_kind, worker

T1 = Token(5 << 32, 1)
DURABLE = int(m.GrantFlag.DURABLE)


def test_an_outcome_is_not_told_before_it_is_flushed_even_when_asked_for() -> None:
    """R-outcome-6, R-lease-8: a repeated Grant or a Recall does not run ahead of the disk."""
    bench, out = worker()
    bench.on_grant(PEER, grant(1, flags=DURABLE), 1000)
    bench.on_finished((PEER, T1), m.Status.DONE, b"42", NO_FACTS, 1100)
    [persisted] = of_kind(out.take(), Persist)
    bench.on_grant(PEER, grant(1, flags=DURABLE), 1200)
    bench.on_recall(PEER, m.Recall(T1, True), 1300)
    assert out.take() == []
    out.on_flushed(persisted.mark, 1400)
    assert len(of_kind(out.take(), m.Outcome)) == 1


def test_a_spool_without_room_drops_results_but_no_endings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R-outcome-6: the oldest first, counted; a Refused would say that it never started."""
    monkeypatch.setattr(spool, "SPOOL_BYTES_MAX", 10)
    bench, out = worker(slots=4)
    for number, flags in ((1, DURABLE), (2, 0), (3, 0)):
        bench.on_grant(PEER, grant(number, flags=flags), 1000)
        key = (PEER, Token(5 << 32, number))
        bench.on_finished(key, m.Status.DONE, b"12345678", NO_FACTS, 1100 + number)
    assert (bench.spool.bytes, bench.spool.dropped, len(bench.spool.owed)) == (8, 2, 3)
    rows = [row for one in of_kind(out.take(), Persist) for row in one.rows]
    assert [(row.outcome.status, row.outcome.result) for row in rows] == [
        (m.Status.DONE, b"12345678"),
        (m.Status.LAPSED, b""),
    ]
    out.on_flushed(out.mark, 1200)
    told = of_kind(out.take(), m.Outcome)
    assert [(one.token, one.status) for one in told] == [(T1, m.Status.LAPSED)]
    assert "dropped" in told[0].facts.text


def test_leaving_ends_what_runs_and_reports_it() -> None:
    """R-life-8: each ends as *stopped*, unasked; what was not begun has nothing to kill."""
    bench, out = worker(slots=2)
    bench.on_grant(PEER, grant(1), 1000)
    bench.on_grant(PEER, grant(2, work=m.Ref(digest(1), 9)), 1000)
    out.take()
    bench.leave(1100)
    effects = out.take()
    assert [one.key for one in of_kind(effects, Kill)] == [(PEER, T1)]
    assert [one.status for one in of_kind(effects, m.Outcome)] == [m.Status.STOPPED]
    bench.on_gone((PEER, T1), 1200)
    [told] = of_kind(out.take(), m.Outcome)
    assert (told.token, told.status) == (T1, m.Status.STOPPED)
    bench.check()


def test_what_is_owed_to_a_node_that_is_back_is_told_at_once() -> None:
    """R-outcome-6: else its owner, who restarted, starts again what ended long ago."""
    bench, out = worker(slots=2)
    for number, flags in ((1, DURABLE), (2, 0)):
        bench.on_grant(PEER, grant(number, flags=flags), 1000)
        key = (PEER, Token(5 << 32, number))
        bench.on_finished(key, m.Status.DONE, b"42", NO_FACTS, 1100)
    assert len(of_kind(out.take(), m.Outcome)) == 1
    bench.spool.owner_back(b"\x09" * 20, 1150)
    assert out.take() == []
    bench.spool.owner_back(PEER, 1200)
    # The durable one is still being written.
    assert [one.token for one in of_kind(out.take(), m.Outcome)] == [Token(5 << 32, 2)]
