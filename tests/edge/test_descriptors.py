"""Open files: the limit is raised, and running out of them is said; how fast boxes are made."""

from __future__ import annotations

import resource
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blackroad import starting
from blackroad.bus import boxes
from blackroad.bus.sockets import BACKLOG
from blackroad.starting import Descriptors

pytestmark = pytest.mark.edge

RAISED = """
import resource
from blackroad.starting import raise_descriptor_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
assert raise_descriptor_limit() == 200
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 200)
assert raise_descriptor_limit() == 200
"""


class Log:
    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def error(self, name: str, **facts: Any) -> None:
        self.said.append((name, facts))


def test_the_limit_is_raised_as_far_as_it_goes() -> None:
    subprocess.run([sys.executable, "-c", RAISED], check=True, timeout=60)


def test_running_out_is_said_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    log, watch = Log(), Descriptors()
    now_ms = [1_000_000]
    monkeypatch.setattr(starting, "boot_ms", lambda: now_ms[0])
    watch.look(log)
    assert log.said == []
    used = watch.told()["used"]
    assert used > 2
    full = used * 100 // starting.DESCRIPTORS_ALARM_PERCENT
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (full, full))
    for _ in range(3):
        watch.look(log)
    assert [name for name, _ in log.said] == ["daemon.descriptors"]
    assert log.said[0][1]["limit"] == full
    now_ms[0] += starting.ALARM_MS
    watch.look(log)
    assert len(log.said) == 2


def test_few_may_wait_while_descriptors_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    log, watch, now_ms, limit = Log(), Descriptors(), [1_000_000], [10**9]
    queues: list[int] = []
    monkeypatch.setattr(starting, "boot_ms", lambda: now_ms[0])
    monkeypatch.setattr(starting, "queue_at_most", queues.append)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (limit[0], limit[0]))

    def look(limit_: int, later_ms: int = 0) -> list[int]:
        limit[0] = limit_
        now_ms[0] += later_ms
        watch.look(log)
        return queues

    assert look(10**9) == []
    used = watch.told()["used"]
    assert look(used) == look(used) == [starting.SHORT_QUEUE]
    assert look(10**9, starting.SHORT_MS - 1) == [starting.SHORT_QUEUE], "not at the first room"
    assert look(10**9, 1) == look(10**9) == [starting.SHORT_QUEUE, BACKLOG]


def test_only_sockets_that_listen_for_tcp_get_another_queue(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as tcp,
        socket.socket(socket.AF_UNIX) as local,
        socket.create_connection(tcp.getsockname()),
    ):
        local.bind(str(tmp_path / "local"))
        local.listen(64)
        assert _queue_length(tcp) == 64
        assert starting.queue_at_most(1) >= 1
        assert _queue_length(tcp) == 1
        tcp.accept()[0].close()


def _queue_length(listens: socket.socket) -> int:
    """How many may wait there, as the kernel tells it of a socket that listens."""
    told = listens.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
    return int(struct.unpack_from("=I", told, 28)[0])


def test_the_speed_of_boxes_is_measured_or_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import zmq

    zmq.curve_keypair()
    boxes.bytes_per_second.cache_clear()
    assert boxes.bytes_per_second() > 1_000_000
    boxes.bytes_per_second.cache_clear()
    monkeypatch.setattr(boxes, "MAPS", tmp_path / "none")
    assert boxes.bytes_per_second() == 0
    boxes.bytes_per_second.cache_clear()
