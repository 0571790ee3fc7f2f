"""What is tried, one function a row: figures in words, or an AssertionError."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final

import zmq

from tests.abuse.cluster import MIB, Attacker, Cluster, Watch, keys_of, raise_own_files
from tests.abuse.silent import Silent

Row = Callable[[], str]
ROWS: Final[dict[str, tuple[str, Row]]] = {}

SILENT: Final = 10_000
STAND_S: Final = 30.0
HONEST_S_MAX: Final = 1.0
FEW_FILES: Final = 128
TRIES: Final = 20


def row(number: str, title: str) -> Callable[[Row], Row]:
    """Give a row its number and its title."""

    def note(run: Row) -> Row:
        ROWS[number] = (title, run)
        return run

    return note


def _honest_handshake(cluster: Cluster, attacker: Attacker) -> float:
    """How long a member waits for a new connection to the gate."""
    server = keys_of(cluster.gate)[1]
    port = cluster.addresses(cluster.gate)["port"]
    took = attacker.handshake_s(port, server=server, pair=keys_of(cluster.shed), limit_s=10)
    assert took is not None, "an honest member got no connection within 10 s"
    return took


@row("35", "10,000 silent connections for 30 s")
def silent_connections() -> str:
    room = raise_own_files(SILENT + 500)
    count = min(SILENT, room - 300)
    cluster, attacker = Cluster(), Attacker()
    try:
        calm = cluster.works()
        watch = Watch(cluster.gate.pid)
        port = cluster.addresses(cluster.gate)["port"]
        with Silent(port, count) as silent:
            assert silent.wait(0.8, 60), f"only {silent.most} of {count} connections stood"
            watch.cpu_percent()
            handshakes, tasks = [], []
            deadline = time.monotonic() + STAND_S
            while time.monotonic() < deadline:
                handshakes.append(_honest_handshake(cluster, attacker))
                tasks.append(cluster.works())
                watch.look()
            cpu = watch.cpu_percent()
            most, made = silent.most, silent.made
        assert max(handshakes) < HONEST_S_MAX, f"a member waited {max(handshakes):.2f} s"
        return (
            f"{most} stood at once ({made} made in all); a member's new connection "
            f"{1000 * max(handshakes):.0f} ms at worst of {len(handshakes)}; a small task "
            f"{max(tasks):.2f} s, calm {calm:.2f} s; RSS +{watch.grown_mib():.0f} MiB, "
            f"daemon {cpu:.0f} % of a core"
        )
    finally:
        attacker.close()
        cluster.close()


@row("36", "descriptors used up: 128 allowed, 400 silent connections")
def descriptors_used_up() -> str:
    cluster, attacker = Cluster(), Attacker()
    try:
        watch = Watch(cluster.gate.pid)
        used = len(os.listdir(f"/proc/{cluster.gate.pid}/fd"))
        limit = max(FEW_FILES, used + 24)
        import resource

        resource.prlimit(cluster.gate.pid, resource.RLIMIT_NOFILE, (limit, limit))
        port = cluster.addresses(cluster.gate)["port"]
        watch.cpu_percent()
        with Silent(port, 400) as silent:
            silent.wait(0.9, 10)
            end = time.monotonic() + 10
            while time.monotonic() < end:
                silent.wait(2.0, 0.5)
                watch.look()
            busy = watch.cpu_percent()
            meanwhile = [_honest_handshake(cluster, attacker) for _ in range(TRIES)]
        began = time.monotonic()
        _honest_handshake(cluster, attacker)
        back = time.monotonic() - began
        cluster.works()
        alarms = len(cluster.gate.events("daemon.descriptors"))
        assert alarms, "nobody was told that the descriptors ran out"
        return (
            f"limit {limit}; {busy:.0f} % of a core meanwhile; a member got in after "
            f"{max(meanwhile):.1f} s at worst of {TRIES}, {sorted(meanwhile)[TRIES // 2]:.1f} s as "
            f"a rule, and {back:.1f} s after it ended; told {alarms} times"
        )
    finally:
        attacker.close()
        cluster.close()


@row("37", "a frame of 1 GB before the handshake")
def huge_frame() -> str:
    cluster = Cluster()
    try:
        told, grown = [], 0.0
        for name, port in cluster.addresses(cluster.gate).items():
            watch = Watch(cluster.gate.pid)
            sent = _push(port, 300 * MIB, watch)
            grown = max(grown, watch.grown_mib())
            told.append(f"{name} cut after {sent / MIB:.1f} MiB")
        cluster.works()
        assert grown < 16, f"the daemon grew by {grown:.0f} MiB"
        return f"{', '.join(told)}; RSS +{grown:.1f} MiB"
    finally:
        cluster.close()


def _push(port: int, most: int, watch: Watch) -> int:
    """Speak ZMTP as far as its greeting, then announce a gigabyte and send what is taken."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=3) as one:
        mechanism = b"NULL".ljust(20, b"\0")
        one.sendall(b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + mechanism + bytes(32))
        one.sendall(b"\x02" + struct.pack(">Q", 1 << 30))
        block = bytes(MIB)
        try:
            while sent < most:
                sent += one.send(block)
                watch.look()
        except OSError:
            pass
    watch.look()
    return sent


@row("38", "wrong key, no key, a password, on every port")
def strangers() -> str:
    cluster, attacker = Cluster(), Attacker()
    try:
        server = keys_of(cluster.gate)[1]
        tries = accepted = 0
        for name, port in cluster.addresses(cluster.gate).items():
            kind = zmq.SUB if name == "telemetry_port" else zmq.DEALER
            pair = zmq.curve_keypair()
            made_up = (pair[1], pair[0])
            ways: list[dict[str, Any]] = [
                {"server": server, "pair": made_up},
                {"server": made_up[1], "pair": keys_of(cluster.shed)},
                {},
                {"plain": True},
            ]
            for how in ways:
                tries += 1
                took = attacker.handshake_s(port, kind=kind, limit_s=1.5, **how)
                accepted += took is not None
        assert not accepted, f"{accepted} of {tries} were let in"
        cluster.works()
        return f"{tries} ways tried, {accepted} let in"
    finally:
        attacker.close()
        cluster.close()


@row("60", "before keys exist: what listens beyond loopback")
def before_keys() -> str:
    import psutil

    from tests.edge.meshes import Mesh

    mesh = Mesh()
    try:
        fresh = mesh.add("fresh", BLACKROAD_LISTEN="", BLACKROAD_PEERS="")
        fresh.wait()
        found = [
            one.laddr.ip
            for one in psutil.Process(fresh.pid).net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        ]
        open_ = [ip for ip in found if not ip.startswith("127.") and ip not in ("::1",)]
        open_ = [ip for ip in open_ if not ip.startswith("::ffff:127.")]
        assert found, "it does not listen at all"
        assert not open_, f"it listens on {open_}"
        return f"{len(found)} sockets, all on loopback"
    finally:
        mesh.close()
