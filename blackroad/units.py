"""Sizes, shares and durations: text a person writes, whole numbers the program counts with.

Inside blackroad a size is a whole number of bytes, a duration a whole number of milliseconds and
a share of processor time a whole number of 1/10000 cores.  This file knows no limits but the
largest number each of them may be, and nothing about what is measured.
"""

from __future__ import annotations

import datetime
import re
from decimal import Decimal
from fractions import Fraction
from typing import Final

from blackroad.errors import UnitError

# The largest whole number that JSON readers in other languages still hold exactly.
BYTES_MAX: Final = 2**53 - 1
MS_MAX: Final = 3650 * 86_400_000
CPU_UNITS_PER_CORE: Final = 10_000
CPU_UNITS_MAX: Final = 4096 * CPU_UNITS_PER_CORE

_TEXT_MAX: Final = 64
_BYTES_HINT: Final = "write 900MB (decimal), 2GiB (binary), 1.5GiB, or a whole number of bytes"
_MS_HINT: Final = "write 250ms, 1.5s, 10m, 2h, 1d, 1h30m, or a number of seconds"
_CPU_HINT: Final = "write a number of cores, like 1, 0.5 or 8"

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([a-z]*)", re.IGNORECASE)
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([a-z]+)\s*", re.IGNORECASE)

_BYTES_PER: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "pb": 10**15,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "pib": 2**50,
}
_AMBIGUOUS: Final = {"k": "KB or KiB", "m": "MB or MiB", "g": "GB or GiB", "t": "TB or TiB"}
_MS_PER: Final = {
    "ms": 1,
    "s": 1000,
    "sec": 1000,
    "m": 60_000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
}
_BINARY_NAMES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL_NAMES: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def parse_bytes(given: object, what: str = "size") -> int:
    """Read a size such as "2GiB", "900MB", "1.5 GiB" or 2048.

    Units      a bare number is bytes; kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024.
    Precision  exact; a fraction of a byte counts as a whole one.
    Raises     UnitError naming `what`, the text given and the forms allowed.
    """
    if isinstance(given, int) and not isinstance(given, bool):
        return _bounded(Fraction(given), BYTES_MAX, given, what, _BYTES_HINT)
    if not isinstance(given, str):
        raise _unreadable(given, what, "a size", _BYTES_HINT)
    found = _SIZE.fullmatch(_trimmed(given, what, "a size", _BYTES_HINT))
    if found is None:
        raise _unreadable(given, what, "a size", _BYTES_HINT)
    unit = found[2].lower()
    if unit in _AMBIGUOUS:
        raise UnitError(
            f"{what}: {given!r} could mean powers of 1000 or of 1024",
            hint=f"write {_AMBIGUOUS[unit]} instead of {found[2]}",
        )
    if unit not in _BYTES_PER:
        raise _unreadable(given, what, "a size", _BYTES_HINT)
    exact = Fraction(found[1]) * _BYTES_PER[unit]
    return _bounded(exact, BYTES_MAX, given, what, _BYTES_HINT)


def parse_ms(given: object, what: str = "duration") -> int:
    """Read a duration such as "10m", "1.5s", "250ms", "1h30m", 10 or a timedelta.

    Units      a bare number is seconds; the answer is milliseconds.
    Precision  exact, a float as it is printed; a fraction of a millisecond counts as a whole one.
    Raises     UnitError naming `what`, the text given and the forms allowed.
    """
    if isinstance(given, datetime.timedelta):
        exact = Fraction(given // datetime.timedelta(microseconds=1), 1000)
        return _bounded(exact, MS_MAX, given, what, _MS_HINT)
    if isinstance(given, str):
        text = _trimmed(given, what, "a duration", _MS_HINT)
        exact = Fraction(text) * 1000 if _NUMBER.fullmatch(text) else _spans(text, given, what)
        return _bounded(exact, MS_MAX, given, what, _MS_HINT)
    number = _plain_number(given, what, "a duration", _MS_HINT)
    return _bounded(number * 1000, MS_MAX, given, what, _MS_HINT)


def parse_cpu_units(given: object, what: str = "cpu") -> int:
    """Read a number of cores such as 1, 0.5 or "2" as 1/10000 cores, rounded up.

    Precision  exact, a float as it is printed.
    Raises     UnitError naming `what`, the value given and the forms allowed.
    """
    if isinstance(given, str):
        text = _trimmed(given, what, "a number of cores", _CPU_HINT)
        if _NUMBER.fullmatch(text) is None:
            raise _unreadable(given, what, "a number of cores", _CPU_HINT)
        number = Fraction(text)
    else:
        number = _plain_number(given, what, "a number of cores", _CPU_HINT)
    return _bounded(number * CPU_UNITS_PER_CORE, CPU_UNITS_MAX, given, what, _CPU_HINT)


def format_bytes(size_bytes: int) -> str:
    """Write a size the way a person would: "2 GiB", "900 MB", "858.4 MiB".

    Precision  exact when the size is a whole number of some unit, else one decimal.
    """
    sign, size = ("-", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    whole = _whole(size, 1024, _BINARY_NAMES) or _whole(size, 1000, _DECIMAL_NAMES)
    if whole:
        return sign + whole
    power = 0
    while power + 1 < len(_BINARY_NAMES) and size >= 1024 ** (power + 1):
        power += 1
    tenths = _rounded(size * 10, 1024**power)
    if tenths >= 10_240 and power + 1 < len(_BINARY_NAMES):
        power += 1
        tenths = _rounded(size * 10, 1024**power)
    return f"{sign}{_one_decimal(tenths)} {_BINARY_NAMES[power]}"


def format_ms(duration_ms: int) -> str:
    """Write a duration with at most two units: "250 ms", "1.5 s", "10 min", "2 h 5 min"."""
    sign, ms = ("-", -duration_ms) if duration_ms < 0 else ("", duration_ms)
    if ms < 1000:
        return f"{sign}{ms} ms"
    if ms < 60_000:
        return f"{sign}{_one_decimal(ms // 100)} s"
    pairs = ((86_400_000, "d", 3_600_000, "h"), (3_600_000, "h", 60_000, "min"))
    for large, large_name, small, small_name in (*pairs, (60_000, "min", 1000, "s")):
        if ms >= large:
            rest = ms % large // small
            tail = f" {rest} {small_name}" if rest else ""
            return f"{sign}{ms // large} {large_name}{tail}"
    raise AssertionError(duration_ms)


def format_cpu_units(cpu_units: int) -> str:
    """Write 1/10000 cores as cores: "1", "0.5", "2.25"."""
    whole, rest = divmod(cpu_units, CPU_UNITS_PER_CORE)
    return f"{whole}.{rest:04d}".rstrip("0").rstrip(".")


def _spans(text: str, given: object, what: str) -> Fraction:
    """Add up "1h30m"; each unit at most once, the larger first."""
    total, at, last = Fraction(0), 0, MS_MAX
    while at < len(text):
        found = _SPAN.match(text, at)
        per_ms = _MS_PER.get(found[2].lower()) if found else None
        if found is None or per_ms is None or per_ms >= last:
            raise _unreadable(given, what, "a duration", _MS_HINT)
        total += Fraction(found[1]) * per_ms
        at, last = found.end(), per_ms
    return total


def _plain_number(given: object, what: str, kind: str, hint: str) -> Fraction:
    if isinstance(given, bool):
        raise _unreadable(given, what, kind, hint)
    if isinstance(given, (int, Fraction)):
        return Fraction(given)
    if isinstance(given, Decimal) and given.is_finite():
        # A huge exponent would become an integer of as many digits.
        if given.adjusted() > 30 or given.adjusted() < -30:
            raise _unreadable(given, what, kind, hint)
        return Fraction(given)
    if isinstance(given, float) and given == given and abs(given) < 1e30:
        return Fraction(repr(float(given)))
    raise _unreadable(given, what, kind, hint)


def _bounded(exact: Fraction, largest: int, given: object, what: str, hint: str) -> int:
    number = -((-exact.numerator) // exact.denominator)
    if exact < 0:
        raise UnitError(f"{what}: {_shown(given)} is below 0", hint=hint)
    if number > largest:
        raise UnitError(f"{what}: {_shown(given)} is more than any machine has", hint=hint)
    return number


def _trimmed(text: str, what: str, kind: str, hint: str) -> str:
    trimmed = text.strip()
    if not trimmed or len(trimmed) > _TEXT_MAX:
        raise _unreadable(text, what, kind, hint)
    return trimmed


def _unreadable(given: object, what: str, kind: str, hint: str) -> UnitError:
    return UnitError(f"{what}: cannot read {_shown(given)} as {kind}", hint=hint)


def _shown(given: object) -> str:
    if isinstance(given, int) and given.bit_length() > 256:
        # Printing a huge integer is refused by Python itself.
        return f"an integer of {given.bit_length()} bits"
    text = repr(given)
    return text if len(text) <= 80 else text[:77] + "..."


def _whole(size: int, base: int, names: tuple[str, ...]) -> str:
    """The size as a whole number of the largest unit that divides it, or ""."""
    power = 0
    while power + 1 < len(names) and size and size % base ** (power + 1) == 0:
        power += 1
    count = size // base**power
    return f"{count} {names[power]}" if count < base else ""


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _one_decimal(tenths: int) -> str:
    whole, tenth = divmod(tenths, 10)
    return f"{whole}.{tenth}" if tenth else str(whole)
