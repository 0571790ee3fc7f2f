"""Who a node is, over restarts and damage; and that nobody else is it at the same time."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackroad.errors import EXIT_ENVIRONMENT, AlreadyRunning, StateDirectoryProblem
from blackroad.ids import inc_counter, node_id_from_key
from blackroad.store import identity
from blackroad.store.identity import COUNTER_FILE, IDENTITY_FILE, Life, StateDirectory

pytestmark = pytest.mark.edge


@pytest.fixture
def opened() -> Iterator[list[StateDirectory]]:
    directories: list[StateDirectory] = []
    yield directories
    for one in directories:
        one.close()


def live(path: Path) -> Life:
    """One start and stop."""
    directory = StateDirectory(path)
    directory.open()
    try:
        return directory.begin_life()
    finally:
        directory.close()


def test_a_node_stays_itself_and_its_lives_rise(tmp_path: Path) -> None:
    lives = [live(tmp_path / "state") for _ in range(4)]
    assert len({life.node for life in lives}) == 1
    assert [inc_counter(life.inc) for life in lives] == [1, 2, 3, 4]
    assert lives[0].node == node_id_from_key(lives[0].public_key)
    assert len(lives[0].public_key) == 32
    assert all(0 < life.inc < 2**63 for life in lives)


def test_two_nodes_are_two(tmp_path: Path) -> None:
    assert live(tmp_path / "a").node != live(tmp_path / "b").node


def test_nobody_else_can_read_the_key(tmp_path: Path) -> None:
    live(tmp_path / "state")
    for name in (IDENTITY_FILE, COUNTER_FILE, "lock"):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_the_counter_is_raised_before_anything_is_told(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    directory.open()
    life = directory.begin_life()
    assert (tmp_path / COUNTER_FILE).read_text() == f"{inc_counter(life.inc)}\n"
    directory.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        "5",
        '{"public_key": 5}',
        '{"public_key": "xyz"}',
        '{"public_key": ""}',
        '{"public_key": "abcd"}',
        '{"public_key": "' + "ab" * 33 + '"}',
        "\xff\xfe",
    ],
)
def test_a_damaged_identity_is_never_replaced(tmp_path: Path, text: str) -> None:
    live(tmp_path)
    path = tmp_path / IDENTITY_FILE
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(StateDirectoryProblem) as caught:
        live(tmp_path)
    assert str(path) in caught.value.message
    assert "backup" in caught.value.hint
    assert path.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize(
    "text", ["", "one", "-4", "0x10", "1.5", str(2**31 - 1), str(10**30), "-1"]
)
def test_a_damaged_counter_is_never_reset(tmp_path: Path, text: str) -> None:
    live(tmp_path)
    path = tmp_path / COUNTER_FILE
    path.write_text(text)
    with pytest.raises(StateDirectoryProblem) as caught:
        live(tmp_path)
    assert str(path) in caught.value.message
    assert "higher" in caught.value.hint
    assert path.read_text() == text


def test_a_lost_counter_of_a_known_node_is_no_new_beginning(tmp_path: Path) -> None:
    live(tmp_path)
    (tmp_path / COUNTER_FILE).unlink()
    with pytest.raises(StateDirectoryProblem) as caught:
        live(tmp_path)
    assert COUNTER_FILE in caught.value.message


def test_a_counter_raised_by_hand_is_taken(tmp_path: Path) -> None:
    live(tmp_path)
    (tmp_path / COUNTER_FILE).write_text("100000\n")
    assert inc_counter(live(tmp_path).inc) == 100_001


def test_a_life_begins_above_what_others_remember(tmp_path: Path) -> None:
    """R-life-2; and it never goes back, whatever they remember."""
    directory = StateDirectory(tmp_path)
    directory.open()
    lives = [directory.begin_life(above) for above in (0, 7, 0, 3)]
    directory.close()
    assert [inc_counter(life.inc) for life in lives] == [1, 8, 9, 10]
    assert [life.first for life in lives] == [True, False, False, False]
    assert len({life.inc & 0xFFFFFFFF for life in lives}) == 4
    assert inc_counter(live(tmp_path).inc) == 11


def test_what_an_interrupted_write_left_does_no_harm(tmp_path: Path) -> None:
    before = live(tmp_path)
    for name in (IDENTITY_FILE, COUNTER_FILE):
        (tmp_path / f"{name}.new").write_text("half of someth")
    after = live(tmp_path)
    assert after.node == before.node
    assert inc_counter(after.inc) == inc_counter(before.inc) + 1


def test_the_second_daemon_on_a_directory_is_told_who_has_it(
    tmp_path: Path, opened: list[StateDirectory]
) -> None:
    opened += [StateDirectory(tmp_path), StateDirectory(tmp_path)]
    opened[0].open()
    with pytest.raises(AlreadyRunning) as caught:
        opened[1].open()
    assert f"pid {os.getpid()}" in caught.value.message
    assert "state_dir" in caught.value.hint
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    opened[0].close()
    opened[1].open()


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from blackroad.store.identity import StateDirectory\n"
        "one = StateDirectory(Path(sys.argv[1]))\n"
        "one.open()\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(AlreadyRunning) as caught:
            live(tmp_path)
        assert str(holder.pid) in caught.value.message
        holder.kill()
        holder.wait()
        assert inc_counter(live(tmp_path).inc) == 1


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("not a directory")
    with pytest.raises(StateDirectoryProblem) as caught:
        live(path)
    assert str(path) in caught.value.message
    assert "state_dir" in caught.value.hint
    with pytest.raises(StateDirectoryProblem):
        live(path / "below")


@pytest.mark.parametrize("name", ["lock", IDENTITY_FILE, COUNTER_FILE])
def test_a_file_that_is_a_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(StateDirectoryProblem):
        live(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_said_so_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / COUNTER_FILE
    path.write_text("7\n")
    real = os.open

    def full(name: os.PathLike[str] | str, flags: int, mode: int = 0o777) -> int:
        return real("/dev/full" if str(name).endswith(".new") else name, flags & ~os.O_TRUNC, mode)

    monkeypatch.setattr(identity.os, "open", full)
    with pytest.raises(StateDirectoryProblem) as caught:
        identity.write_flushed(path, b"8\n")
    assert "No space left" in caught.value.message
    assert "full" in caught.value.hint
    assert path.read_text() == "7\n"


def test_a_full_disk_at_the_lock_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def full(name: os.PathLike[str] | str, flags: int, mode: int = 0o777) -> int:
        return real("/dev/full" if str(name).endswith("lock") else name, flags, mode)

    monkeypatch.setattr(identity.os, "open", full)
    with pytest.raises(StateDirectoryProblem) as caught:
        live(tmp_path)
    assert "lock" in caught.value.message


def test_the_secret_belongs_to_the_public_key(tmp_path: Path) -> None:
    import zmq
    from zmq.utils import z85

    life = live(tmp_path)
    stored = json.loads((tmp_path / IDENTITY_FILE).read_text())
    secret = z85.encode(bytes.fromhex(stored["secret_key"]))
    assert z85.decode(zmq.curve_public(secret)) == life.public_key
