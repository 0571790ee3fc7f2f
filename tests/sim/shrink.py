"""Make a failing history small: leave out what it does not need, as long as the same rule breaks.

Everything a seed does has a name (`Swarm.items`); what is left out leaves the rest as it was.  The
same choices under another network may fail where the first one does not: several salts are tried.
This file must not know what the names stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.sim import mutants, search
from tests.sim.swarm import Swarm

SALTS = 3
TRIES_MAX = 600

Fails = Callable[[search.Case], str]


def fails(case: search.Case) -> str:
    """Which rule breaks in this history, if any."""
    return search.play_some([case])[0].rule


def names(case: search.Case) -> list[list[str]]:
    """What can be left out, by kind: fault kinds, single faults, clients, submits, tasks."""
    with mutants.applied(case.mutant or None):
        swarm = Swarm(case.seed, search.focus(case.mutant), case.drop, case.salt)
    parts: dict[str, list[str]] = {"client": [], "submit": [], "task": [], "fault": []}
    for name in swarm.items:
        if name not in case.drop:
            head, mark, _ = name.partition("#")
            parts["task" if not mark else head if head in parts else "fault"].append(name)
    order = (parts["client"], parts["submit"], parts["fault"], parts["task"])
    return [sorted(swarm.faults), *order]


def smallest(case: search.Case, rule: str = "", check: Fails = fails) -> search.Case:
    """The smallest history found that breaks the same rule as `case`.

    Raises  ValueError where `case` breaks nothing.
    """
    rule = rule or check(case)
    if not rule:
        raise ValueError(f"seed {case.seed} breaks nothing")
    tries = TRIES_MAX
    before = None
    while before != case and tries > 0:
        before = case
        for kind in range(len(names(case))):
            case, tries = _thin(case, names(case)[kind], rule, check, tries)
    return case


def _thin(
    case: search.Case, found: list[str], rule: str, check: Fails, tries: int
) -> tuple[search.Case, int]:
    """Leave out as much of `found` as possible: large parts first, at last one by one."""
    size = len(found)
    while size:
        at = 0
        while at < len(found) and tries > 0:
            part = found[at : at + size]
            tries -= 1
            smaller = _without(case, part, rule, check)
            if smaller is None:
                at += size
            else:
                case = smaller
                found = found[:at] + found[at + size :]
        size = 0 if size == 1 else -(-size // 2)
    return case, tries


def _without(case: search.Case, part: Iterable[str], rule: str, check: Fails) -> search.Case | None:
    drop = tuple(sorted({*case.drop, *part}))
    for salt in dict.fromkeys((case.salt, *range(SALTS))):
        smaller = case._replace(drop=drop, salt=salt)
        if check(smaller) == rule:
            return smaller
    return None


def told(case: search.Case) -> list[str]:
    """A small history as a readable scenario, its end, and the command that plays it again."""
    drop = set(case.drop)
    with mutants.applied(case.mutant or None):
        swarm = Swarm(case.seed, search.focus(case.mutant), case.drop, case.salt)
        kept = {f"{name}: " for name in swarm.items if name not in drop}
        gone = {f"{name}: " for name in drop}
        lines = [
            text
            for text in swarm.options()
            if not any(text.startswith(head) for head in gone - kept)
        ]
    more = f"--mutant {case.mutant} " if case.mutant else ""
    more += f"--drop {','.join(case.drop)} " if case.drop else ""
    more += f"--salt {case.salt} " if case.salt else ""
    return [
        "the smallest history that still fails:",
        *(f"  {text}" for text in lines),
        search.line(search.play(case)),
        f'replay: make sim SEED={case.seed} ARGS="{more}--trace"',
    ]
