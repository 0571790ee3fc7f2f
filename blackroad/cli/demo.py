"""`blackroad demo`: three real daemons, real work, one of them is killed; and the story of it.

This file knows the order of the story.  What daemons are is in `demo_mesh.py`, the parts are in
`demo_work.py`, `demo_photo.py`, `demo_routing.py` and `demo_kill.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from blackroad import __version__
from blackroad.cli import demo_kill, demo_photo, demo_routing, demo_work
from blackroad.cli.demo_mesh import Deadline, Mesh, Place
from blackroad.cli.demo_report import REPORT_FILE, Report
from blackroad.cli.demo_stage import Scale, Stage
from blackroad.errors import (
    EXIT_OK,
    EXIT_TASK_FAILED,
    BlackroadError,
    EnvironmentProblem,
    Unreachable,
)

if TYPE_CHECKING:
    from blackroad.client.client import Client

EXIT_INTERRUPTED: Final = 130
OUT: Final = "blackroad-demo"
SERVE_S: Final = 30.0
MDNS_S: Final = 10.0
TOGETHER_S: Final = 20.0
PROBE_S: Final = 20.0
ENDS: Final = frozenset({"done", "failed"})
TRIED_NEXT: Final = (
    ("blackroad up --nodes 3", "three daemons that stay, for your own programs"),
    (
        "blackroad submit --wait --kernel collatz start=1 count=1000000",
        "the same kernel, from the shell",
    ),
    ("blackroad nodes", "what each node has and does; `blackroad down` ends them"),
)


def places() -> tuple[Place, ...]:
    """The three daemons of the story."""
    arch = demo_routing.foreign_arch()
    # One core each, like the small machines they play: OpenCL on the CPU would take all.
    one_core = {"POCL_MAX_PTHREAD_COUNT": "1", "POCL_CPU_MAX_CU_COUNT": "1"}
    off = {"BLACKROAD_OPENCL": "off"}
    return (
        Place("attic", {"BLACKROAD_OPENCL": "auto", **one_core}, "may use OpenCL"),
        Place("shed", {**off, "BLACKROAD_ARCH": arch}, f"says {arch}, to show routing"),
        Place("loft", off, "plain: kernels run in NumPy"),
    )


def run_demo(
    *, keep: bool, out: Path | None = None, as_json: bool, scale: Scale | None = None
) -> int:
    """Run the whole story; return 0 only if every check held.

    `keep` leaves the daemons' directory with its logs; pictures and report.json go to `out`.

    Cost  about a minute on two cores, never more than two.
    """
    scale = scale or Scale()
    out = out or Path(OUT)
    report = Report(as_json=as_json)
    began_s = time.monotonic()
    code = EXIT_OK
    try:
        with _interruptible(), _watchdog(scale.limit_s, report):
            _make(out)
            _scene(report, scale, keep, out)
    except KeyboardInterrupt:
        report.fail(BlackroadError("stopped before the end"), ())
        code = EXIT_INTERRUPTED
    except BlackroadError as error:
        report.fail(error, report.logs)
        code = error.exit_code or EXIT_TASK_FAILED
    report.facts["seconds"] = time.monotonic() - began_s
    if code == EXIT_OK:
        code = _closing(report, out)
    report.finish(out)
    return code


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / REPORT_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"{out} cannot be written: {error.strerror}", hint="choose another place with --out"
        ) from error


def _scene(report: Report, scale: Scale, keep: bool, out: Path) -> None:
    """Everything between the first daemon's start and the last one's end."""
    deadline = Deadline(scale.limit_s)
    report.facts.update(version=__version__, cores=len(os.sched_getaffinity(0)))
    mesh = Mesh(places(), keep=keep)
    try:
        with contextlib.ExitStack() as clients:
            client = _form(report, mesh, deadline, clients)
            stage = Stage(mesh, client, report, deadline, scale, out)
            stage.rows()
            demo_work.collatz(stage)
            demo_work.words(stage)
            demo_photo.photo(stage)
            demo_routing.routing(stage)
            demo_kill.accident(stage)
            _summary(stage)
    finally:
        with _undisturbed():
            report.logs = mesh.tails()
            left = mesh.close()
            what = "all daemons have ended" if keep else "all daemons and their files are gone"
            report.check(what, not left, ", ".join(left))
            if keep:
                report.facts["kept"] = str(mesh.root)
                report.say(f"kept: {mesh.root} (logs: */log)")


# --- the beginning ------------------------------------------------------------------------------


def _form(report: Report, mesh: Mesh, deadline: Deadline, clients: contextlib.ExitStack) -> Client:
    """Start the daemons and wait until they are one mesh; return a client that will survive."""
    report.part("Three daemons on this machine")
    cores = len(os.sched_getaffinity(0))
    report.say(
        "Real processes that talk over loopback only. Each has one slot, so it runs one task of a "
        f"core at a time and plays a machine of its own; this one has {cores} core"
        f"{'' if cores == 1 else 's'} for all of them."
    )
    began_s = time.monotonic()
    mesh.start()
    deadline.wait("all daemons serve", SERVE_S, mesh.serving)
    serving_s = time.monotonic() - began_s
    found_by = "mDNS"
    seen = _together(mesh, deadline, MDNS_S)
    if seen is None:
        found_by = "a named peer"
        again = mesh.name_peers(deadline, SERVE_S)
        report.say(
            f"mDNS did not bring them together within {MDNS_S:.0f} s (multicast is missing on "
            f"loopback here): {', '.join(again)} were started again with addresses to ask",
            "yellow",
        )
        deadline.wait("all daemons serve", SERVE_S, mesh.serving)
        seen = _together(mesh, deadline, TOGETHER_S)
    if seen is None:
        raise BlackroadError(
            f"the daemons do not see each other within {TOGETHER_S:.0f} s",
            hint="`blackroad demo --keep` keeps the daemons' logs; is loopback filtered here?",
        )
    together_s = time.monotonic() - began_s
    names = {row["id"]: row["name"] for row in seen["nodes"]}
    elected = str(names[seen["coordinator"]])
    survivor = next(name for name in mesh.daemons if name != elected)
    client = clients.enter_context(_client(mesh, survivor))
    rows = _probed(client, mesh, deadline)
    report.table(
        ["node", "pid", "arch", "slots", "OpenCL", "why this one"],
        [
            [
                name,
                str(mesh[name].pid),
                rows[name]["arch"],
                rows[name]["slots"],
                _devices(rows[name]),
                mesh[name].place.remark,
            ]
            for name in sorted(rows)
        ],
    )
    report.check(
        "they found each other and elected a coordinator",
        len(rows) == len(mesh.daemons),
        f"by {found_by}, {together_s:.1f} s after the start; {elected} coordinates",
    )
    report.facts["formation"] = {
        "serving_s": serving_s,
        "together_s": together_s,
        "found_by": found_by,
        "coordinator": elected,
        "client_at": survivor,
        "nodes": [
            {key: rows[name][key] for key in ("id", "name", "arch", "slots", "devices", "python")}
            for name in sorted(rows)
        ],
    }
    return client


def _client(mesh: Mesh, name: str) -> Client:
    from blackroad.client.client import Client

    return Client(mesh[name].endpoint, user="demo", connect_timeout=10)


def _together(mesh: Mesh, deadline: Deadline, limit_s: float) -> dict[str, Any] | None:
    """Wait until every daemon sees all others alive and all follow one coordinator, if ever."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_client(mesh, name)) for name in mesh.daemons]

        def agreed() -> dict[str, Any] | None:
            mesh.serving()
            try:
                views = [client.nodes() for client in clients]
            except Unreachable:
                return None
            alive = [[row for row in view["nodes"] if row["state"] == "alive"] for view in views]
            if any(len(rows) != len(mesh.daemons) for rows in alive):
                return None
            followed = {view["coordinator"] for view in views}
            return views[0] if len(followed) == 1 and None not in followed else None

        found: dict[str, Any] | None = deadline.try_wait(limit_s, agreed)
        return found


def _probed(client: Client, mesh: Mesh, deadline: Deadline) -> dict[str, dict[str, Any]]:
    """Wait until each node has looked at its hardware and told all others what it has."""

    def looked() -> bool:
        return all(daemon.wrote("probe.ended") for daemon in mesh.daemons.values())

    def rows() -> dict[str, dict[str, Any]] | None:
        found = {str(row["name"]): row for row in client.nodes()["nodes"]}
        known = set(found) == set(mesh.daemons) and all(row["arch"] for row in found.values())
        return found if known else None

    # A node that is slow to find its devices computes without them until then.
    deadline.try_wait(PROBE_S, looked)
    found: dict[str, dict[str, Any]] = deadline.wait("what the nodes have", PROBE_S, rows)
    return found


def _devices(row: dict[str, Any]) -> str:
    return ", ".join(str(device["name"]) for device in row["devices"]) or "-"


# --- the end ------------------------------------------------------------------------------------


def _summary(stage: Stage) -> None:
    report = stage.report
    report.part("Summary")
    shares = stage.shares(stage.futures)
    busy_s = dict.fromkeys(shares, 0.0)
    for future in stage.futures:
        if future.ended is not None:
            busy_s[stage.where(future)] += future.ended.facts.run_us / 1e6
    report.table(
        ["node", "tasks ended there", "seconds of work"],
        [[name, shares[name], busy_s[name]] for name in shares],
    )
    counts = stage.client.tasks(limit=0)["counts"]
    ids = {future.task_id for future in stage.futures}
    report.check(
        "every task of the demo has ended, and no daemon still holds an open one",
        len(ids) == len(stage.futures)
        and all(future.done() for future in stage.futures)
        and not set(counts) - ENDS,
        f"{len(ids)} tasks, beside those of the search",
    )
    report.facts["summary"] = {
        "tasks": len(ids),
        "tasks_by_node": shares,
        "seconds_by_node": busy_s,
        "files": stage.files,
    }


def _closing(report: Report, out: Path) -> int:
    """Say whether all held, what was made, and what to try next."""
    files = report.facts.get("summary", {}).get("files", [])
    if files:
        report.say("look at: " + "  ".join(os.path.relpath(path) for path in files))
    report.say(f"all numbers: {os.path.relpath(out / REPORT_FILE)}")
    if report.failed:
        report.say("")
        report.say(f"{len(report.failed)} of {len(report.checks)} checks did not hold:", "bold red")
        for check in report.failed:
            report.say(f"  {check.name}: {check.detail}", "red")
        return EXIT_TASK_FAILED
    report.say("")
    report.say(
        f"All {len(report.checks)} checks held, in {report.facts['seconds']:.0f} s. Try next:",
        "bold green",
    )
    for command, meaning in TRIED_NEXT:
        report.say(f"  {command}")
        report.say(f"      {meaning}", "dim")
    return EXIT_OK


# --- signals ------------------------------------------------------------------------------------


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the demo as Ctrl-C does: in order."""
    if not _in_main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Under nohup it shall outlive its terminal.
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _watchdog(limit_s: float, report: Report) -> Iterator[None]:
    """End the demo with an error a little after its limit, wherever it waits."""
    if not _in_main_thread():
        yield
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise BlackroadError(
            f"the demo was not done after {limit_s:.0f} s, during: {report.doing}",
            hint="a very busy machine is the usual cause: try again",
        )

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s + 2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Clean up to the end, whatever comes; every step of it has a limit."""
    if not _in_main_thread():
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["Scale", "run_demo"]
