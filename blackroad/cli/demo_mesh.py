"""Real daemons for the demo: started, watched, killed, and surely ended.

Edge.  Everything they need lies below one directory, and nothing of them outlives the demo.  This
file must not know jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from blackroad import directories
from blackroad.config import PREFIX
from blackroad.discovery import children
from blackroad.errors import BlackroadError, EnvironmentProblem
from blackroad.limits import PATH_BYTES_MAX

POLL_S: Final = 0.05
STOP_S: Final = 5.0
ENDED_S: Final = 5.0
TAIL_LINES: Final = 6
TAIL_BYTES: Final = 16 * 1024
# Room for /<name>/run/client.sock and whatever else a daemon puts there.
ROOT_BYTES_MAX: Final = PATH_BYTES_MAX - 60

# What a service manager or a task tells its own children, and what must not reach ours.
_NOT_OURS: Final = frozenset(
    {
        "CACHE_DIRECTORY",
        "LISTEN_FDS",
        "LISTEN_PID",
        "NOTIFY_SOCKET",
        "RUNTIME_DIRECTORY",
        "STATE_DIRECTORY",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    }
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Place(NamedTuple):
    """One daemon to be: its name, what it is set to beside the common, and why."""

    name: str
    settings: Mapping[str, str]
    remark: str


class Deadline:
    """A limit on everything together, so that no sum of waits can become long."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def left_s(self) -> float:
        """Seconds until the limit, 0 when it is over."""
        return max(0.0, self._until - time.monotonic())

    def wait(self, what: str, limit_s: float, ready: Callable[[], Any]) -> Any:
        """Return what `ready` returned as soon as that is true.

        Raises  BlackroadError naming `what` when it was not within the limit.
        """
        allowed_s = min(limit_s, self.left_s())
        found = self.try_wait(limit_s, ready)
        if not found:
            raise BlackroadError(
                f"{what}: not within {allowed_s:.0f} s",
                hint="a very busy machine is the usual cause: try again; "
                "`blackroad demo --keep` keeps the logs",
            )
        return found

    def try_wait(self, limit_s: float, ready: Callable[[], Any]) -> Any:
        """Return what `ready` returned as soon as that is true, or None after the limit."""
        until = time.monotonic() + min(limit_s, self.left_s())
        while not (found := ready()):
            if time.monotonic() >= until:
                return None
            time.sleep(POLL_S)
        return found


class Daemon:
    """One daemon: a process, its directories and its log."""

    def __init__(self, place: Place, root: Path, common: Mapping[str, str]) -> None:
        self.name = place.name
        self.place = place
        self.runtime = root / place.name / "run"
        self.log = root / place.name / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.peers: tuple[str, ...] = ()
        base = root / place.name
        base.mkdir(mode=0o700)
        (base / "tmp").mkdir()
        self._environment = {
            **common,
            "BLACKROAD_NAME": place.name,
            "BLACKROAD_STATE_DIR": str(base / "state"),
            "BLACKROAD_RUNTIME_DIR": str(self.runtime),
            "BLACKROAD_CACHE_DIR": str(base / "cache"),
            # Compilers of kernels and tasks that are killed leave files here, not in your home.
            "XDG_CACHE_HOME": str(base / "cache"),
            "POCL_CACHE_DIR": str(base / "cache" / "pocl"),
            "TMPDIR": str(base / "tmp"),
            **place.settings,
        }

    @property
    def endpoint(self) -> str:
        """Where clients reach it."""
        return f"ipc://{directories.client_socket(self.runtime)}"

    @property
    def pid(self) -> int:
        """Its process, 0 while it has none."""
        return self.process.pid if self.process is not None else 0

    def start(self) -> None:
        """Start it; see `facts` for when it serves."""
        environment = dict(self._environment)
        if self.peers:
            environment["BLACKROAD_PEERS"] = ",".join(self.peers)
        parent = os.getpid()
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the demo alone, which then ends its daemons.
            self.process = subprocess.Popen(
                [*children.command("blackroad"), "node"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=lambda: children.die_with_parent(parent),
            )

    def facts(self) -> dict[str, Any] | None:
        """What this very process says of itself once it serves, None before.

        Raises  EnvironmentProblem where it ended instead.
        """
        if self.process is None:
            return None
        status = self.process.poll()
        if status is not None:
            raise EnvironmentProblem(
                f"the daemon `{self.name}` ended by itself (status {status})",
                hint="its last lines say why; `blackroad demo --keep` keeps the whole log",
            )
        try:
            found = json.loads((self.runtime / "daemon.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        # An earlier life that was killed has left its file.
        return found if found.get("pid") == self.process.pid else None

    def kill(self) -> None:
        """End it as a power cut would: no last word, no file closed."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=STOP_S)

    def ask_to_stop(self) -> None:
        """Tell it to leave in order."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def collect(self, until: float) -> None:
        """Wait for its end; kill it, with all of its session, when the time is over."""
        if self.process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=max(0.0, until - time.monotonic()))
        if self.process.returncode is None:
            children.end(self.process)
        self.process = None

    def tail(self, lines: int = TAIL_LINES) -> list[str]:
        """The last lines it wrote."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        plain = (" ".join(_COLOUR.sub("", line).split()) for line in text.splitlines()[-lines:])
        return [f"{self.name}: {line}" for line in plain]

    def wrote(self, words: str) -> bool:
        """Tell whether its log has these words."""
        try:
            return words.encode() in self.log.read_bytes()
        except OSError:
            return False


class Mesh:
    """The daemons of one demo; a context manager that leaves nothing behind.

    Raises  EnvironmentProblem where no directory can be had that is short enough for sockets.
    """

    def __init__(self, places: Sequence[Place], *, keep: bool) -> None:
        self.root = _short_directory()
        self.keep = keep
        self._named = False
        common = _environment(self.root)
        self.daemons = {place.name: Daemon(place, self.root, common) for place in places}

    def __getitem__(self, name: str) -> Daemon:
        return self.daemons[name]

    def start(self) -> None:
        """Start all of them."""
        for daemon in self.daemons.values():
            daemon.start()

    def serving(self) -> bool:
        """Tell whether each one serves.

        Raises  EnvironmentProblem as soon as one of them has ended.
        """
        found = [daemon.facts() for daemon in self.daemons.values()]
        return None not in found

    def name_peers(self, deadline: Deadline, limit_s: float) -> list[str]:
        """Restart all but the first, each with the addresses of those before it; return which.

        One after the other, because a port is known only when its daemon serves.
        """
        first, *others = self.daemons.values()
        self._named = True
        known = list(deadline.wait(f"daemon `{first.name}`", limit_s, first.facts)["endpoints"])
        for daemon in others:
            daemon.ask_to_stop()
        for daemon in others:
            daemon.collect(time.monotonic() + min(STOP_S, deadline.left_s()))
            daemon.peers = tuple(known)
            daemon.start()
            known += deadline.wait(f"daemon `{daemon.name}`", limit_s, daemon.facts)["endpoints"]
        return [daemon.name for daemon in others]

    def start_again(self, name: str) -> None:
        """Start a daemon that was killed, with the addresses of the others if they are needed."""
        daemon = self.daemons[name]
        if self._named:
            others = [one.facts() for one in self.daemons.values() if one is not daemon]
            daemon.peers = tuple(end for facts in others if facts for end in facts["endpoints"])
        daemon.start()

    def tails(self) -> list[str]:
        """The last lines of every daemon."""
        return [line for daemon in self.daemons.values() for line in daemon.tail()]

    def close(self) -> list[str]:
        """End everything; return what had to be forced, which should be nothing.

        Cost  about a second, 15 s when daemons do not obey.
        """
        for daemon in self.daemons.values():
            daemon.ask_to_stop()
        until = time.monotonic() + STOP_S
        for daemon in self.daemons.values():
            daemon.collect(until)
        left = remaining(self.root)
        if not self.keep:
            shutil.rmtree(self.root, ignore_errors=True)
            if self.root.exists():
                left.append(f"the directory {self.root}")
        return left


def _short_directory() -> Path:
    """Make a private directory whose sockets have paths that Linux takes."""
    problems = []
    for base in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):
        if len(os.fsencode(base)) + len("/br-demo-xxxxxxxx") > ROOT_BYTES_MAX:
            problems.append(f"{base} has too long a path")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="br-demo-", dir=base))
        except OSError as error:
            problems.append(f"{base}: {error.strerror}")
    raise EnvironmentProblem(
        "no directory for the daemons can be made: " + "; ".join(problems),
        hint="set TMPDIR to a writable directory with a short path",
    )


def _environment(root: Path) -> dict[str, str]:
    """What all daemons of this demo are told, and nothing of the user's own settings."""
    empty = root / "no-settings.toml"
    empty.touch(mode=0o600)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PREFIX) and name not in _NOT_OURS
    }
    ours = {
        "BLACKROAD_CONFIG": str(empty),
        # Another demo, or a real mesh, on this machine is none of our business.
        "BLACKROAD_CLUSTER": root.name,
        "BLACKROAD_LISTEN": "127.0.0.1",
        "BLACKROAD_MDNS_INTERFACES": "127.0.0.1",
        "BLACKROAD_PORT": "0",
        "BLACKROAD_TELEMETRY_PORT": "0",
        "BLACKROAD_BULK_PORT": "0",
        "BLACKROAD_SLOTS": "1",
        "BLACKROAD_LOG_FORMAT": "text",
    }
    return children.environment(ours, kept)


def remaining(directory: Path, limit_s: float = ENDED_S) -> list[str]:
    """Wait for the end of all processes of the daemons below `directory`, then end the rest.

    Every process of theirs carries the directory in its environment, and no other does.  Returns
    what had to be killed.
    """
    until = time.monotonic() + limit_s
    while (found := _below(directory)) and time.monotonic() < until:
        time.sleep(POLL_S)
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return [f"process {pid} ({name})" for pid, name in found.items()]


def _below(directory: Path) -> dict[int, str]:
    import psutil

    ours = f"{directory}/"
    found: dict[int, str] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if any(ours in value for value in process.environ().values()):
                found[process.pid] = process.name()
    return found
