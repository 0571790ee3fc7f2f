"""`blackroad events` for people: one line each, told once, and no terminal is steered."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from blackroad.cli import events as command
from blackroad.cli import why
from blackroad.events import Event, severity_of

TASK = "k3f7x2ab-m5c7qzzzzzzzzzzzzzzzzzzzzz"


def event(number: int, name: str = "node.died", **changes: Any) -> Event:
    fields: dict[str, Any] = {
        "id": f"k3f7x2ab-1-{number}",
        "at_ms": 1_700_000_000_000 + 1_000 * number,
        "node": "k3f7x2ab",
        "host": "attic",
        "name": name,
        "severity": severity_of(name),
        "cause": "zxy2zxy2-7",
        "facts": {"node": "zxy2zxy2", "inc": 7 << 32},
        **changes,
    }
    return Event(**fields)


def test_a_line_names_what_it_is_about_once() -> None:
    labels = {"zxy2zxy2": "cellar"}
    assert command.line(event(1), "12:00:00", labels) == (
        "12:00:00  attic  warning: node.died  zxy2zxy2-7 (cellar)"
    )
    facts = {"task": TASK, "on": "zxy2zxy2", "reason": "it broke", "once": True, "text": ""}
    failed = event(2, "task.retried", cause=TASK, facts=facts)
    assert command.line(failed, "12:00:00", labels) == (
        f'12:00:00  attic  task.retried  {TASK} on=cellar reason="it broke" once=yes text=""'
    )


def test_what_all_nodes_see_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Within ten seconds, of one cause; what only one tells is always shown."""
    seen = [
        event(1),
        event(2, node="desk2222", host="desk"),
        event(3, cause="other222-1"),
        event(20),
        event(21, "task.failed"),
        event(22, "task.failed"),
    ]
    lines = command.Lines(as_json=False, each=False)
    for one in seen:
        lines.add(one)
    assert [line.split()[1] for line in told(capsys)] == ["attic"] * 5
    lines = command.Lines(as_json=False, each=True)
    for one in seen:
        lines.add(one)
    assert len(told(capsys)) == 6


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of events, without those that name the day."""
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if not re.fullmatch(r"\d{4}-\d\d-\d\d", line)]


def test_json_is_an_event_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = command.Lines(as_json=True, each=True)
    lines.add(event(1))
    row = json.loads(capsys.readouterr().out)
    assert (row["id"], row["name"], row["facts"]["node"]) == (
        "k3f7x2ab-1-1",
        "node.died",
        "zxy2zxy2",
    )


EVIL = "\x1b[2J\x1b]0;owned\x07a\nb\tc"


def test_no_text_of_another_machine_steers_a_terminal() -> None:
    """Names, facts and causes with escapes and line ends stay on their line, spelled out."""
    line = command.line(event(1, host=EVIL, cause=EVIL, facts={"text": EVIL}), "12:00:00", {})
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)
    node = {
        "id": "k3f7x2ab",
        "name": EVIL,
        "rule": EVIL,
        "missing": [[EVIL, EVIL, EVIL, "missing"]],
        "pool": {"users": [["k3f7x2ab", 1, EVIL, 1]]},
    }
    answer = {
        "id": TASK,
        "state": "queued",
        "reason": EVIL,
        "needs": EVIL,
        "ahead": 0,
        "last": EVIL,
        "coordinator": "k3f7x2ab",
        "nodes": [node],
    }
    for line in why.lines(answer):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", line)
