"""What `pub` and `sub` read and print, without a mesh."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from blackroad.cli import commands
from blackroad.cli.topics import json_line, shown
from blackroad.client.topics import Update
from blackroad.errors import UsageError
from tests.unit.cli_fake import blackroad

NODE = b"n" * 16


def update(value: Any, missed: int = 0, topic: str = "lab/x") -> Update:
    return Update(topic, value, NODE, "ada", 5, missed)


class FakeSubscription:
    """Some updates, and then Ctrl-C."""

    def __init__(self, updates: list[Update]) -> None:
        self.updates = updates
        self.closed = 0

    def __enter__(self) -> FakeSubscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1

    def __iter__(self) -> Iterator[Update]:
        yield from self.updates
        raise KeyboardInterrupt


class FakeClient:
    """Notes what is published; hands out a subscription."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.subscription = FakeSubscription([])

    def publish(self, topic: str, value: Any) -> None:
        if value == "refused":
            raise UsageError("the daemon did not take a value: no", hint="ask")
        self.said.append((topic, value))

    def published(self, timeout: float) -> None:
        self.said.append(timeout)

    def subscribe(self, pattern: str, *, snapshot: bool) -> FakeSubscription:
        self.said.append((pattern, snapshot))
        return self.subscription

    def close(self) -> None:
        self.said.append("closed")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()
    monkeypatch.setattr(commands, "connect", lambda timeout_s=None: made)
    return made


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("21.5", 21.5),
        ("-3", -3),
        ("-3.5e2", -350.0),
        ('"21.5"', "21.5"),
        ('{"on": [true, null]}', {"on": [True, None]}),
        ('"-x"', "-x"),
        ("warm enough", "warm enough"),
        ("", ""),
        ("{broken", "{broken"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_value_is_json_or_text(client: FakeClient, word: str, value: Any) -> None:
    answer = blackroad("pub", "lab/x", word)
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert client.said == [("lab/x", value), 30.0, "closed"]


def test_lines_of_standard_input_are_values(client: FakeClient) -> None:
    answer = blackroad("pub", "lab/x", "-", "--json", stdin="1\r\n\ntwo words\nno end")
    assert json.loads(answer.out) == {"topic": "lab/x", "published": 4}
    assert [one[1] for one in client.said[:4]] == [1, "", "two words", "no end"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pub", "sys/x", "1"), "reserved"),
        (("pub", "lab/#", "1"), "is a pattern"),
        (("pub", "lab/x", "--jsn"), "no such option"),
        (("sub", "lab/+"), "`*` here"),
        (("sub", "lab/x", "--count", "0"), "count"),
        (("pub", "lab/x", "refused"), "did not take"),
    ],
)
def test_what_is_wrong_is_told(client: FakeClient, words: tuple[str, ...], told: str) -> None:
    answer = blackroad(*words)
    assert answer.code == 2
    assert told in answer.err
    assert "hint:" in answer.err


def test_updates_are_lines(client: FakeClient) -> None:
    client.subscription.updates = [update("a\tb\nc"), update({"x": 1}, missed=3)]
    answer = blackroad("sub", "lab/*", "--no-snapshot")
    assert (answer.code, answer.out) == (0, 'lab/x  a\\tb\\nc\nlab/x  {"x": 1}\n')
    assert answer.err == "(3 values missed)\n"
    assert (client.said, client.subscription.closed) == ([("lab/*", False), "closed"], 1)


def test_count_ends_it(client: FakeClient) -> None:
    client.subscription.updates = [update(number) for number in range(5)]
    answer = blackroad("sub", "#", "--count", "2", "--json")
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [row["value"] for row in rows] == [0, 1]
    assert rows[0] == {
        "topic": "lab/x",
        "value": 0,
        "node": "nzxg43to",
        "user": "ada",
        "time_ms": 5,
        "missed": 0,
    }


@pytest.mark.parametrize(
    "evil",
    ["\x1b]0;owned\x07", "\x9b2J", "a\rb", "\u202ereversed", "x\x00\x08", "\u2028", "a\nb\tc"],
)
def test_no_value_steers_a_terminal(evil: str) -> None:
    """Row 49 of the fault table: what other machines say is spelled out."""
    for value in (evil, {"key": evil}, [evil], {evil: 1}, evil.encode(), {"b": evil.encode()}):
        for line in (shown(value), json_line(update(value))):
            assert line.isprintable(), line
        assert json_line(update(value)).isascii()


def test_what_json_cannot_say_is_shown_all_the_same() -> None:
    assert shown(b"\x00x") == "b'\\x00x'"
    assert shown(float("nan")) == "NaN"
    row = json.loads(json_line(update({"n": float("inf"), "b": b"\x00", 1: [float("nan")]})))
    assert row["value"] == {"n": None, "b": "AA==", "1": [None]}
    assert json.loads(json_line(update({None: 1})))["value"] == "{None: 1}"
    deep: Any = 1
    for _ in range(50_000):
        deep = [deep]
    assert "deep" in shown(deep)
    assert "deep" in json.loads(json_line(update(deep)))["value"]
