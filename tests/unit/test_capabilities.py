"""What nodes say of themselves: small, equal when equal, and refused when odd."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackroad.capabilities import (
    DEVICES_MAX,
    NOTE_MAX,
    TEXT_MAX,
    WORD_MAX,
    Capabilities,
    Device,
    decode,
    digest_of,
    encode,
    normal_arch,
    printable,
)
from blackroad.errors import LocalProtocolError, RemoteProtocolError
from blackroad.limits import CAPABILITIES_BYTES_MAX, LABELS_MAX, PROGRAMS_MAX

GPU = Device("gpu", "V3D 7.1", "opencl", 2**30, 1, False, False, "rusticl", "25.0.7", 0)
ATTIC = Capabilities(
    name="attic",
    arch="aarch64",
    page_bytes=16_384,
    cores=4,
    memory_bytes=8 * 2**30,
    python="3.11",
    python_full="3.11.2",
    implementation="CPython",
    os="Debian GNU/Linux 13 (trixie)",
    libc="glibc 2.41",
    model="Raspberry Pi 5 Model B Rev 1.0",
    devices=(GPU,),
    programs=("ffmpeg", "git"),
    labels={"disk": "nvme", "room": "attic"},
    packages={"numpy": "2.4.6"},
    speeds={"numpy": 31.0, "opencl:0": 14.0},
    notes=("all is well",),
)


def changed(**changes: Any) -> bytes:
    """Return the body of ATTIC with raw values put in, as a hostile peer could."""
    return msgspec.msgpack.encode(msgspec.to_builtins(ATTIC) | changes)


def device(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(GPU)
    return fields | changes


def test_there_and_back() -> None:
    body = encode(ATTIC)
    assert decode(body) == ATTIC
    assert len(body) < 1024


def test_equal_descriptions_have_equal_digests() -> None:
    turned = msgspec.structs.replace(
        ATTIC, labels={"room": "attic", "disk": "nvme"}, speeds={"opencl:0": 14.0, "numpy": 31.0}
    )
    assert encode(turned) == encode(ATTIC)
    assert turned.digest() == ATTIC.digest() == digest_of(encode(ATTIC))
    assert len(ATTIC.digest()) == 16
    assert msgspec.structs.replace(ATTIC, cores=8).digest() != ATTIC.digest()


def test_fields_of_newer_versions_are_passed_over_but_counted_in_the_digest() -> None:
    body = changed(npu={"tops": 13})
    assert decode(body) == ATTIC
    assert digest_of(body) != ATTIC.digest()


@pytest.mark.parametrize(
    ("field", "longest"),
    [("name", WORD_MAX), ("arch", WORD_MAX), ("python", WORD_MAX), ("python_full", WORD_MAX),
     ("implementation", WORD_MAX), ("libc", WORD_MAX), ("os", TEXT_MAX), ("model", TEXT_MAX)],
)  # fmt: skip
def test_texts_are_bounded(field: str, longest: int) -> None:
    assert getattr(decode(changed(**{field: "x" * longest})), field) == "x" * longest
    with pytest.raises(RemoteProtocolError):
        decode(changed(**{field: "x" * (longest + 1)}))


@pytest.mark.parametrize(
    ("field", "fits", "too_many"),
    [
        ("programs", ["x"] * PROGRAMS_MAX, ["x"] * (PROGRAMS_MAX + 1)),
        ("programs", ["x" * WORD_MAX], ["x" * (WORD_MAX + 1)]),
        ("labels", dict.fromkeys(map(str, range(LABELS_MAX)), ""),
         dict.fromkeys(map(str, range(LABELS_MAX + 1)), "")),
        ("labels", {"k" * WORD_MAX: "v" * WORD_MAX}, {"k": "v" * (WORD_MAX + 1)}),
        ("devices", [device()] * DEVICES_MAX, [device()] * (DEVICES_MAX + 1)),
        ("notes", ["x" * NOTE_MAX], ["x" * (NOTE_MAX + 1)]),
        ("cores", 0, -1),
        ("memory_bytes", 2**53 - 1, 2**53),
        ("memory_bytes", 0, -1),
        ("speeds", {"numpy": 1e18}, {"numpy": 1.1e18}),
        ("speeds", {"numpy": 0.0}, {"numpy": float("nan")}),
        ("speeds", {"numpy": 1}, {"numpy": float("inf")}),
        ("devices", [device(index=255)], [device(index=256)]),
        ("devices", [device(kind="cpu")], [device(kind="toaster")]),
        ("devices", [device(backend="cuda")], [device(backend="metal")]),
        ("devices", [device(problem="p" * NOTE_MAX)], [device(problem="p" * (NOTE_MAX + 1))]),
        ("byte_order", "big", "middle"),
    ],
)  # fmt: skip
def test_values_just_in_and_just_out(field: str, fits: Any, too_many: Any) -> None:
    decode(changed(**{field: fits}))
    with pytest.raises(RemoteProtocolError):
        decode(changed(**{field: too_many}))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a\x1b[2Jb"},
        {"labels": {"a\nb": "x"}},
        {"labels": {"a": "x\u202ey"}},
        {"notes": ["line\r"]},
        {"devices": [device(name="\x00")]},
    ],
)
def test_text_that_could_steer_a_terminal_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="unprintable"):
        decode(changed(**changes))


def test_a_body_is_bounded_before_it_is_read() -> None:
    with pytest.raises(RemoteProtocolError, match="the limit is 16384 bytes"):
        decode(b"\x00" * (CAPABILITIES_BYTES_MAX + 1))


def test_a_description_others_would_refuse_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match="own description refused"):
        encode(msgspec.structs.replace(ATTIC, name="x" * 65))
    programs = tuple(f"{number:064}" for number in range(PROGRAMS_MAX))
    labels = {f"{number:064}": "x" * 64 for number in range(LABELS_MAX)}
    with pytest.raises(LocalProtocolError, match="the limit is"):
        encode(msgspec.structs.replace(ATTIC, programs=programs, labels=labels))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(body)


@given(st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(encode(ATTIC))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        caps = decode(bytes(body))
    except RemoteProtocolError:
        return
    assert decode(encode(caps)) == caps


def test_only_real_working_gpus_count() -> None:
    devices = (
        GPU,
        msgspec.structs.replace(GPU, kind="cpu", software=True),
        msgspec.structs.replace(GPU, software=True),
        msgspec.structs.replace(GPU, problem="hangs"),
        msgspec.structs.replace(GPU, kind="accelerator"),
        msgspec.structs.replace(GPU, name="second"),
    )
    caps = msgspec.structs.replace(ATTIC, devices=devices)
    assert [found.name for found in caps.gpus()] == ["V3D 7.1", "second"]


@pytest.mark.parametrize(
    ("given_name", "arch"),
    [("arm64", "aarch64"), ("AMD64", "x86_64"), ("x86_64", "x86_64"), ("i586", "i686"),
     (" riscv64 ", "riscv64"), ("armv7l", "armv7l")],
)  # fmt: skip
def test_architectures_have_one_spelling(given_name: str, arch: str) -> None:
    assert normal_arch(given_name) == arch


@given(st.text(max_size=300), st.integers(1, 100))
def test_printable_text_is_always_accepted(text: str, length_max: int) -> None:
    line = printable(text, length_max)
    assert line.isprintable()
    assert len(line) <= length_max
