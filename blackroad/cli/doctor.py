"""`blackroad doctor`: what is wrong, in words, with what to do about it.

This file must not know how anything is found out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from blackroad.cli import output
from blackroad.cli.commands import Command, json_option, session
from blackroad.errors import (
    EXIT_NO_DAEMON,
    EXIT_OK,
    EXIT_TASK_FAILED,
    EXIT_USAGE,
    BlackroadError,
    EnvironmentProblem,
)

if TYPE_CHECKING:
    from blackroad.cli.doctor_checks import Finding
    from blackroad.cli.doctor_here import Here
    from blackroad.client.checkups import Machine
    from blackroad.client.client import Client
    from blackroad.client.networks import View

SCHEMA: Final = 1


class Commands(Command, click.Group):
    """Several commands under one name, which also does something by itself."""


@click.group(
    "doctor",
    cls=Commands,
    invoke_without_command=True,
    examples=(
        "blackroad doctor",
        "blackroad doctor --json",
        "blackroad doctor --bundle support.tar.gz",
        "blackroad doctor net",
    ),
)
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write all that was seen into FILE (.tar.gz), without secrets, for who helps you.",
)
@json_option
@click.pass_context
def doctor_command(ctx: click.Context, as_json: bool, bundle: Path | None) -> int | None:
    """Look for what is wrong, and say what to do about it: machines, daemons, networks.

    Every daemon that can be reached looks at its own machine: configuration, keys, directories,
    clock, disk and how fast it flushes, memory, packages, devices, Redis, PostgreSQL. Without a
    daemon this machine is looked at. What is a note works, and may be better.

    Exits with 0 where nothing is wrong, 1 where something is, 2 where the configuration cannot be
    read, 4 where no daemon answers.
    """
    if ctx.invoked_subcommand is None:
        return _all(as_json, bundle)
    if bundle is not None:
        raise click.UsageError("--bundle belongs to `blackroad doctor` alone")
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


# --- everything -----------------------------------------------------------------------------------


class Report(NamedTuple):
    """What was found, and in what."""

    here: Here
    problem: BlackroadError | None
    machines: list[Machine]
    views: list[View]
    found: list[Finding]


def _all(as_json: bool, bundle: Path | None) -> int:
    from blackroad.cli import doctor_bundle, doctor_here

    if bundle is not None:
        doctor_bundle.check_target(bundle)
    here = doctor_here.look()
    client, problem = _connected()
    try:
        report = _report(here, client, problem)
        data, lines = _report_as_data(report), _report_lines(report)
        size = 0
        if bundle is not None:
            made = doctor_bundle.members(here, data, lines, client)
            size = doctor_bundle.write(bundle, made)
    finally:
        if client is not None:
            client.close()
    if as_json:
        output.print_json({**data, "bundle": str(bundle) if bundle is not None else None})
    else:
        for line in lines:
            output.say(line)
        if bundle is not None:
            output.say()
            output.say(f"{bundle}: {size:,} bytes; no secrets, but names and addresses: look first")
    return _exit_code(report)


def _connected() -> tuple[Client | None, BlackroadError | None]:
    from blackroad.cli.commands import connect

    try:
        return connect(), None
    except BlackroadError as error:
        return None, error
    except OSError as error:
        return None, EnvironmentProblem(
            f"the way to the daemon is closed: {error.filename}: {error.strerror}",
            hint="run this as the daemon's user, or as root",
        )


def _report(here: Here, client: Client | None, problem: BlackroadError | None) -> Report:
    from blackroad.cli import doctor_here, doctor_mesh
    from blackroad.cli.doctor_checks import findings as of_networks
    from blackroad.client import checkups, networks

    machines: list[Machine] = []
    views: list[View] = []
    coordinator: str | None = None
    if client is not None:
        try:
            nodes = client.nodes()
            coordinator = nodes["coordinator"]
            machines = checkups.examine(client, nodes)
            views = networks.look(client)
        except BlackroadError as error:
            # It answered, and does not any more.
            problem = error
    if not machines:
        facts = doctor_here.facts(here)
        if facts is not None:
            name = str(facts["name"])
            machines = [checkups.Machine(name, "", {}, facts, here=True)]
    found = doctor_here.findings(here, problem)
    found += doctor_mesh.findings(machines, coordinator if problem is None else "unknown")
    if views:
        told = {one.kind for one in found}
        # One server is judged once, by whoever looked closest.
        near = "redis" in told
        ways = [one for one in of_networks(views) if not (near and one.kind == "registry")]
        found += [_at_home(one, views) for one in ways]
    return Report(here, problem, machines, views, _ordered(found))


def _at_home(one: Finding, views: list[View]) -> Finding:
    """A daemon that listens on loopback only is alone because it was never asked to join."""
    from blackroad.cli.doctor_checks import NOTE, is_loopback

    listen = str((views[0].status or {}).get("listen", ""))
    return one._replace(level=NOTE) if one.kind == "alone" and is_loopback(listen) else one


def _ordered(found: list[Finding]) -> list[Finding]:
    """Without repetition, problems first."""
    from blackroad.cli.doctor_checks import PROBLEM

    unique = list(dict.fromkeys(found))
    return sorted(unique, key=lambda one: one.level != PROBLEM)


def _exit_code(report: Report) -> int:
    from blackroad.cli.doctor_checks import PROBLEM

    if report.here.error is not None:
        return EXIT_USAGE
    if report.problem is not None:
        return EXIT_NO_DAEMON
    wrong = any(one.level == PROBLEM for one in report.found)
    return EXIT_TASK_FAILED if wrong else EXIT_OK


def _report_as_data(report: Report) -> dict[str, Any]:
    told = _as_data(report.views, report.found)
    return {
        "schema": SCHEMA,
        "exit_code": _exit_code(report),
        "findings": told["findings"],
        "machines": [
            {
                "name": one.name,
                "id": one.id,
                "state": one.row.get("state", ""),
                "here": one.here,
                "problem": one.problem,
                "facts": one.facts,
                "node": one.node,
                "driver": one.driver,
                "row": one.row,
            }
            for one in report.machines
        ],
        "nodes": told["nodes"],
    }


def _report_lines(report: Report) -> list[str]:
    from blackroad.cli.doctor_checks import PROBLEM

    lines = _finding_lines(report.found)
    problems = sum(one.level == PROBLEM for one in report.found)
    notes = len(report.found) - problems
    looked = sum(one.facts is not None for one in report.machines)
    ways = f", and the ways between {output.count(len(report.views), 'node')}"
    wrong = output.count(problems, "problem") if problems else "no problem found"
    better = f", {output.count(notes, 'note')}" if notes else ""
    between = ways if len(report.views) > 1 else ""
    summary = f"{wrong}{better}: looked at {output.count(looked, 'machine')}{between}"
    return [*lines, *([""] if lines else []), summary]


# --- the networks ---------------------------------------------------------------------------------


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

    lines = _finding_lines(found)
    if not any(one.level == PROBLEM for one in found):
        asked = [view for view in views if view.status is not None]
        nodes = "1 node" if len(asked) == 1 else f"{len(asked)} nodes"
        lines.append(f"no problem found: {nodes} asked, all ports open in both directions")
    return lines


def _finding_lines(found: list[Finding]) -> list[str]:
    from blackroad.cli.doctor_checks import PROBLEM
    from blackroad.cli.report import clean

    lines = []
    for one in found:
        mark = "problem" if one.level == PROBLEM else "note"
        lines.append(clean(f"{mark}: {one.text}"))
        lines += [clean(f"    {line}") for line in one.do]
    return lines


def _as_data(views: list[View], found: list[Finding]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
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
