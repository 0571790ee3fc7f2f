"""`blackroad up` and `blackroad down`: a mesh of daemons on this machine, for development."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import click

from blackroad.cli import mesh_record, mesh_run, output
from blackroad.cli.commands import Command, json_option
from blackroad.cli.mesh_record import Place
from blackroad.errors import AlreadyRunning

NODES: Final = 3
NODES_MAX: Final = 32
TRY_NEXT: Final = (
    ("blackroad nodes", "the mesh, as every program on this machine sees it"),
    ("blackroad submit --wait math:comb 10 3", "a function, somewhere in it"),
    ("blackroad submit --wait --kernel collatz start=1 count=1000000", "a kernel, cut over it"),
    ("blackroad down", "end it"),
)


@click.command(
    "up",
    cls=Command,
    examples=("blackroad up", "blackroad up --nodes 2 --slots 4", "PYTHONPATH=$PWD blackroad up"),
)
@click.option(
    "--nodes", type=click.IntRange(1, NODES_MAX), metavar="N", help=f"How many; default {NODES}."
)
@click.option(
    "--slots",
    type=click.IntRange(1, 1024),
    metavar="S",
    help="Tasks of one core each daemon runs at once; default: this machine's cores shared out.",
)
@json_option
def up_command(nodes: int | None, slots: int | None, as_json: bool) -> None:
    """Start a local mesh of daemons in the background, for development.

    It returns when all of them see each other and follow one coordinator. The first one is found by
    every program of this user; nothing listens beyond loopback. What they keep lies below `mesh` in
    the state directory and outlives them. Daemons of the mesh that have ended are started again.
    """
    at = mesh_record.home()
    known = mesh_record.places(at)
    running = [place for place in known if place.pid()]
    found = known
    if running:
        _refuse_another_shape(known, running, nodes, slots)
        slots = mesh_record.slots_of(at)
    else:
        found = [Place(number, at) for number in range(1, (nodes or NODES) + 1)]
        mesh_record.check_paths(found)
        mesh_run.refuse_others(found[0])
        mesh_record.remember(at, len(found), slots)
    deadline = time.monotonic() + mesh_run.UP_S
    started = mesh_run.start(found, slots)
    seen = mesh_run.await_together(found, deadline)
    _tell(found, started, seen, as_json)


def _refuse_another_shape(
    known: Sequence[Place], running: Sequence[Place], nodes: int | None, slots: int | None
) -> None:
    other_slots = slots is not None and slots != mesh_record.slots_of(known[0].home)
    if other_slots or nodes not in (None, len(known)):
        what = output.count(len(known), "node")
        raise AlreadyRunning(
            f"a mesh of {what} runs already, {len(running)} of them alive",
            hint="`blackroad down` first, then `blackroad up` with other numbers",
        )


def _tell(
    found: Sequence[Place], started: Sequence[Place], seen: mesh_run.Seen, as_json: bool
) -> None:
    ids = {row["name"]: row["id"] for row in seen.rows}
    rows = [
        {
            "name": place.name,
            "id": ids.get(place.name, ""),
            "pid": place.pid(),
            "started": place in started,
            "coordinator": ids.get(place.name) == seen.coordinator,
            "endpoint": place.endpoint,
            "log": str(place.log),
        }
        for place in found
    ]
    if as_json:
        output.print_json({"nodes": rows, "coordinator": seen.coordinator})
        return
    how_many = output.count(len(found), "node")
    if not started:
        output.say(f"a mesh of {how_many} runs already:")
    elif len(started) < len(found):
        output.say(f"a mesh of {how_many} runs again, {len(started)} of them started anew:")
    else:
        output.say(f"a mesh of {how_many} is up:")
    for row in rows:
        mark = "  coordinates" if row["coordinator"] else ""
        output.say(f"  {row['name']}  {row['id']}  process {row['pid']}{mark}")
    output.say(f"logs: {found[0].home.state}/*/daemon.log")
    output.say()
    output.say("try next:")
    width = max(len(command) for command, _ in TRY_NEXT)
    for command, why in TRY_NEXT:
        output.say(f"  {command.ljust(width)}  {why}")


@click.command(
    "down", cls=Command, examples=("blackroad down", "blackroad down --purge  # forget everything")
)
@click.option("--purge", is_flag=True, help="Remove journals, results and logs of the mesh, too.")
@json_option
def down_command(purge: bool, as_json: bool) -> None:
    """End the mesh that `up` started, and only that.

    Tasks that run are ended and begin anew with the next `up`: what was accepted is kept, unless
    --purge removes it.
    """
    at = mesh_record.home()
    found = mesh_record.places(at)
    ended, forced = mesh_run.stop(found)
    mesh_record.forget(at)
    if purge:
        mesh_record.purge(at)
    if as_json:
        output.print_json({"ended": ended, "by_force": forced, "purged": purge})
        return
    if ended:
        tail = f", {forced} of them by force" if forced else ""
        output.say(f"{output.count(ended, 'node')} ended{tail}")
    else:
        output.say("no mesh runs")
    if purge:
        output.say(f"{at.state} is removed")
