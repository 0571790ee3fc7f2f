"""What is told of one ended task: the form in which it goes to the process that sends traces.

Pure.  The daemon writes, its child reads; both are of one version, and nobody else is in between.
This file knows no spans and no tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

SIZE_BYTES: Final = 4
TEXT_MAX: Final = 256
MOMENTS_MAX: Final = 16


class Setup(Struct, frozen=True, array_like=True):
    """The first thing that is written: where to, and who tells."""

    url: str
    node: str
    host: str
    version: str


class Moment(Struct, frozen=True, array_like=True):
    """Something that happened on the way.  Units: `at_ms` is the wall clock."""

    at_ms: int
    name: str
    facts: dict[str, str | int | float | bool]


class Story(Struct, frozen=True, array_like=True):
    """One task's life.

    Units  `queued_ms` and `ended_ms` are the owner's wall clock; `run_us` is how long its last
           attempt ran, 0 where none did.
    """

    task: bytes
    owner: str
    name: str
    user: str
    end: str
    reason: str
    node: str
    attempts: int
    queued_ms: int
    ended_ms: int
    run_us: int
    exit_status: int | None = None
    backend: str = ""
    error: str = ""
    text: str = ""
    durable: bool = False
    moments: tuple[Moment, ...] = ()


_encoder = msgspec.msgpack.Encoder()


def framed(what: Setup | Story) -> bytes:
    """Return it with its size before it."""
    body = _encoder.encode(what)
    return len(body).to_bytes(SIZE_BYTES, "big") + body


def bodies(buffer: bytearray) -> Iterator[bytes]:
    """Take all that is whole from the front of what was read."""
    at = 0
    while len(buffer) - at >= SIZE_BYTES:
        end = at + SIZE_BYTES + int.from_bytes(buffer[at : at + SIZE_BYTES], "big")
        if end > len(buffer):
            break
        yield bytes(buffer[at + SIZE_BYTES : end])
        at = end
    del buffer[:at]
