"""What a program may send to its daemon: one clear answer to all of it, and the daemon goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blackroad import Client
from blackroad.bus import messages as m
from blackroad.errors import BlackroadError
from tests.edge.meshes import Mesh, mesh_of, where
from tests.edge.transports import RawProgram

pytestmark = pytest.mark.edge

WAIT_S = 60.0
SESSION = b"s" * 16
QUERIES = (
    "status",
    "result",
    "why",
    "tasks",
    "nodes",
    "node",
    "logs",
    "driver",
    "put",
    "get",
    "cancel",
    "retry",
    "drain",
    "resume",
    "no-such-query",
    "",
)
NESTED = b"\x91" * 4_000
ARGUMENTS: tuple[bytes, ...] = (
    b"",
    b"\xc1",
    b"\xc0",
    b"\x05",
    b"\x90",
    b"\xff" * 4_000,
    NESTED,
    b"\x81\xa4more" + NESTED[:3_900],
    b"\x81\xa4task" + NESTED[:3_900],
    b"\xdf\xff\xff\xff\xff",
    *(
        msgspec.msgpack.encode(one)
        for one in (
            {"task": 5},
            {"task": ""},
            {"task": "a" * 3_000},
            {"task": "\u0000%s"},
            {"task": "aaaa", "offset": float("inf")},
            {"task": "aaaa", "offset": float("nan")},
            {"task": "aaaa", "offset": -(2**60)},
            {"task": "aaaa", "offset": "x"},
            {"task": "aaaa", "wait_ms": 2**62},
            {"task": "aaaa", "wait_ms": -5},
            {"state": 5, "limit": "all"},
            {"limit": 2**62},
            {"limit": -1},
            {"digest": 5, "size": 5, "node": b""},
            {"digest": 2**62, "size": 5, "node": b""},
            {"digest": -1, "size": 5},
            {"digest": b"short", "size": 5, "node": b""},
            {"digest": b"d" * 32, "size": -5, "node": b"n" * 16},
            {"digest": b"d" * 32, "size": 2**63, "node": b"n" * 16},
            {"digest": b"d" * 32, "size": 2**49, "node": b"n" * 16},
            {"digest": b"d" * 32, "size": float("inf"), "node": b"n" * 16},
            {"digest": b"d" * 32, "size": 5, "node": 2**62},
            {"digest": [1] * 32, "size": 5, "node": b"n" * 16},
        )
    ),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


class Asker:
    """A raw connection to a daemon, beside an honest client of it."""

    def __init__(self, mesh: Mesh) -> None:
        self.daemon = mesh.daemons[0]
        self.client: Client = mesh.client(self.daemon)
        self.raw = RawProgram(self.daemon.runtime / "client.sock")
        self._serial = itertools.count(1)

    def ask(self, name: str, args: bytes, target: bytes = b"") -> None:
        self.raw.say(m.Query(next(self._serial), target, name, args))

    def answer(self, kind: int) -> list[Any]:
        """Wait for a message of that kind."""
        while True:
            found = [one for one in self.raw.heard() if one[0] == kind]
            if found:
                return found[0]

    def goes_on(self) -> None:
        """The daemon is the same one, and still runs tasks for others."""
        assert self.daemon.serves()
        assert self.client.submit(where).result(WAIT_S) == "one"
        self.raw.packets(0)


@pytest.fixture(scope="module")
def asker() -> Iterator[Asker]:
    with mesh_of("one", BLACKROAD_LOG_LEVEL="warning") as mesh:
        made = Asker(mesh)
        yield made
        made.raw.close()


@pytest.mark.parametrize("name", QUERIES)
def test_no_argument_of_a_query_harms(asker: Asker, name: str) -> None:
    for args in ARGUMENTS:
        asker.ask(name, args, target=b"n" * 16)
        # Without arguments these two are orders that are meant.
        if args or name not in ("drain", "resume"):
            asker.ask(name, args)
    asker.goes_on()


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=st.sampled_from([one for one in QUERIES if one not in ("drain", "resume")]),
    args=st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["task", "digest", "size", "node", "offset", "limit", "wait_ms"]), plain
    ).map(msgspec.msgpack.encode),
)
def test_queries_take_anything(asker: Asker, name: str, args: bytes) -> None:
    asker.ask(name, args[:4_096])
    asker.raw.say(m.Query(0, b"", "node", b""))
    assert asker.daemon.serves()


def test_the_daemon_is_alive_after_all_that(asker: Asker) -> None:
    asker.goes_on()


def submit(**changes: Any) -> m.Submit:
    fields: dict[str, Any] = {
        "session": SESSION,
        "spec": m.ClassSpec(b""),
        "code": None,
        "durable": False,
        "wait_for_node": False,
        "tasks": (m.Item(b"t" * 16, b"not any work"),),
    }
    return m.Submit(**{**fields, **changes})


@pytest.mark.parametrize(
    "message",
    [
        submit(),
        submit(spec=m.ClassSpec(b"\xff" * 500)),
        submit(spec=m.ClassSpec(NESTED[:1_000])),
        submit(session=b"n" * 16),
        submit(durable=True, spec=m.ClassSpec(b"\xc1")),
        submit(code=m.Ref(b"c" * 32, 0)),
        submit(code=m.Ref(b"c" * 32, 2**50)),
        submit(tasks=(m.Item(b"t" * 16, m.Ref(b"w" * 32, 2**50)),)),
        submit(tasks=tuple(m.Item(b"t" * 16, bytes([n])) for n in range(200))),
        submit(deadline_ms=2**40),
        m.Seen((b"t" * 16,) * 1_024),
        m.Cancel((b"t" * 16,) * 1_024),
        m.Alive(b"n" * 16),
        m.Want(b"d" * 32, 2**63 - 1, 8),
        m.Chunk(b"d" * 32, 2**63 - 1, b"x" * 1_000),
        m.Gone(b"d" * 32),
        m.Open(SESSION, 600_000, "somebody", 99),
    ],
    ids=lambda message: type(message).__name__,
)
def test_no_message_of_a_client_harms(asker: Asker, message: m.Message) -> None:
    asker.raw.say(m.Open(SESSION, 30_000, "u"))
    asker.raw.say(message)
    asker.raw.say(message)
    asker.goes_on()


def test_needs_that_cannot_be_read_are_told_so(asker: Asker) -> None:
    session = b"q" * 16
    asker.raw.say(m.Open(session, 30_000, "u"))
    asker.raw.say(submit(session=session, spec=m.ClassSpec(b"\xc1")))
    answer = asker.answer(0x35)
    assert answer[2] == "needs"
    assert answer[3]


def test_a_breach_of_a_client_is_answered(asker: Asker) -> None:
    asker.raw.send(b"\x91\x92\x32\x05")
    answer = asker.answer(0x03)
    assert answer[1] == "protocol"
    asker.goes_on()


def test_work_that_is_none_fails_as_a_task(asker: Asker) -> None:
    session = b"w" * 16
    asker.raw.say(m.Open(session, 30_000, "u"))
    asker.raw.say(submit(session=session, spec=m.ClassSpec(_needs())))
    answer = asker.answer(0x37)
    assert answer[2] == m.End.FAILED
    asker.goes_on()


def test_a_flood_of_sessions_is_bounded(asker: Asker) -> None:
    for number in range(1_100):
        asker.raw.say(m.Open(number.to_bytes(16, "big"), 1_000, "u"))
    asker.raw.say(m.Query(1, b"", "node", b""))
    sessions = 0
    while not sessions:
        for answer in asker.raw.heard():
            if answer[0] == 0x3A:
                sessions = msgspec.msgpack.decode(answer[5])["sessions"]
    assert sessions <= 1_024
    assert asker.daemon.serves()


def test_errors_of_queries_are_words(asker: Asker) -> None:
    for name in ("status", "why", "logs", "nonsense"):
        with pytest.raises(BlackroadError) as caught:
            asker.client._ask(name, {"tusk": 1})
        assert "Traceback" not in caught.value.message
        assert caught.value.message


def _needs() -> bytes:
    from blackroad import Needs

    return Needs().requirement.to_wire()
