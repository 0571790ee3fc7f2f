"""Whoever records outcomes gets each of them once: alone, in bundles, cancelled, and flushed."""

from __future__ import annotations

from collections.abc import Sequence

from blackroad.bus import messages as m
from blackroad.router.records import Task
from tests.unit.builders import PEER, OwnerBench, outcome, task_id
from tests.unit.test_bundles import bundle, cancel, early, number, said


class Ear:
    """What was told, as (number, end), a list for each batch."""

    def __init__(self, bench: OwnerBench) -> None:
        self.batches: list[list[tuple[int, str]]] = []
        bench.owner.on_ended = self.hear

    def hear(self, tasks: Sequence[Task]) -> None:
        assert all(task.ended is not None for task in tasks)
        self.batches.append(
            [(number(task.id), task.ended.end.name) for task in tasks if task.ended is not None]
        )


def test_a_bundle_is_told_in_two_batches_each_task_once() -> None:
    bench = OwnerBench()
    token = bundle(bench)
    ear = Ear(bench)
    said(bench, 100, outcome(token, 5, before=early(1, 2, 3, 4)))
    told = sorted(one for batch in ear.batches for one in batch)
    assert told == [(one, "DONE") for one in (1, 2, 3, 4, 5)]
    assert len(ear.batches) == 2, "those of a bundle come together"
    said(bench, 200, outcome(token, 5, before=early(1, 2, 3, 4)))
    assert len(ear.batches) == 2, "the same word again is no other outcome"


def test_a_task_alone_and_one_that_is_cancelled() -> None:
    bench = OwnerBench()
    ear = Ear(bench)
    token = bench.granted(1)
    bench.owner.on_outcome(PEER, outcome(token, 1, facts=m.Facts(run_us=7)), 5)
    bench.turn(5)
    assert ear.batches == [[(1, "DONE")]]
    idle = OwnerBench()
    ear = Ear(idle)
    idle.submit(2)
    cancel(idle, 7, 2)
    assert ear.batches == [[(2, "CANCELLED")]]


def test_a_durable_task_is_told_when_its_end_is_flushed() -> None:
    bench = OwnerBench()
    ear = Ear(bench)
    bench.allow(PEER=4)
    bench.submit(1, durable=True)
    bench.flush(1)
    [attempt] = bench.owner.tasks[task_id(1)].attempts
    bench.flush(2)
    bench.owner.on_outcome(PEER, outcome(attempt.token, 1), 5)
    bench.turn(5)
    assert not ear.batches, "what may still be lost has not ended"
    bench.flush(6)
    assert ear.batches == [[(1, "DONE")]]
