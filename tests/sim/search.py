"""Playing many seeds: in several processes, with a tally; and the hunt for mutants.

This file must not know what a seed draws, nor what any mutant breaks.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.sim import mutants, scene
from tests.sim.swarm import Result, run_seed

if TYPE_CHECKING:
    import argparse

# A history is a heap of cycles, dead at its end: collecting now and then is enough.
COLLECT_EVERY = 32
CHUNK = 16


class Case(NamedTuple):
    """One history to play: a seed, the broken rule, and what is left out of it."""

    seed: int
    mutant: str = ""
    drop: tuple[str, ...] = ()
    salt: int = 0


def focus(mutant: str) -> tuple[str, ...]:
    """Faults that are on in any case for this mutant."""
    return mutants.MUTANTS[mutant].focus if mutant else ()


def play(case: Case, listen: Callable[[str], Any] | None = None) -> Result:
    """Play one history."""
    with mutants.applied(case.mutant or None):
        return run_seed(case.seed, focus(case.mutant), case.drop, case.salt, listen=listen)


def play_some(cases: Sequence[Case]) -> list[Result]:
    """Play a few histories one after the other, without the collector looking in between."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        results = []
        for number, case in enumerate(cases):
            results.append(play(case))
            if number % COLLECT_EVERY == 0:
                gc.collect()
        return results
    finally:
        if was_on:
            gc.enable()


def play_all(cases: Sequence[Case], jobs: int) -> Iterator[Result]:
    """Play many histories in so many processes; the results come in order."""
    chunks = [cases[at : at + CHUNK] for at in range(0, len(cases), CHUNK)]
    if jobs <= 1:
        for chunk in chunks:
            yield from play_some(chunk)
        return
    pool = ProcessPoolExecutor(jobs)
    try:
        for results in pool.map(play_some, chunks):
            yield from results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def line(result: Result) -> str:
    """One line for people."""
    what = f"FAILED {result.rule}: {result.text}" if result.rule else "ok"
    return (
        f"seed {result.seed}: {what}; {result.tasks} tasks, {result.starts} starts, "
        f"{result.events} events, {result.true_ms / 1000:.0f} s, history {result.digest:08x}"
    )


class Tally:
    """How far a long run is."""

    def __init__(self, every_s: float, total: int) -> None:
        self.count = 0
        self.failed: list[Result] = []
        self._total = total
        self._every_s = every_s
        self._began = self._said = time.perf_counter()

    def take(self, result: Result) -> None:
        """Count one; say now and then how many there are."""
        self.count += 1
        if result.rule:
            self.failed.append(result)
        now = time.perf_counter()
        if now - self._said >= self._every_s:
            self._said = now
            rate = self.count / (now - self._began) * 3600
            text = f"{self.count} of {self._total} seeds, {len(self.failed)} failed, {rate:.0f}/h"
            print(text, file=sys.stderr, flush=True)

    def summary(self) -> dict[str, object]:
        """The figures of the whole run."""
        seconds = time.perf_counter() - self._began
        return {
            "seeds": self.count,
            "failed": len(self.failed),
            "seconds": round(seconds, 1),
            "seeds_per_hour": round(self.count / max(seconds, 1e-9) * 3600),
        }


# --- mutants ------------------------------------------------------------------------------------

HEAD = f"{'mutant':34} {'group':9} {'breaks':10} {'seeds':>7} {'by':6} {'time':>6}  what"


class Found(NamedTuple):
    """What became of one mutant."""

    name: str
    caught: mutants.Caught | None
    # How many random seeds it took; 0 where the directed story noticed.
    tries: int
    seconds: float
    note: str
    as_it_should: bool
    # What is written down: a story, where there is one, survives other draws.
    kept: mutants.Caught | None = None

    def line(self) -> str:
        """One row of the table."""
        one = mutants.MUTANTS[self.name]
        seeds = "story" if self.caught and self.caught.seed < 0 else str(self.tries or "-")
        rule = self.caught.rule if self.caught else "-"
        right = "" if self.as_it_should else "   <-- WRONG"
        note = self.note or one.what
        head = f"{self.name:34} {one.group:9} {one.breaks:10} {seeds:>7} {rule:6}"
        return f"{head} {self.seconds:5.0f}s  {note}{right}"


def hunt(mutant: mutants.Mutant, args: argparse.Namespace) -> Found:
    """Look for a history that notices this mutant, or measure what it costs."""
    began = time.perf_counter()
    if mutant.group == mutants.COSTLY:
        return _costs(mutant, began)
    harmless = mutant.group == mutants.HARMLESS
    story = scene.notices(mutant) if mutant.story else ""
    limit = args.calm if harmless else args.seeds
    tries = 0
    caught = None
    cases = (Case(seed, mutant.name) for seed in range(args.start, args.start + limit))
    while caught is None and (batch := list(islice(cases, CHUNK * max(1, args.jobs)))):
        for result in play_all(batch, args.jobs):
            tries += 1
            if result.rule and not broken_anyway(result.seed, mutant):
                caught = mutants.Caught(result.seed, result.rule)
                break
    note = f"and its story by {story}: {mutant.what}" if caught and story else ""
    if caught is None and story:
        caught, note = mutants.Caught(-1, story), f"not in {tries} seeds: {mutant.what}"
    seconds = time.perf_counter() - began
    right = (caught is None) == harmless
    if caught is not None and caught.rule == "crash":
        # A traceback is no invariant: the mutant does not fit the code any more.
        right, note = False, "it crashes: repair the mutant"
    kept = mutants.Caught(-1, story) if story else caught
    return Found(mutant.name, caught, tries, seconds, note, right, kept)


def broken_anyway(seed: int, mutant: mutants.Mutant) -> bool:
    """Does this seed fail without the mutant, too?  Then it says nothing about it."""
    return bool(run_seed(seed, mutant.focus).rule)


def _costs(mutant: mutants.Mutant, began: float) -> Found:
    healthy, broken = scene.costs(mutant)
    right = broken >= scene.COSTLY_RATIO * healthy
    note = f"costs {broken} instead of {healthy}: {mutant.what}"
    caught = mutants.Caught(-1, "cost") if right else None
    return Found(mutant.name, caught, 0, time.perf_counter() - began, note, right, caught)
