"""The codec against Hypothesis: whatever arrives, one kind of error and little memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.errors import LocalProtocolError, RemoteProtocolError
from blackroad.limits import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    FRAME_BYTES_MAX,
    MESSAGE_BYTES_MAX,
)
from tests.protocol.shapes import SCOPES, any_message, kind_of, scope_of, values

QUICK = settings(max_examples=200, deadline=None)
SCOPE = st.sampled_from(SCOPES)
KNOWN = {kind_of(cls) for cls in m.ALL_MESSAGES}


def attempt(scope: codec.Scope, frame: bytes) -> list[Any]:
    """Decode; nothing but RemoteProtocolError may come out beside messages."""
    try:
        found, unknown = scope.decode(frame)
    except RemoteProtocolError:
        return []
    assert unknown >= 0
    assert all(isinstance(one, m.Message) for one in found)
    return found


@QUICK
@given(any_message())
def test_round_trip(pair: tuple[type[m.Message], list[Any]]) -> None:
    """R-frame-1: what another MessagePack writer sends is read, and written back the same."""
    cls, whole = pair
    found, unknown = scope_of(cls).decode(msgpack.packb([whole]))
    assert (type(found[0]), unknown) == (cls, 0)
    again = codec.encode(found[0])
    assert msgpack.unpackb(again) == whole
    assert scope_of(cls).decode(codec.frame_of([again])) == (found, 0)


@QUICK
@given(st.binary(max_size=400), SCOPE)
@example(b"", codec.PEER)
@example(b"\xdd\xff\xff\xff\xff", codec.PEER)
@example(b"\x91\xdd\xff\xff\xff\xff", codec.PEER)
@example(b"\x91\x91\xc1", codec.PEER)
@example(b"\x91\x92\x03\xa1\xff", codec.PEER)
@example(b"\x91\x92\xcc\x77\xa1\xff", codec.PEER)
@example(b"\x91\xd4\xff\x00", codec.PEER)
@example(b"\x92\x90\xcc", codec.BULK)
def test_arbitrary_bytes(frame: bytes, scope: codec.Scope) -> None:
    """R-frame-4: decoders give one kind of error whatever arrives."""
    attempt(scope, frame)


@QUICK
@given(any_message(), st.data())
def test_mutated_bytes(pair: tuple[type[m.Message], list[Any]], data: st.DataObject) -> None:
    """R-frame-4: flipped, cut, doubled or inserted bytes of a good frame are no exception."""
    cls, whole = pair
    frame = bytearray(msgpack.packb([whole]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "double"])):
            case "flip":
                frame[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del frame[max(1, at) :]
            case "insert":
                frame[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case _:
                frame[at:at] = frame[: at + 1]
    attempt(scope_of(cls), bytes(frame))


@QUICK
@given(st.binary(max_size=60))
@example(b"\x93\x01\x02\xcf\x80\x00\x00\x00\x00\x00\x00\x00")
@example(b"\x93\x01\x02\xff")
@example(b"\x94\x01\x02\x03\x04")
def test_arbitrary_headers(frame: bytes) -> None:
    """R-frame-4: a header is version, session, sequence, none below 0."""
    try:
        header = codec.decode_header(frame)
    except RemoteProtocolError:
        return
    assert min(header) >= 0
    assert max(header) < 2**63


def test_headers_are_written_and_read() -> None:
    """Section 19: the header is the array [version, session, sequence]."""
    frame = codec.encode_header(8213, 77)
    assert msgpack.unpackb(frame) == [1, 8213, 77]
    assert codec.decode_header(frame) == (1, 8213, 77)


@QUICK
@given(
    st.lists(any_message(), max_size=3),
    st.lists(st.integers(0, 2**63 - 1).filter(lambda kind: kind not in KNOWN), max_size=3),
    st.randoms(use_true_random=False),
)
def test_unknown_kinds_are_skipped_and_counted(
    pairs: list[tuple[type[m.Message], list[Any]]], kinds: list[int], random: Any
) -> None:
    """R-frame-2: a message of unknown kind is counted and skipped; the rest is used."""
    pairs = [pair for pair in pairs if pair[0] in m.PeerMessage.__args__]
    whole = [one for _, one in pairs] + [[kind, {"a": [b"x"]}, None] for kind in kinds]
    random.shuffle(whole)
    found, unknown = codec.PEER.decode(msgpack.packb(whole))
    assert unknown == len(kinds)
    expected = [one for one in whole if one[0] in KNOWN]
    assert [msgpack.unpackb(codec.encode(one)) for one in found] == expected


def test_an_unknown_kind_excuses_no_broken_message() -> None:
    """R-frame-4: a known kind with a field out of its range stays a breach."""
    broken = [kind_of(m.Goodbye), -1]
    with pytest.raises(RemoteProtocolError):
        codec.PEER.decode(msgpack.packb([[0x77, 1], broken]))


@pytest.mark.parametrize("bad", [5, b"x", None, {}, [], ["Grant", 1], [None], [-1, 2], [[1]]])
def test_what_is_no_message_is_a_breach(bad: Any) -> None:
    """R-frame-4: a frame is an array of messages, each an array whose first element is a kind."""
    with pytest.raises(RemoteProtocolError):
        codec.PEER.decode(msgpack.packb([bad]))
    with pytest.raises(RemoteProtocolError):
        codec.PEER.decode(msgpack.packb([values(m.Goodbye), bad]))


def bombs() -> dict[str, bytes]:
    full = FRAME_BYTES_MAX - 8
    return {
        "empty arrays": b"\xdd" + full.to_bytes(4, "big") + b"\x90" * full,
        "empty maps": b"\xdd" + full.to_bytes(4, "big") + b"\x80" * full,
        "deep arrays": b"\x91" * full + b"\x90",
        "deep maps": b"\x91" + b"\x81\x01" * (full // 2) + b"\x01",
        "deep in a known kind": b"\x91\x92\x03" + b"\x91" * (full - 4) + b"\x90",
        "arrays in an unknown kind": (
            b"\x91\x92\xcc\x77\xdd" + (full - 8).to_bytes(4, "big") + b"\x90" * (full - 8)
        ),
        "arrays appended to a known kind": (
            b"\x91\x93\x04\x00\xdd" + (70_000).to_bytes(4, "big") + b"\x90" * 70_000
        ),
        "arrays in a list of tokens": (
            b"\x91\x92\x26\xdd" + (70_000).to_bytes(4, "big") + b"\x90" * 70_000
        ),
        "many declared": b"\xdd\xff\xff\xff\xff" + b"\x90" * 1000,
        "many declared inside": b"\x91\x92\x26\xdd\xff\xff\xff\xff" + b"\x92\x01\x01" * 1000,
        "nested declarations": b"\x91\x92\x26" + b"\xdd\xff\xff\xff\xff" * 20_000,
        "long bytes declared": b"\x91\x92\x03\xc6\xff\xff\xff\xff",
        "long text declared": b"\x91\x92\x03\xdb\xff\xff\xff\xff",
    }


@pytest.mark.parametrize("scope", SCOPES, ids=lambda scope: scope.name)
@pytest.mark.parametrize("name", bombs())
def test_no_frame_costs_more_than_a_few_mib(name: str, scope: codec.Scope) -> None:
    """R-frame-4: decoders check before they build."""
    frame = bombs()[name]
    tracemalloc.start()
    try:
        attempt(scope, frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 2**20


# --- sending --------------------------------------------------------------------------------------


def test_a_message_that_nobody_may_send_is_not_sent() -> None:
    """Limits: message but Chunk 80 KiB; our own mistake is told here, not at the receiver."""
    tasks = tuple(m.Item(n.to_bytes(16, "big"), b"w" * 9000) for n in range(10))
    submit = m.Submit(b"s" * 16, m.ClassSpec(b""), None, False, False, tasks)
    with pytest.raises(LocalProtocolError, match="too long"):
        codec.encode(submit)
    assert len(codec.encode(m.Chunk(b"d" * 32, 0, bytes(256 * 1024)))) > MESSAGE_BYTES_MAX


@QUICK
@given(st.lists(st.integers(1, 70_000), max_size=300))
@example([10] * 300)
@example([70_000] * 9)
@example([65_530, 65_530, 65_530])
def test_batches_keep_order_and_bounds(sizes: list[int]) -> None:
    """R-path-5, limits: a multipart has 128 messages, 256 KiB, frames of 128 KiB at most."""
    sizes = [min(size, MESSAGE_BYTES_MAX - 10) for size in sizes]
    encoded = [msgpack.packb([at, b"x" * size]) for at, size in enumerate(sizes)]
    told = []
    for frames, count in codec.batches(encoded):
        messages = [one for frame in frames for one in msgpack.unpackb(frame)]
        assert 0 < len(messages) == count <= BATCH_MESSAGES_MAX
        assert max(map(len, frames)) <= FRAME_BYTES_MAX
        assert sum(map(len, frames)) <= BATCH_BYTES_MAX
        told += [at for at, _ in messages]
    assert told == list(range(len(sizes)))
