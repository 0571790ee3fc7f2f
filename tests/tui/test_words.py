"""Few columns: numbers, spans, bars; and texts of other machines that must do nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackroad.tui import words


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (1536, "1.5K"),
        (10 * 1024, "10K"),
        (8 << 30, "8.0G"),
        (1023.7 * 1024, "1.0M"),
    ],
)
def test_sizes(given_: float, shown: str) -> None:
    assert words.size(given_) == shown


@pytest.mark.parametrize(
    ("given_", "shown"), [(0, "0"), (999, "999"), (1000, "1.0k"), (12_345, "12k"), (10**7, "10M")]
)
def test_counts(given_: float, shown: str) -> None:
    assert words.count(given_) == shown


@pytest.mark.parametrize(
    ("given_", "shown"), [(0, "0"), (0.25, "0.2"), (9.9, "9.9"), (9.99, "10"), (9_812, "9.8k")]
)
def test_rates(given_: float, shown: str) -> None:
    assert words.rate(given_) == shown


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        (340, "340ms"),
        (1_250, "1.2s"),
        (59_999, "59s"),
        (200_000, "3m20"),
        (7_500_000, "2h05"),
        (356_400_000, "4d3h"),
        (-5, "0ms"),
    ],
)
def test_ages(given_: int, shown: str) -> None:
    assert words.age(given_) == shown


def test_times_of_running() -> None:
    assert [words.took(us) for us in (0, 340, 1_500, 2_000_000)] == ["", "340µs", "1ms", "2.0s"]


@given(st.floats(0, 1e15))
def test_numbers_never_need_more_than_six_columns(number: float) -> None:
    shown = (words.size(number), words.count(number), words.rate(number))
    assert max(map(len, shown)) <= 6
    assert len(words.age(min(number, 1e12))) <= 6


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("plain", "plain"),
        ("naïve 日本", "naïve 日本"),
        ("\x1b[31mred\x07", "·[31mred·"),
        ("a\nb\tc\r", "a·b·c·"),
        ("\u202eevil\u2066", "·evil·"),
        ("e" + "\u0301" * 9, "e\u0301\u0301"),
        ("\u0301x", "x"),
        ("\ud800", "·"),
        ("a\xa0b\u3000c", "a b c"),
    ],
)
def test_what_could_steer_a_terminal_is_a_dot(given_: str, shown: str) -> None:
    assert words.clean(given_) == shown


@given(st.text(max_size=40), st.integers(0, 30), st.booleans())
def test_a_text_fits_exactly(text: str, columns: int, right: bool) -> None:
    fitted = words.fit(words.clean(text), columns, right=right)
    assert words.width(fitted) == columns
    assert all(letter.isprintable() or words.width(letter) == 0 for letter in fitted)


def test_a_long_text_is_cut_with_a_sign() -> None:
    assert words.fit("coordinator", 6) == "coord…"
    assert words.fit("日本語", 4) == "日… "
    assert words.fit("ab", 4, right=True) == "  ab"


def test_sparks() -> None:
    assert words.spark([0, 1, 2, 4], 6) == "  ▁▃▅█"
    assert words.spark([5] * 9, 4) == "████"
    assert words.spark([], 3) == "   "
    assert words.spark([0, 0], 2) == "▁▁"


def test_bars() -> None:
    assert [words.bar(share, 4) for share in (-1, 0, 0.5, 1, 7)] == ["", "", "██", "████", "████"]
    assert words.bar(0.54, 4) == "██▏"
