"""Machines in network namespaces behind one switch, each as its user finds it: empty.

Needs root and `ip`.  Everything is made under names of this process and goes with the lab.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
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

REPOSITORY = Path(__file__).resolve().parents[2]
WAIT_S = 30.0
T = TypeVar("T")
_labs = itertools.count()


def missing() -> str:
    """What this machine lacks for such a lab, in words; empty where all is there."""
    if os.geteuid() != 0:
        return "it needs root, to make networks of its own"
    if shutil.which("ip") is None:
        return "it needs the program `ip` (package iproute2)"
    name = f"brt{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"it may not make network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


def until(ask: Callable[[], T], what: str, limit_s: float = WAIT_S) -> T:
    """Ask again and again until the answer is true."""
    deadline = time.monotonic() + limit_s
    answer = ask()
    while not answer:
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {limit_s:g} s; the last answer was {answer!r}")
        select.select([], [], [], 0.05)
        answer = ask()
    return answer


class Said:
    """What a command printed, and how it ended."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.out = done.stdout
        self.err = done.stderr

    def json(self) -> Any:
        """The answer of a command with --json."""
        assert self.code == 0, (self.code, self.out, self.err)
        return json.loads(self.out)


class Box:
    """One machine: a namespace with an address, a home, and a daemon when it is started."""

    def __init__(self, lab: Lab, number: int, **settings: str) -> None:
        self.lab = lab
        self.name = f"n{number}"
        self.space = f"{lab.prefix}{self.name}"
        self.address = f"10.79.0.{number}"
        self.home = lab.base / self.name
        self.home.mkdir(mode=0o700)
        self.process: subprocess.Popen[bytes] | None = None
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("BLACKROAD_", "PYTEST_", "NOTIFY_", "WATCHDOG_"))
        }
        self.environ = kept | {
            "PYTHONPATH": str(REPOSITORY),
            "BLACKROAD_NAME": self.name,
            "BLACKROAD_STATE_DIR": str(self.home / "state"),
            "BLACKROAD_RUNTIME_DIR": str(self.home / "run"),
            "BLACKROAD_CACHE_DIR": str(self.home / "cache"),
            "BLACKROAD_OPENCL": "off",
            "BLACKROAD_SLOTS": "1",
            "BLACKROAD_LOG_FORMAT": "json",
            **settings,
        }

    def _words(self, *words: str) -> list[str]:
        inside = ["ip", "netns", "exec", self.space, sys.executable, "-m", "blackroad"]
        return [*inside, *words]

    def run(self, *words: str, limit_s: float = 60.0, stdin: str = "") -> Said:
        """Run one `blackroad` command on that machine."""
        return Said(
            subprocess.run(
                self._words(*words),
                cwd=self.home,
                env=self.environ,
                capture_output=True,
                text=True,
                input=stdin,
                timeout=limit_s,
                check=False,
            )
        )

    def shell(self, line: str) -> str:
        """Run something else in its network."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.space, "sh", "-c", line],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def start(self, **settings: str) -> None:
        """Start the daemon; return at once."""
        self.environ |= settings
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._words("node"),
                cwd=self.home,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def serves(self) -> bool:
        """Does its daemon answer its own machine?"""
        return self.run("nodes", "--json").code == 0

    def log(self) -> list[dict[str, Any]]:
        """What its daemon has told so far."""
        found = []
        for line in (self.home / "log").read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def listens(self) -> set[str]:
        """Addresses and ports that something listens on there, as `ss` names them."""
        lines = self.shell("ss -H -l -t -u -n | awk '{print $1, $5}'").splitlines()
        return {line.strip() for line in lines}

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End the daemon by its id."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, how)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        self.process = None


class Lab:
    """A switch and the machines behind it."""

    def __init__(self) -> None:
        self.prefix = f"br{os.getpid() % 100_000}{next(_labs)}"
        self.base = Path(tempfile.mkdtemp(prefix="brn", dir="/tmp"))
        self.boxes: list[Box] = []
        self._switch = f"{self.prefix}sw"
        self._spaces: list[str] = []
        self._space(self._switch)
        self._ip(self._switch, "link add br0 type bridge")
        self._ip(self._switch, "link set br0 up")

    def add(self, count: int = 1, **settings: str) -> list[Box]:
        """Put machines on the switch."""
        made = []
        for _ in range(count):
            box = Box(self, len(self.boxes) + 1, **settings)
            self._space(box.space)
            port = f"p{len(self.boxes) + 1}"
            self._ip(box.space, f"link add eth0 type veth peer name {port} netns {self._switch}")
            self._ip(self._switch, f"link set {port} master br0 up")
            self._ip(box.space, "link set lo up")
            self._ip(box.space, f"addr add {box.address}/24 dev eth0")
            self._ip(box.space, "link set eth0 up")
            self.boxes.append(box)
            made.append(box)
        return made

    def _space(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._spaces.append(name)

    @staticmethod
    def _ip(space: str, line: str) -> None:
        subprocess.run(["ip", "-n", space, *line.split()], check=True)

    def close(self) -> None:
        """End every daemon, and take the networks away."""
        for box in self.boxes:
            box.stop()
        for name in self._spaces:
            subprocess.run(["ip", "netns", "del", name], check=False)
        shutil.rmtree(self.base, ignore_errors=True)


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """A lab that is gone afterwards."""
    made = Lab()
    try:
        yield made
    finally:
        made.close()


# --- clusters with keys ---------------------------------------------------------------------------


def token_of(admin: Box, *options: str) -> str:
    """A fresh token, as `token create` prints it for programs."""
    words = ("token", "create", "--uses", "16", "--json", *options)
    return str(admin.run(*words).json()["token"])


def present(box: Box) -> list[str]:
    """The nodes that box sees alive."""
    said = box.run("nodes", "--json")
    if said.code:
        return []
    rows = json.loads(said.out)["nodes"]
    return sorted(row["name"] for row in rows if row["state"] == "alive")


def started(boxes: list[Box], **settings: str) -> None:
    """Start the daemons, and wait until each answers its own machine."""
    for box in boxes:
        box.start(**settings)
    for box in boxes:
        until(box.serves, f"daemon on {box.name}")


def closed(room: Lab, count: int, **settings: str) -> list[Box]:
    """So many machines in one cluster, all in sight of the first."""
    boxes = room.add(count, **settings)
    join_all(boxes)
    return boxes


def join_all(boxes: list[Box]) -> None:
    """Start these machines, and make one cluster of them with the two commands."""
    started(boxes)
    first, *others = boxes
    assert first.run("init").code == 0
    until(first.serves, "the first node anew")
    token = token_of(first)
    for box in others:
        said = box.run("join", token)
        assert said.code == 0, said.err
    names = sorted(box.name for box in boxes)
    until(lambda: present(first) == names, "whole cluster")
