"""Bytes <-> messages: frames of a multipart, bounded and validated.

A frame is a MessagePack array of messages; a multipart on a link is one header and some frames.
Whatever arrives, only RemoteProtocolError leaves `decode_*`.  This file knows no socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from blackroad.bus import messages as m
from blackroad.errors import LocalProtocolError, RemoteProtocolError
from blackroad.ids import U32, U63
from blackroad.limits import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    BULK_FRAME_BYTES_MAX,
    DOOR_FRAME_BYTES_MAX,
    FRAME_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    PROTOCOL_VERSION_MAX,
)

_ARRAY_HEADER_BYTES = 3
_BROKEN = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)

_encoder = msgspec.msgpack.Encoder()
_raw_frame = msgspec.msgpack.Decoder(list[msgspec.Raw])


class Header(NamedTuple):
    """First frame of every multipart: protocol version, session, sequence."""

    version: U32
    session: U63
    sequence: U63


_header = msgspec.msgpack.Decoder(Header)


class Scope:
    """The kinds that one side may send on one socket, and how to read them."""

    def __init__(self, name: str, union: Any, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.name = name
        self.frame_bytes_max = frame_bytes_max
        self._frame: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(list[union])
        self._one: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(union)
        self._tags = {cls.__struct_config__.tag for cls in getattr(union, "__args__", (union,))}

    def decode(self, frame: bytes | memoryview) -> tuple[list[Any], int]:
        """Read one frame; return its messages and how many of unknown kind were skipped.

        Raises  RemoteProtocolError where the frame is too long, is no array of messages, or a
                message of a known kind breaks a limit.
        """
        size = frame.nbytes if isinstance(frame, memoryview) else len(frame)
        if size > self.frame_bytes_max:
            raise RemoteProtocolError(f"{self.name}: a frame of {size} bytes is too long")
        # Counted before anything is built: a frame of nothing but empty arrays would otherwise
        # become a hundred times its size in objects.
        count = _array_head(frame)[0]
        if count < 0:
            raise RemoteProtocolError(f"{self.name}: a frame is an array of messages")
        if count > BATCH_MESSAGES_MAX:
            raise RemoteProtocolError(f"{self.name}: {count} messages in one frame")
        try:
            if size > MESSAGE_BYTES_MAX:
                self._check_sizes(frame)
            return self._frame.decode(frame), 0
        except _BROKEN:
            return self._decode_singly(frame)

    def _check_sizes(self, frame: bytes | memoryview) -> None:
        """Refuse a message that is longer than its kind may be; the frame allows for a Chunk."""
        for raw in _raw_frame.decode(frame):
            size = memoryview(raw).nbytes
            if size > MESSAGE_BYTES_MAX and _kind(raw) != _CHUNK:
                raise RemoteProtocolError(f"{self.name}: a message of {size} bytes is too long")

    def _decode_singly(self, frame: bytes | memoryview) -> tuple[list[Any], int]:
        """Second look at a frame that did not decode whole: skip unknown kinds, refuse the rest."""
        try:
            raws = _raw_frame.decode(frame)
        except _BROKEN as error:
            raise RemoteProtocolError(f"{self.name}: not a frame: {error}") from None
        known: list[Any] = []
        unknown = 0
        for raw in raws:
            try:
                known.append(self._one.decode(raw))
            except _BROKEN as error:
                kind = _kind(raw)
                if kind < 0 or kind in self._tags:
                    raise RemoteProtocolError(f"{self.name}: {error}") from None
                unknown += 1
        return known, unknown


def _array_head(data: bytes | memoryview | msgspec.Raw) -> tuple[int, int]:
    """Read how many elements an array declares, and where the first begins; -1 if it is none."""
    view = memoryview(data)
    first = view[0] if view.nbytes else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, 1
    width = {0xDC: 2, 0xDD: 4}.get(first, 0)
    if not width or view.nbytes <= width:
        return -1, 0
    return int.from_bytes(view[1 : 1 + width], "big"), 1 + width


def _kind(raw: msgspec.Raw) -> int:
    """Read the kind of one message without building the message; -1 where it has none."""
    count, at = _array_head(raw)
    view = memoryview(raw)
    if count <= 0 or at >= view.nbytes:
        return -1
    first = view[at]
    if first <= 0x7F:
        return first
    width = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.get(first, 0)
    return int.from_bytes(view[at + 1 : at + 1 + width], "big") if width else -1


_CHUNK = m.Chunk.__struct_config__.tag

PEER = Scope("link", m.PeerMessage | m.LinkMessage)
CLIENT = Scope("client", m.ClientMessage, BULK_FRAME_BYTES_MAX)
OWNER = Scope("owner", m.OwnerMessage, BULK_FRAME_BYTES_MAX)
INBOX = Scope("inbox", m.LinkMessage | m.ClientMessage, BULK_FRAME_BYTES_MAX)
BULK = Scope("bulk", m.BulkMessage, BULK_FRAME_BYTES_MAX)
TELEMETRY = Scope("telemetry", m.TelemetryMessage)
DOOR = Scope("door", m.DoorMessage, DOOR_FRAME_BYTES_MAX)


def encode(message: m.Message) -> bytes:
    """Write one message.

    Raises  LocalProtocolError where it is longer than any message may be.
    """
    data = _encoder.encode(message)
    if len(data) > MESSAGE_BYTES_MAX and not isinstance(message, m.Chunk):
        raise LocalProtocolError(f"{type(message).__name__} of {len(data)} bytes is too long")
    return data


def encode_header(session: int, sequence: int) -> bytes:
    """Write the first frame of a multipart."""
    return _encoder.encode(Header(PROTOCOL_VERSION_MAX, session, sequence))


def decode_header(frame: bytes | memoryview) -> Header:
    """Read the first frame of a multipart.

    Raises  RemoteProtocolError.
    """
    try:
        return _header.decode(frame)
    except _BROKEN as error:
        raise RemoteProtocolError(f"header: {error}") from None


def frame_of(encoded: Sequence[bytes]) -> bytes:
    """Put encoded messages into one frame."""
    count = len(encoded)
    head = bytes((0x90 | count,)) if count < 16 else bytes((0xDC, count >> 8, count & 0xFF))
    return head + b"".join(encoded)


def batches(encoded: Iterable[bytes]) -> Iterable[tuple[list[bytes], int]]:
    """Cut a stream of encoded messages into multiparts' bodies.

    Yield lists of frames within all bounds, each with the number of messages in it.
    """
    frames: list[bytes] = []
    part: list[bytes] = []
    part_bytes = batch_bytes = count = 0
    for one in encoded:
        size = len(one)
        if part and part_bytes + size + _ARRAY_HEADER_BYTES > FRAME_BYTES_MAX:
            frames.append(frame_of(part))
            part, part_bytes = [], 0
        heads_bytes = _ARRAY_HEADER_BYTES * (len(frames) + 1)
        full = batch_bytes + size + heads_bytes > BATCH_BYTES_MAX
        if (frames or part) and (full or count >= BATCH_MESSAGES_MAX):
            if part:
                frames.append(frame_of(part))
            yield frames, count
            frames, part = [], []
            part_bytes = batch_bytes = count = 0
        part.append(one)
        part_bytes += size
        batch_bytes += size
        count += 1
    if part:
        frames.append(frame_of(part))
    if frames:
        yield frames, count
