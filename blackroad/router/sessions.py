"""Client sessions of one owner: who is connected, what is attached, what was not seen yet.

Source  docs/protocol.md, "Submit".  Pure.  This file must not know how tasks run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus.messages import Accepted, Busy, Ended, Opened, Reject
from blackroad.limits import (
    ENDED_RESEND_MS,
    ENDED_RESEND_MS_MAX,
    FOREVER_MS,
    PROTOCOL_VERSION_MAX,
    PROTOCOL_VERSION_MIN,
    SESSION_LEASE_MS,
    SESSION_LEASE_MS_MAX,
    SESSION_TASKS_MAX,
    SESSIONS_MAX,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blackroad.bus.messages import Item, Open, Results
    from blackroad.router.effects import Outbox


class Session:
    """One client's session; it survives a lost connection until its lease is over."""

    __slots__ = (
        "attached",
        "client",
        "id",
        "lease_ms",
        "live",
        "repeat_ms",
        "unseen",
        "until_ms",
        "user",
    )

    def __init__(self, id_: bytes, client: bytes, lease_ms: int, user: str, now_ms: int) -> None:
        self.id = id_
        self.client = client
        self.lease_ms = lease_ms
        self.until_ms = now_ms + lease_ms
        self.user = user
        # Tasks of its, attached or durable, that have not ended.
        self.live = 0
        self.attached: dict[bytes, None] = {}
        # Outcomes with the time they were last sent, in that order, and how soon they are again:
        # a client that is stopped for an hour must not find an hour of repetitions.
        self.unseen: dict[bytes, tuple[Ended, int]] = {}
        self.repeat_ms = ENDED_RESEND_MS


class Sessions:
    """All sessions of this daemon."""

    def __init__(self, me: bytes, inc: int, out: Outbox) -> None:
        self.me = me
        self.inc = inc
        self.name = ""
        self.sessions: dict[bytes, Session] = {}
        self._of_client: dict[bytes, Session] = {}
        self.woken: list[bytes] = []
        self._out = out
        self._check_ms = 0

    def open(self, client: bytes, message: Open, now_ms: int) -> None:
        """Open or re-open a session; the newest connection is the one that is spoken to."""
        if not PROTOCOL_VERSION_MIN <= message.version <= PROTOCOL_VERSION_MAX:
            text = (
                f"this daemon speaks versions {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}, "
                f"the client {message.version}"
            )
            self._out.tell(client, Reject("version", text))
            return
        session = self.sessions.get(message.session)
        if session is None:
            if len(self.sessions) >= SESSIONS_MAX:
                self._out.tell(client, Busy("sessions", SESSION_LEASE_MS))
                return
            session = Session(message.session, client, 0, message.user, now_ms)
            self.sessions[message.session] = session
        # A client that leaves opens its session once more, with a short lease.
        session.lease_ms = min(message.lease_ms, SESSION_LEASE_MS_MAX)
        self._speaks(session, client, now_ms)
        opened = Opened(session.id, self.me, self.inc, SESSION_TASKS_MAX, self.name)
        self._out.tell(client, opened)
        for ended, _ in list(session.unseen.values()):
            self._out.tell(client, ended)

    def touch(self, id_: bytes, client: bytes, now_ms: int) -> Session | None:
        """Any message extends the session it names."""
        session = self.sessions.get(id_)
        if session is not None:
            self._speaks(session, client, now_ms)
        return session

    def _speaks(self, session: Session, client: bytes, now_ms: int) -> None:
        if session.client != client or client not in self._of_client:
            if self._of_client.get(session.client) is session:
                del self._of_client[session.client]
            self._of_client[client] = session
            session.client = client
        session.until_ms = now_ms + session.lease_ms

    def attach(self, id_: bytes, items: Iterable[Item]) -> None:
        """These tasks live at most as long as that session."""
        self.sessions[id_].attached.update([(item.task, None) for item in items])

    def count(self, id_: bytes, change: int) -> None:
        """So many tasks of that session more (or less) have not ended."""
        session = self.sessions.get(id_)
        if session is not None:
            # A session that was opened again may see the end of what an earlier one began.
            session.live = max(0, session.live + change)

    def room(self, id_: bytes, more: int) -> bool:
        """Does its credit allow so many tasks more?"""
        return self.sessions[id_].live + more <= SESSION_TASKS_MAX

    def accepted(self, client: bytes, tasks: tuple[bytes, ...], lazy: bool = False) -> None:
        """Tell a client that these tasks are the owner's now."""
        self._out.tell(client, Accepted(tasks), lazy)

    def ended(self, id_: bytes, ended: Ended, now_ms: int) -> bool:
        """Tell a session an outcome, until it is seen; return whether anybody listens."""
        session = self.sessions.get(id_)
        if session is None:
            return False
        session.unseen.pop(ended.task, None)
        session.unseen[ended.task] = (ended, now_ms)
        self._out.tell(session.client, ended)
        return True

    def ended_together(
        self, id_: bytes, results: Results, outcomes: Iterable[Ended | None], now_ms: int
    ) -> bool:
        """The same for many outcomes, which are repeated one by one if they are not seen."""
        session = self.sessions.get(id_)
        if session is None:
            return False
        unseen = session.unseen
        for ended in outcomes:
            if ended is not None:
                unseen[ended.task] = (ended, now_ms)
        self._out.tell(session.client, results)
        return True

    def seen(self, id_: bytes, tasks: Iterable[bytes]) -> Session | None:
        """Outcomes arrived; return the session."""
        session = self.sessions.get(id_)
        if session is not None:
            unseen, attached = session.unseen, session.attached
            for task in tasks:
                unseen.pop(task, None)
                attached.pop(task, None)
            session.repeat_ms = ENDED_RESEND_MS
        return session

    def of_client(self, client: bytes) -> Session | None:
        """The session that this connection speaks for."""
        return self._of_client.get(client)

    def wake(self, task: bytes) -> None:
        """Somebody may have asked to be told when this task ends."""
        self.woken.append(task)

    def drop(self, id_: bytes) -> Iterable[bytes]:
        """Forget a session; return its attached tasks."""
        session = self.sessions.pop(id_, None)
        if session is not None and self._of_client.get(session.client) is session:
            del self._of_client[session.client]
        return tuple(session.attached) if session is not None else ()

    def tick(self, now_ms: int) -> list[bytes]:
        """Repeat unseen outcomes; return sessions whose lease is over."""
        if now_ms < self._check_ms:
            return []
        self._check_ms = now_ms + ENDED_RESEND_MS // 2
        over = []
        for session in self.sessions.values():
            if now_ms >= session.until_ms:
                over.append(session.id)
                continue
            self._repeat(session, now_ms)
        return over

    def _repeat(self, session: Session, now_ms: int) -> None:
        due = []
        for ended, sent_ms in session.unseen.values():
            if now_ms - sent_ms < session.repeat_ms:
                break
            due.append(ended)
        if not due:
            return
        for ended in due:
            del session.unseen[ended.task]
            session.unseen[ended.task] = (ended, now_ms)
            self._out.tell(session.client, ended)
        session.repeat_ms = min(2 * session.repeat_ms, ENDED_RESEND_MS_MAX)

    def next_deadline_ms(self) -> int:
        """When `tick` may next have something to do."""
        return self._check_ms if self.sessions else FOREVER_MS
