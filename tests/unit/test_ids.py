"""Ids: how they are made, compared, printed and typed."""

from __future__ import annotations

import pytest

from blackroad.errors import UsageError
from blackroad.ids import (
    NODE_BYTES,
    Epoch,
    Token,
    bytes32,
    inc_counter,
    incarnation,
    node_id_from_key,
    parse_task,
    short,
    task_text,
    text32,
)

NODE, TASK = bytes(range(16)), bytes(range(16, 32))


def test_an_incarnation_is_a_counter_over_chance() -> None:
    """Vocabulary: upper half a counter, lower half random; R-life-3 compares the counter."""
    assert incarnation(7, 0xDEADBEEF) == 0x7_DEADBEEF
    assert inc_counter(incarnation(7, 0xFFFF_FFFF)) == 7
    assert incarnation(8, 0) > incarnation(7, 0xFFFF_FFFF)
    assert incarnation(7, 2**40 + 5) == incarnation(7, 5)
    assert incarnation(2**31 - 1, 2**32 - 1) < 2**63


def test_tokens_and_epochs_are_ordered() -> None:
    """Vocabulary: compare inc, then serial; counter, then node."""
    assert Token(5, 9) < Token(5, 10) < Token(6, 1)
    assert Epoch(4, b"b") < Epoch(5, b"a") < Epoch(5, b"b")


def test_a_node_id_is_a_hash_of_its_key() -> None:
    """Vocabulary: 16-byte id: hash of its public key."""
    one, two = node_id_from_key(b"k" * 32), node_id_from_key(b"l" * 32)
    assert len(one) == NODE_BYTES
    assert one == node_id_from_key(b"k" * 32) != two


@pytest.mark.parametrize("raw", [b"", b"x", NODE, b"\xff" * 16, bytes(7)])
def test_text_is_read_back(raw: bytes) -> None:
    """Ids are printed in lower-case base32 without padding."""
    text = text32(raw)
    assert text == text.lower()
    assert "=" not in text
    assert bytes32(text) == raw
    assert bytes32(text.upper()) == raw


@pytest.mark.parametrize("text", ["1", "aaaa8888", "äöü", "a-b", "aaaa aaaa"])
def test_what_is_no_id_is_said_so(text: str) -> None:
    with pytest.raises(UsageError, match="not an id"):
        bytes32(text)


def test_a_printed_task_id_names_its_owner() -> None:
    """R-life-4: <owner short id>-<task id>."""
    text = task_text(NODE, TASK)
    owner, task = parse_task(f"  {text.upper()} ")
    assert owner == short(NODE) == text32(NODE)[:8]
    assert bytes32(task) == TASK


def test_the_start_of_a_task_id_is_enough() -> None:
    assert parse_task(f"{short(NODE)}-{text32(TASK)[:4]}") == (short(NODE), text32(TASK)[:4])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aaaaaaaa",
        "aaaaaaaa-",
        "aaaaaaaa-abc",
        "aaaaaaa-abcd",
        "aaaaaaaaa-abcd",
        "aaaaaaaa-abc1",
        "aaaaaaa0-abcd",
        "aaaaaaaa-" + "a" * 27,
        "aaaaaaaa-ab-cd",
    ],
)
def test_what_is_no_task_id_is_said_so(text: str) -> None:
    with pytest.raises(UsageError, match="not a task id") as caught:
        parse_task(text)
    assert "blackroad tasks" in caught.value.hint
