"""`collatz` against trajectories walked one step at a time in Python's integers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackroad.kernels import collatz, registry
from blackroad.kernels.backend import Backend

KERNEL = registry.get("collatz")
LAST = 2**64 - 1
FIRST_TO_LEAVE_64_BITS = 12_327_829_503
HIGHEST_THAT_FITS = 8_528_817_511
ODD_WHOSE_NEXT_IS_2_64 = (2**64 - 1) // 3


def walked(number: int) -> tuple[int, int]:
    steps, peak = 0, number
    while number != 1:
        number = 3 * number + 1 if number % 2 else number // 2
        steps, peak = steps + 1, max(peak, number)
    return steps, peak


def expected(start: int, count: int, max_records: int = 256) -> dict[str, Any]:
    rows = [(number, *walked(number)) for number in range(start, start + count)]
    longest = max(rows, key=lambda row: row[1])
    highest = max(rows, key=lambda row: row[2])
    records: list[dict[str, int]] = []
    for number, steps, _ in rows:
        if not records or steps > records[-1]["steps"]:
            records.append({"number": number, "steps": steps})
    overflows = [number for number, _, peak in rows if peak > LAST]
    return {
        "numbers": count,
        "total_steps": sum(row[1] for row in rows),
        "most_steps": {"number": longest[0], "steps": longest[1]},
        "highest_peak": {
            "number": highest[0],
            "peak": highest[2] if highest[2] <= LAST else str(highest[2]),
        },
        "records": records[:max_records],
        "records_truncated": len(records) > max_records,
        "overflow": {
            "count": len(overflows),
            "numbers": overflows[:16],
            "truncated": len(overflows) > 16,
        },
    }


RANGES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (1, 997),
    (27, 1),
    (2**16 - 3, 7),
    (65_000, 1_009),
    (26_623, 1),
    (159_487, 1),
    (2**32 - 5, 11),
    (319_804_831, 1),
    (HIGHEST_THAT_FITS - 1, 3),
    (FIRST_TO_LEAVE_64_BITS - 2, 5),
    (2**57 - 50, 101),
    (10**18, 211),
    (ODD_WHOSE_NEXT_IS_2_64 - 2, 5),
    (2**63 - 31, 64),
    (LAST - 100, 101),
    (LAST, 1),
]


@pytest.mark.parametrize(("start", "count"), RANGES)
def test_range(backend: Backend, start: int, count: int) -> None:
    assert KERNEL.run({"start": start, "count": count}, backend) == expected(start, count)


@pytest.mark.parametrize(
    ("number", "steps", "peak"),
    [
        (1, 0, 1),
        (27, 111, 9_232),
        (26_623, 307, 106_358_020),
        (159_487, 183, 17_202_377_752),
        (77_031, 350, 21_933_016),
        (837_799, 524, 2_974_984_576),
        (HIGHEST_THAT_FITS, None, 18_144_594_937_356_598_024),
        (FIRST_TO_LEAVE_64_BITS, None, "20722398914405051728"),
    ],
)
def test_published_trajectories(
    backend: Backend, number: int, steps: int | None, peak: object
) -> None:
    result: Any = KERNEL.run({"start": number, "count": 1}, backend)
    assert result["highest_peak"] == {"number": number, "peak": peak}
    assert steps is None or result["most_steps"] == {"number": number, "steps": steps}
    assert result["overflow"]["count"] == isinstance(peak, str)


def test_first_million(backend: Backend) -> None:
    below: Any = KERNEL.run({"start": 1, "count": 99_999}, backend)
    assert below["most_steps"] == {"number": 77_031, "steps": 350}
    result: Any = KERNEL.run({"start": 1, "count": 999_999}, backend)
    assert result["total_steps"] == 131_434_272
    assert result["most_steps"] == {"number": 837_799, "steps": 524}
    assert result["highest_peak"] == {"number": 704_511, "peak": 56_991_483_520}
    assert result["overflow"] == {"count": 0, "numbers": [], "truncated": False}
    assert [row["number"] for row in result["records"][:8]] == [1, 2, 3, 6, 7, 9, 18, 25]
    assert result["records"][-1] == result["most_steps"]


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("target", [1, 2, 7, 64, 5_000])
@pytest.mark.parametrize(
    "params",
    [
        {"start": 1, "count": 1_009, "max_records": 5},
        {"start": 2**63 - 20, "count": 41},
        {"start": 97, "count": 1},
    ],
)
def test_tiles_gather_to_the_whole(backend: Backend, params: dict[str, int], target: int) -> None:
    tiles = KERNEL.pieces(params, target)
    assert 1 <= len(tiles) <= min(target, params["count"])
    results = [KERNEL.run(tile, backend) for tile in tiles]
    assert KERNEL.gather(params, tiles, results) == KERNEL.reference(params) == expected(**params)


@pytest.mark.parametrize("size", [1, 13, 1_000])
def test_chunks_join_to_the_whole(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(collatz, "NUMPY_CHUNK", size)
    params = {"start": 10**18, "count": 61}
    assert KERNEL.reference(params) == expected(**params)


def test_records_are_cut_with_a_flag() -> None:
    result: Any = KERNEL.reference({"start": 1, "count": 100, "max_records": 3})
    assert result["records"] == [
        {"number": 1, "steps": 0},
        {"number": 2, "steps": 1},
        {"number": 3, "steps": 7},
    ]
    assert result["records_truncated"] is True


@pytest.mark.parametrize("high", [collatz.LOW >> collatz.JUMP_BITS, 65, 2**40 + 1])
def test_a_jump_is_ten_shortcut_steps(high: int) -> None:
    for low in range(1 << collatz.JUMP_BITS):
        number = peak = (high << collatz.JUMP_BITS) + low
        steps = 0
        for _ in range(collatz.JUMP_BITS):
            if number % 2:
                number, steps = 3 * number + 1, steps + 1
                peak = max(peak, number)
            number, steps = number // 2, steps + 1
        scale, offset, peak_scale, peak_offset, jump_steps, _ = collatz._jump(low)
        assert (scale * high + offset, jump_steps) == (number, steps)
        assert peak_scale * high + peak_offset == peak


def test_a_jump_knows_when_it_leaves_64_bits() -> None:
    for low in range(1 << collatz.JUMP_BITS):
        scale, offset, peak_scale, peak_offset, _, most = collatz._jump(low)
        tops = [max(scale * h + offset, peak_scale * h + peak_offset) for h in (most, most + 1)]
        assert tops[0] <= LAST < tops[1]


def test_a_difference_is_named() -> None:
    params = {"start": 1, "count": 30}
    a: Any = KERNEL.reference(params)
    assert KERNEL.agrees(params, a, {**a}) is None
    found = KERNEL.agrees(params, a, {**a, "total_steps": 0})
    assert found == f"`total_steps` is {a['total_steps']} in one result and 0 in the other"
    assert "another form" in str(KERNEL.agrees(params, a, {"numbers": 30}))
    assert "another form" in str(KERNEL.agrees(params, a, None))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, LAST - 20), st.integers(1, 20), st.integers(1, 4))
def test_any_range(start: int, count: int, max_records: int) -> None:
    params = {"start": start, "count": count, "max_records": max_records}
    assert KERNEL.reference(params) == expected(**params)
