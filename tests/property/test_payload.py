"""Any plain value comes back as it was; any bytes at all raise nothing but RemoteProtocolError."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from blackroad.bus import payload, work
from blackroad.errors import RemoteProtocolError
from tests.unit.test_payload import same

offsets = st.integers(-23 * 60, 23 * 60).map(lambda m: dt.timezone(dt.timedelta(minutes=m)))
hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.datetimes(timezones=st.none() | offsets),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4),
    max_leaves=6,
)
dtypes = (
    hnp.integer_dtypes(endianness="?")
    | hnp.floating_dtypes(endianness="?")
    | hnp.complex_number_dtypes()
    | hnp.boolean_dtypes()
    | hnp.datetime64_dtypes()
    | hnp.unicode_string_dtypes(max_len=8)
    | hnp.byte_string_dtypes(max_len=8)
)
arrays = hnp.arrays(
    dtypes | hnp.array_dtypes(dtypes, max_size=4),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=40),
    fill=st.nothing(),
)
plain_values = st.recursive(
    hashable | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=5)
        | st.sets(hashable, max_size=4)
    ),
    max_leaves=20,
)


@given(plain_values)
@settings(max_examples=100, deadline=None)
def test_plain_values_come_back(value: Any) -> None:
    data = payload.join(payload.encode(value))
    assert payload.codec_of(data) in (payload.PLAIN, payload.RAW)
    assert same(payload.decode(data, allow_pickle=False), value)


@st.composite
def any_arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    array = draw(st.one_of(hnp.arrays(np.uint16, st.integers(0, 3000)), small_arrays()))
    how = draw(st.sampled_from(["as it is", "fortran", "stepped"]))
    if how == "fortran":
        return np.asfortranarray(array)
    return array[::2] if how == "stepped" and array.ndim else array


@st.composite
def small_arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype = draw(dtypes | hnp.array_dtypes(dtypes, max_size=3))
    shape = draw(hnp.array_shapes(min_dims=0, min_side=0, max_side=6))
    count = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=count, max_size=count))
    if dtype.itemsize == 0 or dtype.kind in "U" or dtype.fields is not None or count == 0:
        return np.zeros(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(("\ud800", "x" * 1100, b"\xc7\x00\x01", (1,), [2.5], {3}))
)


def the_long_way(monkey: pytest.MonkeyPatch) -> None:
    """Leave out the shortcuts for what is small and simple."""
    monkey.setattr(payload, "_SCALARS", frozenset())
    monkey.setattr(payload, "_SCALAR_KINDS", frozenset())
    monkey.setattr(payload, "_CALL_KIND", -1)


@given(st.lists(scalars, max_size=18), st.dictionaries(st.text(max_size=3), scalars, max_size=1))
@settings(max_examples=200, deadline=None)
def test_shortcuts_change_nothing(args: list[Any], kwargs: dict[str, Any]) -> None:
    """A call and its parts travel as the same bytes, and come back as the same values."""
    values: list[Any] = [(tuple(args), kwargs), args, *args]
    short = [payload.join(payload.encode_call(tuple(args), kwargs))]
    short += [payload.join(payload.encode(one)) for one in values]
    opened = [payload.decode(one) for one in short]
    with pytest.MonkeyPatch.context() as monkey:
        the_long_way(monkey)
        assert short == [payload.join(payload.encode(one)) for one in [values[0], *values]]
        for one, found in zip(short, opened, strict=True):
            assert same(payload.decode(one), found)


@given(st.binary(max_size=40), st.sampled_from((b"", b"\x93\xc7\x00\x01\x92\xc7\x00\x01")))
@settings(max_examples=200, deadline=None)
def test_shortcuts_refuse_alike(noise: bytes, begin: bytes) -> None:
    body = begin + noise
    data = payload._FIXED.pack(0x92, payload.PLAIN, 0xCF, len(body)) + body

    def outcome() -> object:
        try:
            return payload.decode(data)
        except RemoteProtocolError:
            return RemoteProtocolError

    short = outcome()
    with pytest.MonkeyPatch.context() as monkey:
        the_long_way(monkey)
        assert same(outcome(), short)


@given(st.lists(any_arrays(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_arrays_come_back(values: list[np.ndarray[Any, Any]]) -> None:
    data = payload.join(payload.encode(values))
    for buffer in (data, bytearray(data)):
        for back, value in zip(payload.decode(buffer), values, strict=True):
            assert same(back, value)
            assert back.flags.writeable


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_noise_is_refused(data: bytes) -> None:
    for buffer in (data, payload._FIXED.pack(0x92, 0, 0xCF, len(data)) + data):
        try:
            payload.decode(buffer, allow_pickle=False)
        except RemoteProtocolError:
            continue
    for opened in (work.decode_work, work.decode_failure):
        try:
            opened(data)
        except RemoteProtocolError:
            continue


changes = st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4)


@given(plain_values, changes, st.data())
@settings(max_examples=100, deadline=None)
def test_damage_is_refused_or_harmless(
    value: Any, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    damaged = bytearray(payload.join(payload.encode([value, np.arange(400)])))
    for place, byte in changes:
        damaged[place % len(damaged)] = byte
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        payload.decode(bytes(damaged), allow_pickle=False)
    except RemoteProtocolError:
        return


@given(
    st.one_of(
        st.builds(work.Call, st.text(max_size=120), st.binary()),
        st.builds(work.MapCall, st.text(max_size=120), st.booleans(), st.binary()),
        st.builds(work.KernelRun, st.text(max_size=120), st.binary(max_size=3000)),
        st.builds(
            work.Command,
            st.lists(st.text(max_size=9), min_size=1, max_size=5),
            st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
            st.text(max_size=9),
            st.binary(),
        ),
    )
)
@settings(max_examples=100, deadline=None)
def test_work_comes_back(todo: work.Work) -> None:
    assert work.decode_work(payload.join(work.encode_work(todo))) == todo
