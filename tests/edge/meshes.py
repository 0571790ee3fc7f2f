"""Real daemons on loopback, each in a process and a short directory of its own, ended for certain.

Every process that a daemon starts, however deep, carries the mesh's mark in its environment: so
what is left behind can be found, and is killed whatever the test did.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from blackroad.client import Client
from blackroad.errors import BlackroadError

WAIT_S = 40.0
MARK = "MESH_OF_TESTS"
T = TypeVar("T")


def until(ask: Callable[[], T], what: str = "that", limit_s: float = WAIT_S) -> T:
    """Ask again and again until the answer is true; a daemon that is not there says no."""
    deadline = time.monotonic() + limit_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = ask()
        except (BlackroadError, OSError, TimeoutError) as error:
            last = error
        else:
            if answer:
                return answer
            last = answer
        select.select([], [], [], 0.02)
    raise AssertionError(f"it did not come to {what} in time; the last answer was {last!r}")


class Daemon:
    """One daemon: its process, its directories, its log."""

    def __init__(self, mesh: Mesh, name: str, settings: dict[str, str]) -> None:
        self.mesh = mesh
        self.name = name
        self.home = mesh.base / name
        self.runtime = self.home / "run"
        self.log_file = self.home / "log"
        self.home.mkdir(mode=0o700)
        self.environ = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("BLACKROAD_", "PYTEST_", "NOTIFY_", "WATCHDOG_"))
        }
        self.environ |= {
            MARK: mesh.mark,
            "BLACKROAD_NAME": name,
            "BLACKROAD_CLUSTER": mesh.mark,
            "BLACKROAD_STATE_DIR": str(self.home / "state"),
            "BLACKROAD_RUNTIME_DIR": str(self.runtime),
            "BLACKROAD_CACHE_DIR": str(self.home / "cache"),
            "BLACKROAD_PORT": "0",
            "BLACKROAD_TELEMETRY_PORT": "0",
            "BLACKROAD_BULK_PORT": "0",
            "BLACKROAD_MDNS": "false",
            "BLACKROAD_OPENCL": "off",
            "BLACKROAD_SLOTS": "2",
            "BLACKROAD_LOG_FORMAT": "json",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: str) -> None:
        """Start it; return at once."""
        self.environ |= settings
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "blackroad", "node"],
                env=self.environ,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """The daemon itself."""
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        """All it wrote, over all its lives."""
        return self.log_file.read_text("utf-8", "replace") if self.log_file.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it logged under that name."""
        rows = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [row for row in rows if row.get("event") == name]

    def facts(self) -> dict[str, Any]:
        """What it wrote down about itself."""
        told: dict[str, Any] = json.loads((self.runtime / "daemon.json").read_text())
        return told

    def serves(self) -> bool:
        """Whether this life of it serves; an early end is told with its log."""
        assert self.process is not None
        code = self.process.poll()
        assert code is None, f"{self.name} ended with {code}:\n{self.log()[-3000:]}"
        with contextlib.suppress(OSError, ValueError):
            return bool(self.facts()["pid"] == self.pid)
        return False

    def wait(self) -> dict[str, Any]:
        """Wait until it serves; return its facts."""
        until(self.serves, f"`{self.name}` serving")
        return self.facts()

    def client(self) -> Client:
        """A client of this daemon, as soon as it serves."""
        self.wait()
        return Client(f"ipc://{self.runtime / 'client.sock'}", connect_timeout=WAIT_S)

    def send(self, number: int) -> None:
        """Send a signal to the daemon alone."""
        os.kill(self.pid, number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End this life and return its exit code."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.process.wait(timeout=WAIT_S)

    def exits(self) -> int:
        """Wait for it to end by itself; return its exit code."""
        assert self.process is not None
        return self.process.wait(timeout=WAIT_S)


def command(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    """Type a command on that daemon's machine, as its user."""
    return subprocess.run(
        [sys.executable, "-m", "blackroad", *words],
        env=daemon.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def answered(daemon: Daemon, *words: str) -> Any:
    """What a command says with --json."""
    done = command(daemon, *words, "--json")
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return json.loads(done.stdout)


class Mesh:
    """Some daemons that know each other and nobody else."""

    def __init__(self, **settings: str) -> None:
        self.mark = f"t{secrets.token_hex(6)}"
        # Short: a unix socket's path may have 107 bytes.
        self.base = Path(tempfile.mkdtemp(prefix="br", dir="/tmp"))
        self.daemons: list[Daemon] = []
        self._settings = settings
        self._clients: list[Client] = []

    def add(self, name: str, **settings: str) -> Daemon:
        """Start one more daemon, which finds the others through the first."""
        chosen = {**self._settings, **settings}
        if self.daemons and "BLACKROAD_PEERS" not in chosen:
            chosen["BLACKROAD_PEERS"] = ",".join(
                one.removeprefix("tcp://") for one in self.daemons[0].wait()["endpoints"]
            )
        daemon = Daemon(self, name, chosen)
        self.daemons.append(daemon)
        daemon.start()
        return daemon

    def client(self, daemon: Daemon) -> Client:
        """A client that is closed when the mesh ends."""
        one = daemon.client()
        self._clients.append(one)
        return one

    def settled(self, *daemons: Daemon) -> None:
        """Wait until all of them see each other alive and follow one coordinator."""
        everybody = daemons or tuple(self.daemons)
        names = {one.name for one in everybody}
        clients = [one.client() for one in everybody]
        try:
            until(lambda: _agree([one.nodes() for one in clients], names), "one mesh")
        finally:
            for one in clients:
                one.close()

    def processes(self) -> dict[int, str]:
        """All living processes of this mesh, with their command lines."""
        found = {}
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                place = Path(entry.path)
                if f"{MARK}={self.mark}".encode() not in (place / "environ").read_bytes():
                    continue
                if (place / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                    continue
                words = (place / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = words.decode("utf-8", "replace")
        return found

    def close(self) -> None:
        """End every process of the mesh, politely and then not, and remove its directory."""
        for one in self._clients:
            with contextlib.suppress(Exception):
                one.close()
        for daemon in self.daemons:
            process = daemon.process
            if process is not None and process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.send_signal(signal.SIGKILL)
                process.wait()

        def gone() -> bool:
            left = self.processes()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        until(gone, "an empty process table")
        shutil.rmtree(self.base, ignore_errors=True)


def _agree(views: list[dict[str, Any]], names: set[str]) -> bool:
    coordinators = {view["coordinator"] for view in views}
    alive = [{row["name"] for row in v["nodes"] if row["state"] == "alive"} for v in views]
    known = [all(row["cores"] for row in v["nodes"] if row["state"] == "alive") for v in views]
    return (
        len(coordinators) == 1
        and None not in coordinators
        and all(names <= one for one in alive)
        and all(known)
    )


@contextlib.contextmanager
def mesh_of(*names: str, **settings: str) -> Iterator[Mesh]:
    """A mesh of these daemons, settled, that ends with the block."""
    mesh = Mesh(**settings)
    try:
        for name in names:
            mesh.add(name)
        if names:
            mesh.settled()
        yield mesh
    finally:
        mesh.close()


# --- what tasks do ------------------------------------------------------------------------------
# They run in other processes, so they tell and are told by files.


def mark_and_wait(here: str, go: str) -> None:
    """Say in `here` that it runs, then wait for the file `go`."""
    import os
    import select

    with open(here, "a") as file:
        file.write(f"{os.getpid()}\n")
    while not os.path.exists(go):
        select.select([], [], [], 0.02)


def with_children(here: str, go: str) -> None:
    """The same, with a child, and a grandchild that has left its session."""
    import subprocess
    import sys

    nested = (
        "import subprocess,sys; subprocess.Popen(['sleep','600'],start_new_session=True).wait()"
    )
    with subprocess.Popen([sys.executable, "-c", nested]):
        mark_and_wait(here, go)


def stamped(here: str, ms: int) -> str:
    """Write (token, start, stop) of this attempt, each line at once; busy for `ms` in between."""
    import os
    import select
    import time

    from blackroad.runtime.context import current

    context = current()
    token = f"{context.token[0]}/{context.token[1]}" if context else ""

    def now_ms() -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def write(word: str) -> None:
        fd = os.open(here, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"{token} {word} {now_ms()} {context.node if context else ''}\n".encode())
        os.close(fd)

    write("start")
    end_ms = now_ms() + ms
    while now_ms() < end_ms:
        # What a killed attempt leaves is its last sign of life.
        write("alive")
        select.select([], [], [], 0.05)
    write("stop")
    return token


def where() -> str:
    """The name of the node this runs on."""
    from blackroad.runtime.context import current

    context = current()
    return context.node if context else ""
