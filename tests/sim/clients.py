"""Made-up clients: they open sessions, submit, repeat what is not answered, order, and may die.

Each talks to the daemon of its own machine; a connection loses nothing while both ends live.  A
client may read slowly, never say Seen, or take over the durable work of one that died.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.ids import text32
from blackroad.limits import SUBMIT_TASKS_MAX
from tests.sim.objects import Span, spans

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.machine import Machine

REPEAT_MS = 2_000
REPEAT_MS_MAX = 30_000
ALIVE_MS = 10_000
_encode = msgspec.msgpack.encode


def ended_of(result: m.Result, node: bytes) -> m.Ended:
    """What a line of Results stands for."""
    return m.Ended(result.task, m.End.DONE, "", result.result, m.Facts(result.run_us), node, 1)


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
        # How long a message lies unread, and whether Seen is ever said.
        self.slow_ms = 0
        self.read_ms = 0
        self.says_seen = True
        self.credit = 0
        self.busy = 0
        self.tasks: dict[bytes, ClientTask] = {}
        self.objects: dict[bytes, int] = {}
        self.replies: list[m.Reply] = []
        self._pending: list[m.Submit] = []
        self._waiting: list[m.Submit] = []
        self._repeat_ms = REPEAT_MS
        self._queries = 0

    # --- what it does -----------------------------------------------------------------------------

    def open(self) -> None:
        """Open the session; repeated until answered."""
        self.opening = True
        self.say(m.Open(self.session, 30_000, "ann"))
        self.world.at(self.world.now + REPEAT_MS, self._repeat)
        self.world.at(self.world.now + ALIVE_MS, self._live)

    def submit(self, submit: m.Submit) -> None:
        """Submit now, or as soon as the session is open and has credit left."""
        if self._waiting or self._unended() + len(submit.tasks) > self.credit:
            self._waiting.append(submit)
            return
        self._submit(submit)

    def _submit(self, submit: m.Submit) -> None:
        for item in submit.tasks:
            self.tasks[item.task] = ClientTask(item.task, submit)
        self._pending.append(submit)
        if not self.opening:
            self.say(submit)
            self.world.at(self.world.now + self._repeat_ms, self._repeat)

    def _unended(self) -> int:
        return sum(1 for one in self.tasks.values() if one.ended is None and not one.lost)

    def take_over(self, other: Client) -> None:
        """Submit the durable work of another client again, under the same ids."""
        self.objects.update(other.objects)
        submits: dict[int, m.Submit] = {}
        for one in other.tasks.values():
            if one.submit.durable:
                submits[id(one.submit)] = one.submit
        for submit in (*submits.values(), *(one for one in other._waiting if one.durable)):
            # A program that starts anew may name a task twice.
            items = (*submit.tasks, submit.tasks[0])[:SUBMIT_TASKS_MAX]
            self.submit(msgspec.structs.replace(submit, session=self.session, tasks=items))

    def cancel(self, tasks: tuple[bytes, ...]) -> None:
        """Wish that these end."""
        known = tuple(task for task in tasks if task in self.tasks)
        for task in known:
            self.tasks[task].cancelled = True
        if known:
            self.say(m.Cancel(known))

    def order(self, name: str, target: bytes, **args: object) -> None:
        """Ask or order something of a node: status, cancel, retry, drain, resume."""
        self._queries += 1
        self.say(m.Query(self._queries, target, name, _encode(args)))

    def retry(self, task: bytes, new: bytes) -> None:
        """Order that an ended task is tried again, as a new one."""
        self.order("retry", self.machine.id, task=text32(task), new=new)

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

    def hand_over(self, digest: bytes, offset: int, chunks: int) -> None:
        """The daemon wants part of an object."""
        if not self.alive:
            return
        world, machine = self.world, self.machine
        at = world.now + 1 + self.slow_ms
        size = self.objects.get(digest)
        if size is None:
            world.at(at, machine.driver, machine.bulk.on_gone, digest)
            return
        for place, length in spans(size, offset, chunks):
            chunk = Span(length, not world.flips())
            world.at(at, machine.driver, machine.bulk.on_chunk, digest, place, chunk)

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
                # The item is kept, and said again with the other repetitions.
                self.busy += 1
            case m.Reject():
                self._reopen()
            case m.Ended():
                self._ended(message)
            case m.Results():
                for one in message.results:
                    self._ended(ended_of(one, message.node))
            case m.Reply():
                self.replies.append(message)

    def _opened(self, opened: m.Opened) -> None:
        first = self.opening
        self.opening = False
        self.credit = opened.credit
        if self.opened_inc not in (0, opened.inc):
            self._renew_submits()
        self.opened_inc = opened.inc
        if first:
            self._repeat_ms = REPEAT_MS
            for submit in self._pending:
                self.say(submit)
            self.world.at(self.world.now + self._repeat_ms, self._repeat)
        self._submit_waiting()

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
        if rejected.reason == "conflict" and not self.world.damaged & set(rejected.tasks):
            self.world.broken("conflict", f"{rejected.text} {rejected.tasks!r}")
        # A disk that was rolled back has forgotten whom it accepted.
        truths = self.world.observer.tasks
        if rejected.reason == "no_space" and any(
            self.tasks[task].accepted and not truths[task].excused for task in rejected.tasks
        ):
            self.world.broken("space", "an accepted task is rejected later")
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
        self._submit_waiting()

    def _submit_waiting(self) -> None:
        """Spend what credit there is."""
        while self._waiting and self._unended() + len(self._waiting[0].tasks) <= self.credit:
            self._submit(self._waiting.pop(0))

    def _ended(self, ended: m.Ended) -> None:
        one = self.tasks.get(ended.task)
        if one is None:
            self.world.broken("session", f"{self.world.names.task(ended.task)} is not this one's")
            return
        excused = self.world.observer.tasks[ended.task].excused
        if one.ended is not None and one.ended != ended and not excused:
            self.world.broken("I2", f"{self.world.names.task(ended.task)} has two outcomes")
        one.ended = ended
        one.accepted = True
        self._answered()
        if self.says_seen and self.world.acknowledges_ended():
            self.say(m.Seen((ended.task,)))
