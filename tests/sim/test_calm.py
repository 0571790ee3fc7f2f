"""Without faults: machines are kept busy, equal users end together, nothing starts twice (L4)."""

from __future__ import annotations

import pytest

from blackroad.bus import messages as m
from blackroad.requirements import Needs
from tests.sim.cluster import Cluster
from tests.sim.machine import Plan

RUN_MS = 400
EACH = 90


def calm(slots: tuple[int, ...], users: tuple[str, ...], run_ms: int = RUN_MS) -> Cluster:
    """A cluster that has elected a coordinator, with one client of each user on the first node."""
    world = Cluster(3)
    for number, count in enumerate(slots):
        world.add_machine(f"n{number}", count, bytes([number + 1]) * 16).start()
    world.run(6_000)
    for user in users:
        client = world.add_client(world.machines[0])
        client.open()
        spec = m.ClassSpec(Needs().to_wire(), user=user, name="pi")
        for part in range(0, EACH, 30):
            items = []
            for serial in range(part, part + 30):
                task = f"{user}{serial}".encode().ljust(16, b".")
                world.plans[task] = Plan(run_ms)
                world.names.tasks[task] = f"{user}{serial}"
                items.append(m.Item(task, b""))
            submit = m.Submit(client.session, spec, None, False, False, tuple(items))
            world.observer.submitted(0, client.session, submit)
            client.submit(submit)
    return world


def ends(world: Cluster) -> dict[str, int]:
    """When the last task of each user ended, counted from now."""
    began = world.now
    last: dict[str, int] = {}
    left = {client.handle for client in world.clients.values()}
    while left and world.now < began + 300_000:
        world.run(world.now + 20)
        for client in world.clients.values():
            done = all(one.ended is not None for one in client.tasks.values())
            if client.handle in left and done:
                left.discard(client.handle)
                user = next(iter(client.tasks.values())).submit.spec.user
                last[user] = world.now - began
    return last


@pytest.mark.parametrize("slots", [(1, 1), (2, 2, 2), (4, 1, 1), (1, 2, 4, 4)])
def test_no_slot_idles_while_tasks_wait(slots: tuple[int, ...]) -> None:
    world = calm(slots, ("ann",))
    fluid_ms = EACH * RUN_MS / sum(slots)
    rounds_ms = -(-EACH // sum(slots)) * RUN_MS
    assert ends(world)["ann"] <= max(1.1 * fluid_ms, rounds_ms) + RUN_MS


def test_equal_users_end_together() -> None:
    last = ends(calm((2, 2, 2), ("ann", "bob")))
    fluid_ms = 2 * EACH * RUN_MS / 6
    assert all(0.8 * fluid_ms <= one <= 1.1 * fluid_ms + RUN_MS for one in last.values())


def test_nothing_starts_twice() -> None:
    world = calm((2, 1, 3), ("ann", "bob"), run_ms=30)
    assert len(ends(world)) == 2
    assert [len(truth.starts) for truth in world.observer.tasks.values()] == [1] * (2 * EACH)


def test_an_idle_node_only_beats() -> None:
    """Nothing but Heartbeats, restated Demands and tables leaves a cluster without work."""
    world = calm((1, 1), ())
    world.run(world.now + 5_000)
    sent: list[str] = []
    listen = world.send
    world.send = lambda source, to, message: (  # type: ignore[method-assign]
        sent.append(type(message).__name__),
        listen(source, to, message),
    )[1]
    woken = world.events
    world.run(world.now + 20_000)
    assert set(sent) <= {"Demand", "Allocation"}
    assert len(sent) <= 2 * 20_000 // 250
    assert world.events - woken <= 20 * 2 * (4 * 3 + 6)
