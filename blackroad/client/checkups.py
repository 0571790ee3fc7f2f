"""What every machine of a mesh is like, asked for at its daemon; all at once, for each takes long.

This file must not judge what it is told.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.errors import BlackroadError
from blackroad.ids import bytes32

if TYPE_CHECKING:
    from blackroad.client.client import Client

NODES_MAX: Final = 64
WAIT_S: Final = 30.0
PAUSE_S: Final = 0.1
PRESENT: Final = frozenset({"alive", "draining", "suspect"})


class Machine(NamedTuple):
    """One node's machine; `facts` is None where they could not be had, and `problem` says why.

    `row` is what its mesh says of it, `node` and `driver` are its daemon's own counters.
    """

    name: str
    id: str
    row: dict[str, Any]
    facts: dict[str, Any] | None = None
    problem: str = ""
    node: dict[str, Any] | None = None
    driver: dict[str, Any] | None = None
    here: bool = False


def examine(client: Client, nodes: dict[str, Any]) -> list[Machine]:
    """Have all daemons that are there look at their machines; the one that is asked comes first.

    Cost  some seconds, at most 30.
    """
    rows = sorted(nodes["nodes"], key=lambda row: str(row["id"]) != nodes["asked"])[:NODES_MAX]
    found: dict[str, Machine] = {}
    waiting: list[dict[str, Any]] = []
    for row in rows:
        key = str(row["node"])
        here = str(row["id"]) == nodes["asked"]
        found[key] = Machine(str(row["name"]), str(row["id"]), row, here=here)
        if row["state"] in PRESENT:
            waiting.append(row)
    until = time.monotonic() + WAIT_S
    first = True
    while waiting and time.monotonic() < until:
        if not first:
            time.sleep(PAUSE_S)
        first = False
        waiting = [row for row in waiting if not _asked(client, row, found)]
    for row in waiting:
        key = str(row["node"])
        found[key] = found[key]._replace(problem=f"it was not done within {WAIT_S:g} s")
    return [_counted(client, one) for one in found.values()]


def _asked(client: Client, row: dict[str, Any], found: dict[str, Machine]) -> bool:
    """Ask one daemon how far it is; return whether there is no more to wait for."""
    key = str(row["node"])
    try:
        told = client._ask("checkup", {}, target=bytes32(key))
    except BlackroadError as error:
        found[key] = found[key]._replace(problem=error.message)
        return True
    match told.get("state"):
        case "running":
            return False
        case "done" if isinstance(told.get("facts"), dict):
            found[key] = found[key]._replace(facts=told["facts"])
        case _:
            found[key] = found[key]._replace(problem=str(told.get("problem", "no answer")))
    return True


def _counted(client: Client, machine: Machine) -> Machine:
    """Add what that daemon counts, where it tells."""
    if machine.row["state"] not in PRESENT or (machine.facts is None and not machine.here):
        return machine
    told: dict[str, dict[str, Any]] = {}
    for name in ("node", "driver"):
        try:
            told[name] = client._ask(name, {}, target=bytes32(str(machine.row["node"])))
        except BlackroadError:
            return machine
    return machine._replace(node=told["node"], driver=told["driver"])
