"""What other programs read in the mirror, and how the writer keeps it within bounds."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest

from blackroad.bus import payload
from blackroad.bus.messages import End, Ended, Facts, Payload, Ref
from blackroad.ids import task_text, text32
from blackroad.mirror import child, rows
from blackroad.mirror.child import Kept, Shelf
from tests.unit.builders import PEER, make_node

TASK = "k3f7x2ab-m5c7qaaaaaaaaaaaaaaaaaaaaa"


def told(
    value: Any = None, facts: Facts | None = None, result: Payload | None = None, **changes: Any
) -> dict[str, Any]:
    """What is written of a task with this result, or with these bytes as its result."""
    data = payload.join(payload.encode(value)) if result is None else result
    fields = {"end": End.DONE, "reason": "", "node": PEER, "attempts": 1, **changes}
    ended = Ended(b"t" * 16, result=data, facts=facts or Facts(1500), **fields)
    answer: dict[str, Any] = json.loads(rows.outcome_json(TASK, rows.Outcome(1_000, ended)))
    return answer


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (3, 3),
        (True, True),
        (2.5, 2.5),
        ("wort €", "wort €"),
        ([1, [2.5, None], "x"], [1, [2.5, None], "x"]),
        ((1, 2), [1, 2]),
        ({"a": {"b": [1]}}, {"a": {"b": [1]}}),
        (b"plain text", "plain text"),
    ],
)
def test_plain_values_are_there_as_json(value: object, shown: object) -> None:
    said = told(value)
    assert said["value"] == shown
    assert (said["id"], said["state"], said["attempts"]) == (TASK, "done", 1)
    assert said["bytes"] > 0


def test_arrays_are_lists() -> None:
    numpy = pytest.importorskip("numpy")
    assert told(numpy.arange(4))["value"] == [0, 1, 2, 3]
    assert told(numpy.float64(1.5))["value"] == 1.5


class Odd:
    """Pickled by reference."""


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (Odd(), "pickle"),
        (lambda: 1, "pickle"),
        (2**80, None),
        (float("nan"), "plain"),
        ({1: 2}, "plain"),
        (b"\xff\xfe", None),
        ("x" * 70_000, "plain"),
    ],
)
def test_what_json_has_no_word_for_is_told_by_its_size(value: object, encoding: str | None) -> None:
    said = told(value)
    assert "value" not in said
    assert said["bytes"] > 0
    assert encoding in (None, said["encoding"])


def test_a_pickle_is_never_opened(tmp_path: Any) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "sprung"), "w")

    told(Trap())
    assert not (tmp_path / "sprung").exists()


def test_damaged_bytes_are_no_reason_to_stop() -> None:
    assert told(result=b"\x92\x00nonsense")["encoding"] in ("plain", "unknown")
    assert told(result=b"nonsense")["encoding"] == "unknown"


def test_large_results_are_told_by_their_size() -> None:
    said = told(result=Ref(b"d" * 32, 10**9))
    assert (said["encoding"], said["bytes"]) == ("large", 10**9)


def test_failures_say_why_and_have_no_value() -> None:
    facts = Facts(5, 3, "", "no", "ValueError")
    said = told(result=b"", end=End.FAILED, reason="TaskFailed", facts=facts)
    assert (said["state"], said["reason"], said["error"], said["text"], said["exit_status"]) == (
        "failed", "TaskFailed", "ValueError", "no", 3,
    )  # fmt: skip
    assert "value" not in said
    assert "bytes" not in said


def test_a_deep_value_is_left_out() -> None:
    deep: list[Any] = []
    for _ in range(80):
        deep = [deep]
    assert "value" not in told(deep)


def test_keys_are_as_the_page_says() -> None:
    keys = rows.Keys("c")
    assert keys.result("t") == "blackroad:c:mirror:result:t"
    assert keys.node("n") == "blackroad:c:mirror:node:n"
    assert (keys.nodes, keys.ended) == ("blackroad:c:mirror:nodes", "blackroad:c:mirror:ended")


def test_a_row_of_a_node_is_small_and_json() -> None:
    row = rows.node_row(make_node(1), 5_000)
    assert len(json.dumps(row)) < 2_048
    assert row["state"] == "alive"
    assert row["slots"] >= 1


# --- the shelf ------------------------------------------------------------------------------------


def kept(ended_ms: int = 0, size: int = 10) -> Kept:
    return Kept(b"x" * size, ended_ms)


def test_what_was_written_waits_no_more_and_what_was_lost_waits_again() -> None:
    shelf = Shelf()
    for number in range(3):
        shelf.put(f"t{number}", kept(number * 100))
    chosen = shelf.next(1_000, 500)
    assert [(task, left) for task, _, left in chosen] == [("t0", 500), ("t1", 600), ("t2", 700)]
    assert [shelf.written(task) for task, _, _ in chosen] == [True, True, True]
    assert list(shelf.waiting) == []
    shelf.write_again(since_ms=100)
    shelf.put("t3", kept(300))
    assert list(shelf.waiting) == ["t1", "t2", "t3"]
    assert [shelf.written(task) for task in ("t1", "t2", "t3")] == [False, False, True]


def test_the_oldest_go_where_there_is_no_room_and_are_counted_once() -> None:
    shelf = Shelf(count_max=3, bytes_max=1_000)
    for number in range(5):
        shelf.put(f"t{number}", kept())
    assert (len(shelf), shelf.dropped, list(shelf.waiting)) == (3, 2, ["t2", "t3", "t4"])
    for task in list(shelf.waiting):
        shelf.written(task)
    shelf.write_again()
    shelf.put("t5", kept(size=990))
    assert (len(shelf), list(shelf.waiting)) == (2, ["t4", "t5"])
    assert shelf.dropped == 2, "what had been written is not lost for the first time"


def test_what_is_over_is_not_written() -> None:
    shelf = Shelf()
    shelf.put("old", kept(0))
    shelf.put("new", kept(900))
    assert [task for task, _, _ in shelf.next(500, 1_000)] == ["new"]
    shelf.written("new")
    shelf.expire(901)
    assert len(shelf) == 0
    shelf.write_again()
    assert list(shelf.waiting) == []


def test_one_outcome_that_comes_twice_is_kept_once() -> None:
    shelf = Shelf()
    shelf.put("t", kept(size=100))
    shelf.put("t", kept(size=10))
    assert (len(shelf), list(shelf.waiting)) == (1, ["t"])
    shelf.forget("t")
    assert shelf._bytes == 0


class Memory:
    """A server's answers, without one: what is written stays until it is taken away."""

    def __init__(self) -> None:
        self.there: dict[str, bytes | str] = {}
        self.down = False

    def get(self, key: str) -> bytes | None:
        if self.down:
            raise ConnectionRefusedError("nobody listens")
        value = self.there.get(key)
        return value.encode() if isinstance(value, str) else value

    def set(self, key: str, value: bytes | str, **_: int) -> None:
        self.there[key] = value

    def pipeline(self, transaction: bool) -> Memory:
        return self

    def nothing(self, *_: object, **__: object) -> None:
        """Sets in the order of time, ends of keys, and that all is sent."""

    zadd = zremrangebyscore = zremrangebyrank = expire = pexpire = execute = close = nothing


def test_what_was_written_just_before_a_long_outage_is_written_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("redis")
    memory, now_s = Memory(), [1_000.0]
    clock = SimpleNamespace(monotonic=lambda: now_s[0], time_ns=lambda: int((now_s[0] + 1e9) * 1e9))
    monkeypatch.setattr(child, "time", clock)
    monkeypatch.setattr(child.redis_server, "connect", lambda _: memory)
    writer = child.Writer(io.StringIO(), child.REFRESH_S)
    writer.take(rows.Target("redis://127.0.0.1", "c" * 26, text32(PEER), 3_600_000))
    ended = Ended(b"t" * 16, End.DONE, "", payload.join(payload.encode(1)), Facts(1), PEER, 1)
    writer.take(rows.Batch(1, [rows.Outcome(clock.time_ns() // 1_000_000, ended)]))
    writer.step(now_s[0])
    key = rows.Keys("c" * 26).result(task_text(PEER, b"t" * 16))
    assert key in memory.there
    memory.down = True
    for _ in range(30):
        now_s[0] += child.PAUSE_S_MAX
        writer.step(now_s[0])
    # It crashed before it had saved that one, and comes back as it was a little earlier.
    del memory.there[key]
    memory.down = False
    now_s[0] += child.PAUSE_S_MAX
    writer.step(now_s[0])
    assert key in memory.there
