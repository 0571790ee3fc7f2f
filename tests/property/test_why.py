"""`why` is empty exactly when a simple model scheduler would place the task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from blackroad import queries
from blackroad.bus import messages as m
from blackroad.ids import Epoch
from blackroad.requirements import Needs
from blackroad.router import why
from blackroad.router.coordinator import Coordinator
from blackroad.router.effects import Outbox
from blackroad.router.records import Task, TaskState
from tests.unit.builders import GIB, INC, ME, OTHER, OwnerBench, caps, node_id, supply, task_id

# When the coordinator has listened, and when the second round of the table is due.
FIRST_MS, SECOND_MS = 1_000, 5_000
FAR_MS = 10**9
STATES = ("ok", "ok", "ok", "draining", "avoided", "backing off", "silent", "unknown")
FOREIGN = node_id(90)


class Machine(NamedTuple):
    """One node of an invented cluster; `taken` cores are another owner's."""

    cores: int
    gib: int
    state: str
    taken: int


class Work(NamedTuple):
    """What is asked for, how often."""

    cpu: int
    gib: int
    count: int
    nodes: int


MACHINES = st.builds(
    lambda cores, gib, state, taken: Machine(cores, gib, state, min(cores, taken)),
    st.integers(1, 4),
    st.integers(1, 8),
    st.sampled_from(STATES),
    st.integers(0, 4),
)
WORKS = st.builds(Work, st.integers(1, 3), st.integers(0, 6), st.integers(1, 6), st.just(1))


def placeable(machines: list[Machine], work: Work) -> int:
    """The model: how many of the tasks a scheduler that knows everything would place now."""
    places = 0
    for one in machines:
        # What an owner does not know yet the coordinator does.
        if one.state not in ("ok", "unknown"):
            continue
        by_cpu = (one.cores - one.taken) // work.cpu
        by_memory = one.gib // work.gib if work.gib else by_cpu
        places += min(by_cpu, by_memory)
    return min(places, work.count)


class Cluster:
    """A real owner and a real coordinator, and nodes as a test wants them."""

    def __init__(self, machines: list[Machine], work: Work) -> None:
        self.bench = OwnerBench(nodes=())
        self.owner = self.bench.owner
        self.owner.view.get(ME).draining = True
        self.out = Outbox(OTHER)
        self.coordinator = Coordinator(OTHER, self.out)
        self.coordinator.begin(Epoch(5, OTHER), 0)
        self.machines = {bytes([10 + at]) * 16: one for at, one in enumerate(machines)}
        for node, one in self.machines.items():
            self._meet(node, one)
        self._foreign()
        needs = Needs(cpu=work.cpu, **({"memory": f"{work.gib}GiB"} if work.gib else {}))
        numbers = range(1, work.count + 1)
        self.bench.submit(*numbers, spec=m.ClassSpec(needs.to_wire()), wait_for_node=True)
        self.tasks = [self.owner.tasks[task_id(number)] for number in numbers]
        for node, one in self.machines.items():
            if one.state == "backing off":
                self.tasks[0].cls.use(node).backoff_until_ms = FAR_MS

    def _meet(self, node: bytes, one: Machine) -> None:
        view = self.owner.view.get(node, node.hex()[:8])
        view.present = True
        self.owner.view.on_stamp(node, INC, 500, 0 if one.state != "silent" else -FAR_MS)
        machine = caps(node.hex()[:8], cores=one.cores, memory_bytes=one.gib * GIB)
        if one.state != "unknown":
            self.owner.view.on_capabilities(node, node.hex()[:8], machine)
        view.draining = one.state == "draining"
        view.avoid_until_ms = FAR_MS if one.state == "avoided" else 0
        gives = supply(one.cores, one.gib * GIB, draining=one.state == "draining")
        self.coordinator.on_supply(node, node.hex()[:8], machine, gives)

    def _foreign(self) -> None:
        used = tuple(m.InUse(node, one.taken) for node, one in self.machines.items() if one.taken)
        fields: dict[str, Any] = {
            "cls": 1,
            "needs": Needs(cpu=1).to_wire(),
            "priority": 0,
            "user": "eve",
            "gang": 1,
            "exclusive": False,
            "queued": 0,
            "oldest_wait_ms": 0,
            "mean_ms": 0,
            "in_use": used,
        }
        self.coordinator.on_demand(FOREIGN, m.Demand(INC, 1, (m.ClassDemand(**fields),), ()), 0)

    def table(self, now_ms: int) -> None:
        """The owner states its Demand, and gets a table; nothing is granted by it yet."""
        self.owner.tick(now_ms)
        self.owner.granting._dirty.clear()
        self.owner.granting.settle(now_ms, self.owner.classes, self.owner.by_id)
        for effect in self.out_of(self.bench.out):
            if isinstance(effect.message, m.Demand):
                self.coordinator.on_demand(ME, effect.message, now_ms)
        self.coordinator.settle(now_ms)
        for effect in self.out_of(self.out):
            if effect.to == ME:
                self.owner.on_allocation(OTHER, effect.message, 0)

    @staticmethod
    def out_of(out: Outbox) -> list[Any]:
        return [one for one in out.take() if hasattr(one, "to")]

    def why(self, task: Task, now_ms: int) -> dict[str, Any]:
        """The whole answer, as a client puts it together."""
        told = queries.why(SimpleNamespace(me=ME, owner=self.owner), task, now_ms)
        return why.together(told, why.pool(self.coordinator, ME, task.cls.id, now_ms))


@given(st.lists(MACHINES, min_size=0, max_size=4), WORKS)
@example([Machine(2, 1, "backing off", 0), Machine(2, 1, "ok", 0)], Work(1, 0, 2, 1))
@example(
    [Machine(1, 1, "ok", 0), *(Machine(2, 1, state, 0) for state in ("ok", "silent", "ok"))],
    Work(1, 0, 5, 1),
)
@settings(max_examples=300, deadline=None)
def test_why_is_empty_exactly_when_the_model_places_the_task(
    machines: list[Machine], work: Work
) -> None:
    """Before the owner acts on a table, and after; and what it does is what the model says."""
    cluster = Cluster(machines, work)
    cluster.table(FIRST_MS)
    places = most = placeable(machines, work)
    empty = [not cluster.why(task, FIRST_MS)["holds"] for task in cluster.tasks]
    if any(one.state in ("backing off", "silent") for one in machines):
        # These only the owner knows: the coordinator may have given places on such nodes.
        places = empty.index(False) if False in empty else work.count
        assert places <= most
    assert empty == [at < places for at in range(work.count)]
    cluster.owner.settle(FIRST_MS)
    granted = [task.state is TaskState.GRANTED for task in cluster.tasks]
    assert granted == empty
    for task in cluster.tasks[places:]:
        # The coordinator has not heard of what was granted yet.
        assert cluster.why(task, FIRST_MS)["holds"]
    cluster.table(SECOND_MS)
    for task in cluster.tasks[most:]:
        told = cluster.why(task, SECOND_MS)
        assert told["holds"], told
        assert told["reason"]


@given(st.lists(MACHINES, min_size=1, max_size=4), WORKS)
@settings(max_examples=150, deadline=None)
def test_every_node_has_its_rule(machines: list[Machine], work: Work) -> None:
    """Each node is named with what keeps the task from it, and what it lacks, item by item."""
    cluster = Cluster(machines, work)
    cluster.table(FIRST_MS)
    rows = {row["id"]: row for row in cluster.why(cluster.tasks[0], FIRST_MS)["nodes"]}
    for node, one in cluster.machines.items():
        row = rows[why.short(node)]
        lacks = {item for item, *_ in row["missing"]}
        if one.state == "unknown":
            assert row["rule"] in ("", why.UNKNOWN)
            assert not lacks
            continue
        assert lacks == {
            item
            for item, asked, there in (("cpu", work.cpu, one.cores), ("memory", work.gib, one.gib))
            if asked > there
        }
        expected = {
            "draining": why.DRAINING,
            "avoided": why.AVOIDED,
            "backing off": why.BACK_OFF,
            "silent": why.SILENT,
        }
        if lacks:
            assert row["rule"] == why.LACKS
        elif one.state in expected:
            assert row["rule"] == expected[one.state]
        elif one.cores - one.taken < work.cpu:
            assert row["rule"] == why.FULL
            assert row["pool"]["lacking"][0][0] == "cpu"
        else:
            assert row["rule"] == ""
