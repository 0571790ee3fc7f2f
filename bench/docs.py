"""Puts measured figures into docs/performance.md, between two marks; the rest is written by people.

The run that the page shows is kept beside it, so that the page can always be made again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench import table
from bench.runner import Figures, show

ROOT = Path(__file__).absolute().parents[1]
PAGE = ROOT / "docs" / "performance.md"
KEPT = ROOT / "bench" / "results" / "docs.json"
GROWTH = ROOT / "bench" / "results" / "growth.json"
HOW = "made by `python -m bench --write-docs`"


def write(last: Path) -> int:
    """Rewrite the blocks of the page from the last run, or from the one that is shown already."""
    if last.exists():
        text = last.read_text()
        report = json.loads(text)
        if report.get("quick") or not report.get("whole"):
            what = "quick" if report.get("quick") else "broken off"
            print(f"{last.name} is of a run that was {what}: run `make bench`", file=sys.stderr)
            return 2
        KEPT.write_text(text)
    if not KEPT.exists():
        print(f"there is no {last}: run `make bench` first", file=sys.stderr)
        return 2
    _put("figures", figures(json.loads(KEPT.read_text())))
    return write_growth()


def write_growth() -> int:
    """Rewrite the block about growth alone."""
    if GROWTH.exists():
        _put("growth", growth(json.loads(GROWTH.read_text())))
    return 0


def _put(name: str, lines: list[str]) -> None:
    PAGE.write_text(replaced(PAGE.read_text(), name, lines))
    print(f"{PAGE.relative_to(ROOT)}: {name} are new")


def replaced(text: str, name: str, lines: list[str]) -> str:
    """Put lines between the two marks of a block.

    Raises  ValueError where the page has no such marks.
    """
    begin, end = f"<!-- {name}: {HOW} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no block between {begin!r} and {end!r}")
    return "\n".join([before + begin, "", *lines, "", end + after])


def figures(report: dict[str, Any]) -> list[str]:
    """The tables of a run, with the machine they were measured on."""
    found = Figures(report["rows"])
    here = report["machine"]
    repeats = 1 + max((row.get("repeat", 0) for row in found.rows), default=0)
    lines = [
        f"{here['cores']} cores of {here['processor']}, {here['memory_gib']} GiB, Linux "
        f"{here['kernel']}, Python {here['python']}, {here['when']}; medians of {repeats}; others "
        f"took at most {found.disturbed():.0f} % of the processors during a cell.",
        "",
        *table.targets(found),
        "",
        "### All systems",
        "",
        *table.systems(found),
        "",
        *table.between(found),
        "",
        "### What the machine can do",
        "",
        *table.limits(found),
        "",
        f"Versions: {', '.join(f'{name} {one}' for name, one in here['versions'].items())}.",
    ]
    if report.get("skipped"):
        names = ", ".join(report["skipped"])
        lines[-1] += f" Not measured here: {names}."
    return lines


def growth(report: dict[str, Any]) -> list[str]:
    """One table for each thing that grows."""
    lines: list[str] = ["![cost against size](img/growth.svg)"]
    for title, part in report["parts"].items():
        heads = list(part["rows"][0])
        rows = [[show(row[head]) for head in heads] for row in part["rows"]]
        lines += ["", f"**{title}.** {part['text']}", "", *table.markdown(heads, rows)]
    return lines
