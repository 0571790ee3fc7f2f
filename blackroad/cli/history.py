"""`blackroad history`: what was, in tables and small plots.

This file must not know how anything is stored; it reads the database, and asks no daemon.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from blackroad.cli import output
from blackroad.cli.commands import Command, json_option
from blackroad.cli.output import Cell, Grid
from blackroad.errors import UsageError
from blackroad.units import format_ms, parse_ms

if TYPE_CHECKING:
    from blackroad.history.figures import Reader, Span

F = TypeVar("F", bound=Callable[..., Any])
LIMIT_MAX: Final = 100_000
BARS: Final = "▁▂▃▄▅▆▇█"
PLAIN_BARS: Final = ".:-=+*#@"
GAP: Final = " "
PLOT_CHARS: Final = 24
DAY: Final = "24h"
STATES: Final = ("done", "failed", "cancelled", "expired", "quarantined", "unknown")
STATE_STYLES: Final = {"done": "green", "cancelled": "yellow", "expired": "yellow"}
HEALTH_STYLES: Final = {"healthy": "green", "degraded": "yellow", "critical": "red"}
SEVERITY_STYLES: Final = {"warning": "yellow", "error": "red"}


class Commands(Command, click.Group):
    """Several commands under one name."""


def _place(command: F) -> F:
    """Add what every command here understands: when, and which database."""
    for option in (
        click.option(
            "--url",
            default="",
            metavar="URL",
            help="Another database than this node's, such as sqlite:////path/history.db.",
        ),
        click.option("--until", metavar="TIME", help="Not what came later; like --since."),
        click.option(
            "--since",
            metavar="TIME",
            default=DAY,
            show_default=True,
            help="From when on: a time ago such as 90m or 7d, or a moment: 2026-11-22T18:00.",
        ),
    ):
        command = option(command)
    return command


@click.group(
    "history",
    cls=Commands,
    examples=(
        "blackroad history tasks --since 7d --state failed",
        "blackroad history nodes",
        "blackroad history usage --by user --since 30d",
        "blackroad history events --severity warning",
    ),
)
def history_command() -> None:
    """Show what was: tasks, nodes, who used what, events.

    It reads the database that this machine's configuration names (history_url), and needs no
    daemon. A node's own SQLite file holds what that node saw; a PostgreSQL that many nodes share
    holds all of them.
    """


# --- tasks --------------------------------------------------------------------------------------


@history_command.command(
    "tasks",
    cls=Command,
    examples=(
        "blackroad history tasks",
        "blackroad history tasks --since 7d --name 'render*' --state failed",
        "blackroad history tasks --node attic --json",
    ),
)
@_place
@click.option("--state", default="", metavar="STATE", help=f"Only: {', '.join(STATES)}.")
@click.option("--name", default="", metavar="PATTERN", help="Only names like 'render*'.")
@click.option("--user", default="", metavar="PATTERN", help="Only tasks of such users.")
@click.option("--node", default="", metavar="NODE", help="Only tasks that ran there.")
@click.option(
    "--limit",
    type=click.IntRange(1, LIMIT_MAX),
    default=50,
    show_default=True,
    help="List at most so many.",
)
@json_option
def tasks_command(
    since: str,
    until: str | None,
    url: str,
    state: str,
    name: str,
    user: str,
    node: str,
    limit: int,
    as_json: bool,
) -> None:
    """List tasks that ended, the newest first, and count them by state.

    Where more than 1000 tasks a second ended, the list holds some of them; the counts hold all.
    """
    if state and state not in STATES:
        raise UsageError(f"no task ends `{state}`", hint=f"they end {', '.join(STATES)}")
    with _reader(url) as reader:
        from blackroad.history.figures import Filter

        told = reader.tasks(_span(since, until), Filter(state, name, user, node), limit)
    if as_json:
        output.print_json(told)
        return
    if told["tasks"]:
        output.print_grid(_tasks_grid(told["tasks"]))
        output.say()
    parts = [f"{_thousands(count)} {end}" for end, count in sorted(told["counts"].items())]
    output.say(", ".join(parts) if parts else "no task ended in that time")
    if sum(told["counts"].values()) > len(told["tasks"]) > 0:
        output.note(f"the newest {len(told['tasks'])} are shown; --limit and filters show others")


def _tasks_grid(tasks: Sequence[dict[str, Any]]) -> Grid:
    rows = [
        (
            Cell(_moment(task["ended_ms"])),
            Cell(task["task"]),
            Cell(task["state"], STATE_STYLES.get(task["state"], "red")),
            Cell(task["name"]),
            Cell(task["user_name"]),
            Cell(task["node_name"]),
            Cell(format_ms(task["run_us"] // 1000) if task["run_us"] else ""),
            Cell(format_ms(max(0, _waited_ms(task)))),
            Cell(str(task["tries"]) if task["tries"] > 1 else ""),
            Cell(task["reason"] if task["state"] != "done" else ""),
        )
        for task in tasks
    ]
    heads = ("ended", "id", "state", "name", "user", "node", "ran", "waited", "attempts", "")
    return Grid(heads, rows, "      rrr ").without_empty("name", "user", "attempts", "node", "")


def _waited_ms(task: dict[str, Any]) -> int:
    return int(task["ended_ms"] - task["submitted_ms"] - task["run_us"] // 1000)


# --- nodes --------------------------------------------------------------------------------------


@history_command.command(
    "nodes",
    cls=Command,
    examples=("blackroad history nodes", "blackroad history nodes --since 7d --json"),
)
@_place
@json_option
def nodes_command(since: str, until: str | None, url: str, as_json: bool) -> None:
    """Show how the nodes were: there, busy, warm, and what they did.

    `seen` is the share of the time in which a node was heard, `busy` that of its slots in use; the
    plot shows `busy` over the time asked for, with gaps where the node was not heard.
    """
    with _reader(url) as reader:
        told = reader.nodes(_span(since, until))
    if as_json:
        output.print_json(told)
        return
    if told["nodes"]:
        output.print_grid(_nodes_grid(told["nodes"]))
        output.say()
    health = told["health"]
    line = f"{health['healthy']} of {health['nodes']} nodes heard lately: {health['status']}"
    if health["alerts"]:
        line += f"; {output.count(health['alerts'], 'warning')} in the last 24 h"
        line += " (`blackroad history events --severity warning`)"
    output.say(line)


def _nodes_grid(nodes: Sequence[dict[str, Any]]) -> Grid:
    rows = [
        (
            Cell(node["name"]),
            Cell(node["node"]),
            Cell(node["status"], "green" if node["status"] == "alive" else "yellow"),
            Cell(_percent(node["seen_percent"])),
            Cell(_percent(node["busy_percent"])),
            Cell(plot(node["series"], 100.0)),
            Cell(_percent(node["cpu_percent"])),
            Cell(_percent(node["memory_percent"])),
            Cell(f"{node['temperature_c_max']:.0f} °C" if node["temperature_c_max"] else ""),
            Cell(_percent(node["throttled_percent"]) if node["throttled_percent"] else ""),
            Cell(_thousands(node["tasks"])),
            Cell(_thousands(node["failed"]) if node["failed"] else ""),
            Cell(_hours(node["core_hours"])),
        )
        for node in nodes
    ]
    heads = (
        *("name", "id", "state", "seen", "busy", "busy over time", "cpu", "memory", "hottest"),
        *("throttled", "tasks", "not done", "core time"),
    )
    return Grid(heads, rows, "   rr rrrrrrr").without_empty("hottest", "throttled", "not done")


# --- usage --------------------------------------------------------------------------------------


@history_command.command(
    "usage",
    cls=Command,
    examples=(
        "blackroad history usage",
        "blackroad history usage --by user --since 30d",
        "blackroad history usage --by node --name 'render*'",
    ),
)
@_place
@click.option(
    "--by",
    default="name",
    show_default=True,
    metavar="WHAT",
    help="Count by name, user, node, owner or state.",
)
@click.option("--name", default="", metavar="PATTERN", help="Only names like 'render*'.")
@click.option("--user", default="", metavar="PATTERN", help="Only tasks of such users.")
@click.option("--node", default="", metavar="NODE", help="Only tasks that ran there.")
@json_option
def usage_command(
    since: str,
    until: str | None,
    url: str,
    by: str,
    name: str,
    user: str,
    node: str,
    as_json: bool,
) -> None:
    """Show who used what: tasks, running time, and cores times running time.

    The plot shows how many tasks ended over the time asked for. All tasks are counted here, also
    where there were too many to list each. A task counts when it ends.
    """
    with _reader(url) as reader:
        from blackroad.history.figures import Filter

        told = reader.usage(_span(since, until), by, Filter("", name, user, node))
    if as_json:
        output.print_json(told)
        return
    if not told["usage"]:
        output.say("no task ended in that time")
        return
    highest = max(max(one["series"]) for one in told["usage"])
    rows = [
        (
            Cell(one["key"] or "(none)"),
            Cell(_thousands(one["tasks"])),
            Cell(_thousands(one["failed"]) if one["failed"] else ""),
            Cell(plot(one["series"], highest)),
            Cell(_hours(one["hours"])),
            Cell(_hours(one["core_hours"])),
            Cell(_mean(one["mean_ms"])),
        )
        for one in told["usage"]
    ]
    heads = (by, "tasks", "not done", "tasks over time", "ran", "core time", "mean")
    output.print_grid(Grid(heads, rows, " rr rrr").without_empty("not done"))


# --- events -------------------------------------------------------------------------------------


@history_command.command(
    "events",
    cls=Command,
    examples=(
        "blackroad history events --severity warning --since 7d",
        "blackroad history events --name 'node.*' --node attic",
        "blackroad history events --cause k3f7x2ab-nfxgk4dsn5zgk3tfon2hgzlsmu --json",
    ),
)
@_place
@click.option("--severity", default="", metavar="LEVEL", help="This one and worse.")
@click.option("--name", default="", metavar="PATTERN", help="Only names like 'node.*'.")
@click.option("--node", default="", metavar="NODE", help="Only what that node told.")
@click.option("--cause", default="", metavar="ID", help="Only what is about that.")
@click.option(
    "--limit",
    type=click.IntRange(1, LIMIT_MAX),
    default=200,
    show_default=True,
    help="List at most so many, the newest.",
)
@json_option
def events_command(
    since: str,
    until: str | None,
    url: str,
    severity: str,
    name: str,
    node: str,
    cause: str,
    limit: int,
    as_json: bool,
) -> None:
    """Print events of the past; `blackroad events` prints those of now.

    With --json one object a line.
    """
    with _reader(url) as reader:
        from blackroad.history.figures import Filter

        which = Filter(name=name, node=node)
        told = reader.events(_span(since, until), which, severity, cause, limit)
    for event in told:
        if as_json:
            output.print_json_line(event)
            continue
        facts = " ".join(f"{key}={value}" for key, value in event["facts"].items())
        line = f"{_moment(event['at_ms'])}  {event['severity']:<7}  {event['host']:<12}  "
        output.say(_clean(f"{line}{event['name']}  {facts}".rstrip()))
    if not told and not as_json:
        output.say("no such event in that time")


# --- what is shared -----------------------------------------------------------------------------


@contextlib.contextmanager
def _reader(url: str) -> Iterator[Reader]:
    from blackroad import config as configuration
    from blackroad import directories
    from blackroad.history.opening import opened

    config = configuration.load()
    state = config.state_dir or directories.default_state(os.environ)
    with opened(config, state, url) as reader:
        yield reader


def _span(since: str, until: str | None) -> Span:
    from blackroad.history.figures import Span

    now_ms = time.time_ns() // 1_000_000
    begin, end = _when(since, "since", now_ms), _when(until, "until", now_ms) if until else now_ms
    if begin >= end:
        raise UsageError("--since is not before --until", hint="swap them, or leave --until out")
    # What happened in this very millisecond belongs to it.
    return Span(begin, end + 1)


def _when(given: str, option: str, now_ms: int) -> int:
    if given[:4].isdecimal() and given[4:5] == "-":
        try:
            return int(datetime.datetime.fromisoformat(given).astimezone().timestamp() * 1000)
        except (ValueError, OverflowError):
            raise UsageError(
                f"--{option}: `{given}` is no moment", hint="write it like 2026-11-22T18:00"
            ) from None
    return max(0, now_ms - parse_ms(given, option))


def plot(series: Sequence[float | None], highest: float) -> str:
    """Draw figures as a line of bars; a gap where there is none.

    Two figures share a bar: it shows the higher one.
    """
    bars = BARS if _draws() else PLAIN_BARS
    step = max(1, len(series) // PLOT_CHARS)
    drawn = []
    for at in range(0, len(series), step):
        known = [one for one in series[at : at + step] if one is not None]
        if not known:
            drawn.append(GAP)
        elif max(known) <= 0 or highest <= 0:
            drawn.append(bars[0])
        else:
            # The lowest bar is nothing at all; little is told from that.
            share = min(1.0, max(known) / highest)
            drawn.append(bars[max(1, round(share * (len(bars) - 1)))])
    return "".join(drawn).rstrip() or GAP


def _draws() -> bool:
    encoding = (getattr(sys.stdout, "encoding", "") or "").lower().replace("-", "")
    return encoding.startswith("utf")


def _moment(at_ms: int) -> str:
    moment = datetime.datetime.fromtimestamp(at_ms / 1000).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _percent(value: float) -> str:
    return f"{value:.0f} %"


def _hours(hours: float) -> str:
    return format_ms(round(hours * 3_600_000))


def _mean(mean_ms: float) -> str:
    return f"{mean_ms * 1000:.0f} us" if mean_ms < 1 else format_ms(round(mean_ms))


def _thousands(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _clean(line: str) -> str:
    from blackroad.cli.report import clean

    return clean(line)
