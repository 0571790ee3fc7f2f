"""How well work is placed: time needed against the least possible, shares, waits of large tasks.

`python -m tests.sim.quality` prints a table.  Real nodes on a calm simulated network; only the
machines' speeds and the tasks' lengths are made up.  The *fluid bound* is what no scheduler beats:
all work spread over all slots by their speed, or the longest task on the fastest slot.
"""

from __future__ import annotations

import json
import sys
from random import Random
from typing import NamedTuple

from blackroad.bus import messages as m
from blackroad.requirements import Needs
from tests.sim.clients import Client
from tests.sim.cluster import Cluster
from tests.sim.machine import Plan

SUBMIT_MAX = 64
STEP_MS = 10
PATIENCE_MS = 4_000_000
NEEDS = Needs().to_wire()


class Shelf(NamedTuple):
    """Slots and speed of each machine."""

    slots: tuple[int, ...]
    speeds: tuple[float, ...]

    def power(self) -> float:
        """Work per millisecond of all slots together."""
        return sum(slots * speed for slots, speed in zip(self.slots, self.speeds, strict=True))


class Bag:
    """Tasks of one user at one owner."""

    def __init__(
        self, user: str, owner: int, works_ms: list[int], *, exclusive: bool = False
    ) -> None:
        self.user = user
        self.owner = owner
        self.works_ms = works_ms
        self.exclusive = exclusive
        self.client: Client
        self.submitted_ms = 0
        self.ended_ms = 0

    def left(self) -> int:
        """How many have not ended."""
        return sum(one.ended is None for one in self.client.tasks.values())


class Place:
    """A calm cluster with a coordinator, to hand bags of tasks to."""

    def __init__(self, shelf: Shelf, seed: int = 3) -> None:
        self.world = Cluster(seed)
        self.bags: list[Bag] = []
        for number, (slots, speed) in enumerate(zip(*shelf, strict=True)):
            self.world.add_machine(f"n{number}", slots, bytes([number + 1]) * 16, speed=speed)
        for machine in self.world.machines:
            machine.start()
        self.world.run(6_000)

    def give(self, bag: Bag) -> Bag:
        """Submit all tasks of a bag now."""
        world = self.world
        bag.client = world.add_client(world.machines[bag.owner])
        bag.client.open()
        bag.submitted_ms = world.now
        spec = m.ClassSpec(NEEDS, user=bag.user, exclusive=bag.exclusive, name=bag.user)
        for first in range(0, len(bag.works_ms), SUBMIT_MAX):
            items = []
            for serial, work_ms in enumerate(bag.works_ms[first : first + SUBMIT_MAX], first):
                task = f"{len(self.bags)}.{serial}".encode().ljust(16, b".")
                world.plans[task] = Plan(work_ms)
                world.names.tasks[task] = f"{bag.user}{serial}"
                items.append(m.Item(task, b""))
            submit = m.Submit(bag.client.session, spec, None, False, False, tuple(items))
            world.observer.submitted(bag.owner, bag.client.session, submit)
            bag.client.submit(submit)
        self.bags.append(bag)
        return bag

    def run(self, *bags: Bag, more_ms: int = PATIENCE_MS) -> None:
        """Let time pass until these bags are empty, and note when each was."""
        world = self.world
        until_ms = world.now + more_ms
        while world.now < until_ms:
            world.run(world.now + STEP_MS)
            for bag in self.bags:
                if not bag.ended_ms and not bag.left():
                    bag.ended_ms = world.now
            if all(bag.ended_ms for bag in bags):
                return
        if more_ms == PATIENCE_MS:
            raise AssertionError("the tasks did not end")

    def starts(self) -> int:
        """How many attempts began."""
        return sum(len(truth.starts) for truth in self.world.observer.tasks.values())


def fluid_ms(shelf: Shelf, works_ms: list[int]) -> float:
    """The fluid bound."""
    return max(sum(works_ms) / shelf.power(), max(works_ms) / max(shelf.speeds))


class Makespan(NamedTuple):
    """One bag on an idle shelf."""

    name: str
    tasks: int
    took_ms: int
    fluid_ms: int
    ratio: float
    # With whole tasks even a clairvoyant needs this much more than the fluid bound, at worst.
    granularity: float
    starts: int


def makespan(name: str, shelf: Shelf, works_ms: list[int]) -> Makespan:
    """How long one user's bag takes, submitted at one owner."""
    place = Place(shelf)
    bag = place.give(Bag("ann", 0, works_ms))
    place.run(bag)
    took_ms = bag.ended_ms - bag.submitted_ms
    fluid = fluid_ms(shelf, works_ms)
    longest_ms = max(works_ms) / max(shelf.speeds)
    return Makespan(
        name,
        len(works_ms),
        took_ms,
        round(fluid),
        round(took_ms / fluid, 3),
        round(1 + longest_ms / fluid, 3),
        place.starts(),
    )


SHELVES = {
    "4 equal nodes": Shelf((2, 2, 2, 2), (1, 1, 1, 1)),
    "1x 2x 4x 8x 16x": Shelf((1, 1, 1, 1, 1), (1, 2, 4, 8, 16)),
    "3 Pis and a PC": Shelf((4, 4, 4, 12), (1, 1, 2.4, 10)),
}


def works(kind: str, count: int, mean_ms: int) -> list[int]:
    """Lengths of tasks at speed 1."""
    rng = Random(f"{kind} {count}")
    if kind == "even":
        return [mean_ms] * count
    if kind == "spread":
        return [max(1, int(mean_ms * rng.uniform(0.2, 1.8))) for _ in range(count)]
    tail = [min(rng.paretovariate(1.5), 30.0) for _ in range(count)]
    scale = mean_ms * count / sum(tail)
    return [max(1, int(one * scale)) for one in tail]


def makespans() -> list[Makespan]:
    """Every shelf with short, middle and long tasks, even and uneven ones."""
    found = []
    for name, shelf in SHELVES.items():
        for kind, count, mean_ms in (
            ("even", 2_000, 100),
            ("even", 400, 2_000),
            ("spread", 400, 2_000),
            ("tailed", 400, 2_000),
            ("even", 200, 20_000),
        ):
            label = f"{name}; {kind} {mean_ms} ms"
            found.append(makespan(label, shelf, works(kind, count, mean_ms)))
    return found


class Shares(NamedTuple):
    """Users beside each other: when each ended over when it should have."""

    name: str
    ratios: dict[str, float]


def shares() -> list[Shares]:
    """Equal users get equal parts, whoever has more queued and whoever came first."""
    shelf = SHELVES["4 equal nodes"]
    power = shelf.power()
    place = Place(shelf)
    ann = place.give(Bag("ann", 0, [500] * 200))
    bob = place.give(Bag("bob", 1, [500] * 200))
    place.run(ann, bob)
    both_ms = 400 * 500 / power
    found = [Shares("two equal", _ended({"ann": ann, "bob": bob}, both_ms))]

    place = Place(shelf)
    many = place.give(Bag("many", 0, [500] * 900))
    few = place.give(Bag("few", 1, [500] * 90))
    place.run(few)
    found.append(Shares("one has ten times more", _ended({"few": few}, 180 * 500 / power)))
    place.run(many)

    found.append(late_comer())

    place = Place(shelf)
    bags = [place.give(Bag(f"u{number}", number % 4, [400] * 100)) for number in range(8)]
    place.run(*bags)
    fair_ms = 800 * 400 / power
    found.append(Shares("eight equal", _ended({bag.user: bag for bag in bags}, fair_ms)))
    return found


def late_comer() -> Shares:
    """One user has the whole cluster when another one comes."""
    shelf = SHELVES["4 equal nodes"]
    place = Place(shelf)
    early = place.give(Bag("early", 0, [500] * 700))
    place.run(early, more_ms=10_000)
    late = place.give(Bag("late", 1, [500] * 90))
    place.run(late)
    return Shares("one comes later", _ended({"late": late}, 180 * 500 / shelf.power()))


def _ended(bags: dict[str, Bag], fair_ms: float) -> dict[str, float]:
    return {
        user: round((bag.ended_ms - bag.submitted_ms) / fair_ms, 3) for user, bag in bags.items()
    }


class Whole(NamedTuple):
    """Whole-node tasks among small ones."""

    took_ms: int
    fluid_ms: int
    ratio: float
    # From submit to the end of the last whole-node task, over the time of two such tasks.
    whole_ms: int
    whole_alone_ms: int


def whole_nodes() -> Whole:
    """Six tasks that want a node each come into a cluster full of small ones."""
    shelf = Shelf((4, 4, 4), (1, 1, 1))
    place = Place(shelf)
    small = place.give(Bag("small", 0, [1_000] * 600))
    place.run(small, more_ms=8_000)
    whole = place.give(Bag("whole", 1, [2_000] * 6, exclusive=True))
    place.run(small, whole)
    took_ms = max(small.ended_ms, whole.ended_ms) - small.submitted_ms
    fluid = (600 * 1_000 + 6 * 4 * 2_000) / shelf.power()
    return Whole(
        took_ms,
        round(fluid),
        round(took_ms / fluid, 3),
        whole.ended_ms - whole.submitted_ms,
        6 * 2_000 // 3,
    )


def main() -> int:
    """Print everything, one JSON line each."""
    for makespan_ in makespans():
        print(json.dumps(makespan_._asdict()), flush=True)
    for share in shares():
        print(json.dumps(share._asdict()), flush=True)
    print(json.dumps(whole_nodes()._asdict()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
