"""From the spool into the database: everything once, whatever ends in between."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from blackroad.errors import HistoryProblem
from blackroad.history.database import Database
from blackroad.history.ingest import Ingest
from blackroad.history.records import HEAD, MAGIC, Record
from blackroad.history.spool import Segment, segments
from blackroad.ids import short, task_text
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
    spool,
    store,
    tried,
    write,
)


def test_every_kind_of_record_becomes_what_it_says(database: Database, tmp_path: Path) -> None:
    store(
        database,
        tmp_path / "spool",
        known(),
        sampled(NOON_MS),
        happened(1),
        finished(1, tries=2),
        tried(1),
        counted(5),
    )
    task = rows(database, "SELECT * FROM tasks")[0]
    assert (task["task"], task["owner"]) == (
        task_text(OWNER, (1).to_bytes(16, "big")),
        short(OWNER),
    )
    assert (task["name"], task["user_name"], task["durable"]) == ("fib", "ada", False)
    attempts = rows(database, "SELECT * FROM attempts ORDER BY number")
    assert [(a["number"], a["status"]) for a in attempts] == [(1, "crashed: SIGKILL"), (2, "done")]
    assert attempts[1]["granted_ms"] == task["ended_ms"] - 400
    allocation = rows(database, "SELECT * FROM resource_allocations WHERE attempt = 2")[0]
    assert (allocation["cpu_units"], allocation["allocated_to"]) == (20_000, "ada")
    event = rows(database, "SELECT name, host, severity FROM cluster_events")[0]
    assert event == {"name": "node.joined", "host": "attic", "severity": "info"}
    node = rows(database, "SELECT * FROM cluster_nodes")[0]
    assert (node["node"], node["status"], node["slots"]) == (short(WORKER), "alive", 4)
    assert rows(database, "SELECT gpu, name FROM gpu_resources") == [{"gpu": 0, "name": "V3D"}]
    assert one(database, "SELECT tasks FROM load_balancing_metrics") == 5


def test_taken_again_and_again_nothing_is_doubled(database: Database, tmp_path: Path) -> None:
    made = spool(tmp_path / "spool")
    for number in range(30):
        write(made, happened(number), finished(number), counted(1), sampled(NOON_MS))
        for _ in range(2):
            Ingest(database, tmp_path / "spool").run()
    assert one(database, "SELECT COUNT(*) FROM cluster_events") == 30
    assert one(database, "SELECT COUNT(*) FROM tasks") == 30
    assert one(database, "SELECT SUM(tasks) FROM load_balancing_metrics") == 30
    assert one(database, "SELECT COUNT(*) FROM system_resources") == 1


def test_two_nodes_that_saw_the_same_write_it_once(database: Database, tmp_path: Path) -> None:
    for place in ("a", "b"):
        store(database, tmp_path / place, happened(1), sampled(NOON_MS), known())
    counts = [
        one(database, f"SELECT COUNT(*) FROM {table}")
        for table in ("cluster_events", "system_resources", "cluster_nodes")
    ]
    assert counts == [1, 1, 1]


def test_of_a_node_the_newest_counts_and_its_first_sight_is_kept(
    database: Database, tmp_path: Path
) -> None:
    store(database, tmp_path / "a", known(heard_ms=NOON_MS + 60_000, state="draining"))
    store(database, tmp_path / "b", known(heard_ms=NOON_MS, state="dead"))
    node = rows(database, "SELECT status, joined_ms, last_heartbeat_ms FROM cluster_nodes")[0]
    later = NOON_MS + 60_000
    assert node == {"status": "draining", "joined_ms": later, "last_heartbeat_ms": later}
    store(database, tmp_path / "c", known(heard_ms=later - 100, state="dead"))
    assert one(database, "SELECT status FROM cluster_nodes") == "dead"
    assert one(database, "SELECT joined_ms FROM cluster_nodes") == later


class Breaking(Ingest):
    """Ends at a chosen moment, as a killed process does."""

    def __init__(self, *given: Any, chance: random.Random) -> None:
        super().__init__(*given)
        self.chance = chance

    def _write(self, one: Segment, records: Any, at: int, end: int) -> None:
        if self.chance.random() < 0.2:
            raise HistoryProblem("killed before the commit")
        super()._write(one, records, at, end)
        if self.chance.random() < 0.2:
            raise HistoryProblem("killed after the commit")

    def _done(self, one: Segment) -> None:
        if self.chance.random() < 0.3:
            raise HistoryProblem("killed before the segment went")
        super()._done(one)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_killed_whenever_each_record_is_there_once(
    database: Database, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    directory = tmp_path / "spool"
    given: list[Record] = []
    sums: Counter[str] = Counter()
    for life in range(1, 4):
        made = spool(directory, life, bytes_max=256 * 1024)
        made.segment_bytes = 4096
        for number in range(25):
            batch = [happened(life * 1000 + number), finished(life * 1000 + number)]
            name = f"n{chance.randrange(3)}"
            sums[name] += number
            write(made, *batch, counted(number, name=name))
            given += batch
            try:
                Breaking(database, directory, chance=chance).run()
            except HistoryProblem:
                continue
        made.close()
    Ingest(database, directory).run()
    assert made.lost == 0
    assert one(database, "SELECT COUNT(*) FROM cluster_events") == len(given) // 2
    assert one(database, "SELECT COUNT(*) FROM tasks") == len(given) // 2
    found = rows(database, "SELECT name, SUM(tasks) AS n FROM load_balancing_metrics GROUP BY name")
    assert {row["name"]: int(row["n"]) for row in found} == dict(sums)
    assert len(segments(directory)) == 1


def test_what_was_cut_off_is_left_out_and_what_follows_is_read(
    database: Database, tmp_path: Path
) -> None:
    directory = tmp_path / "spool"
    for life in (1, 2):
        made = spool(directory, life)
        write(made, happened(life))
        made.close()
    with segments(directory)[0].path.open("ab") as file:
        file.write(HEAD.pack(5000, 1, 3) + b"half")
    Ingest(database, directory).run()
    assert one(database, "SELECT COUNT(*) FROM cluster_events") == 2
    assert [one.life for one in segments(directory)] == [2]


def test_a_segment_that_is_still_written_is_read_as_far_as_it_is_whole(
    database: Database, tmp_path: Path
) -> None:
    directory = tmp_path / "spool"
    made = spool(directory)
    write(made, happened(1))
    path = segments(directory)[0].path
    whole = path.read_bytes()
    write(made, happened(2))
    both = path.read_bytes()
    taken = Ingest(database, directory)
    for length in (len(MAGIC), len(whole), len(whole) + 5, len(both) - 1, len(both)):
        path.write_bytes(both[:length])
        taken.run()
    assert one(database, "SELECT COUNT(*) FROM cluster_events") == 2


def test_a_row_that_is_never_taken_holds_up_no_other(database: Database, tmp_path: Path) -> None:
    # More than the column holds, which SQLite does not mind.
    strange = finished(2, tries=2**40)
    taken = store(database, tmp_path / "spool", finished(1), strange, finished(3), counted(4))
    left = 3 if database.dialect == "sqlite" else 2
    assert one(database, "SELECT COUNT(*) FROM tasks") == left
    assert taken.refused == 3 - left
    assert one(database, "SELECT SUM(tasks) FROM load_balancing_metrics") == 4


def test_texts_of_other_machines_are_stored_as_far_as_they_are_text(
    database: Database, tmp_path: Path
) -> None:
    facts: dict[str, Any] = {"z\0": "a\0b", "nan": math.nan, "inf": -math.inf, "big": 2**62}
    taken = store(
        database,
        tmp_path / "spool",
        finished(1, name="'; DROP TABLE tasks; --", user="\0\x1b[31m"),
        finished(2, name="x" * 10_000),
        happened(1, facts=facts, host="é\0" * 200),
    )
    assert taken.refused == 0
    names = [row["name"] for row in rows(database, "SELECT name FROM tasks ORDER BY ended_ms")]
    assert names == ["'; DROP TABLE tasks; --", "x" * 256]
    assert "\0" not in one(database, "SELECT host FROM cluster_events")


def test_what_another_version_wrote_is_not_guessed_at(database: Database, tmp_path: Path) -> None:
    import zlib

    import msgspec

    body = msgspec.msgpack.encode([[77, "what", "is", "this"]])
    made = spool(tmp_path / "spool")
    write(made, happened(1))
    path = segments(made.directory)[0].path
    path.write_bytes(path.read_bytes() + HEAD.pack(len(body), zlib.crc32(body), 1) + body)
    with pytest.raises(HistoryProblem, match="cannot read"):
        Ingest(database, made.directory).run()
    assert path.exists()
