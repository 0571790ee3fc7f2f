"""Hands jobs to the mesh, waits until they are accepted and, where asked, until they have ended.

This file must not know how options are written.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.cli import jobs, output, report, results, waiting
from blackroad.cli.jobs import Job, Send
from blackroad.errors import (
    EXIT_OK,
    BlackroadError,
    TaskError,
    TaskFailed,
    Unplaceable,
    Unreachable,
)
from blackroad.units import format_ms

if TYPE_CHECKING:
    from blackroad.client.client import Client
    from blackroad.client.futures import GatheredFuture, TaskFuture
    from blackroad.kernels.contract import Kernel

ACCEPT_S: Final = 60.0
TURN_S: Final = 0.1
NO_MODULE_HINT: Final = (
    "functions are imported on the node, from what is installed there or on its PYTHONPATH; "
    "a local mesh finds modules of this directory after `PYTHONPATH=$PWD blackroad up`"
)

_DECIMAL = re.compile(r"\.\d(?= \w+B$)")


class Wanted(NamedTuple):
    """How the outcome is wanted: waited for, as JSON, into a file."""

    wait: bool
    as_json: bool
    file: str | None


# --- sent ---------------------------------------------------------------------------------------


def send(client: Client, found: Sequence[Send], options: dict[str, Any]) -> list[TaskFuture]:
    """Submit every job, journaled, and wait until all are accepted.

    Raises  the reason why one was not; what was accepted before goes on, and is told of.
    """
    futures = [one(client, {**options, "durable": True}) for one in found]
    refused: list[BlackroadError] = []
    accepted: list[TaskFuture] = []
    for future in futures:
        try:
            _await_acceptance(future)
        except BlackroadError as error:
            refused.append(error)
        else:
            accepted.append(future)
    if not refused:
        return futures
    for future in accepted:
        output.say(future.task_id)
    if accepted:
        output.note(f"{len(accepted)} of {len(futures)} tasks were accepted")
    raise explained(client, refused[0])


def _await_acceptance(future: TaskFuture) -> None:
    accepted = future.accepted
    if accepted is None:
        return
    try:
        accepted.result(ACCEPT_S)
    except TimeoutError as error:
        if isinstance(error, BlackroadError):
            raise
        raise Unreachable(
            f"the daemon has not accepted the task within {ACCEPT_S:g} s",
            hint="`blackroad nodes` shows whether it lives; "
            f"`blackroad status {future.task_id}` whether it has it now",
        ) from None


def explained(client: Client, error: BlackroadError) -> BlackroadError:
    """Add to "nothing can run it" who was asked, and what to ask for instead."""
    if not isinstance(error, Unplaceable):
        return error
    hint = better_needs(error.rows)
    if hint:
        error.hint = hint
    with contextlib.suppress(BlackroadError):
        error.because = (_who_answered(client.nodes()["nodes"]),)
    return error


def better_needs(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Say which options would make the task fit the nearest node, or "" where that is unclear."""
    less: list[str] = []
    without: list[str] = []
    for item, _asked, nearest, verdict in rows:
        # Shown sizes are rounded: what is asked for has to be below.
        there = _DECIMAL.sub("", nearest.partition(" on `")[0])
        if not verdict:
            continue
        if item not in ("cpu", "memory", "gpu", "gpu-memory", "arch", "python", "node"):
            item = "label" if item.startswith("label ") else ""
        if not item:
            return ""
        if verdict == "too little":
            less.append(f"--{item} {there.replace(' ', '')}")
        else:
            without.append(f"--{item}")
    if not less and not without:
        return ""
    parts = [f"ask for `{' '.join(less)}`"] if less else []
    if without:
        names = " and ".join(f"`{name}`" for name in dict.fromkeys(without))
        parts.append(f"without {names}" if less else f"submit it without {names}")
    return f"{' '.join(parts)}, or wait for a node that has it: `--wait-for-node`"


def _who_answered(rows: Sequence[dict[str, Any]]) -> str:
    silent = [row for row in rows if row["state"] in ("suspect", "dead")]
    there = sum(row["state"] in ("alive", "draining") for row in rows)
    text = f"{there} of {output.count(there + len(silent), 'node')} answered"
    last = [f"`{row['name']}` was last heard {format_ms(row['silent_ms'])} ago" for row in silent]
    return "; ".join([text, *last[:3]])


def tell_ids(futures: Sequence[TaskFuture], found: Sequence[Job], as_json: bool) -> None:
    """Print the ids of what was accepted."""
    if as_json:
        rows = [
            {**_about(future, job), "state": "accepted"}
            for future, job in zip(futures, found, strict=True)
        ]
        output.print_json({"tasks": rows})
        return
    for future in futures:
        output.say(future.task_id)


def _about(future: TaskFuture, job: Job) -> dict[str, Any]:
    about: dict[str, Any] = {"id": future.task_id}
    if job.number is not None:
        about["index"] = job.number
    elif job.label:
        about["line"] = int(job.label)
    return about


# --- waited for ---------------------------------------------------------------------------------


def wait_for_one(client: Client, future: TaskFuture, job: Job, wanted: Wanted) -> None:
    """Wait for the only task and show its result; of a command, what it prints as it prints it.

    Raises  what the task raised.
    """
    shows_output = job.kind == "command" and not wanted.as_json and wanted.file is None
    reader = waiting.LogReader(client, future.task_id, _print_output)
    each_turn = (lambda: _read_on(reader)) if shows_output else (lambda: None)
    try:
        with _progress(job.target, lambda: (int(future.done()), 1), shown=not shows_output):
            value = waiting.settled(client, future, each_turn, waiting.FOLLOW_S)
    except TaskFailed as error:
        if error.type_name == "ModuleNotFoundError" and job.kind == "function" and not error.hint:
            error.hint = NO_MODULE_HINT
        raise
    except KeyboardInterrupt:
        if not output.quiet():
            output.note(f"\nit goes on: `blackroad result {future.task_id}`")
        raise
    finally:
        if shows_output and future.done():
            _read_on(reader)
    if shows_output:
        return
    _show(value, wanted, _about(future, job), job)


def _print_output(told: dict[str, Any]) -> None:
    output.say_as_it_is(told["text"])


def _read_on(reader: waiting.LogReader) -> None:
    # What a task printed is a convenience here: its outcome does not depend on it.
    with contextlib.suppress(BlackroadError):
        reader.read()


def _show(value: object, wanted: Wanted, about: dict[str, Any], job: Job) -> None:
    row = results.present(value, file_for(wanted.file, job), wanted.as_json)
    if wanted.as_json:
        output.print_json({"tasks": [{**about, **row}]})


def file_for(file: str | None, job: Job) -> str | None:
    """The file of one task: `{}` becomes its number."""
    if file is None or not job.label:
        return file
    return file.replace(jobs.PLACE, str(job.number) if job.number is not None else job.label)


def wait_for_all(
    client: Client, futures: Sequence[TaskFuture], found: Sequence[Job], wanted: Wanted
) -> int:
    """Wait for many tasks; show their results in order, whatever becomes of the others."""
    code = EXIT_OK
    rows: list[dict[str, Any]] = []

    def done() -> tuple[int, int]:
        return sum(future.done() for future in futures), len(futures)

    with _progress(found[0].target, done):
        for future, job in zip(futures, found, strict=True):
            about = _about(future, job)
            try:
                row = _one_of_many(client, future, job, wanted)
            except BlackroadError as error:
                code = max(code, error.exit_code)
                row = {"state": "failed", "error": report.as_data(error)}
                if not wanted.as_json:
                    where = f"{future.task_id} ({job.label})" if job.label else future.task_id
                    output.note(f"{where}: {report.headline(error)}")
            rows.append({**about, **row})
    if wanted.as_json:
        output.print_json({"tasks": rows})
    failed = sum("error" in row for row in rows)
    if failed:
        output.note(f"{failed} of {output.count(len(rows), 'task')} failed")
    return code


def _one_of_many(client: Client, future: TaskFuture, job: Job, wanted: Wanted) -> dict[str, Any]:
    if job.kind == "command" and not wanted.as_json and wanted.file is None:
        try:
            waiting.settled(client, future, lambda: None)
        finally:
            if future.done():
                _read_on(waiting.LogReader(client, future.task_id, _print_output))
        return {"state": "done"}
    value = waiting.settled(client, future, lambda: None)
    return results.present(value, file_for(wanted.file, job), wanted.as_json)


# --- a kernel over the mesh ---------------------------------------------------------------------


def compute(
    client: Client,
    job: Job,
    kernel: Kernel,
    values: dict[str, Any],
    options: dict[str, Any],
    wanted: Wanted,
) -> None:
    """Cut a kernel over the mesh, wait for all pieces and show the whole.

    The pieces are attached: whoever stops waiting for the whole has no use for them.

    Raises  what a piece raised.
    """
    began_s = time.monotonic()
    future = client.kernel(kernel.name, options=options, **values)
    try:
        with _progress(kernel.name, future.progress):
            _settled(client, future)
        value = future.result()
    except Unplaceable as error:
        raise explained(client, error) from None
    except KeyboardInterrupt:
        future.cancel()
        raise
    took_ms = int((time.monotonic() - began_s) * 1000)
    about = _kernel_facts(future, kernel.name, took_ms)
    if not wanted.as_json and not output.quiet():
        where = output.count(about["nodes"], "node")
        by = ", ".join(about["backends"])
        pieces = output.count(about["pieces"], "piece")
        output.note(f"{kernel.name}: {pieces} on {where} in {format_ms(took_ms)}, by {by}")
    _show(value, wanted, about, job)


def _settled(client: Client, future: GatheredFuture) -> None:
    """Wait for a gathered future, as long as its daemon answers.

    Raises  Unreachable where it does not for a while.
    """
    from concurrent.futures import wait

    patience = waiting.Patience(True)
    ask_at = time.monotonic() + waiting.ASK_S
    while not wait([future], waiting.STEP_S).done:
        if time.monotonic() < ask_at:
            continue
        try:
            client.nodes()
            patience.heard()
        except waiting.AWAY as error:
            patience.bear(error)
        ask_at = time.monotonic() + waiting.ASK_S
    if future.cancelled():
        raise TaskError(f"`{future.name}` was cancelled")


def _kernel_facts(future: GatheredFuture, name: str, took_ms: int) -> dict[str, Any]:
    ended = [part.ended for part in future.parts if part.ended is not None]
    return {
        "kernel": name,
        "pieces": len(future.parts),
        "nodes": len({one.node for one in ended}),
        "backends": sorted({one.facts.backend for one in ended if one.facts.backend}),
        "took_ms": took_ms,
    }


# --- progress -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(
    what: str, told: Callable[[], tuple[int, int]], *, shown: bool = True
) -> Iterator[None]:
    """Show a bar on standard error while the block waits, if anybody looks there."""
    if output.quiet() or not shown:
        yield
        return
    import threading

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True, no_color=not report.in_colour(sys.stderr)),
        transient=True,
        auto_refresh=False,
    )
    stop = threading.Event()

    def draw() -> None:
        task = bar.add_task(Text(what).markup, total=None)
        while not stop.wait(TURN_S):
            done, total = told()
            bar.update(task, completed=done, total=total, refresh=True)

    with bar:
        drawer = threading.Thread(target=draw, name="blackroad-progress", daemon=True)
        drawer.start()
        try:
            yield
        finally:
            stop.set()
            drawer.join(timeout=1)
