"""The observer: it sees all machines at once and knows what the protocol promises.

Source  docs/protocol.md, "Invariants" I1..I12 (L1..L4 are in `liveness.py`).  Checked as things
happen and after every event; what only a look at whole tables can show, after every n-th.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad import limits as at_most
from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.discovery.membership import PeerState
from blackroad.ids import inc_counter
from blackroad.limits import FOREVER_MS, LEASE_MS, SESSION_LEASE_MS, bound_ms
from blackroad.router import effects as e
from blackroad.router.works import State
from tests.sim import bounded
from tests.sim.clients import ended_of
from tests.sim.network import CALM

if TYPE_CHECKING:
    from collections.abc import Collection

    from blackroad.ids import Token
    from tests.sim.clients import Client
    from tests.sim.cluster import Cluster
    from tests.sim.machine import Machine, Process

SLACK_MS = 3_000
KILLS_MAX = 8
# Every how many events of a machine all its books are compared; it is a prime.
BOOKS_EVERY = 17


class Truth:
    """What really happened to one task."""

    __slots__ = (
        "accepted",
        "alone_ms",
        "alone_on",
        "durable",
        "ended",
        "ended_ms",
        "excused",
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
        "submitted_ms",
    )

    def __init__(
        self, owner: int, session: bytes, spec: m.ClassSpec, durable: bool, now_ms: int
    ) -> None:
        self.owner = owner
        self.session = session
        self.spec = spec
        self.durable = durable
        self.submitted_ms = now_ms
        self.accepted = False
        # The world broke its own assumptions for this task: a rolled-back disk, a clone.
        self.excused = False
        self.owner_inc = 0
        self.ended: tuple[object, ...] | None = None
        self.ended_ms = now_ms
        self.forgotten = False
        self.produced: list[m.Payload] = []
        self.running: list[Process] = []
        self.starts: dict[Token, list[tuple[bytes, int]]] = {}
        self.last: Token | None = None
        self.poisoned = 0
        # Machines on which an isolated attempt of it was let go.
        self.alone_on: set[int] = set()
        self.alone_ms = FOREVER_MS

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
        self.books_every = BOOKS_EVERY
        # Machines that stopped or overslept without a task's doing, and when.
        self.faults: list[tuple[int, int]] = []
        self.poisonings: list[tuple[int, int]] = []
        self.kills = 0
        # Objects that were stored somewhere without being what their digest says.
        self.unfit: set[tuple[int, bytes]] = set()
        self.outcomes = 0
        self._killing = False
        self._sweep_ms = 0
        self._turns = 0
        self._counters: dict[int, int] = {}
        # Ids that two machines have at this moment.
        self.twins: set[bytes] = set()

    def submitted(self, owner: int, session: bytes, submit: m.Submit) -> None:
        """A client is about to submit these."""
        for item in submit.tasks:
            truth = Truth(owner, session, submit.spec, submit.durable, self.world.now)
            truth.excused = bool(self.twins) and self.world.machines[owner].id in self.twins
            self.tasks[item.task] = truth

    def _broken(self, rule: str, task: bytes, text: str) -> None:
        truth = self.tasks.get(task)
        if truth is None or not truth.excused:
            self.world.broken(rule, f"{self.world.names.task(task)} {text}")

    # --- processes --------------------------------------------------------------------------------

    def starts(self, machine: Machine, process: Process) -> None:
        """An attempt begins to run: I3, I4, I5, I7, I11."""
        task = process.start.task
        truth = self.tasks[task]
        spec = truth.spec
        token = process.key[1]
        if machine.id in self.twins:
            truth.excused = True
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
        for part in (process.start.code, process.start.work):
            if isinstance(part, m.Ref) and (machine.index, part.digest) in self.unfit:
                self._broken("I6", task, "runs on bytes that nobody handed over")
        if process.start.spec.isolated:
            truth.alone_on.add(machine.index)
            truth.alone_ms = min(truth.alone_ms, self.world.now)
        used = len(machine.processes) + (process.key not in machine.processes)
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
        """A task takes its machine down."""
        truth = self.tasks[task]
        truth.poisoned += 1
        if truth.poisoned > KILLS_MAX * truth.spec.gang:
            self._broken("I10", task, f"took nodes down {truth.poisoned} times")
        self.poisoned_ms = self.world.now
        self.kills += 1
        self._killing = True

    # --- what owners say --------------------------------------------------------------------------

    def told(self, machine: Machine, tell: e.Tell) -> None:
        """Something is shown to a client: I1, I2, I8."""
        message = tell.message
        if isinstance(message, m.Accepted):
            for task in message.tasks:
                truth = self.tasks[task]
                truth.accepted = True
                truth.owner_inc = machine.node.inc if machine.node else 0
                if truth.durable and task not in machine.disk.tasks:
                    self._broken("I1", task, "accepted before it is flushed")
        elif isinstance(message, m.Ended):
            self._tells(machine, message)
        elif isinstance(message, m.Results):
            for one in message.results:
                self._tells(machine, ended_of(one, message.node))

    def _tells(self, machine: Machine, message: m.Ended) -> None:
        """An outcome is shown to a client."""
        row = machine.disk.ends.get(message.task)
        truth = self.tasks[message.task]
        outcome = _outcome(message)
        if truth.durable and (row is None or _outcome(row) != outcome):
            self._broken("I2", message.task, "told before it is flushed")
        if isinstance(message.result, m.Ref):
            self._result_is_here(machine, message.task, message.result)
        self._ends(message.task, truth, message)
        if truth.ended is not None and truth.ended != outcome:
            self._broken("I2", message.task, f"ended {truth.ended}, now {outcome}")
        if truth.ended is None:
            self.outcomes += 1
            truth.ended_ms = self.world.now
        truth.ended = outcome

    def _result_is_here(self, machine: Machine, task: bytes, result: m.Ref) -> None:
        """R-outcome-3: who tells of a large result has it."""
        if result.digest not in machine.disk.objects:
            self._broken("I2", task, "is told before its result is stored")
        elif (machine.index, result.digest) in self.unfit:
            self._broken("I6", task, "ends with bytes that nobody made")

    def persisted(self, machine: Machine, persist: e.Persist) -> None:
        """Rows are on their way to the disk: an outcome is set, a task is forgotten."""
        for row in persist.rows:
            if isinstance(row, e.EndRow):
                self._ends(row.task, self.tasks[row.task], row)
            elif isinstance(row, e.ForgetRow):
                self._forgets(machine, row.task)
            elif isinstance(row, e.TaskRow) and machine.was_full:
                self._broken("I1", row.task, "is taken on without room for it")

    def _forgets(self, machine: Machine, task: bytes) -> None:
        """I1: a durable outcome is kept for its time, or until there are too many of them."""
        truth = self.tasks[task]
        truth.forgotten = True
        kept = len(machine.disk.ends)
        aged_ms = self.world.now - truth.ended_ms
        if 11 * aged_ms < 10 * at_most.RETENTION_MS and kept <= at_most.RETAINED_TASKS_MAX:
            self._broken("I1", task, f"is forgotten {aged_ms} ms after its end")

    def _ends(self, task: bytes, truth: Truth, end: m.Ended | e.EndRow) -> None:
        if end.end is m.End.DONE and end.result not in truth.produced:
            self._broken("I6", task, "is done with a value nobody made")
        if end.end is m.End.QUARANTINED and not truth.poisoned:
            self._innocent(task, truth)
        if truth.going() and not truth.spec.pure and truth.ended is None:
            self._broken("I3", task, f"ends {end.end.name} while it runs")

    def _innocent(self, task: bytes, truth: Truth) -> None:
        """I10: who kills nothing is quarantined only where another fault hit it or its owner."""
        network = self.world.network
        weather = network.weather
        rough = weather.loss_permille or weather.double_permille or weather.hold_permille
        if rough or weather.jitter_ms > CALM.jitter_ms or network.lost:
            return
        hit = {truth.owner, *truth.alone_on}
        # Poison that takes the owner down while its isolated attempt runs is another fault to it.
        if any(index == truth.owner and at >= truth.alone_ms for at, index in self.poisonings):
            return
        if not any(index in hit for at, index in self.faults if at >= truth.submitted_ms):
            self._broken("I10", task, "kills nothing and is quarantined")

    def sent(self, machine: Machine, send: e.Send) -> None:
        """A message leaves: R-lease-1, I8."""
        message = send.message
        if isinstance(message, m.Grant):
            if send.to in self.twins:
                self.tasks[message.task].excused = True
            durable = self.tasks[message.task].durable
            if durable and message.token not in machine.disk.tokens:
                self._broken("I3", message.task, "granted before the attempt is flushed")
            if message.spec.isolated and message.flags & m.GrantFlag.GO:
                truth = self.tasks[message.task]
                truth.alone_on.add(self.world.by_id[send.to].index)
                truth.alone_ms = min(truth.alone_ms, self.world.now)
        elif isinstance(message, m.Renew):
            for one in message.attempts:
                if one.state is m.AttemptState.HELD:
                    # It may be held and given back within one turn of its worker.
                    self.held.setdefault((send.to, one.token), set()).add(machine.id)
        text = bounded.message(message)
        if text:
            self.world.broken("I8", f"{machine.name} says {text}")

    # --- what the protocol does not promise -------------------------------------------------------

    def rolled_back(self, machine: Machine, changed: Collection[bytes]) -> None:
        """A disk forgot something: of the tasks that it told otherwise nothing is promised."""
        for task in changed:
            self.tasks[task].excused = True
        self._counters[machine.index] = machine.disk.counter

    def cloned(self, machine: Machine) -> None:
        """Two machines have one id: nothing is promised of what either of them owns or runs."""
        self.twins.add(machine.id)
        for task, truth in self.tasks.items():
            here = any(node == machine.id for lives in truth.starts.values() for node, _ in lives)
            granted = machine.node is not None and any(
                task == work.grant.task or any(one.task == task for one in work.grant.more)
                for work in machine.node.worker.works.values()
            )
            if truth.owner == machine.index or here or granted:
                truth.excused = True

    def uncloned(self, machine: Machine) -> None:
        """Only one of them is left, in a new life: from now on everything is promised again."""
        self.twins.discard(machine.id)

    # --- after every event ------------------------------------------------------------------------

    def started(self, machine: Machine) -> None:
        """A daemon starts: I1, I2, I9."""
        node = machine.node
        if node is None:
            return
        before = self._counters.get(machine.index, 0)
        if inc_counter(node.inc) <= before:
            self.world.broken("I9", f"{machine.name} did not raise its counter")
        self._counters[machine.index] = inc_counter(node.inc)
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
        if self._killing:
            self._killing = False
            self.poisonings.append((self.world.now, machine.index))
        else:
            self.faults.append((self.world.now, machine.index))

    def after(self, machine: Machine, event: n.AnyEvent) -> None:
        """After each event: what it can have changed; now and then everything."""
        node = machine.node
        if node is None:
            return
        if isinstance(event, n.Overslept):
            self.faults.append((self.world.now, machine.index))
        elif machine.inbox and isinstance(event, n.Tick):
            self._judged_early(machine, node)
        worker = node.worker
        if worker.running + worker.held > machine.slots:
            self.world.broken("I4", f"{machine.name} runs and holds more than its slots")
        if worker.held:
            for key, work in worker.works.items():
                if work.state is State.HELD:
                    self.held.setdefault(key, set()).add(machine.id)
        text = bounded.soon(node)
        if text:
            self.world.broken("I8", f"{machine.name} {text}")
        self._turns += 1
        if self._turns % self.books_every == 0:
            self.books(machine, node)
        if self.world.now >= self._sweep_ms:
            self._sweep_ms = self.world.now + 1_000
            self._check_orphans()

    def books(self, machine: Machine, node: n.Node) -> None:
        """Compare all books of one node with each other, and all tables with their limits: I8."""
        node.check()
        text = bounded.tables(node)
        if text:
            self.world.broken("I8", f"{machine.name} {text}")

    def last_look(self) -> None:
        """At the end of a history: every book once more."""
        for machine in self.world.machines:
            if machine.node is not None:
                self.books(machine, machine.node)
        self._check_orphans()

    def _judged_early(self, machine: Machine, node: n.Node) -> None:
        """R-elect-4: nobody is accused while a Heartbeat of its lies unread."""
        peers = node.membership.peers
        for event in machine.inbox:
            if not isinstance(event, n.Heard):
                continue
            peer = peers.get(event.beat.node)
            if peer is None or peer.inc != event.beat.inc or peer.stamp_ms >= event.beat.stamp_ms:
                continue
            if peer.state in (PeerState.SUSPECT, PeerState.DEAD):
                name = self.world.names.node(peer.node)
                self.world.broken("L3", f"{machine.name} accuses {name} with its beats unread")

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
