"""Hypothesis plays the cluster by hand: short, readable histories, shrunk by themselves.

Targets are indices into sorted lists, so that a smaller example is a simpler one.  At the end all
is healed, and everything accepted must end.  `BLACKROAD_RULES` sets how many examples.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.requirements import Needs
from tests.sim import liveness, mutants
from tests.sim.clients import Client
from tests.sim.cluster import Broken, Cluster
from tests.sim.machine import Machine
from tests.sim.network import PATHS
from tests.sim.processes import Plan

EXAMPLES = int(os.environ.get("BLACKROAD_RULES") or 30)
STEPS = 60
PATIENCE_MS = 300_000
INDEX = st.integers(0, 2)
PROFILE = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
Sent = tuple[Machine, Machine, m.Message, int]


class Rules(RuleBasedStateMachine):
    """One cluster of three nodes in somebody's hand."""

    tasks = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self.world = world = Cluster(1)
        world.observer.books_every = 1
        world.kill_ms_max = 500
        for index in range(3):
            world.add_machine(f"n{index}", index + 1, bytes([index + 1]) * 16).start()
        self.clients: list[Client] = []
        self.sent: list[Sent] = []
        self.held: list[Sent] = []
        self.holding: set[str] = set()
        self.losing: set[str] = set()
        self.count = 0
        self._send = world.send_all
        world.send_all = self._sieve  # type: ignore[method-assign]

    def _sieve(self, source: Machine, to: bytes, messages: Sequence[m.Message]) -> None:
        target = self.world.by_id[to]
        inc = source.node.inc if source.node is not None else 0
        for message in messages:
            kind = type(message).__name__
            one = (source, target, message, inc)
            if kind in self.losing:
                self.losing.discard(kind)
            elif kind in self.holding:
                self.held.append(one)
            else:
                self.sent = [*self.sent[-15:], one]
                self._send(source, to, (message,))

    def _arrive(self, one: Sent) -> None:
        source, target, message, inc = one
        target.feed(n.FromPeer(source.id, (message,), inc))

    @initialize()
    def settle(self) -> None:
        """Everybody knows everybody."""
        self.world.run(6_000)
        for machine in self.world.machines:
            self.clients.append(self.world.add_client(machine))
            self.clients[-1].open()
        self.world.run(6_100)
        self.sent.clear()

    # --- work -------------------------------------------------------------------------------------

    @rule(
        target=tasks,
        at=INDEX,
        run_ms=st.sampled_from((10, 1_500, 8_000)),
        durable=st.booleans(),
        gang=st.sampled_from((1, 1, 1, 2)),
        fate=st.sampled_from(("done", "done", "done", "crash", "poison")),
        more=st.sampled_from((0, 0, 8)),
    )
    def submit(
        self, at: int, run_ms: int, durable: bool, gang: int, fate: str, more: int
    ) -> tuple[Client, bytes]:
        """A client submits a task, perhaps with more of its kind."""
        client, world = self.clients[at], self.world
        items = []
        for _ in range(1 + more):
            self.count += 1
            task = f"t{self.count}".encode().ljust(16, b".")
            world.names.tasks[task] = f"t{self.count}"
            world.plans[task] = Plan(run_ms, fate, 3)
            items.append(m.Item(task, b"work"))
        spec = m.ClassSpec(Needs().to_wire(), gang=gang, lease_ms=5_000, name="pi")
        submit = m.Submit(client.session, spec, None, durable, True, tuple(items))
        world.observer.submitted(at, client.session, submit)
        client.submit(submit)
        return client, items[0].task

    @rule(one=tasks)
    def submit_again(self, one: tuple[Client, bytes]) -> None:
        """The client has lost patience; once it has an outcome it does not ask again."""
        client, task = one
        known = client.tasks.get(task)
        if known is not None and known.ended is None and not known.lost:
            client.say(known.submit)

    @rule(one=tasks)
    def cancel(self, one: tuple[Client, bytes]) -> None:
        """The client has changed its mind."""
        client, task = one
        client.cancel((task,))

    # --- nodes ------------------------------------------------------------------------------------

    @rule(index=INDEX, power=st.booleans(), keep=st.integers(0, 3))
    def crash(self, index: int, power: bool, keep: int) -> None:
        """A daemon dies, or its machine; some of what was not flushed is lost."""
        self.world.machines[index].crash(power=power, keep=keep)

    @rule(index=INDEX)
    def restart(self, index: int) -> None:
        """A daemon starts, if it is down."""
        self.world.machines[index].start()

    @rule(index=INDEX)
    def pause(self, index: int) -> None:
        """A daemon stands still."""
        self.world.machines[index].pause()

    @rule(index=INDEX)
    def resume(self, index: int) -> None:
        """It goes on."""
        self.world.machines[index].resume()

    @rule(index=INDEX, on=st.booleans())
    def drain(self, index: int, on: bool) -> None:
        """A node takes nothing new, or takes work again."""
        self.world.machines[index].feed(n.Drain(on))

    @rule(index=INDEX, days=st.integers(-2, 2))
    def jump_wall(self, index: int, days: int) -> None:
        """Somebody sets the clock on the wall."""
        self.world.machines[index].wall_ms += days * 86_400_000

    @rule(index=INDEX, full=st.booleans())
    def fill(self, index: int, full: bool) -> None:
        """A disk has no room, or has room again."""
        self.world.machines[index].fill_disk(full)

    @rule(index=INDEX)
    def upgrade(self, index: int) -> None:
        """A daemon is replaced by a newer one, which says more."""
        machine = self.world.machines[index]
        if machine.up:
            machine.crash(power=False, keep=len(machine.disk.pending))
            machine.version = 2
            machine.start()

    # --- network ----------------------------------------------------------------------------------

    @rule(source=INDEX, end=INDEX)
    def cut(self, source: int, end: int) -> None:
        """One direction is cut."""
        if source != end:
            for path in PATHS:
                if self.world.network.connected(source, end, path):
                    self.world.network.cut(source, end, path)

    @rule()
    def heal(self) -> None:
        """All links are whole."""
        self.world.network.cuts.clear()

    @rule(kind=st.sampled_from(("Grant", "Outcome", "Recall", "Refused", "Renew", "Renewed")))
    def hold_message(self, kind: str) -> None:
        """The network keeps messages of this kind."""
        self.holding.add(kind)

    @precondition(lambda self: self.held or self.holding)
    @rule()
    def release(self) -> None:
        """What was kept arrives."""
        held, self.held = self.held, []
        self.holding.clear()
        for one in held:
            self._arrive(one)

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 15))
    def duplicate_message(self, which: int) -> None:
        """One of the last messages arrives once more, the newest being 0."""
        self._arrive(self.sent[-1 - which % len(self.sent)])

    @rule()
    def lose_ack(self) -> None:
        """The next acknowledgement of an outcome is lost."""
        self.losing.add("OutcomeAck")

    # --- time -------------------------------------------------------------------------------------

    @rule(ms=st.sampled_from((10, 300, 2_000, 9_000, 30_000)))
    def advance(self, ms: int) -> None:
        """Time passes."""
        self.world.run(self.world.now + ms)

    def teardown(self) -> None:
        """All is healed: a coordinator is found, and every accepted task ends."""
        world = self.world
        if not self.clients:
            return
        world.send_all = self._send  # type: ignore[method-assign]
        self.losing.clear()
        self.release()
        world.network.cuts.clear()
        for machine in world.machines:
            machine.resume()
            if machine.disk.full:
                machine.fill_disk(False)
            machine.start()
            machine.feed(n.Drain(False))
        liveness.leader(world, world.machines, [])
        world.run(world.now + PATIENCE_MS, lambda: not self._left())
        left = self._left()
        if left:
            names = ", ".join(world.names.task(task) for task in left)
            raise Broken("L2", f"{names} did not end")
        world.observer.last_look()

    def _left(self) -> list[bytes]:
        """Tasks that an owner has and that have not ended."""
        return [
            task
            for machine in self.world.machines
            if machine.node is not None
            for task, record in machine.node.owner.tasks.items()
            if record.ended is None
        ]


def test_the_cluster_in_a_hand() -> None:
    run_state_machine_as_test(Rules, settings=PROFILE)


class Quick(Rules):
    """The same without healing: what is broken shows before."""

    def teardown(self) -> None:
        """Let what was begun go on for a while."""
        self.world.run(self.world.now + 12_000)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("ledger_ignored", "I4"),
        ("accepted_before_flush", "I1"),
        ("cancel_before_proof", "I3"),
    ],
)
def test_a_hand_finds_bugs(name: str, broken: str) -> None:
    """With a rule broken, a short example is found that shows it."""
    quick = settings(
        PROFILE,
        max_examples=200,
        stateful_step_count=25,
        print_blob=False,
        report_multiple_bugs=False,
    )
    with mutants.applied(name), pytest.raises(Broken) as found:
        run_state_machine_as_test(Quick, settings=quick)
    assert found.value.rule == broken
    story = [text for note in found.value.__notes__ for text in note.splitlines()]
    steps = [text for text in story if "state." in text]
    assert 0 < len(steps) <= 12
