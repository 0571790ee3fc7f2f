"""What is kept of what attempts print, and how a follower reads it."""

from __future__ import annotations

from blackroad.runtime import output
from blackroad.runtime.output import OutputStore


def test_a_follower_reads_everything_once() -> None:
    store = OutputStore()
    store.append("a", 1, b"one\n")
    page = store.read("a")
    assert page == (0, 4, 0, b"one\n", False)
    store.append("a", 2, b"two\n")
    store.ended("a")
    assert store.read("a", page.end) == (4, 8, 0, b"two\n", True)
    assert store.read("a", 8) == (8, 8, 0, b"", True)
    assert store.read("a", 99) == (8, 8, 0, b"", True)
    assert store.read("b") is None


def test_streams_can_be_told_apart() -> None:
    store = OutputStore()
    for stream, data in ((1, b"a"), (2, b"b"), (1, b"c")):
        store.append("k", stream, data)
    page = store.read("k", stream=2)
    assert page is not None
    assert page.data == b"b"
    assert page.end == 3
    assert store.tail("k") == b"abc"


def test_the_tail_is_kept_and_the_cut_is_told() -> None:
    store = OutputStore(tail_bytes=1000)
    for number in range(500):
        store.append("k", 1, b"%09d\n" % number)
    page = store.read("k")
    assert page is not None
    assert page.end == 5000
    assert page.cut == page.start == 5000 - len(page.data)
    assert 500 < len(page.data) <= 1000
    assert page.data.endswith(b"000000499\n")
    assert store.tail("k") == b"[%d bytes cut]\n%b" % (page.start, page.data)
    assert store.tail("k", 10) == b"[4990 bytes cut]\n000000499\n"
    late = store.read("k", 4000)
    assert late is not None
    assert late.cut == max(0, page.start - 4000)


def test_a_flood_in_one_piece_keeps_its_end() -> None:
    store = OutputStore(tail_bytes=100)
    store.append("k", 1, b"x" * 1000 + b"end")
    page = store.read("k")
    assert page is not None
    assert page.data == b"x" * 97 + b"end"
    assert page.start == 903


def test_pages_are_bounded() -> None:
    store = OutputStore()
    store.append("k", 1, b"0123456789")
    assert store.read("k", 2, 3) == (2, 5, 0, b"234", False)


def test_the_oldest_ended_attempts_go_first() -> None:
    store = OutputStore(tail_bytes=1000, total_bytes=5000)
    for key in range(10):
        store.append(key, 1, b"x" * 900)
        if key != 0:
            store.ended(key)
    assert store.kept_bytes <= 5000
    assert store.read(0) is not None, "the first one still runs"
    assert store.read(1) is None
    assert store.read(9) is not None


def test_running_attempts_are_bounded_too() -> None:
    store = OutputStore(tail_bytes=1000, total_bytes=5000)
    for key in range(100):
        store.append(key, 1, b"x" * 900)
    assert store.kept_bytes <= 5000
    assert store.read(99) is not None


def test_attempts_that_printed_little_are_counted() -> None:
    store = OutputStore()
    for key in range(output.RECENT_MAX + 100):
        store.append(key, 1, b"")
        store.ended(key)
    assert store.read(99) is None
    assert store.read(100) is not None


def test_forgetting_gives_everything_back() -> None:
    store = OutputStore(tail_bytes=100)
    for number in range(50):
        store.append("k", number % 2, b"y" * number)
    store.forget("k")
    store.forget("k")
    assert store.kept_bytes == 0
    store.ended("k")
    assert store.read("k") is None
