"""Asks daemons again and again, through their restarts, and hands on what they answer.

Edge: threads and a clock.  This file must not know what is shown, nor how.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from blackroad.errors import BlackroadError, UsageError
from blackroad.glance import MeshView, WorkView
from blackroad.tui.model import Happening, Model, happening
from blackroad.tui.rota import Rota
from blackroad.units import format_ms

if TYPE_CHECKING:
    from blackroad.client.client import Client

T = TypeVar("T")

RECONNECT_S: Final = 0.5
EVENTS_AGAIN_S: Final = 2.0
EVENT_WAIT_S: Final = 0.5
# Of each node: a large mesh tells much when it is asked for the past.
PAST_EVENTS: Final = 100
NEWS_MAX: Final = 1_000
JOIN_S: Final = 1.0
# Longer than the pause between two heartbeats, so that each node has told twice.
ONCE_S: Final = 1.3


class Mesh(Protocol):
    """What is asked: a daemon's answers, or those of a fake one."""

    def mesh(self) -> MeshView:
        """All nodes."""

    def work(self, owner: bytes, tasks: int) -> WorkView:
        """One owner's tasks."""

    def events(self, closed: threading.Event) -> Iterable[dict[str, Any]]:
        """Events as they come, those of the past first, until `closed`."""

    def ask(self, name: str, *args: Any) -> Any:
        """Call a method of the client: status, why, logs, nodes, cancel, retry, drain, resume."""

    def close(self) -> None:
        """End the session."""


class Session:
    """A mesh behind a client, which is made anew when its daemon has gone."""

    def __init__(self, connect: Callable[[float | None], Client]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._first = True

    def mesh(self) -> MeshView:
        """All nodes, as this machine's daemon sees them."""
        from blackroad.client import glances

        return self._with(glances.mesh)

    def work(self, owner: bytes, tasks: int) -> WorkView:
        """One owner's tasks; its silence is no reason to begin anew with our own daemon."""
        from blackroad.client import glances

        return glances.work(self._there(), owner, tasks)

    def events(self, closed: threading.Event) -> Iterable[dict[str, Any]]:
        """Events of all nodes that people look at: not that a task is done."""
        from msgspec import to_builtins

        from blackroad.client.happenings import Stream
        from blackroad.events import wanted

        with Stream(self._there(), wanted(severity="info")) as stream:
            for event in stream.past(limit=PAST_EVENTS).events:
                yield to_builtins(event)
            while not closed.is_set():
                came = stream.get(EVENT_WAIT_S)
                if came is not None:
                    yield to_builtins(came)

    def ask(self, name: str, *args: Any) -> Any:
        """Call a method of the client by its name."""
        return getattr(self._there(), name)(*args)

    def close(self) -> None:
        """End the session."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(BlackroadError):
                client.close()

    def _there(self) -> Client:
        with self._lock:
            if self._client is None:
                self._client = self._connect(None if self._first else RECONNECT_S)
                self._first = False
            return self._client

    def _with(self, ask: Callable[[Client], T]) -> T:
        client = self._there()
        try:
            return ask(client)
        except UsageError:
            raise
        except BlackroadError:
            with self._lock:
                lost = self._client is client
                if lost:
                    self._client = None
            if lost:
                with contextlib.suppress(BlackroadError):
                    client.close()
            raise


class Feed:
    """Looks every `interval_s`; what came waits in line until `drain` puts it into a model."""

    def __init__(self, mesh: Mesh, interval_s: float) -> None:
        self.mesh = mesh
        self.interval_s = interval_s
        self.paused = False
        self._changed: Callable[[], None] = lambda: None
        self._closed = threading.Event()
        self._fresh = threading.Event()
        self._seen: MeshView | None = None
        self._meshes: deque[tuple[MeshView, int]] = deque(maxlen=4)
        self._works: dict[bytes, WorkView] = {}
        self._news: deque[Happening] = deque(maxlen=NEWS_MAX)
        self._lock = threading.Lock()
        self._problem = ""
        self._away_since = 0.0
        self._threads: list[threading.Thread] = []

    # --- for who shows it -------------------------------------------------------------------------

    def first(self) -> None:
        """Look once, so that what is wrong from the beginning is an error and no empty screen.

        Raises  NoDaemon, Unreachable, ConfigError, UsageError.
        """
        self._take(self.mesh.mesh())

    def start(self, changed: Callable[[], None]) -> None:
        """Go on looking in threads; `changed` is called in one of them after each look."""
        self._changed = changed
        for name, run in (("nodes", self._nodes), ("tasks", self._tasks), ("events", self._events)):
            thread = threading.Thread(target=run, name=f"blackroad-top-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def drain(self, model: Model) -> None:
        """Put what has come into a model."""
        with self._lock:
            meshes, self._meshes = list(self._meshes), deque(maxlen=4)
            works, self._works = self._works, {}
            news, self._news = list(self._news), deque(maxlen=NEWS_MAX)
        for view, at_ms in meshes:
            model.take_mesh(view, at_ms)
        for work in works.values():
            model.take_work(work)
        model.take_happenings(news)
        model.problem = self.problem()

    def problem(self) -> str:
        """What keeps the nodes from being seen now, in words."""
        if not self._problem:
            return ""
        away_ms = int((time.monotonic() - self._away_since) * 1000)
        return f"{self._problem} (for {format_ms(away_ms)}; trying again)"

    def close(self) -> None:
        """End the threads and the session."""
        self._closed.set()
        self._fresh.set()
        self.mesh.close()
        for thread in self._threads:
            thread.join(JOIN_S)

    # --- threads ----------------------------------------------------------------------------------

    def _nodes(self) -> None:
        due = time.monotonic()
        while not self._closed.is_set():
            if not self.paused:
                self.look()
                self._changed()
            due = max(due + self.interval_s, time.monotonic() + self.interval_s / 4)
            self._closed.wait(due - time.monotonic())

    def look(self) -> None:
        """Ask for the nodes once; what goes wrong becomes the problem that is shown."""
        try:
            self._take(self.mesh.mesh())
            self._problem = ""
        except BlackroadError as error:
            if self._closed.is_set():
                return
            if not self._problem:
                self._away_since = time.monotonic()
            self._problem = error.message

    def _take(self, view: MeshView) -> None:
        with self._lock:
            self._meshes.append((view, _now_ms()))
        self._seen = view
        self._fresh.set()

    def _tasks(self) -> None:
        rota = Rota()
        while not self._closed.is_set():
            self._fresh.wait()
            self._fresh.clear()
            if not self._closed.is_set() and self._seen is not None:
                self.ask_owners(rota, self._seen)

    def ask_owners(self, rota: Rota, view: MeshView, *, everyone: bool = False) -> None:
        """Ask those owners whose turn it is."""
        turn = rota.turn(view.nodes, view.asked, _now_ms(), everyone)
        for owner in turn.owners:
            if self._closed.is_set():
                return
            try:
                work = self.mesh.work(owner, turn.rows)
            except BlackroadError:
                work = None
            if work is None or work.node != owner:
                # Whoever answers in another one's name has said nothing.
                rota.silent(owner, _now_ms())
                continue
            with self._lock:
                self._works[owner] = work

    def _events(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(BlackroadError):
                for event in self.mesh.events(self._closed):
                    with self._lock:
                        self._news.append(happening(event))
            self._closed.wait(EVENTS_AGAIN_S)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def look_twice(feed: Feed, model: Model) -> None:
    """Fill a model for one answer: two looks, since a speed is a difference; all owners.

    Raises  NoDaemon, Unreachable, UsageError.
    """
    feed.first()
    threading.Event().wait(max(feed.interval_s, ONCE_S))
    view = feed.mesh.mesh()
    feed._take(view)
    feed.ask_owners(Rota(), view, everyone=True)
    feed.drain(model)
