"""A disk that changes what was written: what is damaged is found, set aside and told; the rest
goes on, and what the damage took leaves no task without an end."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from blackroad.bus import messages as m
from blackroad.errors import StateDirectoryProblem
from blackroad.router.effects import AttemptRow, EndRow, ForgetRow, JournalRow, TaskRow
from blackroad.store import schema, wal
from blackroad.store.journal import FILE, Findings, Journal, Left
from blackroad.store.verdicts import LOST, NOBODY
from tests.edge.test_journal import (
    NODE,
    attempt_row,
    end_row,
    flushed,
    spool_row,
    task_id,
    task_row,
)

pytestmark = pytest.mark.edge

ROWS: tuple[JournalRow, ...] = (
    *(task_row(number, b"work %d" % number) for number in range(1, 9)),
    *(attempt_row(number, number) for number in range(1, 7)),
    *(end_row(number, b"result %d" % number) for number in (5, 6)),
    *(spool_row(number) for number in (1, 2, 3)),
)


def write(directory: Path, *groups: tuple[JournalRow, ...], close: bool = True) -> Journal:
    """One life that writes these groups; without `close` it ends as if it were killed."""
    journal = Journal(directory)
    journal.load()
    journal.start()
    for mark, rows in enumerate(groups, start=1):
        journal.append(mark, rows)
        flushed(journal, mark)
    if close:
        journal.close()
    return journal


def killed(directory: Path, *groups: tuple[JournalRow, ...]) -> Path:
    """What the disk holds after such a life was killed."""
    journal = write(directory, *groups, close=False)
    left = directory.with_name(directory.name + "-left")
    left.mkdir()
    for name in (FILE, FILE + "-wal"):
        shutil.copy(directory / name, left / name)
    journal.close()
    return left


def opened(directory: Path) -> tuple[Left, Findings]:
    """The next life's view; it writes nothing of its own."""
    journal = Journal(directory)
    try:
        return journal.load(), journal.findings
    finally:
        journal.close()


def table_of(directory: Path, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(directory / FILE) as other:
        return other.execute(sql).fetchall()


def spoil(directory: Path, name: str, content: bytes, bit: int = 5) -> None:
    """Flip one bit of bytes that stand in the file once."""
    path = directory / name
    data = bytearray(path.read_bytes())
    at = data.find(content)
    assert at >= 0, f"{content!r} is not in {name}"
    data[at] ^= 1 << bit
    path.write_bytes(data)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    return made


# --- clean or not ---------------------------------------------------------------------------------


def test_an_end_in_order_is_known(state: Path) -> None:
    write(state, ROWS)
    assert opened(state)[1] == Findings(clean=True)
    assert table_of(state, "SELECT value FROM meta WHERE name = 'clean'") == [(1,)]


def test_a_kill_is_known_and_all_is_checked(state: Path) -> None:
    left = killed(state, ROWS)
    found, findings = opened(left)
    assert findings == Findings(clean=False)
    assert found == opened(state)[0]


def test_a_life_that_writes_nothing_leaves_the_file_alone(state: Path) -> None:
    write(state, ROWS)
    before = (state / FILE).read_bytes()
    write(state)
    assert (state / FILE).read_bytes() == before


def test_it_is_in_use_from_its_first_commit_on(state: Path) -> None:
    write(state, ROWS)
    journal = write(state, (task_row(90),), (task_row(91),), close=False)
    assert table_of(state, "SELECT value FROM meta WHERE name = 'clean'") == [(0,)]
    journal.close()
    assert table_of(state, "SELECT value FROM meta WHERE name = 'clean'") == [(1,)]


def test_marks_go_on_over_lives(state: Path) -> None:
    write(state, (task_row(1),), (task_row(2),))
    journal = write(state, (task_row(3),))
    assert journal.base == 2
    assert Journal(state).base == 3


# --- one damaged row ------------------------------------------------------------------------------


def one_damaged(state: Path, content: bytes, clean: bool) -> tuple[Left, Findings]:
    if clean:
        write(state, ROWS)
        where, name = state, FILE
    else:
        where, name = killed(state, ROWS), FILE + "-wal"
    spoil(where, name, content)
    if not clean:
        # As a log whose sums are right: what a bad memory would have written.
        _sum_again(where / name)
    found = opened(where)
    again, findings = opened(where)
    assert again == found[0], "what was repaired stays so"
    assert findings.sound
    state.with_name("where").symlink_to(where)
    return found


def _sum_again(path: Path) -> None:
    log = wal._Log(bytearray(path.read_bytes()))
    sums = log.write_header()
    for number in range(len(log)):
        sums = log.write_frame(number, sums)
    path.write_bytes(log.data)


def damaged_rows(state: Path) -> list[tuple[object, ...]]:
    return table_of(state.with_name("where"), "SELECT name, key, reason FROM damaged")


CLEAN = pytest.mark.parametrize("clean", [True, False], ids=["at rest", "after a kill"])


@CLEAN
def test_a_damaged_task_ends_unknown(state: Path, clean: bool) -> None:
    left, findings = one_damaged(state, b"work 8", clean)
    assert findings.damaged == ("task: wrong checksum",)
    assert findings.clean is clean
    assert damaged_rows(state) == [("task", task_id(8), "wrong checksum")]
    stand_in = next(row for row in left.tasks if row.task == task_id(8))
    assert stand_in == TaskRow(task_id(8), LOST, None, b"", False, 0)
    ended = next(row for row in left.ends if row.task == task_id(8))
    assert (ended.end, ended.reason) == (m.End.UNKNOWN, "lost")
    assert "damaged" in ended.facts.text
    whole = [row for row in left.tasks if row.task != task_id(8)]
    assert whole == [row for row in ROWS if isinstance(row, TaskRow)][:7]


@CLEAN
def test_a_damaged_task_that_may_run_is_stopped_first(state: Path, clean: bool) -> None:
    left, findings = one_damaged(state, b"work 3", clean)
    assert findings.damaged == ("task: wrong checksum",)
    assert task_id(3) not in [row.task for row in left.ends]
    wish = {"stop": m.End.UNKNOWN, "stop_reason": "lost"}
    assert msgspec.structs.replace(attempt_row(3, 3), **wish) in left.attempts


@CLEAN
def test_a_damaged_task_keeps_its_outcome(state: Path, clean: bool) -> None:
    left, _ = one_damaged(state, b"work 5", clean)
    assert end_row(5, b"result 5") in left.ends


@CLEAN
def test_a_damaged_attempt_may_run_anywhere(state: Path, clean: bool) -> None:
    body = schema._encode(attempt_row(4, 4))
    left, findings = one_damaged(state, body, clean)
    assert findings.damaged == ("attempt: wrong checksum",)
    found = next(row for row in left.attempts if row.task == task_id(4))
    assert found.members == ((NOBODY, 0),)
    assert len(left.attempts) == 4
    assert task_row(4, b"work 4") in left.tasks


@CLEAN
def test_a_damaged_outcome_ends_its_task_unknown(state: Path, clean: bool) -> None:
    left, findings = one_damaged(state, b"result 6", clean)
    assert findings.damaged == ("outcome: wrong checksum",)
    ended = next(row for row in left.ends if row.task == task_id(6))
    assert (ended.end, ended.reason, ended.result) == (m.End.UNKNOWN, "lost", b"")
    assert task_row(6, b"work 6") in left.tasks
    assert end_row(5, b"result 5") in left.ends


@CLEAN
def test_a_damaged_debt_is_dropped(state: Path, clean: bool) -> None:
    body = schema._encode(spool_row(2))
    left, findings = one_damaged(state, body, clean)
    assert findings.damaged == ("spool: wrong checksum",)
    assert left.spool == [spool_row(1), spool_row(3)]
    assert len(left.tasks) == 8


def test_a_damaged_checksum_is_damage_too(state: Path) -> None:
    write(state, ROWS)
    with sqlite3.connect(state / FILE) as other:
        other.execute("UPDATE task SET sum = sum + 1 WHERE id = ?", (task_id(8),))
        other.execute("UPDATE spool SET sum = NULL WHERE serial = 1")
    found, findings = opened(state)
    assert findings.damaged == ("task: wrong checksum", "spool: wrong checksum")
    assert found.spool == [spool_row(2), spool_row(3)]


def test_a_row_that_became_a_text_is_damage_too(state: Path) -> None:
    write(state, ROWS)
    with sqlite3.connect(state / FILE) as other:
        other.execute("UPDATE spool SET row = CAST(x'ff00ff' AS TEXT) WHERE serial = 2")
    found, findings = opened(state)
    assert findings.damaged == ("spool: no bytes",)
    assert found.spool == [spool_row(1), spool_row(3)]


def test_a_row_in_another_table_is_damage(state: Path) -> None:
    write(state, ROWS)
    with sqlite3.connect(state / FILE) as other:
        other.execute("UPDATE outcome SET (row, sum) = (SELECT row, sum FROM task LIMIT 1)")
    assert opened(state)[1].damaged == ("outcome: wrong checksum",) * 2


def test_a_damaged_key_is_put_right(state: Path) -> None:
    write(state, ROWS)
    before = opened(state)[0]
    with sqlite3.connect(state / FILE) as other:
        other.execute("UPDATE attempt SET id = ? WHERE id = ?", (b"?" * 16, task_id(2)))
        other.execute("UPDATE spool SET serial = 99 WHERE serial = 1")
    found, findings = opened(state)
    assert found == before
    assert not findings.sound
    assert findings.damaged == ()
    assert Path(findings.aside[0]).exists()


def test_a_damaged_attempt_under_a_damaged_key_may_be_anybodys(state: Path) -> None:
    write(state, ROWS)
    with sqlite3.connect(state / FILE) as other:
        sql = "UPDATE attempt SET id = ?, row = 'x' WHERE id = ?"
        other.execute(sql, (b"?" * 16, task_id(2)))
    found, _ = opened(state)
    # Nobody knows whose it was: no task without an outcome may start at once.
    held = {row.task for row in found.attempts if row.members == ((NOBODY, 0),)}
    assert held == {task_id(2), task_id(7), task_id(8)}


def test_the_table_of_damaged_rows_is_bounded(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blackroad.store.integrity.DAMAGED_ROWS_MAX", 5)
    write(state, ROWS)
    for _ in range(3):
        with sqlite3.connect(state / FILE) as other:
            other.execute("UPDATE outcome SET sum = 0 WHERE id IN (?, ?)", (task_id(5), task_id(6)))
        assert len(opened(state)[1].damaged) == 2
    assert table_of(state, "SELECT count(*) FROM damaged") == [(5,)]


def test_a_person_is_told_once_what_to_do(state: Path) -> None:
    write(state, ROWS)
    spoil(state, FILE, b"work 8")
    told = opened(state)[1].told()
    assert told["rows"] == 1
    assert "check" in str(told["hint"])
    assert opened(state)[1].told() == {}


# --- damaged pages --------------------------------------------------------------------------------


def many(count: int) -> list[tuple[JournalRow, ...]]:
    chance = random.Random(1)
    return [
        tuple(task_row(number, chance.randbytes(200)) for number in range(1, count)),
        tuple(attempt_row(number, number) for number in range(1, count)),
        tuple(end_row(number, chance.randbytes(100)) for number in range(1, count, 2)),
        tuple(spool_row(number) for number in range(1, count)),
    ]


def leaf_with(path: Path, rows: Sequence[Any]) -> int:
    """Where the page of the first of these rows begins that does not lie further up in the tree.

    Source  SQLite's file format: the first byte of a leaf is 10 (index) or 13 (table).
    """
    whole = path.read_bytes()
    for row in rows:
        at = whole.index(schema._encode(row)) // schema.PAGE_BYTES * schema.PAGE_BYTES
        if whole[at] in (10, 13):
            return at
    raise AssertionError("no row lies on a leaf")


def wreck(path: Path, at: int) -> None:
    """Make a page what no page can be."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xa5" * schema.PAGE_BYTES)


@pytest.mark.parametrize("table", ["task", "attempt", "outcome", "spool"])
def test_around_a_damaged_page_all_is_saved(state: Path, table: str) -> None:
    groups = many(400)
    write(state, *groups)
    before = opened(state)[0]
    victims = {
        "task": groups[0][200:],
        "attempt": groups[1][201::2],
        "outcome": groups[2][100:],
        "spool": groups[3][200:],
    }[table]
    wreck(state / FILE, leaf_with(state / FILE, victims))
    found, findings = opened(state)
    assert findings.unreadable == (table,)
    assert Path(findings.aside[0]).exists()
    index = ["task", "attempt", "outcome", "spool"].index(table)
    for number, (old, new) in enumerate(zip(before, found, strict=True)):
        if number == index:
            kept = [row for row in new if row in old]
            assert len(old) - 40 < len(kept) < len(old), "one page of rows is gone"
        elif table == "spool":
            assert new == old
    _no_task_is_left_behind(before, found, table)
    assert opened(state)[0] == found
    assert opened(state)[1].sound


def _no_task_is_left_behind(before: Left, found: Left, table: str) -> None:
    """Every task that was accepted is there, and none that may run or has ended starts anew."""
    assert {row.task for row in found.tasks} == {row.task for row in before.tasks}
    ends = {row.task for row in found.ends}
    attempts = {row.task for row in found.attempts}
    free = {row.task for row in found.tasks} - ends - attempts
    if table in ("attempt", "outcome"):
        assert free == set(), "whatever may run or have ended is held"
    for row in before.ends:
        assert row in found.ends or row.task in attempts | ends
    for stand_in in (row for row in found.tasks if row.spec == LOST):
        assert stand_in.task in ends | attempts


@pytest.mark.parametrize("table", ["task", "attempt", "outcome", "spool"])
def test_pages_damaged_all_over_a_table_of_random_ids(state: Path, table: str) -> None:
    chance = random.Random(5)
    numbers = [chance.getrandbits(127) for _ in range(2_000)]
    write(
        state,
        tuple(task_row(number, chance.randbytes(100)) for number in numbers),
        tuple(attempt_row(number) for number in numbers),
        tuple(end_row(number, chance.randbytes(100)) for number in numbers[::2]),
        tuple(spool_row(number >> 65) for number in numbers),
    )
    before = opened(state)[0]
    index = ["task", "attempt", "outcome", "spool"].index(table)
    rows = before[index]
    path = state / FILE
    pages = {leaf_with(path, rows[at:]) for at in range(50, len(rows), 331)}
    for page in sorted(pages):
        wreck(path, page)
    found, findings = opened(state)
    assert findings.unreadable == (table,)
    kept = set(map(schema._encode, found[index])) & set(map(schema._encode, rows))
    assert len(kept) >= len(rows) - 45 * len(pages), "only rows of the damaged pages are gone"
    _no_task_is_left_behind(before, found, table)


@pytest.mark.parametrize("table", ["task", "attempt", "outcome", "spool"])
def test_a_table_whose_root_is_gone(state: Path, table: str) -> None:
    write(state, *many(400))
    before = opened(state)[0]
    sql = f"SELECT rootpage FROM sqlite_schema WHERE name = '{table}'"
    [(root,)] = table_of(state, sql)
    assert isinstance(root, int)
    wreck(state / FILE, (root - 1) * schema.PAGE_BYTES)
    found, findings = opened(state)
    assert findings.unreadable == (table,)
    _no_task_is_left_behind(before, found, table)
    assert opened(state)[1].sound


def test_a_damaged_index_costs_nothing(state: Path) -> None:
    write(state, *many(400))
    before = opened(state)[0]
    # A leaf of the index of ids: many ids, and no rows.
    data = (state / FILE).read_bytes()
    pages = range(schema.PAGE_BYTES * 9, len(data), schema.PAGE_BYTES)
    page = next(
        at
        for at in pages
        if data[at] == 0x0A
        and data.count(bytes(14) + b"\x00", at, at + 4096) > 150
        and data.count(b"spin", at, at + 4096) == data.count(NODE, at, at + 4096) == 0
    )
    write_unclean(state)
    wreck(state / FILE, page)
    found, findings = opened(state)
    assert found == before
    assert findings.damaged == ()
    assert findings.aside


def write_unclean(state: Path) -> None:
    other = sqlite3.connect(state / FILE)
    schema.set_meta(other, "clean", 0)
    other.commit()
    other.close()


@pytest.mark.parametrize("name", ["schema", "clean", "mark"])
def test_a_damaged_number_about_the_journal_itself(state: Path, name: str) -> None:
    write(state, ROWS)
    before = opened(state)[0]
    other = sqlite3.connect(state / FILE)
    other.execute("UPDATE meta SET value = 77 WHERE name = ?", (name,))
    other.commit()
    other.close()
    found, findings = opened(state)
    assert found == before
    assert findings.sound is (name != "schema")
    assert findings.clean is (name != "clean")
    write(state, (task_row(50),))
    assert opened(state) == (before._replace(tasks=[*before.tasks, task_row(50)]), Findings())


def test_a_damaged_page_about_the_journal_itself(state: Path) -> None:
    write(state, ROWS)
    before = opened(state)[0]
    wreck(state / FILE, 2 * schema.PAGE_BYTES)
    found, findings = opened(state)
    assert found == before
    assert findings.aside


def test_random_bytes_anywhere_never_end_in_a_traceback(state: Path, tmp_path: Path) -> None:
    """Bit flips and wrecked sectors all over the file and its log: told or harmless."""
    left = killed(state, *many(60), (task_row(1_000),))
    chance = random.Random(7)
    whole = opened(Path(shutil.copytree(left, tmp_path / "whole")))[0]
    refused = hurt = 0
    for number in range(120):
        trial = Path(shutil.copytree(left, tmp_path / f"trial-{number}"))
        path = trial / chance.choice((FILE, FILE + "-wal"))
        data = bytearray(path.read_bytes())
        at = chance.randrange(len(data))
        if chance.random() < 0.7:
            data[at] ^= 1 << chance.randrange(8)
        else:
            at -= at % 512
            data[at : at + 512] = chance.randbytes(min(512, len(data) - at))
        path.write_bytes(data)
        try:
            found, findings = opened(trial)
        except StateDirectoryProblem:
            refused += 1
            continue
        if found != whole:
            hurt += 1
            # Only the very last commit may be taken for what a power cut left.
            dropped = found == whole._replace(tasks=whole.tasks[:-1])
            assert not findings.sound or dropped, f"trial {number}: silence about {at} of {path}"
        shutil.rmtree(trial)
    assert hurt > 10
    assert refused < 20


# --- a damaged log --------------------------------------------------------------------------------


def frames(path: Path) -> list[tuple[int, int]]:
    """Of each frame of the log: where it begins, and whether it ends a commit."""
    data = path.read_bytes()
    size = 24 + schema.PAGE_BYTES
    salts = data[16:24]
    found = []
    for at in range(32, len(data) - size + 1, size):
        if data[at + 8 : at + 16] == salts:
            found.append((at, struct.unpack_from(">I", data, at + 4)[0]))
    return found


@pytest.mark.parametrize(
    "offset", [0, 2, 9, 17, 24 + 3, 24 + 2_000], ids=["page", "page2", "salt", "sum", "head", "row"]
)
def test_a_damaged_frame_does_not_take_later_commits_along(state: Path, offset: int) -> None:
    left = killed(state, *((task_row(n, b"work %d" % n),) for n in range(1, 40)))
    path = left / (FILE + "-wal")
    chosen = frames(path)[len(frames(path)) // 2]
    data = bytearray(path.read_bytes())
    data[chosen[0] + offset] ^= 4
    path.write_bytes(data)
    found, findings = opened(left)
    assert [row.task for row in found.tasks] == [task_id(n) for n in range(1, 40)]
    assert not findings.clean
    assert len(findings.aside) >= 1
    assert Path(findings.aside[0]).read_bytes() == data, "the log as it was stays"


def test_a_damaged_header_of_the_log_loses_nothing(state: Path) -> None:
    for at in (0, 5, 11, 14, 18, 25, 31):
        where = state / str(at)
        where.mkdir()
        left = killed(where, *((task_row(n),) for n in range(1, 10)))
        data = bytearray((left / (FILE + "-wal")).read_bytes())
        data[at] ^= 16
        (left / (FILE + "-wal")).write_bytes(data)
        found, findings = opened(left)
        assert [row.task for row in found.tasks] == [task_id(n) for n in range(1, 10)]
        assert findings.aside


def test_a_torn_last_commit_is_no_damage(state: Path) -> None:
    left = killed(state, *((task_row(n),) for n in range(1, 10)))
    path = left / (FILE + "-wal")
    last = frames(path)[-1][0]
    data = bytearray(path.read_bytes())
    data[last + 24 : last + 24 + 512] = bytes(512)
    path.write_bytes(data)
    found, findings = opened(left)
    assert [row.task for row in found.tasks] == [task_id(n) for n in range(1, 9)]
    assert findings == Findings(clean=False)


def test_a_log_without_a_commit_is_left_alone(state: Path) -> None:
    left = killed(state, (task_row(1),))
    path = left / (FILE + "-wal")
    for content in (b"", b"short", bytes(5_000), path.read_bytes()[:3_000]):
        path.write_bytes(content)
        assert wal.mend(path) is None
        assert path.read_bytes() == content
    path.unlink()
    assert wal.mend(path) is None


# --- the earlier schema ---------------------------------------------------------------------------

SCHEMA_1 = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE task (serial INTEGER PRIMARY KEY, id BLOB UNIQUE NOT NULL, row BLOB);
CREATE TABLE attempt (id BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID;
CREATE TABLE outcome (id BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID;
CREATE TABLE spool (owner BLOB, inc INTEGER, serial INTEGER, row BLOB,
    PRIMARY KEY (owner, inc, serial)) WITHOUT ROWID;
INSERT INTO meta VALUES ('schema', 1);
"""


def earlier(state: Path) -> None:
    """A journal as the earlier version left it."""
    other = sqlite3.connect(state / FILE, isolation_level=None)
    other.execute("PRAGMA journal_mode = WAL")
    other.executescript(SCHEMA_1)
    encode = schema._encode
    for number in (3, 1, 2):
        row = task_row(number)
        other.execute("INSERT INTO task (id, row) VALUES (?, ?)", (row.task, encode(row)))
    other.execute("INSERT INTO attempt VALUES (?, ?)", (task_id(1), encode(attempt_row(1))))
    other.execute("INSERT INTO outcome VALUES (?, ?)", (task_id(2), encode(end_row(2))))
    values = (spool_row(4).owner, *spool_row(4).outcome.token, encode(spool_row(4)))
    other.execute("INSERT INTO spool VALUES (?, ?, ?, ?)", values)
    other.close()


def test_a_journal_of_the_earlier_schema_is_taken_over(state: Path) -> None:
    earlier(state)
    found, findings = opened(state)
    assert found == (
        [task_row(3), task_row(1), task_row(2)],
        [attempt_row(1)],
        [end_row(2)],
        [spool_row(4)],
    )
    assert findings == Findings(clean=False)
    write(state, (task_row(5), ForgetRow(task_id(3))))
    again, findings = opened(state)
    assert [row.task for row in again.tasks] == [task_id(1), task_id(2), task_id(5)]
    assert findings == Findings(clean=True)


def test_an_upgrade_that_is_cut_short_is_done_again(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier(state)

    def cut(connection: sqlite3.Connection, name: str, value: int) -> None:
        raise sqlite3.OperationalError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(schema, "set_meta", cut)
        with pytest.raises(StateDirectoryProblem):
            Journal(state)
    assert table_of(state, "SELECT value FROM meta") == [(1,)]
    assert len(opened(state)[0].tasks) == 3


def test_rows_of_every_kind_have_their_own_checksum(state: Path) -> None:
    write(state, ROWS)
    for table in ("meta", "task", "attempt", "outcome", "spool"):
        assert table_of(state, f"SELECT count(*) FROM {table} WHERE sum IS NULL") == [(0,)]
    rows = {row for row in ROWS if isinstance(row, AttemptRow | EndRow)}
    assert rows


def test_what_cannot_be_repaired_is_left_alone(state: Path) -> None:
    write(state, ROWS)
    path = state / FILE
    data = bytearray(path.read_bytes())
    data[0:16] = b"no database here"
    path.write_bytes(data)
    with pytest.raises(StateDirectoryProblem) as caught:
        opened(state)
    assert caught.value.hint
    assert path.read_bytes() == data
    assert os.listdir(state).count(FILE) == 1
