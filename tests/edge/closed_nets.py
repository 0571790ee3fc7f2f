"""A cluster with keys inside one process: a root, members of every role, and closed speakers."""

from __future__ import annotations

import time
from typing import Any

import zmq
import zmq.utils.monitor

from blackroad.bus import keys, members
from blackroad.bus.guard import Guard
from blackroad.bus.keys import NodeKeys
from blackroad.bus.members import Member, MemberList, Role
from blackroad.bus.sockets import Bus, Socket, key_pair
from blackroad.bus.transport import Identity, Transport, closed_cluster_digest
from blackroad.ids import incarnation, node_id_from_key
from tests.edge.transports import Net, Raw, Speaker


def new_keys() -> NodeKeys:
    """The keys of a node that belongs nowhere yet."""
    curve = key_pair()
    return NodeKeys(node_id_from_key(curve[1]), *curve, *keys.new_signing())


class Shelf:
    """One cluster: its root and all records that were ever signed."""

    def __init__(self) -> None:
        self.root_secret, self.root_public = keys.new_signing()
        self.cluster_id = keys.fingerprint(self.root_public)
        self.records: list[members.Record] = []
        self.lists: list[MemberList] = []
        self._serial = 0

    def member_list(self) -> MemberList:
        """A list that hears of all records, those to come as well."""
        one = MemberList(self.root_public)
        one.merge(self.records, 1)
        self.lists.append(one)
        return one

    def sign(self, own: NodeKeys, role: Role, **changes: Any) -> Member:
        """Say something of a key, everywhere."""
        self._serial += 1
        fields: dict[str, Any] = {
            "node": own.node,
            "key": own.curve_public,
            "sign_key": own.sign_public,
            "role": role,
            "name": f"m{self._serial}",
            "serial": self._serial,
            "issued_ms": 1,
            "expires_ms": 0,
            "revoked": False,
            "invite": b"",
            "replaces": b"",
        }
        member = Member(**{**fields, **changes})
        record = members.signed(member, self.root_public, self.root_secret, self.root_public)
        self.records.append(record)
        for one in self.lists:
            one.merge([record], 1)
        return member

    def admit(self, role: Role, own: NodeKeys | None = None) -> NodeKeys:
        """Make somebody a member, a new one if none is named."""
        own = own or new_keys()
        self.sign(own, role)
        return own

    def revoke(self, own: NodeKeys, role: Role = Role.NODE) -> None:
        """End a membership."""
        self.sign(own, role, revoked=True)


class ClosedSpeaker(Speaker):
    """One node's transport behind its guard."""

    def __init__(self, net: ClosedNet, own: NodeKeys, counter: int) -> None:
        self.own = own
        self.node = own.node
        # Each life has a chance of its own in it, as in a real one.
        self.inc = incarnation(counter, 0x5EED + counter)
        self.heard, self.clients, self.beats, self.met, self.refused = [], [], [], [], []
        self._net = net
        self.serves = True
        self.bus = Bus(own)
        self.list = net.shelf.member_list()
        self.guard = Guard(
            self.bus, own.curve_public, self.list, net.now_ms, lambda: time.time_ns() // 1_000_000
        )
        cluster = closed_cluster_digest(net.shelf.cluster_id)
        identity = Identity(self.node, self.inc, own.node.hex()[:6], cluster)
        self.transport = Transport(self.bus, identity, "127.0.0.1", 0, 0, 0, self.guard)
        self.transport.endpoints = (f"tcp://127.0.0.1:{self.transport.port}",)
        self.transport.on_met = lambda *met: self.met.append(met)
        self.transport.on_refused = lambda _node, reject: self.refused.append(reject)
        one = self.transport
        watch = self.guard.watch
        watch("the inbox", one.inbox, "127.0.0.1", one.port)
        watch("telemetry", one.telemetry.publisher, "127.0.0.1", one.telemetry_port, listens=True)
        watch("the bulk port", one.bulk, "127.0.0.1", one.bulk_port)

    def waited_for(self) -> list[Socket]:
        """What its loop waits for; whoever is stuck answers no newcomer."""
        return [self.transport.inbox, *([self.guard.judge] if self.serves else [])]

    def turn(self) -> None:
        """What a daemon does in one turn of its loop."""
        if self.serves:
            self.guard.serve()
            self.guard.read_failures()
        super().turn()

    @property
    def refusals(self) -> dict[str, int]:
        """Whom its guard turned away, by kind."""
        return self.guard.refusals.by_kind


class ClosedNet(Net):
    """Closed speakers of one cluster on loopback."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()
        self.strangers: list[Stranger] = []

    def node(
        self, own: NodeKeys | None = None, *, role: Role = Role.NODE, counter: int = 1
    ) -> ClosedSpeaker:
        """Start a life of a node, of a new member if none is named."""
        own = own if own is not None else self.shelf.admit(role)
        one = ClosedSpeaker(self, own, counter)
        self.speakers.append(one)
        return one

    def stranger(
        self, port: int, server_key: bytes, own: tuple[bytes, bytes] | None, kind: int = zmq.DEALER
    ) -> Stranger:
        """Connect like that to a port of this machine; `own` is (secret, public), None no keys."""
        one = Stranger(port, server_key, own, kind)
        self.strangers.append(one)
        return one

    def close(self) -> None:
        """End everything."""
        for one in self.strangers:
            one.close()
        super().close()


class Stranger(Raw):
    """Somebody with whatever keys, who connects and sees what comes of it."""

    def __init__(
        self, port: int, server_key: bytes, own: tuple[bytes, bytes] | None, kind: int
    ) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.HANDSHAKE_IVL, 500)
        self.socket.set(zmq.RECONNECT_IVL, 50)
        if kind == zmq.SUB:
            self.socket.set(zmq.SUBSCRIBE, b"")
        else:
            self.socket.set(zmq.IMMEDIATE, 1)
        if own is not None:
            self.socket.set(zmq.CURVE_SECRETKEY, own[0])
            self.socket.set(zmq.CURVE_PUBLICKEY, own[1])
            self.socket.set(zmq.CURVE_SERVERKEY, server_key)
        watched = (
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_DISCONNECTED
        )
        self._monitor = self.socket.get_monitor_socket(watched)
        self._monitor.set(zmq.LINGER, 0)
        self.events: list[int] = []
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def look(self) -> list[int]:
        """All that became of its connections so far."""
        while self._monitor.poll(0):
            event = zmq.utils.monitor.recv_monitor_message(self._monitor)["event"]
            self.events.append(int(event))
        return self.events

    @property
    def inside(self) -> bool:
        """Did it ever get in?"""
        return int(zmq.EVENT_HANDSHAKE_SUCCEEDED) in self.look()

    @property
    def turned_away(self) -> bool:
        """Did a connection of it end without ever getting in?"""
        return bool(self.look()) and not self.inside

    def close(self) -> None:
        """Hang up."""
        self.socket.disable_monitor()
        self._monitor.close()
        self.socket.close()
        self._context.term()
