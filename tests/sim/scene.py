"""A stage for directed histories: a calm cluster whose network and nodes do what they are told.

The histories themselves stand in `directed.py`.  This file must not know any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.requirements import Needs
from tests.sim import mutants
from tests.sim.cluster import Broken, Cluster
from tests.sim.machine import Machine
from tests.sim.network import PATHS
from tests.sim.processes import Plan

if TYPE_CHECKING:
    from tests.sim.clients import Client

# A costly mutant must cost at least so many times what the rule costs.
COSTLY_RATIO = 1.5
SETTLED_MS = 8_000
COST_MS = 60_000

Story = Callable[[], int]
STORIES: dict[str, Story] = {}


def story(tell: Story) -> Story:
    """Register a directed history under its own name."""
    STORIES[tell.__name__] = tell
    return tell


def notices(mutant: mutants.Mutant) -> str:
    """Which rule the mutant's story sees broken, if any."""
    with mutants.applied(mutant.name):
        return ending(mutant.story)[0]


def ending(name: str) -> tuple[str, int]:
    """Play a story: which rule broke, and what it measured."""
    try:
        return "", STORIES[name]()
    except Broken as broken:
        return broken.rule, 0


def costs(mutant: mutants.Mutant) -> tuple[int, int]:
    """What the mutant's story takes with the rule and without it."""
    tell = STORIES[mutant.story]
    healthy = tell()
    with mutants.applied(mutant.name):
        return healthy, tell()


def least(scene: Scene, names: list[str]) -> int:
    """How long it takes until these have ended, as far as it is worth waiting for."""
    began = scene.world.now
    while scene.world.now < began + COST_MS and not all(map(scene.ended, names)):
        scene.run(50)
    return scene.world.now - began


class Scene:
    """A cluster to tell a story on: nodes `n0`, `n1` ..., and a client at each that is asked."""

    def __init__(
        self, *slots: int, rates: tuple[int, ...] = (), seed: int = 5, greets: bool = False
    ) -> None:
        self.world = world = Cluster(seed, greets=greets)
        world.observer.books_every = 1
        world.kill_ms_max = 0
        self.machines: list[Machine] = []
        self.clients: dict[int, Client] = {}
        self.tasks: dict[str, bytes] = {}
        self.held: list[tuple[Machine, n.FromPeer]] = []
        self._traps: list[tuple[str, int, int, bool]] = []
        for index, count in enumerate(slots):
            labels = {"node": str(index)}
            machine = world.add_machine(f"n{index}", count, bytes([index + 1]) * 16, labels=labels)
            if rates:
                machine.set_clock(rates[index], 1_000)
            self.machines.append(machine)
            machine.start()
        send = world.send_all
        world.send_all = (  # type: ignore[method-assign]
            lambda source, to, messages: self._sieve(send, source, to, messages)
        )
        self.run(SETTLED_MS)

    # --- time and network -------------------------------------------------------------------------

    def run(self, ms: int) -> None:
        """Let time pass."""
        self.world.run(self.world.now + ms)

    def until(self, true: Callable[[], bool], ms: int = 120_000, step: int = 1) -> int:
        """Let time pass until something is so; return how long that took."""
        began = self.world.now
        while not true():
            if self.world.now - began > ms:
                raise Broken("L2", f"it did not come to pass within {ms} ms")
            self.world.run(self.world.now + step)
        return self.world.now - began

    def cut(self, source: int, target: int, *paths: int) -> None:
        """Stop one direction."""
        for path in paths or PATHS:
            self.world.network.cut(source, target, path)

    def join(self, source: int, target: int, *paths: int) -> None:
        """Let it through again."""
        for path in paths or PATHS:
            self.world.network.heal(source, target, path)

    def hold(self, kind: str, source: int, target: int) -> None:
        """Keep messages of this kind on their way."""
        self._traps.append((kind, source, target, True))

    def lose(self, kind: str, source: int, target: int) -> None:
        """Lose messages of this kind."""
        self._traps.append((kind, source, target, False))

    def free(self) -> None:
        """No message is held or lost any more; those that were held stay so."""
        self._traps.clear()

    def release(self) -> None:
        """What was held arrives now."""
        self.free()
        held, self.held = self.held, []
        for target, event in held:
            target.feed(event)

    def _sieve(
        self,
        send: Callable[..., None],
        source: Machine,
        to: bytes,
        messages: tuple[m.Message, ...],
    ) -> None:
        target = self.world.by_id[to]
        for message in messages:
            key = (type(message).__name__, source.index, target.index)
            trap = next((one for one in self._traps if one[:3] == key), None)
            if trap is None:
                send(source, to, (message,))
            elif trap[3]:
                inc = source.node.inc if source.node else 0
                self.held.append((target, n.FromPeer(source.id, (message,), inc)))

    # --- work -------------------------------------------------------------------------------------

    def client(self, index: int) -> Client:
        """The program on that node."""
        if index not in self.clients:
            self.clients[index] = self.world.add_client(self.machines[index])
            self.clients[index].open()
            self.run(10)
        return self.clients[index]

    def submit(
        self,
        name: str,
        at: int,
        run_ms: int,
        *,
        on: int = -1,
        fate: str = "done",
        tries: int = 10**9,
        durable: bool = True,
        count: int = 1,
        kind: str = "",
        **spec: object,
    ) -> None:
        """Submit `count` tasks at one node, to run on any or on one; equal kinds are one class."""
        world, client = self.world, self.client(at)
        needs = Needs(labels={"node": str(on)}) if on >= 0 else Needs()
        named = {"name": kind or name, **spec}
        made = m.ClassSpec(needs.to_wire(), **named)  # type: ignore[arg-type]
        items = []
        for serial in range(count):
            text = name if count == 1 else f"{name}.{serial}"
            task = text.encode().ljust(16, b".")
            self.tasks[text] = task
            world.plans[task] = Plan(run_ms, fate, tries)
            world.names.tasks[task] = text
            items.append(m.Item(task, b"work"))
        submit = m.Submit(client.session, made, None, durable, True, tuple(items))
        world.observer.submitted(at, client.session, submit)
        client.submit(submit)

    def company(self, count: int, run_ms: int, plans: dict[int, Plan], slots: int = 1) -> None:
        """Let n0 send `count` tasks of one class to n1, in one attempt for each of its slots.

        They are called `t.0`, `t.1` ...; a first one is done before, so that the class is known.
        """
        for machine in self.machines:
            if machine.node is not None:
                machine.node.owner.granting.bundle_us = 10**9
        self.submit("t", 0, run_ms, on=1, durable=False)
        self.until(lambda: self.ended("t"))
        self.submit("t", 0, run_ms, on=1, durable=False, count=count)
        self.world.plans.update({self.tasks[f"t.{one}"]: plan for one, plan in plans.items()})
        self.until(lambda: self.runs("t.0"))
        live = self.owner(0).owner.attempts.values()
        if [len(one.tasks()) for one in live] != [count // slots] * slots:
            raise Broken("story", "they are not in company")

    def starts(self, name: str) -> int:
        """How many attempts of a task were started so far."""
        return len(self.world.observer.tasks[self.tasks[name]].starts)

    def runs(self, name: str) -> bool:
        """Does it run now?"""
        return bool(self.world.observer.tasks[self.tasks[name]].running)

    def ended(self, name: str) -> bool:
        """Is its outcome told?"""
        return self.world.observer.tasks[self.tasks[name]].ended is not None

    def only(self, index: int) -> None:
        """Let nobody but that node take work."""
        for machine in self.machines:
            machine.feed(n.Drain(machine.index != index))
        self.run(600)

    def everybody(self, but: int = -1) -> None:
        """Let them all take work again, but for one perhaps."""
        for machine in self.machines:
            if machine.index != but:
                machine.feed(n.Drain(False))
        self.run(600)

    def crash(self, index: int, *, power: bool = False, off_ms: int = 1_000) -> None:
        """A daemon (or its machine) dies and comes back; what was written is flushed."""
        machine = self.machines[index]
        machine.crash(power=power, keep=len(machine.disk.pending))
        self.world.at(self.world.now + off_ms, machine.start)

    def owner(self, index: int) -> n.Node:
        """The node there, which must be up."""
        node = self.machines[index].node
        if node is None:
            raise Broken("story", f"n{index} is down")
        return node

    def end(self) -> None:
        """Everything ends, and the books agree."""
        self.until(lambda: all(map(self.ended, self.tasks)), step=50)
        self.world.observer.last_look()


# Each of its functions registers itself here.
from tests.sim import directed, directed_ahead, directed_bundles  # noqa: E402, F401
