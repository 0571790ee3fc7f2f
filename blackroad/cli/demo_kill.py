"""The demo's accident: the coordinator is killed in the middle of a job, and comes back.

The job is a kernel, which is pure, so what ran on the dead node starts elsewhere as soon as it
falls silent.  Beside it runs one ordinary task, which must never run twice at once: it waits for
proof that its first attempt has ended, and the node's return is such a proof.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from concurrent.futures import FIRST_COMPLETED, wait
from typing import TYPE_CHECKING, Any, Final

from blackroad.cli.demo_mesh import remaining
from blackroad.cli.demo_stage import LOOK_S, Finishes, shared
from blackroad.cli.demo_tasks import diarist
from blackroad.errors import BlackroadError
from blackroad.kernels import registry
from blackroad.requirements import Needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blackroad.cli.demo_stage import Stage
    from blackroad.client.futures import TaskFuture

KERNEL: Final = "collatz"
TILES: Final = 96
TILES_MAX: Final = 1500
TILE_S: Final = 1.0
JOB_S: Final = 60.0
DIARY_S: Final = 10.0
KILL_AFTER: Final = 3  # of this many parts of the job, one has ended
MILLION: Final = 1_000_000
STEPS: Final = ("killed", "took over", "back", "diary")
RECOMPUTED: Final = 2
# Both fit into the one core of a node, so that the accident meets both.
TILE_CPU: Final = 0.9
DIARY_CPU: Final = 0.1


def accident(stage: Stage) -> None:
    """Kill the coordinator under load, and account for every task."""
    report = stage.report
    report.part("The coordinator is killed in the middle of a job")
    scene = Accident(stage)
    scene.open()
    scene.run()
    scene.account()


class Accident:
    """One job, one diary, one victim, and when what happened.

    Units  `*_s` are seconds since the job was submitted.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.mesh = stage.mesh
        self.diary_path = stage.mesh.root / "diary"
        self.gate = stage.mesh.root / "gate"
        told = stage.client.nodes()
        row = next(row for row in told["nodes"] if row["coordinator"])
        self.victim = str(row["name"])
        self.victim_id = str(row["id"])
        self.victim_life = int(row["incarnation"])
        self.before_epoch = told["epoch"]
        self.after_epoch: list[Any] | None = None
        self.successor = ""
        self.done_at_kill = 0
        self.at_s: dict[str, float] = {}
        self.gone_late: list[str] = []

    # --- before -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the diary at the victim, then the tiles."""
        stage = self.stage
        needs = Needs(cpu=DIARY_CPU, node=self.victim)
        patience_s = stage.scale.limit_s
        self.diary = stage.client.submit(
            diarist(), str(self.diary_path), str(self.gate), patience_s, needs=needs, durable=True
        )
        stage.deadline.wait("the ordinary task's first start", DIARY_S, self.diary_lines)
        stage.report.say(
            f"An ordinary, durable task that needs {self.victim}, the coordinator, waits there; "
            f"this program is connected to {stage.client.node_name}."
        )
        count, tiles = self._size()
        kernel = registry.get(KERNEL)
        self.whole = kernel.check({"start": stage.scale.numbers + 1, "count": count})
        self.pieces = kernel.pieces(self.whole, tiles)
        options = {"needs": Needs(cpu=TILE_CPU)}
        self.tasks = [
            stage.client.kernel_task(KERNEL, piece, options=options) for piece in self.pieces
        ]
        self.clock = Finishes(self.tasks)
        last = self.whole["start"] + count - 1
        stage.report.say(
            f"The job: Collatz for the next {count:,} numbers, up to {last:,}, in "
            f"{len(self.tasks)} tiles."
        )

    def _size(self) -> tuple[int, int]:
        """Choose how many numbers, in how many tiles, keep these nodes busy for long enough.

        A tile made for a large GPU would take a node without one for ever, so the slowest node
        decides how large a tile may be.
        """
        measured = self.stage.report.facts["collatz"]
        tile = max(1.0, min(measured["numbers_per_second_alone"].values()) * TILE_S)
        wanted = measured["numbers_per_second"] * self.stage.scale.failover_s
        count = max(self.stage.scale.numbers, int(min(wanted, tile * TILES_MAX)))
        count = max(1, count // MILLION) * MILLION
        return count, max(TILES, min(TILES_MAX, math.ceil(count / tile)))

    def diary_lines(self) -> list[dict[str, Any]]:
        """What the ordinary task wrote so far: one line for each start."""
        try:
            lines = self.diary_path.read_text("utf-8").splitlines(keepends=True)
        except OSError:
            return []
        # A line without its end is still being written.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    # --- the accident -----------------------------------------------------------------------------

    def run(self) -> None:
        """Wait for all tiles; on the way kill, watch, and start the victim again.

        Raises  BlackroadError when a step does not come within its limit.
        """
        total = len(self.tasks)
        allowed_s = min(JOB_S, self.stage.deadline.left_s())
        left: set[Any] = set(self.tasks)
        with self.stage.report.bar("tiles", total) as bar:
            while left or not self._over():
                if left:
                    left = wait(left, timeout=LOOK_S / 2, return_when=FIRST_COMPLETED).not_done
                else:
                    time.sleep(LOOK_S / 2)
                done = total - len(left)
                bar.move(done, shared(self.stage.shares([t for t in self.tasks if t.done()])))
                if "killed" not in self.at_s and done * KILL_AFTER >= total:
                    self._kill(done)
                elif "killed" in self.at_s:
                    self._watch()
                if self._now_s() > allowed_s:
                    raise BlackroadError(self._stuck(len(left), allowed_s))
        self.stage.finish("the ordinary task", [self.diary])
        self.stage.futures += self.tasks

    def _over(self) -> bool:
        return all(step in self.at_s for step in STEPS)

    def _stuck(self, left: int, allowed_s: float) -> str:
        missing = [step for step in STEPS if step not in self.at_s]
        waits = [f"{left} of {len(self.tasks)} tiles"] if left else []
        return f"not within {allowed_s:.0f} s: {', '.join(waits + missing)}"

    def _now_s(self) -> float:
        return time.monotonic() - self.clock.started_s

    def _note(self, step: str, text: str) -> None:
        self.at_s[step] = self._now_s()
        self.stage.report.event(self.at_s[step], text)

    def _kill(self, done: int) -> None:
        victim = self.mesh[self.victim]
        pid = victim.pid
        victim.kill()
        self.done_at_kill = done
        self._note(
            "killed",
            f"{done} of {len(self.tasks)} tiles done: SIGKILL to {self.victim} (pid {pid})",
        )
        self.gate.touch()

    def _watch(self) -> None:
        """Look for the next thing that should happen."""
        try:
            told = self.stage.client.nodes()
        except BlackroadError:
            # The daemon is busy; the limit of the job bounds how often that may be.
            return
        rows = {str(row["id"]): row for row in told["nodes"]}
        mine = rows.get(self.victim_id)
        if "silent" not in self.at_s and (mine is None or mine["state"] in ("suspect", "dead")):
            self._note("silent", f"{self.victim} is missed: its tiles start elsewhere")
        if "took over" not in self.at_s and self._taken_over(told):
            self.successor = str(rows[told["coordinator"]]["name"])
            self.after_epoch = told["epoch"]
            waited_s = self._now_s() - self.at_s["killed"]
            self._note(
                "took over", f"{self.successor} coordinates, {waited_s:.1f} s after the kill"
            )
            self._start_again()
        elif "started" in self.at_s:
            self._watch_return(mine)

    def _taken_over(self, told: dict[str, Any]) -> bool:
        return told["coordinator"] not in (None, self.victim_id)

    def _start_again(self) -> None:
        """Start the victim once its last processes are gone, as a boot would."""
        self.gone_late = remaining(self.mesh.root / self.victim)
        self.mesh.start_again(self.victim)
        self._note("started", f"{self.victim} is switched on again, with the same disk")

    def _watch_return(self, mine: dict[str, Any] | None) -> None:
        self.mesh[self.victim].facts()
        returned = (
            mine is not None
            and mine["state"] == "alive"
            and int(mine["incarnation"]) > self.victim_life
        )
        if "back" not in self.at_s and returned and mine is not None:
            self._note("back", f"{self.victim} is back, in its life number {mine['incarnation']}")
        starts = self.diary_lines()
        if "diary" not in self.at_s and len(starts) > 1:
            self._note("diary", f"the ordinary task starts again, on {starts[1]['node']}")

    # --- afterwards -------------------------------------------------------------------------------

    def account(self) -> None:
        """Say what became of every task, and what the accident cost."""
        self._account_tiles()
        self._account_diary()
        self._account_time()

    def _account_tiles(self) -> None:
        report, kernel = self.stage.report, registry.get(KERNEL)
        results = [task.result() for task in self.tasks]
        total = len(self.tasks)
        again = [n for n, task in enumerate(self.tasks) if _attempts(task) > 1]
        ids = {task.task_id for task in self.tasks}
        whole: Any = kernel.gather(self.whole, self.pieces, results)
        report.check(
            "another node took over as coordinator, under a higher epoch",
            bool(self.successor)
            and self.successor != self.victim
            and self.after_epoch is not None
            and self.after_epoch > self.before_epoch,
            f"{self.victim} {_epoch(self.before_epoch)} -> {self.successor} "
            f"{_epoch(self.after_epoch)}",
        )
        report.check(
            "it died in the middle of the job",
            0 < self.done_at_kill < total,
            f"{self.done_at_kill} of {total} tiles were done",
        )
        report.check(
            "every tile ended exactly once",
            len(ids) == len(self.clock.times_s) == total
            and whole["numbers"] == self.whole["count"],
            f"{total} tiles, {len(ids)} ids, {len(self.clock.times_s)} ends, "
            f"{whole['numbers']:,} numbers",
        )
        report.say(
            f"{len(again) or 'No'} tile{'' if len(again) == 1 else 's'} had to be started again: "
            f"{sum(map(_attempts, self.tasks))} starts for {total} results."
        )
        others = sorted(set(range(total)) - set(again))
        sample = again[:RECOMPUTED] + random.sample(others, min(1, len(others)))
        wrong = [
            n
            for n in sample
            if kernel.agrees(self.pieces[n], results[n], kernel.reference(self.pieces[n]))
        ]
        report.check(
            "computed again here, tiles give the same",
            not wrong,
            f"{len(sample)} of them, those that were started twice first",
        )
        self.again = len(again)
        self.most_steps = whole["most_steps"]

    def _account_diary(self) -> None:
        report, starts = self.stage.report, self.diary_lines()
        first, last = starts[0], starts[-1]
        killed_s = self.clock.started_s + self.at_s["killed"]
        report.check(
            "the ordinary task never ran twice at once: killed with its node, then started again",
            len(starts) == 2
            and first["node"] != ""
            and first["monotonic_s"] < killed_s < last["monotonic_s"]
            and first["token"] < last["token"]
            and not _lives(first["pid"]),
            f"attempts {', '.join(str(start['attempt']) for start in starts)}, fencing tokens "
            + " < ".join(_token(start["token"]) for start in starts),
        )
        waited_s = self.at_s["diary"] - self.at_s["killed"]
        report.say(
            f"It waited {waited_s:.1f} s: its node's new life proves that the old one is over. "
            "Had the node stayed away, its lease would have been waited for, 24 s."
        )
        report.check(
            "nothing of the dead daemon went on running",
            not self.gone_late,
            ", ".join(self.gone_late),
        )

    def _account_time(self) -> None:
        report, total = self.stage.report, len(self.tasks)
        rate = self.done_at_kill / self.at_s["killed"]
        undisturbed_s = total / rate
        lost_s = self.clock.wall_s - undisturbed_s
        pause_s = self.clock.longest_pause_s()
        shares = self.stage.shares(self.tasks)
        report.say(f"tiles by node: {shared(shares)}")
        report.say(
            f"The job took {self.clock.wall_s:.1f} s; at its pace before the kill it would have "
            f"taken {undisturbed_s:.1f} s, a difference of {lost_s:+.1f} s. The longest time "
            f"without a result was {pause_s:.1f} s."
        )
        report.facts["failover"] = {
            "victim": self.victim,
            "successor": self.successor,
            "epoch_before": self.before_epoch,
            "epoch_after": self.after_epoch,
            "numbers": self.whole["count"],
            "tiles": total,
            "tiles_done_at_kill": self.done_at_kill,
            "tiles_started_again": self.again,
            "starts": sum(map(_attempts, self.tasks)),
            "tiles_by_node": shares,
            "events_s": dict(self.at_s),
            "takeover_s": self.at_s["took over"] - self.at_s["killed"],
            "wall_s": self.clock.wall_s,
            "undisturbed_s": undisturbed_s,
            "lost_s": lost_s,
            "longest_pause_s": pause_s,
            "diary": self.diary_lines(),
            "most_steps": self.most_steps,
        }


def _attempts(task: TaskFuture) -> int:
    return task.ended.attempts if task.ended is not None else 0


def _epoch(epoch: Sequence[Any] | None) -> str:
    return f"(epoch {epoch[0]})" if epoch else "(no epoch)"


def _token(token: Sequence[int]) -> str:
    """Spell a fencing token as the life and the serial that it is made of."""
    return f"{token[0] >> 32}/{token[1]}"


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
