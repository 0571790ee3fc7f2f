"""Daemons that are stopped, killed, started anew, or cannot start at all."""

from __future__ import annotations

import collections
import itertools
import json
import os
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from blackroad import Needs
from blackroad.client import connection
from blackroad.errors import (
    EXIT_ENVIRONMENT,
    EXIT_USAGE,
    OwnerLost,
    TaskFailed,
)
from blackroad.store.identity import COUNTER_FILE
from tests.edge.meshes import Daemon, Mesh, mark_and_wait, stamped, until, where, with_children

pytestmark = pytest.mark.edge

WAIT_S = 60.0
There = tuple[str, Path]


def states(daemon: Daemon) -> dict[str, str]:
    """How a daemon sees the nodes, by name."""
    with daemon.client() as client:
        return {row["name"]: row["state"] for row in client.nodes()["nodes"]}


# --- start and stop -----------------------------------------------------------------------------


def test_a_stopped_daemon_leaves_nothing_behind(mesh: Mesh, there: There) -> None:
    here, go = there
    daemon = mesh.add("one")
    with daemon.client() as client:
        client.submit(with_children, here, str(go))
        until(lambda: any("sleep 600" in one for one in mesh.processes().values()), "a child")
        assert daemon.end(signal.SIGTERM) == 0
        # A probe's own child learns of its parent's end from the kernel, a moment later.
        until(lambda: mesh.processes() == {}, "nobody left")
    assert not (daemon.runtime / "daemon.json").exists()
    assert not (daemon.runtime / "client.sock").exists()


def test_ctrl_c_stops_it_too(mesh: Mesh) -> None:
    daemon = mesh.add("one")
    daemon.wait()
    assert daemon.end(signal.SIGINT) == 0
    until(lambda: mesh.processes() == {}, "nobody left")


def test_what_was_killed_is_swept_by_the_next_life(mesh: Mesh, there: There) -> None:
    here, go = there
    daemon = mesh.add("one")
    with daemon.client() as client:
        client.submit(with_children, here, str(go))
        until(lambda: any("sleep 600" in one for one in mesh.processes().values()), "a child")
        first = daemon.facts()
        daemon.end(signal.SIGKILL)
    daemon.start()
    second = daemon.wait()
    assert second["node"] == first["node"]
    assert second["pid"] != first["pid"]
    # It serves only when nothing older runs: nothing is waited for here.
    assert not any("sleep 600" in one for one in mesh.processes().values())


def test_what_it_writes_down_is_true(mesh: Mesh) -> None:
    daemon = mesh.add("one")
    facts = daemon.wait()
    with daemon.client() as client:
        assert client.node_name == facts["name"] == "one"
    host, _, port = facts["endpoints"][0].removeprefix("tcp://").rpartition(":")
    for number in (port, facts["telemetry_port"], facts["bulk_port"]):
        socket.create_connection((host, int(number)), timeout=10).close()
    assert (daemon.runtime / "daemon.json").stat().st_mode & 0o777 == 0o600
    assert (daemon.runtime / "client.sock").stat().st_mode & 0o777 == 0o600


# --- what keeps it from starting ----------------------------------------------------------------


def refused(daemon: Daemon, code: int) -> str:
    """Wait for a daemon that must not start; return what it said."""
    assert daemon.exits() == code, daemon.log()
    said = daemon.log()
    assert "hint:" in said
    assert "Traceback" not in said
    return said


def test_a_directory_belongs_to_one_daemon(mesh: Mesh) -> None:
    first = mesh.add("one")
    first.wait()
    second = mesh.add(
        "two", BLACKROAD_STATE_DIR=first.environ["BLACKROAD_STATE_DIR"], BLACKROAD_PEERS=""
    )
    said = refused(second, EXIT_ENVIRONMENT)
    assert f"pid {first.pid}" in said
    assert first.serves()


@pytest.mark.parametrize("key", ["port", "telemetry_port", "bulk_port"])
def test_a_port_in_use_is_named(mesh: Mesh, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = mesh.add("one", **{f"BLACKROAD_{key.upper()}": str(port)})
        said = refused(daemon, EXIT_ENVIRONMENT)
    assert f"port {port}" in said
    assert f"`{key}`" in said
    assert mesh.processes() == {}


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("BLACKROAD_SLOTS", "many", "SLOTS"),
        ("BLACKROAD_PORT", "70000", "PORT"),
        ("BLACKROAD_PROT", "7701", "did you mean"),
        ("BLACKROAD_LISTEN", "0.0.0.0", "insecure_open"),
        ("BLACKROAD_RUNTIME_DIR", "/tmp/" + "x" * 120, "runtime_dir"),
    ],
)
def test_a_wrong_setting_is_named(mesh: Mesh, variable: str, value: str, told: str) -> None:
    said = refused(mesh.add("one", **{variable: value}), EXIT_USAGE)
    assert told in said


def test_a_malformed_file_is_named_with_its_line(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "blackroad.toml"
    path.write_text("[node]\nname = 'attic'\nslotz = 3\n")
    said = refused(mesh.add("one", BLACKROAD_CONFIG=str(path)), EXIT_USAGE)
    assert f"{path}:3" in said


def test_a_file_where_the_state_should_be(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("in the way")
    said = refused(mesh.add("one", BLACKROAD_STATE_DIR=str(path)), EXIT_ENVIRONMENT)
    assert str(path) in said


@pytest.mark.parametrize("name", ["journal.sqlite", COUNTER_FILE, "identity.json"])
def test_damaged_state_is_named_and_kept(mesh: Mesh, name: str) -> None:
    daemon = mesh.add("one")
    daemon.wait()
    daemon.end()
    path = Path(daemon.environ["BLACKROAD_STATE_DIR"]) / name
    path.write_bytes(b"neither a number nor a database\n")
    daemon.log_file.unlink()
    daemon.start()
    assert str(path) in refused(daemon, EXIT_ENVIRONMENT)
    assert path.read_bytes().startswith(b"neither")


# --- owners that end ----------------------------------------------------------------------------


def test_a_durable_task_survives_kill_9_of_its_owner(mesh: Mesh, there: There) -> None:
    here, go = there
    daemon = mesh.add("one")
    with daemon.client() as client:
        done = client.submit(np.arange, 100_000, durable=True)
        done.result(WAIT_S)
        future = client.submit(mark_and_wait, here, str(go), durable=True)
        assert future.accepted is not None
        future.accepted.result(WAIT_S)
        until(lambda: os.path.exists(here), "the start")
        daemon.end(signal.SIGKILL)
    go.touch()
    daemon.start()
    with daemon.client() as other:
        other.outcome(future.task_id, WAIT_S)
        assert other.status(future.task_id)["state"] == "done"
        # A result that was told is the same for ever.
        np.testing.assert_array_equal(other.outcome(done.task_id, WAIT_S), np.arange(100_000))


@pytest.mark.slow
def test_attached_tasks_end_with_their_owner(mesh: Mesh, there: There) -> None:
    here, go = there
    daemon = mesh.add("one")
    with daemon.client() as client:
        future = client.submit(mark_and_wait, here, str(go))
        until(lambda: os.path.exists(here), "the start")
        daemon.end(signal.SIGKILL)
        with pytest.raises(OwnerLost) as caught:
            future.result(WAIT_S)
        assert caught.value.hint
        daemon.start()
        daemon.wait()
        # The same client goes on with the daemon's next life.
        assert client.submit(where).result(WAIT_S) == "one"


def test_a_client_notices_a_quick_restart(mesh: Mesh, there: There) -> None:
    here, go = there
    daemon = mesh.add("one")
    with daemon.client() as client:
        future = client.submit(mark_and_wait, here, str(go))
        until(lambda: os.path.exists(here), "the start")
        daemon.end(signal.SIGKILL)
        daemon.start()
        with pytest.raises(OwnerLost):
            future.result(WAIT_S)


def test_who_slept_through_its_lease_is_told(
    mesh: Mesh, there: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that was stopped, or a laptop that slept: nothing may be waited for for ever."""
    here, go = there
    daemon = mesh.add("one")
    daemon.wait()
    monkeypatch.setattr(connection, "SESSION_LEASE_MS", 1_000)
    with daemon.client() as sleeper:
        monkeypatch.undo()
        attached = sleeper.submit(mark_and_wait, here, str(go))
        durable = sleeper.submit(where, durable=True)
        assert durable.result(WAIT_S) == "one"
        send = sleeper._connection._send
        sleeper._connection._send = lambda messages: None
        with daemon.client() as other:
            until(
                lambda: other.status(attached.task_id)["state"] == "cancelled", "the session's end"
            )
        sleeper._connection._send = send
        with pytest.raises(OwnerLost, match="gave no sign"):
            attached.result(WAIT_S)
        assert sleeper.submit(where).result(WAIT_S) == "one"


# --- workers that end ---------------------------------------------------------------------------


def test_a_node_that_stops_says_goodbye(mesh: Mesh) -> None:
    one, two = mesh.add("one"), mesh.add("two")
    mesh.settled()
    two.end(signal.SIGTERM)
    until(lambda: states(one).get("two") == "left", "`left`")
    assert not one.events("node.died"), "it left in order, and nobody had to miss it"


@pytest.mark.slow
def test_pieces_of_a_lost_node_are_computed_elsewhere(mesh: Mesh) -> None:
    for name in ("one", "two", "three"):
        mesh.add(name)
    mesh.settled()
    victim = mesh.daemons[1]
    with mesh.daemons[0].client() as client:
        parameters = {"width": 1_600, "height": 1_200, "max_iter": 3_000}
        future = client.kernel("mandelbrot", **parameters)

        def busy() -> bool:
            rows = {row["name"]: row for row in client.nodes()["nodes"]}
            return future.progress()[0] > 0 and rows["two"]["running"] > 0

        until(busy, "work on the victim")
        victim.end(signal.SIGKILL)
        found = future.result(WAIT_S)
        until(lambda: states(mesh.daemons[0])["two"] == "dead", "`dead`")
    assert found.shape == (1_200, 1_600)
    assert found.min() >= 1, "no piece is missing"


@pytest.mark.slow
def test_a_daemon_that_stands_still_keeps_no_task_alive(mesh: Mesh, tmp_path: Path) -> None:
    """SIGSTOP for longer than a lease: its fork server ends the attempt by itself."""
    one, two = mesh.add("one"), mesh.add("two")
    mesh.settled()
    record = tmp_path / "record"
    # Only the second can run it at first.
    with one.client() as client:
        blockers = [
            client.submit(
                mark_and_wait,
                str(tmp_path / f"b{n}"),
                str(tmp_path / "go"),
                needs=Needs(node="one"),
            )
            for n in range(2)
        ]
        until(lambda: all((tmp_path / f"b{n}").exists() for n in range(2)), "a full first node")
        future = client.submit(stamped, str(record), 8_000, lease="5s")
        until(lambda: record.exists() and "two" in record.read_text(), "the start")
        two.send(signal.SIGSTOP)
        (tmp_path / "go").touch()
        for blocker in blockers:
            blocker.result(WAIT_S)
        token = future.result(WAIT_S)
        two.send(signal.SIGCONT)
    spans: dict[str, list[int]] = collections.defaultdict(list)
    nodes: dict[str, str] = {}
    for line in record.read_text().splitlines():
        name, _, stamp_ms, node = line.split()
        spans[name].append(int(stamp_ms))
        nodes[name] = node
    ends = sorted((min(span), max(span)) for span in spans.values())
    for (_, stopped_ms), (started_ms, _) in itertools.pairwise(ends):
        assert stopped_ms < started_ms, "two attempts of one task ran at once"
    tokens = sorted(spans, key=lambda one: min(spans[one]))
    assert [nodes[one] for one in tokens] == ["two", "one"]
    assert f"{tokens[0]} stop" not in record.read_text(), "it was killed, and did not end"
    assert tokens[-1] == token, "the last attempt has the result"
    numbers = [tuple(map(int, one.split("/"))) for one in tokens]
    assert numbers == sorted(numbers), "tokens grow from attempt to attempt"


# --- many ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_daemons_find_each_other_by_mdns(mesh: Mesh) -> None:
    for name in ("one", "two"):
        mesh.add(
            name,
            BLACKROAD_PEERS="",
            BLACKROAD_MDNS="true",
            BLACKROAD_MDNS_INTERFACES="127.0.0.1",
        )
    mesh.settled()
    with mesh.daemons[0].client() as client:
        assert client.submit(where, needs=Needs(node="two")).result(WAIT_S) == "two"


@pytest.mark.slow
def test_a_node_that_restarts_elsewhere_is_used_again(mesh: Mesh) -> None:
    one, two = mesh.add("one"), mesh.add("two")
    mesh.settled()
    before = two.facts()["endpoints"]
    two.end(signal.SIGKILL)
    two.start()
    assert two.wait()["endpoints"] != before
    mesh.settled()
    with one.client() as client:
        assert client.submit(where, needs=Needs(node="two")).result(WAIT_S) == "two"
    with two.client() as client:
        assert client.submit(where, needs=Needs(node="one")).result(WAIT_S) == "one"


def test_another_mesh_next_door_is_not_joined(mesh: Mesh) -> None:
    one = mesh.add("one")
    other = mesh.add("other", BLACKROAD_CLUSTER="next-door")
    other.wait()

    def refusals() -> int:
        with one.client() as client:
            told = client._ask("driver", {})
        return int(told["transport"].get("reject.cluster", 0))

    until(lambda: refusals() >= 1, "a refusal")
    assert list(states(one)) == ["one"]
    assert list(states(other)) == ["other"]


def test_an_architecture_may_be_claimed(mesh: Mesh) -> None:
    daemon = mesh.add("one", BLACKROAD_ARCH="riscv64")
    with daemon.client() as client:
        assert client.submit(where, needs=Needs(arch="riscv64")).result(WAIT_S) == "one"


def test_state_from_the_day_before_is_not_needed(mesh: Mesh) -> None:
    daemon = mesh.add("one")
    first = daemon.wait()
    daemon.end()
    shutil.rmtree(daemon.environ["BLACKROAD_STATE_DIR"])
    daemon.start()
    assert daemon.wait()["node"] != first["node"], "without its key it is another node"


def test_every_line_of_the_log_is_an_object(mesh: Mesh) -> None:
    daemon = mesh.add("one", BLACKROAD_LOG_LEVEL="debug")
    daemon.wait()
    daemon.end()
    rows = [json.loads(line) for line in daemon.log().splitlines()]
    assert {"daemon.started", "daemon.stopping"} <= {row["event"] for row in rows}
    assert all(row["level"] and row["timestamp"] for row in rows)


def test_it_ends_in_order_as_soon_as_its_socket_can_be_found(mesh: Mesh) -> None:
    daemon = mesh.add("one")
    socket = daemon.runtime / "client.sock"
    until(socket.exists, "its socket")
    assert daemon.end() == 0
    assert daemon.events("daemon.stopping")
    assert not socket.exists()


def test_a_failed_task_does_not_harm_its_daemon(mesh: Mesh) -> None:
    daemon = mesh.add("one")
    with daemon.client() as client:
        deep = client.submit(lambda: (lambda f: f(f))(lambda f: f(f)))
        with pytest.raises(TaskFailed):
            deep.result(WAIT_S)
        assert client.submit(where).result(WAIT_S) == "one"
