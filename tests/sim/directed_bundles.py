"""Directed histories of bundles: many small tasks in one attempt, and one of them is different.

As in `directed.py`: each comes to its end, or raises Broken.
"""

from __future__ import annotations

from tests.sim.cluster import Broken
from tests.sim.processes import Plan
from tests.sim.scene import Scene, story


def _each_began_once(scene: Scene, names: list[str]) -> None:
    """Nothing but its own fate makes a task begin again."""
    for name in names:
        if scene.starts(name) != 1:
            raise Broken("L3", f"{name} began {scene.starts(name)} times")


@story
def failed_in_company() -> int:
    """The third of five fails: two are done before it, two never began."""
    scene = Scene(1, 1)
    scene.company(5, 6, {2: Plan(6, "fail")})
    scene.end()
    _each_began_once(scene, [f"t.{number}" for number in range(5)])
    return 0


@story
def long_in_company() -> int:
    """One takes long: those behind it run beside it meanwhile, and never begin in its company."""
    scene = Scene(1, 2)
    scene.company(10, 6, {0: Plan(400)}, slots=2)
    scene.end()
    _each_began_once(scene, [f"t.{number}" for number in range(10)])
    return 0


@story
def cancelled_in_company() -> int:
    """The third of five is cancelled while the first one runs: the others do not notice."""
    scene = Scene(1, 1)
    scene.company(5, 20, {})
    scene.client(0).cancel((scene.tasks["t.2"],))
    scene.end()
    _each_began_once(scene, ["t.0", "t.1", "t.3", "t.4"])
    if scene.starts("t.2"):
        raise Broken("L3", "what was cancelled before it began has begun")
    return 0


@story
def hangs_in_company() -> int:
    """The second of five hangs, and is cancelled."""
    scene = Scene(1, 1)
    scene.company(5, 20, {1: Plan(20, "hang")})
    scene.until(lambda: scene.runs("t.1"))
    scene.client(0).cancel((scene.tasks["t.1"],))
    scene.end()
    _each_began_once(scene, [f"t.{number}" for number in range(5)])
    return 0


@story
def wish_lost_in_company() -> int:
    """One hangs; the word that its bundle is divided is lost, and so is the first wish for it."""
    scene = Scene(1, 1)
    scene.company(5, 20, {1: Plan(20, "hang")})
    scene.lose("Divided", 1, 0)
    scene.lose("Recall", 0, 1)
    scene.run(200)
    scene.client(0).cancel((scene.tasks["t.1"],))
    scene.run(500)
    scene.free()
    scene.end()
    _each_began_once(scene, [f"t.{number}" for number in range(5)])
    return 0


@story
def lost_in_company() -> int:
    """A worker loses power under a bundle: each of its tasks runs again."""
    scene = Scene(1, 1)
    scene.company(5, 20, {})
    scene.until(lambda: scene.runs("t.1"))
    scene.crash(1, power=True)
    scene.end()
    if [scene.starts(f"t.{number}") for number in range(5)] != [2, 2, 1, 1, 1]:
        raise Broken("L3", "other tasks began again than those that had begun")
    return 0


@story
def durable_in_company() -> int:
    """Durable tasks of a class whose attached ones are short."""
    scene = Scene(1, 1)
    scene.company(5, 6, {})
    scene.submit("s", 0, 6, on=1, count=9, kind="t")
    scene.end()
    return 0
