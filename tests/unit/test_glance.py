"""Short rows for a live view: what they say, and that they cost the same however much there is."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest

from blackroad import glance
from blackroad.bus import messages as m
from blackroad.glance import MeshView, WorkArgs, WorkView
from blackroad.ids import short
from blackroad.node import Heard, Node, Probed, Sensed, Tick
from blackroad.requirements import Needs
from tests.unit.builders import (
    ME,
    PEER,
    SESSION,
    beat,
    caps,
    client,
    gpu,
    make_node,
    of_kind,
    spec,
    submit,
    supply,
    task_id,
)


def opened() -> Node:
    node = make_node()
    node.handle(client(m.Open(SESSION, 600_000)), 0)
    return node


def ask(node: Node, name: str, now_ms: int = 100, **args: Any) -> m.Reply:
    query = m.Query(7, b"", name, msgpack.packb(args) if args else b"")
    replies = of_kind(node.handle(client(query), now_ms), m.Reply)
    body = b"".join(one.body for one in replies)
    return m.Reply(7, replies[0].node, 0, True, body, replies[0].error)


def mesh(node: Node, now_ms: int = 100) -> MeshView:
    return msgspec.msgpack.decode(ask(node, "mesh", now_ms).body, type=MeshView)


def work(node: Node, now_ms: int = 100, tasks: int = 40) -> WorkView:
    body = ask(node, "work", now_ms, tasks=tasks).body
    return msgspec.msgpack.decode(body, type=WorkView)


def queue(node: Node, count: int, first: int = 1, now_ms: int = 1, **changes: Any) -> None:
    """Submit tasks that no node here can run, which is said to be waited for."""
    needs = Needs(gpu=1).to_wire()
    asked = spec(needs, **changes)
    for at in range(first, first + count, 64):
        ids = range(at, min(at + 64, first + count))
        node.handle(client(submit(*ids, spec=asked, wait_for_node=True)), now_ms)


def test_a_node_tells_of_itself_and_of_those_it_hears() -> None:
    node = opened()
    node.handle(Probed(caps("attic", devices=(gpu(),))), 5)
    node.handle(Sensed(71, True, 88, 1200, 34, 75, 60), 10)
    heard = beat(PEER, supply=supply(cores=2, running=1, waiting=3, done=9), owned=77)
    node.handle(Heard(heard), 20)
    view = mesh(node, 120)
    mine, other = view.nodes
    assert (mine.node, mine.name, mine.state) == (ME, "attic", "alive")
    assert (mine.temperature_c, mine.throttled, mine.load_percent) == (71, True, 88)
    assert (mine.receiving_kib_s, mine.sending_kib_s) == (1200, 34)
    assert (mine.cpu_percent, mine.memory_percent) == (75, 60)
    assert mine.gpus == ("card",)
    assert (other.node, other.silent_ms, other.owned) == (PEER, 100, 77)
    assert (other.slots, other.running, other.waiting, other.done) == (2, 1, 3, 9)
    # Nothing is known of its machine yet.
    assert (other.name, other.arch) == (short(PEER), "")


def test_heartbeats_tell_how_many_tasks_are_owned() -> None:
    node = opened()
    queue(node, 5)
    assert node.beat(50).owned == 5


def test_totals_and_classes_of_an_owner() -> None:
    node = opened()
    queue(node, 3, name="render", user="ann", priority=2, now_ms=1_000)
    queue(node, 2, first=100, name="merge", user="bob", now_ms=4_000)
    view = work(node, 9_000)
    assert (view.node, view.open) == (ME, {"queued": 5})
    rows = [(one.name, one.user, one.priority, one.queued, one.oldest_ms) for one in view.classes]
    assert rows == [("render", "ann", 2, 3, 8_000), ("merge", "bob", 0, 2, 5_000)]
    assert {(one.state, one.name, one.age_ms) for one in view.tasks} == {
        ("queued", "render", 8_000),
        ("queued", "merge", 5_000),
    }


def test_what_runs_and_what_has_ended() -> None:
    node = opened()
    node.handle(client(submit(1)), 10)
    node.handle(Tick(), 20)
    [running] = work(node).tasks
    assert (running.state, running.task, running.nodes) == ("running", task_id(1), (ME,))
    assert work(node).open == {"running": 1}
    node.handle(client(m.Cancel((task_id(1),), "")), 30)
    queue(node, 1, first=50)
    node.handle(client(m.Cancel((task_id(50),), "")), 40)
    view = work(node)
    assert view.ended == {"cancelled": 1}
    ends = {one.task: one.state for one in view.tasks}
    assert ends[task_id(50)] == "cancelled"


def test_few_rows_of_many_tasks() -> None:
    node = opened()
    queue(node, 3_000)
    view = work(node, tasks=40)
    assert view.open == {"queued": 3_000}
    assert 5 <= len(view.tasks) <= 40
    assert work(node, tasks=0).tasks == ()


class Counting(dict[bytes, Any]):
    """Counts how many of its values are looked at."""

    looked = 0

    def __reversed__(self) -> Any:
        for key in super().__reversed__():
            Counting.looked += 1
            yield key

    def values(self) -> Any:
        outer = self

        class Values:
            def __reversed__(self) -> Any:
                for key in dict.__reversed__(outer):
                    Counting.looked += 1
                    yield outer[key]

            def __iter__(self) -> Any:
                for value in dict.values(outer):
                    Counting.looked += 1
                    yield value

        return Values()


def test_a_look_costs_the_same_however_many_tasks_there_are() -> None:
    node = opened()
    queue(node, 3_000)
    node.owner.tasks = Counting(node.owner.tasks)
    Counting.looked = 0
    glance.work(node, WorkArgs(40), 100)
    assert Counting.looked <= glance.SCAN_MAX


def test_many_nodes_are_told_in_few_bytes() -> None:
    node = opened()
    for number in range(200):
        name = (100 + number).to_bytes(8, "big") * 2
        node.handle(Heard(beat(name, supply=supply(done=10**7, running=4), owned=10**6)), 20)
    body = ask(node, "mesh").body
    view = msgspec.msgpack.decode(body, type=MeshView)
    assert len(view.nodes) == 201
    assert len(body) <= 201 * 120


@pytest.mark.parametrize(
    ("name", "args"), [("work", {"tasks": "many"}), ("work", {"all": 1}), ("mesh", {"a": 1})]
)
def test_arguments_that_make_no_sense_are_refused(name: str, args: dict[str, Any]) -> None:
    node = opened()
    assert name in ask(node, name, **args).error


def test_long_names_are_told_in_short() -> None:
    node = opened()
    queue(node, 1, name="n" * 120, user="u" * 60)
    [row] = work(node).tasks
    assert (len(row.name), len(row.user)) == (glance.TEXT_MAX, glance.TEXT_MAX)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": b"x" * 1_000_000},
        {"nodes": (b"x" * 1_000_000,)},
        {"nodes": (bytes(16),) * 300},
    ],
)
def test_ids_of_an_answer_are_ids(changes: dict[str, Any]) -> None:
    fields = {"task": bytes(16), "state": "running", "name": "", "user": "", "priority": 0,
              "age_ms": 0, "run_us": 0, "nodes": (), "tries": 1, "note": ""}  # fmt: skip
    told = glance.WorkView(
        bytes(16),
        1,
        {},
        {},
        (),
        (glance.TaskRow(**{**fields, **changes}),),  # type: ignore[arg-type]
    )
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=glance.WorkView)


def test_few_states_are_told() -> None:
    told = glance.WorkView(bytes(16), 1, {f"s{at}": 1 for at in range(65)}, {}, (), ())
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=glance.WorkView)
