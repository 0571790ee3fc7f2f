"""One task's life, and the list of all: status, result, logs, cancel, retry, tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from blackroad.cli import output, waiting
from blackroad.cli.commands import Command, duration, json_option, session
from blackroad.errors import EXIT_OK, BlackroadError, UsageError
from blackroad.ids import parse_task

if TYPE_CHECKING:
    from blackroad.client.client import Client

LIVE: Final = ("queued", "waiting", "running", "collecting", "cancelling", "expiring")
STATES: Final = (*LIVE, *waiting.ENDED)
STYLES: Final = {
    "done": "green",
    "running": "cyan",
    "collecting": "cyan",
    "failed": "red",
    "expired": "red",
    "quarantined": "red",
    "unknown": "red",
    "cancelled": "dim",
}
LIST_MAX: Final = 1_000

task_argument = click.argument("task", metavar="ID")


# --- status -------------------------------------------------------------------------------------


@click.command(
    "status",
    cls=Command,
    examples=("blackroad status k3f7x2ab-m5c7q", "blackroad status k3f7x2ab-m5c7q --json"),
)
@task_argument
@json_option
def status_command(task: str, as_json: bool) -> None:
    """Tell how far a task is, where it runs or ran, and how it ended.

    The end of ID may be left out, as long as 4 characters of its second part are there.
    """
    parse_task(task)
    with session() as client:
        told = client.status(task)
        failure = _failure(client, told) if not as_json else ""
    if as_json:
        output.print_json(told)
        return
    output.say(f"{told['id']}  {told['state']}")
    output.facts(_story(told, failure))


def _failure(client: Client, told: dict[str, Any]) -> str:
    """What a failed task raised: its outcome has the text."""
    if told["state"] != "failed":
        return ""
    from blackroad.cli import report

    try:
        client.outcome(told["id"], 0)
    except BlackroadError as error:
        return report.headline(error).partition("\n")[0]
    return ""


def _story(told: dict[str, Any], failure: str) -> list[tuple[str, Any]]:
    from blackroad.units import format_ms

    ended = told["ended"] or {}
    nodes = ", ".join(map(_place, told["nodes"]))
    kind = "durable" if told["durable"] else "attached"
    failure = failure or " ".join(filter(None, (ended.get("type"), ended.get("text"))))
    deadline_ms = told["deadline_in_ms"]
    return [
        ("name", told["name"]),
        ("user", told["user"]),
        ("needs", told["needs"]),
        ("kind", f"{kind}, pure" if told["pure"] else kind),
        ("priority", told["priority"] or ""),
        ("node" if told["ended"] is None else "ran on", nodes),
        ("waited", format_ms(told["waited_ms"]) if told["state"] == "queued" else ""),
        ("deadline", f"in {format_ms(deadline_ms)}" if deadline_ms is not None else ""),
        ("attempts", _attempts(told)),
        ("last", told["last"] if told["ended"] is None else ""),
        ("took", _span(ended.get("run_us", 0))),
        ("computed by", ended.get("backend", "")),
        ("reason", "" if failure else told["reason"]),
        ("error", failure),
        ("exit status", ended.get("exit_status")),
    ]


def _place(node: dict[str, Any]) -> str:
    return f"{node['name']} ({node['id']}){', draining' if node.get('draining') else ''}"


def _span(run_us: int) -> str:
    from blackroad.units import format_ms

    if not run_us:
        return ""
    return format_ms(run_us // 1000) if run_us >= 1000 else f"{run_us} µs"


def _attempts(told: dict[str, Any]) -> str:
    if not told["attempts"]:
        return ""
    parts = [f"{told[name]} {name}" for name in ("lost", "crashed") if told[name]]
    return f"{told['attempts']} ({', '.join(parts)})" if parts else str(told["attempts"])


# --- result -------------------------------------------------------------------------------------


@click.command(
    "result",
    cls=Command,
    examples=(
        "blackroad result k3f7x2ab-m5c7q",
        "blackroad result k3f7x2ab-m5c7q --timeout 10m -o edges.png",
    ),
)
@task_argument
@click.option(
    "--timeout",
    callback=duration,
    metavar="TIME",
    help="Wait no longer than this, such as 90s or 10m.",
)
@click.option(
    "-o", "--output", "file", metavar="FILE", help="Write the result to a .npy, .png or .json file."
)
@json_option
def result_command(task: str, timeout: int | None, file: str | None, as_json: bool) -> None:
    """Wait for a task to end and print its result.

    Data is printed as JSON, an array as a summary; -o writes all of it. The exit code is 0 if the
    task is done and 1 if it failed; 5 if it had not ended when the time was over.
    """
    from blackroad.cli import results

    parse_task(task)
    if file is not None:
        results.check_output(file)
    with session() as client:
        value = waiting.outcome(client, task, timeout)
    row = results.present(value, file, as_json)
    if as_json:
        output.print_json({"id": task, **row})


# --- logs ---------------------------------------------------------------------------------------


@click.command(
    "logs",
    cls=Command,
    examples=("blackroad logs k3f7x2ab-m5c7q", "blackroad logs -f k3f7x2ab-m5c7q | grep frame"),
)
@task_argument
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the task has ended.")
@json_option
def logs_command(task: str, follow: bool, as_json: bool) -> None:
    """Print what a task wrote to its standard output and standard error.

    Its node keeps the beginning and the latest part of it for a while.
    """
    parse_task(task)
    with session() as client:
        reader = waiting.LogReader(client, task, output.print_json_line if as_json else _print_log)
        if follow:
            reader.follow()
        else:
            reader.read()
    if not reader.printed and not as_json:
        ended = reader.state in waiting.ENDED
        output.note(
            "nothing that this task printed is kept" if ended else "it has printed nothing yet"
        )


def _print_log(told: dict[str, Any]) -> None:
    if told["cut"]:
        output.note(f"({told['cut']} bytes are not kept any more)")
    output.say_as_it_is(told["text"])


# --- cancel -------------------------------------------------------------------------------------


@click.command(
    "cancel",
    cls=Command,
    examples=(
        "blackroad cancel k3f7x2ab-m5c7q",
        "blackroad cancel $(blackroad tasks --state queued --ids)",
    ),
)
@click.argument("tasks", metavar="ID...", nargs=-1, required=True)
@json_option
def cancel_command(tasks: tuple[str, ...], as_json: bool) -> int:
    """End tasks: those that wait never start, of those that run every process is ended.

    It is asked for at once; `blackroad status ID` says `cancelled` when all of them are gone.
    """
    return _each(tasks, _cancel, as_json, lambda row: f"{row['id']}  {row['state']}")


_Told = tuple[dict[str, Any], BlackroadError | None]


def _each(
    tasks: Sequence[str],
    order: Callable[[Client, str], _Told],
    as_json: bool,
    line: Callable[[dict[str, Any]], str],
) -> int:
    """Give an order about each task; tell what came of it, and return the worst exit code."""
    for task in tasks:
        parse_task(task)
    with session() as client:
        told = [order(client, task) for task in tasks]
    if as_json:
        output.print_json({"tasks": [row for row, _ in told]})
    for row, error in told:
        if error is not None:
            _tell_of(error)
        elif not as_json:
            output.say(line(row))
    return max((error.exit_code for _, error in told if error is not None), default=EXIT_OK)


def _cancel(client: Client, task: str) -> _Told:
    from blackroad.cli import report

    try:
        told = client.status(task)
        if told["ended"] is not None:
            return {"id": told["id"], "state": told["state"]}, None
        client.cancel(task)
    except BlackroadError as error:
        return {"id": task, "error": report.as_data(error)}, error
    return {"id": told["id"], "state": "cancelling"}, None


def _tell_of(error: BlackroadError) -> None:
    import sys

    from blackroad.cli import report

    output.note(report.as_text(error, colour=report.in_colour(sys.stderr)))


# --- retry --------------------------------------------------------------------------------------


@click.command(
    "retry",
    cls=Command,
    examples=(
        "blackroad retry k3f7x2ab-m5c7q",
        "blackroad tasks --state quarantined --ids | xargs blackroad retry",
    ),
)
@click.argument("tasks", metavar="ID...", nargs=-1, required=True)
@json_option
def retry_command(tasks: tuple[str, ...], as_json: bool) -> int:
    """Submit tasks that did not end well anew, and print the new ids.

    It takes those that failed, expired, were cancelled or quarantined, and those of which nobody
    knows whether they ran. Each begins again as a task on disk, with all its retries and without
    a deadline. It works as long as the owner keeps the work: that of failed and quarantined ones
    as long as their outcome, other work until newer needs the room.
    """
    return _each(tasks, _retry, as_json, lambda row: str(row["new"]))


def _retry(client: Client, task: str) -> _Told:
    from blackroad.cli import report

    try:
        return {"id": task, "new": client.retry(task)}, None
    except BlackroadError as error:
        return {"id": task, "error": report.as_data(error)}, error


# --- tasks --------------------------------------------------------------------------------------


@click.command(
    "tasks",
    cls=Command,
    examples=(
        "blackroad tasks",
        "blackroad tasks --state failed --limit 20",
        "blackroad tasks --state queued --ids | xargs blackroad cancel",
    ),
)
@click.option("--state", metavar="STATE", help=f"Only those that are: {', '.join(STATES)}.")
@click.option(
    "--limit",
    type=click.IntRange(1, LIST_MAX),
    default=100,
    show_default=True,
    help="List at most so many.",
)
@click.option("--ids", is_flag=True, help="Print ids alone, one a line.")
@json_option
def tasks_command(state: str | None, limit: int, ids: bool, as_json: bool) -> None:
    """List the tasks of all nodes, the newest first, and count them by state."""
    _check_state(state)
    with session() as client:
        told = client.tasks(state or "", limit)
    if as_json:
        output.print_json(told)
    elif ids:
        for task in told["tasks"]:
            output.say(task["id"])
    else:
        _print_tasks(told)
    if told["silent"] and not as_json:
        output.note(f"no answer from {', '.join(f'`{name}`' for name in told['silent'])}")


def _check_state(state: str | None) -> None:
    if state is None or state in STATES:
        return
    import difflib

    near = difflib.get_close_matches(state, STATES, n=1)
    meant = f"did you mean `{near[0]}`? " if near else ""
    raise UsageError(
        f"no task is ever `{state}`", hint=f"{meant}the states are {', '.join(STATES)}"
    )


def _print_tasks(told: dict[str, Any]) -> None:
    listed = told["tasks"]
    if listed:
        output.print_grid(_tasks_grid(listed))
        output.say()
    counts = told["counts"]
    parts = [f"{counts[state]} {state}" for state in STATES if counts.get(state)]
    output.say(", ".join(parts) if parts else "no tasks")
    shown = len(listed)
    if sum(counts.values()) > shown > 0:
        output.note(f"the newest {shown} are shown; --limit and --state show others")


def _tasks_grid(listed: Sequence[dict[str, Any]]) -> output.Grid:
    rows = [
        (
            output.Cell(task["id"]),
            output.Cell(task["state"], STYLES.get(task["state"], "")),
            output.Cell(task["name"]),
            output.Cell(task["owner"]),
            output.Cell(", ".join(one["name"] for one in task["nodes"])),
            output.Cell(_attempts(task)),
            output.Cell(_note_of(task)),
        )
        for task in listed
    ]
    heads = ("id", "state", "name", "owner", "node", "attempts", "")
    return output.Grid(heads, rows, "").without_empty("", "node")


def _note_of(task: dict[str, Any]) -> str:
    from blackroad.units import format_ms

    if task["state"] == "queued":
        return f"for {format_ms(task['waited_ms'])}"
    ended = task["ended"]
    if ended is None or ended["end"] == "done":
        return ""
    reason = ended["type"] or task["reason"]
    # Most of those that failed raised something; `blackroad result` says what.
    return "" if reason == "TaskFailed" else str(reason)
