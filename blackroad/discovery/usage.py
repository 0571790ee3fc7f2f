"""How much of this machine is used: processor, memory and network, from the kernel's counters.

Edge.  This file must not know who is told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

KIB_S_MAX: Final = 2**31
_ROOT: Final = Path("/")
# Of the first line of /proc/stat: idle, and waiting for a disk.
_RESTING: Final = (3, 4)
# Guests' time is in that of their hosts already.
_STAT_WORDS: Final = 8


class Used(NamedTuple):
    """What is used now, of everything; network in KiB/s, all of it together."""

    receiving_kib_s: int = 0
    sending_kib_s: int = 0
    cpu_percent: int = 0
    memory_percent: int = 0


class Usage:
    """Differences of two looks; at the first one only memory is known."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._networks: dict[str, tuple[int, int]] = {}
        self._cpu: tuple[int, int] | None = None
        self._last_ms = 0

    def look(self, now_ms: int) -> Used:
        """Return what was used since the last look; 0 for what the kernel does not tell.

        Cost  three small files of the kernel and one look at each interface.
        """
        past_ms, self._last_ms = now_ms - self._last_ms, now_ms
        return Used(*self._network(past_ms), self._processor(), self._memory())

    def _text(self, name: str) -> str:
        try:
            return (self._root / "proc" / name).read_text("utf-8", "replace")
        except OSError:
            return ""

    # --- processor and memory ---------------------------------------------------------------------

    def _processor(self) -> int:
        words = self._text("stat").partition("\n")[0].split()[1 : 1 + _STAT_WORDS]
        if len(words) <= max(_RESTING) or not all(word.isdigit() for word in words):
            self._cpu = None
            return 0
        counts = [int(word) for word in words]
        now = (sum(counts), sum(counts[at] for at in _RESTING))
        last, self._cpu = self._cpu, now
        if last is None or now[0] <= last[0]:
            return 0
        past = now[0] - last[0]
        resting = max(0, min(past, now[1] - last[1]))
        return round(100 * (past - resting) / past)

    def _memory(self) -> int:
        sizes: dict[str, int] = {}
        for line in self._text("meminfo").splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if name in ("MemTotal", "MemAvailable") and words and words[0].isdigit():
                sizes[name] = int(words[0])
        total, free = sizes.get("MemTotal", 0), sizes.get("MemAvailable")
        if not total or free is None:
            return 0
        return round(100 * (total - min(free, total)) / total)

    # --- network ----------------------------------------------------------------------------------

    def _network(self, past_ms: int) -> tuple[int, int]:
        found = self._interfaces()
        last, self._networks = self._networks, found
        if past_ms <= 0:
            return 0, 0
        totals = [0, 0]
        for name, counts in found.items():
            # An interface that came, or was set up anew, begins to count at nothing.
            before = last.get(name, counts)
            for way in (0, 1):
                totals[way] += max(0, counts[way] - before[way])
        received, sent = (min(KIB_S_MAX, one * 1000 // (past_ms * 1024)) for one in totals)
        return received, sent

    def _interfaces(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for line in self._text("net/dev").splitlines():
            name, colon, rest = line.partition(":")
            words = rest.split()
            if colon and len(words) >= 9 and words[0].isdigit() and words[8].isdigit():
                found[name.strip()] = (int(words[0]), int(words[8]))
        # What passes through a bridge or a tunnel passes through a card as well; a container has
        # no card, and its one interface counts.
        cards = {name: counts for name, counts in found.items() if self._is_card(name)}
        found.pop("lo", None)
        return cards or found

    def _is_card(self, name: str) -> bool:
        return (self._root / "sys/class/net" / name / "device").exists()
