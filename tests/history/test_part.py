"""What the daemon records: rows for some, counts for all, samples by the clock, and little work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from blackroad.bus.messages import ClassSpec, End, Ended, Facts
from blackroad.capabilities import Capabilities
from blackroad.config import Config
from blackroad.errors import MissingPackage
from blackroad.events import Event
from blackroad.history import part as parts
from blackroad.history import storage
from blackroad.history.part import FAILURES_PER_S, TASKS_PER_S, History
from blackroad.history.records import (
    Counted,
    Finished,
    Happened,
    Known,
    Linked,
    Record,
    Sampled,
    Setting,
    Tried,
)
from blackroad.history.spool import segments
from blackroad.history.storage import Choice, choose
from blackroad.ids import Token, short
from blackroad.node import Node
from blackroad.requirements import Needs
from blackroad.router.records import Attempt, Cause, ClassState, Member, Task, Use, Verdict
from tests.history.test_spool import read

ME, OTHER = b"m" * 16, b"w" * 16
NEEDS = Needs(cpu=2, memory="1GiB").requirement
CAPS = Capabilities(
    name="attic",
    arch="x86_64",
    page_bytes=4096,
    cores=4,
    memory_bytes=2**32,
    python="3.11",
    python_full="3.11.2",
    implementation="CPython",
    os="Debian",
    libc="glibc",
    model="",
)


class Child:
    """Stands for the process: what it is to say, and how often it was woken."""

    def __init__(self) -> None:
        self.says: list[dict[str, Any]] = []
        self.gone_wrong = ""
        self.woken = 0
        self.ticks = 0
        self.pid = 7
        self.closed = False

    def tick(self, _: int) -> list[dict[str, Any]]:
        self.ticks += 1
        told, self.says = self.says, []
        return told

    def wake(self) -> None:
        self.woken += 1

    def close(self) -> None:
        self.closed = True


class Watching:
    """As much of the daemon as a part is given."""

    def __init__(self, state: Path, **settings: Any) -> None:
        self.config = Config(**settings)
        self.paths = SimpleNamespace(state=state)
        self.me = SimpleNamespace(node=short(ME), counter=3, host="attic")
        self.node = Node(ME, 3 << 32, CAPS, 4, 1_000)
        self.transport = None
        self.told: list[tuple[str, dict[str, object]]] = []
        self.log = SimpleNamespace(debug=lambda *_, **__: None)

    def tell(self, name: str, **facts: object) -> None:
        self.told.append((name, facts))


@pytest.fixture
def watching(tmp_path: Path) -> Watching:
    return Watching(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clocks of the part: the wall is a whole minute at first."""
    made = SimpleNamespace(wall=1_795_348_800_000, boot=50_000)
    monkeypatch.setattr(parts, "_wall_ms", lambda: made.wall)
    monkeypatch.setattr(parts, "_boot_ms", lambda: made.boot)
    return made


@pytest.fixture
def history(watching: Watching, clock: SimpleNamespace) -> History:
    made = History(watching, Choice("sqlite:////nowhere", "", True))  # type: ignore[arg-type]
    made.child = Child()  # type: ignore[assignment]
    return made


def task(number: int = 1, end: End = End.DONE, name: str = "fib", node: bytes = OTHER) -> Task:
    spec = ClassSpec(NEEDS.to_wire(), 5, "ada", name=name)
    cls = ClassState(1, spec, NEEDS)
    id_ = number.to_bytes(16, "big")
    made = Task(id_, cls, spec, b"s" * 16, None, b"", True, 49_000)
    made.ended = Ended(id_, end, "", b"", Facts(700_000), node, 1)
    made.tries = 1
    return made


def records(history: History, kind: type[Record]) -> list[Any]:
    history.spool.flush()
    return [one for one in read(history.spool.directory) if isinstance(one, kind)]


def test_a_task_that_ended_is_told_whole(history: History, clock: SimpleNamespace) -> None:
    history.ended([task()])
    assert records(history, Finished) == [
        Finished(
            ME,
            (1).to_bytes(16, "big"),
            "done",
            "",
            "fib",
            "ada",
            5,
            True,
            1,
            20_000,
            2**30,
            0,
            clock.wall - 1_000,
            clock.wall,
            700_000,
            OTHER,
            1,
            "",
        )
    ]


def test_beyond_a_thousand_a_second_they_are_counted_alone(
    history: History, clock: SimpleNamespace
) -> None:
    cls = task().cls
    for number in range(3):
        batch = [task(number * 1000 + at) for at in range(1000)]
        for one in batch:
            one.cls = cls
        history.ended(batch)
    bad = [task(9_000 + at, End.FAILED) for at in range(FAILURES_PER_S + 50)]
    for one in bad:
        one.cls = cls
    history.ended(bad)
    assert len(records(history, Finished)) == TASKS_PER_S + FAILURES_PER_S
    assert history.counted_only == 2_000 + 50
    history.tick(1_000)
    assert [
        (one.state, one.tasks, one.run_us, one.core_us) for one in records(history, Counted)
    ] == [
        ("done", 3_000, 3_000 * 700_000, 6_000 * 700_000),
        ("failed", FAILURES_PER_S + 50, 250 * 700_000, 500 * 700_000),
    ]
    history.ended([task(20_000)])
    assert len(records(history, Finished)) == TASKS_PER_S + FAILURES_PER_S + 1


def test_a_hundred_thousand_names_become_a_few(history: History) -> None:
    history.tick(0)
    for number in range(5_000):
        history.ended([task(number, name=f"name-{number}")])
        assert len(history._counts) <= parts.CLASSES_MAX
    history.tick(10_000)
    counted = records(history, Counted)
    assert sum(one.tasks for one in counted) == 5_000
    assert len(counted) == 2 * (parts.KEYS_MAX + 1)


def test_a_time_that_cannot_be_harms_no_count(history: History) -> None:
    ends = [task(number) for number in range(3)]
    for one in ends:
        assert one.ended is not None
        one.ended = msgspec.structs.replace(one.ended, facts=Facts(2**63 - 1))
    history.tick(0)
    history.ended(ends)
    history.tick(10_000)
    (told,) = records(history, Counted)
    assert told.tasks == 3
    # What a column of the database holds, and some more of the same after it.
    assert 0 < told.run_us < told.core_us <= 2**60


def test_an_attempt_that_came_to_nothing_is_told(history: History, clock: SimpleNamespace) -> None:
    one = task()
    one.tries = 2
    attempt = Attempt(Token(3 << 32, 9), one, 20_000)
    member = Member(attempt, OTHER, 1, Use(OTHER))
    member.first_ms = 48_000
    attempt.members.append(member)
    attempt.verdict = Verdict(Cause.LOSS, "bound passed", OTHER, None)
    assert history._node.owner.runs.on_lost == history.lost
    history.lost(one, attempt, 50_000)
    told = Tried(ME, one.id, 2, OTHER, clock.wall - 2_000, clock.wall, 0, "bound passed")
    assert records(history, Tried) == [told]


def test_events_are_told_but_for_those_of_a_follower(history: History) -> None:
    for severity in ("debug", "warning"):
        history.event(Event("n-3-1", 5, "n", "attic", "node.died", severity, "c", {"a": 1}))
    told = [Happened("n-3-1", 5, "n", "attic", "node.died", "warning", "c", {"a": 1})]
    assert records(history, Happened) == told


def test_samples_come_twice_a_minute_at_whole_times(
    history: History, clock: SimpleNamespace
) -> None:
    for second in range(61):
        history.tick(50_000 + second * 1000)
        clock.wall += 1_000
    begin = clock.wall - 61_000
    samples = records(history, Sampled)
    assert [one.at_ms - begin for one in samples] == [0, 30_000, 60_000]
    assert {(one.node, one.slots) for one in samples} == {(short(ME), 4)}
    assert [one.name for one in records(history, Known)] == ["attic"] * 3
    assert records(history, Linked) == []


def test_settings_are_told_without_secrets(tmp_path: Path, clock: SimpleNamespace) -> None:
    url = "postgresql://me:word@shelf/lab"
    there = Watching(tmp_path, history_url=url, redis_url="redis://:word@shelf/0", name="attic")
    made = History(there, Choice(url, "", True))  # type: ignore[arg-type]
    told = {one.key: one.value for one in records(made, Setting)}
    assert told["name"] == "attic"
    assert "word" not in str(told)
    assert not {"history_url", "redis_url"} & set(told)


def test_a_setting_that_is_no_text_ends_nothing(tmp_path: Path, clock: SimpleNamespace) -> None:
    there = Watching(tmp_path, state_dir=Path("/srv/\udcff"))
    made = History(there, Choice("sqlite:////srv/it.db", "", True))  # type: ignore[arg-type]
    assert {one.key: one.value for one in records(made, Setting)}["state_dir"] == "/srv/?"


def test_an_idle_second_writes_nothing(history: History, clock: SimpleNamespace) -> None:
    history.tick(50_000)
    written, woken = history.spool.written, history.child.woken  # type: ignore[attr-defined]
    clock.wall += 1_000
    history.tick(51_000)
    assert history.spool.written == written
    assert history.child.woken == woken  # type: ignore[attr-defined]


def test_that_the_database_is_away_is_told_once_and_that_it_is_back(
    history: History, watching: Watching
) -> None:
    child: Any = history.child
    history.tick(50_000)
    child.says = [{"problem": "connection refused"}]
    history.tick(51_000)
    history.tick(52_000)
    child.says = [{"problem": ""}]
    history.tick(53_000)
    assert [name for name, _ in watching.told] == ["history.behind", "history.again"]
    assert watching.told[0][1]["reason"] == "connection refused"
    child.gone_wrong = "it ended with 1"
    history.tick(54_000)
    child.gone_wrong = ""
    child.says = [{"ready": True}]
    history.tick(55_000)
    assert [name for name, _ in watching.told[2:]] == ["history.behind", "history.again"]


def test_what_is_given_up_is_told_with_its_number(
    history: History, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history.spool, "lost", 42)
    history.tick(50_000)
    history.tick(51_000)
    monkeypatch.setattr(history.spool, "lost", 50)
    history.tick(52_000)

    def told() -> list[object]:
        return [facts["records"] for name, facts in watching.told if name == "history.lost"]

    assert told() == [42], "on a full disk the event itself is lost, and must not be told for ever"
    history.tick(50_000 + parts.TELL_MS)
    assert told() == [42, 8]


def test_a_node_that_was_not_told_to_starts_no_process_at_once(
    watching: Watching, clock: SimpleNamespace
) -> None:
    made = History(watching, Choice("sqlite:////nowhere", "", False))  # type: ignore[arg-type]
    child = made.child = Child()  # type: ignore[assignment]
    for second in range(21):
        assert child.ticks == 0
        made.tick(50_000 + second * 1000)
    assert child.ticks == 1


def test_closing_writes_what_is_left(history: History) -> None:
    history.tick(50_000)
    history.ended([task()])
    history.close()
    left = read(history.spool.directory)
    assert sum(isinstance(one, Finished | Counted) for one in left) == 2
    assert history.child.closed  # type: ignore[attr-defined]
    assert len(segments(history.spool.directory)) == 1


# --- where to -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        *(("ssd", "own"), ("nvme", "own"), ("container", "own"), ("unknown", "own")),
        *(("sd", ""), ("memory", ""), ("network", "")),
    ],
)
def test_by_itself_it_is_kept_on_real_storage_alone(
    kind: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "storage_kind", lambda _: kind)
    own = f"sqlite:///{tmp_path}/history/history.db"
    found = choose(Config(), tmp_path)
    assert found.url == (own if url else "")
    assert not found.asked
    assert kind in found.why
    asked = choose(Config(history_url="sqlite"), tmp_path)
    assert (asked.url, asked.asked) == (own, True)
    assert choose(Config(history_url="off"), tmp_path).url == ""


def test_what_is_asked_for_and_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "find_spec", lambda name: None if name == "psycopg" else object())
    with pytest.raises(MissingPackage, match="psycopg"):
        choose(Config(history_url="postgres://shelf/lab"), tmp_path)
    monkeypatch.setattr(storage, "find_spec", lambda _: None)
    with pytest.raises(MissingPackage, match="SQLAlchemy"):
        choose(Config(history_url="sqlite"), tmp_path)
    assert "not installed" in choose(Config(), tmp_path).why
