"""Who gets in: judges every newcomer for ZeroMQ, and every multipart by the key it came with.

Source  docs/security.md; RFC 27 (ZAP).  Edge.  The member list says who belongs; this file applies
it, counts whom it turned away, and attacks its own sockets before they serve.  It must not know
what any message means.
"""

from __future__ import annotations

import socket as plain
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from blackroad.bus.members import Role
from blackroad.bus.sockets import (
    DOOR_DOMAIN,
    MESH_DOMAIN,
    Bus,
    Poller,
    Socket,
    connect,
    connected,
    drain,
    failed_handshakes,
    plain_address,
    send,
)
from blackroad.errors import EnvironmentProblem

if TYPE_CHECKING:
    from blackroad.bus.members import Member, MemberList

ADDRESSES_MAX: Final = 256
OTHERS: Final = "others"
# Handshakes at the door, from one address and from everywhere.
DOOR_PER_ADDRESS: Final = 30
DOOR_IN_ALL: Final = 300
DOOR_WINDOW_MS: Final = 60_000
ATTACK_MS: Final = 3_000
SETTLE_MS: Final = 300
CONNECTIONS_MAX: Final = 65_536
_ADMITTED: Final = b"200"
# Not 400, after which a ZeroMQ client never tries again, though it may be admitted meanwhile.
_NOT_NOW: Final = b"300"
_ZMTP_GREETING: Final = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0")


class Refusals:
    """How often somebody was turned away, by kind and by address; bounded, whoever comes."""

    def __init__(self) -> None:
        self.total = 0
        self.by_kind: dict[str, int] = {}
        self.by_address: dict[str, int] = {}
        self.last = ""

    def count(self, kind: str, address: str = "") -> None:
        """Somebody was turned away; an empty address is not known."""
        self.total += 1
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        if address:
            self.last = address
            full = len(self.by_address) >= ADDRESSES_MAX
            if full and address not in self.by_address:
                address = OTHERS
            self.by_address[address] = self.by_address.get(address, 0) + 1

    def told(self) -> dict[str, object]:
        """All of it as plain data, addresses with the most first."""
        most = sorted(self.by_address.items(), key=lambda one: (-one[1], one[0]))
        return {"total": self.total, "kinds": dict(self.by_kind), "addresses": dict(most[:32])}


class _Rate:
    """How many came within a window, from each address and in all."""

    def __init__(self) -> None:
        self._began_ms = 0
        self._all = 0
        self._by_address: dict[str, int] = {}

    def admits(self, address: str, now_ms: int) -> bool:
        if now_ms - self._began_ms >= DOOR_WINDOW_MS:
            self._began_ms, self._all = now_ms, 0
            self._by_address.clear()
        self._all += 1
        if self._all > DOOR_IN_ALL:
            return False
        count = self._by_address.get(address, 0) + 1
        self._by_address[address] = count
        return count <= DOOR_PER_ADDRESS


class _Target(NamedTuple):
    """A listening socket of one's own, as an attacker sees it."""

    what: str
    host: str
    port: int
    listens: bool
    door: bool


class Guard:
    """Judges newcomers and knows whose key is whose; serves only while its loop does."""

    def __init__(
        self,
        bus: Bus,
        own_key: bytes,
        members: MemberList,
        clock: Callable[[], int],
        wall: Callable[[], int],
    ) -> None:
        self.members = members
        self.refusals = Refusals()
        self.asked = 0
        self.judge = bus.judge()
        self._bus = bus
        self._own_key = own_key
        self._clock = clock
        self._wall = wall
        self._wall_ms = wall()
        self._rate = _Rate()
        self._monitors: dict[str, Socket] = {}
        # By connection: where it comes from, and why it failed.
        self._accepted: dict[int, str] = {}
        self._reasons: dict[str, str] = {}
        self._targets: dict[str, _Target] = {}
        self._refused_keys: set[bytes] = set()
        self._attacking = False
        self._own_failures = 0

    # --- whose key is whose -----------------------------------------------------------------------

    def member(self, key: bytes) -> Member | None:
        """Who has that key; None for a stranger, and for whoever was revoked or has expired."""
        return self.members.by_key(key, self._wall_ms)

    def node_with(self, key: bytes) -> bytes:
        """The node that speaks with that key; b"" for anybody who is none."""
        member = self.members.by_key(key, self._wall_ms)
        return member.node if member is not None and member.role >= Role.NODE else b""

    def key_of(self, node: bytes) -> bytes:
        """The key with which that node answers; b"" where it must not be spoken to."""
        member = self.members.of_node(node)
        if member is None or self.node_with(member.key) != node:
            return b""
        return member.key

    def keys_for(self, node: bytes) -> list[bytes]:
        """Keys that may be behind an address of that node, of anybody for b""."""
        if node:
            key = self.key_of(node)
            return [key] if key else []
        return self.members.node_keys()

    # --- newcomers --------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look at the clock of people, by which members expire."""
        self._wall_ms = self._wall()

    def serve(self) -> None:
        """Judge everybody who waits for it; without this nobody gets in."""
        for frames in drain(self.judge, ADDRESSES_MAX * 4):
            if len(frames) < 9 or frames[2] != b"1.0":
                continue
            self.asked += 1
            route, empty, version, request, domain, address = frames[:6]
            # Mechanism and credentials follow the routing id of the newcomer, which means nothing.
            key = frames[8] if frames[7] == b"CURVE" else b""
            told = plain_address(address.decode("ascii", "replace"))
            admitted = self._admits(domain, key, told)
            status, user = (_ADMITTED, key.hex().encode()) if admitted else (_NOT_NOW, b"")
            send(self.judge, [route, empty, version, request, status, b"", user, b""])

    def _admits(self, domain: bytes, key: bytes, address: str) -> bool:
        if domain == MESH_DOMAIN:
            if self.member(key) is not None:
                return True
            if self._attacking:
                self._refused_keys.add(key)
            else:
                self.refusals.count("key", address)
            return False
        if domain == DOOR_DOMAIN and key:
            if self._rate.admits(address, self._clock()):
                return True
            self.refusals.count("door", address)
        return False

    def turned_away(self, kind: str, address: str = "") -> None:
        """Somebody who had got in was not listened to."""
        self.refusals.count(kind, address)

    # --- sockets under guard ----------------------------------------------------------------------

    def watch(
        self,
        what: str,
        socket: Socket,
        host: str,
        port: int,
        *,
        listens: bool = False,
        door: bool = False,
    ) -> Socket:
        """Guard a listening socket; return what becomes readable when a handshake failed there.

        Call it before the socket is bound anywhere else: it is attacked at `host` and `port`.
        """
        self.unwatch(what)
        self._targets[what] = _Target(what, _reached(host), port, listens, door)
        monitor = self._monitors[what] = self._bus.watch_handshakes(socket)
        return monitor

    def unwatch(self, what: str) -> Socket | None:
        """That socket is closed; return what was watched for it."""
        self._targets.pop(what, None)
        monitor = self._monitors.pop(what, None)
        if monitor is not None:
            self._bus.drop(monitor)
        return monitor

    def monitors(self) -> list[Socket]:
        """All that `read_failures` reads."""
        return list(self._monitors.values())

    def read_failures(self) -> None:
        """Count handshakes that failed before anybody was asked: no key, a wrong one, silence."""
        for what, monitor in self._monitors.items():
            for event, number in failed_handshakes(monitor):
                if event == "accepted":
                    if len(self._accepted) < CONNECTIONS_MAX:
                        self._accepted[number] = _peer_of(number)
                elif event == "failed":
                    self._reasons[what] = _REASONS.get(number, "handshake")
                else:
                    address = self._accepted.pop(number, "")
                    kind = self._reasons.pop(what, "")
                    if self._attacking:
                        self._own_failures += kind in ("mechanism", "handshake")
                    elif kind and kind != "asked":
                        self.refusals.count(kind, address)

    # --- the attack on oneself --------------------------------------------------------------------

    def attack(self) -> None:
        """Try to get into every guarded socket with no key and with an unknown one.

        Raises  EnvironmentProblem where that succeeds, or where the judge was not even asked.
        """
        self._attacking = True
        try:
            for target in self._targets.values():
                if _answers_without_key(target):
                    raise _open(target, "somebody without a key")
                if not target.door:
                    self._attack_with_key(target)
            self._await_own_failures()
        finally:
            self._attacking = False
            self._refused_keys.clear()

    def _await_own_failures(self) -> None:
        """What this attack left on the monitors must not be counted as somebody else's."""
        self._own_failures = 0
        until_ms = self._clock() + SETTLE_MS
        poller = Poller()
        for monitor in self._monitors.values():
            poller.watch(monitor)
        while self._own_failures < len(self._targets):
            left_ms = until_ms - self._clock()
            if left_ms <= 0:
                return
            poller.wait(left_ms)
            self.read_failures()

    def _attack_with_key(self, target: _Target) -> None:
        stranger, key = self._bus.stranger(self._own_key, listens=target.listens)
        monitor = self._bus.monitor(stranger)
        poller = Poller()
        poller.watch(self.judge)
        poller.watch(monitor)
        try:
            connect(stranger, f"tcp://{target.host}:{target.port}")
            until_ms = self._clock() + ATTACK_MS
            denied = ended = False
            while not (denied and ended):
                left_ms = until_ms - self._clock()
                if left_ms <= 0:
                    break
                poller.wait(left_ms)
                self.serve()
                for there in connected(monitor):
                    if there:
                        raise _open(target, "somebody with a key that nobody knows")
                    ended = ended or key in self._refused_keys
                if key in self._refused_keys and not denied:
                    # ZeroMQ may take its time to hang up; to let somebody in it takes none.
                    denied = True
                    until_ms = min(until_ms, self._clock() + SETTLE_MS)
        finally:
            self._bus.drop(monitor)
            self._bus.drop(stranger)
        if not denied:
            raise EnvironmentProblem(
                f"nobody judges who connects to {target.what} (port {target.port}): the daemon "
                "does not serve like this",
                hint="is a packet filter in the way of this machine's own loopback? `ss -ltnp` "
                "shows who listens there; if all looks right, report it",
            )


# Anything else is "handshake": whoever it was hung up first.
_REASONS: Final = {
    11: "silence",  # EAGAIN: the time for the handshake was over
    0x11000001: "server_key",
    0x11000002: "mechanism",
    300: "asked",  # counted when the judge said no
}


def _open(target: _Target, who: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{who} got into {target.what} (port {target.port}): the daemon does not serve like this",
        hint="do not expose this machine; reinstall pyzmq (`pip install --force-reinstall pyzmq`), "
        "and report it if that does not help",
    )


def _reached(host: str) -> str:
    """Where this machine itself reaches what listens there."""
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"[{host}]" if ":" in host else host


def _peer_of(fd: int) -> str:
    """Where that connection comes from; empty where it is gone already."""
    try:
        one = plain.socket(fileno=fd)
    except OSError:
        return ""
    try:
        name = one.getpeername()
    except OSError:
        return ""
    finally:
        # It belongs to ZeroMQ.
        one.detach()
    return plain_address(str(name[0])) if isinstance(name, tuple) else ""


def _answers_without_key(target: _Target) -> bool:
    """Speak as a client without security; did anything come back beyond the greeting?"""
    kind = b"SUB" if target.listens else b"DEALER"
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    said = _ZMTP_GREETING.ljust(64, b"\0") + bytes((4, len(body))) + body
    received = 0
    there = (target.host.strip("[]"), target.port)
    try:
        with plain.create_connection(there, ATTACK_MS / 1000) as one:
            one.settimeout(ATTACK_MS / 1000)
            one.sendall(said)
            while received <= 64:
                part = one.recv(256)
                if not part:
                    return False
                received += len(part)
    except OSError:
        return False
    return True
