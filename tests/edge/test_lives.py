"""Real daemons whose state directory went back in time, or is used by two at once."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from blackroad.store.identity import COUNTER_FILE
from blackroad.store.peers import FILE
from tests.edge.meshes import Daemon, Mesh, until, where

pytestmark = pytest.mark.edge


def state_of(daemon: Daemon) -> Path:
    return Path(daemon.environ["BLACKROAD_STATE_DIR"])


def counter(daemon: Daemon) -> int:
    return int((state_of(daemon) / COUNTER_FILE).read_text())


def address(daemon: Daemon) -> str:
    """Its inbox, as `BLACKROAD_PEERS` wants it."""
    found: str = daemon.wait()["endpoints"][0]
    return found.removeprefix("tcp://")


def stay_at(daemon: Daemon) -> None:
    """Keep the ports it has now over its next lives."""
    facts = daemon.wait()
    daemon.environ["BLACKROAD_PORT"] = facts["endpoints"][0].rpartition(":")[2]
    daemon.environ["BLACKROAD_TELEMETRY_PORT"] = str(facts["telemetry_port"])
    daemon.environ["BLACKROAD_BULK_PORT"] = str(facts["bulk_port"])


def rows(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """The nodes as that daemon sees them, by name."""
    with daemon.client() as client:
        return {row["name"]: row for row in client.nodes()["nodes"]}


def go_back(daemon: Daemon, lives: int) -> Path:
    """Copy the state of a stopped daemon, then let it live that often; return the copy."""
    state = state_of(daemon)
    copy = daemon.home / "copy"
    shutil.copytree(state, copy)
    for _ in range(lives):
        daemon.start()
        daemon.mesh.settled()
        with daemon.client() as client:
            assert client.submit(where, durable=True).result(60) in ("one", "two")
        assert daemon.end() == 0
    return copy


def restore(daemon: Daemon, copy: Path) -> None:
    shutil.rmtree(state_of(daemon))
    copy.rename(state_of(daemon))


# --- amnesia ------------------------------------------------------------------------------------


def test_a_restored_state_directory_is_reminded_before_it_serves(
    mesh: Mesh, tmp_path: Path
) -> None:
    """R-life-2: it raises its counter above what its peer knows, says so, and serves."""
    one, two = mesh.add("one"), mesh.add("two")
    mesh.settled()
    stay_at(one)
    assert two.end() == 0
    before = counter(two)
    copy = go_back(two, 2)
    assert counter(two) == before + 2
    restore(two, copy)
    two.start()
    two.wait()
    assert counter(two) == before + 3
    [said] = two.events("node.amnesia")
    assert (said["level"], said["known"], said["counter"]) == ("error", before + 2, before + 1)
    assert said["behind"] > 0, "its journal lacks what it did meanwhile"
    assert "copied disk" in said["hint"]
    assert said["state_dir"] == str(state_of(two))
    mesh.settled()
    assert rows(one)["two"]["incarnation"] == before + 3
    # One life more, and no more than that: it works, and each task ran once.
    marks = tmp_path / "marks"
    with two.client() as client:
        futures = [client.submit(mark, str(marks), n, durable=True) for n in range(6)]
        assert [future.result(60) for future in futures] == list(range(6))
    assert sorted(marks.read_text().split()) == [str(n) for n in range(6)]
    assert not one.events("node.clone")
    assert not two.events("node.clone")


def test_a_life_that_serves_already_ends_and_another_begins(mesh: Mesh) -> None:
    """Its peer was not there to remind it when it started."""
    one, two = mesh.add("one"), mesh.add("two")
    mesh.settled()
    stay_at(one)
    stay_at(two)
    assert two.end() == 0
    before = counter(two)
    copy = go_back(two, 2)
    one.send(signal.SIGSTOP)
    restore(two, copy)
    two.start()
    serving = two.wait()
    assert counter(two) == before + 1
    one.send(signal.SIGCONT)
    until(lambda: two.events("node.amnesia"), "being reminded")
    mesh.settled()
    assert counter(two) == before + 3
    assert two.facts()["pid"] == serving["pid"], "a service manager sees one process"
    assert two.facts()["started_ms"] > serving["started_ms"]
    assert rows(one)["two"]["incarnation"] == before + 3
    with two.client() as client:
        assert client.submit(where).result(60) in ("one", "two")
    assert two.end() == 0


def test_an_ordinary_restart_is_no_amnesia(mesh: Mesh) -> None:
    one, two = mesh.add("one"), mesh.add("two")
    mesh.settled()
    for number in (signal.SIGTERM, signal.SIGKILL):
        two.end(number)
        two.start()
        mesh.settled()
    assert counter(two) == 3
    for name in ("node.amnesia", "node.doubt", "node.clone", "journal.behind"):
        assert not one.events(name)
        assert not two.events(name)


def test_a_journal_that_was_moved_away_is_noticed(mesh: Mesh) -> None:
    """Its counter is right, and its peer remembers how far its journal had come."""
    mesh.add("one")
    two = mesh.add("two")
    mesh.settled()
    with two.client() as client:
        client.submit(where, durable=True).result(60)
    until(lambda: rows(mesh.daemons[0])["two"]["journal_mark"] > 0, "a mark that is heard")
    assert two.end() == 0
    for file in state_of(two).glob("journal.sqlite*"):
        file.unlink()
    two.start()
    mesh.settled()
    [said] = two.events("journal.behind")
    assert said["behind"] > 0
    assert counter(two) == 2


# --- remembered peers ---------------------------------------------------------------------------


def test_peers_are_remembered_without_any_configuration(mesh: Mesh) -> None:
    """What was learnt from one static address outlives it; written once per change."""
    one, two = mesh.add("one"), mesh.add("two")
    mesh.settled()
    stay_at(one)
    path = state_of(two) / FILE
    until(path.exists, "a file of peers")
    told = json.loads(path.read_text())
    assert [peer["endpoints"][0] for peer in told["peers"]] == [f"tcp://{address(one)}"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert two.end() == 0
    two.start(BLACKROAD_PEERS="")
    mesh.settled()


@pytest.mark.parametrize("text", ["", '{"schema": 9, "peers": []}', "\0\xff"])
def test_a_damaged_file_of_peers_costs_a_warning(mesh: Mesh, text: str) -> None:
    one = mesh.add("one")
    one.wait()
    assert one.end() == 0
    (state_of(one) / FILE).write_bytes(text.encode("latin-1"))
    one.start()
    one.wait()
    [said] = one.events("peers.unreadable")
    assert said["file"] == str(state_of(one) / FILE)


# --- clones -------------------------------------------------------------------------------------


def twin_of(daemon: Daemon, name: str, **settings: str) -> Daemon:
    """Another daemon, with a copy of that stopped one's state directory."""
    other = Daemon(daemon.mesh, name, {**daemon.mesh._settings, **settings})
    daemon.mesh.daemons.append(other)
    shutil.copytree(state_of(daemon), state_of(other))
    return other


def is_clone(daemon: Daemon) -> bool:
    return any(said["mine"] for said in daemon.events("node.clone"))


def drains(daemon: Daemon) -> bool:
    return bool(rows(daemon)[daemon.name]["state"] == "clone")


def test_two_daemons_with_one_identity_are_found_by_a_third(mesh: Mesh) -> None:
    """R-life-3: both are refused, take nothing new, and say so loudly."""
    one, two = mesh.add("one"), mesh.add("two")
    mesh.settled()
    stay_at(one)
    assert two.end() == 0
    copy = twin_of(two, "copy", BLACKROAD_PEERS=address(one))
    two.start()
    copy.start()
    for twin in (two, copy):
        until(lambda twin=twin: is_clone(twin), f"`{twin.name}` knowing that it is one of two")
        until(lambda twin=twin: drains(twin), f"`{twin.name}` taking no work")
        [said, *_] = twin.events("node.clone")
        assert said["level"] == "error"
        assert "identity.json" in said["hint"]
    [said] = one.events("node.clone")
    assert said["mine"] is False
    [shunned] = [row for row in rows(one).values() if row["state"] == "clone"]
    # All work stays with the one that is itself.
    with one.client() as client:
        found = {future.result(60) for future in [client.submit(where) for _ in range(8)]}
    assert found == {"one"}
    # Alone again, and started anew, it is a member like any other.
    assert copy.end() == 0
    mesh.daemons.remove(copy)
    assert two.end() == 0
    two.start()
    mesh.settled()
    assert rows(one)["two"]["incarnation"] > shunned["incarnation"]


def test_two_daemons_with_one_identity_find_each_other(mesh: Mesh) -> None:
    """Nobody else is there to see it."""
    two = mesh.add("two")
    stay_at(two)
    assert two.end() == 0
    copy = twin_of(two, "copy", BLACKROAD_PEERS=f"127.0.0.1:{two.environ['BLACKROAD_PORT']}")
    two.start()
    two.wait()
    copy.start()
    for twin in (two, copy):
        until(lambda twin=twin: is_clone(twin), f"`{twin.name}` knowing that it is one of two")
        until(lambda twin=twin: drains(twin), f"`{twin.name}` taking no work")
    assert counter(two) < counter(copy), "neither outbids the other for ever"
    assert two.events("node.amnesia") == []
    assert len(copy.events("node.amnesia")) <= 1


def mark(path: str, number: int) -> int:
    """Leave a trace of this run."""
    import os

    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{number}\n".encode())
    os.close(fd)
    return number
