"""Two places with a wire between them, and two daemons there, open or in a closed cluster.

With root the places are network namespaces joined by a pair of virtual cards; without, both are
this machine's loopback.  A program reaches either daemon by its socket in the file system.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.mesh import until
from blackroad.client import Client

ROOT = Path(__file__).absolute().parents[1]
LIMIT_S = 60.0
_numbers = itertools.count()


class Spaces:
    """The two places."""

    def __init__(self, names: tuple[str, ...], addresses: tuple[str, str]) -> None:
        self.names = names
        self.addresses = addresses

    @property
    def apart(self) -> bool:
        """Are they two networks?"""
        return bool(self.names)

    def inside(self, which: int) -> list[str]:
        """What has to be typed before a program that shall run in one of them."""
        return ["ip", "netns", "exec", self.names[which]] if self.names else []

    def connect(self, which: int, address: str, port: int) -> socket.socket:
        """Open a TCP connection from one of them."""
        if not self.names:
            return socket.create_connection((address, port), 10)
        from bench.sockets import within

        return within(self.names[which], address, port)

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator[Spaces]:
        """The places, for as long as the block lasts."""
        names = tuple(f"brb{os.getpid()}{next(_numbers)}{side}" for side in "ab")
        if not _may(names[0]):
            yield cls((), ("127.0.0.1", "127.0.0.1"))
            return
        addresses = "10.78.0.1", "10.78.0.2"
        try:
            for name in names[1:]:
                _ip("netns", "add", name)
            _ip("-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0",
                "netns", names[1])  # fmt: skip
            for name, address in zip(names, addresses, strict=True):
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", "eth0", "up")
            yield cls(names, addresses)
        finally:
            for name in names:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _may(name: str) -> bool:
    """Make the first namespace, or find that this is not allowed here."""
    if os.geteuid() or shutil.which("ip") is None:
        return False
    words = ["ip", "netns", "add", name]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Place:
    """One daemon of the two, and the commands typed there."""

    def __init__(self, base: Path, spaces: Spaces, which: int, settings: dict[str, str]) -> None:
        self.home = base / f"n{which + 1}"
        self.home.mkdir(mode=0o700)
        self._spaces, self._which = spaces, which
        kept = {key: text for key, text in os.environ.items() if not key.startswith("BLACKROAD_")}
        self._environ = kept | {
            "PYTHONPATH": str(ROOT),
            "BLACKROAD_NAME": f"n{which + 1}",
            "BLACKROAD_STATE_DIR": str(self.home / "state"),
            "BLACKROAD_RUNTIME_DIR": str(self.home / "run"),
            "BLACKROAD_CACHE_DIR": str(self.home / "cache"),
            "BLACKROAD_OPENCL": "off",
            "BLACKROAD_LOG_LEVEL": "error",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def words(self, *words: str) -> list[str]:
        """A command of this program, typed there."""
        return [*self._spaces.inside(self._which), sys.executable, "-m", "blackroad", *words]

    def start(self) -> None:
        """Start the daemon there, and wait until it serves."""
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.words("node"), env=self._environ, cwd=self.home, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.client().close()

    def command(self, *words: str) -> str:
        """Type one command there; return what it printed.

        Raises  RuntimeError with what it complained of.
        """
        done = subprocess.run(
            self.words(*words), env=self._environ, cwd=self.home, capture_output=True, text=True,
            timeout=LIMIT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"blackroad {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def client(self) -> Client:
        """A client of that daemon, as soon as it serves."""
        path = self.home / "run" / "client.sock"
        return until(
            lambda: Client(f"ipc://{path}", connect_timeout=1) if path.exists() else None, LIMIT_S
        )

    def endpoint(self) -> str:
        """Where other daemons reach it, as `peers` of the configuration wants it."""
        told: dict[str, Any] = json.loads((self.home / "run" / "daemon.json").read_text())
        return str(told["endpoints"][0]).removeprefix("tcp://")

    def end(self) -> None:
        """End the daemon."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def pair(workers: int, *, curve: bool) -> Iterator[Place]:
    """Two daemons that see each other; the one that is given has no slots of its own."""
    with contextlib.ExitStack() as ends:
        spaces = ends.enter_context(Spaces.made())
        base = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="brp-", dir="/tmp")))
        settings = {} if curve else {"BLACKROAD_CLUSTER": f"bench-{secrets.token_hex(4)}"}
        if not spaces.apart:
            settings |= {f"BLACKROAD_{part}PORT": "0" for part in ("", "TELEMETRY_", "BULK_")}
            settings |= {"BLACKROAD_LISTEN": "127.0.0.1", "BLACKROAD_JOIN_PORT": "0"}
        elif not curve:
            settings |= {"BLACKROAD_LISTEN": "0.0.0.0", "BLACKROAD_INSECURE_OPEN": "true"}
        near = Place(base, spaces, 0, {**settings, "BLACKROAD_SLOTS": "0"})
        ends.callback(near.end)
        near.start()
        if curve:
            near.command("init")
        else:
            settings["BLACKROAD_PEERS"] = near.endpoint()
        far = Place(base, spaces, 1, {**settings, "BLACKROAD_SLOTS": str(workers)})
        ends.callback(far.end)
        if curve:
            near.client().close()
            token = json.loads(near.command("token", "create", "--json"))["token"]
            far.command("join", token)
        far.start()
        with near.client() as one:
            until(lambda: _works(one.nodes()), LIMIT_S)
        yield near


def _works(told: dict[str, Any]) -> bool:
    """Do the two see each other, and has one of them slots?"""
    alive = [row for row in told["nodes"] if row["state"] == "alive"]
    return len(alive) == 2 and bool(told["coordinator"]) and any(row["slots"] for row in alive)
