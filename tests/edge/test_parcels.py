"""Parcels on a real file system: who may have them, who gets them back, and what stays of them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from blackroad.bus import messages as m
from blackroad.bus import parcels, payload
from blackroad.bus.parcels import GUIDE, HANDED, KEPT, OWNER, SPARE, WRITING, Parcels, Root
from blackroad.client.objects import Outgoing
from blackroad.errors import Busy, DiskProblem
from blackroad.runtime import shed as sheds
from blackroad.runtime.objects import ObjectStore
from blackroad.runtime.sealing import Sealer
from blackroad.runtime.shed import ORPHAN_MS, SPARE_MS, TIDY_MS, Shed

pytestmark = pytest.mark.edge

KIB = 1024
MIB = 1024 * KIB
COUNT = MIB // 4
WAIT_S = 30.0
STRANGER = 12345  # a user that nobody is
NOT_ROOT = os.geteuid() != 0


@pytest.fixture
def root(tmp_path: Path) -> Root:
    path = tmp_path / "root"
    path.mkdir(mode=0o700)
    return Root(str(path), 8 * MIB)


@pytest.fixture
def shed(root: Root) -> Shed:
    return Shed((root,))


def names(root: Root, kind: str = "") -> list[str]:
    return sorted(
        name for name in os.listdir(root.path) if name.startswith(kind) and name[:2] != OWNER
    )


def given(root: Root, data: bytes, writer: Parcels | None = None) -> bytes:
    writer = writer or Parcels((root,))
    name = writer.new_name()
    assert writer.write(name, [data])
    return name


# --- one parcel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 70 * KIB, 3 * MIB])
def test_a_parcel_goes_from_one_process_to_the_next(root: Root, shed: Shed, size: int) -> None:
    data = os.urandom(size)
    name = given(root, data)
    path = shed.claim(name, size)
    assert path is not None
    assert os.stat(path).st_mode & 0o077 == 0
    assert bytes(parcels.mapped(path)) == data
    opened = Parcels((root,)).open(name, size)
    assert opened is not None
    assert bytes(opened) == data


@pytest.mark.parametrize("size", [70 * KIB, 3 * MIB])
def test_what_a_reader_changes_stays_with_it(root: Root, shed: Shed, size: int) -> None:
    name = given(root, bytes(size))
    path = shed.claim(name, size)
    assert path is not None
    mine, yours = parcels.mapped(path), parcels.mapped(path)
    memoryview(mine)[:4] = b"mine"
    assert bytes(yours[:4]) == bytes(4)
    assert Path(path).read_bytes() == bytes(size)


def test_names_are_no_digests_and_never_come_twice(root: Root) -> None:
    one, other = Parcels((root,)), Parcels((root,))
    made = [writer.new_name() for writer in (one, other) for _ in range(100)]
    assert len(set(made)) == 200
    assert all(parcels.is_name(name) and len(name) == payload.DIGEST_BYTES for name in made)
    assert not parcels.is_name(payload.digest_of(b"x"))


def test_an_array_is_used_in_place_and_can_be_written_to(root: Root, shed: Shed) -> None:
    segments = payload.encode(np.arange(COUNT, dtype=np.int64))
    size = payload.total_bytes(segments)
    writer = Parcels((root,))
    name = writer.new_name()
    assert writer.write(name, segments)
    path = shed.claim(name, size)
    assert path is not None
    opened = writer.open(name, size)
    assert opened is not None
    array = payload.decode(opened)
    assert not array.flags.owndata
    array[0] = 7
    assert array[0] == 7
    assert int(array.sum()) == 7 + (COUNT - 1) * COUNT // 2


# --- bad input ------------------------------------------------------------------------------------


def test_another_size_than_was_said_is_refused_and_removed(root: Root, shed: Shed) -> None:
    name = given(root, bytes(1000))
    os.truncate(os.path.join(root.path, HANDED + name.hex()), 999)
    assert shed.claim(name, 1000) is None
    assert names(root) == []


def test_what_is_no_plain_file_is_refused(root: Root, shed: Shed, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1000))
    name = Parcels((root,)).new_name()
    path = os.path.join(root.path, HANDED + name.hex())
    for make in (
        lambda: os.symlink(secret, path),
        lambda: os.link(secret, path),
        lambda: os.mkfifo(path),
        lambda: os.mkdir(path),
    ):
        make()
        assert shed.claim(name, 1000) is None
    assert secret.read_bytes() == bytes(1000)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_plain_file_is_not_opened(root: Root, make: object) -> None:
    reader = Parcels((root,))
    name = reader.new_name()
    make(os.path.join(root.path, KEPT + name.hex()))  # type: ignore[operator]
    assert reader.open(name, 1000) is None


def test_a_file_that_was_cut_is_not_opened(root: Root, shed: Shed) -> None:
    name = given(root, bytes(2 * MIB))
    path = shed.claim(name, 2 * MIB)
    assert path is not None
    os.truncate(path, MIB)
    assert Parcels((root,)).open(name, 2 * MIB) is None


@pytest.mark.skipif(NOT_ROOT, reason="only root may give files away")
def test_what_belongs_to_somebody_else_is_refused(root: Root, shed: Shed) -> None:
    handed, kept = given(root, bytes(1000)), given(root, bytes(1000))
    os.chown(os.path.join(root.path, HANDED + handed.hex()), STRANGER, STRANGER)
    assert shed.claim(handed, 1000) is None
    path = shed.claim(kept, 1000)
    assert path is not None
    os.chown(path, STRANGER, STRANGER)
    assert Parcels((root,)).open(kept, 1000) is None


# --- the guide ------------------------------------------------------------------------------------


def test_without_a_guide_there_are_no_parcels(tmp_path: Path) -> None:
    assert parcels.read_guide(tmp_path) == ()
    (tmp_path / GUIDE).write_text("[{")
    assert parcels.read_guide(tmp_path) == ()
    (tmp_path / GUIDE).write_text('[{"path": "/no/such", "limit_bytes": 1, "memory": true}]')
    assert parcels.read_guide(tmp_path) == ()


def guided(tmp_path: Path) -> tuple[Shed, Path]:
    for part in ("objects", "run"):
        (tmp_path / part).mkdir(mode=0o700)
    return Shed.made(tmp_path / "objects", tmp_path / "run", 64 * MIB), tmp_path / "run"


def test_a_guide_leads_to_the_directories_and_goes_with_the_daemon(tmp_path: Path) -> None:
    shed, run = guided(tmp_path)
    roots = parcels.read_guide(run)
    assert roots == shed.roots == parcels.read_guide(tmp_path / "objects")
    assert any(not one.memory for one in roots)
    shed.close()
    assert parcels.read_guide(run) == ()
    assert not any(os.path.exists(one.path) for one in roots if one.memory)


def test_a_directory_that_others_can_enter_is_not_used(tmp_path: Path) -> None:
    shed, run = guided(tmp_path)
    for one in shed.roots:
        os.chmod(one.path, 0o750)
    assert parcels.read_guide(run) == ()
    shed.close()


@pytest.mark.skipif(NOT_ROOT, reason="only root may give files away")
def test_a_guide_of_somebody_else_is_not_followed(tmp_path: Path) -> None:
    shed, run = guided(tmp_path)
    os.chown(run / GUIDE, STRANGER, STRANGER)
    assert parcels.read_guide(run) == ()
    os.chown(run / GUIDE, 0, 0)
    os.chmod(run / GUIDE, 0o622)
    assert parcels.read_guide(run) == ()
    shed.close()


def test_a_place_that_somebody_else_took_first_is_left_to_him(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "private", lambda path: "shm" not in path)
    shed, _ = guided(tmp_path)
    assert [one.memory for one in shed.roots] == [False]
    shed.close()


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "shm"
    place.mkdir()
    monkeypatch.setattr(sheds, "SHARED_MEMORY", place)
    monkeypatch.setattr(sheds, "_kind_of", lambda _: "tmpfs")
    return place


def test_memory_of_a_daemon_that_was_killed_is_given_back(memory: Path, tmp_path: Path) -> None:
    left = memory / f"blackroad-{os.geteuid()}-0123456789abcdef"
    left.mkdir(mode=0o700)
    (left / f"{KEPT}00").write_bytes(bytes(1000))
    foreign = memory / f"blackroad-{os.geteuid()}-open"
    foreign.mkdir(mode=0o755)
    shed, _ = guided(tmp_path)
    assert not left.exists()
    assert foreign.exists()
    living = Path(shed.roots[0].path)
    assert living.parent == memory
    (tmp_path / "second").mkdir()
    second, _ = guided(tmp_path / "second")
    assert living.exists(), "its daemon lives"
    second.close()
    shed.close()


# --- room -----------------------------------------------------------------------------------------


def test_the_limit_holds_for_all_writers_together(root: Root, shed: Shed) -> None:
    one, other = Parcels((root,)), Parcels((root,))
    for writer in (one, other):
        assert writer.write(writer.new_name(), [bytes(3 * MIB)])
    assert not one.write(one.new_name(), [bytes(3 * MIB)])
    assert len(names(root)) == 2
    assert not other.write(other.new_name(), [bytes(9 * MIB)])


def test_what_lasts_does_not_go_to_memory(tmp_path: Path, root: Root) -> None:
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    writer = Parcels((root, Root(str(disk), 8 * MIB, memory=False)))
    name = writer.new_name()
    assert writer.write(name, [b"x"], lasting=True)
    assert names(root) == []
    assert (disk / f"{HANDED}{name.hex()}").exists()


def test_a_disk_that_takes_no_more_leaves_nothing_behind(root: Root) -> None:
    writer = Parcels((root,))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * KIB, hard))
    try:
        assert not writer.write(writer.new_name(), [bytes(MIB)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert names(root) == []
    assert writer.write(writer.new_name(), [bytes(MIB)])


def test_many_values_do_not_take_many_descriptors(
    root: Root, shed: Shed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "MAPPINGS_MAX", 3)
    monkeypatch.setattr(parcels, "MAP_BYTES_MIN", 1)
    kept = []
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        name = given(root, bytes([number]) * 1000)
        path = shed.claim(name, 1000)
        assert path is not None
        kept.append(parcels.mapped(path))
    assert [bytes(one[:1])[0] for one in kept] == list(range(20))
    # Each writer above left the one with which it says that it lives.
    assert len(os.listdir("/proc/self/fd")) <= before + 20 + 3


# --- used again -----------------------------------------------------------------------------------


def test_a_file_that_nobody_needs_is_written_to_again(root: Root, shed: Shed) -> None:
    writer = Parcels((root,))
    path = shed.claim(given(root, b"a" * MIB, writer), MIB)
    assert path is not None
    inode = os.stat(path).st_ino
    shed.free(path)
    size = MIB - 5
    again = shed.claim(given(root, b"b" * size, writer), size)
    assert again is not None
    assert os.stat(again).st_ino == inode
    assert Path(again).read_bytes() == b"b" * size


def test_a_file_that_is_still_mapped_is_not_written_to(root: Root, shed: Shed) -> None:
    writer = Parcels((root,))
    path = shed.claim(given(root, b"a" * (2 * MIB), writer), 2 * MIB)
    assert path is not None
    reader = parcels.mapped(path)
    shed.free(path)
    second = shed.claim(given(root, b"b" * (2 * MIB), writer), 2 * MIB)
    assert second is not None
    assert reader[:] == b"a" * (2 * MIB)
    shed.free(second)
    del reader
    assert len(names(root, SPARE)) == 2
    given(root, b"c" * (2 * MIB), writer)
    assert len(names(root, SPARE)) == 1


def test_a_spare_file_is_what_it_is_and_not_what_its_name_says(root: Root, shed: Shed) -> None:
    """A name that tells no size is passed over; one that tells a wrong one does no harm."""
    odd = [SPARE, f"{SPARE}zz", parcels.spare_name(MIB, 1), parcels.spare_name(MIB, 2)]
    for name, size in zip(odd, (5, 5, 3 * MIB, 10), strict=True):
        (Path(root.path) / name).write_bytes(b"x" * size)
    for letter in (b"a", b"b", b"c"):
        path = shed.claim(given(root, letter * MIB), MIB)
        assert path is not None
        assert Path(path).read_bytes() == letter * MIB
    assert sorted(names(root, SPARE)) == sorted(odd[:2])


def test_a_small_value_does_not_cut_a_large_file(root: Root, shed: Shed) -> None:
    path = shed.claim(given(root, bytes(4 * MIB)), 4 * MIB)
    assert path is not None
    shed.free(path)
    given(root, bytes(MIB))
    assert len(names(root, SPARE)) == 1


def test_spare_files_make_room(root: Root, shed: Shed) -> None:
    path = shed.claim(given(root, bytes(6 * MIB)), 6 * MIB)
    assert path is not None
    shed.free(path)
    given(root, bytes(MIB))
    given(root, bytes(MIB))
    given(root, bytes(2 * MIB))
    assert names(root, SPARE) == [], "it had to go"


def test_a_reader_that_comes_too_late_gets_nothing(root: Root, shed: Shed) -> None:
    name = given(root, b"a" * MIB)
    path = shed.claim(name, MIB)
    assert path is not None
    shed.free(path)
    assert Parcels((root,)).open(name, MIB) is None
    with pytest.raises(FileNotFoundError):
        parcels.mapped(path)


def test_spare_memory_is_given_back_after_a_while(root: Root, shed: Shed) -> None:
    path = shed.claim(given(root, bytes(MIB)), MIB)
    assert path is not None
    shed.free(path)
    shed.tidy(1)
    assert len(names(root, SPARE)) == 1
    shed.tidy(1 + SPARE_MS)
    assert names(root) == []


# --- the dead -------------------------------------------------------------------------------------

_HALF_WAY = """
import os, sys
from blackroad.bus import parcels
root = parcels.Root(sys.argv[1], 1 << 30)
writer = parcels.Parcels((root,))
assert writer.write(writer.new_name(), [bytes(1000)])
fd, path = writer.blank(5000)
os.write(fd, bytes(2500))
print("half way", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_program_that_outlives_its_daemon_is_seen_by_the_next_one(
    root: Root, shed: Shed, how: str
) -> None:
    writer = Parcels((root,))
    assert writer.write(writer.new_name(), [bytes(1000)])
    if how == "ended":
        shed.close()
        os.mkdir(root.path, 0o700)
    next_one = Shed((root,))
    assert names(root) == []
    name = writer.new_name()
    assert writer.write(name, [bytes(1000)])
    for now_ms in range(1, 3 * ORPHAN_MS, ORPHAN_MS // 4):
        next_one.tidy(now_ms)
    assert next_one.claim(name, 1000), "it lives"
    writer.close()


def test_what_a_killed_program_left_is_removed_and_not_before(root: Root, shed: Shed) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", _HALF_WAY, root.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"half way\n"
    assert [name[:2] for name in names(root)] == [HANDED, WRITING]
    for now_ms in range(1, 3 * ORPHAN_MS, ORPHAN_MS // 4):
        shed.tidy(now_ms)
    assert len(names(root)) == 2, "it lives"
    program.kill()
    program.communicate(timeout=WAIT_S)
    shed.tidy(3 * ORPHAN_MS + TIDY_MS)
    assert os.listdir(root.path) == [] or names(root) == []
    shed.tidy(4 * ORPHAN_MS)
    assert os.listdir(root.path) == []


def test_an_earlier_life_leaves_nothing(root: Root) -> None:
    given(root, bytes(1000))
    Shed((root,))
    assert os.listdir(root.path) == []


# --- the store ------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    shed, _ = guided(tmp_path)
    made = ObjectStore(tmp_path / "objects", 16 * MIB, shed=shed)
    yield made
    made.close()


def program(tmp_path: Path) -> Outgoing:
    return Outgoing(f"ipc://{tmp_path}/run/client.sock")


def test_a_value_is_claimed_without_being_read(tmp_path: Path, store: ObjectStore) -> None:
    outgoing = program(tmp_path)
    ref = outgoing.pack([b"v" * MIB])
    assert parcels.is_name(ref.digest)
    assert store.claim(ref.digest, ref.size)
    assert store.used_bytes == MIB
    assert store.read(ref.digest, MIB - 2, 10) == b"vv"
    opened = outgoing.opened(ref)
    assert opened is not None
    assert bytes(opened) == b"v" * MIB
    store.pin(ref.digest, "task")
    store.unpin(ref.digest, "task")
    assert not store.has(ref.digest), "nobody can ask for it any more"
    assert store.used_bytes == 0
    assert outgoing.opened(ref) is None


def test_what_was_not_claimed_goes_in_pieces_or_is_taken_back(
    tmp_path: Path, store: ObjectStore
) -> None:
    outgoing = program(tmp_path)
    data = os.urandom(MIB)
    ref = outgoing.pack([data])
    pieces = [one for one in outgoing.chunks(m.Want(ref.digest, 0, 8)) if isinstance(one, m.Chunk)]
    assert b"".join(one.data for one in pieces) == data
    outgoing.release(ref.digest)
    assert not store.claim(ref.digest, ref.size)
    assert list(outgoing.chunks(m.Want(ref.digest, 0, 1))) == [m.Gone(ref.digest)]


def test_a_lasting_value_is_named_by_its_content_and_kept(
    tmp_path: Path, store: ObjectStore
) -> None:
    outgoing = program(tmp_path)
    ref = outgoing.pack([b"l" * MIB], lasting=True)
    assert ref.digest == payload.digest_of(b"l" * MIB)
    assert store.claim(ref.digest, ref.size)
    store.flush(ref.digest)
    store.close()
    later = ObjectStore(tmp_path / "objects", 16 * MIB, {ref.digest})
    assert later.read(ref.digest, 0, 5) == b"lllll"


def test_without_a_daemon_on_this_machine_values_are_kept_at_home() -> None:
    for endpoint in ("tcp://127.0.0.1:1", "ipc:///no/such/place/client.sock"):
        outgoing = Outgoing(endpoint)
        ref = outgoing.pack([b"v" * MIB])
        assert ref.digest == payload.digest_of(b"v" * MIB)
        assert len(list(outgoing.chunks(m.Want(ref.digest, 0, 8)))) == 4


def test_a_parcel_above_the_limit_of_the_store_is_refused(
    tmp_path: Path, store: ObjectStore
) -> None:
    outgoing = program(tmp_path)
    first, second = outgoing.pack([bytes(9 * MIB)]), outgoing.pack([bytes(9 * MIB)])
    assert store.claim(first.digest, first.size)
    store.pin(first.digest)
    with pytest.raises(Busy):
        store.claim(second.digest, second.size)
    assert not store.has(second.digest)
    store.limit_bytes = MIB
    third = outgoing.pack([bytes(2 * MIB)])
    with pytest.raises(DiskProblem, match="larger than the store"):
        store.claim(third.digest, third.size)


def test_a_parcel_that_is_promised_to_last_gets_a_place_on_the_disk(
    tmp_path: Path, store: ObjectStore
) -> None:
    ref = program(tmp_path).pack([b"p" * MIB])
    assert store.claim(ref.digest, ref.size)
    store.flush(ref.digest)
    store.close()
    later = ObjectStore(tmp_path / "objects", 16 * MIB, {ref.digest})
    assert later.read(ref.digest, MIB - 1, 5) == b"p"


def test_a_result_that_lasts_is_given_its_digest(tmp_path: Path, store: ObjectStore) -> None:
    sealer = Sealer(store)
    ref = program(tmp_path).pack([b"r" * (5 * MIB)])
    assert store.claim(ref.digest, ref.size)
    told: list[tuple[bytes, str]] = []
    sealer.seal(ref.digest, ref.size, lambda digest, text: told.append((digest, text)))
    sealer.wait()
    sealer.read()
    assert told == [(payload.digest_of(b"r" * (5 * MIB)), "")]
    digest = told[0][0]
    assert store.has(digest)
    assert not store.has(ref.digest)
    path = store.path(digest)
    assert path is not None
    assert Path(path).read_bytes() == b"r" * (5 * MIB)


def test_a_result_without_room_to_last_says_so(tmp_path: Path, store: ObjectStore) -> None:
    sealer = Sealer(store)
    told: list[tuple[bytes, str]] = []
    sealer.seal(bytes(32), 5, lambda digest, text: told.append((digest, text)))
    assert told == [(b"", "it is not in the object store")]
    ref = program(tmp_path).pack([b"r" * (9 * MIB)])
    assert store.claim(ref.digest, ref.size)
    sealer.seal(ref.digest, ref.size, lambda digest, text: told.append((digest, text)))
    sealer.wait()
    sealer.read()
    assert told[1][0] == b""
    assert "no room" in told[1][1]


def test_threads_of_one_program_write_at_once(root: Root, shed: Shed) -> None:
    writer = Parcels((root,))
    made: list[tuple[bytes, int]] = []

    def write(number: int) -> None:
        for size in (70 * KIB, 90 * KIB, 200 * KIB):
            name = writer.new_name()
            assert writer.write(name, [bytes([number]) * size])
            made.append((name, number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(WAIT_S)
    assert len(made) == 24
    for name, number in made:
        path = os.path.join(root.path, HANDED + name.hex())
        assert set(Path(path).read_bytes()) == {number}
