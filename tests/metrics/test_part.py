"""What a daemon serves: tokens, pages that are made once a second, health, targets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blackroad.bus import messages as m
from blackroad.capabilities import encode
from blackroad.config import Config
from blackroad.errors import ConfigError
from blackroad.events import VOCABULARY, Event
from blackroad.metrics.part import Around, Metrics, names_of, read_token
from blackroad.metrics.rules import Answer
from blackroad.node import FromPeer, Heard, Node, Space, Tick
from tests.metrics.reading import read, value, values
from tests.metrics.test_gather import EDGES, opened
from tests.metrics.test_tally import ended
from tests.unit.builders import ME, PEER, beat, caps

pytestmark = pytest.mark.edge

TOKEN = "0123456789abcdef"


class Bench:
    """Metrics of a node, with the clock of the test; `looks` counts looks at the edges."""

    def __init__(self, **changes: Any) -> None:
        self.now_ms = 10_000
        self.looks = 0
        self.told: list[tuple[str, dict[str, Any]]] = []
        config = Config(metrics_port=0, name="attic", **changes)
        self.metrics = Metrics(config, lambda: self.now_ms)
        self.node: Node = opened(metrics=self.metrics.said)

    def open(self) -> Bench:
        self.metrics.open(Around(self.node, self._edges, self._hosts, self._tell))
        return self

    def _edges(self) -> dict[str, Any]:
        self.looks += 1
        return EDGES

    def _hosts(self, node: bytes) -> list[str]:
        return ["127.0.0.1"] if node == ME else ["192.168.1.6"]

    def _tell(self, name: str, **facts: Any) -> None:
        self.told.append((name, facts))

    def get(self, path: str, **headers: str) -> Answer:
        given = {"Host": "127.0.0.1", **headers}
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {text}" for name, text in given.items())]
        answer, _ = self.metrics._server._routes.answer("\r\n".join(lines).encode())
        return answer

    def lead(self) -> None:
        """Let the node become its own coordinator."""
        for now_ms in range(0, 5_000, 50):
            self.node.handle(Tick(), now_ms)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench().open()
    yield made
    made.metrics.close()


def test_before_the_node_serves_there_is_nothing_to_tell() -> None:
    bench = Bench()
    for path in ("/metrics", "/health", "/sd"):
        assert bench.get(path).code == 503
    bench.metrics.close()


def test_a_page_is_made_once_a_second(bench: Bench) -> None:
    first = bench.get("/metrics")
    bench.metrics.ended([ended(1)])
    bench.now_ms += 999
    assert bench.get("/metrics").body is first.body
    assert bench.looks == 1
    bench.now_ms += 1
    second = read(bench.get("/metrics").body)
    assert bench.looks == 2
    assert values(second, "blackroad_tasks_by_name_total") == {("f", "done"): 1}
    assert value(second, "blackroad_series") == len(read(first.body))
    assert value(second, "blackroad_page_seconds") > 0
    assert value(second, "blackroad_series_cut") == 0


def test_health_says_what_is_wrong(bench: Bench) -> None:
    answer = bench.get("/health")
    assert (answer.code, json.loads(answer.body)["problems"]) == (503, ["no coordinator"])
    bench.lead()
    answer = bench.get("/health")
    told = json.loads(answer.body)
    assert (answer.code, told["status"], told["problems"]) == (200, "ok", [])
    bench.node.handle(Space(True), 6_000)
    answer = bench.get("/health")
    assert answer.code == 503
    assert json.loads(answer.body)["problems"] == ["no room in the state directory"]


def test_a_peer_that_serves_figures_is_in_the_list_until_it_leaves(bench: Bench) -> None:
    def targets() -> list[str]:
        rows = json.loads(bench.get("/sd").body)
        return sorted(target for row in rows for target in row["targets"])

    mine = bench.metrics.said
    assert targets() == [mine]
    bench.node.handle(Heard(beat(PEER)), 1_000)
    body = encode(caps("shed", metrics="0.0.0.0:7710"))
    bench.node.handle(FromPeer(PEER, (m.Capabilities(PEER, 1, b"d" * 16, body),)), 1_000)
    both = sorted([mine, "192.168.1.6:7710"])
    assert targets() == both
    for now_ms in range(1_000, 60_000, 500):
        bench.node.handle(Tick(), now_ms)
    assert targets() == both, "a node that is lost has to be seen as down"
    bench.node.handle(Heard(beat(PEER, stamp_ms=60_000)), 60_000)
    inc = bench.node.membership.peers[PEER].inc
    bench.node.handle(FromPeer(PEER, (m.Goodbye(inc),)), 60_100)
    assert targets() == [mine]


def test_who_was_refused_is_told_once_a_minute(bench: Bench) -> None:
    bench.metrics._server.codes[401] = 3
    bench.metrics.tick(100_000)
    bench.metrics._server.codes[403] = 2
    bench.metrics.tick(101_000)
    assert bench.told == [("metrics.refused", {"times": 3})]
    bench.metrics.tick(160_000)
    bench.metrics.tick(300_000)
    assert bench.told[1:] == [("metrics.refused", {"times": 2})]
    assert all(name in VOCABULARY for name, _ in bench.told)


def test_events_are_counted(bench: Bench) -> None:
    for _ in range(2):
        bench.metrics.event(Event("x", 1, "n", "h", "node.joined", "info", "", {}))
    series = read(bench.get("/metrics").body)
    assert values(series, "blackroad_events_total") == {("node.joined", "info"): 2}


def test_what_is_served_is_said_as_an_address() -> None:
    four, six = Bench(), Bench(metrics_listen="::1")
    try:
        assert four.metrics.said.startswith("127.0.0.1:")
        assert six.metrics.said.startswith("[::1]:")
    finally:
        four.metrics.close()
        six.metrics.close()


def test_names_are_its_own_and_those_that_were_given() -> None:
    names = names_of(Config(name="attic", metrics_names=("attic.example.org",)))
    assert {"attic", "attic.local", "attic.example.org"} <= set(names)


# --- tokens -------------------------------------------------------------------------------------


def token_file(tmp_path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "token"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


@pytest.mark.parametrize("text", [TOKEN, f"{TOKEN}\n", f"  {TOKEN}\r\n", "x" * 256])
def test_a_token_is_one_line(tmp_path: Path, text: str) -> None:
    assert read_token(token_file(tmp_path, text)) == text.strip()


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640])
def test_its_user_and_group_may_read_it(tmp_path: Path, mode: int) -> None:
    assert read_token(token_file(tmp_path, TOKEN, mode)) == TOKEN


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o666])
def test_a_token_that_everybody_may_read_is_none(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="every user of this machine") as caught:
        read_token(token_file(tmp_path, TOKEN, mode))
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        TOKEN[:-1],
        "x" * 257,
        "two words of a token",
        f"{TOKEN}\n{TOKEN}",
        "é" * 16,
        b"\xff" * 20,
    ],
)
def test_what_is_no_token_is_named_without_being_shown(tmp_path: Path, text: str | bytes) -> None:
    path = token_file(tmp_path, text)
    with pytest.raises(ConfigError, match="holds no token") as caught:
        read_token(path)
    assert "head -c 24 /dev/urandom" in caught.value.hint
    if text:
        assert str(text) not in str(caught.value)


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_token(tmp_path / "none")
