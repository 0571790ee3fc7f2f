"""What a task process is asked to do, and how it says that it failed.

Daemons carry the encoded form without looking inside: a small head that names the kind of work,
then one payload at a multiple of 64 bytes.  This file must not know tasks, leases or processes,
and never opens a payload.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from blackroad.bus.payload import ALIGNMENT_BYTES, Segment, total_bytes
from blackroad.errors import RemoteProtocolError, UsageError

ARGUMENTS_MAX: Final = 8192  # of a command; the kernel's own limit counts bytes and is near 2 MiB
ENVIRONMENT_MAX: Final = 1024  # variables a command may set
TYPE_NAME_CHARS_MAX: Final = 200
TEXT_BYTES_MAX: Final = 4096
TRACEBACK_BYTES_MAX: Final = 16 * 1024

_PREFIX = struct.Struct("<II")  # bytes of the head, offset of the payload
_HEAD_BYTES_MAX: Final = 4 * 1024 * 1024
SMALL_PAYLOAD_BYTES: Final = 1024  # smaller payloads hold no array worth aligning

# Segments where work is built, a view into the received bytes where it was decoded.
Payload = Any

Name = Annotated[str, Meta(max_length=120)]
Target = Annotated[str, Meta(max_length=500, pattern=r"^[^\W\d][\w.]*:[^\W\d][\w.]*\Z")]
Argument = Annotated[str, Meta(max_length=128 * 1024)]


class Call(Struct, frozen=True, array_like=True, tag=1):
    """Call the function that travels beside the work with (args, kwargs)."""

    name: Name
    args: Payload = b""


class MapCall(Struct, frozen=True, array_like=True, tag=2):
    """Call the function once for each item of a list; with `star`, each item is its arguments."""

    name: Name
    star: bool = False
    items: Payload = b""


class Module(Struct, frozen=True, array_like=True, tag=3):
    """Import `package.module:function` on the node and call it with (args, kwargs)."""

    target: Target
    args: Payload = b""


class KernelRun(Struct, frozen=True, array_like=True, tag=4):
    """Run a registered kernel with a dict of parameters."""

    name: Name
    params: Payload = b""


class Command(Struct, frozen=True, array_like=True, tag=5):
    """Run a program; `stdin` is bytes it may read, an empty `cwd` the task's own directory."""

    argv: Annotated[list[Argument], Meta(min_length=1, max_length=ARGUMENTS_MAX)]
    env: Annotated[dict[Argument, Argument], Meta(max_length=ENVIRONMENT_MAX)] = {}
    cwd: Argument = ""
    stdin: Payload = b""


Work = Call | MapCall | Module | KernelRun | Command

_PAYLOAD_FIELDS: Final = {
    Call: "args",
    MapCall: "items",
    Module: "args",
    KernelRun: "params",
    Command: "stdin",
}
_TAGS: Final = {Call: 1, MapCall: 2, Module: 3, KernelRun: 4, Command: 5}
_decoder: msgspec.msgpack.Decoder[Work] = msgspec.msgpack.Decoder(Work)
_encode = msgspec.msgpack.Encoder().encode


def work_name(work: Work) -> str:
    """Say what people call this work: the function, the kernel or the program."""
    if isinstance(work, Module):
        return work.target[:120]
    if isinstance(work, Command):
        return work.argv[0][:120] if work.argv else ""
    return work.name


def encode_work(work: Work) -> list[Segment]:
    """Turn work into segments; its payload (bytes, or segments of `payload.encode`) is not copied.

    Raises  UsageError where a name, target or argument is out of its bounds.
    """
    *fields, payload = msgspec.structs.astuple(work)
    segments: list[Segment] = list(payload) if isinstance(payload, list) else [payload]
    head = _encode((_TAGS[type(work)], *fields))
    offset = _PREFIX.size + len(head)
    gap = -offset % ALIGNMENT_BYTES if total_bytes(segments) >= SMALL_PAYLOAD_BYTES else 0
    _check(work, head)
    return [_PREFIX.pack(len(head), offset + gap) + head + bytes(gap), *segments]


def small_call_head(name: str) -> bytes:
    """Return what stands before the payload in the encoded Call of a function of that name.

    It is right for payloads of less than SMALL_PAYLOAD_BYTES; encoding one more call is putting
    them together.

    Raises  UsageError where the name is out of its bounds.
    """
    return b"".join(encode_work(Call(name, b"")))


def _check(work: Work, head: bytes) -> None:
    """Hold our own work to the limits of the receiver, so that the mistake shows here."""
    try:
        _decoder.decode(head)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"`{work_name(work)[:60]}` cannot be sent as {type(work).__name__}: {error}",
            hint=(
                "name it `package.module:function`"
                if isinstance(work, Module)
                else "a command has 1 to 8192 arguments of at most 128 KiB; put more into a file"
            ),
        ) from None


def decode_work(buffer: bytes | bytearray | memoryview) -> Work:
    """Give back the work; its payload is a view into `buffer`.

    Raises  RemoteProtocolError where the bytes are no work or break a limit.
    """
    view = memoryview(buffer)
    try:
        head_bytes, offset = _PREFIX.unpack_from(view)
        end = _PREFIX.size + head_bytes
        if head_bytes > _HEAD_BYTES_MAX or not end <= offset <= len(view):
            raise RemoteProtocolError("these bytes are no work: a length does not fit")
        work = _decoder.decode(view[_PREFIX.size : end])
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"these bytes are no work: {error}") from None
    msgspec.structs.force_setattr(work, _PAYLOAD_FIELDS[type(work)], view[offset:])
    return work


# --- failure ------------------------------------------------------------------------------------


class Failure(Struct, frozen=True, array_like=True):
    """Why a task failed, as plain text: no class is rebuilt where it is read.

    `type_name` is bare for built-in exceptions (`ValueError`), else with its module.
    """

    type_name: Annotated[str, Meta(max_length=TYPE_NAME_CHARS_MAX)]
    text: Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]
    traceback_text: Annotated[str, Meta(max_length=TRACEBACK_BYTES_MAX)] = ""
    exit_status: int | None = None


_failure_decoder = msgspec.msgpack.Decoder(Failure)


def encode_failure(failure: Failure) -> bytes:
    """Turn a failure into the result bytes of a task that failed; texts are cut to their limits."""
    return _encode(
        (
            shortened(failure.type_name, TYPE_NAME_CHARS_MAX),
            shortened(failure.text, TEXT_BYTES_MAX),
            shortened(failure.traceback_text, TRACEBACK_BYTES_MAX),
            failure.exit_status,
        )
    )


def decode_failure(data: bytes | memoryview) -> Failure:
    """Read what `encode_failure` wrote.

    Raises  RemoteProtocolError where the bytes are no failure.
    """
    try:
        return _failure_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"these bytes are no failure: {error}") from None


def shortened(text: str, bytes_max: int) -> str:
    """Keep the head and the longer tail of a text, and say how much was cut between them.

    Lone surrogates (of undecodable file names) are spelled out: they cannot travel as UTF-8.
    """
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) > bytes_max:
        head = bytes_max // 4
        mark = f"\n... {len(raw) - bytes_max} bytes cut ...\n".encode()
        raw = raw[:head] + mark + raw[len(raw) - (bytes_max - head - len(mark)) :]
    return raw.decode("utf-8", "ignore")
