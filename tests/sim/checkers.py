"""The observer: it sees all machines at once and knows what the protocol promises.

Source  docs/protocol.md, "Invariants".  Checked as things happen, and after every event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus import messages as m
from blackroad.ids import inc_counter
from blackroad.limits import (
    LEASE_MS,
    RENEW_LISTS_KEPT,
    SESSION_LEASE_MS,
    TOMBSTONES_MAX,
    WAITING_BYTES_MAX,
    WAITING_PER_SLOT_MAX,
    bound_ms,
)
from blackroad.router import effects as e
from blackroad.router.worker import State

if TYPE_CHECKING:
    from blackroad import node as n
    from blackroad.ids import Token
    from tests.sim.clients import Client
    from tests.sim.cluster import Cluster
    from tests.sim.machine import Machine, Process

SLACK_MS = 3_000
KILLS_MAX = 8


class Truth:
    """What really happened to one task."""

    __slots__ = (
        "accepted",
        "attached",
        "durable",
        "ended",
        "forgotten",
        "last",
        "owner",
        "owner_inc",
        "poisoned",
        "produced",
        "running",
        "session",
        "spec",
        "starts",
    )

    def __init__(self, owner: int, session: bytes, spec: m.ClassSpec, durable: bool) -> None:
        self.owner = owner
        self.session = session
        self.spec = spec
        self.durable = durable
        self.accepted = False
        self.owner_inc = 0
        self.ended: tuple[object, ...] | None = None
        self.forgotten = False
        self.produced: list[m.Payload] = []
        self.running: list[Process] = []
        self.starts: dict[Token, list[tuple[bytes, int]]] = {}
        self.last: Token | None = None
        self.poisoned = 0

    def going(self) -> list[Process]:
        """Attempts that run at this instant; on a machine that stands still none does."""
        return [one for one in self.running if not one.machine.frozen]


class Observer:
    """Global truth and the invariants I1..I12."""

    def __init__(self, world: Cluster) -> None:
        self.world = world
        self.tasks: dict[bytes, Truth] = {}
        self.held: dict[e.Key, set[bytes]] = {}
        self.orphans: dict[e.Key, int] = {}
        self.sessions: dict[bytes, Client] = {}
        self.poisoned_ms = -(2**62)
        self._sweep_ms = 0
        self._counters: dict[bytes, int] = {}

    def submitted(self, owner: int, session: bytes, submit: m.Submit) -> None:
        """A client is about to submit these."""
        for item in submit.tasks:
            self.tasks[item.task] = Truth(owner, session, submit.spec, submit.durable)

    def _broken(self, rule: str, task: bytes, text: str) -> None:
        self.world.broken(rule, f"{self.world.names.task(task)} {text}")

    # --- processes --------------------------------------------------------------------------------

    def starts(self, machine: Machine, process: Process) -> None:
        """An attempt begins to run: I3, I4, I5, I7, I11."""
        task = process.start.task
        truth = self.tasks[task]
        spec = truth.spec
        token = process.key[1]
        if not spec.pure:
            others = [one for one in truth.going() if one.key[1] != token]
            if others:
                self._broken("I3", task, f"runs twice: {others[0].key[1]} and {token}")
            if truth.ended is not None:
                self._broken("I3", task, "starts after its outcome is set")
            if truth.last is not None and token < truth.last:
                self._broken("I5", task, f"starts {token} after {truth.last}")
            truth.last = token
        lives = truth.starts.setdefault(token, [])
        if (machine.id, process.inc) in lives:
            self._broken("I5", task, f"starts {token} twice in one life")
        lives.append((machine.id, process.inc))
        if len(lives) > spec.gang:
            self._broken("I7", task, f"{token} ran in {len(lives)} places")
        if spec.gang > 1 and len(self.held.get(process.key, ())) < spec.gang:
            self._broken("I11", task, "a member starts before all are held")
        truth.running.append(process)
        used = len(machine.processes) + 1
        if used > machine.slots:
            self._broken("I4", task, f"is number {used} on {machine.slots} slots")

    def finished(
        self, machine: Machine, process: Process, status: m.Status, result: m.Payload
    ) -> None:
        """A process exited by itself."""
        truth = self.tasks[process.start.task]
        truth.running.remove(process)
        if status is m.Status.DONE:
            truth.produced.append(result)

    def gone(self, machine: Machine, process: Process) -> None:
        """A process was ended."""
        self.tasks[process.start.task].running.remove(process)

    def poisoned(self, task: bytes) -> None:
        """A task took its machine down."""
        truth = self.tasks[task]
        truth.poisoned += 1
        if truth.poisoned > KILLS_MAX * truth.spec.gang:
            self._broken("I10", task, f"took nodes down {truth.poisoned} times")
        self.poisoned_ms = self.world.now

    # --- what owners say --------------------------------------------------------------------------

    def told(self, machine: Machine, tell: e.Tell) -> None:
        """Something is shown to a client: I1, I2."""
        message = tell.message
        if isinstance(message, m.Accepted):
            for task in message.tasks:
                truth = self.tasks[task]
                truth.accepted = True
                truth.owner_inc = machine.node.inc if machine.node else 0
                if truth.durable and task not in machine.disk.tasks:
                    self._broken("I1", task, "accepted before it is flushed")
        elif isinstance(message, m.Ended):
            row = machine.disk.ends.get(message.task)
            truth = self.tasks[message.task]
            outcome = _outcome(message)
            if truth.durable and (row is None or _outcome(row) != outcome):
                self._broken("I2", message.task, "told before it is flushed")
            self._ends(message.task, truth, message)
            if truth.ended is not None and truth.ended != outcome:
                self._broken("I2", message.task, f"ended {truth.ended}, now {outcome}")
            truth.ended = outcome

    def persisted(self, machine: Machine, persist: e.Persist) -> None:
        """Rows are on their way to the disk: an outcome is set, a token is made."""
        for row in persist.rows:
            if isinstance(row, e.EndRow):
                self._ends(row.task, self.tasks[row.task], row)
            elif isinstance(row, e.ForgetRow):
                self.tasks[row.task].forgotten = True

    def _ends(self, task: bytes, truth: Truth, end: m.Ended | e.EndRow) -> None:
        if end.end is m.End.DONE and end.result not in truth.produced:
            self._broken("I6", task, "is done with a value nobody made")
        if end.end is m.End.QUARANTINED and not truth.poisoned:
            self.world.faults_blamed += 1
        if truth.going() and not truth.spec.pure and truth.ended is None:
            self._broken("I3", task, f"ends {end.end.name} while it runs")

    def sent(self, machine: Machine, send: e.Send) -> None:
        """A message leaves: R-lease-1."""
        message = send.message
        if not isinstance(message, m.Grant) or not self.tasks[message.task].durable:
            return
        if message.token not in machine.disk.tokens:
            self._broken("I3", message.task, "granted before the attempt is flushed")

    # --- after every event ------------------------------------------------------------------------

    def started(self, machine: Machine) -> None:
        """A daemon starts: I1, I9."""
        node = machine.node
        if node is None:
            return
        before = self._counters.get(machine.id, 0)
        if inc_counter(node.inc) <= before:
            self.world.broken("I9", f"{machine.name} did not raise its counter")
        self._counters[machine.id] = inc_counter(node.inc)
        for task, truth in self.tasks.items():
            if truth.owner != machine.index or not truth.durable or not truth.accepted:
                continue
            if task not in machine.disk.tasks and not truth.forgotten:
                self._broken("I1", task, "was accepted and is not in the journal")
            row = machine.disk.ends.get(task)
            if truth.ended is not None and (row is None or _outcome(row) != truth.ended):
                self._broken("I2", task, "has another outcome after the restart")

    def crashed(self, machine: Machine) -> None:
        """A daemon died; what it did not flush is lost."""

    def after(self, machine: Machine, event: n.AnyEvent) -> None:
        """After each event: the node's own books, I4, I8; now and then I12."""
        node = machine.node
        if node is None:
            return
        if type(event).__name__ != "Heard":
            node.check()
        self._check_worker(machine, node)
        if self.world.now >= self._sweep_ms:
            self._sweep_ms = self.world.now + 1_000
            self._check_orphans()

    def _check_worker(self, machine: Machine, node: n.Node) -> None:
        worker = node.worker
        slots = machine.slots
        if len(worker.waiting) > WAITING_PER_SLOT_MAX * slots:
            self.world.broken("I8", f"{machine.name} lets {len(worker.waiting)} wait")
        if sum(work.bytes for work in worker.waiting.values()) > WAITING_BYTES_MAX:
            self.world.broken("I8", f"{machine.name} lets too many bytes wait")
        if len(worker.tombstones) > TOMBSTONES_MAX or len(worker.floors) > TOMBSTONES_MAX:
            self.world.broken("I8", f"{machine.name} remembers too many tokens")
        if any(len(one.lists) > RENEW_LISTS_KEPT for one in worker.owners.values()):
            self.world.broken("I8", f"{machine.name} keeps too many lists")
        if worker.running + worker.held > slots:
            self.world.broken("I4", f"{machine.name} runs and holds more than its slots")
        if worker.held:
            for key, work in worker.works.items():
                if work.state is State.HELD:
                    self.held.setdefault(key, set()).add(machine.id)

    def _check_orphans(self) -> None:
        """I12: attached attempts whose session or owner's life is over."""
        world = self.world
        for machine in world.machines:
            for key, process in machine.processes.items():
                truth = self.tasks[process.start.task]
                if truth.durable or machine.frozen:
                    continue
                owner = world.machines[truth.owner]
                node = owner.node
                client = self.sessions[truth.session]
                lives = (
                    node is not None
                    and node.inc == key[1].inc
                    and (client.alive or world.now < client.died_ms + SESSION_LEASE_MS)
                )
                if lives:
                    self.orphans.pop(key, None)
                    continue
                since = self.orphans.setdefault(key, world.now)
                lease_ms = truth.spec.lease_ms or LEASE_MS
                if world.now - since > bound_ms(lease_ms) + lease_ms + SLACK_MS:
                    self._broken("I12", process.start.task, "outlives its session")


def _outcome(end: m.Ended | e.EndRow) -> tuple[object, ...]:
    return (end.end, end.reason, end.result, end.facts, end.node, end.attempts)
