"""What happened on all nodes, and what happens: events gathered from their rings and live.

This file must not know how queries travel, nor what is shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from blackroad.client.asking import QUERY_MS
from blackroad.errors import Unreachable, UsageError
from blackroad.events import FOLLOWED, TOPIC, Event, Wanted, severity_of, wanted
from blackroad.ids import bytes32, short

if TYPE_CHECKING:
    from types import TracebackType

    from blackroad.client.client import Client
    from blackroad.client.topics import Subscription, Update

ASK_AT_ONCE: Final = 8
PAST_MAX: Final = 10_000
# Well before a node forgets that somebody follows.
RENEW_S: Final = 10.0
SEEN_MAX: Final = 20_000
OLDER: Final = "knows no query"


class Past(NamedTuple):
    """Events of all nodes that answered, the oldest first; and who did not, by label."""

    events: list[Event]
    silent: list[str]
    older: list[str]


class _Answer(msgspec.Struct):
    events: list[Event]


_answer = msgspec.msgpack.Decoder(_Answer)


def past(
    client: Client, choice: Wanted, *, since_ms: int = 0, limit: int = 1_000, follow: bool = False
) -> Past:
    """Ask all nodes what they have seen: the newest `limit` events of all of them together.

    With `follow` they tell of tasks that are done as well, for half a minute.

    Raises  Unreachable where this client's own daemon does not answer; UsageError where `choice`
            can choose nothing.
    """
    args = msgspec.msgpack.encode(
        {
            "name": choice.name,
            "severity": choice.severity,
            "cause": choice.cause,
            "since_ms": max(0, since_ms),
            "limit": min(max(0, limit), PAST_MAX),
            "follow": follow,
        }
    )
    rows = client.nodes()["nodes"]
    there = [
        row
        for row in rows
        if row["state"] in ("alive", "draining", "suspect", "clone") and _concerns(choice, row)
    ]
    found: list[Event] = []
    silent: list[str] = []
    older: list[str] = []

    def ask(row: dict[str, Any]) -> list[Event] | Exception:
        try:
            target = bytes32(row["node"])
            body = client._connection.query("events", args, target, QUERY_MS / 1000)
            return _answer.decode(body).events
        except (Unreachable, UsageError, msgspec.MsgspecError) as error:
            return error

    with ThreadPoolExecutor(ASK_AT_ONCE) as pool:
        for row, told in zip(there, pool.map(ask, there), strict=True):
            if isinstance(told, list):
                found += told
            elif isinstance(told, UsageError) and OLDER in told.message:
                older.append(row["name"])
            else:
                silent.append(row["name"])
    found.sort(key=_when)
    return Past(found[max(0, len(found) - limit) :], silent, older)


def _concerns(choice: Wanted, row: dict[str, Any]) -> bool:
    return not choice.node or row["name"] == choice.node or row["id"].startswith(choice.node)


def _when(event: Event) -> tuple[int, str]:
    return event.at_ms, event.id


class Stream:
    """Events as they come, of all nodes; `past` first, then iterate.

    It is a context manager.  No event comes twice, and `missed` counts those that were lost on the
    way.
    """

    def __init__(self, client: Client, choice: Wanted) -> None:
        """Begin to listen.

        Raises  UsageError, Unreachable where the daemon does not take the subscription.
        """
        self.choice = choice
        self.missed = 0
        # Only who wants to see tasks that are done makes nodes tell of them.
        self.follows = any(severity_of(name) == "debug" for name in choice.names())
        self._client = client
        pattern = "blackroad/*/#" if self.follows else f"{TOPIC}#"
        self._sub: Subscription = client.subscribe(pattern, snapshot=False)
        self._seen: dict[str, None] = {}
        self._renew_s = 0.0

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more."""
        self._sub.close()

    def past(self, *, since_ms: int = 0, limit: int = 1_000) -> Past:
        """What the nodes have seen before; what comes later is not told again.

        Raises  as the function `past`.
        """
        found = past(self._client, self.choice, since_ms=since_ms, limit=limit, follow=self.follows)
        self._renew_s = time.monotonic() + RENEW_S
        for event in found.events:
            self._seen[event.id] = None
        return found

    def get(self, timeout_s: float) -> Event | None:
        """The next event that is wanted; None where none comes in that time.

        Raises  NoDaemon where the connection is gone.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            now_s = time.monotonic()
            self._renew(now_s)
            left_s = min(until_s - now_s, RENEW_S)
            try:
                update = self._sub.get(timeout=max(0.0, left_s))
            except TimeoutError:
                if time.monotonic() >= until_s:
                    return None
                continue
            self.missed += update.missed
            event = _event(update)
            if event is None or event.id in self._seen or not self.choice.chooses(event):
                continue
            self._seen[event.id] = None
            if len(self._seen) > SEEN_MAX:
                del self._seen[next(iter(self._seen))]
            return event

    def _renew(self, now_s: float) -> None:
        if self.follows and now_s >= self._renew_s:
            self._renew_s = now_s + RENEW_S
            past(self._client, self.choice, limit=0, follow=True)


def _event(update: Update) -> Event | None:
    """Read what a node told of itself; None where it is nothing of the kind."""
    if not update.topic.startswith((TOPIC, FOLLOWED)):
        return None
    try:
        event = msgspec.convert(update.value, Event)
    except (msgspec.ValidationError, RecursionError):
        # Of a version that tells them in another way.
        return None
    # Nobody speaks for another node.
    return event if event.node == short(update.node) else None


def events(
    client: Client,
    *,
    name: str = "",
    severity: str = "info",
    node: str = "",
    cause: str = "",
    since_ms: int = 0,
    limit: int = 1_000,
    follow: bool = False,
) -> Iterator[dict[str, Any]]:
    """What happened on all nodes, the oldest first; with `follow` what happens as well, on and on.

    Each is a mapping with the fields of `blackroad.events.Event`.  What is of severity `debug`,
    above all that a task is done, is told by the nodes only while somebody follows it.

    Raises  UsageError where that can choose nothing; Unreachable, NoDaemon.
    """
    choice = wanted(name, severity, node, cause)
    if not follow:
        for event in past(client, choice, since_ms=since_ms, limit=limit).events:
            yield msgspec.to_builtins(event)
        return
    with Stream(client, choice) as stream:
        for event in stream.past(since_ms=since_ms, limit=limit).events:
            yield msgspec.to_builtins(event)
        while True:
            came = stream.get(RENEW_S)
            if came is not None:
                yield msgspec.to_builtins(came)
