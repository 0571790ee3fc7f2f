"""Draws what `growth.py` measured: docs/img/growth.svg.  `python -m bench.plot` draws it again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
GROWTH = ROOT / "bench" / "results" / "growth.json"
PICTURE = ROOT / "docs" / "img" / "growth.svg"
BAND = 0.2

# Title, part, what grows, its name, lines of cost for one unit, their unit, from where it is flat.
PANELS = (
    ("Queued tasks, a real daemon", "Tasks, one daemon", "tasks", "tasks queued",
     ("all us", "daemon us", "program us", "task processes us"), "processor µs / task", 1_000),
    ("Queued tasks, state machines alone", "Tasks, one node's state machines", "tasks",
     "tasks queued", ("us",), "processor µs / task", 1_000),
    ("Nodes, simulated", "Nodes", "nodes", "nodes",
     ("table us / node", "Demand us", "Heartbeat us"), "µs", 10),
    ("Memory of a coordinator, simulated", "Nodes", "nodes", "nodes", ("KiB / node",), "KiB / node",
     10),
    ("Payload", "Payload", "KiB", "KiB", ("processor us / KiB",), "processor µs / KiB", 16_384),
    ("Programs of one daemon", "Programs", "programs", "programs",
     ("all us", "daemon us", "program us", "task processes us"), "processor µs / task", 1),
)  # fmt: skip


def main() -> int:
    """Draw the picture; without matplotlib say how to get it."""
    try:
        import matplotlib
    except ImportError:
        print("no picture without matplotlib: pip install matplotlib", file=sys.stderr)
        return 0
    if not GROWTH.exists():
        print(f"there is no {GROWTH}: run `python -m bench --growth` first", file=sys.stderr)
        return 2
    # The same figures make the same file.
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "growth", "font.size": 8, "svg.fonttype": "none"})
    from matplotlib import pyplot

    parts = json.loads(GROWTH.read_text())["parts"]
    figure, places = pyplot.subplots(2, 3, figsize=(11, 6))
    for place, panel in zip(places.flat, PANELS, strict=True):
        _draw(place, parts[panel[1]]["rows"], panel)
    figure.suptitle("Cost of one unit against the number of units; shaded: 20 % around the median")
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(f"written to {PICTURE.relative_to(ROOT)}")
    return 0


def _draw(place: Any, rows: list[dict[str, float]], panel: tuple[Any, ...]) -> None:
    title, _, key, grows, lines, unit, flat_from = panel
    sizes = [row[key] for row in rows]
    for number, line in enumerate(lines):
        values = [row[line] for row in rows]
        place.plot(sizes, values, marker="o", markersize=3, label=line)
        settled = sorted(row[line] for row in rows if row[key] >= flat_from)
        if number == 0 and settled:
            middle = settled[len(settled) // 2]
            place.axhspan(middle * (1 - BAND), middle * (1 + BAND), alpha=0.12)
    place.set_xscale("log")
    main = [row[lines[0]] for row in rows]
    if max(main) > 50 * min(main) > 0:
        place.set_yscale("log")
    else:
        place.set_ylim(0, 1.25 * max(row[line] for row in rows for line in lines))
    place.set(title=title, xlabel=grows, ylabel=unit)
    if len(lines) > 1:
        place.legend(fontsize=7)


if __name__ == "__main__":
    sys.exit(main())
