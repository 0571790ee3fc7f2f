"""Mutants that break what the page says of bundles: many small tasks in one attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.router import attempts, bundles
from blackroad.router.attempts import Attempts
from blackroad.router.owner import Owner
from tests.sim.machine import Machine
from tests.sim.mutants import LIVENESS, SAFETY, Patch, mutant
from tests.sim.processes import Process

Attempt = Any
_NOT_KNOWN = b"never ran"


def _judged(*, done: Any = Owner.early, unbegun: Any = Owner.unbegun) -> list[Patch]:
    """Judge the parts of a divided bundle in another way."""
    return [(Owner, "early", done), (Owner, "unbegun", unbegun)]


@mutant(LIVENESS, "bundle-4", focus=("company",), story="failed_in_company")
def unbegun_dropped() -> list[Patch]:
    """What never began in a bundle that is over is not queued again."""
    original = bundles.divide

    def divide(member: Any, running: bytes, before: Any, judge: Any, now_ms: int) -> None:
        attempt = member.attempt
        tasks = attempt.tasks()
        original(member, running, before, judge, now_ms)
        for task in tasks[len(before) + 1 :]:
            task.attempts.append(attempt)

    return [(attempts, "divide", divide), (Owner, "unbegun", lambda *_: None)]


@mutant(SAFETY, "bundle-4", focus=("company",), story="failed_in_company")
def unbegun_told_as_done() -> list[Patch]:
    """What never began in a bundle that is over counts as done."""

    def unbegun(self: Owner, tasks: Sequence[Any], now_ms: int) -> None:
        self.early(tasks, [m.Early(_NOT_KNOWN)] * len(tasks), b"", now_ms)

    return _judged(unbegun=unbegun)


@mutant(LIVENESS, "bundle-4", focus=("company",), story="failed_in_company")
def done_before_ignored() -> list[Patch]:
    """What is done before the last one of a bundle is queued again."""

    def early(self: Owner, tasks: Sequence[Any], before: Any, node: bytes, now_ms: int) -> None:
        self.unbegun(tasks, now_ms)

    return _judged(done=early)


@mutant(SAFETY, "bundle-5", focus=("company",), story="long_in_company")
def rest_begins_all_the_same() -> list[Patch]:
    """A worker says that a bundle is divided, and the rest of it begins all the same."""

    def divide(self: Machine, process: Process | None) -> None:
        if process is not None and not process.dying:
            split = n.Split(process.key, process.before)
            self.world.at(self.world.now, self.feed, split, self.life)

    return [(Machine, "_divide", divide)]


@mutant(SAFETY, "bundle-5", focus=("company",), story="long_in_company")
def running_told_as_done() -> list[Patch]:
    """A worker counts the task that runs among those that are done."""
    original = Machine._divide

    def divide(self: Machine, process: Process | None) -> None:
        if process is None or not process.more:
            original(self, process)
            return
        before = process.before
        process.before = (*before, m.Early(_NOT_KNOWN))
        original(self, process)
        process.before = before

    return [(Machine, "_divide", divide)]


@mutant(LIVENESS, "bundle-5", focus=("company", "cancel"), story="hangs_in_company")
def never_divided() -> list[Patch]:
    """A worker does not divide what runs."""
    return [(Machine, "_divide", lambda *_: None)]


@mutant(LIVENESS, "bundle-3", focus=("company", "cancel"), story="cancelled_in_company")
def cancel_stops_the_company() -> list[Patch]:
    """Who wants one task of a bundle to end stops them all."""

    def stop(self: Attempts, attempt: Attempt, now_ms: int) -> None:
        for member in attempt.members:
            self._stop_member(member, now_ms)

    return [(Attempts, "stop", stop)]


@mutant(LIVENESS, "bundle-3", focus=("company", "cancel"), story="wish_lost_in_company")
def wish_not_repeated() -> list[Patch]:
    """A worker is asked once to divide a bundle, and no more."""
    original = Attempts._ask_to_divide

    def ask(self: Attempts, member: Any, now_ms: int) -> None:
        if not member.attempt.dividing:
            original(self, member, now_ms)

    return [(Attempts, "_ask_to_divide", ask)]


@mutant(LIVENESS, "bundle-6", focus=("company", "daemon_crash"), story="lost_in_company")
def loss_of_the_first_alone() -> list[Patch]:
    """Of a bundle that is lost only the first task is judged."""
    original = Attempts._lost

    def lost(self: Attempts, attempt: Attempt, now_ms: int) -> None:
        attempt.more = ()
        original(self, attempt, now_ms)

    return [(Attempts, "_lost", lost)]


@mutant(LIVENESS, "bundle-2", focus=("company",), story="durable_in_company")
def durable_in_bundles() -> list[Patch]:
    """Durable tasks travel in bundles."""
    original = bundles.gather

    def gather(cls: Any, first: Any, count: int) -> Any:
        along = [first, *cls.queue]
        durable = [one.durable for one in along]
        for one in along:
            one.durable = False
        try:
            return original(cls, first, count)
        finally:
            for one, was in zip(along, durable, strict=True):
                one.durable = was

    return [(bundles, "gather", gather)]
