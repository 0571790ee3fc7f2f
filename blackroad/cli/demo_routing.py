"""What the demo shows of needs and failures: refused, routed, and a remote traceback.

This file must not know how daemons are started or killed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from blackroad.capabilities import normal_arch
from blackroad.cli.demo_tasks import introducer, reader
from blackroad.errors import BlackroadError, TaskFailed, Unplaceable
from blackroad.requirements import Needs

if TYPE_CHECKING:
    from blackroad.cli.demo_stage import Stage

REFUSED_S: Final = 15.0
READINGS: Final = ("21.5C", "22.0C", "warm")
TRACE_LINES: Final = 12


def foreign_arch() -> str:
    """An architecture that this machine has not, for a node to declare."""
    import platform

    return "aarch64" if normal_arch(platform.machine()) != "aarch64" else "x86_64"


def routing(stage: Stage) -> None:
    """Ask for what nobody has, for what one declares, and for trouble."""
    stage.report.part("Needs: refused, routed, and an error from far away")
    refused = _refused(stage)
    routed = _routed(stage)
    failed = _failed(stage)
    stage.report.facts["routing"] = {"refused": refused, "routed": routed, "failed": failed}


def _refused(stage: Stage) -> dict[str, object]:
    report = stage.report
    here = {row["arch"] for row in stage.rows()}
    arch = next(name for name in ("riscv64", "s390x", "ppc64le") if name not in here)
    needs = Needs(gpu=1, gpu_memory="24GB", arch=arch)
    began_s = time.monotonic()
    future = stage.client.submit(introducer(), needs=needs)
    try:
        future.result(timeout=REFUSED_S)
    except Unplaceable as error:
        took_ms = (time.monotonic() - began_s) * 1000
        report.say(f"needs={needs!r}")
        shown = [
            [item, asked, nearest, verdict or "has it"]
            for item, asked, nearest, verdict in error.rows
        ]
        report.table(["item", "asked", "nearest", "verdict"], shown)
        report.check(
            "a task that no node can run is refused, not queued for ever",
            bool(error.rows),
            f"{took_ms:.0f} ms, {error.nodes_answered} nodes asked",
        )
        rows = [list(row) for row in error.rows]
        return {"needs": repr(needs), "ms": took_ms, "rows": rows}
    except (BlackroadError, TimeoutError) as error:
        report.check("a task that no node can run is refused", False, f"instead: {error}")
    else:
        report.check("a task that no node can run is refused", False, "it ran")
    return {"needs": repr(needs), "rows": []}


def _routed(stage: Stage) -> dict[str, object]:
    arch = foreign_arch()
    expected = [str(row["name"]) for row in stage.rows() if row["arch"] == arch]
    future = stage.client.submit(introducer(), needs=Needs(arch=arch))
    stage.finish(f"needs {arch}", [future])
    told = future.result()
    where = stage.where(future)
    stage.report.check(
        f"a task for {arch} went to the node that declares it",
        [where] == expected,
        f"{where} (really {told['machine']}: declared for this demo)",
    )
    return {"arch": arch, "node": where, "machine": told["machine"]}


def _failed(stage: Stage) -> dict[str, object]:
    report = stage.report
    future = stage.client.submit(reader(), list(READINGS))
    stage.finish("a task that fails", [future])
    error = future.exception()
    report.check(
        "an exception on a node is an exception here, of the same built-in kind",
        isinstance(error, TaskFailed) and isinstance(error, ValueError),
        f"except ValueError caught it; it was raised on {stage.where(future)}:",
    )
    if not isinstance(error, TaskFailed):
        return {"error": repr(error)}
    report.lines("\n".join(error.traceback_text.rstrip().splitlines()[-TRACE_LINES:]))
    return {"type": error.type_name, "text": error.text, "traceback": error.traceback_text}
