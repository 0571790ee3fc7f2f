"""docs/metrics.md lists the figures as `names.py` has them; REWRITE=1 writes the list anew."""

from __future__ import annotations

import os

from blackroad.metrics import names
from tests.tidy.source import ROOT

PAGE = ROOT / "docs/metrics.md"
BEGIN = "<!-- The list below is made from blackroad/metrics/names.py. -->\n"
END = "<!-- The list above is made from blackroad/metrics/names.py. -->\n"


def listed() -> str:
    """The list of all figures in Markdown."""
    parts = []
    for title, metrics in names.GROUPS.items():
        rows = [f"### {title}", "", "| figure | kind | labels | at most | meaning |"]
        rows.append("| --- | --- | --- | --- | --- |")
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            rows.append(
                f"| `{metric.name}` | {metric.kind} | {labels} | {metric.series_max} "
                f"| {metric.help} |"
            )
        parts.append("\n".join(rows) + "\n")
    return "\n" + "\n".join(parts) + "\n"


def test_the_page_lists_every_figure() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    found, end, after = rest.partition(END)
    assert begin
    assert end
    if os.environ.get("REWRITE"):
        PAGE.write_text(before + begin + listed() + end + after, encoding="utf-8")
        return
    assert found == listed()


def test_the_page_tells_the_bounds_that_hold() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"{names.SERIES_MAX:,} lines" in text
    assert f"first {names.TASK_NAMES_MAX} names" in text
    assert f"first {names.USERS_MAX} users" in text
