"""A cluster in one process: true time, a heap of events, machines, clients, and a history.

Everything that happens is decided by one seed.  This file must not know which faults a seed
draws (`swarm.py`) nor what must hold (`checkers.py`).
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from blackroad import node as n
from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.router import effects as e
from tests.sim.checkers import Observer
from tests.sim.clients import Client
from tests.sim.machine import Machine, Plan
from tests.sim.network import CALM, DIRECT, TELEMETRY, Network, Weather
from tests.sim.words import Names

_encode = msgspec.msgpack.encode


class Broken(Exception):
    """A promise was broken; `rule` names the invariant."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text


class Cluster:
    """One history."""

    # R-life-1: what an earlier life left is killed before a daemon serves.
    kill_leftovers = True

    def __init__(
        self,
        seed: int,
        *,
        weather: Weather = CALM,
        heartbeat_ms: int = 0,
        wire: bool = False,
        listen: Callable[[str], None] | None = None,
    ) -> None:
        self.rng = Random(seed)
        self.now = 0
        self.network = Network(self.rng, weather)
        self.machines: list[Machine] = []
        self.by_id: dict[bytes, Machine] = {}
        self.clients: dict[bytes, Client] = {}
        self.plans: dict[bytes, Plan] = {}
        self.names = Names()
        self.heartbeat_ms = heartbeat_ms
        self.observer = Observer(self)
        self.digest = 0
        self.events = 0
        self.fetch_failure_permille = 0
        self.flush_ms_max = 5
        self.kill_ms_max = 900
        self.unseen_permille = 0
        self.faults_blamed = 0
        self._wire = wire
        self._listen = listen
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    # --- time -------------------------------------------------------------------------------------

    def at(self, when: int, call: Callable[..., None], *args: Any) -> None:
        """Do something at a true time."""
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, call, args))

    def run(self, until: int, stop: Callable[[], bool] | None = None) -> bool:
        """Let time pass; return whether `stop` came true."""
        heap = self._heap
        count = 0
        while heap and heap[0][0] <= until:
            when, _, call, args = heapq.heappop(heap)
            self.now = when
            call(*args)
            count += 1
            if stop is not None and count % 64 == 0 and stop():
                self.events += count
                return True
        self.now = max(self.now, until)
        self.events += count
        return stop is not None and stop()

    # --- people and machines ----------------------------------------------------------------------

    def add_machine(self, name: str, slots: int, node_id: bytes = b"", **more: Any) -> Machine:
        """Put one more machine on the shelf; it is off."""
        index = len(self.machines)
        machine = Machine(self, index, name, node_id or self.rng.randbytes(16), slots, **more)
        self.machines.append(machine)
        self.by_id[machine.id] = machine
        self.names.nodes[machine.id] = name
        return machine

    def add_client(self, machine: Machine) -> Client:
        """A program on that machine."""
        handle = f"client{len(self.clients)}".encode()
        client = Client(self, machine, handle, self.rng.randbytes(16))
        self.clients[handle] = client
        self.observer.sessions[client.session] = client
        return client

    def plan(self, task: bytes) -> Plan:
        """What a task does when it runs."""
        return self.plans[task]

    # --- messages ---------------------------------------------------------------------------------

    def send(self, source: Machine, to: bytes, message: m.Message) -> None:
        """Put a message on the direct link."""
        target = self.by_id.get(to)
        if target is None:
            self.broken("address", f"{source.name} sends to nobody")
            return
        if self._wire:
            message = _through(codec.PEER, message)
        copies = self.network.copies(source.index, target.index, DIRECT)
        node = source.node
        inc = node.inc if node is not None else 0
        if self._listen is not None:
            lost = "" if copies else "   (lost)"
            line = f"{source.name} -> {target.name}  {self.names.message(message)}{lost}"
            self._write(line)
        for delay_ms in copies:
            event = n.FromPeer(source.id, (message,), inc)
            self.at(self.now + delay_ms, target.feed, event)

    def publish(self, source: Machine, beat: m.Heartbeat) -> None:
        """Send a Heartbeat to every subscriber."""
        if self._wire:
            beat = _through(codec.TELEMETRY, beat)
        for target in self.machines:
            if target is source:
                continue
            for delay_ms in self.network.copies(source.index, target.index, TELEMETRY):
                self.at(self.now + delay_ms, target.feed, n.Heard(beat))

    def tell(self, source: Machine, handle: bytes, message: m.Message) -> None:
        """Put a message on a client's connection."""
        client = self.clients[handle]
        if self._wire:
            message = _through(codec.OWNER, message)
        if self._listen is not None:
            self._write(f"{source.name} => client  {self.names.message(message)}")
        self.at(self.now + 1, client.hear, message)

    def wire_client(self, message: m.Message) -> m.Message:
        """What a client's message looks like after its way through the codec."""
        return _through(codec.CLIENT, message) if self._wire else message

    # --- chance -----------------------------------------------------------------------------------

    def flush_ms(self) -> int:
        """How long the next flush takes."""
        return self.rng.randrange(1, self.flush_ms_max + 1)

    def kill_ms(self) -> int:
        """How long the next kill takes."""
        return self.rng.randrange(0, self.kill_ms_max + 1)

    def fetch_fails(self) -> bool:
        """Does this try at an object fail?"""
        chance = self.fetch_failure_permille
        return bool(chance) and self.rng.random() * 1000 < chance

    def acknowledges_ended(self) -> bool:
        """Does the client say Seen this time?"""
        chance = self.unseen_permille
        return not chance or self.rng.random() * 1000 >= chance

    def client_has(self, handle: bytes, digest: bytes) -> bool:
        """Can a client still hand over that object?"""
        client = self.clients.get(handle)
        return client is not None and client.alive and digest in client.objects

    # --- the history ------------------------------------------------------------------------------

    def remember(self, machine: Machine, event: n.AnyEvent, now_ms: int) -> None:
        """Fold one event into the hash of the history."""
        head = b"%d %d %d " % (self.now, machine.index, now_ms)
        self.digest = zlib.crc32(_encode(event), zlib.crc32(head, self.digest))

    def told(self, text: str) -> None:
        """Write a line of the history."""
        if self._listen is not None:
            self._write(text)

    def noted(self, machine: Machine, note: e.Note) -> None:
        """Write a node's own note."""
        if self._listen is not None:
            self._write(f"{machine.name} note  {note.name}")

    def _write(self, text: str) -> None:
        if self._listen is not None:
            self._listen(f"{self.now:>9}  {text}")

    def broken(self, rule: str, text: str) -> None:
        """A promise is broken: stop here."""
        raise Broken(rule, f"{text} (at {self.now} ms)")


def _through(scope: codec.Scope, message: Any) -> Any:
    """Encode, decode and compare one message, as a wire would."""
    found, unknown = scope.decode(codec.frame_of([codec.encode(message)]))
    if unknown or found != [message]:
        raise Broken("wire", f"{message!r} came back as {found!r}")
    return found[0]
