"""The live view in a real terminal, on a mesh of three real daemons, one of which is killed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.meshes import Daemon, Mesh, answered, mark_and_wait, mesh_of, until

pytest.importorskip("textual")
pytestmark = [pytest.mark.edge, pytest.mark.slow]

COLUMNS, LINES = 80, 24


class Terminal:
    """A terminal of 80 by 24, in which `blackroad top` runs."""

    def __init__(self, daemon: Daemon, home: Path) -> None:
        self._name = f"t{secrets.token_hex(6)}"
        self._environ = {
            **daemon.environ,
            "TERM": "screen-256color",
            "TMUX_TMPDIR": str(home),
            "LC_ALL": "C.UTF-8",
        }
        line = f"{sys.executable} -m blackroad top --interval 250ms; echo ended $?; cat"
        size = ["-x", str(COLUMNS), "-y", str(LINES)]
        self._tmux("-f", os.devnull, "new-session", "-d", *size, line)

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-u", "-L", self._name, *words],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return done.stdout

    def shown(self) -> str:
        return self._tmux("capture-pane", "-p")

    def type(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def says(self, *texts: str) -> str:
        """Wait until all of these are on the screen."""

        def there() -> str:
            shown = self.shown()
            missing = [text for text in texts if text not in shown]
            if missing:
                raise OSError(f"{missing} not in:\n{shown}")
            return shown

        return until(there, f"a screen with {texts}")

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._tmux("kill-server")


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with mesh_of("attic", "shed", "loft") as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    # Short: tmux keeps a socket in it.
    made = Path("/tmp") / f"tm{secrets.token_hex(4)}"
    made.mkdir(mode=0o700)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_it_goes_on_when_the_coordinator_is_killed(mesh: Mesh, home: Path, tmp_path: Path) -> None:
    by_name = {daemon.name: daemon for daemon in mesh.daemons}
    told = answered(mesh.daemons[0], "nodes")
    leader = next(row["name"] for row in told["nodes"] if row["coordinator"])
    mine, other = (daemon for name, daemon in by_name.items() if name != leader)
    client = mesh.client(mine)
    here, go = str(tmp_path / "here"), tmp_path / "go"
    task = client.submit(mark_and_wait, here, str(go))
    until(lambda: os.path.exists(here), "a task that runs")

    once = answered(mine, "top", "--once")
    assert once["schema"] == 1
    assert once["tasks"]["running"] == 1
    assert {row["name"]: row["state"] for row in once["nodes"]} == dict.fromkeys(by_name, "alive")

    terminal = Terminal(mine, home)
    try:
        shown = terminal.says("3 nodes", f"led by {leader}", "1 running", "mark_and_wait")
        assert max(map(len, shown.splitlines())) <= COLUMNS
        by_name[leader].end(signal.SIGKILL)
        terminal.says("2 nodes", "1 dead", "coordinator.changed", "led by ")
        follows = until(lambda: answered(mine, "nodes")["coordinator"], "another coordinator")
        rows = {row["id"]: row["name"] for row in answered(mine, "nodes")["nodes"]}
        terminal.says(f"led by {rows[follows]}")
        # The same program still takes keys, and gives orders.
        other_row = next(
            row for row in answered(mine, "nodes")["nodes"] if row["name"] == other.name
        )
        terminal.type("/", *other.name, "Enter", "D")
        terminal.says(f"Drain {other.name}?")
        terminal.type("y")
        terminal.says("draining")
        assert other_row["state"] == "alive"
        until(lambda: _state(mine, other.name) == "draining", "a node that drains")
        terminal.type("q")
        terminal.says("ended 0")
    finally:
        terminal.close()
        go.touch()
    with contextlib.suppress(Exception):
        task.result(timeout=30)


def _state(daemon: Daemon, name: str) -> str:
    rows = answered(daemon, "nodes")["nodes"]
    return next(str(row["state"]) for row in rows if row["name"] == name)


def test_json_lines_outlive_a_restart_of_the_daemon() -> None:
    with mesh_of("attic") as mesh:
        [daemon] = mesh.daemons
        program = subprocess.Popen(
            [sys.executable, "-m", "blackroad", "top", "--json", "--interval", "100ms"],
            env=daemon.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert program.stdout is not None
            first = json.loads(program.stdout.readline())
            assert first["problem"] == ""
            daemon.end(signal.SIGKILL)
            assert any(json.loads(line)["problem"] for line in program.stdout)
            daemon.start()
            for line in program.stdout:
                told = json.loads(line)
                if not told["problem"] and told["nodes"][0]["incarnation"] > 1:
                    break
            assert told["nodes"][0]["name"] == "attic"
            program.send_signal(signal.SIGINT)
            program.stdout.read()
            assert program.wait(timeout=20) == 130
        finally:
            program.kill()
            program.wait()
            program.stdout.close()
