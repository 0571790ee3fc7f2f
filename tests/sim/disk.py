"""A made-up disk: rows that are flushed, rows that a power cut may still take, images of the past.

It keeps rows as the journal does: deadlines by the wall clock, attempts under their task.
This file must not know what any row means to a node.
"""

from __future__ import annotations

from random import Random

from blackroad.router import effects as e
from blackroad.store.rows import by_wall_clock, remaining
from blackroad.store.verdicts import Damage, Kept, stand_ins

Group = tuple[int, tuple[e.JournalRow, ...]]


class Disk:
    """A journal, the incarnation counter, and the objects beside it."""

    def __init__(self) -> None:
        self.pending: list[Group] = []
        self.counter = 0
        self.tasks: dict[bytes, e.TaskRow] = {}
        self.ends: dict[bytes, e.EndRow] = {}
        self.attempts: dict[bytes, e.AttemptRow] = {}
        self.tokens: set[object] = set()
        self.spool: dict[e.Key, e.SpoolRow] = {}
        self.objects: dict[bytes, int] = {}
        # Objects whose bytes went bad on the disk: whoever pulls them notices.
        self.rotten: set[bytes] = set()
        self.full = False
        self.drains = False
        # So many flushes succeed before one fails; below 0: all do.
        self.flushes_left = -1

    # --- writing ----------------------------------------------------------------------------------

    def write(self, mark: int, rows: tuple[e.JournalRow, ...], wall_ms: int) -> None:
        """Hand rows to the disk; they are safe after `sync`."""
        self.pending.append((mark, by_wall_clock(rows, wall_ms)))

    def sync(self, upto: int) -> bool:
        """Flush every group up to this mark; return False where the flush failed."""
        if self.flushes_left == 0:
            return False
        self.flushes_left -= 1
        while self.pending and self.pending[0][0] <= upto:
            for row in self.pending.pop(0)[1]:
                self._apply(row)
        return True

    def lose_pending(self, keep: int) -> None:
        """A crash: the first `keep` groups had reached the disk, the others are gone."""
        self.flushes_left = -1
        if 0 < keep <= len(self.pending):
            self.sync(self.pending[keep - 1][0])
        self.pending.clear()

    def _apply(self, row: e.JournalRow) -> None:
        match row:
            case e.TaskRow():
                self.tasks[row.task] = row
            case e.AttemptRow():
                self.attempts[row.task] = row
                self.tokens.add(row.token)
            case e.EndRow():
                self.ends[row.task] = row
                self.attempts.pop(row.task, None)
            case e.ForgetRow():
                self.tasks.pop(row.task, None)
                self.ends.pop(row.task, None)
                self.attempts.pop(row.task, None)
            case e.SpoolRow():
                self.spool[(row.owner, row.outcome.token)] = row
            case e.UnspoolRow():
                self.spool.pop((row.owner, row.token), None)

    # --- reading ----------------------------------------------------------------------------------

    def accepted(self, wall_ms: int) -> list[e.TaskRow]:
        """All tasks, with what remains of their deadlines."""
        return remaining(tuple(self.tasks.values()), wall_ms)

    # --- damage -----------------------------------------------------------------------------------

    def damage(self, rng: Random) -> tuple[set[bytes], set[bytes]]:
        """Lose some rows, and put in their place what the journal puts there.

        Return the tasks whose outcome is lost or that nobody knows any more, and all others that
        lost a row.
        """
        lost: list[Damage] = []
        for name, rows in (
            ("task", self.tasks),
            ("attempt", self.attempts),
            ("outcome", self.ends),
        ):
            for id_ in list(rows):
                if rng.random() < 0.3:
                    del rows[id_]
                    lost.append(Damage(name, id_, b"", "made up"))
        for key in list(self.spool):
            if rng.random() < 0.3:
                del self.spool[key]
        named = frozenset(one.key for one in lost)
        kept = Kept(self.tasks, self.attempts, self.ends, named)
        for row in stand_ins(kept, lost, frozenset()):
            self._apply(row)
        told = {one.key for one in lost if one.table == "outcome"}
        return told, set(named) - told

    # --- images -----------------------------------------------------------------------------------

    def image(self) -> Disk:
        """A copy of everything that is flushed."""
        copy = Disk()
        copy.counter = self.counter
        copy.tasks = dict(self.tasks)
        copy.ends = dict(self.ends)
        copy.attempts = dict(self.attempts)
        copy.tokens = set(self.tokens)
        copy.spool = dict(self.spool)
        copy.objects = dict(self.objects)
        copy.rotten = set(self.rotten)
        copy.full = self.full
        copy.drains = self.drains
        return copy

    def changed_since(self, image: Disk) -> set[bytes]:
        """Tasks of which this disk and an image of it tell different stories."""
        differ = set()
        for mine, theirs in (
            (self.tasks, image.tasks),
            (self.ends, image.ends),
            (self.attempts, image.attempts),
        ):
            differ |= {id_ for id_ in mine if mine[id_] != theirs.get(id_)}
            differ |= {id_ for id_ in theirs if id_ not in mine}
        return differ
