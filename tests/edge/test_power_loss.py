"""Power cuts: whatever was not flushed is gone, and everything that was promised is there."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blackroad.bus import payload
from blackroad.store.journal import Journal
from tests.edge.faults import library
from tests.edge.faults.lazy import LazyDisk, records
from tests.edge.faults.ledger import FORGOTTEN_AFTER, Model

pytestmark = pytest.mark.edge


def lazy(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose `state` is on the lazy disk."""
    (tmp_path / "state").mkdir()
    return {
        **os.environ,
        "LD_PRELOAD": str(library()),
        "FAULT_DIR": str(tmp_path / "state"),
        "FAULT_LOG": str(tmp_path / "log"),
        "FAULT_ACKS": str(tmp_path / "acks"),
    }


def written(tmp_path: Path, lives: int, marks: int, seed: int, *words: str) -> tuple[Path, Path]:
    """Run a program of rows on the lazy disk; return its directory and the log of the disk."""
    environment = lazy(tmp_path)
    state, log = tmp_path / "state", tmp_path / "log"
    chance = random.Random(seed)
    first = 1
    for last in [*sorted(chance.sample(range(1, marks), lives - 1)), marks]:
        command = [sys.executable, "-m", "tests.edge.faults.ledger", str(state)]
        command += [str(first), str(last), *words]
        subprocess.run(command, env=environment, check=True, timeout=600)
        first = last + 1
    return state, log


class Verdict:
    """What all cuts came to."""

    def __init__(self) -> None:
        self.cuts = self.missing = self.marks = 0
        self.faults: list[str] = []


def judge(tmp_path: Path, state: Path, log: Path, cuts: int, seed: int) -> Verdict:
    """Cut the power at that many points, and look at what each leaves."""
    chance = random.Random(seed)
    history = list(records(log))
    disk = LazyDisk(state)
    model = Model()
    verdict = Verdict()
    at = 0
    for stop in sorted(chance.sample(range(1, len(history)), min(cuts, len(history) - 1))):
        while at < stop:
            disk.play(history[at])
            at += 1
        promised = int(disk.promised[-1]) if disk.promised else 0
        left = tmp_path / "left"
        disk.cut(left, random.Random(stop))
        _look(left, promised, model, verdict, f"at record {stop} of {len(history)}")
        shutil.rmtree(left)
    for record in history[at:]:
        disk.play(record)
    verdict.marks = int(disk.promised[-1])
    return verdict


def _look(left: Path, promised: int, model: Model, verdict: Verdict, where: str) -> None:
    verdict.cuts += 1
    try:
        journal = Journal(left)
        try:
            found = journal.load()
        finally:
            journal.close()
    except Exception as error:
        verdict.missing += promised
        verdict.faults.append(f"{where}: {error!r}")
        return
    if not journal.findings.sound:
        verdict.faults.append(f"{where}: damage: {journal.findings}")
    # Groups are there whole or not at all: so what is left is what one mark left.
    model.play(promised)
    ahead = 0
    while not model.agrees(found):
        if ahead == 200:
            verdict.missing += 1
            verdict.faults.append(f"{where}: promised up to {promised}, {len(found.tasks)} tasks")
            # The model has gone on too far to be used for the next cut.
            model.__init__()  # type: ignore[misc]
            return
        ahead += 1
        model.play(model.mark + 1)


def test_every_promise_survives_a_power_cut(tmp_path: Path) -> None:
    state, log = written(tmp_path, 6, 700, 1)
    verdict = judge(tmp_path, state, log, 60, 2)
    assert verdict.faults == []
    assert verdict.missing == 0
    assert verdict.cuts == 60
    assert verdict.marks == 700


@pytest.fixture(scope="module")
def ten_thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Ten thousand marks in twelve lives."""
    return written(tmp_path_factory.mktemp("lazy"), 12, 10_000, 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_ten_thousand_promises_survive_power_cuts(
    ten_thousand: tuple[Path, Path], tmp_path: Path, seed: int
) -> None:
    verdict = judge(tmp_path, *ten_thousand, 50, seed)
    assert verdict.faults == []
    assert (verdict.missing, verdict.cuts) == (0, 50)
    assert verdict.marks == 10_000 > FORGOTTEN_AFTER


def test_a_journal_that_does_not_flush_is_found_out(tmp_path: Path) -> None:
    state, log = written(tmp_path, 2, 300, 5, "sloppy")
    assert judge(tmp_path, state, log, 30, 6).missing > 0


# --- objects --------------------------------------------------------------------------------------

OBJECTS = """
import os, random, sys
from blackroad.runtime.objects import ObjectStore
store = ObjectStore(sys.argv[1] + "/objects", 10_000_000)
acks = os.open(os.environ["FAULT_ACKS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
for number in range(60):
    digest, _ = store.put(random.Random(number).randbytes(70_000))
    if number % 3:
        store.flush(digest)
        store.flush(digest)
        os.write(acks, digest.hex().encode())
"""


def test_every_flushed_object_survives_a_power_cut(tmp_path: Path) -> None:
    environment = lazy(tmp_path)
    state = tmp_path / "state"
    command = [sys.executable, "-c", OBJECTS, str(state)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    history = list(records(tmp_path / "log"))
    disk = LazyDisk(state)
    torn = 0
    for at, record in enumerate(history):
        disk.play(record)
        if at % 5:
            continue
        left = tmp_path / "left"
        disk.cut(left, random.Random(at))
        for name in map(bytes.decode, disk.promised):
            assert payload.digest_of((left / "objects" / name).read_bytes()).hex() == name
        found = {path.name for path in (left / "objects").glob("?" * 64)}
        torn += bool(found - set(map(bytes.decode, disk.promised)))
        shutil.rmtree(left)
    assert len(disk.promised) == 40
    assert torn > 0, "names without their bytes were among what was left"
