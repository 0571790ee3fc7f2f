"""The table of rows: in words for a terminal, between two marks for docs/reliability.md.

Rows that did not run keep the line that an earlier run wrote.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.chaos.scene import Outcome

BEGIN, END = "<!-- chaos table: begin -->", "<!-- chaos table: end -->"
HEAD = (
    "| row | fault | required | measured | lost | doubled | overlapping | pass |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)
_NUMBER = re.compile(r"\| (\S+) \|")


def in_words(outcome: Outcome) -> str:
    """One row for people."""
    if outcome.skipped:
        return f"  {outcome.row.number:>3} skipped: {outcome.skipped}"
    word = "passed" if outcome.passed else "FAILED"
    found = outcome.verdict
    lines = [
        f"  {outcome.row.number:>3} {word} in {outcome.seconds:.0f} s: {found.tasks} tasks, "
        f"{found.starts} starts, lost {len(found.lost)}, doubled {len(found.doubled)}, "
        f"overlapping {len(found.overlapping)}"
    ]
    lines += [f"      {text}" for text in outcome.figures]
    lines += [f"      ! {text}" for text in outcome.wrong]
    return "\n".join(lines)


def line(outcome: Outcome, mark: str) -> str:
    """One row of the document."""
    row, found = outcome.row, outcome.verdict
    measured = "; ".join(outcome.figures) or "-"
    cells = [
        row.number,
        row.fault,
        row.required,
        f"{measured}{mark}",
        str(len(found.lost)),
        str(len(found.doubled)),
        str(len(found.overlapping)),
        "yes" if outcome.passed else "no",
    ]
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def write(path: Path, outcomes: list[Outcome], quick: bool) -> None:
    """Put the rows that ran between the marks.

    Raises  ValueError where the document has no marks.
    """
    text = path.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has lost its marks {BEGIN} and {END}")
    lines = {found[1]: row for row in old.splitlines() if (found := _NUMBER.match(row)) is not None}
    lines.pop("row", None)
    lines.pop("---", None)
    mark = " (quick)" if quick else ""
    for outcome in outcomes:
        if not outcome.skipped:
            lines[outcome.row.number] = line(outcome, mark)
    numbers = sorted(lines, key=order)
    body = "\n".join([HEAD, *(lines[number] for number in numbers)])
    path.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", "utf-8")


def order(number: str) -> tuple[bool, int, str]:
    """Rows of the fault table by number, then the others."""
    digits = "".join(filter(str.isdigit, number))
    return (not number.isdigit(), int(digits or 0), number)
