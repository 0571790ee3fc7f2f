"""What a puller asks for, when it asks again, and when it gives up.  Protocol rule 36."""

from __future__ import annotations

import random

import pytest

from blackroad.bus.puller import GIVE_UP_MS, RETRY_MS, RETRY_MS_MAX, Puller
from blackroad.errors import RemoteProtocolError
from blackroad.limits import CHUNK_BYTES, WINDOW_CHUNKS

DIGEST = bytes(32)
C = CHUNK_BYTES
FULL = bytes(C)


def test_the_window_is_asked_for_at_once() -> None:
    puller = Puller(DIGEST, 20 * C)
    assert puller.wants(0) == [(0, WINDOW_CHUNKS)]
    assert puller.wants(1) == [], "nothing is overdue and the window is full"
    assert puller.next_deadline_ms() == RETRY_MS


def test_half_a_window_is_waited_for() -> None:
    puller = Puller(DIGEST, 20 * C)
    puller.wants(0)
    for chunk in range(3):
        assert puller.on_chunk(chunk * C, FULL, 10) is False
        assert puller.wants(10) == []
    assert puller.on_chunk(3 * C, FULL, 10) is False
    assert puller.wants(10) == [(8 * C, 4)]


def test_a_short_object_is_one_request() -> None:
    puller = Puller(DIGEST, C + 5)
    assert puller.wants(0) == [(0, 2)]
    assert puller.on_chunk(C, b"12345", 1) is False
    assert puller.received_bytes == 5
    assert puller.on_chunk(0, FULL, 2) is True
    assert puller.complete
    assert puller.received_bytes == C + 5
    assert puller.wants(3) == []
    assert puller.next_deadline_ms() is None


def test_an_empty_object_is_complete() -> None:
    puller = Puller(DIGEST, 0)
    assert puller.complete
    assert puller.wants(0) == []


def test_lost_chunks_are_asked_for_again_with_longer_waits() -> None:
    puller = Puller(DIGEST, 2 * C)
    now = 0
    waits = []
    assert puller.wants(now) == [(0, 2)]
    for _ in range(4):
        due = puller.next_deadline_ms()
        assert due is not None
        assert puller.wants(due - 1) == []
        assert puller.wants(due) == [(0, 2)]
        waits.append(due - now)
        now = due
    assert waits == [RETRY_MS, 2 * RETRY_MS, RETRY_MS_MAX, RETRY_MS_MAX]
    due = puller.next_deadline_ms()
    assert due == GIVE_UP_MS
    assert puller.wants(due) == []
    assert puller.gave_up(due)


def test_one_lost_chunk_does_not_slow_the_rest_down() -> None:
    puller = Puller(DIGEST, 8 * C)
    puller.wants(0)
    for chunk in (0, 1, 2, 4, 5, 6, 7):
        puller.on_chunk(chunk * C, FULL, 500)
    assert puller.wants(RETRY_MS) == [(3 * C, 1)]


def test_any_new_chunk_resets_the_wait() -> None:
    puller = Puller(DIGEST, 2 * C)
    puller.wants(0)
    puller.wants(RETRY_MS)
    puller.wants(3 * RETRY_MS)
    assert puller.on_chunk(0, FULL, 3 * RETRY_MS + 100) is False
    assert puller.wants(7 * RETRY_MS) == [(C, 1)]
    assert puller.next_deadline_ms() == 9 * RETRY_MS, "all that was under way was late"


def test_gaps_are_joined_into_few_requests() -> None:
    puller = Puller(DIGEST, 8 * C)
    puller.wants(0)
    for chunk in (0, 4):
        puller.on_chunk(chunk * C, FULL, 1)
    assert puller.wants(RETRY_MS) == [(C, 3), (5 * C, 3)]


def test_doubles_are_harmless() -> None:
    puller = Puller(DIGEST, 3 * C)
    puller.wants(0)
    assert puller.on_chunk(0, FULL, 1) is False
    assert puller.on_chunk(0, FULL, 2) is None
    assert puller.received_bytes == C
    puller.on_chunk(C, FULL, 3)
    assert puller.on_chunk(2 * C, FULL, 4) is True
    assert puller.on_chunk(2 * C, FULL, 5) is None, "also after the end"


def test_a_chunk_that_nobody_asked_for_yet_counts() -> None:
    puller = Puller(DIGEST, 20 * C)
    puller.wants(0)
    assert puller.on_chunk(9 * C, FULL, 1) is False
    for chunk in range(8):
        puller.on_chunk(chunk * C, FULL, 2)
    assert puller.wants(3) == [(8 * C, 1), (10 * C, 7)]


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (1, FULL),
        (-C, FULL),
        (3 * C, FULL),
        (2**62, FULL),
        (0, b""),
        (0, FULL[:-1]),
        (0, FULL + b"x"),
        (2 * C, FULL),
        (2 * C, b"12345678"),
    ],
)
def test_chunks_that_cannot_be_are_refused(offset: int, data: bytes) -> None:
    puller = Puller(DIGEST, 2 * C + 7)
    puller.wants(0)
    with pytest.raises(RemoteProtocolError):
        puller.on_chunk(offset, data, 1)
    assert puller.received_bytes == 0


def test_it_gives_up_when_nothing_new_comes() -> None:
    puller = Puller(DIGEST, 2 * C)
    puller.wants(0)
    puller.on_chunk(0, FULL, 5_000)
    puller.on_chunk(0, FULL, 20_000)
    assert not puller.gave_up(5_000 + GIVE_UP_MS - 1)
    assert puller.gave_up(5_000 + GIVE_UP_MS)
    assert puller.wants(5_000 + GIVE_UP_MS) == []


def test_gone_ends_asking_and_another_holder_goes_on() -> None:
    puller = Puller(DIGEST, 20 * C)
    puller.wants(0)
    for chunk in (0, 1, 2, 5):
        puller.on_chunk(chunk * C, FULL, 1)
    puller.on_gone()
    assert puller.wants(2) == []
    assert puller.next_deadline_ms() is None
    puller.resume(100_000)
    assert puller.wants(100_000) == [(3 * C, 2), (6 * C, 6)]
    assert puller.received_bytes == 4 * C


@pytest.mark.parametrize("size", [0, 5, 3 * C])
def test_wrong_bytes_are_fetched_once_more_and_no_further(size: int) -> None:
    puller = Puller(DIGEST, size)

    def fetch(now_ms: int) -> None:
        for offset, chunks in puller.wants(now_ms):
            for at in range(offset, min(size, offset + chunks * C), C):
                puller.on_chunk(at, FULL[: size - at], now_ms + 1)
        assert puller.complete

    fetch(0)
    assert puller.start_over(10)
    assert puller.received_bytes == 0
    assert puller.complete == (size == 0), "an empty object has nothing to fetch"
    fetch(10)
    assert not puller.start_over(20)
    assert puller.complete, "a refusal changes nothing"


def test_starting_over_has_a_standstill_of_its_own() -> None:
    puller = Puller(DIGEST, 1)
    puller.wants(0)
    puller.on_chunk(0, b"x", 1)
    puller.start_over(100_000)
    assert puller.wants(100_000) == [(0, 1)]
    assert not puller.gave_up(100_000 + GIVE_UP_MS - 1)
    assert puller.gave_up(100_000 + GIVE_UP_MS)


@pytest.mark.parametrize("seed", range(20))
def test_a_lossy_path_delivers_everything_within_the_window(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.randrange(1, 40 * C)
    puller = Puller(DIGEST, size)
    here: set[int] = set()
    wires: list[tuple[int, int]] = []  # arrival, offset
    now = 0
    while not puller.complete:
        for offset, chunks in puller.wants(now):
            assert chunks <= WINDOW_CHUNKS
            for number in range(chunks):
                if chance.random() < 0.7:
                    wires.append((now + chance.randrange(1, 3000), offset + number * C))
        assert len(puller._under_way) <= WINDOW_CHUNKS
        due = puller.next_deadline_ms()
        assert due is not None
        now = max(now, min([due, *(at for at, _ in wires)]))
        for item in sorted(wires):
            if item[0] <= now:
                wires.remove(item)
                length = min(C, size - item[1])
                new = puller.on_chunk(item[1], FULL[:length], now) is not None
                assert new == (item[1] not in here)
                here.add(item[1])
        assert now < 10_000_000
    assert here == set(range(0, size, C))


# --- what comes another way -----------------------------------------------------------------------


def test_what_came_over_a_line_is_not_asked_for_again() -> None:
    puller = Puller(bytes(32), 10 * CHUNK_BYTES + 5)
    assert puller.wants(0) == [(0, WINDOW_CHUNKS)]
    puller.have(9 * CHUNK_BYTES + 17, 10)
    assert puller.received_bytes == 9 * CHUNK_BYTES
    puller.resume(10)
    assert puller.wants(10) == [(9 * CHUNK_BYTES, 2)]
    puller.have(puller.size, 20)
    assert puller.complete
    assert puller.received_bytes == puller.size


def test_a_chunk_that_was_here_already_counts_once() -> None:
    puller = Puller(bytes(32), 4 * CHUNK_BYTES)
    puller.wants(0)
    assert puller.on_chunk(2 * CHUNK_BYTES, bytes(CHUNK_BYTES), 1) is False
    puller.have(3 * CHUNK_BYTES, 2)
    assert puller.on_chunk(CHUNK_BYTES, bytes(CHUNK_BYTES), 3) is None
    assert puller.on_chunk(3 * CHUNK_BYTES, bytes(CHUNK_BYTES), 4) is True


def test_a_line_that_stands_still_is_given_up() -> None:
    puller = Puller(bytes(32), 4 * CHUNK_BYTES)
    puller.waits(0, moved=True)
    for now_ms in range(1000, GIVE_UP_MS, 1000):
        puller.waits(now_ms, moved=False)
        assert not puller.gave_up(now_ms)
    assert puller.gave_up(GIVE_UP_MS)
    puller.waits(GIVE_UP_MS, moved=True)
    assert not puller.gave_up(GIVE_UP_MS)
