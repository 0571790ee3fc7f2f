"""Names of topics, and the patterns that subscribers choose them by.

Source  docs/protocol.md, "Topics"; docs/topics.md for people.  Pure.  This file must not know
values, subscribers or messages.

A name is a path: `lab/oven/temperature`.  In a pattern `*` stands for exactly one segment, and a
`#` at the end for all that follows, nothing included.  What daemons publish for themselves is
chosen only where a pattern names the first segment.
"""

from __future__ import annotations

import re
from typing import Final

from blackroad.errors import UsageError
from blackroad.limits import NAME_BYTES_MAX, TOPIC_PREFIXES_MAX

RESERVED: Final = ("sys", "blackroad")
ONE: Final = "*"
REST: Final = "#"
_NAME = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
_SEGMENT = re.compile(r"[A-Za-z0-9_.-]+")
_LETTERS = "segments of A-Z a-z 0-9 _ . - with / between them"


def is_name(text: str) -> bool:
    """Tell whether that is the name of a topic."""
    return len(text) <= NAME_BYTES_MAX and _NAME.fullmatch(text) is not None


def is_reserved(name: str) -> bool:
    """Tell whether only daemons may publish there."""
    return name.partition("/")[0] in RESERVED


def check_name(text: str) -> str:
    """Return the name of a topic that a program may publish on.

    Raises  UsageError saying what is wrong with it.
    """
    _check_length("topic", text)
    if not is_name(text):
        if _is_pattern(text):
            raise UsageError(
                f"`{text}` is a pattern, and a value is published on one topic",
                hint="patterns are for subscribers; leave out * and #",
            )
        raise UsageError(f"`{text}` is no name of a topic", hint=f"names are {_LETTERS}")
    if is_reserved(text):
        raise UsageError(
            f"`{text}` is reserved: topics below {' and '.join(f'{one}/' for one in RESERVED)} "
            "are published by daemons alone",
            hint="choose another first segment",
        )
    return text


def _check_length(what: str, text: str) -> None:
    if not 1 <= len(text) <= NAME_BYTES_MAX:
        raise UsageError(
            f"a {what} has 1 to {NAME_BYTES_MAX} characters, not {len(text)}",
            hint="lab/temperature, for instance",
        )


def _is_pattern(text: str) -> bool:
    try:
        Pattern(text)
    except UsageError:
        return False
    return True


class Pattern:
    """A pattern, and which names it chooses.

    `prefix` is how every name it chooses begins, once a `/` is put at the name's end.

    Raises  UsageError where it cannot be read, naming what is meant by other buses' signs.
    """

    __slots__ = ("_open", "_segments", "prefix", "text")

    def __init__(self, text: str) -> None:
        _check_length("pattern", text)
        segments = text.split("/")
        self._open = segments[-1] == REST
        if self._open:
            segments.pop()
        for segment in segments:
            if segment != ONE and _SEGMENT.fullmatch(segment) is None:
                raise UsageError(f"`{text}` is no pattern: {_fault(segment)}", hint=_HINT)
        self.text = text
        self._segments = segments
        literal = next((at for at, one in enumerate(segments) if one == ONE), len(segments))
        self.prefix = "".join(f"{one}/" for one in segments[:literal])

    def matches(self, name: str) -> bool:
        """Tell whether it chooses that name."""
        found = name.split("/")
        wanted = self._segments
        if found[0] in RESERVED and (not wanted or wanted[0] == ONE):
            # Whoever wants everything wants what programs say.
            return False
        if len(found) < len(wanted) or (len(found) > len(wanted) and not self._open):
            return False
        return all(one in (ONE, there) for one, there in zip(wanted, found, strict=False))


_HINT: Final = "`*` is one segment, `#` at the end the rest: lab/*/temperature, lab/#"


def _fault(segment: str) -> str:
    if segment == REST:
        return "`#` may only be its last segment"
    if segment == "+":
        return "one segment is written `*` here, not `+`"
    if segment == "**":
        return "the rest is written `#` here, not `**`"
    if ONE in segment or REST in segment:
        return f"`*` and `#` stand for whole segments, not for part of `{segment}`"
    if not segment:
        return "a segment is empty"
    return f"`{segment}` is not made of A-Z a-z 0-9 _ . -"


def cover(prefixes: set[str]) -> tuple[str, ...]:
    """Return the fewest beginnings that cover all of these; everything where they are too many."""
    kept: list[str] = []
    for prefix in sorted(prefixes):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return tuple(kept) if len(kept) <= TOPIC_PREFIXES_MAX else ("",)
