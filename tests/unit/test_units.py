"""Sizes, shares and durations: exact, bounded, and refused with words that help."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackroad.errors import UnitError
from blackroad.units import (
    BYTES_MAX,
    CPU_UNITS_MAX,
    MS_MAX,
    format_bytes,
    format_cpu_units,
    format_ms,
    parse_bytes,
    parse_cpu_units,
    parse_ms,
)


@pytest.mark.parametrize(
    ("given_text", "size"),
    [
        (2048, 2048),
        ("2048", 2048),
        ("0", 0),
        ("1B", 1),
        ("2GiB", 2 * 2**30),
        ("2 gib", 2 * 2**30),
        ("900MB", 900_000_000),
        (" 1.5 GiB ", 3 * 2**29),
        (".5kB", 500),
        ("0.1kB", 100),
        ("1.0001kB", 1001),
        ("0.3GB", 300_000_000),
        (BYTES_MAX, BYTES_MAX),
    ],
)
def test_sizes(given_text: object, size: int) -> None:
    assert parse_bytes(given_text) == size


@pytest.mark.parametrize("given_text", [BYTES_MAX + 1, "8PiB", "99999 PiB", 1 << 2000])
def test_sizes_have_an_upper_bound(given_text: object) -> None:
    with pytest.raises(UnitError, match="more than any machine has"):
        parse_bytes(given_text)


@pytest.mark.parametrize(
    "given_text",
    ["", "GiB", "two GiB", "-1", -1, "1e9", "1_000", "1,5GB", "5 GiBs", "٣GB", 1.5, True, None,
     b"1", "nan", "1" * 100],
)  # fmt: skip
def test_sizes_refused(given_text: object) -> None:
    with pytest.raises(UnitError) as caught:
        parse_bytes(given_text, "memory")
    assert caught.value.message.startswith("memory: ")
    assert "2GiB" in caught.value.hint


def test_a_lone_letter_is_ambiguous() -> None:
    with pytest.raises(UnitError, match="powers of 1000 or of 1024") as caught:
        parse_bytes("2G")
    assert caught.value.hint == "write GB or GiB instead of G"


@pytest.mark.parametrize(
    ("given_text", "ms"),
    [
        (10, 10_000),
        ("10", 10_000),
        (0.25, 250),
        (0.1, 100),
        ("250ms", 250),
        ("1.5s", 1500),
        ("10m", 600_000),
        ("10 min", 600_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        ("1h30m", 5_400_000),
        ("1 d 2 h 3 min 4 s 5 ms", 93_784_005),
        ("0.1ms", 1),
        (Decimal("0.0001"), 1),
        (Fraction(1, 3), 334),
        (timedelta(microseconds=1500), 2),
        (timedelta(days=1), 86_400_000),
        (0, 0),
    ],
)
def test_durations(given_text: object, ms: int) -> None:
    assert parse_ms(given_text) == ms


@pytest.mark.parametrize(
    "given_text",
    ["", "m", "10 minutes!", "-1s", -0.5, "30m1h", "1h1h", "1h 30", "500us", float("nan"),
     float("inf"), Decimal("NaN"), Decimal("1e999999"), True, None, "99999d", 1 << 2000,
     timedelta(days=-1)],
)  # fmt: skip
def test_durations_refused(given_text: object) -> None:
    with pytest.raises(UnitError) as caught:
        parse_ms(given_text, "timeout")
    assert caught.value.message.startswith("timeout: ")
    assert "1h30m" in caught.value.hint


@pytest.mark.parametrize(
    ("given_text", "units"),
    [(1, 10_000), (0.5, 5000), ("0.5", 5000), (0.1, 1000), (1 / 3, 3334), ("0.00001", 1),
     (Fraction(1, 3), 3334), (4096, CPU_UNITS_MAX)],
)  # fmt: skip
def test_cores(given_text: object, units: int) -> None:
    assert parse_cpu_units(given_text) == units


@pytest.mark.parametrize("given_text", ["", "all", -1, "50%", 4097, True, None, float("inf")])
def test_cores_refused(given_text: object) -> None:
    with pytest.raises(UnitError, match=r"^cpu: "):
        parse_cpu_units(given_text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"),
     (5000, "5 kB"), (900_000_000, "900 MB"), (2**31, "2 GiB"), (2**20 - 1, "1 MiB"),
     (123_456_789, "117.7 MiB"), (-2048, "-2 KiB"), (BYTES_MAX, "8 PiB")],
)  # fmt: skip
def test_written_sizes(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 ms"), (999, "999 ms"), (1000, "1 s"), (1500, "1.5 s"), (59_999, "59.9 s"),
     (60_000, "1 min"), (605_000, "10 min 5 s"), (7_500_000, "2 h 5 min"),
     (90_000_000, "1 d 1 h"), (-250, "-250 ms"), (MS_MAX, "3650 d")],
)  # fmt: skip
def test_written_durations(ms: int, text: str) -> None:
    assert format_ms(ms) == text


def test_written_cores() -> None:
    assert [format_cpu_units(units) for units in (10_000, 5000, 1, 22_500)] == [
        "1", "0.5", "0.0001", "2.25",
    ]  # fmt: skip


@given(st.integers(0, BYTES_MAX))
def test_a_written_size_is_within_a_twentieth_of_its_unit(size: int) -> None:
    text = format_bytes(size)
    unit = parse_bytes("1" + text.split()[1])
    number = Fraction(text.split()[0])
    assert abs(number * unit - size) * 20 <= unit
    assert len(text) <= 10


@given(st.integers(0, MS_MAX))
def test_a_written_duration_reads_as_no_more_than_it_was(ms: int) -> None:
    read = parse_ms(format_ms(ms))
    assert read <= ms
    assert (ms - read) * 10 <= ms


@given(st.integers(1, CPU_UNITS_MAX))
def test_written_cores_read_back(units: int) -> None:
    assert parse_cpu_units(format_cpu_units(units)) == units


@given(st.floats(0, 4096))
def test_a_share_is_never_rounded_down(cores: float) -> None:
    units = parse_cpu_units(cores)
    assert Fraction(units, 10_000) >= Fraction(repr(cores))
    assert Fraction(units - 1, 10_000) < Fraction(repr(cores))


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_bytes, parse_ms, parse_cpu_units):
        hint, number = "", -1
        try:
            number = parse(text)
        except UnitError as error:
            hint = error.hint
        assert hint or number >= 0


def test_an_integer_too_long_to_print_is_still_named() -> None:
    with pytest.raises(UnitError, match="an integer of 20001 bits"):
        parse_bytes(1 << 20_000)
