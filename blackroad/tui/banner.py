"""The three lines at the top: who is there, what is used, how fast it goes.

Pure.  This file must not know what draws them.
"""

from __future__ import annotations

from typing import Final

from blackroad.tui import words
from blackroad.tui.model import Model

LINES: Final = 3
Part = tuple[str, str]
_BAR_MIN: Final = 6
_ORDER: Final[tuple[str, ...]] = ("running", "waiting", "queued", "untold", "failed", "done")
_STYLES: Final = {"running": "cyan", "failed": "red", "done": "green"}


def lines(model: Model, columns: int, clock: str) -> list[list[Part]]:
    """Return the lines as (text, style) parts, each at most so many columns."""
    made = [_who(model, columns, clock), _used(model, columns), _tasks(model, columns)]
    return [cut(parts, columns) for parts in made]


def cut(parts: list[Part], columns: int) -> list[Part]:
    """Keep what there is room for."""
    kept: list[Part] = []
    left = columns
    for text, style in parts:
        if left <= 0:
            break
        taken = words.width(text)
        if taken > left:
            text, taken = words.fit(text, left), left
        kept.append((text, style))
        left -= taken
    return kept


def _who(model: Model, columns: int, clock: str) -> list[Part]:
    if model.problem:
        return [(" " + words.clean(model.problem), "bold red")]
    mesh = model.mesh
    present = model.present()
    parts: list[Part] = [(" blackroad ", "bold reverse"), (" ", "")]
    parts.append((_nodes(len(present)), "bold"))
    states: dict[str, int] = {}
    for beat in model.beats():
        if beat.state not in ("alive", "left"):
            states[beat.state] = states.get(beat.state, 0) + 1
    for state, count in sorted(states.items()):
        style = "red" if state in ("dead", "clone") else "yellow"
        parts.append((f", {count} {state}", style))
    if mesh is None:
        return parts
    if mesh.coordinator:
        name = words.clean(model.name_of(mesh.coordinator))
        parts += [("  led by ", "dim"), (words.fit(name, min(20, words.width(name))), "bold")]
        if columns >= 70:
            parts.append((f" since epoch {mesh.epoch}", "dim"))
    else:
        parts.append(("  no coordinator: each node uses itself", "yellow"))
    astray = sum(beat.astray for beat in present)
    if astray:
        parts.append((f"  {astray} follow another", "yellow"))
    taken = sum(words.width(text) for text, _ in parts)
    if columns - taken > len(clock) + 1:
        parts.append((clock.rjust(columns - taken - 1), "dim"))
    return parts


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _used(model: Model, columns: int) -> list[Part]:
    present = model.present()
    slots = sum(beat.slots for beat in present)
    running = sum(beat.running for beat in present)
    memory = sum(beat.memory_bytes for beat in present)
    used = sum(beat.memory_bytes * min(100, beat.memory_percent) for beat in present) // 100
    busy = f" {running}/{slots}"
    store = f" {words.size(used)}/{words.size(memory)}"
    speed = f"{words.rate(model.per_s())} tasks/s "
    fixed = len(" busy ") + len(busy) + len("  mem ") + len(store) + 2 + len(speed)
    left = columns - fixed - 1
    each = max(_BAR_MIN, min(24, left // 4))
    sparks = max(0, min(60, left - 2 * each))
    share = running / slots if slots else 0.0
    full = used / memory if memory else 0.0
    return [
        (" busy ", "dim"),
        *_bar(share, each, "cyan"),
        (busy, "bold"),
        ("  mem ", "dim"),
        *_bar(full, each, "red" if full >= 0.95 else "yellow" if full >= 0.75 else "green"),
        (store, "bold"),
        ("  ", ""),
        (speed, "bold green"),
        (words.spark(list(model.total_rates), sparks), "green"),
    ]


def _bar(share: float, columns: int, style: str) -> list[Part]:
    full = words.bar(share, columns)
    return [(full, style), ("░" * (columns - words.width(full)), "dim")]


def _tasks(model: Model, columns: int) -> list[Part]:
    counts = model.counts()
    names = [name for name in _ORDER if name in counts]
    names += [name for name in counts if name not in _ORDER]
    parts: list[Part] = [(" tasks", "dim")]
    for name in names:
        style = _STYLES.get(name, "red" if name in ("expired", "quarantined", "unknown") else "")
        parts += [
            (f"  {words.count(counts[name])}", f"bold {style}".strip()),
            (f" {words.clean(name)}", "dim"),
        ]
    if not names:
        parts.append(("  none", "dim"))
    return parts
