"""Makes tables of a run: systems with ratios to the yardstick, limits, targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.runner import Figures, show
from bench.systems import REGISTRY
from bench.targets import HERE, Verdict, verdicts

BASE = "zmq-raw"
WORDS = {True: "yes", False: "no", None: "-"}


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; every column but the first stands to the right."""
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def aligned(lines: Iterable[str]) -> list[str]:
    """The same table with columns of one width, for terminals."""
    rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines]
    heads, _, *body = rows
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    made = []
    for row in (heads, ["-" * width for width in widths], *body):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        made.append("  ".join(cells).rstrip())
    return made


def systems(figures: Figures) -> list[str]:
    """Every system with its figures; the rates are also told as multiples of the yardstick's."""
    heads = (
        "system", "no-op/s", f"x {BASE}", "core us", "map/s", f"x {BASE}", "p50 us", f"x {BASE}",
        "p99 us", "1 MiB MB/s", "64 MiB MB/s", "2 workers %", "first s", "idle MiB", "idle % CPU",
        "SIGKILL",
    )  # fmt: skip
    names = [one for one in figures.systems if one in REGISTRY and not REGISTRY[one].only]
    return markdown(heads, [_line(figures, name) for name in names])


def _line(figures: Figures, name: str) -> list[str]:
    def number(work: str, metric: str) -> str:
        found = figures.number(name, work, metric)
        if found is None:
            return "failed" if figures.word(name, work, "failed") else ""
        return show(found)

    cells = [name]
    for kind in ("one", "map"):
        mine = figures.largest(name, "noop", kind)
        base = figures.largest(BASE, "noop", kind)
        cells += [
            show(mine[1]) if mine else "",
            f"{mine[1] / base[1]:.3g}" if mine and base else "",
        ]
        if kind == "one":
            spent = figures.largest(name, "noop", "core")
            cells.append(show(spent[1]) if spent else "")
    trip, base_trip = (figures.number(one, "latency", "p50") for one in (name, BASE))
    cells += [number("latency", "p50"), f"{trip / base_trip:.3g}" if trip and base_trip else ""]
    cells += [number("latency", "p99")]
    cells += [number("payload", size) for size in ("1 MiB", "64 MiB")]
    cells += [number("scale", "efficiency"), number("start", "first result")]
    cells += [number("idle", "PSS"), number("idle", "CPU")]
    return [*cells, figures.word(name, "kill", "outcome")]


def between(figures: Figures) -> list[str]:
    """What two nodes do, and what a bare socket does between the same two places."""
    rows = []
    for name in figures.systems:
        if name in REGISTRY and REGISTRY[name].only:
            rate = figures.largest(name, "pair", "one")
            echo = figures.number(name, "bulk", "64 MiB")
            failed = figures.word(name, "bulk", "failed") or figures.word(name, "pair", "failed")
            rows.append([name, show(rate[1]) if rate else "", show(echo) if echo else failed])
    return markdown(("between two nodes", "no-op/s", "64 MiB MB/s"), rows) if rows else []


def limits(figures: Figures) -> list[str]:
    """What the machine itself does."""
    rows = []
    for row in {(one["work"], one["metric"]): one for one in figures.rows}.values():
        if row["system"] == HERE:
            value = figures.number(HERE, row["work"], row["metric"])
            text = row["value"] if value is None else f"{show(value)} {row['unit']}"
            rows.append([f"{row['work']}: {row['metric']}", str(text)])
    return markdown(("limit", "figure"), rows) if rows else []


def targets(figures: Figures) -> list[str]:
    """Every target, and whether this run meets it."""

    def line(one: Verdict) -> list[str]:
        return [one.work, one.target, one.measured, WORDS[one.met]]

    return markdown(("work", "target", "measured", "met"), map(line, verdicts(figures)))


def whole(report: dict[str, Any]) -> str:
    """All tables of a run for a terminal."""
    figures = Figures(report["rows"])
    made = (systems(figures), between(figures), limits(figures), targets(figures))
    parts = [aligned(part) for part in made if part]
    notes = [f"{name}: {reason}" for name, reason in report.get("skipped", {}).items()]
    notes.append(
        f"Medians; others took at most {figures.disturbed():.0f} % of the processors during a cell."
    )
    return "\n\n".join("\n".join(part) for part in [*parts, notes])
