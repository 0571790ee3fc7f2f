"""The file of remembered peers: bounded, atomic, and silent while nothing changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blackroad.store.peers import BYTES_MAX, FILE, REMEMBERED_MAX, Peers, Remembered

pytestmark = pytest.mark.edge


def peer(number: int, inc: int = 1) -> Remembered:
    return Remembered(number.to_bytes(16, "big"), inc, 7 * number, (f"tcp://10.0.0.1:{number}",))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    one = Peers(tmp_path)
    assert one.load(), "a first start has no file, which is no fault"
    one.learn(peer(1))
    one.learn(peer(2))
    one.learn(peer(1, inc=9))
    assert one.write()
    again = Peers(tmp_path)
    assert again.load()
    assert list(again.known.values()) == [peer(2), peer(1, inc=9)]


def test_the_same_again_is_not_written(tmp_path: Path) -> None:
    one = Peers(tmp_path)
    one.learn(peer(1))
    one.write()
    again = Peers(tmp_path)
    again.load()
    again.learn(peer(1))
    before = os.stat(tmp_path / FILE)
    assert again.write()
    after = os.stat(tmp_path / FILE)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_oldest_go_first(tmp_path: Path) -> None:
    one = Peers(tmp_path)
    for number in range(REMEMBERED_MAX + 3):
        one.learn(peer(number))
    assert len(one.known) == REMEMBERED_MAX
    assert peer(2).node not in one.known
    assert peer(3).node in one.known


def test_a_disk_that_refuses_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    one = Peers(tmp_path)
    one.learn(peer(1))
    assert one.write()
    before = (tmp_path / FILE).read_bytes()
    (tmp_path / "peers.new").mkdir()
    one.learn(peer(2))
    assert not one.write()
    assert (tmp_path / FILE).read_bytes() == before
    (tmp_path / "peers.new").rmdir()
    assert one.write(), "and it is tried again"


def test_an_endless_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"[" * (BYTES_MAX + 1))
    one = Peers(tmp_path)
    assert not one.load()
    assert one.known == {}
