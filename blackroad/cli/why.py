"""`blackroad why`: what keeps a task from running, node by node and need by need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from blackroad.cli import output
from blackroad.cli.commands import Command, json_option, session
from blackroad.cli.output import Cell
from blackroad.cli.report import clean
from blackroad.ids import parse_task
from blackroad.units import format_ms

HEADS: Final = ("node", "held by", "need", "asked", "there", "slots used", "used by", "waiting")
STYLES: Final = {"": "green", "lacks": "red", "unknown": "dim"}
USERS_SHOWN: Final = 3


@click.command(
    "why",
    cls=Command,
    examples=("blackroad why k3f7x2ab-m5c7q", "blackroad why k3f7x2ab-m5c7q --json | jq .holds"),
)
@click.argument("task", metavar="ID")
@json_option
def why_command(task: str, as_json: bool) -> None:
    """Tell what keeps a task from running: of each node what it asks for and what is there.

    The owner of the task tells its rules, the coordinator who uses what and who comes first. Where
    nothing holds a task back, `holds` is empty with --json.
    """
    parse_task(task)
    with session() as client:
        told = client.why(task)
    if as_json:
        output.print_json(told)
        return
    for line in _head(told):
        output.say(line)
    if told["nodes"] and (told.get("holds") or told["state"] == "queued"):
        output.say()
        output.print_grid(grid(told))


def lines(told: dict[str, Any]) -> list[str]:
    """Write the whole answer without colours."""
    return [*_head(told), "", *output.plain(grid(told))]


def _head(told: dict[str, Any]) -> Iterator[str]:
    names = {row.get("id"): row["name"] for row in told["nodes"]}
    waited_ms = told.get("waited_ms", 0)
    queued = told["state"] == "queued"
    since = f" for {format_ms(waited_ms)}" if queued and waited_ms else ""
    yield f"{told['id']}  {told['state']}{since}"
    coordinator = told["coordinator"]
    pairs = [
        ("because", told["reason"] or _nothing(told)),
        ("needs", told["needs"]),
        ("ahead of it", _ahead(told)),
        ("last", told["last"]),
        ("coordinator", names.get(coordinator, coordinator) or "none yet"),
    ]
    given = [(name, value) for name, value in pairs if value]
    width = max(len(name) for name, _ in given)
    for name, value in given:
        text = clean(str(value)).replace("\n", " ")
        yield f"  {name.ljust(width)}  {text}"


def _nothing(told: dict[str, Any]) -> str:
    if told["state"] == "queued":
        return "nothing holds it back: it is to be placed"
    return f"it does not wait to be placed: it is {told['state']}"


def _ahead(told: dict[str, Any]) -> str:
    pool = told.get("pool") or {}
    parts = []
    if told["ahead"]:
        parts.append(output.count(told["ahead"], "task") + " of its kind")
    if pool.get("tasks_first"):
        kinds = output.count(pool["classes_first"], "other kind")
        parts.append(output.count(pool["tasks_first"], "task") + f" of {kinds}")
    return ", ".join(parts)


# --- the table ----------------------------------------------------------------------------------


def grid(told: dict[str, Any]) -> output.Grid:
    """The table: a line for each node, and one more for each further need that is not met."""
    names = {row.get("id"): row["name"] for row in told["nodes"]}
    rows = [row for node in told["nodes"] for row in _rows(node, names)]
    made = output.Grid(HEADS, rows)
    return made.without_empty("need", "asked", "there", "used by", "waiting")


def _rows(node: dict[str, Any], names: dict[str, str]) -> Iterator[tuple[Cell, ...]]:
    rule = node.get("rule", "")
    pool = node.get("pool") or {}
    lacks = [item[:3] for item in node["missing"]] or []
    if rule == "full":
        lacks = pool.get("lacking", [])
    here, used = node.get("slots_here", 0), node.get("in_use", 0)
    waiting = node.get("waiting", 0)
    first = (
        Cell(node["name"]),
        Cell(_held(node, rule, pool, names), STYLES.get(rule, "yellow")),
    )
    rest = (
        Cell(f"{used} of {here}" if here or used else "none"),
        Cell(_users(pool, names) if rule in ("full", "reserved", "others first") else ""),
        Cell(str(waiting) if waiting else ""),
    )
    for item, asked, there in lacks or [("", "", "")]:
        yield (*first, Cell(item), Cell(asked), Cell(there), *rest)
        first, rest = (Cell(""), Cell("")), (Cell(""), Cell(""), Cell(""))


def _held(node: dict[str, Any], rule: str, pool: dict[str, Any], names: dict[str, str]) -> str:
    for_ms = node.get("backing_off_ms", 0)
    if rule == "reserved":
        owner, _, user, _, gang = pool["reserved_for"]
        what = f"a gang of {gang}" if gang > 1 else "one task"
        whom = " ".join(filter(None, (user, f"on {names.get(owner, owner)}")))
        return f"kept for {what} of {whom}"
    if for_ms:
        return f"{rule} for {format_ms(for_ms)}"
    return rule or "nothing"


def _users(pool: dict[str, Any], names: dict[str, str]) -> str:
    """Who uses a node: users, or their nodes where a user is not told."""
    slots: dict[str, int] = {}
    for owner, _, user, used in pool.get("users", ()):
        who = user or names.get(owner, owner)
        slots[who] = slots.get(who, 0) + used
    most = sorted(slots.items(), key=lambda one: (-one[1], one[0]))
    shown = ", ".join(f"{who} {used}" for who, used in most[:USERS_SHOWN])
    return f"{shown}, ..." if len(most) > USERS_SHOWN else shown
