"""The owner tells of each attempt that ran and came to nothing, once, and of no other."""

from __future__ import annotations

from blackroad.bus import messages as m
from blackroad.router.records import Attempt, Task
from tests.unit.builders import INC, PEER, OwnerBench, outcome
from tests.unit.test_bundles import bundle, early, number, said


class Ear:
    """What was told: of which task, why, and whether the attempt is over in its owner's books."""

    def __init__(self, bench: OwnerBench) -> None:
        self.told: list[tuple[int, str]] = []
        bench.owner.runs.on_lost = self.hear

    def hear(self, task: Task, attempt: Attempt, now_ms: int) -> None:
        assert attempt.ran
        assert attempt.verdict is not None
        assert attempt not in task.attempts
        assert now_ms > 0
        self.told.append((number(task.id), attempt.verdict.why))


def test_a_crash_is_told_and_the_attempt_that_follows_is_not() -> None:
    bench = OwnerBench()
    ear = Ear(bench)
    token = bench.granted(1)
    bench.owner.on_outcome(PEER, outcome(token, 1, status=m.Status.CRASHED), 5)
    bench.turn(5)
    assert ear.told == [(1, "crashed")]
    [attempt] = bench.owner.attempts.values()
    bench.owner.on_outcome(PEER, outcome(attempt.token, 1), 9)
    bench.turn(9)
    assert ear.told == [(1, "crashed")]


def test_what_was_refused_never_ran() -> None:
    bench = OwnerBench()
    ear = Ear(bench)
    token = bench.granted(1)
    bench.owner.on_refused(PEER, m.Refused(token, INC, 500, m.Reason.FULL), 5)
    bench.turn(5)
    assert ear.told == []


def test_of_a_bundle_those_that_are_done_are_not_lost() -> None:
    bench = OwnerBench()
    token = bundle(bench)
    ear = Ear(bench)
    crashed = outcome(token, 3, status=m.Status.CRASHED, before=early(1, 2))
    said(bench, 100, crashed)
    assert ear.told == [(3, "crashed")]
