"""Directed histories of handing ahead: what starts next lies with a process that is busy still.

As in `directed.py`: each comes to its end, or raises Broken.
"""

from __future__ import annotations

from tests.sim.cluster import Broken
from tests.sim.processes import Plan
from tests.sim.scene import Scene, story


def _short(scene: Scene, count: int, run_ms: int) -> None:
    """Let n0 send `count` tasks to n1, one in an attempt, of a class that is known to be short."""
    scene.submit("q", 0, run_ms, on=1, kind="k")
    scene.until(lambda: scene.ended("q"))
    scene.submit("t", 0, run_ms, on=1, kind="k", count=count)


@story
def behind_what_hangs() -> int:
    """The first of six hangs: what was handed to its process runs beside it, once there is room."""
    scene = Scene(1, 2)
    _short(scene, 6, 20)
    scene.world.plans[scene.tasks["t.0"]] = Plan(20, "hang")
    others = [f"t.{number}" for number in range(1, 6)]
    scene.until(lambda: all(map(scene.ended, others)), 5_000)
    scene.client(0).cancel((scene.tasks["t.0"],))
    scene.end()
    for name in others:
        if scene.starts(name) != 1:
            raise Broken("L3", f"{name} began {scene.starts(name)} times")
    return 0


@story
def cancelled_where_it_lies() -> int:
    """The third of three is cancelled before the second one ends: it never begins."""
    scene = Scene(1, 1)
    _short(scene, 3, 60)
    scene.until(lambda: scene.runs("t.1"))
    scene.run(20)
    scene.client(0).cancel((scene.tasks["t.2"],))
    scene.end()
    if scene.starts("t.2"):
        raise Broken("L3", "what was cancelled before it began has begun")
    return 0


@story
def drained_where_it_lies() -> int:
    """A node drains: what lies with its processes goes back, and runs on another one."""
    scene = Scene(1, 1)
    _short(scene, 4, 60)
    scene.until(lambda: scene.runs("t.1"))
    scene.run(20)
    scene.only(0)
    scene.everybody()
    scene.end()
    return 0
