"""Switches that each break one rule of docs/protocol.md, to test the simulator itself.

They patch the core from outside; the product contains none of them.  The mutants themselves stand
in `mutants_safety.py`, `mutants_bundles.py`, `mutants_lives.py`, `mutants_liveness.py` and
`mutants_harmless.py`; which seed catches each is written down in `mutants.txt`.  This file must
not know what any of them does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Patch = tuple[Any, str, Any]
Build = Callable[[], list[Patch]]

SAVED = Path(__file__).parent / "mutants.txt"
_INHERITED = object()
SAFETY, LIVENESS, HARMLESS, COSTLY = "safety", "liveness", "harmless", "costly"


class Mutant(NamedTuple):
    """One broken rule."""

    name: str
    group: str
    # The rule of docs/protocol.md without its R.
    breaks: str
    what: str
    build: Build
    # Faults without which it shows itself only after thousands of seeds.
    focus: tuple[str, ...]
    # A directed history (`directed.py`) that shows it, where random ones hardly can.
    story: str


MUTANTS: dict[str, Mutant] = {}


def mutant(
    group: str, breaks: str, *, focus: tuple[str, ...] = (), story: str = ""
) -> Callable[[Build], Build]:
    """Register a mutant: its name is the function's, its meaning the docstring."""

    def register(build: Build) -> Build:
        what = (build.__doc__ or "").strip().rstrip(".")
        name = build.__name__
        if name in MUTANTS:
            raise ValueError(f"two mutants are called {name}")
        MUTANTS[name] = Mutant(name, group, breaks, what, build, focus, story)
        return build

    return register


def group(name: str) -> list[Mutant]:
    """All mutants of one group, in the order in which they are written down."""
    return [one for one in MUTANTS.values() if one.group == name]


@contextmanager
def applied(name: str | None) -> Iterator[None]:
    """Break one rule for a while."""
    with patched(MUTANTS[name].build() if name is not None else []):
        yield


@contextmanager
def patched(patches: list[Patch]) -> Iterator[None]:
    """Put other things in these places for a while."""
    before = []
    for place, what, value in patches:
        getattr(place, what)  # what is not there cannot be broken
        before.append((place, what, vars(place).get(what, _INHERITED)))
        setattr(place, what, value)
    try:
        yield
    finally:
        for place, what, value in reversed(before):
            if value is _INHERITED:
                delattr(place, what)
            else:
                setattr(place, what, value)


class Caught(NamedTuple):
    """How a mutant is caught: in a seed, or in its directed history (seed -1)."""

    seed: int
    rule: str


def saved() -> dict[str, Caught]:
    """What `mutants.txt` says: one line each of name, seed (or `story`) and rule."""
    found = {}
    for line in SAVED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, seed, rule = line.split()[:3]
            found[name] = Caught(-1 if seed == "story" else int(seed), rule)
    return found


def save(caught: dict[str, Caught]) -> None:
    """Write `mutants.txt`."""
    head = "# Which seed (or directed story) catches each mutant, and by which invariant.\n"
    head += "# Written by `python -m tests.sim mutants --save`.\n"
    lines = [
        f"{name} {'story' if one.seed < 0 else one.seed} {one.rule}\n"
        for name, one in sorted(caught.items())
    ]
    SAVED.write_text(head + "".join(lines), encoding="utf-8")


# Each of these files registers its mutants here.
from tests.sim import (  # noqa: E402
    mutants_ahead,  # noqa: F401
    mutants_bundles,  # noqa: F401
    mutants_harmless,  # noqa: F401
    mutants_liveness,  # noqa: F401
    mutants_lives,  # noqa: F401
    mutants_safety,  # noqa: F401
)
