"""Mutants that break what the page says of handing ahead."""

from __future__ import annotations

from typing import Any

from blackroad import node as n
from blackroad.router import ahead
from blackroad.router.effects import Key
from blackroad.router.worker import Worker
from tests.sim.machine import Machine
from tests.sim.mutants import LIVENESS, SAFETY, Patch, mutant


@mutant(SAFETY, "ahead-2", story="cancelled_where_it_lies")
def given_back_unasked() -> list[Patch]:
    """A worker gives back what it handed ahead without asking whether it has begun."""
    original = Worker._drop

    def drop(self: Worker, work: Any, reason: Any, now_ms: int) -> None:
        if work.after is not None:
            ahead.parted(work)
            self.waiting[work.key] = self.handed.pop(work.key)
        original(self, work, reason, now_ms)

    return [(Worker, "_drop", drop)]


@mutant(SAFETY, "ahead-2", story="cancelled_where_it_lies")
def returned_and_begun() -> list[Patch]:
    """What was taken back begins all the same."""

    def take_back(self: Machine, key: Key) -> None:
        self.world.at(self.world.now, self.feed, n.Returned(key), self.life)

    return [(Machine, "_take_back", take_back)]


@mutant(LIVENESS, "ahead-4", story="behind_what_hangs")
def never_asked_back() -> list[Patch]:
    """What was handed ahead stays where it lies, whatever becomes free elsewhere."""
    return [(ahead, "ask_back", lambda *_: None)]


@mutant(LIVENESS, "ahead-3", story="behind_what_hangs")
def begun_and_not_believed() -> list[Patch]:
    """A worker starts what follows only where there is a place by its own queue."""

    def succeed(self: Worker, work: Any, now_ms: int) -> None:
        ahead.parted(work)
        self.waiting[work.key] = self.handed.pop(work.key)

    return [(Worker, "_succeed", succeed)]
