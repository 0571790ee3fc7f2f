"""The table for small clusters that one can check by hand."""

from __future__ import annotations

from typing import Any

from blackroad.requirements import Needs
from blackroad.router.placement import Fit, Node, Table, Want, allocate
from tests.unit.builders import FOURTH, GIB, ME, OTHER, PEER, caps, gpu


def node(id_: bytes, cores: int = 4, speed: float = 1.0, **changes: Any) -> Node:
    machine = caps(cores=cores, **changes)
    gpus = [device.memory_bytes for device in machine.gpus()]
    return Node(id_, id_.hex(), machine, cores * 10_000, machine.memory_bytes, gpus, speed)


def want(cls: int, queued: int = 0, needs: Needs | None = None, **changes: Any) -> Want:
    needs = needs or Needs()
    return Want(ME, cls, needs.to_wire(), needs.requirement, queued=queued, **changes)


def table(
    nodes: list[Node], wants: list[Want], reserved: dict[bytes, tuple[bytes, int]] | None = None
) -> Table:
    return allocate(nodes, wants, reserved or {}, Fit())


def test_nobody_wants_anything() -> None:
    """R-alloc-2: nothing in, nothing out."""
    assert table([node(PEER)], []) == {}
    assert table([], [want(1, 5)]) == {(ME, 1): {}}


def test_a_warm_class_gets_what_is_left() -> None:
    """R-alloc-2: what nobody wants goes to warm classes, in turn."""
    assert table([node(PEER)], [want(1), want(2)]) == {(ME, 1): {PEER: 2}, (ME, 2): {PEER: 2}}


def test_the_queue_is_served_before_the_warm() -> None:
    """R-alloc-2: leftovers are what nobody wants."""
    assert table([node(PEER)], [want(1), want(2, 3)]) == {
        (ME, 1): {},
        (ME, 2): {PEER: 4},
    }


def test_faster_nodes_first() -> None:
    """R-alloc-2: then on faster nodes."""
    rows = table([node(PEER, 2), node(OTHER, 2, 2.0)], [want(1, 2), want(2)])
    assert rows[ME, 1] == {OTHER: 2, PEER: 1}
    assert rows[ME, 2] == {PEER: 1}


def test_a_class_stays_where_it_is() -> None:
    """R-alloc-2: a class is put where it already is, though another node is faster."""
    nodes = [node(PEER, 2), node(OTHER, 2, 2.0)]
    rows = table(nodes, [want(1, 0, in_use={PEER: 2}, user="a"), want(2, 2, user="b")])
    assert rows[ME, 1][PEER] == 2
    assert rows[ME, 2] == {OTHER: 2}


def test_nobody_is_pre_empted() -> None:
    """R-alloc-4: on a node a class grows only into what others do not use."""
    busy = want(1, 9, in_use={PEER: 4})
    rows = table([node(PEER)], [busy, want(2, 9, priority=5)])
    assert rows == {(ME, 1): {}, (ME, 2): {}}
    busy.in_use = {PEER: 3}
    assert table([node(PEER)], [busy, want(2, 9, priority=5)])[ME, 2] == {PEER: 1}


def test_whoever_uses_too_much_shrinks_to_the_share() -> None:
    """R-alloc-2, R-alloc-4: rows tell the share; running tasks are not touched."""
    rows = table([node(PEER)], [want(1, 9, in_use={PEER: 4}, user="a"), want(2, 9, user="b")])
    assert rows == {(ME, 1): {PEER: 2}, (ME, 2): {}}


def test_whoever_came_first_does_not_keep_everything() -> None:
    """R-alloc-2: waiting raises one slot of a class, never its whole queue."""
    early = want(1, 99, in_use={PEER: 4}, user="a", oldest_wait_ms=600_000)
    rows = table([node(PEER)], [early, want(2, 9, user="b")])
    assert rows == {(ME, 1): {PEER: 2}, (ME, 2): {}}


def test_a_low_priority_does_not_starve() -> None:
    """R-alloc-2: after 30 s for each step, its oldest task comes before the higher priority."""
    high = want(1, 99, in_use={PEER: 3}, priority=2)
    low = want(2, 99, oldest_wait_ms=59_999)
    assert table([node(PEER)], [high, low]) == {(ME, 1): {PEER: 4}, (ME, 2): {}}
    low.oldest_wait_ms = 60_000
    assert table([node(PEER)], [high, low]) == {(ME, 1): {PEER: 3}, (ME, 2): {PEER: 1}}
    low.in_use, high.in_use = {PEER: 1}, {PEER: 2}
    assert table([node(PEER)], [high, low]) == {(ME, 1): {PEER: 3}, (ME, 2): {PEER: 1}}


def test_a_slot_that_starves_keeps_its_place_free() -> None:
    """R-alloc-2: others do not take what the oldest task waits for."""
    high = want(1, 99, in_use={PEER: 4}, priority=2)
    low = want(2, 99, oldest_wait_ms=90_000)
    assert table([node(PEER)], [high, low]) == {(ME, 1): {PEER: 3}, (ME, 2): {}}


def test_a_share_that_is_blocked_is_not_given_away() -> None:
    """R-alloc-2: small tasks do not for ever take the place of a large one that comes first."""
    large = want(2, 1, Needs(cpu=4), priority=1)
    rows = table([node(PEER)], [want(1, 99, in_use={PEER: 3}), large])
    assert rows == {(ME, 1): {}, (ME, 2): {}}


def test_a_higher_priority_takes_what_a_lower_one_waits_for() -> None:
    """R-alloc-2: first effective priority, also for what is left while others are blocked."""
    nodes = [node(PEER), node(OTHER, arch="x86_64")]
    large = want(2, 1, Needs(cpu=4, arch="aarch64"))
    rows = table(nodes, [want(1, 0, in_use={PEER: 3}, priority=-1), large, want(3, 9, priority=1)])
    assert rows[ME, 2] == {}
    assert rows[ME, 3] == {PEER: 1, OTHER: 4}


def test_a_blocked_class_takes_free_slots_elsewhere() -> None:
    """Section 9: nothing idles while a share on a faster node is still occupied."""
    nodes = [node(PEER, 4, 2.0), node(OTHER, 4)]
    rows = table(nodes, [want(1, 0, in_use={PEER: 4}, user="a"), want(2, 4, user="b")])
    assert rows[ME, 2] == {OTHER: 4}


def test_avoided_nodes_keep_their_rows_and_get_no_more() -> None:
    """R-demand-3: an owner leaves a node out; what runs there runs on."""
    rows = table(
        [node(PEER), node(OTHER, 1)],
        [want(1, 9, in_use={PEER: 1}, avoid=frozenset((PEER,)))],
    )
    assert rows == {(ME, 1): {PEER: 1, OTHER: 1}}


def test_memory_devices_and_labels_count() -> None:
    """R-alloc-1: what a node has decides how many slots it gives."""
    nodes = [node(PEER, devices=(gpu(), gpu(index=1))), node(OTHER, memory_bytes=2 * GIB)]
    rows = table(nodes, [want(1, 9, Needs(gpu=1)), want(2, 9, Needs(cpu=0.5, memory="1GiB"))])
    assert rows[ME, 1] == {PEER: 2}
    assert rows[ME, 2] == {PEER: 4, OTHER: 2}


def test_the_first_alternative_that_fits_is_taken() -> None:
    """Needs.any: each node is asked for what it can give."""
    either = Needs.any(Needs(gpu=1), Needs(cpu=2))
    rows = table([node(PEER, devices=(gpu(),)), node(OTHER)], [want(1, 9, either)])
    assert rows == {(ME, 1): {PEER: 1, OTHER: 2}}


def test_new_capabilities_are_seen() -> None:
    """Capabilities: the whole description replaces the earlier one."""
    fit, one = Fit(), want(1, 9, Needs(arch="x86_64"))
    assert allocate([node(PEER)], [one], {}, fit) == {(ME, 1): {}}
    assert allocate([node(PEER, arch="x86_64")], [one], {}, fit) == {(ME, 1): {PEER: 4}}


# --- reserved nodes -------------------------------------------------------------------------------


def test_a_reserved_node_goes_to_nobody() -> None:
    """R-alloc-5: a reserved node goes to nobody else, in use or not."""
    rows = table(
        [node(PEER), node(OTHER)],
        [want(1, 9, in_use={PEER: 1}), want(2)],
        {PEER: (FOURTH, 1)},
    )
    assert rows == {(ME, 1): {OTHER: 4}, (ME, 2): {}}


def test_back_fill_takes_short_classes_only() -> None:
    """R-alloc-5: classes whose mean is at most a quarter of the longest there."""
    running = want(1, 0, in_use={PEER: 1}, mean_ms=4000)
    short, longer, unknown = want(2, 2, mean_ms=1000), want(3, 9, mean_ms=1001), want(4, 9)
    rows = table([node(PEER)], [running, short, longer, unknown], {PEER: (FOURTH, 1)})
    assert rows == {(ME, 1): {}, (ME, 2): {PEER: 2}, (ME, 3): {}, (ME, 4): {}}


def test_back_fill_ends_with_the_long_task() -> None:
    """R-alloc-5: short tasks are no reason for more short tasks."""
    short = want(2, 9, mean_ms=1000, in_use={PEER: 2})
    assert table([node(PEER)], [short], {PEER: (FOURTH, 1)}) == {(ME, 2): {}}


def test_wishes_come_before_speed() -> None:
    """Alternatives are an order: a node that meets the first one is taken before a faster one."""
    wishes = Needs.any(Needs(labels={"disk": "ssd"}), Needs())
    nodes = [node(PEER, 2, labels={"disk": "ssd"}), node(OTHER, 2, 4.0)]
    rows = table(nodes, [want(1, 2, wishes), want(2, 2)])
    assert rows[ME, 1] == {PEER: 2}
    assert rows[ME, 2] == {OTHER: 2}
