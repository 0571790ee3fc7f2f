"""What a service manager is told, and what it may tell."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackroad import service
from tests.edge.meshes import Mesh

pytestmark = pytest.mark.edge

WAIT_S = 30.0


class Manager:
    """A service manager's end of the notification socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.address = address
        self.told: list[str] = []

    def wait(self, text: str, count: int = 1) -> None:
        """Wait until that was told so often."""
        deadline = time.monotonic() + WAIT_S
        while self.told.count(text) < count:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{text} was not told: {self.told}"
            if select.select([self.socket], [], [], left_s)[0]:
                self.told.append(self.socket.recv(4096).decode())

    def silent(self) -> bool:
        return not select.select([self.socket], [], [], 0)[0]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, mesh: Mesh) -> Iterator[Manager]:
    path = request.param == "path"
    one = Manager(str(mesh.base / "notify") if path else f"@{mesh.mark}")
    yield one
    one.socket.close()


def test_a_daemon_tells_its_life(mesh: Mesh, manager: Manager) -> None:
    daemon = mesh.add("one", NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="2000000")
    manager.wait("READY=1")
    assert daemon.serves(), "ready means that clients are served"
    manager.wait("WATCHDOG=1", count=2)
    assert manager.told[0] == "READY=1"
    daemon.end(signal.SIGTERM)
    manager.wait("STOPPING=1")
    assert manager.told[-1] == "STOPPING=1"
    assert set(manager.told) == {"READY=1", "WATCHDOG=1", "STOPPING=1"}
    assert manager.silent()


def test_a_daemon_that_cannot_start_is_never_ready(mesh: Mesh, manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        daemon = mesh.add("one", NOTIFY_SOCKET=manager.address, BLACKROAD_PORT=port)
        assert daemon.exits() == 5
    assert manager.silent()


def test_a_watchdog_of_another_process_is_not_ours(
    mesh: Mesh, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert service.watchdog_ms() == 5_000
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert service.watchdog_ms() == 0
    monkeypatch.delenv("WATCHDOG_PID")
    assert service.watchdog_ms() == 5_000
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert service.watchdog_ms() == 0
    monkeypatch.delenv("WATCHDOG_USEC")
    assert service.watchdog_ms() == 0


def test_tasks_cannot_speak_for_their_daemon(mesh: Mesh, manager: Manager) -> None:
    daemon = mesh.add("one", NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="60000000")
    manager.wait("READY=1")
    with daemon.client() as client:
        seen = client.submit(lambda: dict(os.environ)).result(WAIT_S)
    assert "NOTIFY_SOCKET" not in seen
    assert not [name for name in seen if name.startswith("WATCHDOG_")]


def test_nobody_to_tell_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not service.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not service.notify("READY=1")


def test_signals_wake_the_loop_and_are_given_back() -> None:
    asked: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    signals = service.Signals(lambda: asked.append(True))
    signals.install()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([signals.fd], [], [], WAIT_S)[0]
        signals.read()
        assert asked == [True]
        assert not select.select([signals.fd], [], [], 0)[0]
    finally:
        signals.close()
    assert signal.getsignal(signal.SIGTERM) is before
