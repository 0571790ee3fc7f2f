"""Commands against a real mesh of two daemons, started by `up` and ended by `down`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.tidy.source import ROOT

pytestmark = pytest.mark.edge

LIMIT_S: Final = 60
MODULE: Final = """
import sys

def twice(x, plus=0):
    print("called with", x)
    return 2 * x + plus

def broken(x):
    raise KeyError(x)
"""


class Mesh:
    """The program, as one user with a home of their own types it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        (base / "modules").mkdir()
        (base / "modules" / "lab.py").write_text(MODULE)
        ours = [name for name in os.environ if name.startswith(("BLACKROAD_", "XDG_"))]
        self.environ = {name: text for name, text in os.environ.items() if name not in ours}
        self.environ |= {
            "HOME": str(base),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{base / 'modules'}",
            "BLACKROAD_STATE_DIR": str(base / "state"),
            "BLACKROAD_RUNTIME_DIR": str(base / "run"),
            "BLACKROAD_CACHE_DIR": str(base / "cache"),
            "BLACKROAD_OPENCL": "off",
            "COLUMNS": "120",
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "blackroad", *words]

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words),
            env=self.environ,
            cwd=self.base,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def __call__(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            env=self.environ,
            cwd=self.base,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def data(self, *words: str) -> Any:
        """Run a command that must go well, and read the JSON that it prints."""
        ended = self(*words, "--json")
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        return json.loads(ended.stdout)

    def pids(self) -> list[int]:
        """The daemons, as they tell of themselves."""
        files = sorted((self.base / "run").rglob("daemon.json"))
        return [json.loads(file.read_text())["pid"] for file in files]


def until(ready: Callable[[], Any]) -> Any:
    """Ask again and again, each time by a command of some 100 ms, until the answer is true."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        found = ready()
        if found:
            return found
    raise AssertionError("it did not happen")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path_factory.mktemp("m"))
    try:
        up = mesh("up", "--nodes", "2", "--slots", "2")
        assert up.returncode == 0, up.stderr
        assert up.stdout.startswith("a mesh of 2 nodes is up:\n")
        yield mesh
    finally:
        mesh("down", "--purge")


# --- the mesh -----------------------------------------------------------------------------------


def test_up_says_what_runs_already(mesh: Mesh) -> None:
    told = mesh.data("up")
    assert [node["started"] for node in told["nodes"]] == [False, False]
    assert [node["pid"] for node in told["nodes"]] == mesh.pids()
    assert mesh("up", "--nodes", "3").returncode == 5


def test_both_nodes_follow_one_coordinator(mesh: Mesh) -> None:
    told = mesh.data("nodes")
    assert sorted(row["name"] for row in told["nodes"]) == ["mesh-1", "mesh-2"]
    assert {row["state"] for row in told["nodes"]} == {"alive"}
    assert {row["follows"] for row in told["nodes"]} == {told["coordinator"]}
    first, second = mesh("nodes").stdout.splitlines()[1:]
    assert "  *  " in first
    assert "  *  " not in second


# --- tasks --------------------------------------------------------------------------------------


def test_a_function(mesh: Mesh) -> None:
    ended = mesh("submit", "--wait", "lab:twice", "[1, 'a']", "plus=['b']")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, '[1, "a", 1, "a", "b"]\n', "")
    failed = mesh("submit", "--wait", "lab:broken", "x")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: KeyError: 'x'\n  Traceback (most recent call last):\n")
    assert "in broken\n" in failed.stderr


def test_a_command_and_what_it_prints(mesh: Mesh) -> None:
    script = "echo out; echo err >&2; exit $1"
    fine = mesh("submit", "--wait", "--", "sh", "-c", script, "sh", "0")
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "out\nerr\n", "")
    failed = mesh("submit", "--wait", "--", "sh", "-c", script, "sh", "3")
    assert (failed.returncode, failed.stdout) == (1, "out\nerr\n")
    assert failed.stderr == "error: `sh` exited with status 3\n"


def test_a_task_lives_on_without_its_client(mesh: Mesh) -> None:
    (id_,) = mesh("submit", "lab:twice", "21").stdout.split()
    assert mesh("result", id_[:14]).stdout == "42\n"
    told = mesh.data("status", id_[:14])
    assert (told["id"], told["state"], told["durable"]) == (id_, "done", True)
    assert mesh("logs", id_).stdout == "called with 21\n"
    assert id_ in mesh("tasks", "--ids").stdout.split()


def test_an_array(mesh: Mesh) -> None:
    told = mesh.data("submit", "--wait", "--array", "1-8", "lab:twice", "{}")
    assert [task["result"] for task in told["tasks"]] == [2, 4, 6, 8, 10, 12, 14, 16]
    ended = mesh("submit", "--wait", "--each-line", "-", "--", "echo", "<{}>", stdin="a b\nc\n")
    assert ended.stdout == "<a b>\n<c>\n"
    script = 'test "$BLACKROAD_ARRAY_INDEX" = 7'
    assert mesh("submit", "--wait", "--array", "7", "--", "sh", "-c", script).returncode == 0


def test_a_kernel_over_the_mesh_and_as_one_task(mesh: Mesh) -> None:
    words = ("--kernel", "mandelbrot", "width=640", "height=480")
    file = str(mesh.base / "set.npy")
    ended = mesh("submit", "--wait", *words, "-o", file)
    assert ended.returncode == 0, ended.stderr
    whole = np.load(file)
    assert whole.shape == (480, 640)
    (id_,) = mesh("submit", *words).stdout.split()
    alone = str(mesh.base / "alone.npy")
    assert mesh("result", id_, "-o", alone).returncode == 0
    assert (np.load(alone) == whole).all()


def test_what_nobody_can_run(mesh: Mesh) -> None:
    refused = mesh("submit", "--gpu", "1", "--arch", "s390x", "lab:twice", "1")
    assert (refused.returncode, refused.stdout) == (3, "")
    lines = refused.stderr.splitlines()
    assert lines[0] == "error: no node can run `lab:twice`"
    assert lines[1].split() == ["item", "asked", "nearest", "node"]
    assert [line.split()[0] for line in lines[2:4]] == ["gpu", "arch"]
    assert "  2 of 2 nodes answered" in lines
    assert lines[-1].startswith("hint: submit it without `--gpu` and `--arch`")
    (id_,) = mesh("submit", "--wait-for-node", "--gpu", "1", "lab:twice", "1").stdout.split()
    why = mesh("why", id_)
    assert why.returncode == 0
    rows = [line.split() for line in why.stdout.splitlines()[-2:]]
    assert rows == [[name, "lacks", "gpu", "1", "none", "none"] for name in ("mesh-1", "mesh-2")]
    assert mesh("result", "--timeout", "0.1", id_).returncode == 5
    assert mesh("cancel", id_).stdout == f"{id_}  cancelling\n"
    cancelled = mesh("result", id_)
    assert cancelled.returncode == 1
    assert cancelled.stderr.startswith(f"error: {id_} was cancelled\n")


def test_cancel_ends_what_runs(mesh: Mesh) -> None:
    (id_,) = mesh("submit", "--", "sleep", "600").stdout.split()
    until(lambda: mesh.data("status", id_)["state"] == "running")
    assert mesh("cancel", id_).returncode == 0
    assert mesh("result", id_).returncode == 1
    assert mesh.data("status", id_)["state"] == "cancelled"


def test_logs_are_followed_to_the_end(mesh: Mesh) -> None:
    script = "echo first; read line < $1; echo last"
    pipe = mesh.base / "pipe"
    os.mkfifo(pipe)
    (id_,) = mesh("submit", "--", "sh", "-c", script, "sh", str(pipe)).stdout.split()
    with mesh.start("logs", "-f", id_) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "first\n"
        # Only now the task may go on: what it printed was seen while it ran.
        pipe.write_text("go\n")
        assert following.stdout.read() == "last\n"
        assert following.wait(LIMIT_S) == 0


def test_ctrl_c_stops_the_waiting_and_not_the_task(mesh: Mesh) -> None:
    before = set(mesh("tasks", "--ids").stdout.split())
    with mesh.start("submit", "--wait", "--", "sleep", "600", process_group=0) as waiting:
        until(lambda: "sleep" in [task["name"] for task in running(mesh, before)])
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(LIMIT_S) == 130
        assert waiting.stderr is not None
        assert waiting.stderr.read() == ""
    (task,) = running(mesh, before)
    assert mesh("cancel", task["id"]).returncode == 0


def running(mesh: Mesh, before: set[str]) -> list[dict[str, Any]]:
    listed = mesh.data("tasks", "--state", "running")["tasks"]
    return [task for task in listed if task["id"] not in before]


def test_kernels_name_what_each_node_has(mesh: Mesh) -> None:
    told = mesh.data("kernels")
    assert {node["name"] for node in told["nodes"]} == {"mesh-1", "mesh-2"}
    assert [one["name"] for one in told["kernels"]][:1] == ["collatz"]


def test_a_task_of_another_mesh(mesh: Mesh) -> None:
    unknown = mesh("status", "aaaaaaaa-bbbb")
    assert unknown.returncode == 2
    assert "no node aaaaaaaa is in this mesh" in unknown.stderr


# --- a terminal, and a daemon that goes ---------------------------------------------------------


class Screen:
    """A command on a terminal of its own, and what it has shown so far."""

    def __init__(self, mesh: Mesh, *words: str) -> None:
        self._fd, other = pty.openpty()
        self.process = subprocess.Popen(
            mesh.command(*words),
            env={**mesh.environ, "TERM": "xterm-256color"},
            cwd=mesh.base,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)
        self.shown = ""

    def until(self, text: str) -> None:
        """Read on until something new contains `text`."""
        end = time.monotonic() + LIMIT_S
        start = len(self.shown)
        while text not in self.shown[start:]:
            ready, _, _ = select.select([self._fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"never shown: {text!r} in {self.shown[start:]!r}"
            self.shown += os.read(self._fd, 65_536).decode("utf-8", "replace")

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        """Wait for the end; the terminal must be read, or the last words block."""
        with contextlib.suppress(OSError):
            while os.read(self._fd, 65_536):
                pass
        os.close(self._fd)
        return self.process.wait(LIMIT_S)


def lives(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has taken leave of does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_watching_outlives_the_mesh_it_watches(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    try:
        assert mesh("up", "--nodes", "2", "--slots", "1").returncode == 0
        screen = Screen(mesh, "nodes", "--watch")
        screen.until("mesh-2")
        killed = mesh.pids()[1]
        os.kill(killed, signal.SIGKILL)
        screen.until("dead")
        ended = mesh("down")
        assert ended.stdout == "1 node ended\n"
        screen.until("trying again")
        up = mesh("up", "--nodes", "2", "--slots", "1")
        assert up.returncode == 0, up.stderr
        screen.until("alive")
        screen.type("q")
        assert screen.end() == 0
        pids = mesh.pids()
        assert mesh("down", "--purge").stdout.startswith("2 nodes ended\n")
        assert [pid for pid in pids if lives(pid)] == []
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == []
        assert not (tmp_path / "state" / "mesh").exists()
        assert mesh("nodes").returncode == 4
    finally:
        mesh("down", "--purge")
