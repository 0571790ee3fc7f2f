"""Real daemons on loopback for measurements: started, watched, ended."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blackroad.client import Client
from blackroad.errors import BlackroadError

WAIT_S = 30.0


class Daemon:
    """One daemon in a process of its own."""

    def __init__(self, base: Path, name: str, cluster: str, settings: dict[str, str]) -> None:
        self.name = name
        self.runtime = base / name / "run"
        for part in ("run", "state", "cache"):
            (base / name / part).mkdir(parents=True, mode=0o700)
        self.environ = {
            **os.environ,
            "BLACKROAD_NAME": name,
            "BLACKROAD_CLUSTER": cluster,
            "BLACKROAD_STATE_DIR": str(base / name / "state"),
            "BLACKROAD_RUNTIME_DIR": str(self.runtime),
            "BLACKROAD_CACHE_DIR": str(base / name / "cache"),
            "BLACKROAD_PORT": "0",
            "BLACKROAD_TELEMETRY_PORT": "0",
            "BLACKROAD_BULK_PORT": "0",
            "BLACKROAD_MDNS_INTERFACES": "127.0.0.1",
            "BLACKROAD_LOG_LEVEL": "warning",
            **settings,
        }
        self.started = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return at once."""
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "blackroad", "node"], env=self.environ, start_new_session=True
        )

    def client(self) -> Client:
        """A client of this daemon, as soon as it serves."""
        path = self.runtime / "client.sock"
        return until(lambda: Client(f"ipc://{path}", connect_timeout=1) if path.exists() else None)

    def facts(self) -> dict[str, Any]:
        """What the daemon wrote down about itself."""
        told: dict[str, Any] = json.loads((self.runtime / "daemon.json").read_text())
        return told

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it and wait for it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            self.process.wait(timeout=WAIT_S)


@contextlib.contextmanager
def mesh(count: int, **settings: str) -> Iterator[list[Daemon]]:
    """A mesh of `count` daemons that starts within this block and ends with it."""
    cluster = f"bench-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="br-") as folder:
        daemons = [Daemon(Path(folder), f"n{n + 1}", cluster, settings) for n in range(count)]
        try:
            for daemon in daemons:
                daemon.start()
            yield daemons
        finally:
            for daemon in daemons:
                with contextlib.suppress(Exception):
                    daemon.kill(signal.SIGTERM)


def until(ask: Any, limit_s: float = WAIT_S, every_s: float = 0.005) -> Any:
    """Ask again and again until there is an answer; a failure to reach a daemon is none."""
    end = time.perf_counter() + limit_s
    while time.perf_counter() < end:
        with contextlib.suppress(BlackroadError, OSError):
            answer = ask()
            if answer:
                return answer
        time.sleep(every_s)
    raise TimeoutError("the mesh did not come to that within the time limit")


def tree_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    import psutil

    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def pss_mib(pids: list[int]) -> float:
    """Proportional memory of processes: shared pages are divided among those who share them."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that processes used so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
