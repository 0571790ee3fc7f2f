"""The nodes of the mesh: what they do, once or again and again; drain and resume."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from blackroad.cli import commands, output
from blackroad.cli.commands import Command, duration, json_option, session
from blackroad.cli.output import Cell
from blackroad.errors import (
    BlackroadError,
    NoDaemon,
    OwnerLost,
    TaskError,
    Unreachable,
    UsageError,
)
from blackroad.units import format_bytes, format_ms

if TYPE_CHECKING:
    from rich.console import Group

    from blackroad.client.client import Client

WATCH_S: Final = 0.5
RETRY_CONNECT_S: Final = 0.5
STATE_STYLES: Final = {
    "alive": "green",
    "draining": "yellow",
    "suspect": "yellow",
    "clone": "red",
    "dead": "red",
    "left": "dim",
}
HEADS: Final = (
    "name",
    "id",
    "state",
    "",
    "arch",
    "slots",
    "running",
    "waiting",
    "done",
    "memory free",
    "gpu",
    "temp",
    "load",
)
RIGHT: Final = "     rrrrr rr"


@click.command(
    "nodes",
    cls=Command,
    examples=("blackroad nodes", "blackroad nodes --watch", "blackroad nodes --json"),
)
@click.option("--watch", is_flag=True, help="Show it anew twice a second; q or Ctrl-C ends it.")
@json_option
def nodes_command(watch: bool, as_json: bool) -> None:
    """Show the nodes of the mesh: what each has, what it does, which one coordinates (*).

    With --watch and --json it prints one object a line, without end.
    """
    if watch:
        if as_json:
            _watch_json()
            return
        if not output.is_terminal():
            raise UsageError(
                "--watch needs a terminal", hint="with --json it prints one object a line"
            )
        with _keys() as pressed:
            _watch(pressed)
        return
    with session() as client:
        told = client.nodes()
        tried = client.tried() if len(told["nodes"]) == 1 else []
    if as_json:
        output.print_json(told)
        return
    output.print_grid(grid(told))
    for line in [*remarks(told), *alone(told, tried)]:
        output.say()
        output.say(line)


# --- drain and resume ---------------------------------------------------------------------------


@click.command(
    "drain",
    cls=Command,
    examples=("blackroad drain", "blackroad drain attic --wait --timeout 10m"),
)
@click.argument("node", required=False, default="")
@click.option("--wait", is_flag=True, help="Return when nothing runs there any more.")
@click.option(
    "--timeout",
    callback=duration,
    metavar="TIME",
    help="With --wait: wait no longer than this, such as 90s or 10m.",
)
@json_option
def drain_command(node: str, wait: bool, timeout: int | None, as_json: bool) -> None:
    """Let NODE take nothing new; what runs there goes on to its end.

    NODE is a name or the start of an id; without it, the daemon of this machine. What waits there
    goes to other nodes. It stays so, also when its daemon is started anew, until
    `blackroad resume`. Tasks submitted at that node are taken, and run elsewhere.
    """
    if timeout is not None and not wait:
        raise UsageError("--timeout without --wait says nothing", hint="add --wait")
    with session() as client:
        told = client.drain(node)
        if wait:
            told = client.drained(node, None if timeout is None else timeout / 1000)
    _tell_of(told, as_json)


@click.command("resume", cls=Command, examples=("blackroad resume", "blackroad resume attic"))
@click.argument("node", required=False, default="")
@json_option
def resume_command(node: str, as_json: bool) -> None:
    """Let NODE take work again after `blackroad drain`.

    NODE is a name or the start of an id; without it, the daemon of this machine.
    """
    with session() as client:
        told = client.resume(node)
    _tell_of(told, as_json)


def _tell_of(told: dict[str, Any], as_json: bool) -> None:
    names = ("id", "name", "draining", "running", "waiting")
    if as_json:
        output.print_json({name: told[name] for name in names})
        return
    state = "draining" if told["draining"] else "alive"
    running = output.count(told["running"], "task") if told["running"] else "nothing"
    output.say(f"{told['name']}  {state}, runs {running}")


# --- one look -----------------------------------------------------------------------------------


def grid(told: dict[str, Any]) -> output.Grid:
    """One row a node: the coordinator first, then by name."""
    rows = sorted(told["nodes"], key=lambda row: (not row["coordinator"], row["name"], row["id"]))
    made = output.Grid(HEADS, [_row(row) for row in rows], RIGHT)
    return made.without_empty("gpu", "temp", "")


def _row(row: dict[str, Any]) -> tuple[Cell, ...]:
    there = row["state"] in ("alive", "draining", "suspect")
    numbers = [str(row[name]) for name in ("slots", "running", "waiting", "done")]
    state = row["state"] if row["state"] == "alive" else f"{row['state']}{_silence(row)}"
    memory = f"{format_bytes(row['free_memory_bytes'])} of {format_bytes(row['memory_bytes'])}"
    degrees = f"{row['temperature_c']} °C" if row["temperature_c"] else ""
    hot = " throttled" if row["throttled"] else ""
    return (
        Cell(row["name"], "bold"),
        Cell(row["id"], "dim"),
        Cell(state, STATE_STYLES.get(row["state"], "")),
        Cell("*" if row["coordinator"] else "", "bold"),
        Cell(row["arch"]),
        *(Cell(text if there else "-") for text in numbers),
        Cell(memory if there else "-"),
        Cell(_gpus(row["gpus"])),
        Cell((degrees + hot).strip(), "red" if hot else ""),
        Cell(f"{row['load_percent']} %" if there else "-"),
    )


def _silence(row: dict[str, Any]) -> str:
    return f" {format_ms(row['silent_ms'])}" if row["silent_ms"] >= 1000 else ""


def _gpus(names: list[str]) -> str:
    kinds = dict.fromkeys(names)
    return ", ".join(
        f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in kinds
    )


def alone(told: dict[str, Any], tried: list[str]) -> list[str]:
    """Where a node hears nobody: what it has tried, for people."""
    if not tried or len(told["nodes"]) != 1:
        return []
    head = "this node hears no other one; `blackroad doctor net` looks closer.  It tried:"
    return ["\n".join([head, *(f"    {line}" for line in tried)])]


def remarks(told: dict[str, Any]) -> list[str]:
    """What the table does not show: no coordinator, or nodes that follow another one."""
    found = []
    if told["coordinator"] is None:
        found.append("no coordinator yet: each node uses its own machine meanwhile")
    astray = [
        row["name"]
        for row in told["nodes"]
        if row["state"] == "alive" and row["follows"] not in ("", told["coordinator"])
    ]
    if told["coordinator"] is not None and astray:
        found.append(f"following another coordinator: {', '.join(astray)}")
    return found


# --- again and again ----------------------------------------------------------------------------


class Looker:
    """Asks for the nodes over and over, through coordinator changes and daemon restarts."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self.told: dict[str, Any] | None = None
        self.problem = ""
        self._since = 0.0

    def look(self) -> None:
        """Ask once; what went wrong is told by `problem`, and the last answer stays.

        Raises  whatever is wrong at the very first look: then there is nothing to wait for.
        """
        try:
            if self._client is None:
                first = self.told is None
                self._client = commands.connect(None if first else RETRY_CONNECT_S)
            self.told = self._client.nodes()
            self.problem = ""
        except (NoDaemon, Unreachable, OwnerLost, TaskError) as error:
            self.close()
            if self.told is None:
                raise
            if not self.problem:
                self._since = time.monotonic()
            away_ms = int((time.monotonic() - self._since) * 1000)
            self.problem = f"{error.message} (for {format_ms(away_ms)}; trying again)"

    def close(self) -> None:
        """End the session."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(BlackroadError):
                client.close()


def _watch(pressed: _Keys) -> None:
    from rich.live import Live

    looker = Looker()
    try:
        looker.look()
        with Live(_shown(looker), auto_refresh=False, screen=False) as live:
            while not pressed.quit(WATCH_S):
                looker.look()
                live.update(_shown(looker), refresh=True)
    finally:
        looker.close()


def _watch_json() -> None:
    looker = Looker()
    try:
        while True:
            looker.look()
            output.print_json_line({**(looker.told or {}), "problem": looker.problem})
            time.sleep(WATCH_S)
    finally:
        looker.close()


def _shown(looker: Looker) -> Group:
    from rich.console import Group
    from rich.text import Text

    told = looker.told or {"coordinator": None, "nodes": []}
    lines = [Text(line, "yellow") for line in remarks(told)]
    if looker.problem:
        lines.append(Text(looker.problem, "red"))
    return Group(output.drawn(grid(told)), Text(), *lines, Text("q ends this", "dim"))


class _Keys:
    """The keyboard, asked without waiting for a line."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def quit(self, wait_s: float) -> bool:
        """Wait so long for a key; return whether it asks for the end."""
        import os
        import select

        if self._fd is None:
            time.sleep(wait_s)
            return False
        until = time.monotonic() + wait_s
        while (left_s := until - time.monotonic()) > 0:
            ready, _, _ = select.select([self._fd], [], [], left_s)
            if not ready:
                return False
            typed = os.read(self._fd, 64)
            if not typed:
                # The terminal is gone, or standard input was closed.
                self._fd = None
                return False
            if set(typed) & set(b"qQ\x04\x1b"):
                return True
        return False


@contextlib.contextmanager
def _keys() -> Iterator[_Keys]:
    """Take single keys from the terminal, and give it back as it was."""
    import sys
    import termios
    import tty

    if not sys.stdin.isatty():
        yield _Keys(None)
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield _Keys(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
