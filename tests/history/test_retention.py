"""What is kept: means of what was fine, sums that stay exact, and nothing beyond the bounds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from blackroad.history import retention, schema
from blackroad.history.database import Database
from blackroad.history.ingest import SAMPLE_MS
from blackroad.history.retention import COARSE_SAMPLE_MS, DAY_MS, HOUR_MS, _coarsen, tidy
from tests.edge.meshes import until
from tests.history.postgres import Postgres
from tests.history.words import (
    NOON_MS,
    counted,
    finished,
    happened,
    known,
    one,
    rows,
    sampled,
    store,
    tried,
)

NOW_MS = NOON_MS + 3 * DAY_MS


def test_old_samples_become_means_that_weigh_each_alike(database: Database, tmp_path: Path) -> None:
    loads = (10, 20, 60)
    samples = [
        sampled(NOON_MS + at * SAMPLE_MS, load_percent=load, temperature_c=load, done=at)
        for at, load in enumerate(loads)
    ]
    store(database, tmp_path / "a", *samples, sampled(NOON_MS + COARSE_SAMPLE_MS))
    tidy(database, 7, NOW_MS)
    found = rows(database, "SELECT * FROM system_resources ORDER BY at_ms")
    assert [(row["span_ms"], row["samples"]) for row in found] == [
        (COARSE_SAMPLE_MS, 3),
        (COARSE_SAMPLE_MS, 1),
    ]
    first = found[0]
    assert (first["load_percent"], first["load_percent_max"]) == (30.0, 60.0)
    assert (first["temperature_c_max"], first["done"]) == (60.0, 2)
    assert first["running"] == 2.0
    # One that waited on a node's disk comes late, and counts as much as the others did.
    store(database, tmp_path / "b", sampled(NOON_MS + 4 * SAMPLE_MS, load_percent=70, done=1))
    tidy(database, 7, NOW_MS)
    late = rows(database, "SELECT * FROM system_resources ORDER BY at_ms")[0]
    assert (late["samples"], late["load_percent"], late["load_percent_max"]) == (4, 40.0, 70.0)
    assert late["done"] == 2


def test_what_is_new_stays_as_fine_as_it_is(database: Database, tmp_path: Path) -> None:
    fresh = NOW_MS - HOUR_MS
    store(database, tmp_path / "a", sampled(fresh), counted(3, minute_ms=fresh))
    tidy(database, 7, NOW_MS)
    assert one(database, "SELECT span_ms FROM system_resources") == SAMPLE_MS
    assert one(database, "SELECT span_ms FROM load_balancing_metrics") == 60_000


def test_counts_of_minutes_become_counts_of_hours_without_losing_one(
    database: Database, tmp_path: Path
) -> None:
    minutes = [counted(at + 1, minute_ms=NOON_MS + at * 60_000) for at in range(90)]
    store(database, tmp_path / "a", *minutes, counted(5, name="other"))
    before = one(database, "SELECT SUM(core_us) FROM load_balancing_metrics")
    tidy(database, 7, NOW_MS)
    store(database, tmp_path / "b", counted(1000))
    tidy(database, 7, NOW_MS)
    found = rows(
        database,
        "SELECT name, at_ms, tasks FROM load_balancing_metrics ORDER BY name, at_ms",
    )
    assert [(row["name"], row["at_ms"] - NOON_MS, int(row["tasks"])) for row in found] == [
        ("fib", 0, sum(range(1, 61)) + 1000),
        ("fib", HOUR_MS, sum(range(61, 91))),
        ("other", 0, 5),
    ]
    after = one(database, "SELECT SUM(core_us) FROM load_balancing_metrics")
    assert int(after) == int(before) + 1000 * 2_000


class Halting(Database):
    """Stops before its first commit, once it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reached, self.go = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def begin(self, *, rows: bool = False) -> Iterator[Any]:
        with super().begin(rows=rows) as connection:
            yield connection
            if not self.reached.is_set():
                self.reached.set()
                assert self.go.wait(30)


def test_two_nodes_that_tidy_at_once_count_nothing_twice(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.fresh("two_tidy")
    first, second, watcher = Halting(url), Database(url), Database(url)
    watcher.prepare()
    store(watcher, tmp_path / "a", *(counted(1, minute_ms=NOON_MS + at) for at in (0, 60_000)))
    table = schema.load_balancing_metrics
    with ThreadPoolExecutor(2) as pool:
        works = [pool.submit(_coarsen, first, table, HOUR_MS, NOW_MS)]
        assert first.reached.wait(30)
        works.append(pool.submit(_coarsen, second, table, HOUR_MS, NOW_MS))
        until(
            lambda: one(watcher, "SELECT COUNT(*) FROM pg_locks WHERE NOT granted"),
            "the second to wait for the first",
        )
        first.go.set()
        for work in works:
            work.result(30)
    assert int(one(watcher, "SELECT SUM(tasks) FROM load_balancing_metrics")) == 2
    for database in (first, second, watcher):
        database.close()


def test_what_is_too_old_goes(database: Database, tmp_path: Path) -> None:
    old = NOW_MS - 8 * DAY_MS
    kept = NOW_MS - 6 * DAY_MS
    for place, when in (("a", old), ("b", kept)):
        store(
            database,
            tmp_path / place,
            finished(when % 1000 + 1, task=place.encode() * 16, ended_ms=when),
            tried(1, task=place.encode() * 16, ended_ms=when),
            happened(1, id=f"n-1-{place}", at_ms=when),
            sampled(when),
            counted(1, minute_ms=when),
            known(place.encode() * 16, heard_ms=when),
        )
    gone = tidy(database, 7, NOW_MS)
    assert gone["tasks"] == gone["cluster_events"] == gone["cluster_nodes"] == 1
    for table in ("tasks", "lost_attempts", "cluster_events", "system_resources"):
        assert one(database, f"SELECT COUNT(*) FROM {table}") == 1, table
    assert one(database, "SELECT COUNT(*) FROM load_balancing_metrics") == 1
    assert one(database, "SELECT COUNT(*) FROM gpu_resources") == 1
    assert one(database, "SELECT last_heartbeat_ms FROM cluster_nodes") == kept


def test_there_are_never_more_rows_than_may_be(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(retention.ROWS_MAX, "tasks", 40)
    monkeypatch.setattr(retention, "STEP_ROWS", 7)
    store(database, tmp_path / "a", *(finished(number) for number in range(100)))
    tidy(database, 7, NOON_MS + HOUR_MS)
    assert one(database, "SELECT COUNT(*) FROM tasks") == 40
    newest = one(database, "SELECT MAX(ended_ms) FROM tasks")
    assert newest == NOON_MS + 1_000 + 99
    assert one(database, "SELECT MIN(ended_ms) FROM tasks") == newest - 39
