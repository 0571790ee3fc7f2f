"""What `up` and `down` remember, start and end; with stand-ins for daemons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blackroad.cli import mesh_record, mesh_run
from blackroad.cli.mesh_record import Home, Place
from blackroad.config import load
from blackroad.config_keys import KEYS
from blackroad.errors import AlreadyRunning, ConfigError, EnvironmentProblem, StateDirectoryProblem
from tests.unit.cli_fake import blackroad

# Says that it lives, and lives until it is told to end, or for ever.
STAND_IN = """
import signal, sys
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    for name in ("state", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    return Home(tmp_path / "state" / "mesh", tmp_path / "run")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def stand_in(
    place: Place, started: list[subprocess.Popen[str]], *words: str
) -> subprocess.Popen[str]:
    """Start a process that looks like the daemon of `place`, and note it as that."""
    command = [sys.executable, "-c", STAND_IN, "node", "--config", str(place.config), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    place.directory.mkdir(parents=True, exist_ok=True)
    (place.directory / "pid").write_text(str(process.pid))
    return process


def serve(place: Place, **facts: Any) -> None:
    """Write what a daemon writes when it serves."""
    place.runtime.mkdir(parents=True, exist_ok=True)
    (place.runtime / mesh_record.RUNTIME_FILE).write_text(json.dumps(facts))


# --- remembered ---------------------------------------------------------------------------------


def test_a_home_follows_the_configuration(tmp_path: Path) -> None:
    environ = {
        "BLACKROAD_STATE_DIR": str(tmp_path / "s"),
        "BLACKROAD_RUNTIME_DIR": str(tmp_path / "r"),
    }
    home = mesh_record.home(environ)
    assert home == Home(tmp_path / "s" / "mesh", tmp_path / "r")
    assert Place(1, home).runtime == tmp_path / "r"
    assert Place(2, home).runtime == tmp_path / "r" / "mesh-2"
    assert Place(2, home).endpoint == f"ipc://{tmp_path}/r/mesh-2/client.sock"


def test_two_meshes_have_two_cluster_names(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other", home.runtime)
    assert home.cluster == Home(home.state, tmp_path).cluster
    assert home.cluster != other.cluster


def test_what_is_remembered_is_found_again(home: Home) -> None:
    assert mesh_record.places(home) == []
    mesh_record.remember(home, 2)
    places = mesh_record.places(home)
    assert [place.name for place in places] == ["mesh-1", "mesh-2"]
    assert home.state.stat().st_mode & 0o777 == 0o700
    serve(places[1], pid=1)
    mesh_record.forget(home)
    assert mesh_record.places(home) == []
    assert list(home.runtime.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"nodes": "2"}', '{"nodes": 0}', "\0"])
def test_a_damaged_record_is_told(home: Home, text: str) -> None:
    mesh_record.remember(home, 2)
    home.record.write_text(text)
    with pytest.raises(StateDirectoryProblem, match="is damaged"):
        mesh_record.places(home)


def test_paths_that_are_too_long_are_refused(tmp_path: Path) -> None:
    home = Home(tmp_path / "s", tmp_path / ("x" * 90))
    with pytest.raises(ConfigError, match="Linux allows 107"):
        mesh_record.check_paths([Place(1, home)])
    with pytest.raises(ConfigError, match="cannot be written into a configuration"):
        mesh_record.check_paths([Place(1, Home(Path("/tmp/a\nb"), Path("/tmp/r")))])


# --- configured ---------------------------------------------------------------------------------


def test_what_a_daemon_is_told_is_a_configuration(home: Home) -> None:
    places = [Place(number, home) for number in (1, 2)]
    mesh_run._configure(places[1], places, 3)
    config = load(places[1].config, environ={})
    assert (config.name, config.cluster, config.slots) == ("mesh-2", home.cluster, 3)
    assert (config.listen, config.port, config.mdns_interfaces) == ("127.0.0.1", 0, ("127.0.0.1",))
    assert config.runtime_dir == home.runtime / "mesh-2"
    assert config.state_dir == home.state / "2" / "state"
    assert config.peers == ()


def test_a_daemon_is_told_of_those_that_run(
    home: Home, started: list[subprocess.Popen[str]]
) -> None:
    places = [Place(number, home) for number in (1, 2)]
    process = stand_in(places[0], started)
    serve(places[0], pid=process.pid, endpoints=["tcp://127.0.0.1:4711"])
    mesh_run._configure(places[1], places, None)
    assert load(places[1].config, environ={}).peers == ("127.0.0.1:4711",)


def test_every_key_of_the_file_is_guarded_from_the_shell(home: Home) -> None:
    place = Place(1, home)
    mesh_run._configure(place, [place], None)
    lines = place.config.read_text().splitlines()
    written = {line.partition(" = ")[0] for line in lines if not line.startswith("#")}
    assert written <= mesh_run.DECIDED <= set(KEYS)


# --- running ------------------------------------------------------------------------------------


def test_a_process_is_known_by_its_configuration(
    home: Home, started: list[subprocess.Popen[str]]
) -> None:
    place, other = Place(1, home), Place(2, home)
    process = stand_in(place, started)
    assert place.pid() == process.pid
    assert not mesh_record.is_daemon(process.pid, other.config)
    assert not mesh_record.is_daemon(os.getpid(), place.config)
    process.kill()
    # It has ended, though nobody has taken leave of it yet.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert place.pid() == 0


def test_numbers_of_other_processes_mean_nothing(
    home: Home, started: list[subprocess.Popen[str]]
) -> None:
    place, other = Place(1, home), Place(2, home)
    process = stand_in(other, started)
    serve(place, pid=process.pid)
    place.directory.mkdir(parents=True)
    (place.directory / "pid").write_text(str(os.getpid()))
    assert place.pid() == 0
    assert mesh_run.stop([place]) == (0, 0)
    assert process.poll() is None


def test_stop_is_polite_first(
    home: Home, started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    polite, deaf, gone = (Place(number, home) for number in (1, 2, 3))
    first = stand_in(polite, started)
    assert mesh_run.stop([polite, gone]) == (1, 0)
    assert first.wait() == -15
    monkeypatch.setattr(mesh_run, "DOWN_S", 0.1)
    second = stand_in(deaf, started, "deaf")
    assert mesh_run.stop([polite, deaf]) == (1, 1)
    assert second.wait() == -9


def test_another_daemon_in_the_way_is_refused(
    home: Home, started: list[subprocess.Popen[str]]
) -> None:
    place = Place(1, home)
    mesh_run.refuse_others(place)
    process = stand_in(Place(9, home), started)
    serve(place, pid=process.pid, name="attic")
    with pytest.raises(AlreadyRunning, match=f"`attic`, process {process.pid}"):
        mesh_run.refuse_others(place)
    # One that ended without taking its file away is in nobody's way.
    process.kill()
    process.wait()
    mesh_run.refuse_others(place)


def table(asked: str, alive: int, coordinator: str | None) -> dict[str, Any]:
    rows = [{"state": "alive"}] * alive + [{"state": "dead"}]
    return {"asked": asked, "coordinator": coordinator, "nodes": rows}


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ([table("a", 2, "a"), table("b", 2, "a")], ""),
        ([table("a", 2, "a"), table("b", 1, "a")], "b sees 1 of 2 nodes alive"),
        ([table("a", 2, None), table("b", 2, "a")], "a follows no coordinator yet"),
        ([table("a", 2, "a"), table("b", 2, "b")], "they follow 2 coordinators"),
    ],
)
def test_when_a_mesh_is_one(tables: list[dict[str, Any]], problem: str) -> None:
    assert mesh_run.differing(tables, 2) == problem


# --- the commands -------------------------------------------------------------------------------


def environment(home: Home) -> dict[str, str]:
    return {
        "BLACKROAD_STATE_DIR": str(home.state.parent),
        "BLACKROAD_RUNTIME_DIR": str(home.runtime),
    }


def test_a_daemon_that_ends_is_shown_with_its_log(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; print('one'); print('port is taken', file=sys.stderr); sys.exit(5)"
    command = [sys.executable, "-c", code]
    monkeypatch.setattr("blackroad.discovery.children.command", lambda _: command)
    answer = blackroad("up", "--nodes", "2", **environment(home))
    assert answer.code == EnvironmentProblem.exit_code
    assert answer.err.splitlines()[0] == "error: `mesh-1` ended with status 5 instead of serving"
    assert "  because `mesh-1` wrote last:\n" in answer.err
    assert "    port is taken\n" in answer.err
    assert str(Place(1, home).log) in answer.err


def test_down_without_a_mesh(home: Home) -> None:
    assert blackroad("down", **environment(home)) == (0, "no mesh runs\n", "")


def test_down_ends_what_runs_and_purge_removes_it(
    home: Home, started: list[subprocess.Popen[str]]
) -> None:
    mesh_record.remember(home, 2)
    stand_in(Place(2, home), started)
    assert blackroad("down", **environment(home)).out == "1 node ended\n"
    assert home.state.exists()
    answer = blackroad("down", "--purge", "--json", **environment(home))
    assert json.loads(answer.out) == {"ended": 0, "by_force": 0, "purged": True}
    assert not home.state.exists()


def test_up_with_another_number_is_refused(
    home: Home, started: list[subprocess.Popen[str]]
) -> None:
    mesh_record.remember(home, 2, 4)
    assert mesh_record.slots_of(home) == 4
    stand_in(Place(1, home), started)
    for words in (("--nodes", "3"), ("--slots", "5")):
        answer = blackroad("up", *words, **environment(home))
        assert answer.code == 5
        assert "a mesh of 2 nodes runs already, 1 of them alive" in answer.err
        assert "`blackroad down` first" in answer.err
