"""`blackroad top` without a terminal: once, as JSON, and what it says where it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from blackroad.cli import top
from blackroad.errors import NoDaemon
from blackroad.tui import feed as feeds
from tests.tui.fakes import FakeMesh, beat, node_id, task_row, work
from tests.unit.cli_fake import blackroad


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> FakeMesh:
    """A mesh of two nodes behind the command."""
    made = FakeMesh(beat(0, owned=2), beat(1, state="suspect", silent_ms=4_200))
    made.works[node_id(0)] = work(
        0, task_row(1), task_row(2, "queued", name="x\x1b[2J"), ended={"done": 12}
    )
    monkeypatch.setattr(feeds, "ONCE_S", 0.0)
    monkeypatch.setattr(feeds, "Session", lambda _connect: made)
    return made


def test_once(mesh: FakeMesh) -> None:
    told = blackroad("top", "--once", "--interval", "100ms")
    assert (told.code, told.err) == (0, "")
    lines = told.out.splitlines()
    assert lines[0].startswith("blackroad  2 nodes, 1 suspect  led by attic since epoch 3")
    assert lines[2] == "tasks  1 running  1 queued  12 done"
    assert lines[4].split()[:3] == ["name", "state", "role"]
    assert lines[5].split()[:3] == ["shed", "suspect", "4.2s"]
    assert "\x1b" not in told.out
    assert "x·[2J" in told.out
    assert max(map(len, lines)) <= 80
    assert mesh.closed


def test_once_as_json(mesh: FakeMesh) -> None:
    told = blackroad("top", "--once", "--json", "--interval", "100ms")
    assert (told.code, told.err) == (0, "")
    found = json.loads(told.out)
    assert found["schema"] == 1
    assert found["epoch"] == [3, found["coordinator"]]
    assert found["tasks"] == {"running": 1, "queued": 1, "done": 12}
    assert [row["name"] for row in found["nodes"]] == ["attic", "shed"]


def test_json_goes_on_while_the_daemon_is_away(
    mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[dict[str, Any]] = []

    def put(value: dict[str, Any]) -> None:
        printed.append(value)
        mesh.away = 2 <= len(printed) < 4
        if len(printed) > 3 and not value["problem"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(top.output, "print_json_line", put)
    assert blackroad("top", "--json", "--interval", "100ms").code == 130
    problems = [bool(one["problem"]) for one in printed]
    assert problems[0] is False
    assert True in problems
    assert problems[-1] is False
    assert mesh.closed


def test_it_needs_a_terminal(mesh: FakeMesh) -> None:
    told = blackroad("top")
    assert told.code == 2
    assert "the live view needs a terminal" in told.err
    assert "--once" in told.err


@pytest.mark.parametrize("interval", ["1ms", "2h", "often"])
def test_an_interval_that_makes_no_sense(mesh: FakeMesh, interval: str) -> None:
    assert blackroad("top", "--once", "--interval", interval).code == 2


def test_no_daemon(mesh: FakeMesh) -> None:
    mesh.away = True
    told = blackroad("top", "--once")
    assert told.code == NoDaemon.exit_code == 4
    assert "start one" in told.err


def test_without_textual(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "textual"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "blackroad.tui.app", raising=False)
    monkeypatch.delitem(sys.modules, "blackroad.tui.pane", raising=False)
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setattr(top.output, "is_terminal", lambda: True)
    told = blackroad("top")
    assert told.code == 5
    assert "pip install 'blackroad[tui]'" in told.err
    assert "--once" in told.err


def test_neither_once_nor_json_import_textual() -> None:
    code = (
        "import sys; from blackroad.tui import feed, sheets, banner, model, details;"
        "from blackroad.cli import top, main;"
        "print([n for n in sys.modules if n.partition('.')[0] in ('textual', 'rich')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ},
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
