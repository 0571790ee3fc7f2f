"""The vectors: hex bytes and the message they mean, checked with two decoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import msgspec
import pytest

from blackroad.bus import codec
from blackroad.bus import messages as m
from tests.protocol.shapes import kind_of, scope_of

FOLDER = Path(__file__).parent / "vectors"
CLASSES = {cls.__name__: cls for cls in m.ALL_MESSAGES}


class Vector(NamedTuple):
    """One example of a message."""

    cls: type[m.Message]
    title: str
    fields: dict[str, Any]
    raw: bytes


def load(path: Path) -> list[Vector]:
    """Read one file of vectors."""
    vectors: list[Vector] = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        head, *lines = block.splitlines()
        name, title = head.split(maxsplit=1)
        texts = [line.strip() for line in lines]
        raw = bytes.fromhex("".join(text[2:] for text in texts if text.startswith("= ")))
        pairs = [text.split(": ", 1) for text in texts if not text.startswith("= ")]
        fields = {field: _bytes(json.loads(value)) for field, value in pairs}
        vectors.append(Vector(CLASSES[name], title, fields, raw))
    return vectors


def _bytes(value: Any) -> Any:
    """Turn what JSON cannot say back into bytes."""
    if isinstance(value, str) and value.startswith("hex:"):
        return bytes.fromhex(value[4:])
    return [_bytes(one) for one in value] if isinstance(value, list) else value


FILES = sorted(path for path in FOLDER.glob("*.txt") if path.name != "README.txt")
VECTORS = [vector for path in FILES for vector in load(path)]


def test_every_kind_has_a_vector() -> None:
    """Section 17: all kinds, each in the file that bears its name."""
    assert {vector.cls for vector in VECTORS} == set(m.ALL_MESSAGES)
    assert {path.stem for path in FILES} == {name.lower() for name in CLASSES}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v.cls.__name__}: {v.title}")
def test_the_reference_decoder_agrees(vector: Vector) -> None:
    """R-frame-1: an array whose first element is the kind, then the fields in wire order."""
    assert msgpack.unpackb(vector.raw) == [kind_of(vector.cls), *vector.fields.values()]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v.cls.__name__}: {v.title}")
def test_ours_reads_and_writes_the_same(vector: Vector) -> None:
    """R-frame-2: fields are only appended, so a vector's are the first ones for ever."""
    found, unknown = scope_of(vector.cls).decode(codec.frame_of([vector.raw]))
    assert (len(found), unknown, type(found[0])) == (1, 0, vector.cls)
    names = vector.cls.__struct_fields__[: len(vector.fields)]
    assert names == tuple(vector.fields)
    for name, value in vector.fields.items():
        read = msgspec.to_builtins(getattr(found[0], name), builtin_types=(bytes,))
        assert _lists(read) == value, name
    written = msgpack.unpackb(codec.encode(found[0]))
    assert written[: 1 + len(names)] == msgpack.unpackb(vector.raw)


def _lists(value: Any) -> Any:
    """Write tuples as lists, as they travel."""
    return [_lists(one) for one in value] if isinstance(value, list | tuple) else value
