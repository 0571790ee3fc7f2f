"""Pure: what is done to a mesh and when, drawn from a seed.

This file must not know processes, clocks or the mesh; `chaos_hands.py` does what is written here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

COORDINATOR: Final = "coordinator"
FLAPS: Final = 4
FLAP_EVERY_MS: Final = 3_000
# Before the first strike and after the last heal something ordinary shall happen.
CALM_MS: Final = 2_000
PAUSE_MS: Final = (300, 6_000)


class Fault(NamedTuple):
    """A kind of fault: whom it hits, how long it lasts, and how long now and then.

    `target` is "node", "owner", "coordinator" or "client".
    """

    target: str
    for_ms: tuple[int, int]
    seldom_ms: tuple[int, int] | None = None


# The long ones outlast a lease of 20 s with its bound of 24 s.
LONG_MS: Final = (21_000, 30_000)
FAULTS: Final[dict[str, Fault]] = {
    "kill": Fault("node", (200, 4_000), LONG_MS),
    "kill coordinator": Fault(COORDINATOR, (200, 3_000)),
    "flap coordinator": Fault(COORDINATOR, (200, 500)),
    "kill owner": Fault("owner", (200, 3_000), LONG_MS),
    "stop daemon": Fault("node", (500, 8_000), LONG_MS),
    "freeze node": Fault("node", (500, 8_000), LONG_MS),
    "kill task": Fault("node", (0, 0)),
    "kill client": Fault("client", (100, 2_000)),
    "drain": Fault("node", (500, 6_000)),
}
SELDOM: Final = 8
MEANINGS: Final = {
    "kill": "a daemon is killed and started again",
    "kill coordinator": "the daemon that coordinates is killed and started again",
    "flap coordinator": f"that {FLAPS} times in a row, every {FLAP_EVERY_MS // 1000} s",
    "kill owner": "a daemon that owns tasks is killed and started again",
    "stop daemon": "a daemon stands still beside its running tasks",
    "freeze node": "a daemon stands still with all its tasks",
    "kill task": "the process of a running task is killed",
    "kill client": "a program that submits is killed, and submits again",
    "drain": "a daemon is told to take no new tasks",
}


class Strike(NamedTuple):
    """One fault: begun at `at_ms`, undone after `for_ms`.

    `target` is a name, or COORDINATOR: whoever is it by then.
    """

    at_ms: int
    fault: str
    target: str
    for_ms: int

    @property
    def until_ms(self) -> int:
        """When it is undone."""
        return self.at_ms + self.for_ms


def schedule(
    seed: str,
    length_ms: int,
    nodes: Sequence[str],
    owners: Sequence[str],
    clients: Sequence[str],
    faults: Sequence[str] = tuple(FAULTS),
) -> list[Strike]:
    """Draw the strikes of one run, in order; each kind comes before any comes again.

    Nothing named is struck while an earlier strike on it lasts, half of the nodes at most are away
    at once, and all is over at the end.
    """
    chance = random.Random(f"{seed} nemesis")
    targets = {"node": nodes, "owner": owners, COORDINATOR: [COORDINATOR], "client": clients}
    deck: list[str] = []
    made: list[Strike] = []
    busy: dict[str, int] = {}
    away: list[Strike] = []
    away_max = max(1, (len(nodes) + 1) // 2)
    at_ms = CALM_MS
    last_ms = length_ms - CALM_MS
    while at_ms < last_ms:
        if not deck:
            deck = sorted(faults)
            chance.shuffle(deck)
        fault = deck.pop()
        target = chance.choice(targets[FAULTS[fault].target])
        for_ms = _length(chance, FAULTS[fault])
        times = FLAPS if fault == "flap coordinator" else 1
        begin_ms = max(at_ms, busy.get(target, 0))
        takes_away = for_ms > 0 and fault != "drain" and target not in clients
        if takes_away:
            begin_ms = _room(away, away_max, begin_ms)
        for number in range(times):
            strike = Strike(begin_ms + number * FLAP_EVERY_MS, fault, target, for_ms)
            if strike.until_ms <= last_ms:
                made.append(strike)
                away += [strike] if takes_away else []
                busy[target] = strike.until_ms + PAUSE_MS[0]
        at_ms += chance.randint(*PAUSE_MS)
    return sorted(made)


def _room(away: Sequence[Strike], away_max: int, from_ms: int) -> int:
    """When fewer than so many of these strikes last, that time or later."""
    ends_ms = sorted(strike.until_ms for strike in away if strike.until_ms >= from_ms)
    return from_ms if len(ends_ms) < away_max else ends_ms[-away_max] + 1


def _length(chance: random.Random, fault: Fault) -> int:
    seldom = chance.randrange(SELDOM) == 0
    return chance.randint(*(fault.seldom_ms if seldom and fault.seldom_ms else fault.for_ms))
