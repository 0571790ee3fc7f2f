"""One row of the table: its mesh, what was measured, what has to be true, and its verdict."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blackroad.cli.chaos_history import Verdict, percentile
from blackroad.client import Client
from blackroad.errors import BlackroadError
from blackroad.limits import LEASE_MS, bound_ms
from tests.chaos.load import Load, history, verdict
from tests.chaos.machines import Lab, Machine, NotInTime, until

RSS_GROWTH = 1.2
# An owner keeps the outcome of a durable task for days.
KEPT_BYTES = 3 * 1024
LEASE_QUICK_S = 5
LEASE_S = LEASE_MS // 1000


class Skipped(Exception):
    """This machine cannot show this row, and says why."""


@dataclass(frozen=True)
class Row:
    """One row: the fault, what is required, and the function that does it."""

    number: str
    fault: str
    required: str
    play: Callable[[Scene], None]


@dataclass
class Outcome:
    """What became of a row."""

    row: Row
    figures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    seconds: float = 0.0
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether all that was required held."""
        return not self.wrong and not self.skipped


class Scene:
    """What a row's function works with.

    The usual mesh: `hub` coordinates and `home` owns, both without slots; `w1`.. work.
    """

    def __init__(self, lab: Lab, quick: bool, seed: str) -> None:
        self.lab = lab
        self.quick = quick
        self.random = random.Random(seed)
        self.figures: list[str] = []
        self.wrong: list[str] = []
        self.loads: list[Load] = []
        self.steady: dict[str, tuple[int, int]] = {}
        self._watchers: dict[str, tuple[int, Client | None]] = {}

    # --- the mesh ---------------------------------------------------------------------------------

    @property
    def lease_s(self) -> int:
        """The lease of this run."""
        return LEASE_QUICK_S if self.quick else LEASE_S

    @property
    def bound_s(self) -> float:
        """How long after its last confirmation an attempt may still run."""
        return bound_ms(self.lease_s * 1000) / 1000

    def s(self, full: float, quick: float) -> float:
        """A duration or count: the row's own, or the short one."""
        return quick if self.quick else full

    def n(self, full: int, quick: int) -> int:
        """A count: the row's own, or the small one."""
        return quick if self.quick else full

    def mesh(self, workers: int = 3, slots: int = 4, **settings: str) -> None:
        """Hub, home and so many workers, started and settled."""
        chosen = {"lease": f"{self.lease_s}s", **settings}
        self.lab.add("hub", **{"slots": "0", "priority": "10", **chosen})
        self.lab.add("home", **{"slots": "0", "coordinate": "false", **chosen})
        for number in range(1, workers + 1):
            self.lab.add(f"w{number}", **{"slots": str(slots), **chosen})
        self.lab.start()
        until(lambda: self.coordinator() == "hub", "hub as coordinator")

    def __getitem__(self, name: str) -> Machine:
        for one in self.lab.machines:
            if one.name == name:
                return one
        raise KeyError(name)

    @property
    def workers(self) -> list[Machine]:
        """All machines with slots."""
        return [one for one in self.lab.machines if one.environ["BLACKROAD_SLOTS"] != "0"]

    def load(self, owner: str = "home", name: str = "t") -> Load:
        """A submitter at that machine."""
        made = Load(self.lab, self[owner], name)
        self.loads.append(made)
        return made

    def warm(self, load: Load) -> None:
        """Let every slot run once, so that start-up costs are over; then take the memory's size."""
        slots = sum(int(one.environ["BLACKROAD_SLOTS"]) for one in self.workers)
        load.submit(slots, 300)
        load.wait(60)
        self.steady = {
            one.name: (one.pid, one.rss_bytes()) for one in self.lab.machines if one.lives_on()
        }

    # --- looking ----------------------------------------------------------------------------------

    def view(self, machine: str = "home") -> dict[str, Any]:
        """The mesh as that machine sees it."""
        one = self[machine]
        life, client = self._watchers.get(machine, (0, None))
        if client is None or life != one.lives:
            if client is not None:
                client.close()
            client = one.client()
            self._watchers[machine] = (one.lives, client)
        return client.nodes()

    def coordinator(self, machine: str = "home") -> str:
        """The name of the node that machine follows; empty for none."""
        told = self.view(machine)
        for row in told["nodes"]:
            if row["id"] == told["coordinator"]:
                return str(row["name"])
        return ""

    def state(self, of: str, machine: str = "home") -> str:
        """How that machine sees another one."""
        return next((r["state"] for r in self.view(machine)["nodes"] if r["name"] == of), "")

    def reigns(self, machine: str = "home") -> int:
        """How often that machine has found somebody to follow."""
        return sum(bool(row["node"]) for row in self[machine].events("coordinator.changed"))

    def running(self, machine: str | None = None) -> list[str]:
        """Tasks that have started and not stopped on a machine, by their own history."""
        return [
            task.name
            for task in history(self.lab).tasks.values()
            if task.attempts
            and not task.ended
            and task.attempts[-1].stop_ms is None
            and machine in (None, task.attempts[-1].node)
        ]

    def starts_ms(self) -> list[int]:
        """When attempts started, in order."""
        tasks = history(self.lab).tasks.values()
        return sorted(one.start_ms for task in tasks for one in task.attempts)

    def pause(self, seconds: float) -> None:
        """Let the world run on."""
        time.sleep(seconds)

    # --- telling ----------------------------------------------------------------------------------

    def figure(self, text: str) -> None:
        """Write down something measured."""
        self.figures.append(text)

    def check(self, what: str, right: bool) -> None:
        """Write down what is not as required."""
        if not right:
            self.wrong.append(what)

    def recoveries(self, what: str = "fault to second start") -> list[int]:
        """Times from each fault to the next start of what it ended; told as a figure."""
        each = verdict(self.lab).recoveries_ms
        found = [one for times in each.values() for one in times]
        if found:
            p50, p99 = percentile(found, 50) or 0, percentile(found, 99) or 0
            self.figure(f"{what} p50 {p50 / 1000:.2f} s, p99 {p99 / 1000:.2f} s (n={len(found)})")
        return found

    # --- for every row ----------------------------------------------------------------------------

    def judge(self, outcome: Outcome) -> None:
        """What holds for every row: nothing lost, doubled or overlapping, no traceback, no leak."""
        found = outcome.verdict = verdict(self.lab)
        for kind, finding in found.findings[:3]:
            self.wrong.append(f"{kind}: {finding.task}: {finding.text}")
        self.check("no task was accepted", found.accepted > 0)
        for one in self.lab.machines:
            if "Traceback" in one.log():
                text = one.log()
                at = text.index("Traceback")
                self.wrong.append(f"a traceback in the log of {one.name}: {text[at:][-500:]}")
            pid, before = self.steady.get(one.name, (0, 0))
            if before and one.lives_on() and one.pid == pid:
                now = one.rss_bytes()
                self.check(
                    f"{one.name} grew from {before >> 20} to {now >> 20} MiB",
                    now <= RSS_GROWTH * before + KEPT_BYTES * found.accepted,
                )
        outcome.figures, outcome.wrong = self.figures, self.wrong

    def close(self) -> None:
        """Let go of the machines."""
        for _, client in self._watchers.values():
            if client is not None:
                client.close()


def play(row: Row, quick: bool, seed: int, keep: bool) -> Outcome:
    """Run one row in a lab of its own."""
    outcome = Outcome(row)
    began = time.monotonic()
    lab = Lab(seed)
    scene = Scene(lab, quick, f"{seed}/{row.number}")
    try:
        row.play(scene)
    except Skipped as why:
        outcome.skipped = str(why)
    except (NotInTime, BlackroadError) as error:
        scene.wrong.append(str(error))
    except Exception:
        scene.wrong.append(traceback.format_exc(limit=-3))
    finally:
        if not outcome.skipped:
            scene.judge(outcome)
        scene.close()
        lab.close()
        if not keep:
            lab.remove()
        outcome.seconds = time.monotonic() - began
    return outcome
