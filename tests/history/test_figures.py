"""The figures are those of the rows, and the views compute what is true."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from blackroad.errors import UsageError
from blackroad.history.database import Database
from blackroad.history.figures import BUCKETS, Filter, Reader, Span
from blackroad.history.ingest import SAMPLE_MS
from blackroad.ids import short
from tests.history.words import (
    NOON_MS,
    OWNER,
    WORKER,
    counted,
    finished,
    happened,
    known,
    one,
    rows,
    sampled,
    store,
)

HOUR_MS = 3_600_000
DAY = Span(NOON_MS, NOON_MS + 24 * HOUR_MS)


def test_health_is_the_share_of_nodes_that_were_heard(database: Database, tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    nodes = [known(bytes([at]) * 16, heard_ms=now, name=f"n{at}") for at in range(7)]
    quiet = known(b"q" * 16, heard_ms=now - 20 * 60_000)
    dead = known(b"d" * 16, heard_ms=now, state="dead")
    left = known(b"l" * 16, heard_ms=now - 9 * HOUR_MS, state="left")
    store(database, tmp_path / "a", *nodes, quiet, dead, left)
    health = rows(database, "SELECT * FROM health_summary")[0]
    assert (health["nodes"], health["healthy"], health["absent"]) == (9, 7, 1)
    assert health["percent"] == pytest.approx(700 / 9)
    assert health["status"] == "degraded"
    store(database, tmp_path / "b", known(b"q" * 16, heard_ms=now))
    assert one(database, "SELECT status FROM health_summary") == "healthy"
    gone = [known(bytes([at]) * 16, heard_ms=now, state="dead") for at in range(5)]
    store(database, tmp_path / "c", *gone)
    assert one(database, "SELECT status FROM health_summary") == "critical"


def test_alerts_are_the_warnings_of_a_day(database: Database, tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    store(
        database,
        tmp_path / "a",
        happened(1, severity="warning", at_ms=now - HOUR_MS),
        happened(2, severity="error", at_ms=now - HOUR_MS),
        happened(3, severity="info", at_ms=now),
        happened(4, severity="error", at_ms=now - 25 * HOUR_MS),
    )
    found = rows(database, "SELECT severity FROM active_alerts ORDER BY severity")
    assert [row["severity"] for row in found] == ["error", "warning"]
    assert Reader(database).health()["alerts"] == 2


def test_utilisation_is_that_of_the_newest_sample(database: Database, tmp_path: Path) -> None:
    store(
        database,
        tmp_path / "a",
        known(),
        sampled(NOON_MS, running=4),
        sampled(NOON_MS + SAMPLE_MS, running=1, free_memory_bytes=900),
    )
    found = rows(database, "SELECT * FROM resource_utilisation")
    assert len(found) == 1
    assert (found[0]["slots_percent"], found[0]["memory_given_percent"]) == (25.0, 10.0)
    assert (found[0]["cpu_percent"], found[0]["memory_percent"]) == (55.0, 75.0)
    assert (found[0]["name"], found[0]["at_ms"]) == ("shed", NOON_MS + SAMPLE_MS)


def test_tasks_are_the_newest_that_are_wanted_and_all_are_counted(
    database: Database, tmp_path: Path
) -> None:
    store(
        database,
        tmp_path / "a",
        known(),
        known(OWNER, name="attic"),
        *(finished(number) for number in range(10)),
        finished(11, name="render_1", state="failed", user="bob", node=OWNER, reason="ValueError"),
        finished(12, name="renderX1"),
        counted(5_000),
        counted(3, state="failed", name="render_1", user="bob", node=OWNER),
    )
    reader = Reader(database)
    told = reader.tasks(DAY, Filter(), 3)
    assert [task["ended_ms"] - NOON_MS - 1_000 for task in told["tasks"]] == [12, 11, 9]
    assert told["counts"] == {"done": 5_000, "failed": 3}
    assert told["tasks"][1]["node_name"] == "attic"

    def names(which: Filter) -> set[str]:
        return {task["name"] for task in reader.tasks(DAY, which, 50)["tasks"]}

    assert names(Filter(state="failed")) == {"render_1"}
    assert names(Filter(name="render*")) == {"render_1", "renderX1"}
    assert names(Filter(name="render_?")) == {"render_1"}
    assert names(Filter(name="%")) == set()
    assert names(Filter(user="b?b")) == {"render_1"}
    assert names(Filter(node="attic")) == {"render_1"}
    assert names(Filter(node=short(OWNER)[:5])) == {"render_1"}
    assert reader.tasks(Span(NOON_MS - 10, NOON_MS), Filter(), 50)["tasks"] == []
    assert reader.tasks(DAY, Filter(name="fib"), 50)["counts"] == {"done": 5_000}
    with pytest.raises(UsageError, match="knows no node"):
        reader.tasks(DAY, Filter(node="cellar"), 50)


def test_nodes_tell_how_long_they_were_there_and_how_busy(
    database: Database, tmp_path: Path
) -> None:
    span = Span(NOON_MS, NOON_MS + 48 * SAMPLE_MS)
    there = [
        sampled(NOON_MS + at * SAMPLE_MS, running=4 if at < 12 else 0, temperature_c=40 + at)
        for at in range(24)
    ]
    store(
        database,
        tmp_path / "a",
        known(heard_ms=NOON_MS),
        *there,
        counted(90),
        counted(10, state="failed"),
    )
    node = Reader(database).nodes(span)["nodes"][0]
    assert node["seen_percent"] == pytest.approx(50.0)
    assert node["busy_percent"] == pytest.approx(50.0)
    assert (node["memory_percent"], node["cpu_percent"]) == (75.0, 55.0)
    assert node["temperature_c_max"] == 63.0
    assert (node["tasks"], node["failed"]) == (100, 10)
    assert node["core_hours"] == pytest.approx(100 * 2_000 / 3.6e9)
    assert node["series"] == [100.0] * 12 + [0.0] * 12 + [None] * 24


def test_usage_adds_up_by_whatever_is_asked(database: Database, tmp_path: Path) -> None:
    store(
        database,
        tmp_path / "a",
        known(),
        counted(3_600, run_us=3_600_000_000, core_us=7_200_000_000),
        counted(10, user="bob", minute_ms=NOON_MS + 12 * HOUR_MS, state="failed"),
        counted(5, user="bob", minute_ms=NOON_MS + 23 * HOUR_MS, name="render"),
        counted(7, minute_ms=NOON_MS + 24 * HOUR_MS),
    )
    reader = Reader(database)
    told = {row["key"]: row for row in reader.usage(DAY, "user", Filter())["usage"]}
    assert (told["ada"]["tasks"], told["ada"]["hours"], told["ada"]["core_hours"]) == (3_600, 1, 2)
    assert told["ada"]["mean_ms"] == pytest.approx(1_000)
    assert (told["bob"]["tasks"], told["bob"]["failed"]) == (15, 10)
    series = told["bob"]["series"]
    assert (len(series), series[BUCKETS // 2], series[BUCKETS * 23 // 24]) == (BUCKETS, 10.0, 5.0)
    assert sum(series) == 15
    by_node = reader.usage(DAY, "node", Filter())["usage"]
    assert [(row["key"], row["tasks"]) for row in by_node] == [("shed", 3_615)]
    some = reader.usage(DAY, "name", Filter(user="bob"))["usage"]
    assert {row["key"]: row["tasks"] for row in some} == {"fib": 10, "render": 5}
    with pytest.raises(UsageError, match="not counted by"):
        reader.usage(DAY, "weather", Filter())


def test_a_short_time_is_not_drawn_finer_than_it_was_seen(
    database: Database, tmp_path: Path
) -> None:
    counts = [counted(at + 1, minute_ms=NOON_MS + at * 60_000) for at in range(6)]
    samples = [sampled(NOON_MS + at * SAMPLE_MS, running=at % 5) for at in range(12)]
    store(database, tmp_path / "a", known(heard_ms=NOON_MS), *counts, *samples)
    span = Span(NOON_MS, NOON_MS + 6 * 60_000)
    usage = Reader(database).usage(span, "name", Filter())["usage"]
    assert usage[0]["series"] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    node = Reader(database).nodes(span)["nodes"][0]
    assert node["series"] == [25.0 * (at % 5) for at in range(12)]


def test_events_are_found_by_what_they_are(database: Database, tmp_path: Path) -> None:
    store(
        database,
        tmp_path / "a",
        happened(1, name="node.joined"),
        happened(2, name="node.died", severity="warning", cause="abc-1"),
        happened(3, name="task.failed", severity="warning", host="shed", node=short(WORKER)),
        happened(4, name="journal.damaged", severity="error"),
    )
    reader = Reader(database)

    def names(which: Filter, severity: str = "", cause: str = "", limit: int = 9) -> list[str]:
        return [row["name"] for row in reader.events(DAY, which, severity, cause, limit)]

    assert names(Filter()) == ["node.joined", "node.died", "task.failed", "journal.damaged"]
    assert names(Filter(), limit=2) == ["task.failed", "journal.damaged"]
    assert names(Filter(name="node.*")) == ["node.joined", "node.died"]
    assert names(Filter(), "warning") == ["node.died", "task.failed", "journal.damaged"]
    assert names(Filter(node="shed")) == ["task.failed"]
    assert names(Filter(), cause="abc-1") == ["node.died"]
    assert reader.events(DAY, Filter(), "error", "", 9)[0]["facts"] == {"node": "shed", "count": 4}
    with pytest.raises(UsageError, match="no severity"):
        names(Filter(), "loud")
