"""A closed cluster of two real daemons on loopback, and the sockets of whoever attacks it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import zmq
import zmq.utils.monitor
import zmq.utils.z85

from tests.edge.meshes import Daemon, Mesh, answered, command, until

PORTS = ("port", "telemetry_port", "bulk_port")
MIB = 1 << 20


class Cluster:
    """An admin `gate` and a node `shed`, joined with a token."""

    def __init__(self, **settings: str) -> None:
        self.mesh = Mesh(BLACKROAD_LISTEN="127.0.0.1", BLACKROAD_JOIN_PORT="0", **settings)
        self.gate = self.mesh.add("gate", BLACKROAD_PEERS="")
        before = self.gate.wait()["started_ms"]
        answered(self.gate, "init")
        # Files answer as well: a token has to name the door of the life that has the keys.
        until(lambda: self.gate.facts()["started_ms"] != before, "the gate's next life")
        until(lambda: self.has_keys(self.gate), "the gate's keys in use")
        self.token = str(answered(self.gate, "token", "create", "--uses", "8")["token"])
        self._names = ["gate"]
        self.shed = self.join("shed")

    def join(self, name: str) -> Daemon:
        """Let one more machine join, and wait until it is in sight of all."""
        one = self.mesh.add(name, BLACKROAD_PEERS="")
        one.wait()
        answered(one, "join", self.token)
        self._names = sorted([*self._names, name])
        for daemon in self.mesh.daemons:
            until(lambda there=daemon: self.names(there) == self._names, f"{name} in sight")
        return one

    @staticmethod
    def has_keys(daemon: Daemon) -> bool:
        """Does that daemon serve, with its cluster's keys?"""
        return daemon.serves() and command(daemon, "members", "--json").returncode == 0

    @staticmethod
    def names(daemon: Daemon) -> list[str]:
        """The nodes it sees alive."""
        rows = answered(daemon, "nodes")["nodes"]
        return sorted(row["name"] for row in rows if row["state"] == "alive")

    def works(self) -> float:
        """Seconds that a small task from one node to the other takes."""
        began = time.monotonic()
        done = command(self.gate, "submit", "--wait", "--node", "shed", "--", "true")
        assert done.returncode == 0, done.stderr
        return time.monotonic() - began

    def addresses(self, daemon: Daemon) -> dict[str, int]:
        """The TCP ports of a daemon, by what they are for."""
        facts = daemon.facts()
        inbox = int(str(facts["endpoints"][0]).rpartition(":")[2])
        return {
            "port": inbox,
            "telemetry_port": int(facts["telemetry_port"]),
            "bulk_port": int(facts["bulk_port"]),
        }

    def close(self) -> None:
        """End both."""
        self.mesh.close()


def keys_of(daemon: Daemon) -> tuple[bytes, bytes]:
    """The CURVE pair of a node as ZeroMQ takes it: (secret, public), Z85."""
    path = Path(daemon.environ["BLACKROAD_STATE_DIR"]) / "identity.json"
    stored = json.loads(path.read_text("ascii"))
    secret, public = bytes.fromhex(stored["secret_key"]), bytes.fromhex(stored["public_key"])
    return zmq.utils.z85.encode(secret), zmq.utils.z85.encode(public)


class Attacker:
    """Raw ZeroMQ sockets with any keys or none."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def handshake_s(
        self,
        port: int,
        *,
        kind: int = zmq.DEALER,
        server: bytes = b"",
        pair: tuple[bytes, bytes] | None = None,
        plain: bool = False,
        limit_s: float = 3.0,
    ) -> float | None:
        """Connect; return how long the handshake took, None where there was none in time."""
        socket: zmq.Socket[bytes] = self.context.socket(kind)
        socket.set(zmq.LINGER, 0)
        if kind == zmq.SUB:
            socket.set(zmq.SUBSCRIBE, b"")
        if plain:
            socket.set(zmq.PLAIN_USERNAME, b"admin")
            socket.set(zmq.PLAIN_PASSWORD, b"admin")
        if pair is not None:
            secret, public = pair
            socket.set(zmq.CURVE_SECRETKEY, secret)
            socket.set(zmq.CURVE_PUBLICKEY, public)
            socket.set(zmq.CURVE_SERVERKEY, server)
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        began = time.monotonic()
        socket.connect(f"tcp://127.0.0.1:{port}")
        took = time.monotonic() - began if monitor.poll(int(limit_s * 1000)) else None
        socket.disable_monitor()
        monitor.close(0)
        socket.close(0)
        return took

    def close(self) -> None:
        """Leave."""
        self.context.destroy(0)


class Watch:
    """Memory and processor time of one process, from one moment to another."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.rss_before = self._process.memory_info().rss
        self.rss_most = self.rss_before
        self._cpu = self._cpu_s()
        self._began = time.monotonic()

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def look(self) -> None:
        """Weigh it."""
        self.rss_most = max(self.rss_most, self._process.memory_info().rss)

    def grown_mib(self) -> float:
        """How much more it has weighed than before, at most."""
        return (self.rss_most - self.rss_before) / MIB

    def cpu_percent(self) -> float:
        """Share of one core since the beginning, or since the last time that this was asked."""
        now, used = time.monotonic(), self._cpu_s()
        share = 100 * (used - self._cpu) / max(0.001, now - self._began)
        self._began, self._cpu = now, used
        return share


def raise_own_files(wanted: int) -> int:
    """Allow this process so many descriptors, as far as the system lets it; return how many."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.geteuid() == 0 and hard < wanted:
        hard = wanted
    soft = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
