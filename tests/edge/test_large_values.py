"""Large values between programs, daemons and task processes, as a program sees them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from blackroad import Client, Needs
from blackroad.bus.parcels import HANDED, KEPT, WRITING, is_name, read_guide
from blackroad.bus.payload import digest_of
from tests.edge.meshes import Daemon, Mesh, mesh_of, until

pytestmark = pytest.mark.edge

WAIT_S = 60.0
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with mesh_of("one", "two") as made:
        yield made


@pytest.fixture
def client(mesh: Mesh) -> Iterator[Client]:
    with mesh.daemons[0].client() as made:
        yield made


def parcels_of(daemon: Daemon, *kinds: str) -> list[str]:
    roots = read_guide(daemon.facts()["client_socket"].rpartition("/")[0])
    assert roots
    return [
        name
        for root in roots
        for name in os.listdir(root.path)
        if name.startswith(kinds or (HANDED, KEPT, WRITING))
    ]


def keeps(array: np.ndarray) -> int:
    """Remember arguments beyond the task, as a cache does."""
    import builtins

    kept = builtins.__dict__.setdefault("kept_by_test", [])
    kept.append(array)
    return len(kept)


def kept() -> list[tuple[int, bool]]:
    import builtins

    return [(int(one[0]), bool((one == one[0]).all())) for one in builtins.__dict__["kept_by_test"]]


def changes(array: np.ndarray) -> np.ndarray:
    array += 1
    return array


ONE = Needs(node="one")
TWO = Needs(node="two")


@pytest.mark.parametrize("needs", [ONE, TWO], ids=["here", "there"])
def test_results_can_be_written_to_and_are_ones_own(client: Client, needs: Needs) -> None:
    given = np.zeros(2 * MIB, dtype=np.uint8)
    first = client.submit(changes, given, needs=needs).result(WAIT_S)
    second = client.submit(changes, given, needs=needs).result(WAIT_S)
    assert (given == 0).all(), "what the task changes stays with the task"
    first += 5
    assert (first == 6).all()
    assert (second == 1).all()


def test_values_on_this_machine_are_used_in_place(client: Client) -> None:
    found = client.submit(np.ones, 4 * MIB, needs=ONE).result(WAIT_S)
    assert not found.flags.owndata
    assert found.flags.writeable
    assert float(found.sum()) == 4 * MIB


def test_what_a_task_keeps_is_never_written_over(client: Client) -> None:
    """Files are used again, but not those that somebody still maps."""
    for number in range(12):
        argument = np.full(2 * MIB, number, dtype=np.uint8)
        assert client.submit(keeps, argument, needs=ONE).result(WAIT_S) >= 1
    for value, whole in client.submit(kept, needs=ONE).result(WAIT_S):
        assert whole, value


def test_what_a_program_keeps_is_never_written_over(client: Client) -> None:
    results = [
        client.submit(np.full, 2 * MIB, number, np.uint8, needs=ONE).result(WAIT_S)
        for number in range(20)
    ]
    for number, found in enumerate(results):
        assert (found == number).all()


def test_what_is_over_leaves_nothing(mesh: Mesh, client: Client) -> None:
    for needs in (ONE, TWO):
        found = client.submit(changes, np.zeros(2 * MIB, np.uint8), needs=needs).result(WAIT_S)
        assert found[0] == 1
    client.close()
    for daemon in mesh.daemons:
        until(lambda daemon=daemon: not parcels_of(daemon), "an empty shed")  # type: ignore[misc]


@pytest.mark.parametrize("needs", [ONE, TWO], ids=["here", "there"])
def test_durable_results_are_named_by_their_content(client: Client, needs: Needs) -> None:
    given = np.arange(2 * MIB, dtype=np.uint8)
    future = client.submit(changes, given, needs=needs, durable=True)
    found = future.result(WAIT_S)
    np.testing.assert_array_equal(found, given + 1)
    assert future.ended is not None
    assert not is_name(future.ended.result.digest)  # type: ignore[union-attr]
    np.testing.assert_array_equal(client.outcome(future.task_id, WAIT_S), given + 1)


def test_durable_values_survive_the_daemon() -> None:
    with mesh_of("alone") as mesh:
        (daemon,) = mesh.daemons
        given = np.arange(2 * MIB, dtype=np.uint8)
        with daemon.client() as client:
            future = client.submit(changes, given, durable=True)
            future.result(WAIT_S)
            task = future.task_id
        daemon.send(signal.SIGKILL)
        daemon.exits()
        daemon.start()
        daemon.wait()
        with daemon.client() as client:
            np.testing.assert_array_equal(client.outcome(task, WAIT_S), given + 1)


_KILLED = """
import os, sys
import numpy as np
from blackroad import Client
from blackroad.bus import parcels
client = Client(sys.argv[1])
client.submit("time:sleep", 0.01).result(60)
genuine = parcels.write_segments
def half(fd, segments):
    os.write(fd, bytes(memoryview(segments[-1])[:1000]))
    print("half way", flush=True)
    sys.stdin.read()
parcels.write_segments = half
client.submit(len, np.zeros(4 << 20, dtype=np.uint8))
"""


def test_a_program_that_is_killed_half_way_leaves_nothing_but_for_a_moment(mesh: Mesh) -> None:
    daemon = mesh.daemons[0]
    endpoint = f"ipc://{daemon.facts()['client_socket']}"
    program = subprocess.Popen(
        [sys.executable, "-c", _KILLED, endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"half way\n"
    assert len(parcels_of(daemon, WRITING)) == 1
    program.kill()
    program.communicate(timeout=WAIT_S)
    assert parcels_of(daemon, HANDED, KEPT) == []
    with daemon.client() as client:
        assert client.submit(len, np.zeros(MIB, np.uint8), needs=ONE).result(WAIT_S) == MIB


def test_without_the_guide_values_go_in_pieces(mesh: Mesh, tmp_path: Path) -> None:
    """A program in another container sees the socket, but not the shared memory."""
    daemon = mesh.daemons[0]
    there = tmp_path / "client.sock"
    there.symlink_to(daemon.facts()["client_socket"])
    given = np.arange(2 * MIB, dtype=np.uint8)
    with Client(f"ipc://{there}") as client:
        assert not client._connection.outgoing.parcels()
        found = client.submit(changes, given, needs=ONE).result(WAIT_S)
        np.testing.assert_array_equal(found, given + 1)
        ref = client.put(given)
        assert not is_name(ref.digest)
        assert len(digest_of(b"")) == len(ref.digest)
        np.testing.assert_array_equal(client.get(ref), given)
