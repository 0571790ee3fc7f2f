"""Traces of a real daemon's tasks, and a collector that is away, slow to come back, or gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blackroad.bus import messages as m
from blackroad.bus.sources import Sources
from blackroad.errors import MissingPackage
from blackroad.events import Event
from blackroad.ids import task_text
from blackroad.tracing import part as tracing
from blackroad.tracing.part import FAILURES_PER_S, QUEUE_BYTES_MAX, TASKS_PER_S, Traces, part
from blackroad.tracing.story import Setup
from tests.edge.meshes import Mesh, until
from tests.metrics.test_tally import ended
from tests.tracing.collector import Collector, attributes, collecting
from tests.unit.builders import ME, task_id

pytestmark = pytest.mark.edge


class Bench:
    """The daemon's side, without a daemon; `said` is what it told."""

    def __init__(self, url: str) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.sources = Sources()
        self.now_ms = 0
        self.traces = Traces(
            Setup(url, "k3f7x2ab", "attic", "0.1"),
            ME,
            self.sources,
            lambda name, **facts: self.said.append((name, facts)),
        )

    def turns(self, until: Callable[[], object]) -> None:
        """Tick, and hear the process, until that is so."""
        for _ in range(3_000):
            if until():
                return
            self.now_ms += 1_000
            self.traces.tick(self.now_ms)
            for what, room in self.sources.poller.wait(10):
                self.sources.handle(what, room)
        raise AssertionError(f"it did not come to that; said {self.said}")

    def names(self) -> list[str]:
        return [name for name, _ in self.said]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as one:
        yield one


@pytest.fixture
def bench(collector: Collector) -> Iterator[Bench]:
    made = Bench(collector.url)
    yield made
    made.traces.close()


def test_tasks_arrive_with_all_their_spans(bench: Bench, collector: Collector) -> None:
    bench.traces.event(
        Event("x", 5, "k3f7", "attic", "task.isolated", "warning", task_text(ME, task_id(2)), {})
    )
    bench.traces.ended([ended(1), ended(2, "g", m.End.FAILED)])
    bench.turns(lambda: len(collector.spans) == 6)
    wholes = {attributes(one).get("blackroad.name"): one for one in collector.spans}
    assert wholes["f"].trace_id == task_id(1)
    assert [event.name for event in wholes["g"].events] == ["task.isolated"]
    assert attributes(wholes["g"])["blackroad.end"] == "failed"
    assert collector.resources[0]["host.name"] == "attic"
    assert not bench.said


def test_a_collector_that_is_away_loses_nothing(bench: Bench, collector: Collector) -> None:
    collector.refusing = True
    for number in range(1, 6):
        bench.traces.ended([ended(number)])
    bench.turns(lambda: bench.names() == ["traces.behind"])
    bench.traces.ended([ended(6)])
    collector.refusing = False
    bench.turns(lambda: bench.names() == ["traces.behind", "traces.again"])
    bench.turns(lambda: len({one.trace_id for one in collector.spans}) == 6)
    assert len(collector.spans) == 18


def test_a_process_that_is_killed_is_followed_by_another(
    bench: Bench, collector: Collector
) -> None:
    bench.traces.ended([ended(1)])
    bench.turns(lambda: len(collector.spans) == 3)
    process = bench.traces._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    bench.turns(lambda: "traces.behind" in bench.names())
    bench.traces.ended([ended(2)])
    bench.turns(lambda: len(collector.spans) == 6)
    assert bench.traces._process is not process


def test_beyond_so_many_a_second_tasks_are_left_out_but_failures_are_not() -> None:
    bench = Bench("http://127.0.0.1:9")
    bench.traces.ended([ended(at) for at in range(TASKS_PER_S + 50)])
    assert bench.traces.skipped == 50
    bench.traces.ended([ended(at, end=m.End.FAILED) for at in range(FAILURES_PER_S + 5)])
    assert bench.traces.skipped == 55
    assert len(bench.traces._queue) == TASKS_PER_S + FAILURES_PER_S


def test_what_waits_is_bounded() -> None:
    bench = Bench("http://127.0.0.1:9")
    # No process can be started: nothing leaves.
    bench.traces._again_at_ms = 10**12
    for second in range(40):
        bench.traces.ended([ended(at, "n" * 64) for at in range(TASKS_PER_S)])
        bench.traces.tick(second)
    assert bench.traces._queued_bytes <= QUEUE_BYTES_MAX
    assert bench.traces.skipped > 0
    assert bench.traces._queued_bytes == sum(map(len, bench.traces._queue))


def test_what_is_remembered_of_tasks_on_their_way_is_bounded() -> None:
    bench = Bench("http://127.0.0.1:9")
    for at in range(3 * tracing.REMEMBERED_MAX):
        for _ in range(2):
            cause = f"k3f7x2ab-{at}"
            bench.traces.event(Event("x", 5, "n", "h", "task.stuck", "warning", cause, {}))
    bench.traces.event(Event("x", 5, "n", "h", "task.failed", "warning", "k3f7x2ab-end", {}))
    assert len(bench.traces._moments) == tracing.REMEMBERED_MAX
    assert "k3f7x2ab-end" not in bench.traces._moments


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage) as caught:
        part(None)  # type: ignore[arg-type]
    assert "blackroad[otel]" in caught.value.hint


def add(x: int, y: int) -> int:
    """Something to be done."""
    return x + y


def test_a_real_daemons_task_is_a_trace(collector: Collector) -> None:
    mesh = Mesh(BLACKROAD_OTEL_URL=collector.url)
    try:
        attic = mesh.add("attic")
        future = mesh.client(attic).submit(add, 1, 2)
        assert future.result(timeout=60) == 3
        until(lambda: len(collector.spans) == 3, "three spans")
        whole = next(one for one in collector.spans if not one.parent_span_id)
        told = attributes(whole)
        assert told["blackroad.task"] == future.task_id
        assert told["blackroad.end"] == "done"
        assert {one.name for one in collector.spans} == {whole.name, "waiting", "running"}
        # Its process ends with it, and what was done last is sent before.
        mesh.client(attic).submit(add, 3, 4).result(timeout=60)
        assert attic.end() == 0
        assert len(collector.spans) == 6
        until(lambda: not mesh.processes(), "nothing left")
    finally:
        mesh.close()


def test_nothing_waits_for_a_collector_that_is_not_there() -> None:
    mesh = Mesh(BLACKROAD_OTEL_URL="http://127.0.0.1:9")
    try:
        attic = mesh.add("attic")
        client = mesh.client(attic)
        assert client.submit(add, 1, 2).result(timeout=60) == 3
        until(lambda: attic.events("traces.behind"), "a line about it")
        assert client.submit(add, 2, 2).result(timeout=60) == 4
        assert attic.end() == 0
    finally:
        mesh.close()
