"""One ended task as three spans: its whole life, its wait, its run.

Needs the extra `otel`, and is imported only by the process that sends.  The trace is named by the
task's own id, so that it is found by what `blackroad submit` printed.

Source  OpenTelemetry trace data model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from blackroad.digest import blake2b
from blackroad.tracing.story import Moment

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes

    from blackroad.tracing.story import Setup, Story

_NS_PER_MS: Final = 1_000_000
_SCOPE: Final = InstrumentationScope("blackroad")
_WELL: Final = frozenset({"done", "cancelled"})


def resource_of(setup: Setup) -> Resource:
    """Who tells."""
    return Resource.create(
        {
            "service.name": "blackroad",
            "service.version": setup.version,
            "service.instance.id": setup.node,
            "host.name": setup.host,
        }
    )


def spans(story: Story, resource: Resource) -> list[ReadableSpan]:
    """The spans of one task, the whole one first."""
    ended_ns = story.ended_ms * _NS_PER_MS
    queued_ns = min(story.queued_ms * _NS_PER_MS, ended_ns)
    # The owner hears of the end a little later; a run begins with its task at the earliest.
    began_ns = max(queued_ns, ended_ns - story.run_us * 1_000)
    ran = story.run_us > 0
    whole = _context(story.task, "task")
    bad = story.end not in _WELL
    status = Status(StatusCode.ERROR, story.reason or story.end) if bad else Status(StatusCode.OK)
    made = [
        _span(
            f"task {story.name}".rstrip(),
            whole,
            None,
            (queued_ns, ended_ns),
            _attributes(story),
            resource,
            status,
            story.moments,
        ),
        _span(
            "waiting",
            _context(story.task, "waiting"),
            whole,
            (queued_ns, began_ns if ran else ended_ns),
            {},
            resource,
        ),
    ]
    if ran:
        facts: dict[str, str | int] = {"blackroad.node": story.node}
        if story.backend:
            facts["blackroad.backend"] = story.backend
        run = _context(story.task, "running")
        made.append(_span("running", run, whole, (began_ns, ended_ns), facts, resource, status))
    return made


def _attributes(story: Story) -> Attributes:
    told: dict[str, str | int | bool] = {
        "blackroad.task": story.owner,
        "blackroad.end": story.end,
        "blackroad.attempts": story.attempts,
        "blackroad.durable": story.durable,
    }
    optional = {
        "blackroad.name": story.name,
        "blackroad.user": story.user,
        "blackroad.node": story.node,
        "blackroad.reason": story.reason,
        "exception.type": story.error,
        "exception.message": story.text,
    }
    told |= {key: text for key, text in optional.items() if text}
    if story.exit_status is not None:
        told["process.exit.code"] = story.exit_status
    return told


def _context(task: bytes, part: str) -> SpanContext:
    """The same ids whoever tells, so that what is sent twice is there once."""
    span = blake2b(task, digest_size=8, person=part.encode()).digest()
    return SpanContext(
        int.from_bytes(task, "big") or 1,
        int.from_bytes(span, "big") or 1,
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )


def _span(
    name: str,
    context: SpanContext,
    parent: SpanContext | None,
    times_ns: tuple[int, int],
    attributes: Attributes,
    resource: Resource,
    status: Status | None = None,
    moments: tuple[Moment, ...] = (),
) -> ReadableSpan:
    return ReadableSpan(
        name,
        context,
        parent,
        resource,
        attributes,
        [Event(one.name, dict(one.facts), one.at_ms * _NS_PER_MS) for one in moments],
        kind=SpanKind.INTERNAL,
        instrumentation_scope=_SCOPE,
        status=status or Status(StatusCode.UNSET),
        start_time=times_ns[0],
        end_time=times_ns[1],
    )
