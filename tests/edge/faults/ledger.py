"""A program of journal rows, what it must have come to after each mark, and a life that writes it.

Run as a process (`python -m tests.edge.faults.ledger STATE FIRST LAST [sloppy]`) it writes those
marks, ends in order or not, and writes into FAULT_ACKS each mark as soon as the journal says that
it is flushed.
"""

from __future__ import annotations

import os
import random
import select
import sys
from pathlib import Path

from blackroad.bus import messages as m
from blackroad.ids import Token
from blackroad.router.effects import (
    AttemptRow,
    EndRow,
    ForgetRow,
    JournalRow,
    SpoolRow,
    TaskRow,
    UnspoolRow,
)
from blackroad.store.journal import Journal, Left

OWNER = b"o" * 16
NODE = b"n" * 16
SPEC = m.ClassSpec(b"\x90", name="spin")
FORGOTTEN_AFTER = 4_000


def task_id(number: int) -> bytes:
    """Ids in no order, as clients make them."""
    return random.Random(number).randbytes(16)


def work_of(number: int) -> bytes:
    """Mostly small, now and then of several pages."""
    chance = random.Random(-number)
    return chance.randbytes(chance.choice((20, 100, 300, 300, 6_000)))


def program(mark: int) -> tuple[JournalRow, ...]:
    """The rows of one mark: a task comes, older ones are granted, end, and are forgotten."""
    rows: list[JournalRow] = [TaskRow(task_id(mark), SPEC, None, work_of(mark), False, 0)]
    if mark > 2:
        token = Token(7, mark - 2)
        row = AttemptRow(task_id(mark - 2), token, ((NODE, 5 << 32),), False, True, 1, 0, 0, 0)
        rows.append(row)
        outcome = m.Outcome(token, task_id(mark - 2), 9, m.Status.DONE, b"r" * 50, m.Facts(12))
        rows.append(SpoolRow(OWNER, outcome))
    if mark > 20 and mark % 3:
        end = EndRow(task_id(mark - 20), m.End.DONE, "", b"r" * 50, m.Facts(12), NODE, 1)
        rows.append(end)
        rows.append(UnspoolRow(OWNER, Token(7, mark - 20)))
    if mark > FORGOTTEN_AFTER and (mark - FORGOTTEN_AFTER + 20) % 3:
        rows.append(ForgetRow(task_id(mark - FORGOTTEN_AFTER)))
    return tuple(rows)


class Model:
    """What the journal must hold after each mark."""

    def __init__(self) -> None:
        self.mark = 0
        self.tasks: dict[bytes, JournalRow] = {}
        self.attempts: dict[bytes, JournalRow] = {}
        self.ends: dict[bytes, JournalRow] = {}
        self.spool: dict[tuple[bytes, Token], JournalRow] = {}

    def play(self, upto: int) -> None:
        """Go on to a later mark."""
        while self.mark < upto:
            self.mark += 1
            for row in program(self.mark):
                self._put(row)

    def _put(self, row: JournalRow) -> None:
        match row:
            case TaskRow():
                self.tasks[row.task] = row
            case AttemptRow():
                self.attempts[row.task] = row
            case EndRow():
                self.ends[row.task] = row
                self.attempts.pop(row.task, None)
            case ForgetRow():
                for book in (self.tasks, self.attempts, self.ends):
                    book.pop(row.task, None)
            case SpoolRow():
                self.spool[row.owner, row.outcome.token] = row
            case UnspoolRow():
                self.spool.pop((row.owner, row.token), None)

    def agrees(self, left: Left) -> bool:
        """Is that what is left, row for row, tasks in their order?"""
        return (
            left.tasks == list(self.tasks.values())
            and {row.task: row for row in left.attempts} == self.attempts
            and {row.task: row for row in left.ends} == self.ends
            and {(row.owner, row.outcome.token): row for row in left.spool} == self.spool
        )


def live(directory: Path, first: int, last: int, chance: random.Random, sloppy: bool) -> None:
    """One life: write these marks in groups of many sizes, and promise what is flushed."""
    journal = Journal(directory)
    journal.load()
    if sloppy:
        journal._connection.execute("PRAGMA synchronous = OFF")
    journal.start()
    acks = os.open(os.environ["FAULT_ACKS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    told = first - 1
    mark = first - 1
    while told < last:
        for _ in range(min(last - mark, chance.choice((1, 1, 2, 16, 64)))):
            mark += 1
            journal.append(mark, program(mark))
        while told < mark:
            select.select([journal.wake_fd], [], [], 30)
            for one in journal.flushed():
                told = one
            os.write(acks, b"%d\n" % told)
    os.close(acks)
    if chance.random() < 0.6:
        journal.close()
    # Else as if it had been killed.
    os._exit(0)


def main(state: str, first: str, last: str, *sloppy: str) -> None:
    """One life of a journal."""
    live(Path(state), int(first), int(last), random.Random(f"{first}-{last}"), bool(sloppy))


if __name__ == "__main__":
    main(*sys.argv[1:])
