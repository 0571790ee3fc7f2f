"""The object store on a real disk: what it keeps, what it lets go, and whom it believes."""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path

import numpy as np
import pytest

from blackroad.bus import payload
from blackroad.bus.puller import Puller
from blackroad.errors import Busy, DamagedObject, DiskProblem
from blackroad.limits import CHUNK_BYTES
from blackroad.runtime.objects import OPEN_FILES_MAX, ObjectStore

pytestmark = pytest.mark.edge

MIB = 1024 * 1024


def content(number: int, size: int = 1000) -> bytes:
    return random.Random(number).randbytes(size)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects", 10_000)


def files(store: ObjectStore) -> list[str]:
    return sorted(
        str(path.relative_to(store._directory))
        for path in store._directory.rglob("*")
        if path.is_file()
    )


def test_what_is_put_can_be_read(store: ObjectStore) -> None:
    data = content(1)
    digest, size = store.put(data)
    assert (digest, size) == (payload.digest_of(data), 1000)
    assert store.has(digest)
    assert store.size(digest) == 1000
    assert store.read(digest, 0, 1000) == data
    assert store.read(digest, 990, 100) == data[990:]
    assert store.read(digest, 1000, 100) == b""
    assert store.read(digest, -1, 100) == b""
    path = store.path(digest)
    assert path is not None
    assert Path(path).read_bytes() == data
    assert os.stat(path).st_mode & 0o077 == 0


def test_segments_are_stored_as_they_are_joined(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, 100 * MIB)
    segments = payload.encode([np.arange(n) for n in range(200, 2000)])
    assert len(segments) > 1024, "more than one writev"
    digest, size = store.put(segments)
    assert store.read(digest, 0, size) == payload.join(segments)


def test_equal_content_is_stored_once(store: ObjectStore) -> None:
    digest, _ = store.put(b"x" * 500)
    assert store.put(b"x" * 500) == (digest, 500)
    assert len(store) == 1
    assert store.used_bytes == 500
    assert files(store) == [digest.hex()]


def test_an_unknown_object_is_not_here(store: ObjectStore) -> None:
    assert store.path(bytes(32)) is None
    assert store.size(bytes(32)) is None
    assert store.read(bytes(32), 0, 10) == b""
    assert not store.drop(bytes(32))


def test_a_file_removed_by_somebody_is_noticed(store: ObjectStore) -> None:
    digest, _ = store.put(content(1))
    os.unlink(store._path(digest))
    assert store.read(digest, 0, 10) == b""
    assert not store.has(digest)
    assert store.used_bytes == 0


def test_the_longest_unused_leaves_first(store: ObjectStore) -> None:
    digests = [store.put(content(n, 3000))[0] for n in range(3)]
    store.read(digests[0], 0, 1)
    store.put(content(3, 3000))
    assert [store.has(digest) for digest in digests] == [True, False, True]
    assert store.used_bytes == 9000
    assert len(files(store)) == 3


def test_pinned_objects_stay_until_the_last_pin_goes(store: ObjectStore) -> None:
    first, _ = store.put(content(0, 6000))
    store.pin(first, "work")
    store.pin(first, "work")
    store.pin(first, "result")
    for reason in ("work", "result"):
        with pytest.raises(Busy, match="no room"):
            store.put(content(1, 6000))
        assert not store.drop(first)
        store.unpin(first, reason)
    store.unpin(first, "never pinned for that")
    assert store.pinned(first)
    store.unpin(first, "work")
    assert not store.pinned(first)
    second, _ = store.put(content(1, 6000))
    assert not store.has(first)
    assert store.has(second)


def test_nothing_is_thrown_out_in_vain(store: ObjectStore) -> None:
    pinned, _ = store.put(content(0, 6000))
    store.pin(pinned)
    loose, _ = store.put(content(1, 3000))
    with pytest.raises(Busy):
        store.put(content(2, 5000))
    assert store.has(loose)


def test_an_object_larger_than_the_store_is_refused(store: ObjectStore) -> None:
    with pytest.raises(DiskProblem, match="larger than the store") as caught:
        store.put(bytes(10_001))
    assert caught.value.hint
    assert files(store) == []


def test_files_of_task_processes_are_adopted(store: ObjectStore) -> None:
    data = content(1)
    path = store._incoming / "a-1-1"
    path.write_bytes(data)
    store.adopt(str(path), payload.digest_of(data), 1000)
    assert store.read(payload.digest_of(data), 0, 1000) == data
    path.write_bytes(data)
    store.adopt(str(path), payload.digest_of(data), 1000)
    assert not path.exists(), "the second copy is not kept"


@pytest.mark.parametrize(("size", "error"), [(999, DamagedObject), (20_000, DamagedObject)])
def test_a_wrong_size_is_not_adopted(store: ObjectStore, size: int, error: type[Exception]) -> None:
    path = store._incoming / "a-1-1"
    path.write_bytes(content(1))
    with pytest.raises(error):
        store.adopt(str(path), bytes(32), size)
    assert not path.exists()
    assert len(store) == 0


def test_a_missing_file_is_not_adopted(store: ObjectStore) -> None:
    with pytest.raises(DiskProblem):
        store.adopt(str(store._incoming / "none"), bytes(32), 5)


def test_an_earlier_life_is_wiped_and_nothing_else(tmp_path: Path) -> None:
    first = ObjectStore(tmp_path, 10_000)
    digest, _ = first.put(content(1))
    first.writer(digest, 10)
    (tmp_path / "README").write_text("not ours")
    second = ObjectStore(tmp_path, 10_000)
    assert not second.has(digest)
    assert files(second) == ["README"]


def test_a_directory_that_is_a_file_is_a_disk_problem(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("")
    with pytest.raises(DiskProblem, match="cannot be used"):
        ObjectStore(tmp_path / "objects", 1000)


def test_open_files_are_bounded(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, MIB)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3 * OPEN_FILES_MAX):
        digest, _ = store.put(content(number, 100))
        store.read(digest, 0, 10)
    assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES_MAX
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- pieces -------------------------------------------------------------------------------------


def pulled(store: ObjectStore, data: bytes, seed: int, damage: int | None = None) -> str:
    """Bring an object over a path that loses, doubles and reorders."""
    chance = random.Random(seed)
    puller = Puller(payload.digest_of(data), len(data))
    writer = store.writer(puller.digest, puller.size)
    now = 0
    while not puller.complete:
        arriving = [
            offset + number * CHUNK_BYTES
            for offset, chunks in puller.wants(now)
            for number in range(chunks)
            if chance.random() < 0.8
        ]
        arriving += [offset for offset in arriving if chance.random() < 0.2]
        chance.shuffle(arriving)
        for offset in arriving:
            piece = bytearray(data[offset : offset + CHUNK_BYTES])
            if damage is not None and offset <= damage < offset + len(piece):
                piece[damage - offset] ^= 1
            if puller.on_chunk(offset, piece, now) is not None:
                writer.write(offset, piece)
        now = max(now, puller.next_deadline_ms() or 0)
    return writer.finish()


@pytest.mark.parametrize("seed", range(5))
def test_pieces_in_any_order_make_the_object(tmp_path: Path, seed: int) -> None:
    store = ObjectStore(tmp_path, 10 * MIB)
    data = content(seed, 3 * MIB + seed)
    path = pulled(store, data, seed)
    assert Path(path).read_bytes() == data
    assert store.used_bytes == len(data)
    assert store._reserved_bytes == 0


def test_one_wrong_bit_is_found(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, 10 * MIB)
    with pytest.raises(DamagedObject, match="digest differs"):
        pulled(store, content(1, 2 * MIB), 1, damage=MIB + 77)
    assert files(store) == []
    assert store._reserved_bytes == 0
    assert len(store) == 0


def test_a_gap_is_never_taken_for_zeros(store: ObjectStore) -> None:
    data = bytes(1000)
    writer = store.writer(payload.digest_of(data), 1000)
    writer.write(500, data[500:])
    with pytest.raises(DamagedObject):
        writer.finish()


def test_room_is_reserved_and_given_back(store: ObjectStore) -> None:
    writer = store.writer(bytes(32), 8000)
    with pytest.raises(Busy):
        store.writer(bytes(32), 8000)
    with pytest.raises(Busy):
        store.put(content(1, 3000))
    writer.abandon()
    writer.abandon()
    assert files(store) == []
    store.put(content(1, 3000))


def test_an_object_that_arrived_twice_is_one(store: ObjectStore) -> None:
    data = content(1)
    writer = store.writer(payload.digest_of(data), 1000)
    writer.write(0, data)
    store.put(data)
    writer.finish()
    assert len(store) == 1
    assert store.used_bytes == 1000


def test_a_disk_that_takes_no_more_is_a_disk_problem(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, 10 * MIB)
    writer = store.writer(bytes(32), MIB)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(DiskProblem) as caught:
            store.put(content(1, MIB))
        with pytest.raises(DiskProblem):
            writer.write(0, content(1, MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in caught.value.hint
    assert files(store) == []
    assert store._reserved_bytes == 0
    store.put(content(1, MIB))
