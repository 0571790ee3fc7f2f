"""A node is revoked while it works: when it is cut, everywhere, and what becomes of its work."""

from __future__ import annotations

import select
import threading
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq
import zmq.utils.monitor

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.client import Client, TaskFuture
from tests.abuse.cluster import Attacker, Cluster, keys_of
from tests.abuse.rows import row
from tests.edge.meshes import Daemon, until

CUT_S_MAX: Final = 2.0
ASK_S: Final = 0.002
LOOK_S: Final = 3.0
LEASE_S: Final = 5
# As many as three nodes have slots.
TASKS: Final = 6
HEADER: Final = codec.encode_header(0, 1)
REPLY: Final = m.Reply.__struct_config__.tag


def held(here: str, go: str) -> str:
    """Say on which node this runs, wait for the file `go`, and say it again."""
    import os

    from blackroad.runtime.context import current

    context = current()
    node = context.node if context else ""
    with open(here, "a") as file:
        file.write(f"{node}\n")
    while not os.path.exists(go):
        select.select([], [], [], 0.02)
    return node


class Ear(threading.Thread):
    """The keys of a member at one daemon: asks all the time, and hears its telemetry."""

    def __init__(self, attacker: Attacker, there: Daemon, cluster: Cluster, who: Daemon) -> None:
        super().__init__(daemon=True)
        ports, server, pair = cluster.addresses(there), keys_of(there)[1], keys_of(who)
        self._ask = _socket(attacker, zmq.DEALER, server, pair)
        self._ask.connect(f"tcp://127.0.0.1:{ports['port']}")
        self._hear = _socket(attacker, zmq.SUB, server, pair)
        self._hear.set(zmq.SUBSCRIBE, b"")
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self._monitor = self._hear.get_monitor_socket(events)
        self._hear.connect(f"tcp://127.0.0.1:{ports['telemetry_port']}")
        self._ended = threading.Event()
        # When the last question was said that was answered, when something was heard last, and
        # when the telemetry hung up; on the clock of `time.monotonic`.
        self.answered_at = self.heard_at = self.hung_up_at = 0.0
        self.came_back = False
        self.asked = 0

    def run(self) -> None:
        """Ask and hear until the end."""
        said: dict[int, float] = {}
        poller = zmq.Poller()
        for socket in (self._ask, self._hear, self._monitor):
            poller.register(socket, zmq.POLLIN)
        while not self._ended.is_set():
            self.asked += 1
            said[self.asked] = time.monotonic()
            question = m.Query(self.asked, b"", "nodes", b"\x80")
            self._ask.send_multipart([HEADER, codec.frame_of([codec.encode(question)])])
            ready = dict(poller.poll(int(1000 * ASK_S)))
            if self._ask in ready:
                self._take(said)
            if self._hear in ready:
                while self._hear.poll(0):
                    self._hear.recv_multipart()
                    self.heard_at = time.monotonic()
            if self._monitor in ready:
                event = zmq.utils.monitor.recv_monitor_message(self._monitor)["event"]
                # It goes on trying to come back, and each try ends alike.
                if event == zmq.EVENT_DISCONNECTED and not self.hung_up_at:
                    self.hung_up_at = time.monotonic()
                self.came_back |= bool(self.hung_up_at) and event != zmq.EVENT_DISCONNECTED

    def _take(self, said: dict[int, float]) -> None:
        while self._ask.poll(0):
            for frame in self._ask.recv_multipart()[1:]:
                for one in msgspec.msgpack.decode(frame):
                    if one[0] == REPLY and not one[6]:
                        self.answered_at = max(self.answered_at, said.pop(one[1], 0.0))

    def works(self) -> bool:
        """Is it answered, and does it hear something?"""
        return bool(self.answered_at and self.heard_at)

    def end(self) -> None:
        """Be silent."""
        self._ended.set()
        self.join(10)


def _socket(attacker: Attacker, kind: int, server: bytes, pair: tuple[bytes, bytes]) -> Any:
    socket: zmq.Socket[bytes] = attacker.context.socket(kind)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.CURVE_SECRETKEY, pair[0])
    socket.set(zmq.CURVE_PUBLICKEY, pair[1])
    socket.set(zmq.CURVE_SERVERKEY, server)
    return socket


class Work:
    """Tasks on all nodes that end when they are let, and on which node each ran."""

    def __init__(self, client: Client, place: Path) -> None:
        self._here, self._go = place / "here", place / "go"
        self.futures: list[TaskFuture] = [
            client.submit(held, str(self._here), str(self._go)) for _ in range(TASKS)
        ]

    def ran_on(self) -> list[str]:
        """The node of each start so far."""
        return self._here.read_text().split() if self._here.exists() else []

    def let_go(self) -> None:
        """Have them all end."""
        self._go.touch()


@row("revoke", "a node is revoked while it works")
def revoked() -> str:
    cluster, attacker = Cluster(BLACKROAD_LEASE=f"{LEASE_S}s"), Attacker()
    ears: list[Ear] = []
    try:
        barn = cluster.join("barn")
        client = cluster.mesh.client(cluster.gate)
        work = Work(client, cluster.mesh.base)
        until(lambda: len(work.ran_on()) == TASKS, "all tasks running")
        lost = work.ran_on().count("barn")
        assert lost, "the node that is to be revoked has nothing to do"
        for there in (cluster.gate, cluster.shed):
            ears.append(Ear(attacker, there, cluster, barn))
            ears[-1].start()
        until(lambda: all(ear.works() for ear in ears), "a member that is heard")
        ordered_at = time.monotonic()
        client._ask("cluster.revoke", {"what": "barn", "replaced": False})
        answered_at = time.monotonic()
        # What it says of its tasks from now on counts for nothing.
        work.let_go()
        select.select([], [], [], LOOK_S)
        for ear in ears:
            ear.end()
        cuts = [_cut(ear, ordered_at) for ear in ears]
        results = [future.result(60) for future in work.futures]
        assert "barn" not in results, f"a result of the revoked node was taken: {results}"
        again = len(work.ran_on()) - TASKS
        assert again == lost, f"{lost} attempts were lost, {again} issued again"
        names = ("the node that was told", "the one that heard of it")
        told = "; ".join(
            f"{name}: last answer {1000 * asked:.0f} ms, telemetry {1000 * heard:.0f} ms"
            for name, (asked, heard) in zip(names, cuts, strict=True)
        )
        return (
            f"order answered after {1000 * (answered_at - ordered_at):.0f} ms; after the order, "
            f"{told}; {ears[0].asked + ears[1].asked} questions in all; {lost} of its results "
            f"refused, {again} attempts issued again elsewhere"
        )
    finally:
        for ear in ears:
            ear.end()
        attacker.close()
        cluster.close()


def _cut(ear: Ear, ordered_at: float) -> tuple[float, float]:
    """When that daemon last answered, and when its telemetry was cut, after the order."""
    asked, heard = ear.answered_at - ordered_at, ear.hung_up_at - ordered_at
    last = ear.heard_at - ordered_at
    assert asked < CUT_S_MAX, f"a question was answered {asked:.2f} s after the order"
    assert ear.hung_up_at, "its telemetry was not cut"
    assert not ear.came_back, "it got in again"
    assert max(heard, last) < CUT_S_MAX, f"telemetry was heard {max(heard, last):.2f} s after it"
    return max(0.0, asked), max(0.0, heard, last)
