"""Starts, awaits and ends the daemons of a local mesh.

Edge.  Each daemon is an ordinary `blackroad node` with a configuration of its own, so that one can
be started again by hand.  This file prints nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from blackroad.cli import mesh_record
from blackroad.cli.mesh_record import Place
from blackroad.config import usable_cores
from blackroad.config_keys import KEYS, MEMORY_BYTES_MIN, MEMORY_SHARE_PERCENT
from blackroad.directories import make_private
from blackroad.discovery import children
from blackroad.errors import AlreadyRunning, BlackroadError, EnvironmentProblem

UP_S: Final = 20.0
POLL_S: Final = 0.1
ASK_S: Final = 1.0
DOWN_S: Final = 10.0
KILLED_S: Final = 5.0
LOG_LINES: Final = 8
# What each daemon is told in its file must not be overruled by a variable of the shell.
DECIDED: Final = frozenset(
    {
        *("name", "cluster", "listen", "insecure_open", "port", "telemetry_port", "bulk_port"),
        *(
            "join_port",
            "endpoints",
            "peers",
            "mdns",
            "mdns_interfaces",
            "state_dir",
            "runtime_dir",
            "cache_dir",
        ),
        *("slots", "memory", "log_format"),
    }
)
# Directories that a service manager gave to somebody else.
NOT_OURS: Final = (
    *("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CACHE_DIRECTORY"),
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
)


class Seen(NamedTuple):
    """The mesh when it is complete: rows of nodes, and the coordinator they all follow."""

    rows: list[dict[str, Any]]
    coordinator: str


# --- up -----------------------------------------------------------------------------------------


def start(found: Sequence[Place], slots: int | None) -> list[Place]:
    """Start those daemons that do not run; return which were started.

    Raises  AlreadyRunning where another daemon is in the way; EnvironmentProblem.
    """
    refuse_others(found[0])
    deadline = time.monotonic() + UP_S
    missing = [place for place in found if not place.pid()]
    processes: dict[Place, subprocess.Popen[bytes]] = {}
    try:
        for place in missing:
            _configure(place, found, slots)
            processes[place] = _launch(place)
            if place.number == 1:
                # The others are told its port, so that they find it without multicast.
                _await_serving([place], processes, deadline)
        _await_serving(missing, processes, deadline)
    except BaseException:
        stop(missing)
        raise
    return missing


def start_one(place: Place, found: Sequence[Place], slots: int | None) -> None:
    """Start one daemon that has ended, with the addresses of those of `found` that run.

    Raises  EnvironmentProblem.
    """
    _configure(place, found, slots)
    process = _launch(place)
    _await_serving([place], {place: process}, time.monotonic() + UP_S)


def refuse_others(first: Place) -> None:
    """Refuse to start where programs would find a daemon that is not of this mesh.

    Raises  AlreadyRunning naming it.
    """
    facts = first.facts()
    if facts is None or first.pid():
        return
    try:
        words = Path(f"/proc/{facts['pid']}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return
    if b"node" in words:
        raise AlreadyRunning(
            f"a daemon runs here already: `{facts.get('name', '?')}`, process {facts['pid']}",
            hint="`blackroad nodes` shows its mesh; end it first, "
            "or set BLACKROAD_RUNTIME_DIR to another directory",
        )


def _configure(place: Place, found: Sequence[Place], slots: int | None) -> None:
    """Write the daemon's configuration file."""
    make_private(place.directory, "state_dir")
    make_private(place.home.runtime, "runtime_dir")
    peers = [
        endpoint.removeprefix("tcp://")
        for other in found
        if other != place and other.pid() and (facts := other.facts()) is not None
        for endpoint in facts.get("endpoints", ())[:1]
    ]
    share = len(found)
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory_bytes = max(MEMORY_BYTES_MIN, total_bytes * MEMORY_SHARE_PERCENT // 100 // share)
    values: dict[str, object] = {
        "name": place.name,
        "cluster": place.home.cluster,
        "listen": "127.0.0.1",
        "port": 0,
        "telemetry_port": 0,
        "bulk_port": 0,
        "join_port": 0,
        "peers": peers,
        "mdns": True,
        "mdns_interfaces": ["127.0.0.1"],
        "state_dir": str(place.directory / "state"),
        "runtime_dir": str(place.runtime),
        "cache_dir": str(place.directory / "cache"),
        "slots": slots or max(1, usable_cores() // share),
        "memory": str(memory_bytes),
        "log_format": "text",
    }
    # JSON spells texts, lists and numbers as TOML does.
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    head = f"# Written by `blackroad up`; by hand: blackroad node --config {place.config}\n"
    mesh_record.write_text(place.config, head + "\n".join(lines) + "\n")


def _launch(place: Place) -> subprocess.Popen[bytes]:
    environment = children.environment({})
    for name in (*NOT_OURS, "BLACKROAD_CONFIG", *(KEYS[key].variable for key in DECIDED)):
        environment.pop(name, None)
    for name in (mesh_record.RUNTIME_FILE, "client.sock"):
        with contextlib.suppress(OSError):
            (place.runtime / name).unlink()
    try:
        with place.log.open("wb") as log:
            # A session of its own: Ctrl-C in this terminal is not meant for it.
            process = subprocess.Popen(
                [*children.command("blackroad"), "node", "--config", str(place.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise EnvironmentProblem(
            f"`{place.name}` cannot be started: {error.strerror}",
            hint="is there room for its log, and are there processes left?",
        ) from None
    mesh_record.write_text(place.directory / "pid", str(process.pid))
    return process


def _await_serving(
    waiting: Sequence[Place], processes: dict[Place, subprocess.Popen[bytes]], deadline: float
) -> None:
    """Wait until daemons that were just started serve.

    Raises  EnvironmentProblem with the end of a daemon's log.
    """
    left = list(waiting)
    while True:
        for place in left:
            code = processes[place].poll()
            if code is not None:
                raise EnvironmentProblem(
                    f"`{place.name}` ended with status {code} instead of serving",
                    hint=f"its whole log is {place.log}",
                    because=log_of(place),
                )
        left = [place for place in left if not _serves(place, processes[place].pid)]
        if not left:
            return
        if time.monotonic() >= deadline:
            raise _too_late(left, f"{_names(left)} did not begin to serve within {UP_S:g} s")
        time.sleep(POLL_S)


def _serves(place: Place, pid: int) -> bool:
    facts = place.facts()
    return facts is not None and facts["pid"] == pid


def await_together(found: Sequence[Place], deadline: float) -> Seen:
    """Wait until all daemons see each other alive and follow one coordinator.

    Raises  EnvironmentProblem saying what is missing, with the end of the logs.
    """
    problem = "no daemon answers"
    while True:
        for place in found:
            if not place.pid():
                raise _too_late([place], f"`{place.name}` ended while the mesh was forming")
        try:
            tables = [_ask(place) for place in found]
            problem = differing(tables, len(found))
            if not problem:
                return Seen(tables[0]["nodes"], tables[0]["coordinator"])
        except BlackroadError as error:
            problem = error.message
        if time.monotonic() >= deadline:
            raise _too_late(found, f"the mesh did not come together within {UP_S:g} s: {problem}")
        time.sleep(POLL_S)


def _ask(place: Place) -> dict[str, Any]:
    from blackroad.client.client import Client

    with Client(place.endpoint, connect_timeout=ASK_S) as client:
        return client.nodes()


def differing(tables: Sequence[dict[str, Any]], count: int) -> str:
    """Say what keeps these views of `count` daemons from being one mesh, or ""."""
    for table in tables:
        asked = table["asked"]
        alive = [row for row in table["nodes"] if row["state"] == "alive"]
        if len(alive) < count:
            return f"{asked} sees {len(alive)} of {count} nodes alive"
        if table["coordinator"] is None:
            return f"{asked} follows no coordinator yet"
    coordinators = {table["coordinator"] for table in tables}
    if len(coordinators) > 1:
        return f"they follow {len(coordinators)} coordinators"
    return ""


def _too_late(found: Sequence[Place], message: str) -> EnvironmentProblem:
    because = [text for place in found for text in log_of(place)]
    return EnvironmentProblem(
        message,
        hint=f"the whole logs are {found[0].home.state}/*/daemon.log; "
        "`blackroad down` ends what runs",
        because=because,
    )


def log_of(place: Place) -> list[str]:
    """The end of a daemon's log as one reason."""
    lines = place.log_end(LOG_LINES)
    return [f"`{place.name}` wrote last:\n" + "\n".join(lines)] if lines else []


def _names(found: Sequence[Place]) -> str:
    return ", ".join(f"`{place.name}`" for place in found)


# --- down ---------------------------------------------------------------------------------------


def stop(found: Sequence[Place]) -> tuple[int, int]:
    """End daemons: politely, and by force those that still live after 10 s.

    Returns how many were ended, and how many of them by force.

    Raises  EnvironmentProblem where one may not be ended or does not die.
    """
    with contextlib.ExitStack() as stack:
        handles: dict[Place, int] = {}
        for place in found:
            handle = grip(place)
            if handle is not None:
                stack.callback(os.close, handle)
                handles[place] = handle
        for place, handle in handles.items():
            _signal(place, handle, signal.SIGTERM)
        left = _await_ends(handles, DOWN_S)
        for place in left:
            _signal(place, handles[place], signal.SIGKILL)
        stuck = _await_ends({place: handles[place] for place in left}, KILLED_S)
        if stuck:
            raise EnvironmentProblem(
                f"{_names(stuck)} does not end, not even by SIGKILL",
                hint="a process that waits for a disk or a driver ends when that answers",
            )
        return len(handles), len(left)


def grip(place: Place) -> int | None:
    """Get hold of the very process that is the daemon, so that no other can take its number.

    Returns a pidfd for the caller to close, None where no daemon runs.
    """
    pid = place.pid()
    if not pid:
        return None
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if mesh_record.is_daemon(pid, place.config):
        return handle
    # It ended between the look and the grip, and another process has its number now.
    os.close(handle)
    return None


def _signal(place: Place, handle: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise EnvironmentProblem(
            f"`{place.name}` belongs to another user", hint="become the user who started the mesh"
        ) from None


def _await_ends(handles: dict[Place, int], limit_s: float) -> list[Place]:
    """Wait until all processes have ended; return those that have not."""
    until = time.monotonic() + limit_s
    left = dict(handles)
    while left:
        # A pidfd is readable when its process has ended.
        ready, _, _ = select.select(list(left.values()), [], [], max(0, until - time.monotonic()))
        if not ready:
            break
        left = {place: handle for place, handle in left.items() if handle not in ready}
    return list(left)
