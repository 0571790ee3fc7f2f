"""Events: the vocabulary, what one holds, filters, the ring, and the daemon's voice."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import blackroad
from blackroad import events, watching
from blackroad.bus.messages import End
from blackroad.config import Config
from blackroad.directories import Paths
from blackroad.errors import UsageError
from blackroad.events import VOCABULARY, Chronicle, Event
from blackroad.router.records import Task
from blackroad.watching import Myself, Watching
from tests.unit.builders import ME, PEER, OwnerBench, task_id
from tests.unit.owner_words import done

SOURCE = Path(blackroad.__file__).parent
PAGE = SOURCE.parent / "docs" / "events.md"
HEAD = "| name | severity | what happened |\n|---|---|---|\n"
NODE = "k3f7x2ab"
TASK = f"{NODE}-m5c7qzzzzzzzzzzzzzzzzzzzzz"


def event(number: int = 1, name: str = "node.joined", **changes: Any) -> Event:
    fields: dict[str, Any] = {
        "id": f"{NODE}-4-{number}",
        "at_ms": 1_000 * number,
        "node": NODE,
        "host": "attic",
        "name": name,
        "severity": events.severity_of(name),
        "cause": "zxy2zxy2-7",
        "facts": {"node": "zxy2zxy2"},
        **changes,
    }
    return Event(**fields)


# --- the vocabulary -------------------------------------------------------------------------------


class Said(ast.NodeVisitor):
    """Names that the daemon's code logs, notes or tells, with the method it does so by."""

    METHODS = ("debug", "info", "warning", "error", "note", "tell")

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        method = called.attr if isinstance(called, ast.Attribute) else ""
        if method in self.METHODS and node.args:
            for name in _texts(node.args[0]):
                self.found.add((method, name))
        self.generic_visit(node)


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)


def said() -> set[tuple[str, str]]:
    """All of them, but of commands and of what runs in processes of its own."""
    finder = Said()
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] not in ("cli", "client", "tui"):
            finder.visit(ast.parse(path.read_text("utf-8")))
    # What is said for those who look for a fault need not be an event.
    loud = {(how, name) for how, name in finder.found if how != "debug"}
    return {(how, name) for how, name in loud if "." in name and " " not in name}


def test_the_vocabulary_is_in_order_and_in_sentences() -> None:
    assert list(VOCABULARY) == sorted(VOCABULARY)
    for severity, text in VOCABULARY.values():
        assert severity in events.SEVERITIES
        assert text[0].isupper()
        assert text.endswith(".")


def test_whatever_a_daemon_says_is_in_the_vocabulary() -> None:
    """One name for one thing, in the log and as an event; and as loud in both."""
    found = said()
    assert len(found) > 30
    assert sorted({name for _, name in found} - set(VOCABULARY)) == []
    louder = {(how, name) for how, name in found if how not in ("note", "tell")}
    assert sorted((how, name) for how, name in louder if VOCABULARY[name][0] != how) == []


def test_whatever_is_in_the_vocabulary_is_said_somewhere() -> None:
    text = "".join(
        path.read_text("utf-8") for path in SOURCE.rglob("*.py") if path.name != "events.py"
    )
    # Made of an enum's names.
    made = {f"task.{end.name.lower()}" for end in End}
    made |= {f"node.{one}" for one in ("joined", "reincarnated", "recovered", "suspected")}
    made |= {"node.died", "node.left"}
    assert [name for name in VOCABULARY if name not in made and f'"{name}"' not in text] == []


def test_every_end_of_a_task_has_a_name() -> None:
    assert {f"task.{end.name.lower()}" for end in End} <= set(VOCABULARY)


def test_the_page_lists_the_vocabulary() -> None:
    """docs/events.md is made from this file: a row for each name, and no other."""
    text, head, _ = PAGE.read_text("utf-8").partition(HEAD)
    rows = "".join(f"| `{name}` | {how} | {said} |\n" for name, (how, said) in VOCABULARY.items())
    if os.environ.get("REWRITE"):
        PAGE.write_text(text + HEAD + rows, "utf-8")
    assert PAGE.read_text("utf-8") == text + head + rows, "REWRITE=1 writes it anew"


# --- what one is about ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        ({"task": TASK, "node": NODE}, TASK),
        ({"node": NODE, "inc": (7 << 32) | 99}, f"{NODE}-7"),
        ({"node": NODE, "inc": 1 << 32, "counter": 7}, f"{NODE}-7"),
        ({"node": NODE, "epoch": 12}, f"epoch-12-{NODE}"),
        ({"node": NODE, "epoch": 0}, NODE),
        ({"node": ""}, ""),
        ({"problem": "x"}, ""),
    ],
)
def test_a_cause_is_spelled_alike_everywhere(facts: dict[str, Any], cause: str) -> None:
    assert events.cause_of("any", facts) == cause


def test_text_that_cannot_travel_harms_no_event() -> None:
    facts = events.plain_facts({"state_dir": "/srv/\udcff", "files": ["\udcff", 1]})
    made = event(facts=facts)
    assert events.decode(events.encode(made)).facts == {"state_dir": "/srv/?", "files": "?, 1"}


def test_facts_are_few_short_and_flat() -> None:
    given = {
        "none": None,
        "list": ["a", 1],
        "long": "x" * 1_000,
        "yes": True,
        "rate": 0.5,
        "nested": {"a": 1},
        "level": "would be read as the log's own",
        **{f"k{at}": at for at in range(40)},
    }
    plain = events.plain_facts(given)
    assert (plain["list"], plain["yes"], plain["rate"]) == ("a, 1", True, 0.5)
    assert len(str(plain["long"])) == events.TEXT_MAX
    assert plain["nested"] == "{'a': 1}"
    assert "none" not in plain
    assert "level" not in plain
    assert len(plain) == events.FACTS_MAX


@pytest.mark.parametrize("text", ["", "abc", "abc-1", "abc-1-", "abc--2", "abc-x-2", "abc-1-²"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no id of an event"):
        events.split_id(text)


def test_an_event_travels() -> None:
    one = event(facts={"count": 3, "rate": 0.5, "yes": True, "text": "x"})
    assert events.decode(events.encode(one)) == one
    for nonsense in (b"", b"\x80", b"\xc1", events.encode(one)[:-1]):
        with pytest.raises(ValueError, match="no event"):
            events.decode(nonsense)


# --- choosing -------------------------------------------------------------------------------------

FEW = [
    event(1, "node.joined"),
    event(2, "node.died", host="cellar", node="aaaa2222"),
    event(3, "task.failed", cause=TASK),
    event(4, "space.full", cause=""),
]


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [
        ({}, [1, 2, 3, 4]),
        ({"name": "node.*"}, [1, 2]),
        ({"name": "task.failed, space.*"}, [3, 4]),
        ({"severity": "warning"}, [2, 3, 4]),
        ({"severity": "error"}, [4]),
        ({"node": "cellar"}, [2]),
        ({"node": "aaaa"}, [2]),
        ({"node": "att"}, []),
        ({"cause": "m5c7q"}, [3]),
        ({"cause": f"{NODE}-4-1"}, [1]),
        ({"name": "node.*", "severity": "warning"}, [2]),
    ],
)
def test_filters(choice: dict[str, str], numbers: list[int]) -> None:
    wanted = events.wanted(**choice)
    assert [one for one in FEW if wanted.chooses(one)] == [FEW[at - 1] for at in numbers]


def test_filters_that_can_choose_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="no severity"):
        events.wanted(severity="loud")
    with pytest.raises(UsageError, match=r"no event is called `nodes\.\*`"):
        events.wanted("task.*,nodes.*")


# --- the ring -------------------------------------------------------------------------------------


def test_the_ring_keeps_the_newest_of_both_halves() -> None:
    """A flood of failing tasks pushes out no news of nodes."""
    ring = Chronicle(limit=10)
    ring.add(event(1, "node.died"))
    for number in range(2, 100):
        ring.add(event(number, "task.failed"))
    assert len(ring) == 6
    assert [one.id for one in ring.find()] == [
        f"{NODE}-4-{number}" for number in (1, 95, 96, 97, 98, 99)
    ]


def test_what_came_after_an_event() -> None:
    ring = Chronicle()
    for number in range(1, 6):
        ring.add(event(number, "task.failed" if number % 2 else "node.joined"))
    ring.add(event(6, id=f"{NODE}-5-1"))
    assert [one.id for one in ring.since(f"{NODE}-4-3")] == [
        f"{NODE}-4-4",
        f"{NODE}-4-5",
        f"{NODE}-5-1",
    ]
    assert [one.id for one in ring.since("zxy2zxy2-9-9", 2)] == [f"{NODE}-4-1", f"{NODE}-4-2"]
    assert ring.since(f"{NODE}-5-1") == []
    with pytest.raises(UsageError):
        ring.since("yesterday")


def test_the_newest_that_are_wanted_oldest_first() -> None:
    ring = Chronicle()
    for one in FEW:
        ring.add(one)
    newest = ring.newest(events.wanted(), 0, 2)
    assert newest == FEW[2:]
    assert ring.newest(events.wanted(), 2_000, 9) == FEW[1:]
    assert ring.find("node.*", "warning") == [FEW[1]]
    assert ring.find(cause="m5c7q") == [FEW[2]]
    assert ring.newest(events.wanted(), 0, 0) == []


# --- telling --------------------------------------------------------------------------------------


class Log:
    """Takes what would be written."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        def write(name: str, **facts: Any) -> None:
            self.lines.append((level, name, facts))

        return write


class Part:
    """Records what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.tasks: list[Task] = []
        self.closed = 0

    def tick(self, now_ms: int) -> None:
        """Nothing to do by the clock."""

    def event(self, event: Event) -> None:
        self.events.append(event)

    def ended(self, tasks: Any) -> None:
        self.tasks += tasks

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def told(log: Log, tmp_path: Path) -> Watching:
    paths = Paths(tmp_path, tmp_path, tmp_path, tmp_path / "client.sock")
    return Watching(Config(), paths, Myself(NODE, 4, "attic"), log, Chronicle())


def test_a_line_of_the_log_is_an_event_as_well(told: Watching, log: Log) -> None:
    """Whoever logs, with the same facts; and the line has the cause to be searched for."""
    part = Part()
    told.parts.append(part)
    heard: list[Event] = []
    told.sinks.append(heard.append)
    told.log.warning("node.died", node="zxy2zxy2", inc=7 << 32, silent_ms=900)
    [one] = told.chronicle.find()
    assert (one.id, one.node, one.host) == (f"{NODE}-4-1", NODE, "attic")
    assert (one.name, one.severity, one.cause) == ("node.died", "warning", "zxy2zxy2-7")
    assert one.facts == {"node": "zxy2zxy2", "inc": 7 << 32, "silent_ms": 900}
    assert heard == part.events == [one]
    assert log.lines == [("warning", "node.died", {**one.facts, "cause": "zxy2zxy2-7"})]


def test_a_line_that_is_no_event_is_only_a_line(told: Watching, log: Log) -> None:
    told.log.info("something.else", of=1)
    assert log.lines == [("info", "something.else", {"of": 1})]
    assert len(told.chronicle) == 0


def test_what_a_person_has_to_do_is_told_with_it(told: Watching, log: Log) -> None:
    told.tell("node.amnesia", known=3)
    [(level, _, facts)] = log.lines
    assert level == "error"
    assert "older than what its peers remember" in facts["hint"]


def test_bytes_are_spelled(told: Watching) -> None:
    told.tell("peer.breach", node=ME)
    assert told.chronicle.find()[0].facts["node"].isalnum()


def test_too_many_in_a_second_are_counted(told: Watching, log: Log) -> None:
    """Of tasks and of all others apart; the next second tells how many were left out."""
    for _ in range(watching.TASK_EVENTS_PER_S + 7):
        told.tell("task.failed", task=TASK)
    told.tell("node.joined", node=NODE)
    assert len(told.chronicle) == len(log.lines) == watching.TASK_EVENTS_PER_S + 1
    told.tick(1_000)
    [one] = told.chronicle.find("events.skipped")
    assert one.facts == {"count": 7}
    told.tell("task.failed", task=TASK)
    assert len(told.chronicle) == watching.TASK_EVENTS_PER_S + 3
    told.tick(2_000)
    assert len(told.chronicle.find("events.skipped")) == 1


def ended_as(bench: OwnerBench, number: int, end: End) -> Task:
    bench.submit(number)
    task = bench.owner.tasks[task_id(number)]
    bench.owner.stop(task, end, "because", 0)
    return task


def test_tasks_that_go_wrong_are_told_always(told: Watching) -> None:
    bench = OwnerBench()
    part = Part()
    told.parts.append(part)
    task = ended_as(bench, 1, End.EXPIRED)
    told.ended([task])
    [one] = told.chronicle.find()
    assert (one.name, one.facts["reason"]) == ("task.expired", "because")
    assert part.tasks == [task]


def test_tasks_that_are_done_are_told_while_somebody_follows(told: Watching) -> None:
    """And are not kept: they would push out all else."""
    bench = OwnerBench(nodes=(PEER,))
    token = bench.granted()
    ends: list[Task] = []
    bench.owner.on_ended = ends.extend
    bench.owner.on_outcome(PEER, _outcome(token), 10)
    assert done() in bench.turn(10)
    heard: list[Event] = []
    told.sinks.append(heard.append)
    told.ended(ends)
    assert heard == []
    told.asked(b"\x81\xa6follow\xc3")
    told.ended(ends)
    assert [(one.name, one.severity) for one in heard] == [("task.done", "debug")]
    assert told.asked(b"")["events"] == []


def _outcome(token: Any) -> Any:
    from tests.unit.builders import outcome

    return outcome(token)


def test_a_query_chooses_and_bounds(told: Watching) -> None:
    import msgspec

    for number in range(5):
        told.tell("node.joined", node=f"node{number}")
    told.tell("space.full")
    ask = msgspec.msgpack.encode
    names = [one.facts["node"] for one in told.asked(ask({"name": "node.*", "limit": 2}))["events"]]
    assert names == ["node3", "node4"]
    assert [one.name for one in told.asked(ask({"severity": "error"}))["events"]] == ["space.full"]
    assert told.asked(ask({"limit": 0}))["events"] == []
    for wrong in ({"limit": -1}, {"severity": "loud"}, {"name": 3}):
        with pytest.raises((UsageError, ValueError)):
            told.asked(ask(wrong))


def test_slow_flushes_and_heat_are_told_as_they_begin_and_end(
    told: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0]
    monkeypatch.setattr(watching, "boot_ms", lambda: now[0])
    for at, throttled, flush_ms in (
        (0, False, 3),
        (5_000, True, 700),
        (10_000, True, 900),
        (20_000, False, 2),
        (80_000, False, 2),
        (90_000, False, 2),
    ):
        now[0] = at
        told.noticed(throttled, 81, flush_ms)
    assert [one.name for one in told.chronicle.find()] == [
        "machine.throttled",
        "journal.slow",
        "machine.cooled",
        "journal.steady",
    ]


def test_parts_are_closed_once_the_last_first(told: Watching) -> None:
    part = Part()
    told.parts += [part, part]
    told.close()
    told.close()
    assert part.closed == 2
