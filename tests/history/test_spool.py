"""The spool: what goes in comes out in order, within its bounds, whatever is cut off."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from blackroad.history import spool as spooling
from blackroad.history.records import MAGIC, Record, counts, frame, unframe
from blackroad.history.spool import Spool, reading, segments
from tests.history.words import NODE_TEXT, counted, finished, happened, known, sampled, spool, write
from tests.history.words import tried as tried_


def read(directory: Path) -> list[Record]:
    found: list[Record] = []
    for one in segments(directory):
        data, at = one.path.read_bytes(), len(MAGIC)
        while (part := unframe(data, at)) is not None:
            found += part.records
            at = part.end
    return found


def test_every_kind_of_record_comes_back_as_it_was() -> None:
    given: list[Record] = [finished(1), counted(3), happened(4), sampled(5), known(), tried_(6)]
    data = frame(given)
    back = unframe(data, 0)
    assert back is not None
    assert back.records == given
    assert back.end == len(data)


def test_a_frame_that_was_cut_off_or_changed_anywhere_is_no_frame() -> None:
    data = frame([finished(1), happened(2)])
    for length in range(len(data)):
        assert unframe(data[:length], 0) is None
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 0x55
        assert unframe(bytes(bad), 0) is None


def test_records_come_out_in_order_over_segments_and_lives(tmp_path: Path) -> None:
    given: list[Record] = []
    for life in (9, 10):
        made = spool(tmp_path / "spool", life, bytes_max=64 * 1024)
        for number in range(300):
            given.append(happened(life * 1000 + number))
            write(made, given[-1])
        made.close()
    assert len(segments(tmp_path / "spool")) > 4
    assert read(tmp_path / "spool") == given


def test_beyond_its_cap_the_oldest_go_and_every_one_is_counted(tmp_path: Path) -> None:
    cap = 64 * 1024
    made = spool(tmp_path / "spool", bytes_max=cap)
    for number in range(3000):
        write(made, happened(number))
        assert made.bytes() <= cap + 1024
    made.close()
    left = read(tmp_path / "spool")
    assert made.lost == 3000 - len(left) > 1000
    assert left == [happened(number) for number in range(3000 - len(left), 3000)]
    assert "full" in made.why_lost
    assert sum(counts(one.path.read_bytes()) for one in segments(made.directory)) == len(left)


def test_a_full_disk_costs_records_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spool(tmp_path / "spool")
    full = SimpleNamespace(f_bavail=10, f_frsize=4096)
    monkeypatch.setattr(spooling.os, "statvfs", lambda _: full)
    write(made, happened(1), happened(2))
    assert (made.lost, made.problem) == (2, "the disk is nearly full")
    monkeypatch.undo()
    write(made, happened(3))
    assert (made.lost, made.problem) == (2, "")
    assert read(made.directory) == [happened(3)]


def test_half_a_write_harms_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spool(tmp_path / "spool")
    write(made, happened(1))
    real = os.write
    monkeypatch.setattr(spooling.os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
    write(made, happened(2))
    monkeypatch.undo()
    write(made, happened(3))
    assert read(made.directory) == [happened(1), happened(3)]
    assert made.lost == 1


def test_more_than_can_be_kept_in_a_moment_is_counted(tmp_path: Path) -> None:
    made = spool(tmp_path / "spool")
    for number in range(spooling.PENDING_MAX + 5):
        made.add(counted(number))
    made.flush()
    assert made.lost == 5
    assert len(read(made.directory)) == spooling.PENDING_MAX


def test_one_reader_at_a_time(tmp_path: Path) -> None:
    with reading(tmp_path / "spool") as first:
        assert first
        with reading(tmp_path / "spool") as second:
            assert not second
    with reading(tmp_path / "spool") as third:
        assert third


def test_it_is_for_this_user_alone(tmp_path: Path) -> None:
    made = spool(tmp_path / "history" / "spool")
    write(made, happened(1))
    for path in (tmp_path / "history", made.directory, segments(made.directory)[0].path):
        assert path.stat().st_mode & 0o077 == 0


def test_other_files_are_no_segments(tmp_path: Path) -> None:
    made = Spool(tmp_path / "spool", NODE_TEXT, 1)
    write(made, happened(1))
    (made.directory / "x.spool").write_bytes(b"")
    (made.directory / "reader.lock").write_bytes(b"")
    assert len(segments(made.directory)) == 1
    assert segments(tmp_path / "nowhere") == []


def test_what_an_earlier_identity_left_counts_as_older(tmp_path: Path) -> None:
    earlier = spool(tmp_path / "spool", 57)
    write(earlier, happened(1))
    earlier.close()
    later = Spool(tmp_path / "spool", "b" * 26, 1)
    write(later, happened(2))
    # Whoever reads takes the last one for the one that is written, and all others away.
    assert segments(tmp_path / "spool")[-1].path.name.startswith("b" * 26)
    assert read(tmp_path / "spool") == [happened(1), happened(2)]


def test_where_its_directory_cannot_be_made_the_daemon_goes_on(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("in the way")
    made = spool(tmp_path / "history" / "spool")
    made.add(happened(1))
    assert not made.flush()
    assert (made.lost, made.bytes()) == (1, 0)
    assert "cannot be written" in made.why_lost
    (tmp_path / "history").unlink()
    made.add(happened(2))
    assert made.flush()
    assert read(tmp_path / "history" / "spool") == [happened(2)]
