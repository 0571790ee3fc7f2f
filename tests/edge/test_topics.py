"""Topics between real daemons and programs: last values, floods, slow readers, the shell."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.members import Role
from blackroad.client import Client
from blackroad.errors import NoDaemon, UsageError
from blackroad.limits import (
    SUBSCRIBER_VALUES_MAX,
    TOPIC_LINE_BYTES_MAX,
    TOPIC_LINE_VALUES_MAX,
    UPDATES_WINDOW,
)
from tests.edge.closed_meshes import ClosedMesh
from tests.edge.meshes import Daemon, Mesh, until
from tests.edge.transports import RawProgram

pytestmark = pytest.mark.edge

WAIT_S = 30.0
FLOOD = 10_000


@pytest.fixture
def other(pair: Mesh) -> Iterator[Client]:
    """A client of the second of the pair."""
    with pair.daemons[1].client() as made:
        yield made


def figures(client: Client) -> dict[str, Any]:
    """What the daemon counts about topics."""
    found: dict[str, Any] = client._ask("driver", {})["topics"]
    return found


def answer(n: int) -> int:
    return n + 1


# --- values -------------------------------------------------------------------------------------


def test_values_come_as_they_were_published(client: Client, other: Client) -> None:
    values = [21.5, -1, 2**64 - 1, "größe", b"\x00\xff", None, True, [1, [2]], {"a": {"b": [1.5]}}]
    with other.subscribe("kinds/*") as found:
        for value in values:
            client.publish("kinds/one", value)
        updates = [found.get(WAIT_S) for _ in values]
    assert [one.value for one in updates] == values
    assert {(one.topic, one.node, one.user) for one in updates} == {
        ("kinds/one", client.node_id, client.user)
    }
    assert [one.missed for one in updates] == [0] * len(values)


def test_late_subscribers_get_last_values_on_both_daemons(client: Client, other: Client) -> None:
    for number in range(300):
        client.publish(f"late/{number % 100}", number)
    client.published()
    for one in (client, other):
        with one.subscribe("late/#") as found:
            got = {update.topic: update.value for update in itertools.islice(found, 100)}
        assert got == {f"late/{number % 100}": number for number in range(200, 300)}
    with other.subscribe("late/#", snapshot=False) as found:
        client.publish("late/1", "news")
        assert found.get(WAIT_S).value == "news"


def test_a_daemon_started_late_has_last_values(mesh: Mesh) -> None:
    first = mesh.add("one")
    source = mesh.client(first)
    source.publish("lab/oven", 180)
    source.publish("lab/lamp", "on")
    late = mesh.add("two")
    with mesh.client(late).subscribe("lab/*") as found:
        got = {update.topic: update.value for update in itertools.islice(found, 2)}
    assert got == {"lab/oven": 180, "lab/lamp": "on"}


def test_a_subscription_outlives_its_daemon(mesh: Mesh) -> None:
    daemon = mesh.add("one")
    ear = mesh.client(daemon)
    found = ear.subscribe("#")
    daemon.end(signal.SIGKILL)
    daemon.start()
    daemon.wait()
    until(lambda: found.restarts == 1, "the daemon knowing the subscription again")
    source = mesh.client(daemon)
    source.publish("lab/oven", 1)
    assert found.get(WAIT_S).value == 1


def test_what_cannot_be_published(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="16 KiB") as caught:
        client.publish("lab/x", bytes(16 * 1024))
    assert "client.put(value)" in caught.value.hint
    with pytest.raises(UsageError, match="reserved"):
        client.publish("sys/x", 1)
    with pytest.raises(UsageError, match="cannot be published"):
        client.publish("lab/x", object())
    with pytest.raises(UsageError, match="`#` here"):
        client.subscribe("lab/**")
    # Other programs may not look at names: the daemon does.
    monkeypatch.setattr("blackroad.client.topics.check_name", lambda _topic: None)
    client.publish("blackroad/x", 1)
    until(lambda: figures(client)["refused"] == 1, "a refusal")
    with pytest.raises(UsageError, match="reserved"):
        client.published()
    client.publish("lab/x", bytes(16 * 1024 - 3))
    client.published()


def test_the_end_of_a_client_ends_its_subscriptions(pair: Mesh) -> None:
    one = pair.daemons[0].client()
    found = one.subscribe("nothing/#")
    said: list[BaseException] = []

    def wait() -> None:
        try:
            next(found)
        except BaseException as error:
            said.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    one.close()
    waiting.join(WAIT_S)
    assert "closed" in str(said[0])
    with pytest.raises(NoDaemon):
        one.publish("nothing/x", 1)
    with pytest.raises(NoDaemon):
        one.subscribe("nothing/#")


# --- floods and slow readers ----------------------------------------------------------------------


def test_a_flood_delays_neither_heartbeats_nor_tasks(mesh: Mesh) -> None:
    daemons = [mesh.add("one"), mesh.add("two")]
    mesh.settled()
    source, ear, worker = (mesh.client(daemons[at]) for at in (0, 1, 1))
    before = ear.nodes()
    enough = threading.Event()
    sent = itertools.count()
    total = 0

    def flood() -> None:
        nonlocal total
        for number in sent:
            if number >= FLOOD and enough.is_set():
                total = number
                return
            source.publish(f"flood/{number % 10}", number)

    with ear.subscribe("flood/#") as found:
        thread = threading.Thread(target=flood)
        thread.start()
        # As long as it lasts tasks of both daemons run, and are not waited for in vain.
        got = missed = 0
        futures = [one.submit(answer, n) for n in range(20) for one in (source, worker)]
        while got + missed < FLOOD:
            update = found.get(WAIT_S)
            got, missed = got + 1, missed + update.missed
        assert [one.result(WAIT_S) for one in futures] == [n + 1 for n in range(20) for _ in "ab"]
        enough.set()
        thread.join(WAIT_S)
        while got + missed < total:
            update = found.get(WAIT_S)
            got, missed = got + 1, missed + update.missed
    assert got + missed == total
    # Nobody was taken for dead, and nobody was elected anew, while all this went through.
    after = ear.nodes()
    assert after["epoch"] == before["epoch"]
    for daemon in daemons:
        assert [daemon.events(name) for name in ("node.suspect", "node.died")] == [[], []]
    assert figures(ear)["heard"] + figures(ear).get("missed", 0) >= total


def test_a_program_that_does_not_read_loses_the_oldest(client: Client, other: Client) -> None:
    sent = SUBSCRIBER_VALUES_MAX + 2_000
    with other.subscribe("heap", snapshot=False) as found:
        for number in range(sent):
            client.publish("heap", number)
        client.publish("heap", "end")
        until(lambda: figures(other)["heard"] >= sent and not figures(other)["waiting_bytes"])
        until(lambda: found._waiting[-1][0].payload == b"\xa3end", "the last value")
        assert len(found._waiting) == SUBSCRIBER_VALUES_MAX
        updates = list(itertools.takewhile(lambda one: one.value != "end", found))
    assert updates[0].missed > 0
    assert len(updates) + sum(one.missed for one in updates) == sent
    assert [one.value for one in updates] == list(range(updates[0].missed, sent))


class Deaf:
    """A program that subscribes and then reads, and says Taken, only when the test wants it."""

    def __init__(self, daemon: Daemon, pattern: str) -> None:
        self._raw = RawProgram(daemon.runtime / "client.sock")
        self.say(m.Subscribe(1, pattern, False))
        self.updates: list[m.Updates] = []
        until(lambda: self.read(), "a subscription")

    def say(self, message: m.Message) -> None:
        self._raw.say(message)

    def read(self) -> int:
        for packet in self._raw.packets(0.05):
            found, _ = codec.OWNER.decode(packet)
            self.updates += [one for one in found if isinstance(one, m.Updates)]
        return len(self.updates)

    def values(self) -> list[bytes]:
        return [value.payload for one in self.updates for value in one.values]

    def close(self) -> None:
        self._raw.close()


def test_a_program_that_is_stopped_costs_the_daemon_little(pair: Mesh, client: Client) -> None:
    daemon = pair.daemons[0]
    client.published()
    dropped = figures(client)["dropped"]
    deaf = Deaf(daemon, "deaf")
    try:
        sent = 0
        while figures(client)["dropped"] == dropped:
            for _ in range(500):
                client.publish("deaf", sent)
                sent += 1
            client.published()
        assert 0 < figures(client)["waiting_bytes"] <= TOPIC_LINE_BYTES_MAX
        assert figures(client)["subscriptions"] >= 1
        until(lambda: deaf.read() == UPDATES_WINDOW, "the window")
        early = len(deaf.values())
        deaf.say(m.Taken(UPDATES_WINDOW))
        # It goes on with what is newest, and is told how many it missed.
        last = codec.encode(m.Publish(1, "deaf", b""))  # any bytes that no value has
        client.publish("deaf", last)

        def reads() -> bool:
            deaf.read()
            deaf.say(m.Taken(deaf.updates[-1].serial))
            return deaf.values()[-1].endswith(last)

        until(reads, "the last value")
        assert len(deaf.values()) - early <= TOPIC_LINE_VALUES_MAX + 1
        missed = sum(sum(one.missed) for one in deaf.updates)
        assert missed > 0
        assert len(deaf.values()) + missed == sent + 1
    finally:
        deaf.close()


# --- the shell ------------------------------------------------------------------------------------


def shell(daemon: Daemon, *words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "blackroad", *words],
        env=daemon.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background of a shell has it ignored for all of them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def test_pub_and_sub_in_a_shell(pair: Mesh, client: Client) -> None:
    one, two = pair.daemons
    client.publish("shell/evil", "red\x1b[31m\nnext\u202e")
    client.published()
    ear = shell(two, "sub", "shell/*", "--count", "5")
    assert ear.stdout is not None
    assert ear.stdout.readline() == "shell/evil  red\\x1b[31m\\nnext\\x202e\n"
    assert shell(one, "pub", "shell/a", "-2.5").wait(WAIT_S) == 0
    assert shell(one, "pub", "shell/b", '{"on": true}').wait(WAIT_S) == 0
    lines = shell(one, "pub", "shell/c", "-", "--json", stdin=subprocess.PIPE)
    out, _ = lines.communicate("first line\n7\n", WAIT_S)
    assert json.loads(out) == {"topic": "shell/c", "published": 2}
    out, err = ear.communicate(timeout=WAIT_S)
    assert sorted(out.splitlines()) == [
        "shell/a  -2.5",
        'shell/b  {"on": true}',
        "shell/c  7",
        "shell/c  first line",
    ]
    assert (ear.returncode, err) == (0, "")


def test_sub_as_json_ends_with_ctrl_c(pair: Mesh, client: Client) -> None:
    client.publish("json/x", {"text": "\x9b31m", "bytes": b"\x00", "number": float("nan")})
    client.published()
    ear = shell(pair.daemons[0], "sub", "json/#", "--json")
    assert ear.stdout is not None
    line = ear.stdout.readline()
    assert line.isascii()
    row = json.loads(line)
    assert row["topic"] == "json/x"
    assert row["value"] == {"text": "\x9b31m", "bytes": "AA==", "number": None}
    assert (row["user"], row["missed"]) == (client.user, 0)
    assert abs(row["time_ms"] / 1000 - os.stat(pair.base).st_mtime) < 3_600
    ear.send_signal(signal.SIGINT)
    out, err = ear.communicate(timeout=WAIT_S)
    assert (ear.returncode, out, err) == (0, "", "")


def test_a_wrong_name_is_told_before_anybody_is_asked(pair: Mesh) -> None:
    ear = shell(pair.daemons[0], "pub", "lab/#", "1")
    _, err = ear.communicate(timeout=WAIT_S)
    assert ear.returncode == 2
    assert "is a pattern" in err
    assert "hint:" in err


# --- a closed mesh --------------------------------------------------------------------------------


def test_roles_in_a_closed_mesh(mesh: Mesh) -> None:
    """R-topic-10: whoever may look may listen, and nobody else; publishing takes `submit`."""
    closed = ClosedMesh(mesh)
    closed.admit("one", Role.ADMIN)
    closed.admit("two")
    closed.admit("looker", Role.VIEW)
    closed.admit("worker", Role.SUBMIT)
    closed.establish()
    one, two = closed.start("one"), closed.start("two")
    mesh.settled()
    with closed.client(one, "worker") as source, closed.client(two, "looker") as ear:
        source.publish("lab/early", 1)
        source.published()
        with ear.subscribe("lab/#") as found:
            assert found.get(WAIT_S).value == 1
            source.publish("lab/late", 2)
            update = found.get(WAIT_S)
            assert (update.topic, update.value, update.missed) == ("lab/late", 2, 0)
            assert update.node == source.node_id != ear.node_id
            ear.publish("lab/x", 3)
            with pytest.raises(UsageError, match="`submit`"):
                ear.published()
            # It listens on, and what it may not say never was said.
            source.publish("lab/last", 4)
            assert found.get(WAIT_S).value == 4
