"""Pure: which tasks chaos submits, drawn from a seed.

Task n of a client is the same whenever it is drawn, so a client that was killed can submit it
again.  This file must not know clocks, files or the mesh.
"""

from __future__ import annotations

import random
from typing import Any, Final, NamedTuple

from blackroad.cli.chaos_tasks import KINDS
from blackroad.digest import blake2b

# How long tasks run: most are short, a few outlive a lease.
LENGTHS_MS: Final = (
    (55, 20, 300),
    (30, 300, 2_000),
    (12, 2_000, 8_000),
    (3, 12_000, 30_000),
)
RESULT_BYTES: Final = ((80, 0), (15, 20_000), (5, 600_000))
DURABLE_PERCENT: Final = 75
PURE_PERCENT: Final = 12
ONCE_PERCENT: Final = 8
CANCELLED_PERCENT: Final = 4


class Plan(NamedTuple):
    """One task to be: its id, how it is submitted and what it does; `cancel_ms` 0 is never."""

    name: str
    task: bytes
    durable: bool
    pure: bool
    once: bool
    kind: str
    run_ms: int
    result_bytes: int
    cancel_ms: int

    def order(self, history: str, locks: str) -> dict[str, Any]:
        """What the task itself is told."""
        return {
            "history": history,
            "locks": locks,
            "task": self.name,
            "kind": self.kind,
            "run_ms": self.run_ms,
            "result_bytes": self.result_bytes,
        }


def plan(seed: str, client: str, number: int) -> Plan:
    """Draw task `number` of a client; the seed is that of one run and no other."""
    name = f"{client}-{number}"
    chance = random.Random(f"{seed} {name}")
    durable = chance.randrange(100) < DURABLE_PERCENT
    group = chance.randrange(100)
    _, shortest_ms, longest_ms = _drawn(chance, LENGTHS_MS)
    run_ms = chance.randint(shortest_ms, longest_ms)
    return Plan(
        name,
        blake2b(f"{seed} {name}".encode(), digest_size=16).digest(),
        durable,
        pure=group < PURE_PERCENT,
        once=PURE_PERCENT <= group < PURE_PERCENT + ONCE_PERCENT,
        kind=chance.choices(KINDS, (6, 2, 2))[0],
        run_ms=run_ms,
        result_bytes=_drawn(chance, RESULT_BYTES)[1],
        cancel_ms=(
            chance.randint(1, 2 * run_ms) if chance.randrange(100) < CANCELLED_PERCENT else 0
        ),
    )


def _drawn(chance: random.Random, table: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return chance.choices(table, [row[0] for row in table])[0]
