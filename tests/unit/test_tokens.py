"""Tokens: written and read back, and each way to spoil one has its own words."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackroad.bus import tokens
from blackroad.bus.tokens import PREFIX, InviteText, parse_token
from blackroad.errors import UsageError
from blackroad.ids import text32

TOKEN = InviteText(
    b"c" * 16, b"d" * 32, b"i" * 8, b"s" * 16, ("tcp://192.168.1.10:7700", "tcp://[fd00::2]:7700")
)
TEXT = TOKEN.text()


@given(
    st.builds(
        InviteText,
        st.binary(min_size=16, max_size=16),
        st.binary(min_size=32, max_size=32),
        st.binary(min_size=8, max_size=8),
        st.binary(min_size=16, max_size=16),
        st.lists(st.text(max_size=40), max_size=8).map(tuple),
    )
)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_back(token: InviteText) -> None:
    assert parse_token(token.text()) == token


def test_a_token_survives_how_people_paste_it() -> None:
    assert parse_token(f"  {TEXT.upper()[:40]}\n  {TEXT[40:]}\n") == TOKEN
    assert TEXT.startswith(PREFIX)
    assert set(TEXT.removeprefix(PREFIX)) <= set("abcdefghijklmnopqrstuvwxyz234567")


def test_any_wrong_letter_is_noticed() -> None:
    """R-join-5: a tampered token is refused before anybody is asked."""
    for at in range(len(PREFIX), len(TEXT)):
        wrong = "b" if TEXT[at] != "b" else "c"
        with pytest.raises(UsageError, match="was altered"):
            parse_token(TEXT[:at] + wrong + TEXT[at + 1 :])


def test_a_token_that_was_cut_off_says_so() -> None:
    for at in range(len(PREFIX), len(TEXT)):
        with pytest.raises(UsageError, match="cut off"):
            parse_token(TEXT[:at])


def test_two_letters_that_changed_places_are_noticed() -> None:
    at = next(at for at in range(20, 60) if TEXT[at] != TEXT[at + 1])
    with pytest.raises(UsageError, match="was altered"):
        parse_token(TEXT[:at] + TEXT[at + 1] + TEXT[at] + TEXT[at + 2 :])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no token"),
        ("hello", "no token"),
        ("k3f7x2ab-m5c7qaaa", "no token"),
        (TEXT.removeprefix(PREFIX), "no token"),
        ("br2-" + TEXT.removeprefix(PREFIX), "version 2"),
        (PREFIX, "cut off"),
        (PREFIX + "!" * 50, "characters"),
        (PREFIX + "a1" + "b" * 50, "characters"),
        (PREFIX + "a" * 100, "altered"),
        (PREFIX + "a" * 100_000, "characters"),
    ],
)
def test_what_is_no_token_is_told_apart(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as found:
        parse_token(text)
    assert found.value.hint


def test_contents_that_make_no_sense_are_refused_though_the_sum_fits() -> None:
    for contents in ([b"c" * 15, b"d" * 32, b"i" * 8, b"s" * 16, []], {}, 7, [[[[[]]]]]):
        body = msgspec.msgpack.encode(contents)
        with pytest.raises(UsageError, match="cannot be read"):
            parse_token(PREFIX + text32(body + tokens._sum(body)))


def test_a_token_is_not_shown_by_accident() -> None:
    """Logs and tracebacks print the repr."""
    assert "ssss" not in repr(TOKEN)
    assert text32(b"s" * 16)[:8] not in repr(TOKEN)
