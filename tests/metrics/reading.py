"""A reader of the text form of figures that knows nothing of how they are written."""

from __future__ import annotations

import re

_LINE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (-?[0-9.]+(?:e[+-]?[0-9]+)?|[+-]Inf|NaN)"
)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(?:,|$)')
_SUFFIX = re.compile(r"_(bucket|sum|count)$")

Labels = tuple[tuple[str, str], ...]
Series = dict[tuple[str, Labels], float]


def read(body: bytes) -> Series:
    """All figures of a page; an AssertionError where a line is none, or a figure stands twice."""
    found: Series = {}
    types: dict[str, str] = {}
    current = ""
    text = body.decode("utf-8")
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types, f"{name} is described twice"
            types[name] = kind
            current = name
            continue
        if line.startswith("# HELP "):
            continue
        match = _LINE.fullmatch(line)
        assert match, f"no figure: {line!r}"
        family = match[1] if match[1] in types else _SUFFIX.sub("", match[1])
        assert family == current, f"{match[1]} stands apart from its description"
        labels: list[tuple[str, str]] = []
        rest = match[2] or ""
        while rest:
            label = _LABEL.match(rest)
            assert label, f"no label: {rest!r} in {line!r}"
            value = re.sub(r"\\(.)", lambda one: "\n" if one[1] == "n" else one[1], label[2])
            labels.append((label[1], value))
            rest = rest[label.end() :]
        key = (match[1], tuple(labels))
        assert key not in found, f"{key} is there twice"
        found[key] = float(match[3])
    return found


def values(series: Series, name: str) -> dict[tuple[str, ...], float]:
    """One figure by the values of its labels."""
    return {
        tuple(value for _, value in labels): number
        for (one, labels), number in series.items()
        if one == name
    }


def value(series: Series, name: str) -> float:
    """A figure that has no labels."""
    return series[name, ()]
