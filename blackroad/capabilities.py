"""What a node has: the one description that daemons exchange and placement reads.

A description is immutable, small, and checked when it arrives: every string is short and
printable, every list bounded.  This file does not know how any of it was found out (that is
`discovery/probe.py`), nor what tasks ask for (that is `requirements.py`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from blackroad.digest import blake2b
from blackroad.errors import LocalProtocolError, RemoteProtocolError
from blackroad.limits import CAPABILITIES_BYTES_MAX, LABELS_MAX, PROGRAMS_MAX

DIGEST_BYTES: Final = 16
TEXT_MAX: Final = 128
WORD_MAX: Final = 64
NOTE_MAX: Final = 400
DEVICES_MAX: Final = 32
PACKAGES_MAX: Final = 32
SPEEDS_MAX: Final = 64
NOTES_MAX: Final = 16

# Other names for what `platform.machine()` calls these.
_ARCH_ALIASES: Final = {
    "arm64": "aarch64",
    "amd64": "x86_64",
    "x64": "x86_64",
    "x86-64": "x86_64",
    "i386": "i686",
    "i486": "i686",
    "i586": "i686",
    "x86": "i686",
    "armhf": "armv7l",
    "armv7": "armv7l",
    "ppc64el": "ppc64le",
}

_Text = Annotated[str, Meta(max_length=TEXT_MAX)]
_Word = Annotated[str, Meta(max_length=WORD_MAX)]
_Note = Annotated[str, Meta(max_length=NOTE_MAX)]
_Count = Annotated[int, Meta(ge=0, le=2**20)]
_Bytes = Annotated[int, Meta(ge=0, le=2**53 - 1)]
_Speed = Annotated[float, Meta(ge=0.0, le=1e18)]


class Device(Struct, frozen=True):
    """One thing that computes, as one driver shows it.

    `index` counts the devices of the same `platform`.  `software` is true for everything that
    runs on the processor's own cores, whatever its driver calls it.  A `problem` says why a
    device that was seen is not used.
    """

    kind: Annotated[str, Meta(pattern="^(gpu|cpu|accelerator)$")]
    name: _Text
    backend: Annotated[str, Meta(pattern="^(opencl|cuda)$")]
    memory_bytes: _Bytes
    compute_units: _Count
    fp64: bool
    software: bool
    platform: _Text
    driver: _Text
    index: Annotated[int, Meta(ge=0, lt=256)]
    problem: _Note = ""


class Capabilities(Struct, frozen=True):
    """Everything a node tells others about its machine.

    Units   `memory_bytes` is what this node may use of the RAM, never a device's memory.
            `speeds` are as measured at start: "python" in million loop turns a second, "numpy"
            and "opencl:<n>" (n counts in `devices`) in GFLOP/s of 32-bit floats.
    """

    name: _Word
    arch: _Word
    page_bytes: _Bytes
    cores: Annotated[int, Meta(ge=0, le=2**20)]
    memory_bytes: _Bytes
    python: _Word
    python_full: _Word
    implementation: _Word
    os: _Text
    libc: _Word
    model: _Text
    devices: Annotated[tuple[Device, ...], Meta(max_length=DEVICES_MAX)] = ()
    programs: Annotated[tuple[_Word, ...], Meta(max_length=PROGRAMS_MAX)] = ()
    labels: Annotated[dict[_Word, _Word], Meta(max_length=LABELS_MAX)] = {}
    packages: Annotated[dict[_Word, _Word], Meta(max_length=PACKAGES_MAX)] = {}
    speeds: Annotated[dict[_Word, _Speed], Meta(max_length=SPEEDS_MAX)] = {}
    notes: Annotated[tuple[_Note, ...], Meta(max_length=NOTES_MAX)] = ()
    byte_order: Annotated[str, Meta(pattern="^(little|big)$")] = "little"
    # Where figures for Prometheus are served, as "address:port"; "" where none are.
    metrics: _Word = ""

    def gpus(self) -> tuple[Device, ...]:
        """Return the real, working GPUs, in the order in which the ledger counts them."""
        return tuple(
            device
            for device in self.devices
            if device.kind == "gpu" and not device.software and not device.problem
        )

    def digest(self) -> bytes:
        """Return 16 bytes that are equal for equal descriptions."""
        return digest_of(encode(self))


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Capabilities)


def encode(caps: Capabilities) -> bytes:
    """Return the body others may read: equal descriptions give equal bytes.

    Raises  LocalProtocolError when `decode` would refuse it.
    """
    body = _encoder.encode(caps)
    try:
        decode(body)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"own description refused: {error.message}") from error
    return body


def decode(body: bytes) -> Capabilities:
    """Read a body that a peer sent; fields this version does not know are passed over.

    Raises  RemoteProtocolError on anything malformed, too long or unprintable.
    """
    if len(body) > CAPABILITIES_BYTES_MAX:
        raise RemoteProtocolError(
            f"capabilities: {len(body)} bytes, the limit is {CAPABILITIES_BYTES_MAX} bytes"
        )
    try:
        caps = _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"capabilities: {error}") from error
    for value in msgspec.to_builtins(caps).values():
        _refuse_odd(value)
    return caps


def digest_of(body: bytes) -> bytes:
    """Return the digest of a body as it was sent, so that unknown fields count too."""
    return blake2b(body, digest_size=DIGEST_BYTES, person=b"blackroad-caps").digest()


def normal_arch(arch: str) -> str:
    """Return one spelling for each architecture: arm64 is aarch64, AMD64 is x86_64."""
    lower = arch.strip().lower()
    return _ARCH_ALIASES.get(lower, lower)


def printable(text: str, length_max: int = TEXT_MAX) -> str:
    """Make any text fit for a description: one line, printable, cut with an ellipsis."""
    words = "".join(char if char.isprintable() else " " for char in text).split()
    line = " ".join(words)
    return line if len(line) <= length_max else line[: length_max - 1] + "…"


def _refuse_odd(value: Any) -> None:
    """Raise for text that could steer a terminal and for numbers that compare with nothing."""
    if isinstance(value, str):
        if not value.isprintable():
            raise RemoteProtocolError(f"capabilities: unprintable text {value[:40]!r}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RemoteProtocolError(f"capabilities: {value} is not a speed")
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_odd(key)
            _refuse_odd(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_odd(item)
