"""What the daemon writes down for the history, and how it lies in the spool.

Pure.  Records are small arrays in MessagePack, framed with their length and a checksum, so that
what a power cut left half written is found and left out.  This file must not know any database,
nor who reads the frames.
"""

from __future__ import annotations

import zlib
from struct import Struct as Layout
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

MAGIC: Final = b"BRH1"
# The length of the body, its CRC-32, and how many records are in it.
HEAD: Final = Layout(">III")
FRAME_BYTES_MAX: Final = 4 * 1024 * 1024

Fact = str | int | float | bool


class Happened(Struct, frozen=True, array_like=True, tag=1):
    """An event, as the whole mesh tells it; its id is the same wherever it is written down."""

    id: str
    at_ms: int
    node: str
    host: str
    name: str
    severity: str
    cause: str
    facts: dict[str, Fact]


class Finished(Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A task that ended at its owner.

    Units  `cpu_units` 1/10000 cores, `run_us` of the last attempt; times by the wall clock.
    """

    owner: bytes
    task: bytes
    state: str
    reason: str
    name: str
    user: str
    priority: int
    durable: bool
    gang: int
    cpu_units: int
    memory_bytes: int
    gpus: int
    submitted_ms: int
    ended_ms: int
    run_us: int
    node: bytes
    tries: int
    backend: str


class Tried(Struct, frozen=True, array_like=True, tag=3, gc=False):
    """An attempt that did not come to an outcome; the last one of a task is in Finished."""

    owner: bytes
    task: bytes
    number: int
    node: bytes
    granted_ms: int
    ended_ms: int
    run_us: int
    status: str


class Counted(Struct, frozen=True, array_like=True, tag=4, gc=False):
    """How many tasks ended in one minute, of one name, user, node and state."""

    owner: bytes
    minute_ms: int
    node: bytes
    name: str
    user: str
    state: str
    tasks: int
    run_us: int
    core_us: int


class Sampled(Struct, frozen=True, array_like=True, tag=5, gc=False):
    """How a node was, at one moment.

    Units  `at_ms` is a whole multiple of the time between samples, so that two nodes that write
           down the same moment write the same row.
    """

    node: str
    at_ms: int
    slots: int
    running: int
    waiting: int
    owned: int
    done: int
    load_percent: int
    memory_bytes: int
    free_memory_bytes: int
    temperature_c: int
    throttled: bool
    receiving_kib_s: int
    sending_kib_s: int
    cpu_percent: int
    memory_percent: int


class Gpu(Struct, frozen=True, array_like=True, gc=False):
    """One GPU of a node."""

    index: int
    name: str
    memory_bytes: int
    driver: str
    problem: str


class Known(Struct, frozen=True, array_like=True, tag=6, gc=False):
    """A node: who it is, and when it was last heard."""

    node: str
    name: str
    state: str
    incarnation: int
    heard_ms: int
    arch: str
    cores: int
    slots: int
    memory_bytes: int
    python: str
    os: str
    model: str
    version: str
    address: str
    gpus: tuple[Gpu, ...]
    labels: dict[str, str]


class Linked(Struct, frozen=True, array_like=True, tag=7, gc=False):
    """How one node hears another."""

    source: str
    target: str
    at_ms: int
    state: str
    silent_ms: int
    receiving_kib_s: int
    sending_kib_s: int


class Setting(Struct, frozen=True, array_like=True, tag=8, gc=False):
    """One decision of the person who runs a node; never a secret."""

    node: str
    key: str
    value: str
    kind: str
    at_ms: int


Record = Happened | Finished | Tried | Counted | Sampled | Known | Linked | Setting

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])


class Frame(NamedTuple):
    """What one write added to a segment; `end` is the offset behind it."""

    records: list[Record]
    end: int


def frame(records: list[Record]) -> bytes:
    """Spell records for the spool.

    Cost  about 1 us and 90 bytes a record.
    """
    body = _encoder.encode(records)
    return HEAD.pack(len(body), zlib.crc32(body), len(records)) + body


def counts(data: bytes) -> int:
    """How many records are in the whole frames of a segment."""
    at, found = len(MAGIC), 0
    while at + HEAD.size <= len(data):
        length, _, count = HEAD.unpack_from(data, at)
        at += HEAD.size + length
        if at <= len(data):
            found += count
    return found


def unframe(data: bytes, at: int) -> Frame | None:
    """Read the frame at an offset of `data`; None where there is no whole and sound one.

    Raises  msgspec.ValidationError where the frame is whole but another program wrote it.
    """
    if at + HEAD.size > len(data):
        return None
    length, checksum, count = HEAD.unpack_from(data, at)
    begin = at + HEAD.size
    body = data[begin : begin + length]
    if length > FRAME_BYTES_MAX or len(body) < length or zlib.crc32(body) != checksum:
        return None
    records = _decoder.decode(body)
    if len(records) != count:
        return None
    return Frame(records, begin + length)
