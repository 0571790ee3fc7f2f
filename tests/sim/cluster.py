"""A cluster in one process: true time, a heap of events, machines, clients, and a history.

Everything that happens is decided by one seed.  This file must not know which faults a seed
draws (`swarm.py`) nor what must hold (`checkers.py`).
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from blackroad import node as n
from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.router import effects as e
from blackroad.store.verdicts import NOBODY
from tests.sim.checkers import Observer
from tests.sim.clients import Client
from tests.sim.links import Links
from tests.sim.machine import Machine, Plan
from tests.sim.network import BULK, CALM, DIRECT, TELEMETRY, Network, Weather
from tests.sim.words import Names

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.decode
UNKNOWN_KIND = 0x7E
NEWER_FIELDS = (7, b"newer", ["field", None])


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
        batches: bool = False,
        greets: bool = False,
        links: bool = False,
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
        # How long the tasks of a bundle may run together; -1 is what a daemon does.
        self.bundle_us = -1
        # Do messages of one turn to one peer leave together?  Do lives greet each other, and a
        # starting one before it serves?
        self.batches = batches or links
        self.greets = greets or links
        # Real links, with sessions and sequences?
        self.links = links
        self.greets_first = False
        # Are messages of lives that are over dropped, as sessions do it?
        self.strict = False
        self.observer = Observer(self)
        self.digest = 0
        self.events = 0
        self.flip_permille = 0
        self.bulk_loss_permille = 0
        self.flush_ms_max = 5
        self.kill_ms_max = 900
        self.unseen_permille = 0
        self.faults_blamed = 0
        self.shuns = 0
        # Tasks of which a journal lost a row, and said so.
        self.damaged: set[bytes] = set()
        self.unknown_kinds = 0
        self._wire = wire
        self._listen = listen
        self.listens = listen is not None
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    # --- time -------------------------------------------------------------------------------------

    def at(self, when: int, call: Callable[..., None], *args: Any) -> None:
        """Do something at a true time."""
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, call, args))

    def run(self, until: int, stop: Callable[[], bool] | None = None, every: int = 64) -> bool:
        """Let time pass; return whether `stop` came true, looking after so many events."""
        heap = self._heap
        pop = heapq.heappop
        count = 0
        while heap and heap[0][0] <= until:
            when, _, call, args = pop(heap)
            self.now = when
            call(*args)
            count += 1
            if stop is not None and count % every == 0 and stop():
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

    def add_clone(self, of: Machine) -> Machine:
        """A second machine with a copy of the disk of another one, id and all; it is off."""
        clone = Machine(
            self,
            len(self.machines),
            of.name + "x",
            of.id,
            of.slots,
            labels=dict(of.caps.labels),
            priority=of.priority,
            speed=of.speed,
            version=of.version,
        )
        clone.disk = of.disk.image()
        self.machines.append(clone)
        return clone

    def add_client(self, machine: Machine, session: bytes = b"") -> Client:
        """A program on that machine."""
        handle = f"client{len(self.clients)}".encode()
        client = Client(self, machine, handle, session or self.rng.randbytes(16))
        self.clients[handle] = client
        self.observer.sessions[client.session] = client
        return client

    def tried_again(self, machine: Machine, old: bytes, new: bytes) -> None:
        """Somebody orders that an ended task is tried again under a new id."""
        truth = self.observer.tasks[old]
        self.plans[new] = self.plans[old]
        self.names.tasks[new] = self.names.task(old) + "'"
        submit = m.Submit(truth.session, truth.spec, None, True, True, (m.Item(new, b""),))
        self.observer.submitted(machine.index, truth.session, submit)

    def plan(self, task: bytes) -> Plan:
        """What a task does when it runs."""
        return self.plans[task]

    # --- messages ---------------------------------------------------------------------------------

    def send(self, source: Machine, to: bytes, message: m.Message) -> None:
        """Put a message on the direct link."""
        self.send_all(source, to, (message,))

    def send_all(self, source: Machine, to: bytes, messages: Sequence[m.Message]) -> None:
        """Put what one turn produced for one peer on the direct link, in one piece."""
        target = source.routed(to)
        if target is None:
            if to == NOBODY:
                # A damaged journal's attempt on a node that nobody knows any more.
                return
            self.broken("address", f"{source.name} sends to nobody")
            return
        if to in source.lives.shunned:
            return
        if isinstance(source.lives, Links):
            source.lives.send(to, messages)
            return
        if self._wire:
            messages = self._carried(codec.PEER, messages, source.version)
        node = source.node
        inc = node.inc if node is not None else 0
        event = n.FromPeer(source.id, messages, inc)
        self.carry(source, target, messages, target.from_peer, event)

    def carry(
        self,
        source: Machine,
        target: Machine,
        messages: Sequence[m.Message],
        arrive: Callable[..., None],
        *what: Any,
    ) -> None:
        """Let the network decide when, and how often, one multipart arrives."""
        network = self.network
        link = (source.index, target.index, DIRECT)
        copies = network.copies(*link)
        if copies and network.weather.bytes_per_ms:
            size = sum(len(_encode(message)) for message in messages) + 24
            wait_ms = network.line_ms(*link, size, self.now)
            copies = tuple(wait_ms + one for one in copies) if wait_ms >= 0 else ()
        elif not copies and network.weather.kept_max and not network.connected(*link):
            network.keep(*link, (target, arrive, what))
        if self._listen is not None:
            lost = "" if copies else "   (lost)"
            for message in messages:
                text = self.names.message(message)
                self._write(f"{source.name} -> {target.name}  {text}{lost}")
        for delay_ms in copies:
            self.at(self.now + delay_ms, arrive, *what)

    def pour(self) -> None:
        """What sockets kept while a cut lasted leaves now, all at once."""
        delay_ms = self.network.weather.delay_ms
        for _, kept in self.network.take_kept():
            for _, arrive, what in kept:
                self.at(self.now + delay_ms, arrive, *what)

    def greet(
        self, source: Machine, target: Machine, arrive: Callable[..., None], *lives: int
    ) -> None:
        """One greeting on its way: from which machine, its life, and the life it knows."""
        for delay_ms in self.network.copies(source.index, target.index, DIRECT):
            self.at(self.now + delay_ms, target.driver, arrive, source, *lives)

    def publish(self, source: Machine, beat: m.Heartbeat) -> None:
        """Send a Heartbeat to every subscriber."""
        if self._wire:
            (beat,) = self._carried(codec.TELEMETRY, (beat,), source.version)
        event = n.Heard(beat)
        network = self.network
        mine = source.index
        arrivals: dict[int, list[Machine]] = {}
        for target in self.machines:
            if target is source or target.node is None:
                continue
            for delay_ms in network.copies(mine, target.index, TELEMETRY):
                arrivals.setdefault(delay_ms, []).append(target)
        for delay_ms, targets in arrivals.items():
            self.at(self.now + delay_ms, _hear, targets, event)

    def bulk(self, source: Machine, target: Machine, size: int) -> tuple[int, ...]:
        """After how long each copy of an object's part arrives."""
        network = self.network
        link = (source.index, target.index, BULK)
        copies = network.copies(*link)
        loss = self.bulk_loss_permille
        if loss and self.rng.random() * 1000 < loss:
            return ()
        if copies and network.weather.bytes_per_ms:
            wait_ms = network.line_ms(*link, size, self.now)
            return tuple(wait_ms + one for one in copies) if wait_ms >= 0 else ()
        return copies

    def tell(self, source: Machine, handle: bytes, message: m.Message) -> None:
        """Put a message on a client's connection."""
        client = self.clients[handle]
        if self._wire:
            (message,) = self._carried(codec.OWNER, (message,), source.version)
        if self._listen is not None:
            self._write(f"{source.name} => client  {self.names.message(message)}")
        # A connection keeps the order, however slowly its end is read.
        client.read_ms = max(client.read_ms, self.now + 1 + client.slow_ms)
        self.at(client.read_ms, client.hear, message)

    def wire_client(self, message: m.Message) -> m.Message:
        """What a client's message looks like after its way through the codec."""
        return self._carried(codec.CLIENT, (message,), 1)[0] if self._wire else message

    def _carried(self, scope: codec.Scope, messages: Sequence[Any], version: int) -> list[Any]:
        """Encode, decode and compare messages, as a wire would; newer senders say more."""
        encoded = [self.spoken(message, version) for message in messages]
        if version > 1:
            encoded.insert(self.rng.randrange(len(encoded) + 1), unknown_message(self.rng))
        found, unknown = scope.decode(codec.frame_of(encoded))
        if unknown != (version > 1) or found != list(messages):
            raise Broken("wire", f"{messages!r} came back as {found!r}")
        self.unknown_kinds += unknown
        return found

    def spoken(self, message: m.Message, version: int) -> bytes:
        """One message as a node of that version writes it: fields are only ever appended."""
        data = codec.encode(message)
        if version > 1:
            fields = _decode(data)
            fields.extend(NEWER_FIELDS[: self.rng.randrange(1, 1 + len(NEWER_FIELDS))])
            data = _encode(fields)
        return data

    # --- chance -----------------------------------------------------------------------------------

    def flush_ms(self) -> int:
        """How long the next flush takes."""
        return self.rng.randrange(1, self.flush_ms_max + 1)

    def kill_ms(self) -> int:
        """How long the next kill takes."""
        return self.rng.randrange(0, self.kill_ms_max + 1)

    def flips(self) -> bool:
        """Does a bit of this chunk turn on its way?"""
        chance = self.flip_permille
        return bool(chance) and self.rng.random() * 1000 < chance

    def acknowledges_ended(self) -> bool:
        """Does the client say Seen this time?"""
        chance = self.unseen_permille
        return not chance or self.rng.random() * 1000 >= chance

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


def unknown_message(rng: Random) -> bytes:
    """What only a newer version says."""
    return _encode([UNKNOWN_KIND, rng.randrange(2**31), b"?"])


def _hear(targets: list[Machine], event: n.Heard) -> None:
    for target in targets:
        if isinstance(target.lives, Links):
            target.lives.heard(event.beat.node, event.beat.inc)
        target.feed(event)
