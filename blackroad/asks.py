"""What a task asks for, as it travels: whole numbers, and one spelling for equal things.

Pure.  Everything here works on one `Ask` at a time and knows no node: whether one has it is
decided in `requirements.py`, and how much of it is left in `ledger.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from blackroad.capabilities import normal_arch
from blackroad.errors import RemoteProtocolError, UsageError
from blackroad.limits import NAME_BYTES_MAX, NEEDS_BYTES_MAX
from blackroad.units import (
    BYTES_MAX,
    CPU_UNITS_MAX,
    CPU_UNITS_PER_CORE,
    parse_bytes,
    parse_cpu_units,
)

ALTERNATIVES_MAX: Final = 8
GPUS_MAX: Final = 64
ARCHES_MAX: Final = 8
ASKED_LABELS_MAX: Final = 16
ASKED_PROGRAMS_MAX: Final = 16
PYTHON_TEXT_MAX: Final = 64

_ARCH = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_PROGRAM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_LABEL_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,63}")
_CLAUSE = re.compile(r"(>=|<=|==|<|>|)\s*([0-9]{1,3}(?:\.[0-9]{1,3}){0,2})")

_Name = Annotated[str, Meta(max_length=NAME_BYTES_MAX)]


class Ask(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One way to satisfy a task, in whole numbers and one spelling for equal things.

    Units  cpu in 1/10000 cores; memory 0 means not stated; `gpu_memory_bytes` is per device,
           and 0 means whole devices.
    """

    cpu_units: Annotated[int, Meta(ge=1, le=CPU_UNITS_MAX)] = CPU_UNITS_PER_CORE
    memory_bytes: Annotated[int, Meta(ge=0, le=BYTES_MAX)] = 0
    gpu: Annotated[int, Meta(ge=0, le=GPUS_MAX)] = 0
    gpu_memory_bytes: Annotated[int, Meta(ge=0, le=BYTES_MAX)] = 0
    arch: Annotated[tuple[_Name, ...], Meta(max_length=ARCHES_MAX)] = ()
    python: Annotated[str, Meta(max_length=PYTHON_TEXT_MAX)] = ""
    labels: Annotated[tuple[tuple[_Name, _Name], ...], Meta(max_length=ASKED_LABELS_MAX)] = ()
    node: _Name = ""
    programs: Annotated[tuple[_Name, ...], Meta(max_length=ASKED_PROGRAMS_MAX)] = ()


class Requirement(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a task needs: the first alternative that fits is taken."""

    alternatives: Annotated[tuple[Ask, ...], Meta(min_length=1, max_length=ALTERNATIVES_MAX)]

    def to_wire(self) -> bytes:
        """Return at most 1 KiB; equal needs give equal bytes.

        Raises  UsageError when the needs are too long to travel.
        """
        data = _encoder.encode(self)
        if len(data) > NEEDS_BYTES_MAX:
            raise UsageError(
                f"needs take {len(data)} bytes, the limit is {NEEDS_BYTES_MAX}",
                hint="ask for fewer labels, programs or alternatives",
            )
        return data

    def narrowed(self, *, python: str = "", programs: Sequence[str] = ()) -> Requirement:
        """Return these needs with a Python version and programs added to every alternative.

        Raises  UsageError as `ask_of` does.
        """
        return Requirement(
            tuple(
                msgspec.structs.replace(
                    ask,
                    python=_python_text(",".join(text for text in (ask.python, python) if text)),
                    programs=_programs((*ask.programs, *programs)),
                )
                for ask in self.alternatives
            )
        )


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Requirement)


@lru_cache(maxsize=2048)
def from_wire(data: bytes) -> Requirement:
    """Read needs that a peer sent.

    Cost    about 0.1 us when the same bytes were read before.
    Raises  RemoteProtocolError on anything `to_wire` would not have written: an unknown need
            must not be passed over, since the task would run where it cannot.
    """
    if len(data) > NEEDS_BYTES_MAX:
        raise RemoteProtocolError(f"needs: {len(data)} bytes, the limit is {NEEDS_BYTES_MAX}")
    try:
        requirement = _decoder.decode(data)
        same = all(_rewritten(ask) == ask for ask in requirement.alternatives)
    except (msgspec.MsgspecError, UsageError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"needs: {error}") from error
    if not same or _encoder.encode(requirement) != data:
        raise RemoteProtocolError("needs: not in the one spelling that equal needs have")
    return requirement


def ask_of(
    cpu: object = 1,
    memory: object = 0,
    gpu: object = 0,
    gpu_memory: object = 0,
    arch: object = None,
    python: object = None,
    labels: object = None,
    node: object = None,
    programs: object = (),
) -> Ask:
    """Return what people wrote as an `Ask`; None stands for a field's default.

    Raises  UsageError naming the field, what was given and what is allowed.
    """
    gpus = _gpu(0 if gpu is None else gpu)
    return Ask(
        cpu_units=_cpu_units(1 if cpu is None else cpu),
        memory_bytes=parse_bytes(0 if memory is None else memory, "memory"),
        gpu=gpus,
        gpu_memory_bytes=_gpu_memory(0 if gpu_memory is None else gpu_memory, gpus),
        arch=_arches(arch),
        python=_python_text(python),
        labels=_labels(labels),
        node=_node(node),
        programs=_programs(programs),
    )


def _rewritten(ask: Ask) -> Ask:
    """Return `ask` as `ask_of` would have written it."""
    return Ask(
        cpu_units=ask.cpu_units,
        memory_bytes=ask.memory_bytes,
        gpu=ask.gpu,
        gpu_memory_bytes=_gpu_memory(ask.gpu_memory_bytes, ask.gpu),
        arch=_arches(ask.arch),
        python=_python_text(ask.python),
        labels=_labels(dict(ask.labels)),
        node=_node(ask.node),
        programs=_programs(ask.programs),
    )


def _cpu_units(given: object) -> int:
    units = parse_cpu_units(given, "cpu")
    if units == 0:
        raise UsageError(
            f"cpu: {given!r} is no share of a core", hint="write a number above 0, like 0.1 or 4"
        )
    return units


def _gpu(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= GPUS_MAX:
        raise UsageError(
            f"gpu: {given!r} is not a whole number from 0 to {GPUS_MAX}",
            hint='to share a device, say how much of it: gpu=1, gpu_memory="900MB"',
        )
    return given


def _gpu_memory(given: object, gpu: int) -> int:
    size = parse_bytes(given, "gpu_memory")
    if size and not gpu:
        raise UsageError(
            f"gpu_memory: {given!r} was given, but gpu is 0",
            hint="add gpu=1, or the number of devices that each need so much",
        )
    return size


def _arches(given: object) -> tuple[str, ...]:
    names = _strings(given, "arch", ARCHES_MAX, 'arch="aarch64" or arch=("aarch64", "x86_64")')
    arches = sorted({normal_arch(name) for name in names})
    for arch in arches:
        if not _ARCH.fullmatch(arch):
            raise UsageError(
                f"arch: {arch!r} is not the name of an architecture",
                hint="write aarch64, x86_64, or what `uname -m` prints on the node",
            )
    return tuple(arches)


def _python_text(given: object) -> str:
    """Return the versions asked for in one spelling: no spaces, sorted, none twice."""
    if given is None or given == "":
        return ""
    hint = 'write python="3.11", ">=3.12", or ">=3.11,<3.14"'
    if not isinstance(given, str) or len(given) > 4 * PYTHON_TEXT_MAX:
        raise UsageError(f"python: {given!r:.80} is not a version", hint=hint)
    clauses = set()
    for part in given.split(","):
        found = _CLAUSE.fullmatch(part.strip())
        if found is None:
            raise UsageError(f"python: cannot read {part.strip()!r} as a version", hint=hint)
        version = ".".join(str(int(number)) for number in found[2].split("."))
        clauses.add(("" if found[1] == "==" else found[1]) + version)
    text = ",".join(sorted(clauses))
    if len(text) > PYTHON_TEXT_MAX:
        raise UsageError(f"python: {text!r} is longer than {PYTHON_TEXT_MAX}", hint=hint)
    return text


def _labels(given: object) -> tuple[tuple[str, str], ...]:
    hint = 'write labels={"disk": "ssd"}'
    if given is None:
        return ()
    if not isinstance(given, Mapping) or len(given) > ASKED_LABELS_MAX:
        raise UsageError(
            f"labels: {given!r:.80} is not a mapping of at most {ASKED_LABELS_MAX}", hint=hint
        )
    for key, value in given.items():
        if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key):
            raise UsageError(f"labels: {key!r:.80} is not the name of a label", hint=hint)
        if not isinstance(value, str) or not _short_line(value, empty=True):
            raise UsageError(
                f"labels: {value!r:.80} is not a text of one line and at most "
                f"{NAME_BYTES_MAX} bytes",
                hint=hint,
            )
    return tuple(sorted(given.items()))


def _node(given: object) -> str:
    if given is None or given == "":
        return ""
    name = given.strip().lower() if isinstance(given, str) else ""
    if not _short_line(name, empty=False):
        raise UsageError(
            f"node: {given!r:.80} is not the name of a node",
            hint="write a name or the start of an id that `blackroad nodes` shows",
        )
    return name


def _programs(given: object) -> tuple[str, ...]:
    hint = 'write programs=("ffmpeg",)'
    names = _strings(given, "programs", 4 * ASKED_PROGRAMS_MAX, hint)
    for name in names:
        if not _PROGRAM.fullmatch(name):
            raise UsageError(
                f"programs: {name!r:.80} is not the name of a program (no path, no arguments)",
                hint=hint,
            )
    programs = tuple(sorted(set(names)))
    if len(programs) > ASKED_PROGRAMS_MAX:
        raise UsageError(
            f"programs: {len(programs)} were given, at most {ASKED_PROGRAMS_MAX} are allowed"
        )
    return programs


def _strings(given: object, what: str, count_max: int, hint: str) -> tuple[str, ...]:
    if given is None:
        return ()
    if isinstance(given, str):
        return (given,)
    if (
        isinstance(given, Sequence)
        and not isinstance(given, (bytes, bytearray))
        and len(given) <= count_max
        and all(isinstance(item, str) for item in given)
    ):
        return tuple(given)
    raise UsageError(
        f"{what}: {given!r:.80} is not a text or a sequence of at most {count_max}",
        hint=f"write {hint}" if not hint.startswith("write") else hint,
    )


def _short_line(text: str, *, empty: bool) -> bool:
    return (
        (empty or bool(text.strip()))
        and text.isprintable()
        and len(text.encode("utf-8")) <= NAME_BYTES_MAX
    )


@lru_cache(maxsize=1024)
def python_fits(asked: str, python: str, python_full: str) -> bool:
    """Compare versions by as many numbers as each clause states."""
    digits = re.match(r"[0-9]{1,3}(?:\.[0-9]{1,3}){0,2}", python_full or python)
    if digits is None:
        return False
    version = tuple(int(number) for number in digits[0].split("."))
    for part in asked.split(","):
        found = _CLAUSE.fullmatch(part)
        if found is None:
            return False
        wanted = tuple(int(number) for number in found[2].split("."))
        there = version[: len(wanted)]
        fine = {
            "": there == wanted,
            "==": there == wanted,
            ">=": there >= wanted,
            "<=": there <= wanted,
            ">": there > wanted,
            "<": there < wanted,
        }[found[1]]
        if not fine:
            return False
    return True
