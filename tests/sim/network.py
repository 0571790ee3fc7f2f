"""A network that loses, doubles, delays, reorders and holds messages, and cuts single directions.

Links may be slow: then large messages stand in line, and beyond a bound the line loses what comes,
as sockets do.  A cut may keep what is sent meanwhile and pour it out when it ends.
Every choice comes from one seeded generator.  This file knows no message and no node.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

DIRECT = 0
TELEMETRY = 1
BULK = 2
PATHS = (DIRECT, TELEMETRY, BULK)


class Weather(NamedTuple):
    """How bad links are; chances are per thousand messages.

    Units  `bytes_per_ms` is what a directed link carries, 0 for any amount; `line_bytes` is what
           may stand in line before it, `kept_max` how many messages a cut keeps for its end.
    """

    delay_ms: int = 2
    jitter_ms: int = 0
    loss_permille: int = 0
    double_permille: int = 0
    hold_permille: int = 0
    hold_ms: int = 30_000
    bytes_per_ms: int = 0
    line_bytes: int = 0
    kept_max: int = 0


CALM = Weather()

Link = tuple[int, int, int]


class Network:
    """Delays of each message between numbered nodes; cuts are one-way and per path."""

    def __init__(self, rng: Random, weather: Weather) -> None:
        self.rng = rng
        self.weather = weather
        self.cuts: dict[Link, int] = {}
        self.lost = 0
        # Until when each slow link is busy, in true time; and what each cut keeps.
        self._busy: dict[Link, float] = {}
        self._kept: dict[Link, list[Any]] = {}
        self._final = False

    # --- cuts -------------------------------------------------------------------------------------

    def cut(self, source: int, target: int, path: int) -> None:
        """Stop one direction of one path; cuts of the same direction are counted."""
        key = (source, target, path)
        self.cuts[key] = self.cuts.get(key, 0) + 1

    def heal(self, source: int, target: int, path: int) -> None:
        """Take one cut back."""
        if self._final:
            return
        key = (source, target, path)
        left = self.cuts.get(key, 0) - 1
        if left > 0:
            self.cuts[key] = left
        else:
            self.cuts.pop(key, None)

    def heal_is_final(self) -> None:
        """From now on cuts stay: those that were to end have been healed already."""
        self._final = True

    def connected(self, source: int, target: int, path: int) -> bool:
        """Would a message get through now?"""
        return (source, target, path) not in self.cuts

    def keep(self, source: int, target: int, path: int, what: Any) -> None:
        """A sender's socket keeps what a cut stopped, as far as its bound allows."""
        kept = self._kept.setdefault((source, target, path), [])
        if len(kept) < self.weather.kept_max:
            kept.append(what)
        else:
            self.lost += 1

    def take_kept(self) -> list[tuple[Link, list[Any]]]:
        """What was kept for links that are whole again."""
        if not self._kept:
            return []
        whole = [link for link in self._kept if link not in self.cuts]
        return [(link, self._kept.pop(link)) for link in whole]

    # --- one message ------------------------------------------------------------------------------

    def copies(self, source: int, target: int, path: int) -> tuple[int, ...]:
        """After how long each copy of one message arrives; empty where it is lost."""
        weather = self.weather
        if self.cuts and (source, target, path) in self.cuts:
            self.lost += 1
            return ()
        chance = self.rng.random
        if weather.loss_permille and chance() * 1000 < weather.loss_permille:
            self.lost += 1
            return ()
        first = weather.delay_ms
        if weather.jitter_ms:
            first += int(chance() * weather.jitter_ms)
        if weather.hold_permille and chance() * 1000 < weather.hold_permille:
            first += int(chance() * weather.hold_ms)
        if weather.double_permille and chance() * 1000 < weather.double_permille:
            return first, first + int(chance() * (weather.hold_ms or 100))
        return (first,)

    def line_ms(self, source: int, target: int, path: int, size: int, now_ms: int) -> int:
        """How long a message of `size` bytes stands in line and travels; -1 where it is dropped."""
        weather = self.weather
        key = (source, target, path)
        free = max(self._busy.get(key, 0.0), float(now_ms))
        if weather.line_bytes and (free - now_ms) * weather.bytes_per_ms > weather.line_bytes:
            self.lost += 1
            return -1
        free += size / weather.bytes_per_ms
        self._busy[key] = free
        return int(free) - now_ms
