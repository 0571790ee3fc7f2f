"""Machines in networks of their own: a daemon each, and everything that can happen to one.

Processes are ended by their id or as members of their machine's group, never by a name.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from blackroad.client import Client
from blackroad.errors import BlackroadError
from tests.chaos import places
from tests.chaos.wires import Wires
from tests.chaos.work import append, true_boot_ms

WAIT_S = 40.0
REPOSITORY = Path(__file__).resolve().parents[2]
T = TypeVar("T")


class NotInTime(AssertionError):
    """Something that had to happen did not."""


def until(ask: Callable[[], T], what: str, limit_s: float = WAIT_S) -> T:
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
    raise NotInTime(f"no {what} within {limit_s:g} s; the last answer was {last!r}"[:600])


class Machine:
    """One machine: its network, its group, its disk, its daemon."""

    def __init__(self, lab: Lab, number: int, name: str, settings: dict[str, str]) -> None:
        self.lab = lab
        self.number = number
        self.name = name
        self.address = f"10.77.0.{number + 1}"
        self.home = lab.base / name
        self.state = self.home / "state"
        self.runtime = self.home / "run"
        self.log_file = self.home / "log"
        self.group = lab.group / name if lab.group else None
        self.lives = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.home.mkdir(mode=0o700)
        if self.group:
            self.group.mkdir()
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("BLACKROAD_", "PYTEST_", "NOTIFY_", "WATCHDOG_", "CHAOS_"))
        }
        self.environ = kept | {
            "PYTHONPATH": str(REPOSITORY),
            "BLACKROAD_NAME": name,
            "BLACKROAD_CLUSTER": "chaos",
            "BLACKROAD_LISTEN": self.address,
            "BLACKROAD_INSECURE_OPEN": "true",
            "BLACKROAD_STATE_DIR": str(self.state),
            "BLACKROAD_RUNTIME_DIR": str(self.runtime),
            "BLACKROAD_CACHE_DIR": str(self.home / "cache"),
            "BLACKROAD_MDNS": "false",
            "BLACKROAD_OPENCL": "off",
            "BLACKROAD_SLOTS": "4",
            "BLACKROAD_MEMORY": "16GiB",
            "BLACKROAD_LOG_FORMAT": "json",
            **settings,
        }

    # --- its daemon -------------------------------------------------------------------------------

    def start(self, **settings: str) -> None:
        """Start the daemon; return at once."""
        self.environ |= settings
        others = [one.address for one in self.lab.machines if one is not self]
        self.environ.setdefault("BLACKROAD_PEERS", ",".join(others))
        join = f"echo $$ > {self.group}/cgroup.procs && " if self.group else ""
        enter = f"nsenter --net={places.NETNS / self.name}"
        line = f"{join}exec {enter} {sys.executable} -m blackroad node"
        self.lives += 1
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", line],
                cwd=self.home,
                env=self.environ,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """The daemon alone."""
        assert self.process is not None
        return self.process.pid

    def lives_on(self) -> bool:
        """Whether the daemon's process is there."""
        return self.process is not None and self.process.poll() is None

    def serves(self) -> bool:
        """Whether this life of it serves; an early end is told with its log."""
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            raise NotInTime(f"{self.name} ended with {code}:\n{self.log()[-2000:]}")
        with contextlib.suppress(OSError, ValueError):
            told = json.loads((self.runtime / "daemon.json").read_text())
            return bool(told["pid"] == self.pid)
        return False

    def client(self, user: str = "chaos", submit_timeout: float = 60.0) -> Client:
        """A client of this daemon, as soon as it serves."""
        until(self.serves, f"`{self.name}` serving")
        socket = f"ipc://{self.runtime / 'client.sock'}"
        return Client(socket, user=user, connect_timeout=WAIT_S, submit_timeout=submit_timeout)

    def kill(self) -> None:
        """SIGKILL to the daemon alone; its supervisor and its tasks see to themselves."""
        self._signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(timeout=WAIT_S)

    def stop(self) -> None:
        """SIGSTOP to the daemon alone."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT to the daemon alone."""
        self._signal(signal.SIGCONT)

    def end(self) -> int:
        """Ask the daemon to end; return its exit code."""
        self._signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(timeout=WAIT_S)

    def _signal(self, number: int) -> None:
        if self.lives_on():
            os.kill(self.pid, number)

    # --- the machine ------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Every process stands still."""
        if self.group is None:
            self._signal_all(signal.SIGSTOP)
        elif (self.group / "freezer.state").exists():
            state = self.group / "freezer.state"
            state.write_text("FROZEN")
            until(lambda: state.read_text().strip() == "FROZEN", "frozen machine")
        else:
            (self.group / "cgroup.freeze").write_text("1")
            events = self.group / "cgroup.events"
            until(lambda: "frozen 1" in events.read_text(), "frozen machine")

    def thaw(self) -> None:
        """Every process goes on."""
        if self.group is None:
            self._signal_all(signal.SIGCONT)
        elif (self.group / "freezer.state").exists():
            (self.group / "freezer.state").write_text("THAWED")
        else:
            (self.group / "cgroup.freeze").write_text("0")

    def power_off(self) -> None:
        """Every process is gone at once; what is on the disk stays."""
        deadline = time.monotonic() + WAIT_S
        self.freeze()
        pids = self.processes()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.thaw()
        while self.processes() and time.monotonic() < deadline:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        if self.process is not None:
            self.process.wait(timeout=WAIT_S)

    def processes(self) -> list[int]:
        """The ids of all living processes of this machine."""
        found = set()
        if self.group is not None:
            for place in (self.group, *self.group.glob("**/")):
                with contextlib.suppress(OSError):
                    found |= set(map(int, (place / "cgroup.procs").read_text().split()))
        elif self.lives_on():
            found = set(_descendants(self.pid)) | {self.pid}
        return sorted(pid for pid in found if _lives(pid))

    def _signal_all(self, number: int) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # --- what it says -----------------------------------------------------------------------------

    def log(self) -> str:
        """All it wrote, over all its lives."""
        return self.log_file.read_text("utf-8", "replace") if self.log_file.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it logged under that name."""
        found = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and row.get("event") == name:
                    found.append(row)
        return found

    def rss_bytes(self) -> int:
        """What the daemon alone keeps in memory; 0 where it is gone."""
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        return 0


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))


class Lab:
    """Some machines, the cables between them, and the file in which everything is written."""

    def __init__(self, seed: int) -> None:
        base = os.environ[places.BASE]
        self.base = Path(base) / f"{len(os.listdir(base))}"
        group = os.environ.get(places.GROUP)
        self.group = Path(group) / self.base.name if group else None
        self.seed = seed
        self.machines: list[Machine] = []
        self.clients: list[Client] = []
        self.wires: Wires | None = None
        self.faults: list[tuple[str, Machine | None]] = []
        self.base.mkdir()
        (self.base / "locks").mkdir()
        if self.group:
            self.group.mkdir()

    @property
    def place(self) -> str:
        """Where tasks write."""
        return str(self.base)

    @property
    def wire(self) -> Wires:
        """The cables, once there are machines."""
        assert self.wires is not None
        return self.wires

    def add(self, name: str, **settings: str) -> Machine:
        """One more machine, not yet started."""
        made = {f"BLACKROAD_{key.upper()}": value for key, value in settings.items()}
        machine = Machine(self, len(self.machines), name, made)
        self.machines.append(machine)
        return machine

    def start(self) -> None:
        """Plug the machines in, switch them on, wait until they are one mesh."""
        devices = [f"tap{one.number}" for one in self.machines]
        self.wires = Wires(devices, self.seed)
        lines = []
        for one, device in zip(self.machines, devices, strict=True):
            _ip("netns", "add", one.name)
            _ip("link", "set", device, "netns", one.name)
            lines = [
                f"link set dev {device} name eth0 address 02:00:00:00:00:{one.number:02x}",
                f"addr add {one.address}/24 dev eth0",
                "link set dev eth0 up",
                "link set dev lo up",
            ]
            _ip("-n", one.name, "-batch", "-", given="\n".join(lines))
        # Who claims stays coordinator, however good a candidate comes later; a hub is added first.
        self.machines[0].start()
        until(self.machines[0].serves, "first machine")
        for one in self.machines[1:]:
            one.start()
        self.settled()

    def client(self, machine: Machine, user: str = "chaos", submit_timeout: float = 60.0) -> Client:
        """A client that is closed when the lab ends."""
        made = machine.client(user, submit_timeout)
        self.clients.append(made)
        return made

    def settled(self, *machines: Machine, limit_s: float = WAIT_S) -> None:
        """Wait until these see each other alive and follow one coordinator."""
        everybody = machines or tuple(self.machines)
        names = {one.name for one in everybody}
        clients = [one.client() for one in everybody]
        try:
            until(lambda: _agree([one.nodes() for one in clients], names), "one mesh", limit_s)
        finally:
            for one in clients:
                one.close()

    def fault(self, name: str, machine: Machine | None = None, frozen: bool = False) -> int:
        """Write down that something is done to a machine, now; return when."""
        return self._wrote("fault", name, machine, frozen)

    def heal(self, name: str, machine: Machine | None = None, frozen: bool = False) -> int:
        """Write down that it is over."""
        return self._wrote("heal", name, machine, frozen)

    def _wrote(self, what: str, name: str, machine: Machine | None, frozen: bool) -> int:
        now_ms = true_boot_ms()
        node = machine.name if machine is not None else "*"
        event = {"what": what, "name": name, "node": node, "frozen": frozen, "boot_ms": now_ms}
        append(f"{self.place}/history", event)
        return now_ms

    def close(self) -> None:
        """End every process of the lab, unplug it, remove what it wrote."""
        for client in self.clients:
            with contextlib.suppress(Exception):
                client.close()
        for one in self.machines:
            with contextlib.suppress(OSError):
                one.thaw()
            one.power_off()
        if self.wires is not None:
            self.wires.close()
        for one in self.machines:
            if (places.NETNS / one.name).exists():
                _ip("netns", "delete", one.name)
            with contextlib.suppress(OSError):
                if one.group is not None:
                    one.group.rmdir()
        if self.group is not None:
            with contextlib.suppress(OSError):
                self.group.rmdir()

    def remove(self) -> None:
        """Take the directory away, too."""
        shutil.rmtree(self.base, ignore_errors=True)
        # Its number stays taken: the next lab gets another one.
        self.base.mkdir(exist_ok=True)


def _ip(*words: str, given: str = "") -> None:
    done = subprocess.run(["ip", *words], input=given, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _agree(views: list[dict[str, Any]], names: set[str]) -> bool:
    coordinators = {view["coordinator"] for view in views}
    alive = [{row["name"] for row in v["nodes"] if row["state"] == "alive"} for v in views]
    known = [all(row["arch"] for row in v["nodes"] if row["state"] == "alive") for v in views]
    return (
        len(coordinators) == 1
        and None not in coordinators
        and all(names <= one for one in alive)
        and all(known)
    )
