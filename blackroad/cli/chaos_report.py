"""The words of `blackroad chaos`: what it is about to do, how far it is, and the verdict.

This file must not know processes or the mesh.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from blackroad.cli import output
from blackroad.cli.chaos_history import Verdict
from blackroad.cli.output import Cell, Grid
from blackroad.units import format_ms

SHOWN: Final = 10
PROMISES: Final = (
    ("lost", "accepted, and without an end"),
    ("doubled", "two outcomes, or run twice though `once`"),
    ("overlapping", "two attempts at one time, or after the end"),
    ("disordered", "a token that did not grow"),
)
ENDS_TOLD: Final = {"unknown": "unknown (once)"}


def clock(seconds: float) -> str:
    """Write a time as people read it from a clock: 1:05, 1:02:03."""
    minutes, left_s = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left_s:02}" if hours else f"{minutes}:{left_s:02}"


class Progress:
    """One line on a terminal that is written over and over; nothing elsewhere."""

    def __init__(self) -> None:
        self._on = not output.quiet()
        self._drawn = False

    def show(self, text: str) -> None:
        """Write the line anew."""
        if self._on:
            width = shutil.get_terminal_size().columns
            sys.stderr.write(f"\r\x1b[K{text[: width - 1]}")
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


def announce(pids: Mapping[str, int], running: bool, minutes: float, seed: str) -> None:
    """Say what is going to happen to whom."""
    whose = "of the mesh of `blackroad up`" if running else "started just now, for this alone"
    output.say(f"chaos for {format_ms(round(minutes * 60_000))}, seed {seed}")
    output.say()
    output.say("It will kill, stop, drain and start again its own programs that submit, and")
    output.say(f"{output.count(len(pids), 'daemon')} with all their tasks, {whose}:")
    for name, pid in pids.items():
        output.say(f"  {name}  process {pid}")
    output.say("It touches no other process.")


def tell(verdict: Verdict, facts: Mapping[str, Any]) -> None:
    """Print the verdict for people."""
    output.say()
    _faults(verdict)
    output.say()
    ends = ", ".join(f"{count:,} {ENDS_TOLD.get(end, end)}" for end, count in _ends(verdict))
    about = [
        ("tasks", f"{verdict.tasks:,} submitted, {verdict.accepted:,} accepted as durable"),
        ("ends", ends),
        ("not taken", f"{verdict.rejected:,}" if verdict.rejected else ""),
        ("not awaited", f"{verdict.open:,}" if verdict.open else ""),
        ("starts", f"{verdict.starts:,}, {verdict.rerun_share:.1%} of the tasks run again"),
        ("recovery", _recovery(verdict)),
        ("after a thaw", f"{verdict.thawed} signs within the second that a kill may take")
        if verdict.thawed
        else ("", ""),
        ("damaged lines", f"{verdict.damaged:,}" if verdict.damaged else ""),
    ]
    output.facts(about, indent="")
    output.say()
    rows = []
    for kind, meaning in PROMISES:
        count = len(getattr(verdict, kind))
        style = "bold red" if count else "green"
        rows.append((Cell(kind), Cell(f"{count:,}", style), Cell(meaning)))
    output.print_grid(Grid(("promise", "broken", "which means"), rows, "lrl"))
    _findings(verdict, facts["collapsed"])
    output.say()
    output.say(_last_word(verdict, facts))


def _ends(verdict: Verdict) -> list[tuple[str, int]]:
    return sorted(verdict.ends.items(), key=lambda item: (-item[1], item[0]))


def _faults(verdict: Verdict) -> None:
    if not verdict.faults:
        output.say("nothing was done to the mesh")
        return
    rows = []
    for name, times in verdict.faults.items():
        recovered = len(verdict.recoveries_ms.get(name, ()))
        rows.append(
            (
                Cell(name),
                Cell(str(times)),
                Cell(str(recovered) if recovered else "-"),
                Cell(_time(verdict.recovery_ms(50, name))),
                Cell(_time(verdict.recovery_ms(99, name))),
            )
        )
    heads = ("fault", "times", "tasks run again", "after, p50", "p99")
    output.print_grid(Grid(heads, rows, "lrrrr"))


def _recovery(verdict: Verdict) -> str:
    middle, most = verdict.recovery_ms(50), verdict.recovery_ms(99)
    if middle is None or most is None:
        return ""
    return f"p50 {_time(middle)}, p99 {_time(most)} from a fault to the next start"


def _time(value_ms: int | None) -> str:
    if value_ms is None:
        return "-"
    return f"{value_ms} ms" if value_ms < 1_000 else f"{value_ms / 1000:.1f} s"


def _findings(verdict: Verdict, collapsed: Sequence[str]) -> None:
    if verdict.holds and not collapsed:
        return
    output.say()
    for text in collapsed:
        output.say(f"ended by itself: {text}")
    for kind, found in verdict.findings[:SHOWN]:
        output.say(f"{kind}: {found.task}: {found.text}")
    left = len(verdict.findings) - SHOWN
    if left > 0:
        output.say(f"... and {left:,} more; all of them follow from the history")


def _last_word(verdict: Verdict, facts: Mapping[str, Any]) -> str:
    kept = f"\nkept: {facts['kept']}" if facts["kept"] else ""
    if not verdict.holds or facts["collapsed"]:
        text = f"a promise was broken; the same faults again: {facts['again']}"
        return click.style(text, fg="red", bold=True) + kept
    if not verdict.faults:
        return "nothing was broken, for nothing was tried" + kept
    if verdict.open:
        return "no promise was broken, as far as was waited for" + kept
    return click.style("every promise held", fg="green", bold=True) + kept
