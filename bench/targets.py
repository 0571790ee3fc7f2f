"""What this project wants to reach, as ratios of figures of one run, and whether it does.

This file measures nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from bench.runner import Figures, show

OURS = ("blackroad", "blackroad-embedded", "blackroad-pair", "blackroad-pair-curve")
YARDSTICKS = ("zmq-raw", "zmq-raw-curve", "tls-socket", "tcp-socket")
HERE = "this machine"


class Verdict(NamedTuple):
    """One line of the table of targets."""

    work: str
    target: str
    measured: str
    # Nothing where a figure is missing.
    met: bool | None


Number = float | None
Check = Callable[[Figures], Iterable[Verdict]]


def verdicts(figures: Figures) -> list[Verdict]:
    """Every target, with what this run says of it."""
    return [verdict for check in CHECKS for verdict in check(figures)]


def _ratio(
    work: str, target: str, value: Number, base: Number, want: float, *, at_most: bool = False
) -> Verdict:
    if value is None or not base:
        return Verdict(work, target, "not measured", None)
    ratio = value / base
    met = ratio <= want if at_most else ratio >= want
    return Verdict(work, target, f"{ratio:.2f} ({show(value)} / {show(base)})", met)


def _limit(work: str, target: str, value: Number, most: float, unit: str) -> Verdict:
    if value is None:
        return Verdict(work, target, "not measured", None)
    return Verdict(work, target, f"{show(value)} {unit}", value <= most)


def _rate(figures: Figures, system: str, kind: str, work: str = "noop") -> Number:
    found = figures.largest(system, work, kind)
    return found[1] if found else None


def _best(figures: Figures, work: str, metric: str, *, least: bool = False) -> Number:
    """The best of all systems that are neither this project nor a yardstick."""
    numbers = [
        number
        for system in figures.systems
        if system not in (*OURS, *YARDSTICKS)
        and (number := figures.number(system, work, metric)) is not None
    ]
    return (min if least else max)(numbers, default=None)


def separate(figures: Figures) -> Iterable[Verdict]:
    """Each task with its own submit and future."""
    ours = _rate(figures, "blackroad", "one")
    for system, want in (("zmq-raw", 2.0), ("mp-pool", 2.0), ("ray", 30.0), ("dask", 90.0)):
        base = _rate(figures, system, "one")
        yield _ratio("no-op tasks, each its own", f"≥ {want:g} x {system}", ours, base, want)


def mapped(figures: Figures) -> Iterable[Verdict]:
    """`map` with chunks of its own choice."""
    base = _rate(figures, "processpool", "map")
    ours = _rate(figures, "blackroad-embedded", "map")
    target = "embedded ≥ 1.0 x processpool, its best chunks"
    yield _ratio("map over no-ops", target, ours, base, 1.0)
    base = _rate(figures, "zmq-raw", "map")
    ours = _rate(figures, "blackroad", "map")
    yield _ratio("map over no-ops", "≥ 1.0 x zmq-raw in 256-batches", ours, base, 1.0)


def trips(figures: Figures) -> Iterable[Verdict]:
    """One task after the other."""
    name = "round trip of a no-op"
    ours = figures.number("blackroad", "latency", "p50")
    base = figures.number("zmq-raw", "latency", "p50")
    yield _ratio(name, "p50 ≤ 0.8 x zmq-raw", ours, base, 0.8, at_most=True)
    late = figures.number("blackroad", "latency", "p99")
    yield _ratio(name, "p99 ≤ 4 x p50", late, ours, 4.0, at_most=True)
    ours = figures.number("blackroad-embedded", "latency", "p50")
    base = _best(figures, "latency", "p50", least=True)
    yield _ratio(name, "embedded p50 ≤ 1.0 x best peer", ours, base, 1.0, at_most=True)
    late = figures.number("blackroad-embedded", "latency", "p99")
    yield _ratio(name, "embedded p99 ≤ 4 x p50", late, ours, 4.0, at_most=True)


def echoes(figures: Figures) -> Iterable[Verdict]:
    """Arrays there and back on one machine."""
    ours = figures.number("blackroad", "payload", "1 MiB")
    base = _best(figures, "payload", "1 MiB")
    yield _ratio("echo of 1 MiB", "≥ 2 x best peer", ours, base, 2.0)
    ours = figures.number("blackroad", "payload", "64 MiB")
    base = figures.number("ray", "payload", "64 MiB")
    yield _ratio("echo of 64 MiB", "≥ 1.0 x ray", ours, base, 1.0)


def wires(figures: Figures) -> Iterable[Verdict]:
    """What encryption costs between two nodes."""
    ours = figures.number("blackroad-pair-curve", "bulk", "64 MiB")
    base = figures.number("tls-socket", "bulk", "64 MiB")
    name = "echo of 64 MiB, two nodes, encrypted"
    yield _ratio(name, "≥ 0.8 x bare TLS 1.3 socket", ours, base, 0.8)
    ours = _rate(figures, "blackroad-pair-curve", "one", "pair")
    base = _rate(figures, "blackroad-pair", "one", "pair")
    yield _ratio("no-op tasks, two nodes, CURVE", "≥ 0.6 x without", ours, base, 0.6)


def scaling(figures: Figures) -> Iterable[Verdict]:
    """Two workers against a plain loop."""
    name = "64 Monte Carlo tasks, 2 workers"
    ours = figures.number("blackroad", "scale", "efficiency")
    if ours is None:
        yield Verdict(name, "efficiency ≥ 95 %", "not measured", None)
    else:
        yield Verdict(name, "efficiency ≥ 95 %", f"{ours:.0f} %", ours >= 95)
    base = _best(figures, "scale", "efficiency")
    yield _ratio(name, "≥ best peer", ours, base, 1.0)


def killing(figures: Figures) -> Iterable[Verdict]:
    """A worker process is killed."""
    name = "SIGKILL of a worker, 200 tasks"

    def number(metric: str) -> Number:
        return figures.number("blackroad", "kill", metric)

    delivered, raised = number("delivered"), number("raised")
    words = figures.word("blackroad", "kill", "outcome") or "not measured"
    met = None if delivered is None else delivered == 200 and raised == 0
    yield Verdict(name, "all delivered, none raised", words, met)
    yield _limit(name, "started twice: at most 1", number("started twice"), 1, "")
    target = "last result ≤ 1.05 x undisturbed"
    yield _limit(name, target, number("last result"), 1.05, "x")


def standing(figures: Figures) -> Iterable[Verdict]:
    """What it costs to start, and to be there."""
    number = figures.number
    first = number("blackroad", "start", "first result")
    yield _limit("cold start to the first result", "≤ 0.6 s", first, 0.6, "s")
    family = number("blackroad", "idle", "PSS")
    yield _limit("idle, all processes", "≤ 80 MiB", family, 80, "MiB")
    alone = number("blackroad", "idle", "daemon PSS")
    yield _limit("idle, the daemon alone", "≤ 40 MiB", alone, 40, "MiB")
    busy = number("blackroad", "idle", "CPU")
    yield _limit("idle, all processes", "≤ 0.5 % of a core", busy, 0.5, "%")
    began = number(HERE, "import", "import blackroad")
    yield _limit("import blackroad", "≤ 120 ms", began, 120, "ms")
    told = number(HERE, "import", "blackroad --help")
    yield _limit("blackroad --help", "≤ 250 ms", told, 250, "ms")


def simulated(figures: Figures) -> Iterable[Verdict]:
    """A coordinator of a thousand nodes."""
    name = "1,000 nodes, 10 users, 1,000,000 queued (simulated)"
    for metric, most, unit in (
        ("full table", 30.0, "ms"),
        ("changed Demand", 1.0, "ms"),
        ("memory", 100.0, "MiB"),
    ):
        found = figures.number(HERE, "simulated", metric)
        yield _limit(name, f"{metric} ≤ {most:g} {unit}", found, most, unit)


CHECKS: tuple[Check, ...] = (
    separate, mapped, trips, echoes, wires, scaling, killing, standing, simulated,
)  # fmt: skip
