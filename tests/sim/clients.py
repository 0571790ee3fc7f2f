"""Made-up clients: they open sessions, submit, repeat what is not answered, cancel, and may die.

Each talks to the daemon of its own machine; a connection loses nothing while both ends live.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad import node as n
from blackroad.bus import messages as m

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.machine import Machine

REPEAT_MS = 2_000
REPEAT_MS_MAX = 30_000
ALIVE_MS = 10_000


class ClientTask:
    """One task as its client sees it."""

    __slots__ = ("accepted", "cancelled", "ended", "lost", "submit", "task")

    def __init__(self, task: bytes, submit: m.Submit) -> None:
        self.task = task
        self.submit = submit
        self.accepted = False
        self.cancelled = False
        self.lost = False
        self.ended: m.Ended | None = None


class Client:
    """One client of one machine's daemon."""

    def __init__(self, world: Cluster, machine: Machine, handle: bytes, session: bytes) -> None:
        self.world = world
        self.machine = machine
        self.handle = handle
        self.session = session
        self.alive = True
        self.died_ms = 0
        self.opened_inc = 0
        self.opening = True
        self.tasks: dict[bytes, ClientTask] = {}
        self.objects: dict[bytes, int] = {}
        self._pending: list[m.Submit] = []
        self._repeat_ms = REPEAT_MS

    # --- what it does -----------------------------------------------------------------------------

    def open(self) -> None:
        """Open the session; repeated until answered."""
        self.opening = True
        self.say(m.Open(self.session, 30_000, "ann"))
        self.world.at(self.world.now + REPEAT_MS, self._repeat)
        self.world.at(self.world.now + ALIVE_MS, self._live)

    def submit(self, submit: m.Submit) -> None:
        """Submit now, or as soon as the session is open."""
        for item in submit.tasks:
            self.tasks[item.task] = ClientTask(item.task, submit)
        self._pending.append(submit)
        if not self.opening:
            self.say(submit)
            self.world.at(self.world.now + self._repeat_ms, self._repeat)

    def cancel(self, tasks: tuple[bytes, ...]) -> None:
        """Wish that these end."""
        for task in tasks:
            self.tasks[task].cancelled = True
        self.say(m.Cancel(tasks))

    def die(self) -> None:
        """Vanish without a word."""
        self.alive = False
        self.died_ms = self.world.now
        self.world.told(f"client of {self.machine.name} dies")

    def say(self, message: m.Message) -> None:
        """One message to the daemon; lost if there is none."""
        world = self.world
        if self.alive and self.machine.up:
            message = world.wire_client(message)
            event = n.FromClient(self.handle, (message,))
            world.at(world.now + 1, self.machine.feed, event, self.machine.life)

    def _live(self) -> None:
        if self.alive:
            self.say(m.Alive(self.session))
            self.world.at(self.world.now + ALIVE_MS, self._live)

    def _repeat(self) -> None:
        if not self.alive or not (self._pending or self.opening):
            return
        self._repeat_ms = min(REPEAT_MS_MAX, 2 * self._repeat_ms)
        if self.opening:
            self.say(m.Open(self.session, 30_000, "ann"))
        else:
            for submit in self._pending:
                self.say(submit)
        waiting = [t.task for t in self.tasks.values() if t.cancelled and t.ended is None]
        if waiting and not self.opening:
            self.say(m.Cancel(tuple(waiting)))
        self.world.at(self.world.now + self._repeat_ms, self._repeat)

    # --- what it hears ----------------------------------------------------------------------------

    def hear(self, message: m.Message) -> None:
        """One message of the daemon."""
        if not self.alive:
            return
        match message:
            case m.Opened():
                self._opened(message)
            case m.Accepted():
                for task in message.tasks:
                    self.tasks[task].accepted = True
                self._answered()
            case m.Rejected():
                self._rejected(message)
            case m.Busy():
                pass
            case m.Reject():
                self._reopen()
            case m.Ended():
                self._ended(message)

    def _opened(self, opened: m.Opened) -> None:
        first = self.opening
        self.opening = False
        if self.opened_inc not in (0, opened.inc):
            self._renew_submits()
        self.opened_inc = opened.inc
        if first:
            self._repeat_ms = REPEAT_MS
            for submit in self._pending:
                self.say(submit)
            self.world.at(self.world.now + self._repeat_ms, self._repeat)

    def _renew_submits(self) -> None:
        """Another life of the owner: attached tasks are gone, durable ones are asked for again."""
        pending: dict[int, m.Submit] = {}
        for one in self.tasks.values():
            if one.ended is not None or one.lost:
                continue
            if one.submit.durable:
                one.accepted = False
                pending[id(one.submit)] = one.submit
            else:
                one.lost = True
        self._pending = list(pending.values())

    def _rejected(self, rejected: m.Rejected) -> None:
        if rejected.reason == "session":
            self._reopen()
            return
        if rejected.reason == "conflict":
            self.world.broken("conflict", f"{rejected.text} {rejected.tasks!r}")
        for task in rejected.tasks:
            self.tasks[task].lost = True
        self._answered()

    def _reopen(self) -> None:
        if not self.opening:
            self.opening = True
            self._repeat_ms = REPEAT_MS
            self.say(m.Open(self.session, 30_000, "ann"))
            self.world.at(self.world.now + REPEAT_MS, self._repeat)

    def _answered(self) -> None:
        self._pending = [
            submit
            for submit in self._pending
            if any(
                not (self.tasks[item.task].accepted or self.tasks[item.task].lost)
                for item in submit.tasks
            )
        ]

    def _ended(self, ended: m.Ended) -> None:
        one = self.tasks[ended.task]
        if one.ended is not None and one.ended != ended:
            self.world.broken("I2", f"{self.world.names.task(ended.task)} has two outcomes")
        one.ended = ended
        one.accepted = True
        self._answered()
        if self.world.acknowledges_ended():
            self.say(m.Seen((ended.task,)))
