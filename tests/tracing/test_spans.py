"""One task as three spans, and the form in which it travels."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import StatusCode

from blackroad.tracing.spans import resource_of, spans
from blackroad.tracing.story import Moment, Setup, Story, bodies, framed
from tests.unit.builders import task_id

SETUP = Setup("http://127.0.0.1:4318", "k3f7x2ab", "attic", "0.1")


def story(**changes: object) -> Story:
    fields = {
        "task": task_id(1),
        "owner": "k3f7x2ab-m5c7q2",
        "name": "resize",
        "user": "anna",
        "end": "done",
        "reason": "",
        "node": "q2ab7x2a",
        "attempts": 2,
        "queued_ms": 1_000,
        "ended_ms": 4_000,
        "run_us": 1_500_000,
    }
    return Story(**{**fields, **changes})  # type: ignore[arg-type]


def told(**changes: object) -> list:
    return spans(story(**changes), resource_of(SETUP))


def test_a_task_is_its_whole_life_its_wait_and_its_run() -> None:
    whole, waiting, running = told(backend="opencl:card", exit_status=0, durable=True)
    assert [one.name for one in (whole, waiting, running)] == ["task resize", "waiting", "running"]
    assert (whole.start_time, whole.end_time) == (1_000_000_000, 4_000_000_000)
    assert (waiting.start_time, waiting.end_time) == (1_000_000_000, 2_500_000_000)
    assert (running.start_time, running.end_time) == (2_500_000_000, 4_000_000_000)
    assert waiting.parent == running.parent == whole.context
    assert whole.parent is None
    assert whole.attributes["blackroad.attempts"] == 2
    assert whole.attributes["process.exit.code"] == 0
    assert running.attributes == {"blackroad.node": "q2ab7x2a", "blackroad.backend": "opencl:card"}
    assert whole.status.status_code is StatusCode.OK


def test_the_trace_is_named_by_the_task() -> None:
    found = told()
    assert {one.context.trace_id for one in found} == {int.from_bytes(task_id(1), "big")}
    assert len({one.context.span_id for one in found}) == 3
    assert [one.context for one in told()] == [one.context for one in found], "the same if resent"


def test_what_never_ran_only_waited() -> None:
    whole, waiting = told(end="expired", reason="deadline", run_us=0, node="")
    assert waiting.end_time == whole.end_time
    assert (whole.status.status_code, whole.status.description) == (StatusCode.ERROR, "deadline")
    assert "blackroad.node" not in whole.attributes


def test_a_failure_says_which() -> None:
    whole, _, running = told(end="failed", reason="TaskFailed", error="ValueError", text="no")
    assert running.status.status_code is StatusCode.ERROR
    assert whole.attributes["exception.type"] == "ValueError"
    assert whole.attributes["exception.message"] == "no"
    cancelled = told(end="cancelled", reason="cancelled")
    assert cancelled[0].status.status_code is StatusCode.OK


def test_clocks_that_disagree_make_no_span_that_ends_before_it_begins() -> None:
    for changes in ({"queued_ms": 9_000}, {"run_us": 60_000_000}):
        for one in told(**changes):
            assert one.start_time <= one.end_time


def test_what_happened_on_the_way_is_told() -> None:
    whole = told(moments=(Moment(2_000, "task.isolated", {"task": "k3f7"}),))[0]
    [event] = whole.events
    assert (event.name, event.timestamp) == ("task.isolated", 2_000_000_000)


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(1, 50))
def test_frames_are_read_back_however_they_are_cut(sizes: list[int], cut: int) -> None:
    stories = [story(name="x" * size) for size in sizes]
    stream = b"".join(map(framed, stories))
    buffer = bytearray()
    found = []
    for at in range(0, len(stream), cut):
        buffer += stream[at : at + cut]
        found += [msgspec.msgpack.decode(one, type=Story) for one in bodies(buffer)]
    assert found == stories
    assert not buffer
