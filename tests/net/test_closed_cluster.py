"""A closed cluster as a person makes it: two commands on empty machines with real networks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.net.closed import Lab, closed, lab, missing, present, started, token_of, until

LACKS = missing()
pytestmark = [
    pytest.mark.edge,
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKS), reason=LACKS or "all is there"),
]
FIRST_TASK_S_MAX = 5.0


@pytest.fixture
def machines() -> Iterator[Lab]:
    with lab() as made:
        yield made


def test_before_keys_exist_only_loopback_listens(machines: Lab) -> None:
    """Row 60: nothing of a fresh machine is open to its network."""
    (box,) = machines.add()
    started([box])
    tcp = {line.split()[1] for line in box.listens() if line.startswith("tcp")}
    assert tcp
    assert all(one.startswith(("127.", "[::1]", "[::ffff:127.")) for one in tcp), tcp


def test_six_fresh_machines_work_within_seconds_of_the_last_command(machines: Lab) -> None:
    boxes = machines.add(6)
    started(boxes)
    first, *others = boxes
    assert first.run("init").code == 0
    until(first.serves, "the first node anew")
    token = token_of(first)
    for box in others:
        said = box.run("join", token)
        assert said.code == 0, (box.name, said.out, said.err)
    ended = time.monotonic()
    last = others[-1]
    until(
        lambda: last.run("submit", "--wait", "--node", first.name, "--", "true").code == 0, "task"
    )
    took_s = time.monotonic() - ended
    print(f"first task on another machine {took_s:.2f} s after the last command")
    names = sorted(box.name for box in boxes)
    for box in boxes:
        until(lambda box=box: present(box) == names, f"six nodes in sight of {box.name}")
    # A bound of the promise, not a measurement: the figure stands in docs/security.md.
    assert took_s <= FIRST_TASK_S_MAX


def test_a_blocked_multicast_does_not_keep_anybody_out(machines: Lab) -> None:
    """The token's addresses and gossip are enough."""
    boxes = closed(machines, 3, BLACKROAD_MDNS="false")
    names = sorted(box.name for box in boxes)
    for box in boxes:
        until(lambda box=box: present(box) == names, f"three nodes in sight of {box.name}")


def test_a_revoked_node_is_out_everywhere(machines: Lab) -> None:
    first, second, third = closed(machines, 3)
    assert first.run("revoke", third.name, "--yes").code == 0
    for box in (first, second):
        until(lambda box=box: third.name not in present(box), f"{third.name} gone from {box.name}")
    until(lambda: present(third) in ([], [third.name]), "the revoked one alone")


def test_a_stranger_reads_and_changes_nothing(machines: Lab) -> None:
    """A machine without a token, on the same network: every port refuses it."""
    first, second = closed(machines, 2)
    (stranger,) = machines.add()
    stranger.start(BLACKROAD_PEERS=f"{first.address},{second.address}")
    until(stranger.serves, "the stranger's daemon")
    until(lambda: present(stranger) == [stranger.name], "the stranger alone")
    assert stranger.name not in present(first)
