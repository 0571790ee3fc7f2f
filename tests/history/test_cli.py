"""What `blackroad history` prints."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from blackroad.cli import history as commands
from blackroad.cli.history import BARS, PLAIN_BARS, history_command, plot
from blackroad.errors import BlackroadError, HistoryProblem, UnitError, UsageError
from blackroad.history.database import Database
from blackroad.history.storage import own_url, spool_of
from blackroad.ids import short, task_text
from tests.history.words import (
    OWNER,
    WORKER,
    counted,
    finished,
    happened,
    known,
    sampled,
    spool,
    store,
    write,
)

HOUR_MS = 3_600_000


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory whose history is SQLite, with nothing in it."""
    monkeypatch.setenv("BLACKROAD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("BLACKROAD_HISTORY_URL", "sqlite")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def filled(state: Path) -> Path:
    """With some of everything, an hour ago."""
    now = time.time_ns() // 1_000_000
    then = now - HOUR_MS
    place = spool_of(state)
    place.parent.mkdir()
    database = Database(own_url(state))
    database.prepare()
    store(
        database,
        place,
        known(heard_ms=now),
        known(OWNER, name="attic", heard_ms=now, state="dead"),
        sampled(then - then % 30_000, running=4),
        finished(1, submitted_ms=then - 5_000, ended_ms=then),
        finished(2, ended_ms=then + 1, state="failed", reason="ValueError", tries=3),
        counted(2_500, minute_ms=then),
        counted(1, minute_ms=then, state="failed", user="bob"),
        happened(1, at_ms=then, severity="warning", name="node.died", host="at\x1b[31mtic"),
    )
    database.close()
    return state


def run(*words: str) -> Result:
    return CliRunner().invoke(history_command, list(words))


def shown(*words: str) -> str:
    told = run(*words)
    assert told.exception is None, told.exception
    return told.output


def refused(*words: str) -> BlackroadError:
    told = run(*words)
    assert isinstance(told.exception, BlackroadError), told.output
    return told.exception


def test_tasks(filled: Path) -> None:
    lines = shown("tasks").splitlines()
    heads = "ended id state name user node ran waited attempts"
    assert lines[0].split() == heads.split()
    assert task_text(OWNER, (2).to_bytes(16, "big")) in lines[1]
    assert lines[1].endswith("3  ValueError")
    assert "4.6 s" in lines[2]
    assert "2 500 done, 1 failed" in lines
    assert "the newest 2 are shown" in lines[-1]
    assert "shed" in lines[2]
    assert shown("tasks", "--since", "30m") == "no task ended in that time\n"
    told = json.loads(shown("tasks", "--state", "failed", "--json"))
    assert [task["state"] for task in told["tasks"]] == ["failed"]


def test_nodes(filled: Path) -> None:
    lines = shown("nodes").splitlines()
    row = next(line for line in lines if line.startswith("shed"))
    assert "alive" in row
    assert "100 %" in row
    assert "2 501" in row
    assert lines[-1].startswith("1 of 2 nodes heard lately: critical; 1 warning in the last 24 h")
    node = json.loads(shown("nodes", "--json"))["nodes"][1]
    assert (node["name"], node["busy_percent"]) == ("shed", 100.0)
    assert not [key for key in node if key.startswith("_")]


def test_usage(filled: Path) -> None:
    lines = shown("usage", "--by", "user", "--since", "2h").splitlines()
    assert lines[0].split()[:2] == ["user", "tasks"]
    assert lines[1].split()[:2] == ["ada", "2"]
    assert BARS[-1] in lines[1]
    assert BARS[1] in lines[2]
    assert "not counted by" in refused("usage", "--by", "moon").message


def test_events_cannot_steer_the_terminal(filled: Path) -> None:
    line = shown("events", "--severity", "warning")
    assert "\x1b" not in line
    assert "node.died  node=shed count=1" in line
    assert json.loads(shown("events", "--json"))["host"] == "at\x1b[31mtic"
    assert shown("events", "--name", "task.*") == "no such event in that time\n"


def test_what_waits_in_the_spool_is_read_first(filled: Path) -> None:
    made = spool(spool_of(filled), life=2)
    write(made, finished(3, ended_ms=time.time_ns() // 1_000_000, name="late"))
    assert "late" in shown("tasks")


def test_another_database_can_be_looked_at(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = own_url(filled)
    monkeypatch.setenv("BLACKROAD_HISTORY_URL", "off")
    monkeypatch.setenv("BLACKROAD_STATE_DIR", str(filled / "elsewhere"))
    assert "keeps no history: history_url is off" in refused("tasks").message
    assert "2 500 done" in shown("tasks", "--url", url)


def test_what_was_written_before_it_was_switched_off_can_still_be_read(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLACKROAD_HISTORY_URL", "off")
    assert "2 500 done" in shown("tasks")


def test_where_there_is_nothing_it_says_so_and_makes_nothing(state: Path) -> None:
    error = refused("nodes")
    assert isinstance(error, HistoryProblem)
    assert "there is no history yet" in error.message
    assert not Path(own_url(state).removeprefix("sqlite:///")).exists()


def test_times_are_understood_or_refused(filled: Path) -> None:
    assert "failed" in shown("tasks", "--since", "2020-01-01", "--until", "1s")
    assert "not before" in refused("tasks", "--since", "1h", "--until", "2h").message
    assert isinstance(refused("tasks", "--since", "yesterday"), UnitError)
    assert "no moment" in refused("tasks", "--since", "2026-99-01").message
    assert "no moment" in refused("tasks", "--since", "0001-01-01").message
    wrong = refused("tasks", "--state", "sleeping")
    assert isinstance(wrong, UsageError)
    assert "failed" in wrong.hint
    assert "knows no node" in refused("tasks", "--node", "cellar").message
    assert short(WORKER) in shown("nodes")


def test_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_draws", lambda: True)
    full = [float(at) for at in range(48)]
    assert len(plot(full, 47.0)) == 24
    assert plot(full, 47.0)[-1] == BARS[-1]
    assert plot([0.0, 0.0, None, None, 0.01, 0.0, 1.0, 0.0] * 6, 1.0)[:4] == "▁ ▂█"
    assert plot([None] * 48, 1.0) == " "
    assert plot([0.0] * 48, 0.0) == "▁" * 24
    monkeypatch.setattr(commands, "_draws", lambda: False)
    assert plot(full, 47.0).isascii()
    assert plot(full, 47.0)[-1] == PLAIN_BARS[-1]
