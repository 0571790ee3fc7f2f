"""`blackroad chaos` with real daemons: what it counts, what it refuses, what it leaves behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from blackroad.cli import chaos_record
from blackroad.cli.chaos_history import judge
from blackroad.cli.chaos_nemesis import schedule
from blackroad.cli.chaos_work import plan
from tests.tidy.source import ROOT

pytestmark = pytest.mark.edge

LIMIT_S = 240
TASKS = 24
CLIENTS = ("client-1", "client-2")
# A seed that draws short tasks alone, so that little has to be waited for.
SEED = next(
    str(seed)
    for seed in itertools.count()
    if all(plan(str(seed), name, n).run_ms <= 2_000 for name in CLIENTS for n in range(TASKS // 2))
)
FAULTS = ("kill owner", "kill client", "kill task", "drain")
PROGRAM = """
import json, sys
from pathlib import Path
from blackroad.cli import chaos
from blackroad.cli.chaos_shop import Wishes
wishes = json.loads(sys.argv[1])
wishes["keep"] = Path(wishes["keep"])
wishes["faults"] = tuple(wishes["faults"])
sys.exit(chaos.run_chaos(Wishes(**wishes)))
"""


class Place(NamedTuple):
    """A user's surroundings, all new."""

    root: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.root),
            "TMPDIR": str(self.root / "tmp"),
            "BLACKROAD_RUNTIME_DIR": str(self.root / "run"),
            "BLACKROAD_STATE_DIR": str(self.root / "state"),
        }
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start("-m", "blackroad", "chaos", *words)
        out, err = process.communicate(timeout=LIMIT_S)
        return process.returncode, out, err

    def chaos(self, **wishes: Any) -> subprocess.Popen[str]:
        asked = {"keep": str(self.root / "kept"), "seed": SEED, "as_json": True, **wishes}
        return self.start("-c", PROGRAM, json.dumps(asked))

    def left(self) -> list[psutil.Process]:
        """Processes that carry this place in their environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if any(str(self.root) in value for value in process.environ().values()):
                    found.append(process)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    (tmp_path / "tmp").mkdir()
    yield made
    for process in made.left():
        with contextlib.suppress(psutil.Error):
            process.kill()


def last_line(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


@pytest.mark.slow
def test_promises_hold_while_daemons_programs_and_tasks_are_killed(place: Place) -> None:
    process = place.chaos(
        minutes=0.25,
        nodes=2,
        per_s=8.0,
        faults=FAULTS,
        tasks_max=TASKS,
    )
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, out + err
    told = last_line(out)
    assert told["holds"]
    assert told["tasks"] == TASKS
    assert sum(told["ends"].values()) == TASKS
    assert told["starts"] >= told["ends"]["done"]
    # What finds nothing to hit is skipped, and a slow machine does not come to all of it.
    done = sum(fault["times"] for fault in told["faults"].values())
    names = ["mesh-1", "mesh-2"]
    assert 1 <= done + told["skipped"] <= len(schedule(SEED, 15_000, names, names, CLIENTS, FAULTS))
    assert set(told["faults"]) <= set(FAULTS)
    assert told["collapsed"] == []
    again = judge(chaos_record.read(place.root / "kept" / "history.jsonl"))
    assert again.as_data()["ends"] == told["ends"], "what is kept is what was judged"
    assert place.left() == []


@pytest.mark.slow
def test_ctrl_c_heals_and_judges_what_there_is(place: Place) -> None:
    process = place.chaos(minutes=60, nodes=1, per_s=8.0, faults=["stop daemon"], tasks_max=TASKS)
    history = place.root / "kept" / "history.jsonl"
    deadline = time.monotonic() + LIMIT_S
    while not (history.exists() and b'"fault"' in history.read_bytes()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, out + err
    told = last_line(out)
    assert told["holds"]
    assert told["tasks"] == sum(told["ends"].values()) > 0
    assert told["faults"]["stop daemon"]["times"] >= 1
    assert place.left() == []


def test_a_mesh_that_does_not_run_is_not_started(place: Place) -> None:
    code, out, err = place.run("--running", "--json")
    assert (code, json.loads(out)["error"]["type"]) == (4, "NoDaemon")
    assert "blackroad up" in err


def test_nodes_of_a_running_mesh_cannot_be_chosen(place: Place) -> None:
    code, _, err = place.run("--running", "--nodes", "2")
    assert code == 2
    assert "exclude each other" in err


def test_a_directory_with_something_in_it_is_left_alone(place: Place) -> None:
    kept = place.root / "kept"
    kept.mkdir()
    (kept / "mine").write_text("mine")
    code, _, err = place.run("--keep", str(kept))
    assert code == 2
    assert "not empty" in err
    assert [path.name for path in kept.iterdir()] == ["mine"]
