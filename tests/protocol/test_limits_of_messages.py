"""Every bounded field of every kind, just in and just out of its range (R-frame-4)."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.errors import RemoteProtocolError
from blackroad.limits import (
    BATCH_MESSAGES_MAX,
    BULK_FRAME_BYTES_MAX,
    FRAME_BYTES_MAX,
    MESSAGE_BYTES_MAX,
)
from tests.protocol.shapes import edges, fields, kind_of, plain, scope_of, values

CASES = [
    pytest.param(cls, at, value, fine, id=f"{cls.__name__}.{field}-{name}")
    for cls in m.ALL_MESSAGES
    for at, (field, kind) in enumerate(fields(cls))
    for name, value, fine in edges(kind)
]


@pytest.mark.parametrize(("cls", "at", "value", "fine"), CASES)
def test_a_field_at_its_limit(cls: type[m.Message], at: int, value: Any, fine: bool) -> None:
    """R-frame-4: a known kind with a field out of its range is a breach, within it is none."""
    whole = values(cls)
    whole[1 + at] = value
    frame = msgpack.packb([whole])
    scope = scope_of(cls)
    if fine:
        found, unknown = scope.decode(frame)
        assert (type(found[0]), len(found), unknown) == (cls, 1, 0)
    else:
        with pytest.raises(RemoteProtocolError):
            scope.decode(frame)


def test_there_is_a_case_on_both_sides_for_every_kind_with_fields() -> None:
    """The cases above come from the annotations: none of the kinds may slip through."""
    for fine in (True, False):
        kinds = {case.values[0] for case in CASES if case.values[3] is fine}
        assert kinds == set(m.ALL_MESSAGES)


@pytest.mark.parametrize("cls", m.ALL_MESSAGES)
def test_a_required_field_may_not_be_missing(cls: type[m.Message]) -> None:
    """R-frame-2: only trailing fields have defaults; kinds keep their required ones."""
    required = [f for f in cls.__struct_fields__ if f not in _defaults(cls)]
    frame = msgpack.packb([values(cls)[: len(required)]])
    with pytest.raises(RemoteProtocolError):
        scope_of(cls).decode(frame)


@pytest.mark.parametrize("cls", m.ALL_MESSAGES)
def test_a_missing_trailing_field_takes_its_default(cls: type[m.Message]) -> None:
    """R-frame-2: an older version's shorter message is read."""
    defaults = _defaults(cls)
    required = len(cls.__struct_fields__) - len(defaults)
    found, _ = scope_of(cls).decode(msgpack.packb([values(cls)[: 1 + required]]))
    assert {name: getattr(found[0], name) for name in defaults} == defaults


@pytest.mark.parametrize("cls", m.ALL_MESSAGES)
def test_appended_fields_are_passed_over(cls: type[m.Message]) -> None:
    """R-frame-2: an older version passes over what follows the fields it knows."""
    short = values(cls)
    longer = [*short, [1, {"new": b"x"}], "more", None]
    scope = scope_of(cls)
    assert scope.decode(msgpack.packb([longer])) == scope.decode(msgpack.packb([short]))


def _defaults(cls: type[m.Message]) -> dict[str, Any]:
    values_ = cls.__struct_defaults__
    names = cls.__struct_fields__[len(cls.__struct_fields__) - len(values_) :]
    return dict(zip(names, values_, strict=True))


# --- what spans several fields --------------------------------------------------------------------


@pytest.mark.parametrize(("lease_ms", "fine"), [(0, True), (4999, False), (5000, True)])
def test_the_lease_of_a_class_is_the_default_or_long_enough(lease_ms: int, fine: bool) -> None:
    """R-lease-16, timers: 5 s..24 h per task, or 0; a Grant of it could not be sent else."""
    whole = values(m.Submit)
    spec = plain(dict(fields(m.Submit))["spec"])
    spec[list(m.ClassSpec.__struct_fields__).index("lease_ms")] = lease_ms
    whole[2] = spec
    if fine:
        assert codec.CLIENT.decode(msgpack.packb([whole]))[0][0].spec.lease_ms == lease_ms
    else:
        with pytest.raises(RemoteProtocolError):
            codec.CLIENT.decode(msgpack.packb([whole]))


@pytest.mark.parametrize(
    ("cls", "field"),
    [
        (m.Ended, "node"),
        (m.Query, "target"),
        (m.Reply, "node"),
        (m.Heartbeat, "follows"),
        (m.Heartbeat, "caps_digest"),
    ],
)
def test_an_id_is_whole_or_absent(cls: type[m.Message], field: str) -> None:
    """R-frame-1: a node is 16 bytes; where it may be empty, it is empty."""
    at = 1 + cls.__struct_fields__.index(field)
    whole = values(cls)
    for size in (1, 8, 15):
        whole[at] = b"x" * size
        with pytest.raises(RemoteProtocolError):
            scope_of(cls).decode(msgpack.packb([whole]))


# --- frames ---------------------------------------------------------------------------------------


def test_a_frame_holds_128_messages() -> None:
    """R-frame-4: all frames of a multipart hold at most 128 messages."""
    goodbye = values(m.Goodbye)
    found, _ = codec.PEER.decode(msgpack.packb([goodbye] * BATCH_MESSAGES_MAX))
    assert len(found) == BATCH_MESSAGES_MAX
    with pytest.raises(RemoteProtocolError):
        codec.PEER.decode(msgpack.packb([goodbye] * (BATCH_MESSAGES_MAX + 1)))


def test_a_message_is_80_kib_at_most() -> None:
    """Limits: message but Chunk 80 KiB; what a later version appended counts, too."""
    goodbye = values(m.Goodbye)
    room = MESSAGE_BYTES_MAX - len(msgpack.packb([*goodbye, b"x" * 70_000])) + 70_000
    codec.PEER.decode(msgpack.packb([[*goodbye, b"x" * room]]))
    with pytest.raises(RemoteProtocolError):
        codec.PEER.decode(msgpack.packb([[*goodbye, b"x" * (room + 1)]]))
    grants = [
        [*values(m.Grant)[:10], b"w" * 60_000, 1],
        [*values(m.Grant)[:10], b"w" * 60_000, 2],
    ]
    assert len(codec.PEER.decode(msgpack.packb(grants))[0]) == 2


def test_a_chunk_may_be_longer() -> None:
    """Limits: the bulk and client frame is 320 KiB, for a Chunk and its envelope."""
    chunk = [kind_of(m.Chunk), b"d" * 32, 0, b"x" * (256 * 1024)]
    for scope in (codec.BULK, codec.CLIENT, codec.OWNER):
        assert len(scope.decode(msgpack.packb([chunk]))[0][0].data) == 256 * 1024


@pytest.mark.parametrize(
    ("scope", "limit"), [(codec.PEER, FRAME_BYTES_MAX), (codec.BULK, BULK_FRAME_BYTES_MAX)]
)
def test_a_frame_that_is_too_long_is_not_looked_at(scope: codec.Scope, limit: int) -> None:
    """R-frame-4: anything too long is a breach."""
    with pytest.raises(RemoteProtocolError, match="too long"):
        scope.decode(b"\x90" + bytes(limit))
