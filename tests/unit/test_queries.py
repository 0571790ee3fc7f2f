"""Queries: what a node answers about itself, and whom it asks for others."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from blackroad import queries
from blackroad.bus import messages as m
from blackroad.capabilities import encode
from blackroad.ids import Token, short, task_text, text32
from blackroad.node import Finished, Flushed, FromPeer, Heard, Node, Tick
from blackroad.requirements import Needs
from blackroad.router.effects import Lookup, Send, Tell
from tests.unit.builders import (
    CLIENT,
    GIB,
    INC,
    ME,
    OTHER,
    PEER,
    SESSION,
    beat,
    caps,
    client,
    digest,
    make_node,
    of_kind,
    spec,
    submit,
    task_id,
)

KEY = (ME, Token(INC, 1))
TASK_TEXT = text32(task_id(1))


def opened() -> Node:
    node = make_node()
    node.handle(client(m.Open(SESSION, 600_000)), 0)
    return node


def ask(node: Node, name: str, now_ms: int = 100, target: bytes = b"", **args: Any) -> m.Reply:
    """Ask as a client; the answer is one page."""
    query = m.Query(7, target, name, msgpack.packb(args) if args else b"")
    [reply] = of_kind(node.handle(client(query), now_ms), m.Reply)
    assert (reply.query, reply.page, reply.last) == (7, 0, True)
    return reply


def told(node: Node, name: str, now_ms: int = 100, **args: Any) -> dict[str, Any]:
    reply = ask(node, name, now_ms, **args)
    assert reply.error == ""
    return msgpack.unpackb(reply.body)


def finish(node: Node, now_ms: int, **changes: Any) -> list:
    fields = {"status": m.Status.DONE, "result": b"42", "facts": m.Facts(run_us=9), **changes}
    return node.handle(Finished(KEY, **fields), now_ms)


# --- tasks ----------------------------------------------------------------------------------------


def test_status_through_the_life_of_a_task() -> None:
    """Query *status*: one word for where a task is, and where it runs."""
    node = opened()
    node.handle(client(submit(1, spec=spec(name="saxpy", user="ada"))), 10)
    running = told(node, "status", task=TASK_TEXT)
    assert (running["state"], running["name"], running["user"]) == ("running", "saxpy", "ada")
    assert running["id"] == task_text(ME, task_id(1))
    assert [one["name"] for one in running["nodes"]] == ["n1"]
    assert running["ended"] is None
    node.handle(client(m.Cancel((task_id(1),))), 20)
    assert told(node, "status", task=TASK_TEXT)["state"] == "cancelling"
    finish(node, 30)
    ended = told(node, "status", task=TASK_TEXT)
    assert (ended["state"], ended["ended"]["run_us"], ended["reason"]) == ("done", 9, "")


def test_the_start_of_an_id_is_enough_if_it_is_the_only_one() -> None:
    """R-life-4: people type the start of an id."""
    node = opened()
    node.handle(client(submit(1, 2)), 10)
    assert "stands for 2 tasks" in ask(node, "status", task=TASK_TEXT[:6]).error
    assert told(node, "status", task=TASK_TEXT.upper())["state"] == "running"
    assert "no task" in ask(node, "status", task="zzzz").error


def test_a_result_comes_inline_or_as_an_object() -> None:
    """P3: every fetch returns the same bytes."""
    node = opened()
    node.handle(client(submit(1)), 10)
    assert told(node, "result", task=TASK_TEXT)["ended"] is None
    finish(node, 20)
    for _ in range(2):
        assert told(node, "result", task=TASK_TEXT)["inline"] == b"42"
    large = opened()
    large.handle(client(submit(1, durable=True)), 10)
    large.out.on_flushed(large.out.mark, 11)
    large.owner.attempt_done(
        large.owner.tasks[task_id(1)],
        m.Outcome(KEY[1], task_id(1), INC, m.Status.DONE, m.Ref(digest(3), 99), m.Facts()),
        ME,
        20,
    )
    large.handle(Flushed(large.out.mark + 1), 30)
    answer = told(large, "result", task=TASK_TEXT)
    assert (answer["inline"], answer["digest"], answer["size"]) == (b"", digest(3), 99)


def test_who_waits_is_told_when_the_task_ends() -> None:
    """Query *status* with wait_ms: answered at the end, or after a while."""
    node = opened()
    node.handle(client(submit(1)), 10)
    query = m.Query(7, b"", "status", msgpack.packb({"task": TASK_TEXT, "wait_ms": 60_000}))
    assert of_kind(node.handle(client(query), 20), m.Reply) == []
    replies = of_kind(finish(node, 500), m.Reply)
    assert [msgpack.unpackb(one.body)["state"] for one in replies] == ["done"]
    assert of_kind(node.handle(Tick(), 9000), m.Reply) == []


def test_who_waits_for_nothing_is_told_so() -> None:
    """R-query-1: no answer within 2 s would be *unreachable*, so it is given before."""
    node = opened()
    node.handle(client(submit(1)), 10)
    query = m.Query(7, b"", "status", msgpack.packb({"task": TASK_TEXT, "wait_ms": 60_000}))
    node.handle(client(query), 20)
    assert node.next_deadline_ms() <= 1520
    assert of_kind(node.handle(Tick(), 1519), m.Reply) == []
    [reply] = of_kind(node.handle(Tick(), 1520), m.Reply)
    assert msgpack.unpackb(reply.body)["state"] == "running"


def test_tasks_are_counted_listed_and_bounded() -> None:
    """Query *tasks*: counts of all, rows of the newest."""
    node = opened()
    node.handle(client(submit(*range(1, 6))), 10)
    answer = told(node, "tasks", limit=3)
    assert answer["counts"] == {"running": 2, "queued": 3}
    assert [one["id"] for one in answer["tasks"]] == [
        task_text(ME, task_id(number)) for number in (5, 4, 3)
    ]
    assert len(told(node, "tasks", state="running")["tasks"]) == 2
    assert told(node, "tasks", limit=-5)["tasks"] == []


def test_why_says_what_each_node_lacks() -> None:
    """Query *why*: one reason, and the shortfall of every node."""
    node = opened()
    needs = Needs(cpu=64, memory="16GiB")
    node.handle(client(submit(1, spec=spec(needs.to_wire()), wait_for_node=True)), 10)
    answer = told(node, "why", task=TASK_TEXT)
    assert answer["reason"] == "no present node can run it"
    [row] = answer["nodes"]
    assert {lack[0] for lack in row["missing"]} == {"cpu", "memory"}
    assert answer["needs"] == f"cpu=64 memory={16 * GIB}"


def test_why_counts_who_is_ahead() -> None:
    node = opened()
    node.handle(client(submit(1, 2, 3, 4)), 10)
    answer = told(node, "why", task=text32(task_id(4)))
    assert (answer["state"], answer["ahead"]) == ("queued", 1)
    assert told(node, "why", task=TASK_TEXT)["reason"] == ""


# --- nodes ----------------------------------------------------------------------------------------


def test_nodes_as_this_one_sees_them() -> None:
    """Query *nodes*: itself first, then its peers with their states."""
    node = opened()
    node.handle(Heard(beat(PEER, 1)), 100)
    node.handle(Heard(beat(OTHER, 1)), 100)
    node.handle(FromPeer(OTHER, (m.Goodbye(INC),)), 200)
    body = encode(caps("shed"))
    node.handle(FromPeer(PEER, (m.Capabilities(PEER, INC, caps("shed").digest(), body),)), 210)
    answer = told(node, "nodes", 600)
    assert [(one["name"], one["state"]) for one in answer["nodes"]] == [
        ("n1", "alive"),
        ("shed", "alive"),
        (short(OTHER), "left"),
    ]
    assert answer["nodes"][1]["silent_ms"] == 500
    assert answer["coordinator"] is None


def test_counters_of_this_daemon() -> None:
    """Query *node*: for tests and people who look for a fault."""
    node = opened()
    node.handle(client(submit(1)), 10)
    answer = told(node, "node", 700)
    assert (answer["name"], answer["uptime_ms"], answer["tasks"]) == ("n1", 700, 1)


# --- relays, pages, bad questions -----------------------------------------------------------------


def test_a_query_for_another_node_is_relayed_once() -> None:
    """R-query-1: the client's daemon relays it; the answer keeps the client's number."""
    node = opened()
    node.handle(Heard(beat(PEER, 1)), 100)
    query = m.Query(7, PEER, "nodes", b"")
    [sent] = node.handle(client(query), 110)
    assert sent == Send(PEER, m.Query(sent.message.query, PEER, "nodes", b""))
    reply = m.Reply(sent.message.query, PEER, 0, True, b"\xc0")
    assert node.handle(FromPeer(PEER, (reply,)), 150) == [
        Tell(CLIENT, m.Reply(7, PEER, 0, True, b"\xc0"))
    ]
    assert node.handle(FromPeer(PEER, (reply,)), 160) == []


def test_only_the_node_that_was_asked_may_answer() -> None:
    """R-query-1: another member cannot answer in its place."""
    node = opened()
    node.handle(Heard(beat(PEER, 1)), 100)
    node.handle(Heard(beat(OTHER, 1)), 100)
    [sent] = node.handle(client(m.Query(7, PEER, "nodes", b"")), 110)
    reply = m.Reply(sent.message.query, OTHER, 0, True, b"\xc0")
    assert node.handle(FromPeer(OTHER, (reply,)), 150) == []


def test_a_relayed_query_goes_no_further() -> None:
    """R-query-1: once."""
    node = opened()
    asked = FromPeer(PEER, (m.Query(3, OTHER, "nodes", b""),))
    [sent] = node.handle(asked, 100)
    assert (sent.to, sent.message.query) == (PEER, 3)
    assert "once" in sent.message.error


@pytest.mark.parametrize("known", [False, True])
def test_a_node_that_does_not_answer_is_unreachable(known: bool) -> None:
    """R-query-1: no answer within 2 s is *unreachable*; who is not there, at once."""
    node = opened()
    if known:
        node.handle(Heard(beat(PEER, 1)), 100)
        node.handle(client(m.Query(7, PEER, "nodes", b"")), 110)
        assert of_kind(node.handle(Tick(), 2109), m.Reply) == []
        [reply] = of_kind(node.handle(Tick(), 2110), m.Reply)
        assert node.handle(Tick(), 2111) == []
    else:
        reply = ask(node, "nodes", target=PEER)
    assert reply.error.startswith("unreachable")
    assert reply.query == 7


def test_what_only_the_driver_knows_is_looked_up() -> None:
    """Query *logs*: the answer comes from the daemon's files."""
    node = opened()
    assert node.handle(client(m.Query(7, ME, "logs", b"\x80")), 100) == [
        Lookup(CLIENT, False, 7, "logs", b"\x80")
    ]
    assert node.handle(FromPeer(PEER, (m.Query(8, ME, "logs", b""),)), 110) == [
        Lookup(PEER, True, 8, "logs", b"")
    ]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("nonsense", b""),
        ("status", b""),
        ("status", b"\x81\xa4task\x05"),
        ("status", b"\x81\xa4task\xa1\xff"),
        ("status", b"\xc1"),
        ("status", b"\x81\xa1x" + b"\x91" * 4000 + b"\x90"),
        ("tasks", b"\x81\xa5limit\xa1x"),
    ],
)
def test_a_bad_question_gets_an_answer_and_does_no_harm(name: str, args: bytes) -> None:
    """R-link-7: a peer may cost us its connection, never our process."""
    node = opened()
    [reply] = of_kind(node.handle(client(m.Query(7, b"", name, args)), 100), m.Reply)
    assert reply.error
    assert reply.body == b""


def test_a_long_answer_comes_in_pages() -> None:
    """Reply: up to 64 KiB a page."""
    body = bytes(range(256)) * 600
    replies = list(queries.pages(7, ME, body, ""))
    assert b"".join(one.body for one in replies) == body
    assert [one.page for one in replies] == list(range(len(replies)))
    assert [one.last for one in replies] == [False] * (len(replies) - 1) + [True]
    assert max(len(one.body) for one in replies) <= 64 * 1024


def test_needs_are_written_as_people_do() -> None:
    """`why` and `status` show what was asked."""
    needs = Needs.any(Needs(gpu=1, gpu_memory="1GiB", arch="aarch64"), Needs(cpu=0.5, node="attic"))
    assert queries.needs_text(needs.requirement) == (
        f"cpu=1 gpu=1 gpu_memory={GIB} arch=aarch64 or cpu=0.5 node=attic"
    )
