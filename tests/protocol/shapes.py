"""Values just inside and just outside the limits of every message, read from its annotations.

A value is written as plain MessagePack data (lists, bytes, integers), so that the other side of
each test is a decoder which knows nothing of our types.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from msgspec import inspect

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.admission import INVITE_BYTES
from blackroad.bus.keys import KEY_BYTES
from blackroad.ids import NODE_BYTES
from blackroad.limits import LEASE_MS_MAX, LEASE_MS_MIN

SCOPES = (codec.PEER, codec.CLIENT, codec.OWNER, codec.BULK, codec.TELEMETRY, codec.DOOR)
# Ids and keys: where none is needed, they are whole or absent.
WHOLE_BYTES = (INVITE_BYTES, NODE_BYTES, KEY_BYTES)
INT_MIN, INT_MAX = -(2**63), 2**64 - 1


def kind_of(cls: type[m.Message]) -> int:
    """The kind's number on the wire."""
    tag = cls.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


def scope_of(cls: type[m.Message]) -> codec.Scope:
    """A socket on which this kind may come."""
    return next(scope for scope in SCOPES if kind_of(cls) in scope._tags)


def fields(cls: type) -> list[tuple[str, inspect.Type]]:
    """Names and types of a message's fields, in wire order."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return [(field.encode_name, field.type) for field in info.fields]


# --- one value ------------------------------------------------------------------------------------


def plain(kind: inspect.Type) -> Any:
    """One small valid value."""
    match kind:
        case inspect.IntType():
            return max(0, kind.ge or 0)
        case inspect.BoolType():
            return False
        case inspect.NoneType():
            return None
        case inspect.StrType():
            return ""
        case inspect.BytesType():
            return b"n" * (kind.min_length or 0)
        case inspect.EnumType():
            return next(iter(kind.cls)).value
        case inspect.VarTupleType():
            return [plain(kind.item_type)] * (kind.min_length or 0)
        case inspect.NamedTupleType() | inspect.StructType():
            return [plain(field.type) for field in kind.fields]
        case inspect.UnionType():
            return plain(kind.types[0])
    raise AssertionError(f"no plain value for {kind}")


def values(cls: type[m.Message]) -> list[Any]:
    """A small valid message of this kind, as plain data."""
    return [kind_of(cls), *(plain(kind) for _, kind in fields(cls))]


def edges(kind: inspect.Type) -> Iterator[tuple[str, Any, bool]]:
    """Name, value and whether it is allowed, on both sides of each limit of one type."""
    match kind:
        case inspect.IntType():
            yield from _int_edges(kind)
        case inspect.StrType():
            assert kind.max_length is not None, "a text without a limit"
            yield "longest", "x" * kind.max_length, True
            yield "too long", "x" * (kind.max_length + 1), False
            yield "not a text", b"x", False
        case inspect.BytesType():
            assert kind.max_length is not None, "bytes without a limit"
            yield "longest", b"x" * kind.max_length, True
            yield "too long", b"x" * (kind.max_length + 1), False
            if kind.min_length:
                yield "too short", b"x" * (kind.min_length - 1), False
        case inspect.EnumType():
            numbers = [one.value for one in kind.cls]
            yield "last", max(numbers), True
            yield "unknown value", max(numbers) + 1, False
        case inspect.VarTupleType():
            assert kind.max_length is not None, "a list without a limit"
            item = plain(kind.item_type)
            yield "most", [item] * kind.max_length, True
            yield "too many", [item] * (kind.max_length + 1), False
            if kind.min_length:
                yield "too few", [item] * (kind.min_length - 1), False
            for name, value, fine in edges(kind.item_type):
                yield f"item {name}", [value], fine
        case inspect.NamedTupleType() | inspect.StructType():
            for at, field in enumerate(kind.fields):
                for name, value, fine in edges(field.type):
                    whole = plain(kind)
                    whole[at] = value
                    yield f"{field.name} {name}", whole, fine
        case inspect.UnionType():
            for one in kind.types:
                for name, value, fine in edges(one):
                    yield name, value, fine
        case inspect.BoolType():
            yield "not a truth", 1, False


def _int_edges(kind: inspect.IntType) -> Iterator[tuple[str, Any, bool]]:
    assert kind.ge is not None, "a number without a lower limit"
    assert kind.le is not None, "a number without an upper limit"
    yield "lowest", kind.ge, True
    yield "highest", kind.le, True
    if kind.ge > INT_MIN:
        yield "too low", kind.ge - 1, False
    if kind.le < INT_MAX:
        yield "too high", kind.le + 1, False
    yield "no integer", 1.5, False


# --- any value ------------------------------------------------------------------------------------


def anything(kind: inspect.Type, size: int = 24) -> st.SearchStrategy[Any]:
    """Hypothesis data for one type, within its limits, lists and texts kept short."""
    match kind:
        case inspect.IntType():
            low, high = kind.ge or 0, kind.le if kind.le is not None else INT_MAX
            if (low, high) == (0, LEASE_MS_MAX):
                return st.just(0) | st.integers(LEASE_MS_MIN, LEASE_MS_MAX)
            return st.integers(low, high)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.StrType():
            return st.text(max_size=min(size, kind.max_length or size))
        case inspect.BytesType():
            least = kind.min_length or 0
            if not least and kind.max_length in WHOLE_BYTES:
                whole = kind.max_length
                return st.just(b"") | st.binary(min_size=whole, max_size=whole)
            most = max(least, min(size, kind.max_length or size))
            return st.binary(min_size=least, max_size=most)
        case inspect.EnumType():
            return st.sampled_from([one.value for one in kind.cls])
        case inspect.VarTupleType():
            least = kind.min_length or 0
            most = max(least, min(3, kind.max_length or 3))
            return st.lists(anything(kind.item_type), min_size=least, max_size=most)
        case inspect.NamedTupleType() | inspect.StructType():
            return st.tuples(*(anything(field.type) for field in kind.fields)).map(list)
        case inspect.UnionType():
            return st.one_of([anything(one) for one in kind.types])
    raise AssertionError(f"no strategy for {kind}")


def any_values(cls: type[m.Message]) -> st.SearchStrategy[list[Any]]:
    """Hypothesis data for a whole message of this kind."""
    parts = [anything(kind) for _, kind in fields(cls)]
    return st.tuples(*parts).map(lambda found: [kind_of(cls), *found])


def any_message() -> st.SearchStrategy[tuple[type[m.Message], list[Any]]]:
    """Hypothesis data for a message of any kind, with its class."""
    return st.one_of([st.tuples(st.just(cls), any_values(cls)) for cls in m.ALL_MESSAGES])
