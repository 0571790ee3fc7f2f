"""Limits made so small that a short history meets them.

The protocol's bounds are far above what a simulated cluster does in a minute; under small ones the
same code has to split, wait, forget and say Busy all the time.  This file changes limits for the
time of one history, wherever they are used, and knows nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import Random
from types import ModuleType

from blackroad import limits

CHOICES: dict[str, tuple[int, ...]] = {
    "RENEW_TOKENS_MAX": (1, 3),
    "OUTCOME_ACK_TOKENS_MAX": (1, 2),
    "RENEW_LISTS_KEPT": (1, 2),
    "WAITING_PER_SLOT_MAX": (0, 1, 2),
    "WAITING_BYTES_MAX": (10, 1_000),
    "TOMBSTONES_MAX": (10, 40),
    "FORGET_STEP": (1, 2),
    "PAST_TOKENS_MAX": (2, 3),
    "SESSION_TASKS_MAX": (2, 12),
    "OWNER_TASKS_MAX": (3, 12),
    "OWNER_BYTES_MAX": (10, 30_000),
    "SESSIONS_MAX": (1, 2),
    "UNDECIDED_SUBMITS_MAX": (1,),
    "RECENT_TASKS_MAX": (1, 4),
    "PREFETCH_PER_SLOT_MAX": (1, 2),
    "AVOID_NODES_MAX": (1,),
    "SPOOL_BYTES_MAX": (100, 300_000),
    "RELAYS_MAX": (1, 2),
    "SUBMIT_TASKS_MAX": (12,),
}
_places: dict[str, list[ModuleType]] = {}


def drawn(rng: Random) -> dict[str, int]:
    """Some limits and how small they are."""
    names = [name for name in CHOICES if rng.random() < 0.35]
    return {name: rng.choice(CHOICES[name]) for name in names}


def _users(name: str) -> list[ModuleType]:
    """Modules that took this limit by name."""
    if name not in _places:
        value = getattr(limits, name)
        _places[name] = [
            module
            for key, module in sorted(sys.modules.items())
            if key.startswith("blackroad.") and vars(module).get(name) == value
        ]
    return _places[name]


@contextmanager
def limited(small: Mapping[str, int]) -> Iterator[None]:
    """Make limits small for a while."""
    before = {name: getattr(limits, name) for name in small}
    for name, value in small.items():
        for module in _users(name):
            setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            for module in _users(name):
                setattr(module, name, value)
