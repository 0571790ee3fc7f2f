"""A page of figures in the text form that Prometheus reads.

Pure.  A page takes only figures of `names.METRICS`, and never more lines than there may be; text
from elsewhere (names of nodes, tasks, users) cannot break a line or steer a terminal.

Source  Prometheus exposition format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from blackroad.errors import invariant
from blackroad.metrics.names import LABEL_CHARS_MAX, METRICS, OTHER, SERIES_MAX

Number = int | float
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def clean(text: str) -> str:
    """Return a label's value: short, of one line, printable."""
    if len(text) > LABEL_CHARS_MAX:
        text = text[: LABEL_CHARS_MAX - 1] + "…"
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text


@lru_cache(maxsize=1_024)
def quoted(text: str) -> str:
    """Return a label's value as it stands between quotes."""
    return clean(text).replace("\\", "\\\\").replace('"', '\\"')


def _form(name: str, labels: Sequence[str]) -> str:
    """The line of one figure, with places for the labels' values and the number."""
    if not labels:
        return f"{name} %s"
    inside = ",".join(f'{label}="%s"' for label in labels)
    return f"{name}{{{inside}}} %s"


_FORMS = {metric.name: _form(metric.name, metric.labels) for metric in METRICS.values()}
_HEADS = {
    metric.name: f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}"
    for metric in METRICS.values()
}


class Page:
    """Figures, gathered in order."""

    def __init__(self) -> None:
        self.series = 0
        self.cut = 0
        self._lines: list[str] = []
        self._shown: set[str] = set()

    def one(self, name: str, value: Number) -> None:
        """Show a figure without labels."""
        self._open(name)
        if self._room(1):
            self._lines.append(_FORMS[name] % _number(value))

    def many(self, name: str, rows: Iterable[tuple[tuple[str, ...], Number]]) -> None:
        """Show a figure with labels, a line for each of their values."""
        self._open(name)
        listed = list(rows)[: METRICS[name].series_max + 1]
        invariant(len(listed) <= METRICS[name].series_max, "a figure has too many series", name)
        form = _FORMS[name]
        for labels, value in listed[: self._room(len(listed))]:
            self._lines.append(form % (*map(quoted, labels), _number(value)))

    def spread(
        self, name: str, counts: Sequence[int], powers: Sequence[int], unit: float, total: float
    ) -> None:
        """Show a histogram: `counts[k]` values lay above 2^(k-1) and up to 2^k units."""
        self._open(name)
        if self._room(len(powers) + 3) < len(powers) + 3:
            return
        below, at = 0, 0
        for power in powers:
            below += sum(counts[at : power + 1])
            at = power + 1
            self._lines.append(f'{name}_bucket{{le="{2**power * unit:.9g}"}} {below}')
        count = sum(counts)
        self._lines.append(f'{name}_bucket{{le="+Inf"}} {count}')
        self._lines.append(f"{name}_sum {_number(total)}")
        self._lines.append(f"{name}_count {count}")

    def body(self) -> bytes:
        """The whole page."""
        return ("\n".join(self._lines) + "\n").encode()

    def _open(self, name: str) -> None:
        """Begin a figure; each one stands together, under its description."""
        invariant(name in METRICS and name not in self._shown, "no such figure, or twice", name)
        self._shown.add(name)
        self._lines.append(_HEADS[name])

    def _room(self, wanted: int) -> int:
        """Take room for lines; return how many of those wanted there is room for."""
        room = max(0, min(wanted, SERIES_MAX - self.series))
        self.series += room
        self.cut += wanted - room
        return room


def _number(value: Number) -> str:
    return repr(value) if isinstance(value, float) else str(int(value))


class Folded:
    """Values of a label: the first ones as they are, all beyond the cap as one."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.folded = 0
        self._known: dict[str, str] = {}

    def value(self, text: str) -> str:
        """The value that stands for this text."""
        known = self._known.get(text)
        if known is not None:
            return known
        if len(self._known) >= self.cap:
            self.folded += 1
            return OTHER
        # What would look alike on the page is the same there.
        self._known[text] = shown = clean(text)
        return shown


def words(counters: Iterable[tuple[str, int]], cap: int) -> list[tuple[tuple[str, ...], int]]:
    """Counters by their first two words; the names beyond the cap together.

    A third word, where there is one, names a node or a client: it may be anything.
    """
    told: dict[str, int] = {}
    for name, count in sorted(counters):
        word = ".".join(name.split(".")[:2])
        if word not in told and len(told) >= cap:
            word = OTHER
        told[word] = told.get(word, 0) + count
    return [((word,), count) for word, count in told.items()]
