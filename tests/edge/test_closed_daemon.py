"""Real daemons with keys: work across, roles, revocation, keys that come later, what is bound."""

from __future__ import annotations

import contextlib
import ipaddress
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import zmq

from blackroad import Needs
from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.members import Role
from blackroad.client import Client
from blackroad.errors import EXIT_USAGE, NoDaemon, TaskError, UsageError
from blackroad.ids import short
from blackroad.limits import MIB
from tests.edge.closed_meshes import ClosedMesh
from tests.edge.closed_nets import Stranger
from tests.edge.meshes import Daemon, Mesh, until, where

pytestmark = pytest.mark.edge


@pytest.fixture
def closed(mesh: Mesh) -> Iterator[ClosedMesh]:
    return ClosedMesh(mesh)


def driver(client: Client) -> dict[str, object]:
    told: dict[str, object] = client._ask("driver", {})
    return told


def links(client: Client) -> set[str]:
    return set(driver(client)["links"])  # type: ignore[call-overload]


def listening(daemon: Daemon) -> set[tuple[str, int]]:
    """Addresses and ports at which that daemon or anything below it can be reached."""
    found: set[tuple[str, int]] = set()
    top = psutil.Process(daemon.pid)
    for one in (top, *top.children(recursive=True)):
        # A child may end while it is looked at: then it listens no more.
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {
                (each.laddr.ip, each.laddr.port)
                for each in one.net_connections("inet")
                if each.status == psutil.CONN_LISTEN
            }
    return found


def test_two_daemons_with_keys_run_each_others_tasks(closed: ClosedMesh) -> None:
    closed.admit("one", Role.ADMIN)
    closed.admit("two")
    closed.establish()
    one, _ = closed.start("one"), closed.start("two", BLACKROAD_LABELS="here=two")
    closed.mesh.settled()
    client = closed.mesh.client(one)
    assert client.submit(where, needs=Needs(labels={"here": "two"})).result(30) == "two"
    # A value that does not fit into a message goes over the port for objects.
    large = client.submit(bytes, 3 * MIB, needs=Needs(labels={"here": "two"}))
    assert large.result(30) == bytes(3 * MIB)
    told = driver(client)
    assert told["gate"]["closed"] is True  # type: ignore[index]
    assert told["box_bytes_per_second"] > MIB  # type: ignore[operator]
    assert told["descriptors"]["limit"] > 0  # type: ignore[index]


def test_programs_over_tcp_do_what_their_role_allows(closed: ClosedMesh) -> None:
    closed.admit("one", Role.ADMIN)
    for name, role in (("viewer", Role.VIEW), ("user", Role.SUBMIT)):
        closed.admit(name, role)
    gone = closed.admit("gone", Role.SUBMIT)
    closed.shelf.revoke(gone.own, Role.SUBMIT)
    closed.establish()
    one = closed.start("one")
    one.wait()
    with closed.client(one, "viewer") as client:
        assert [row["name"] for row in client.nodes()["nodes"]] == ["one"]
        with pytest.raises(TaskError, match="`view` of your key does not allow this"):
            client.submit(where).result(30)
    with closed.client(one, "user") as client:
        assert client.submit(where).result(30) == "one"
        assert client.submit(bytes, 3 * MIB).result(30) == bytes(3 * MIB)
        with pytest.raises(UsageError, match="takes `admin`"):
            client._ask("drain", {})
    with pytest.raises(NoDaemon), closed.client(one, "gone"):
        pass


def test_a_revoked_node_is_cut_off_at_once(closed: ClosedMesh) -> None:
    closed.admit("one", Role.ADMIN)
    two_keys = closed.admit("two")
    closed.admit("three")
    closed.establish()
    one, two, three = (closed.start(name) for name in ("one", "two", "three"))
    closed.mesh.settled()
    client, elsewhere = closed.mesh.client(one), closed.mesh.client(three)
    gone = short(two_keys.own.node)
    client._ask("cluster.revoke", {"what": "two"}, timeout_s=20)
    assert gone not in links(client), "it is cut before the order is answered"
    until(lambda: gone not in links(elsewhere), "the others hearing of it")
    assert one.events("cluster.cut")

    def dead() -> bool:
        rows = client.nodes()["nodes"]
        return any(row["name"] == "two" and row["state"] == "dead" for row in rows)

    until(dead, "its silence being noticed")
    until(lambda: two.events("cluster.expelled"), "it being told, or finding out")
    assert {client.submit(where).result(30) for _ in range(8)} <= {"one", "three"}


def test_a_viewer_gets_no_objects_of_the_port_for_them(closed: ClosedMesh) -> None:
    closed.admit("one", Role.ADMIN)
    viewer = closed.admit("viewer", Role.VIEW)
    closed.establish()
    one = closed.start("one")
    facts = one.wait()
    client = closed.mesh.client(one)
    held = client.put(bytes(200_000))
    own = viewer.own
    key = closed.rings["one"].own.curve_public
    keys = own.curve_secret, own.curve_public
    thief = Stranger(facts["bulk_port"], key, keys, zmq.DEALER)
    try:
        until(lambda: thief.inside, "a member getting in")
        thief.say(m.Want(held.digest, 0, 1))

        def refused() -> bool:
            objects = driver(client)["objects"]
            return bool(objects.get("refused.key"))  # type: ignore[attr-defined]

        until(refused, "the refusal")
        assert not thief.socket.poll(0)
    finally:
        thief.close()


# --- what is bound ------------------------------------------------------------------------------


def test_without_keys_nothing_listens_beyond_loopback(mesh: Mesh) -> None:
    one = mesh.add("one", BLACKROAD_MDNS="false")
    one.wait()
    found = listening(one)
    assert len(found) == 4, "messages, telemetry, objects, lines"
    hosts = {host.removeprefix("::ffff:") for host, _ in found}
    assert all(ipaddress.ip_address(host).is_loopback for host in hosts), found


def test_with_keys_every_address_is_listened_on(closed: ClosedMesh) -> None:
    closed.admit("one", Role.ADMIN)
    closed.establish()
    one = closed.start("one", BLACKROAD_LISTEN="auto")
    one.wait()
    found = listening(one)
    assert len(found) == 5, "four ports and the door"
    assert {host for host, _ in found} <= {"::", "0.0.0.0"}


def test_only_an_admin_has_a_door(closed: ClosedMesh) -> None:
    closed.admit("one")
    closed.establish()
    one = closed.start("one")
    one.wait()
    assert len(listening(one)) == 4


# --- keys that come later -----------------------------------------------------------------------


def test_a_running_daemon_opens_anew_with_its_keys(closed: ClosedMesh) -> None:
    one = closed.start("one")
    one.wait()
    with one.client() as client:
        before = client.node_id
        assert driver(client)["gate"] == {"closed": False}
        with pytest.raises(UsageError, match="has no keys yet"):
            client._ask("cluster.members", {})
        closed.admit("one", Role.ADMIN)
        closed.establish()
        client._ask("cluster.reload", {})
    until(lambda: len(one.events("daemon.started")) == 2, "the next life")
    with one.client() as client:
        assert client.node_id == before
        assert driver(client)["gate"]["closed"] is True  # type: ignore[index]
        assert client.submit(where).result(30) == "one"


def test_reloading_is_not_ordered_over_tcp(closed: ClosedMesh) -> None:
    closed.admit("one", Role.ADMIN)
    closed.admit("user", Role.SUBMIT)
    closed.establish()
    one = closed.start("one")
    one.wait()
    with (
        closed.client(one, "user") as client,
        pytest.raises(UsageError, match="programs on this machine"),
    ):
        client._ask("cluster.reload", {})
    assert len(one.events("daemon.started")) == 1


def test_a_key_that_may_not_work_starts_no_daemon(closed: ClosedMesh) -> None:
    closed.admit("user", Role.SUBMIT)
    closed.establish()
    one = closed.start("user")
    assert one.exits() == EXIT_USAGE
    assert "has the role `submit`" in one.log()


def test_damaged_keys_start_no_daemon(closed: ClosedMesh) -> None:
    ring = closed.admit("one", Role.ADMIN)
    closed.establish()
    path = ring.path / "members.msgpack"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    one = closed.start("one")
    assert one.exits() != 0
    assert "members.msgpack is damaged" in one.log()
    assert codec.DOOR, "the door has a language of its own"


def test_two_daemons_never_share_a_join_port(closed: ClosedMesh) -> None:
    closed.admit("one", Role.ADMIN)
    closed.establish()
    taken = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import socket,sys;s=socket.create_server(('127.0.0.1',0));"
            "print(s.getsockname()[1],flush=True);sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert taken.stdout is not None
        port = taken.stdout.readline().decode().strip()
        one = closed.start("one", BLACKROAD_JOIN_PORT=port)
        assert one.exits() != 0
        assert "`join_port`" in one.log()
    finally:
        taken.kill()
        taken.communicate()
