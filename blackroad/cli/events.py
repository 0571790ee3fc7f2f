"""`blackroad events`: what happened on all nodes, and what happens."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

from blackroad.cli import output
from blackroad.cli.commands import Command, json_option, session
from blackroad.cli.report import clean, in_colour
from blackroad.errors import EXIT_OK, UnitError, UsageError
from blackroad.events import SEVERITIES, VOCABULARY, Event, Wanted, split_id, wanted

if TYPE_CHECKING:
    from blackroad.client.client import Client
    from blackroad.client.happenings import Past

LIMIT: Final = 100
WAIT_S: Final = 3600.0
# Several nodes tell of the same thing within this time.
SAME_MS: Final = 10_000
SAME_MAX: Final = 1_000
STYLES: Final = {"debug": "bright_black", "info": "", "warning": "yellow", "error": "red"}
# Said by every node that sees it, with one cause.
SEEN_BY_ALL: Final = frozenset(
    {
        "coordinator.changed",
        "node.died",
        "node.joined",
        "node.left",
        "node.recovered",
        "node.reincarnated",
        "node.suspected",
    }
)
# What the cause says already.
_IN_CAUSE: Final = frozenset({"task", "node", "counter", "epoch"})
_OF_NODES: Final = frozenset({"node", "on", "owner", "worker"})


@click.command(
    "events",
    cls=Command,
    examples=(
        "blackroad events",
        "blackroad events -f --severity warning",
        "blackroad events --name 'node.*,coordinator.*' --since 1h",
        "blackroad events -f --cause k3f7x2ab-m5c7q --json",
    ),
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--name", metavar="PATTERN", default="", help="Only these: 'node.*,task.failed'.")
@click.option(
    "--severity",
    type=click.Choice(SEVERITIES),
    help="Only this and worse; info, or debug where --name or --cause is given.",
)
@click.option("--node", metavar="NODE", default="", help="Only what this node tells.")
@click.option(
    "--cause", metavar="TEXT", default="", help="Only what this task, life or reign is about."
)
@click.option(
    "--since", metavar="SPAN|ID", help="Only what is newer than 10m, or came after an event."
)
@click.option(
    "--limit",
    type=click.IntRange(0, 10_000),
    default=LIMIT,
    show_default=True,
    metavar="N",
    help="The newest N of what happened before.",
)
@click.option("--all", "each", is_flag=True, help="Show what several nodes saw once for each.")
@click.option("--names", is_flag=True, help="List the names of all events, and end.")
@json_option
def events_command(
    follow: bool,
    name: str,
    severity: str | None,
    node: str,
    cause: str,
    since: str | None,
    limit: int,
    each: bool,
    names: bool,
    as_json: bool,
) -> int:
    """Show what happened on all nodes, and with -f what happens.

    A line is: when, who tells, what, its cause, facts. The cause is a task's id, a life of a node
    or a coordinator's reign, spelled alike on every machine and in every log. With --json each
    event is one line. That tasks are done is told only while somebody asks for it: -f --name
    'task.*'.
    """
    choice = wanted(name, severity or ("debug" if name or cause else "info"), node, cause)
    if names:
        _print_names(choice, as_json)
        return EXIT_OK
    shown = Lines(as_json, each or as_json)
    with session() as client:
        shown.labels = _labels(client, node)
        since_ms, after = _since(client, since)
        try:
            if follow:
                _follow(client, choice, since_ms, limit, after, shown)
            else:
                from blackroad.client.happenings import past

                _print_past(past(client, choice, since_ms=since_ms, limit=limit), after, shown)
        except KeyboardInterrupt:
            # There is no other way to end it, so it is no failure.
            return EXIT_OK
    return EXIT_OK


def _follow(
    client: Client, choice: Wanted, since_ms: int, limit: int, after: str, shown: Lines
) -> None:
    from blackroad.client.happenings import Stream

    with Stream(client, choice) as stream:
        _print_past(stream.past(since_ms=since_ms, limit=limit), after, shown)
        missed = 0
        while True:
            event = stream.get(WAIT_S)
            if stream.missed > missed:
                output.note(f"({output.count(stream.missed - missed, 'event')} missed)")
                missed = stream.missed
            if event is not None:
                shown.add(event)


def _print_past(found: Past, after: str, shown: Lines) -> None:
    for event in found.events:
        if event.id != after:
            shown.add(event)
    if found.silent:
        output.note(f"no answer from {', '.join(f'`{one}`' for one in found.silent)}")
    if found.older:
        names = ", ".join(f"`{one}`" for one in found.older)
        output.note(f"{names}: an older version, which keeps no events")


def _print_names(choice: Wanted, as_json: bool) -> None:
    chosen = [(name, *VOCABULARY[name]) for name in VOCABULARY if choice.takes(name)]
    if as_json:
        keys = ("name", "severity", "text")
        output.print_json([dict(zip(keys, one, strict=True)) for one in chosen])
        return
    rows = [
        (output.Cell(name), output.Cell(severity, STYLES[severity]), output.Cell(text))
        for name, severity, text in chosen
    ]
    output.print_grid(output.Grid(("name", "severity", "what happened"), rows))


def _labels(client: Client, node: str) -> dict[str, str]:
    """Labels of nodes by their short ids.

    Raises  UsageError where `node` is none of them.
    """
    rows = client.nodes()["nodes"]
    if node and not any(row["name"] == node or row["id"].startswith(node) for row in rows):
        raise UsageError(
            f"no node `{node}` is in this mesh", hint="`blackroad nodes` lists names and ids"
        )
    return {row["id"]: row["name"] for row in rows}


def _since(client: Client, given: str | None) -> tuple[int, str]:
    """From when on, by the wall clock; and the event to begin after, where one was named.

    Raises  UsageError where it is neither a span nor an event that somebody still knows.
    """
    if not given:
        return 0, ""
    from blackroad.client.happenings import past
    from blackroad.units import parse_ms

    try:
        return time.time_ns() // 1_000_000 - parse_ms(given, "since"), ""
    except UnitError:
        if given.count("-") != 2:
            raise
    node = split_id(given)[0]
    found = past(client, Wanted(node=node, cause=given), limit=10_000).events
    for event in found:
        if event.id == given:
            return event.at_ms, given
    raise UsageError(
        f"no node that answers knows the event `{given}`",
        hint="each keeps its newest 10 000; --since 1h goes by the clock",
    )


class Lines:
    """Prints events; what several nodes tell of once, unless `each` is wanted."""

    def __init__(self, as_json: bool, each: bool) -> None:
        self.labels: dict[str, str] = {}
        self._as_json = as_json
        self._each = each
        self._colour = in_colour(sys.stdout)
        self._said: dict[tuple[str, str], int] = {}
        self._day = ""

    def add(self, event: Event) -> None:
        """Print an event."""
        if self._as_json:
            import msgspec

            output.print_json_line(msgspec.to_builtins(event))
            return
        self.labels[event.node] = event.host
        if not self._each and event.name in SEEN_BY_ALL and event.cause:
            key = (event.name, event.cause)
            before_ms = self._said.get(key)
            if before_ms is not None and abs(event.at_ms - before_ms) < SAME_MS:
                return
            self._said[key] = event.at_ms
            if len(self._said) > SAME_MAX:
                del self._said[next(iter(self._said))]
        day, clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at_ms / 1000)).split()
        if day != self._day:
            self._day = day
            click.secho(day, bold=self._colour or None)
        text = line(event, clock, self.labels)
        style = STYLES.get(event.severity, "")
        click.echo(click.style(text, fg=style) if style and self._colour else text)
        sys.stdout.flush()


def line(event: Event, clock: str, labels: dict[str, str]) -> str:
    """Write an event for people, on one line that steers no terminal."""
    facts = event.facts
    words = [event.cause] if event.cause else []
    about = facts.get("node")
    if isinstance(about, str) and about in labels and about != event.node:
        words.append(f"({labels[about]})")
    for key, value in facts.items():
        # An incarnation is its counter and chance; the counter stands in the cause.
        if key == "inc":
            continue
        if event.cause and key in _IN_CAUSE and str(value) in event.cause:
            continue
        if key in _OF_NODES and isinstance(value, str):
            value = labels.get(value, value)
        words.append(f"{key}={_value(value)}")
    mark = "" if event.severity in ("info", "debug") else f"{event.severity}: "
    told = clean(f"{clock}  {event.host}  {mark}{event.name}  {' '.join(words)}".rstrip())
    return told.replace("\n", "\\n").replace("\t", "\\t")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return f'"{text}"' if " " in text or not text else text
