"""`blackroad doctor`: what is wrong, in words, with what to do about it.

This file must not know how anything is found out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blackroad.cli import output
from blackroad.cli.commands import Command, json_option, session

if TYPE_CHECKING:
    from blackroad.cli.doctor_checks import Finding
    from blackroad.client.networks import View


class Commands(Command, click.Group):
    """Several commands under one name, which also does something by itself."""


@click.group(
    "doctor",
    cls=Commands,
    invoke_without_command=True,
    examples=("blackroad doctor", "blackroad doctor net", "blackroad doctor net --json"),
)
@json_option
@click.pass_context
def doctor_command(ctx: click.Context, as_json: bool) -> int | None:
    """Look for what is wrong, and say what to do about it; alone it runs all checks.

    Exits with 1 where something is wrong.
    """
    if ctx.invoked_subcommand is None:
        return _net(as_json)
    ctx.obj = as_json
    return None


@doctor_command.command(
    "net", cls=Command, examples=("blackroad doctor net", "blackroad doctor net --json")
)
@json_option
@click.pass_context
def net_command(ctx: click.Context, as_json: bool) -> int:
    """Look at the networks: blocked directions and ports, multicast, clones, clocks.

    Every daemon that can be reached, directly or through another one, says whom it hears and which
    ports of its peers it can connect. Exits with 1 where something is wrong.
    """
    return _net(as_json or bool(ctx.obj))


def _net(as_json: bool) -> int:
    from blackroad.cli.doctor_checks import PROBLEM, findings
    from blackroad.client.networks import look

    with session() as client:
        views = look(client)
    found = findings(views)
    wrong = any(one.level == PROBLEM for one in found)
    if as_json:
        output.print_json(_as_data(views, found))
    else:
        for line in told(views, found):
            output.say(line)
    return 1 if wrong else 0


def told(views: list[View], found: list[Finding]) -> list[str]:
    """The findings as lines for people."""
    from blackroad.cli.doctor_checks import PROBLEM

    lines = []
    for one in found:
        mark = "problem" if one.level == PROBLEM else "note"
        lines.append(f"{mark}: {one.text}")
        lines += [f"    {line}" for line in one.do]
    if not any(one.level == PROBLEM for one in found):
        asked = [view for view in views if view.status is not None]
        nodes = "1 node" if len(asked) == 1 else f"{len(asked)} nodes"
        lines.append(f"no problem found: {nodes} asked, all ports open in both directions")
    return lines


def _as_data(views: list[View], found: list[Finding]) -> dict[str, Any]:
    return {
        "schema": 1,
        "findings": [one._asdict() for one in found],
        "nodes": [
            {
                "node": view.node,
                "name": view.name,
                "asked": view.status is not None,
                "via": view.via,
                "ahead_ms": view.ahead_ms,
                "within_ms": view.within_ms,
                "probed": view.probed,
                "status": view.status,
            }
            for view in views
        ],
    }
