"""`blackroad demo`, with real daemons: what it claims, and that it leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from blackroad.cli.demo import run_demo
from blackroad.cli.demo_mesh import Deadline
from blackroad.cli.demo_report import Report
from blackroad.cli.demo_stage import Finishes
from blackroad.errors import BlackroadError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 150
SMALL = "Scale(numbers=2_000_000, failover_s=3.0, source_bytes=1_000_000, limit_s=100)"
PROGRAM = f"""
import sys
from pathlib import Path
from blackroad.cli import demo
from blackroad.cli.demo import Scale
if "broken" in sys.argv:
    first, *others = demo.places()
    wrong = [one._replace(settings={{"BLACKROAD_SLOTS": "many"}}) for one in others]
    demo.places = lambda: (first, *wrong)
sys.exit(demo.run_demo(keep=False, out=Path("out"), as_json="json" in sys.argv, scale={SMALL}))
"""


class Place(NamedTuple):
    """A user's surroundings, all new: where the demo is run, its home, where it may scribble."""

    root: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            # What the user set for a daemon of his own is not for those of the demo.
            "BLACKROAD_SLOTS": "nonsense",
        }
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def leftovers(self) -> list[str]:
        files = [*(self.root / "home").rglob("*"), *(self.root / "tmp").rglob("*")]
        processes = []
        for process in psutil.process_iter():
            try:
                if any(str(self.root) in value for value in process.environ().values()):
                    processes.append(str(process))
            except (psutil.Error, OSError):
                continue
        return [*map(str, files), *processes]


@pytest.fixture
def place() -> Iterator[Place]:
    # pytest's own directories have paths too long for sockets.
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        root = Path(name)
        (root / "home").mkdir()
        (root / "tmp").mkdir()
        yield Place(root)


def failed(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [check for check in report["checks"] if not check["held"]]


@pytest.mark.edge
def test_the_whole_story(place: Place) -> None:
    process = place.start("json")
    said, _ = process.communicate(timeout=LIMIT_S)
    report = json.loads(said)
    assert (process.returncode, report["error"], failed(report)) == (0, None, []), said
    assert report["ok"] is True
    assert json.loads((place.root / "out/report.json").read_text("utf-8")) == report

    nodes = {node["name"]: node for node in report["formation"]["nodes"]}
    assert len(nodes) == len({node["id"] for node in nodes.values()}) == 3
    assert report["collatz"]["most_steps"] == {"number": 1_723_519, "steps": 556}
    assert sum(report["collatz"]["tiles_by_node"].values()) == report["collatz"]["tiles"]
    assert report["words"]["words"] > report["words"]["different"] > 1000
    assert [row[0] for row in report["routing"]["refused"]["rows"]][:3] == [
        "gpu",
        "gpu-memory",
        "arch",
    ]
    assert nodes[report["routing"]["routed"]["node"]]["arch"] == report["routing"]["routed"]["arch"]
    assert report["routing"]["failed"]["type"] == "ValueError"
    assert "mean_temperature" in report["routing"]["failed"]["traceback"]
    accident(report["failover"])
    pictures(place, report["photo"])
    assert place.leftovers() == []


def accident(told: dict[str, Any]) -> None:
    """Check the account of the kill."""
    assert told["victim"] != told["successor"]
    assert told["epoch_after"][0] > told["epoch_before"][0]
    assert sum(told["tiles_by_node"].values()) == told["tiles"]
    assert told["starts"] >= told["tiles"] + told["tiles_started_again"]
    at = told["events_s"]
    assert at["killed"] < at["took over"] < at["started"] < min(at["back"], at["diary"])
    first, second = told["diary"]
    assert first["node"] == second["node"] == told["victim"]
    assert first["token"] < second["token"]
    assert first["pid"] != second["pid"]


def pictures(place: Place, told: dict[str, Any]) -> None:
    """Check that the pictures are there, unless the demo said which package is missing."""
    if importlib.util.find_spec("pywt") is None or importlib.util.find_spec("PIL") is None:
        assert "not installed" in told["skipped"]
        return
    from PIL import Image

    made = {path.name: Image.open(path) for path in (place.root / "out").glob("*.png")}
    assert sorted(made) == ["blurred.png", "edges.png", "original.png"]
    assert len({image.tobytes() for image in made.values()}) == 3
    assert {image.size for image in made.values()} == {tuple(reversed(told["shape"]))}


@pytest.mark.edge
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupted_it_leaves_nothing_behind(place: Place, number: signal.Signals) -> None:
    process = place.start("text")
    assert process.stdout is not None
    for line in process.stdout:
        # The daemons run by now, and the first tasks, too.
        if line.startswith("Collatz"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=LIMIT_S) == 130, rest
    assert "error: stopped before the end" in rest
    assert place.leftovers() == []


@pytest.mark.edge
def test_a_daemon_that_cannot_start_ends_it_with_the_reason(place: Place) -> None:
    process = place.start("json", "broken")
    said, _ = process.communicate(timeout=LIMIT_S)
    error = json.loads(said)["error"]
    assert process.returncode == 5
    assert "ended by itself (status 2)" in error["message"]
    assert any("BLACKROAD_SLOTS=many: must be a whole number" in line for line in error["logs"])
    assert place.leftovers() == []


def test_an_unusable_output_directory_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run_demo(keep=False, out=tmp_path / "file", as_json=True) == 5
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert "--out" in told["error"]["hint"]


def test_a_check_that_does_not_hold_shows_in_the_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report(as_json=False)
    report.check("two and two", 2 + 2 == 4)
    assert report.document()["ok"] is True
    report.check("three and three", False, "it was 7")
    assert report.document()["ok"] is False
    assert [check.name for check in report.failed] == ["three and three"]
    assert "three and three: it was 7" in capsys.readouterr().out


def test_no_blanks_at_line_ends_and_no_colours_outside_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report(as_json=False)
    report.part("Part")
    report.table(["name", "count"], [["attic", 1_000], ["a-longer-name", 2]])
    report.say("word " * 60)
    with report.bar("work", 3) as bar:
        bar.move(2)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line != line.rstrip() or "\x1b" in line] == []
    assert max(map(len, lines)) <= 100
    assert any(line.split() == ["attic", "1,000"] for line in lines)


def test_json_shows_nothing_but_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(as_json=True)
    report.part("Part")
    report.table(["a"], [[1]])
    report.event(1.0, "something")
    report.finish(None)
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "ok": True,
        "error": None,
        "checks": [],
    }


def test_a_deadline_bounds_every_wait() -> None:
    with pytest.raises(BlackroadError, match="the moon: not within 0 s"):
        Deadline(0).wait("the moon", 60, lambda: None)
    assert Deadline(60).wait("a value", 60, lambda: "value") == "value"
    assert Deadline(60).try_wait(0, lambda: 0) is None


def test_finishes_count_each_end_once() -> None:
    from concurrent.futures import Future

    futures: list[Future[int]] = [Future() for _ in range(3)]
    clock = Finishes(futures)
    for future in futures[:2]:
        future.set_result(1)
    assert len(clock.times_s) == 2
    assert clock.wall_s >= clock.longest_pause_s() >= 0
