"""A network that loses, doubles, delays, reorders and holds messages, and cuts single directions.

Every choice comes from one seeded generator.  This file knows no message and no node.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

DIRECT = 0
TELEMETRY = 1
PATHS = (DIRECT, TELEMETRY)


class Weather(NamedTuple):
    """How bad links are; chances are per thousand messages."""

    delay_ms: int = 2
    jitter_ms: int = 0
    loss_permille: int = 0
    double_permille: int = 0
    hold_permille: int = 0
    hold_ms: int = 30_000


CALM = Weather()


class Network:
    """Delays of each message between numbered nodes; cuts are one-way and per path."""

    def __init__(self, rng: Random, weather: Weather) -> None:
        self.rng = rng
        self.weather = weather
        self.cuts: dict[tuple[int, int, int], int] = {}
        self.lost = 0
        self._final = False

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

    def copies(self, source: int, target: int, path: int) -> tuple[int, ...]:
        """After how long each copy of one message arrives; empty where it is lost."""
        weather = self.weather
        if not self.connected(source, target, path):
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
