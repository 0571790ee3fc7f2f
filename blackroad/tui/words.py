"""Numbers, spans and other machines' texts in few columns of a terminal.

Pure.  Nothing that comes from another machine may steer the terminal: what is not printable is
shown as a dot.  This file must not know what a number stands for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

SPARKS: Final = "▁▂▃▄▅▆▇█"
DOT: Final = "·"
ELLIPSIS: Final = "…"
_HIDDEN: Final = frozenset({"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"})
_NO_WIDTH: Final = frozenset({"Mn", "Me"})
_WIDE: Final = frozenset({"W", "F"})
_BINARY: Final = ("B", "K", "M", "G", "T", "P")
_COUNTS: Final = ("", "k", "M", "G", "T")
# Terminals disagree on what a long row of marks on one letter takes; so many are shown.
_MARKS_MAX: Final = 2


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """Return a text on one line, with a dot for each letter that could do something."""
    if text.isascii() and text.isprintable():
        return text
    made: list[str] = []
    marks = 0
    for letter in text:
        kind = unicodedata.category(letter)
        marks = marks + 1 if kind in _NO_WIDTH else 0
        if kind in _HIDDEN:
            made.append(DOT)
        elif kind == "Zs":
            made.append(" ")
        elif not marks or (made and marks <= _MARKS_MAX):
            made.append(letter)
    return "".join(made)


def width(text: str) -> int:
    """Return how many columns a clean text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(letter) for letter in text)


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in _NO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in _WIDE else 1


def fit(text: str, columns: int, *, right: bool = False) -> str:
    """Return a clean text in exactly so many columns, cut with an ellipsis where it is longer."""
    if columns <= 0:
        return ""
    taken = width(text)
    if taken > columns:
        kept, used = [], 0
        for letter in text:
            used += _columns(letter)
            if used > columns - 1:
                break
            kept.append(letter)
        text = "".join(kept) + ELLIPSIS
        taken = width(text)
    pad = " " * (columns - taken)
    return pad + text if right else text + pad


def size(size_bytes: float) -> str:
    """Write a size in at most five columns: 812M, 3.4G."""
    return _scaled(size_bytes, 1024, _BINARY)


def count(number: float) -> str:
    """Write a number in at most five columns: 950, 9.8k, 12M."""
    return _scaled(number, 1000, _COUNTS)


def rate(per_s: float) -> str:
    """Write a number a second; what is below ten keeps a decimal."""
    if 0 < per_s < 9.95:
        return f"{per_s:.1f}"
    return _scaled(per_s, 1000, _COUNTS)


def _scaled(number: float, base: int, names: Sequence[str]) -> str:
    number = max(0.0, number)
    power = 0
    while number >= base - 0.5 and power + 1 < len(names):
        number /= base
        power += 1
    if power and number < 9.95:
        return f"{number:.1f}{names[power]}"
    return f"{number:.0f}{names[power]}"


def age(duration_ms: float) -> str:
    """Write a span in at most five columns: 340ms, 12s, 3m20, 2h05, 4d3h."""
    ms = max(0, int(duration_ms))
    if ms < 1000:
        return f"{ms}ms"
    seconds = ms // 1000
    if seconds < 60:
        return f"{seconds}s" if ms >= 10_000 else f"{ms / 1000:.1f}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}"
    if seconds < 86_400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}"
    days = seconds // 86_400
    return f"{days}d{seconds % 86_400 // 3600}h" if days < 100 else f"{days}d"


def took(run_us: int) -> str:
    """Write a running time, which may be far below a millisecond."""
    if run_us <= 0:
        return ""
    return f"{run_us}µs" if run_us < 1000 else age(run_us / 1000)


def spark(values: Sequence[float], columns: int, top: float = 0.0) -> str:
    """Draw the last values as bars, the newest on the right; `top` is the height of all."""
    shown = list(values)[-columns:] if columns > 0 else []
    high = max([top, *shown], default=0.0)
    if high <= 0:
        return (SPARKS[0] * len(shown)).rjust(columns)
    last = len(SPARKS) - 1
    bars = [SPARKS[min(last, round(max(0.0, one) / high * last))] for one in shown]
    return "".join(bars).rjust(columns)


def bar(share: float, columns: int) -> str:
    """Draw a share of one as a bar, which would have so many columns for all."""
    full = max(0.0, min(1.0, share)) * columns
    whole = int(full)
    eighths = int((full - whole) * 8)
    part = " ▏▎▍▌▋▊▉"[eighths] if whole < columns else ""
    return "█" * whole + part.strip()
