"""`blackroad chaos`: work on a mesh of daemons that are killed, stopped and drained; a verdict.

This file knows the order of the story.  What is done and when is in `chaos_nemesis.py`, how in
`chaos_hands.py`, to whom in `chaos_shop.py`, and the judge in `chaos_history.py`.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import random
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import click

from blackroad import chance
from blackroad.cli import chaos_record, chaos_report, mesh_run, output
from blackroad.cli.chaos_hands import Hands
from blackroad.cli.chaos_history import Verdict, judge
from blackroad.cli.chaos_nemesis import FAULTS, Strike, schedule
from blackroad.cli.chaos_report import Progress, clock
from blackroad.cli.chaos_shop import MINUTES, NODES, PER_S, Shop, Wishes, submitters, workshop
from blackroad.cli.commands import Command, json_option
from blackroad.cli.mesh import NODES_MAX
from blackroad.errors import EXIT_OK, EXIT_TASK_FAILED, UsageError

EXIT_INTERRUPTED: Final = 130
LOOK_S: Final = 0.25
TURN_S: Final = 0.02


@click.command(
    "chaos",
    cls=Command,
    examples=(
        "blackroad chaos --minutes 5",
        "blackroad chaos --seed 7 --fault kill --fault 'freeze node' --keep /tmp/chaos",
        "blackroad chaos --running --minutes 60  # the mesh that `up` started",
    ),
)
@click.option(
    "--minutes",
    type=click.FloatRange(0.05, 10_000),
    metavar="N",
    help=f"How long faults last; default {MINUTES:g}.",
)
@click.option(
    "--nodes", type=click.IntRange(1, NODES_MAX), metavar="N", help=f"Daemons; default {NODES}."
)
@click.option("--seed", metavar="S", help="Draw the faults and tasks of an earlier run again.")
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 1_000),
    metavar="N",
    help=f"Tasks submitted a second; default {PER_S:g}.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    type=click.Choice(tuple(FAULTS)),
    metavar="NAME",
    help="Only this fault, and others named so: " + ", ".join(FAULTS) + ".",
)
@click.option("--running", is_flag=True, help="Use the mesh that `blackroad up` started.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the history and the daemons' logs in this empty directory.",
)
@json_option
def chaos_command(
    minutes: float | None,
    nodes: int | None,
    seed: str | None,
    rate: float | None,
    faults: tuple[str, ...],
    running: bool,
    keep: Path | None,
    as_json: bool,
) -> int:
    """Kill, stop and drain the daemons of a test mesh under work, and judge what became of it.

    It starts daemons of its own on this machine and ends them afterwards. Tasks write down for
    themselves when they start and stop; at the end every fault is undone, every task is waited
    for, and the history is judged: was an accepted task lost, did one end twice, or run twice at
    once? The last line is JSON; the exit code is 1 if a promise was broken. Ctrl-C ends the
    faults, undoes them and judges what there is; a second one ends the waiting.
    """
    if running and nodes is not None:
        raise UsageError(
            "--nodes and --running exclude each other",
            hint="the mesh of `blackroad up` has the nodes it has",
        )
    return run_chaos(
        Wishes(
            MINUTES if minutes is None else minutes,
            NODES if nodes is None else nodes,
            seed or chance.token_hex(3),
            PER_S if rate is None else rate,
            tuple(dict.fromkeys(faults)) or tuple(FAULTS),
            running,
            keep,
            as_json,
        )
    )


def run_chaos(wishes: Wishes) -> int:
    """Do all of it; return the exit code.

    Cost  the minutes asked for, and up to three more for what has to end.
    """
    with _signals() as interrupts, workshop(wishes) as shop:
        return _Story(wishes, shop, interrupts).tell()


# --- the story ------------------------------------------------------------------------------------


class _Interrupts:
    """How often somebody pressed Ctrl-C.

    The first ends the faults, the second the waiting, the third everything; while faults are
    undone it is only counted, and before they begin the first one ends everything.
    """

    def __init__(self) -> None:
        self.count = 0
        self.armed = False
        self.healing = False

    def hear(self, _number: int, _frame: FrameType | None) -> None:
        """Take a signal."""
        self.count += 1
        if not self.healing and (not self.armed or self.count > 2):
            raise KeyboardInterrupt


@contextlib.contextmanager
def _signals() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupts.hear) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watch:
    """Counts what the history says, as it grows."""

    def __init__(self, history: Path) -> None:
        self._history = history
        self._at = 0
        self._submitted: set[str] = set()
        self._ended: set[str] = set()

    def look(self) -> str:
        """Read what is new; return the counts in words."""
        with contextlib.suppress(FileNotFoundError), self._history.open("rb") as file:
            file.seek(self._at)
            data = file.read()
            whole = data.rfind(b"\n") + 1
            self._at += whole
            for line in data[:whole].splitlines():
                self._take(line)
        left = len(self._submitted - self._ended)
        return f"{output.count(len(self._submitted), 'task')}, {left} under way"

    def _take(self, line: bytes) -> None:
        submitted = line.startswith(b'{"what":"submitted"')
        if not submitted and not line.startswith(b'{"what":"ended"'):
            return
        with contextlib.suppress(ValueError, KeyError, TypeError):
            (self._submitted if submitted else self._ended).add(json.loads(line)["task"])


class _Story:
    """One run, from the first submit to the verdict."""

    def __init__(self, wishes: Wishes, shop: Shop, interrupts: _Interrupts) -> None:
        self._wishes = wishes
        self._shop = shop
        self._interrupts = interrupts
        self._history = shop.base / "history.jsonl"
        self._submitters = submitters(wishes, shop)
        chance = random.Random(f"{wishes.seed} hands")
        self._hands = Hands(shop.places, shop.slots, self._submitters, self._history, chance)
        self._progress = Progress()
        self._watch = _Watch(self._history)
        self._collapsed: list[str] = []

    def tell(self) -> int:
        """Do all of it; return the exit code."""
        wishes, shop = self._wishes, self._shop
        names = [place.name for place in shop.places]
        strikes = schedule(
            wishes.seed,
            round(wishes.minutes * 60_000),
            names,
            names[: len(self._submitters)],
            [one.name for one in self._submitters],
            wishes.faults,
        )
        if not wishes.as_json:
            pids = {place.name: place.pid() for place in shop.places}
            chaos_report.announce(pids, wishes.running, wishes.minutes, wishes.seed)
        shop.outcome["began"] = self._interrupts.armed = True
        began_s = time.monotonic()
        try:
            for one in self._submitters:
                one.start()
            self._strike(strikes)
            self._heal()
            (shop.base / "stop").touch()
            awaited = self._settle()
        finally:
            self._heal()
            for one in self._submitters:
                one.kill()
        seconds = time.monotonic() - began_s
        return self._end(judge(chaos_record.read(self._history), awaited=awaited), seconds)

    def _strike(self, todo: Sequence[Strike]) -> None:
        """Do what was drawn, each thing when it is due, until all is done or somebody stops it.

        What took long to begin is undone later by as much: it lasts as long as it was drawn.
        """
        began_s = time.monotonic()
        length_s = self._wishes.minutes * 60
        left = deque(todo)
        undo_at: list[tuple[float, int]] = []
        look_s, doing = 0.0, "calm"
        while not self._interrupts.count and (now_s := time.monotonic() - began_s) < length_s:
            if undo_at and now_s >= undo_at[0][0]:
                self._hands.undo(heapq.heappop(undo_at)[1])
            elif left and now_s * 1000 >= left[0].at_ms:
                number, strike = len(todo) - len(left), left.popleft()
                name = self._hands.begin(number, strike)
                if name:
                    doing = f"{strike.fault}: {name}"
                    until_s = time.monotonic() - began_s + strike.for_ms / 1000
                    heapq.heappush(undo_at, (until_s, number))
            elif now_s >= look_s:
                look_s = now_s + LOOK_S
                self._hands.check()
                self._raise_fallen()
                times = f"{clock(now_s)} of {clock(length_s)}"
                self._progress.show(f"{times}  {self._watch.look()}  {doing}")
            else:
                time.sleep(TURN_S)

    def _heal(self) -> None:
        self._interrupts.healing = True
        try:
            self._progress.clear()
            self._hands.heal()
        finally:
            self._interrupts.healing = False

    def _settle(self) -> bool:
        """Wait until everything has ended; return whether it was waited for long enough."""
        pressed = self._interrupts.count
        until_s = time.monotonic() + self._wishes.settle_s
        left = list(self._submitters)
        while left := [one for one in left if not one.ended()]:
            if self._interrupts.count > pressed:
                return False
            if time.monotonic() >= until_s:
                return True
            self._hands.check()
            self._raise_fallen()
            self._progress.show(f"all is undone; waiting for what is left: {self._watch.look()}")
            time.sleep(LOOK_S)
        return True

    def _raise_fallen(self) -> None:
        """Start daemons again that ended although nothing was done to them; note which, and why."""
        struck = self._hands.struck()
        for place in self._shop.places:
            if place.name not in struck and not place.pid():
                self._collapsed.append("\n".join([place.name, *mesh_run.log_of(place)]))
                self._hands.raise_up(place)

    def _end(self, verdict: Verdict, seconds: float) -> int:
        broken = not verdict.holds or bool(self._collapsed)
        outcome = self._shop.outcome
        outcome["keep"] = outcome["keep"] or broken
        facts = {
            "seed": self._wishes.seed,
            "seconds": round(seconds, 1),
            "nodes": len(self._shop.places),
            "skipped": self._hands.skipped,
            "collapsed": self._collapsed,
            "kept": str(self._shop.base) if outcome["keep"] else "",
            "again": self._wishes.again(),
        }
        if not self._wishes.as_json:
            chaos_report.tell(verdict, facts)
            output.say()
        output.print_json_line({"holds": not broken, **verdict.as_data(), **facts})
        if broken:
            return EXIT_TASK_FAILED
        return EXIT_INTERRUPTED if self._interrupts.count else EXIT_OK
