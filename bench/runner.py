"""Runs cells one after the other, and says how much the machine was disturbed meanwhile.

The repeats are the outer loop and the systems the inner one: what is compared was measured
within minutes of each other.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import proc
from bench.systems import REGISTRY

ROOT = Path(__file__).absolute().parents[1]
CELL_LIMIT_S = 600.0
END_LIMIT_S = 20.0
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
DISTRIBUTIONS = ("blackroad", "pyzmq", "msgspec", "msgpack", "numpy", "cryptography")
Row = dict[str, Any]


class Plan(NamedTuple):
    """What is measured, how often and how long."""

    systems: tuple[str, ...]
    works: tuple[str, ...]
    repeats: int = 3
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    cap_s: float = 60.0
    quiet_s: float = 20.0
    # How often a disturbed cell is run again.
    again: int = 1


def machine() -> dict[str, Any]:
    """What has to be known of the machine to read the figures."""
    named = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "Model"))
    ]
    packages = set(DISTRIBUTIONS)
    for system in REGISTRY.values():
        packages |= {one.partition("[")[0] for one in system.packages if not system.missing()}
    versions = {}
    for name in sorted(packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cores": os.cpu_count(),
        "processor": named[0] if named else platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }


def cells(plan: Plan) -> Iterator[tuple[int, str, str]]:
    """All that can be run here: repeat, workload, system."""
    for repeat in range(plan.repeats):
        for work in plan.works:
            for name in plan.systems:
                system = REGISTRY[name]
                meant = work in system.only if system.only else work not in ("pair", "bulk")
                if meant and not system.missing():
                    yield repeat, work, name


def skipped(plan: Plan) -> dict[str, str]:
    """The systems that are asked for and cannot be measured here, with the reason."""
    reasons = {name: REGISTRY[name].missing() for name in plan.systems}
    return {name: reason for name, reason in reasons.items() if reason}


def run(plan: Plan, save: Callable[[list[Row]], None]) -> list[Row]:
    """Run everything; a cell that others disturbed is run again, and the quieter one counts.

    `save` is given all rows so far after each cell: an hour's run is not lost with its end.
    """
    proc.adopt_orphans()
    rows: list[Row] = []
    for repeat, work, name in cells(plan):
        best: tuple[float, list[Row]] | None = None
        for _ in range(1 + plan.again):
            proc.wait_quiet(plan.quiet_s)
            others = proc.Others()
            found = one_cell(name, work, plan)
            proc.reap()
            share = others.percent()
            _say(repeat, name, work, found, share)
            if best is None or share < best[0]:
                best = share, found
            if share <= proc.QUIET_PERCENT:
                break
        assert best is not None
        rows += [{**row, "repeat": repeat, "others_percent": round(best[0], 1)} for row in best[1]]
        save(rows)
    return rows


def _say(repeat: int, name: str, work: str, rows: Iterable[Row], share: float) -> None:
    """One line for one cell, while people wait."""
    figures = [f"{row['metric']} {show(row['value'])}" for row in rows if row["work"] == work]
    print(
        f"#{repeat + 1} {name:20} {work:8} others {share:3.0f} %  {', '.join(figures)}",
        file=sys.stderr,
        flush=True,
    )


def one_cell(name: str, work: str, plan: Plan) -> list[Row]:
    """Run one process to its end or to the time limit; return what it told."""
    with tempfile.TemporaryDirectory(prefix="br-cell-") as folder:
        out, log = Path(folder) / "out", Path(folder) / "log"
        words = [
            *(REGISTRY[name].launcher(2) or [sys.executable]), "-m", "bench.cell", name, work,
            "--out", str(out), "--began", repr(time.monotonic()),
            "--sizes", ",".join(map(str, plan.sizes)), "--cap", str(plan.cap_s),
        ]  # fmt: skip
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        kept = {key: text for key, text in os.environ.items() if not key.startswith("BLACKROAD_")}
        environ = {**kept, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": path}
        cut = ""
        others = set(proc.below(os.getpid()))
        with log.open("wb") as file:
            process = subprocess.Popen(
                words, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
            try:
                process.wait(CELL_LIMIT_S)
            except subprocess.TimeoutExpired:
                cut = f"cut off after {CELL_LIMIT_S:.0f} s"
            finally:
                _end(process)
                proc.end_all_below(os.getpid(), but=others)
        told = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        if not told and not cut:
            cut = f"it ended with {process.returncode} and told nothing"
        if cut:
            told.append({"work": work, "metric": "failed", "value": cut, "unit": ""})
        if any(row["metric"] == "failed" for row in told):
            print(log.read_text("utf-8", "replace")[-2000:], file=sys.stderr)
    # Of figures told twice the later one stands.
    last = {(row["work"], row["metric"]): {**row, "system": name} for row in told}
    return list(last.values())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a cell that was broken off take back what it made, such as network namespaces."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_LIMIT_S)


# --- what came out --------------------------------------------------------------------------------


class Figures:
    """Medians of a run: of the undisturbed repeats, or of all where none was undisturbed."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        grouped: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            grouped.setdefault((row["system"], row["work"], row["metric"]), []).append(row)
        self._grouped = grouped
        self.systems = list(dict.fromkeys(row["system"] for row in self.rows))

    def number(self, system: str, work: str, metric: str) -> float | None:
        """The median of a figure, nothing where there is none."""
        rows = self._grouped.get((system, work, metric), [])
        rows = [row for row in rows if isinstance(row["value"], int | float)]
        quiet = [row for row in rows if row.get("others_percent", 0) <= proc.QUIET_PERCENT]
        values = [float(row["value"]) for row in quiet or rows]
        return statistics.median(values) if values else None

    def word(self, system: str, work: str, metric: str) -> str:
        """What was told in words, each text once."""
        rows = self._grouped.get((system, work, metric), [])
        texts = [str(row["value"]) for row in rows if isinstance(row["value"], str)]
        return " / ".join(dict.fromkeys(texts))

    def largest(self, system: str, work: str, kind: str) -> tuple[int, float] | None:
        """Of figures named "KIND NUMBER" the one with the largest number: both of them."""
        found = []
        for name, of, metric in self._grouped:
            word, _, size = metric.partition(" ")
            if (name, of, word) == (system, work, kind) and size.isdigit():
                value = self.number(system, work, metric)
                if value is not None:
                    found.append((int(size), value))
        return max(found, default=None)

    def disturbed(self) -> float:
        """The largest part of the machine that others took during a cell."""
        return max((row.get("others_percent", 0.0) for row in self.rows), default=0.0)


def show(value: Any) -> str:
    """A figure as people read it."""
    if not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
