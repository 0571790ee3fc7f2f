"""The parts of chaos that need no daemon: its diary, its hands on programs, its submitter."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from blackroad.cli import chaos_record
from blackroad.cli.chaos_client import Order, Submitter
from blackroad.cli.chaos_hands import Hands
from blackroad.cli.chaos_nemesis import COORDINATOR, Strike
from blackroad.cli.chaos_work import Plan, plan
from blackroad.errors import EnvironmentProblem

# --- the diary ------------------------------------------------------------------------------------


def test_what_is_appended_is_read_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "history"
    first_ms = chaos_record.append(file, "submitted", task="t1")
    last_ms = chaos_record.append(file, "accepted", task="t1")
    task = chaos_record.read(file).tasks["t1"]
    assert (task.submitted_ms, task.accepted_ms) == (first_ms, last_ms)
    assert [json.loads(line)["what"] for line in file.read_bytes().splitlines()] == [
        "submitted",
        "accepted",
    ]


def test_the_end_is_read_alone(tmp_path: Path) -> None:
    file = tmp_path / "history"
    for number in range(100):
        chaos_record.append(file, "accepted", task=f"t{number}")
    size = len(file.read_bytes().splitlines()[-1])
    found = chaos_record.read_end(file, 2 * size)
    assert list(found.tasks) == ["t99"]
    assert found.damaged == 1, "the line that the cut went through"
    assert len(chaos_record.read_end(file, 10**6).tasks) == 100


def test_nothing_written_is_an_empty_history(tmp_path: Path) -> None:
    for found in (chaos_record.read(tmp_path / "no"), chaos_record.read_end(tmp_path / "no", 10)):
        assert not found.tasks


def test_a_history_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        chaos_record.append(tmp_path / "no" / "history", "accepted", task="t")
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        chaos_record.read(tmp_path)


# --- the hands ------------------------------------------------------------------------------------


class Fake:
    """A program that notes what is done to it."""

    def __init__(self, name: str, broken: bool = False) -> None:
        self.name = name
        self.done: list[str] = []
        self._broken = broken

    def kill(self) -> None:
        self.done.append("killed")

    def start(self) -> None:
        self.done.append("started")
        if self._broken:
            raise EnvironmentProblem(f"{self.name} does not start")


def strike(target: str, for_ms: int = 100) -> Strike:
    return Strike(0, "kill client", target, for_ms)


def hands_on(tmp_path: Path, *programs: Fake) -> Hands:
    return Hands([], None, programs, tmp_path / "history", random.Random(7))


def test_what_is_done_is_undone_once(tmp_path: Path) -> None:
    program = Fake("client-1")
    hands = hands_on(tmp_path, program)
    assert hands.begin(1, strike("client-1")) == "client-1"
    assert hands.struck() == {"client-1"}
    assert hands.undo(1) == "client-1"
    assert hands.undo(1) == ""
    hands.heal()
    assert hands.struck() == set()
    assert program.done == ["killed", "started"]
    history = chaos_record.read(tmp_path / "history")
    assert [fault.node for fault in history.faults] == ["client-1"]
    assert [heal.name for heal in history.heals] == ["kill client"]


def test_what_cannot_be_undone_is_told_at_the_next_look(tmp_path: Path) -> None:
    hands = hands_on(tmp_path, Fake("client-1", broken=True))
    hands.begin(1, strike("client-1"))
    hands.undo(1)

    def look_on() -> None:
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            hands.check()

    with pytest.raises(EnvironmentProblem, match="client-1 does not start"):
        look_on()


def test_nothing_is_struck_twice_at_once(tmp_path: Path) -> None:
    program = Fake("client-1")
    hands = hands_on(tmp_path, program)
    hands.begin(1, strike("client-1"))
    assert hands.begin(2, strike("client-1")) == ""
    assert hands.skipped == 1
    assert hands.undo(2) == ""
    assert program.done == ["killed"]


@pytest.mark.parametrize("target", [COORDINATOR, "mesh-9"])
def test_whoever_is_not_there_is_not_hit(tmp_path: Path, target: str) -> None:
    hands = hands_on(tmp_path, Fake("client-1"))
    assert hands.begin(1, strike(target)) == ""
    assert hands.struck() == set()
    assert not chaos_record.read(tmp_path / "history").faults


def test_healing_goes_on_behind_what_cannot_be_healed(tmp_path: Path) -> None:
    programs = [Fake("client-1", broken=True), Fake("client-2")]
    hands = hands_on(tmp_path, *programs)
    for number, program in enumerate(programs):
        hands.begin(number, strike(program.name))
    with pytest.raises(EnvironmentProblem, match="client-1 does not start"):
        hands.heal()
    assert [program.done for program in programs] == [["killed", "started"]] * 2
    hands.heal()


# --- the submitter --------------------------------------------------------------------------------


def test_a_killed_submitter_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "history"
    order = Order("client-1", "7", "ipc:///none", str(file), str(tmp_path), "stop", 1.0, 9, 99)
    plans = [plan("7", "client-1", number) for number in range(40)]
    for each in plans:
        chaos_record.append(file, "submitted", task=each.name)
    durable = [each for each in plans if each.durable]
    attached = [each for each in plans if not each.durable]
    ended, rejected, broken, *left = durable
    chaos_record.append(file, "ended", task=ended.name, end="done")
    chaos_record.append(file, "rejected", task=rejected.name)
    for what in ("accepted", "rejected"):
        chaos_record.append(file, what, task=broken.name)
    submitter = Submitter(order)
    submitter._recover()
    again: list[Plan] = [each for _, each in submitter._again]
    assert again == [broken, *left], "what was accepted has an end to come, whatever was said later"
    assert submitter._plan(submitter._number) == plan("7", "client-1", 40)
    tasks = chaos_record.read(file).tasks
    assert all(tasks[each.name].ended[0][1] == "owner lost" for each in attached)
    assert all(not tasks[each.name].ended for each in left)
