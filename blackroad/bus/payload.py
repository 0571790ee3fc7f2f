"""How values and functions travel between programs and task processes.

A payload is a list of segments: a small header, a body, and the raw bytes of large arrays, each
at a multiple of 64 bytes, so that they are neither copied into a message nor copied out of a
mapped file.  Plain data travels as data and means the same on every machine; whatever else the
value holds makes it a pickle.  This file must not know tasks, messages, sockets or files.
"""

from __future__ import annotations

import ast
import datetime as dt
import functools
import math
import pickle
import re
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import msgpack
import msgspec

from blackroad.bus.code import (
    BUFFER_BYTES_MIN,
    BUFFERS_MAX,
    DIGEST_BYTES,
    encode_function,
    not_picklable,
    pickled,
    pickled_by_value,
    sealed_function,
)
from blackroad.digest import blake2b
from blackroad.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from mmap import mmap

__all__ = [
    "ALIGNMENT_BYTES",
    "CLOUDPICKLE",
    "DIGEST_BYTES",
    "PICKLE",
    "PLAIN",
    "RAW",
    "Segment",
    "codec_of",
    "decode",
    "digest_of",
    "encode",
    "encode_call",
    "encode_function",
    "join",
    "sealed_function",
    "total_bytes",
]

Segment = bytes | memoryview

PLAIN: Final = 0  # MessagePack with the types below; safe to open anywhere
PICKLE: Final = 1  # pickle protocol 5, every class importable where it is opened
CLOUDPICKLE: Final = 2  # the same, with classes and functions carried along
RAW: Final = 3  # one bytes object, as it is

ALIGNMENT_BYTES: Final = 64  # widest vector register and a cache line
PLAIN_BODY_BYTES_MAX: Final = 64 * 1024 * 1024  # empty lists grow 73 times when they are opened
IN_PLACE_BYTES_MIN: Final = 64 * 1024  # smaller ones are copied out, to let go of the buffer
DTYPE_TEXT_MAX: Final = 64 * 1024
DIMENSIONS_MAX: Final = 64

_FIXED = struct.Struct(">BBBQ")  # array of two or three, codec, uint64 body length
_COUNT = struct.Struct(">BH")  # array16 of buffer lengths
_ARRAY2, _ARRAY3, _UINT64, _ARRAY16 = 0x92, 0x93, 0xCF, 0xDC
_DATETIME = struct.Struct("<HBBBBBIBBi")
_COMPLEX = struct.Struct("<dd")

_TUPLE_CODE, _SET_CODE, _FROZENSET_CODE = 1, 2, 3
_INT_CODE, _COMPLEX_CODE, _DATETIME_CODE, _ARRAY_CODE, _SCALAR_CODE = 4, 5, 6, 7, 8


class _NotPlain(Exception):
    """The value holds something that plain data has no form for."""


class _Opening:
    """First item of a list that stands for another container."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[[list[Any]], Any]) -> None:
        self.build = build


_OPENINGS: Final = {
    _TUPLE_CODE: _Opening(tuple),
    _SET_CODE: _Opening(set),
    _FROZENSET_CODE: _Opening(frozenset),
}
_MARKS: Final[dict[type, Any]] = {
    tuple: msgpack.ExtType(_TUPLE_CODE, b""),
    set: msgpack.ExtType(_SET_CODE, b""),
    frozenset: msgpack.ExtType(_FROZENSET_CODE, b""),
}

# --- sizes --------------------------------------------------------------------------------------


def total_bytes(segments: Iterable[Segment]) -> int:
    """Count the bytes that `join` would return."""
    return sum(map(len, segments))


def join(segments: Iterable[Segment]) -> bytes:
    """Put the segments together in one piece.

    Cost  copies everything once; large payloads are better written segment by segment.
    """
    return b"".join(segments)


def digest_of(segments: Iterable[Segment] | Segment) -> bytes:
    """Name content: 32 bytes of BLAKE2b over the segments in order."""
    if isinstance(segments, bytes | memoryview):
        return blake2b(segments, digest_size=DIGEST_BYTES).digest()
    state = blake2b(digest_size=DIGEST_BYTES)
    for segment in segments:
        state.update(segment)
    return state.digest()


# --- values, outgoing ---------------------------------------------------------------------------


def encode(value: object, *, label: str = "value") -> list[Segment]:
    """Turn a value into segments; plain data stays data, the rest becomes a pickle.

    Cost    about 2 us for small arguments.  Arrays above 1 KiB are referred to, not copied: they
            must not be changed until the segments were sent or joined.
    Raises  NotPicklable naming the part that cannot travel, as a path that begins with `label`.
    """
    kind = type(value)
    if isinstance(value, bytes) and kind is bytes:
        return [_FIXED.pack(_ARRAY2, RAW, _UINT64, len(value)), value]
    if kind in _SCALARS or (isinstance(value, list) and _simple_list(value)):
        try:
            body = _pack_scalar(value)
            return [_FIXED.pack(_ARRAY2, PLAIN, _UINT64, len(body)), body]
        except (ValueError, OverflowError):
            pass  # a text that is no text, or an int that needs more than 64 bits
    try:
        return _segments(PLAIN, *_writer.write(value))
    except (_NotPlain, ValueError, TypeError, OverflowError, RecursionError):
        pass
    try:
        return _segments(PICKLE, *pickled(value))
    except Exception:
        pass
    try:
        return _segments(CLOUDPICKLE, *pickled_by_value(value))
    except Exception as error:
        raise not_picklable(value, label, error) from None


# What both packers write alike, and what holds nothing else.
_SCALARS: Final = frozenset({int, float, str, bool, type(None)})
_pack_scalar = msgspec.msgpack.Encoder().encode
_FEW: Final = 15  # what the short form of an array holds
_SMALL_BYTES: Final = 1024
_SMALL_HEADS: Final = tuple(
    _FIXED.pack(_ARRAY2, PLAIN, _UINT64, size) for size in range(_SMALL_BYTES)
)
# A pair as a tuple, whose first half is a tuple of so many; its second half is an empty dict.
_CALL_BEGINS: Final = tuple(
    bytes((0x93, 0xC7, 0, _TUPLE_CODE, 0x91 + count, 0xC7, 0, _TUPLE_CODE)) for count in range(_FEW)
)
_CALL_ENDS: Final = b"\x80"
_CALL_BYTES: Final = len(_CALL_BEGINS[0]) + len(_CALL_ENDS)


def _simple_list(value: list[Any]) -> bool:
    return type(value) is list and _SCALARS.issuperset(map(type, value))


def encode_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, label: str = "value"
) -> list[Segment]:
    """Turn the arguments of a call into what `encode((args, kwargs))` gives.

    Cost    half of that for a few numbers and short texts.
    Raises  NotPicklable.
    """
    if not kwargs and len(args) < _FEW and _SCALARS.issuperset(map(type, args)):
        try:
            items = _pack_scalar(args)
        except (ValueError, OverflowError):
            # A text that is no text, or an int that needs more than 64 bits.
            return encode((args, kwargs), label=label)
        size = len(items) - 1 + _CALL_BYTES
        if size < _SMALL_BYTES:
            return [_SMALL_HEADS[size], _CALL_BEGINS[len(args)] + items[1:] + _CALL_ENDS]
    return encode((args, kwargs), label=label)


def _segments(codec: int, body: bytes, buffers: list[memoryview]) -> list[Segment]:
    if not buffers:
        return [_FIXED.pack(_ARRAY2, codec, _UINT64, len(body)), body]
    lengths = b"".join(struct.pack(">BQ", _UINT64, len(buffer)) for buffer in buffers)
    header = b"".join(
        (
            _FIXED.pack(_ARRAY3, codec, _UINT64, len(body)),
            _COUNT.pack(_ARRAY16, len(buffers)),
            lengths,
        )
    )
    segments: list[Segment] = [header, body]
    end = len(header) + len(body)
    for buffer in buffers:
        if gap := -end % ALIGNMENT_BYTES:
            segments.append(bytes(gap))
        segments.append(buffer)
        end += gap + len(buffer)
    return segments


# The packer takes bytearray, memoryview and its own extension objects natively, which would come
# back as something else.  Each of them leaves one of these bytes in the output, so output without
# them (other than our own) proves that there were none, and only the rest is looked through.
_HARMLESS: Final = bytes(
    set(range(256)) - {0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8}
)
_FOREIGN: Final = frozenset({bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp})


class _PlainWriter(threading.local):
    """One packer a thread, with the arrays that the value at hand has left beside the body."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start afresh after an error, or when the packer has grown."""
        self._pack = msgpack.Packer(strict_types=True, default=self._default).pack
        self._buffers: list[memoryview] = []
        self._expected = 0

    def write(self, value: object) -> tuple[bytes, list[memoryview]]:
        self._expected = 0
        try:
            body: bytes = self._pack(value)
            if len(body.translate(None, _HARMLESS)) != self._expected:
                _refuse_foreign(value)
        except BaseException:
            self.renew()
            raise
        if len(body) > 1024 * 1024:
            buffers = self._buffers
            self.renew()
            if len(body) > PLAIN_BODY_BYTES_MAX:
                raise _NotPlain
            return body, buffers
        if self._buffers:
            buffers, self._buffers = self._buffers, []
            return body, buffers
        return body, []

    def _default(self, value: Any) -> object:
        kind = type(value)
        mark = _MARKS.get(kind)
        if mark is not None:
            self._expected += 1
            return [mark, *value]
        if kind is int:
            size = value.bit_length() // 8 + 1
            return self._extension(_INT_CODE, value.to_bytes(size, "little", signed=True))
        if kind is complex:
            return self._extension(_COMPLEX_CODE, _COMPLEX.pack(value.real, value.imag))
        if kind is dt.datetime:
            return self._extension(_DATETIME_CODE, _datetime_bytes(value))
        if kind.__module__ == "numpy":
            return self._numpy(value)
        raise _NotPlain

    def _extension(self, code: int, data: bytes) -> object:
        # Its own header byte, and whatever in length and data looks like one.
        size = len(data)
        length = b"" if size in (1, 2, 4, 8, 16) else size.to_bytes(4, "big")
        self._expected += 1 + len((length + data).translate(None, _HARMLESS))
        return msgpack.ExtType(code, data)

    def _numpy(self, value: Any) -> object:
        numpy = sys.modules["numpy"]
        if type(value) is numpy.ndarray:
            return self._array(value, numpy)
        if isinstance(value, numpy.generic):
            return self._extension(_SCALAR_CODE, _scalar_bytes(value, numpy))
        raise _NotPlain

    def _array(self, value: Any, numpy: Any) -> object:
        text, precision = _dtype_text(value.dtype)
        flags = value.flags
        fortran = flags.f_contiguous and not flags.c_contiguous
        flat = value.T if fortran else numpy.ascontiguousarray(value)
        place: object
        if value.nbytes < BUFFER_BYTES_MIN or len(self._buffers) >= BUFFERS_MAX:
            place = flat.tobytes()
        else:
            place = len(self._buffers)
            self._buffers.append(flat.reshape(-1).view(numpy.uint8).data)
        return self._extension(
            _ARRAY_CODE,
            msgspec.msgpack.encode((text, precision, fortran, value.shape, place)),
        )


_writer = _PlainWriter()


def _refuse_foreign(value: object) -> None:
    """Look through every container for types that the packer would have changed."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        kind = type(item)
        parts: list[Any]
        if kind is dict:
            parts = [*item, *item.values()]  # type: ignore[misc, attr-defined]
        elif kind in (list, tuple, set, frozenset):
            parts = item  # type: ignore[assignment]
        else:
            if kind in _FOREIGN:
                raise _NotPlain
            continue
        kinds = set(map(type, parts))
        if kinds & _FOREIGN:
            raise _NotPlain
        if kinds & _CONTAINERS:
            waiting.extend(part for part in parts if type(part) in _CONTAINERS)


_CONTAINERS: Final = frozenset({dict, list, tuple, set, frozenset})


def _datetime_bytes(value: dt.datetime) -> bytes:
    zone = value.tzinfo
    offset = 0
    if zone is not None:
        # A named or a geographic zone is more than its offset; an odd second would be lost.
        span = zone.utcoffset(None) if type(zone) is dt.timezone else None
        if span is None or zone != dt.timezone(span) or str(zone) != str(dt.timezone(span)):
            raise _NotPlain
        offset = span // dt.timedelta(microseconds=1)
        if offset % 1_000_000:
            raise _NotPlain
        offset //= 1_000_000
    return _DATETIME.pack(
        value.year,
        value.month,
        value.day,
        value.hour,
        value.minute,
        value.second,
        value.microsecond,
        value.fold,
        zone is not None,
        offset,
    )


# --- NumPy --------------------------------------------------------------------------------------

_SIMPLE_DTYPE: Final = re.compile(r"[<>|][biufcmMSUV][0-9]{1,9}(\[[0-9A-Za-zµ/]{1,32}\])?")


def _dtype_text(dtype: Any) -> tuple[str, int]:
    """Spell a dtype; the second part tells apart long doubles of different machines."""
    if dtype.hasobject or dtype.metadata is not None or dtype.isalignedstruct:
        raise _NotPlain
    return _spelled(dtype)


@functools.lru_cache(maxsize=256)
def _spelled(dtype: Any) -> tuple[str, int]:
    from numpy.lib import format as npy

    if dtype.fields is None:
        text = dtype.str
        if not _SIMPLE_DTYPE.fullmatch(text):
            raise _NotPlain
    else:
        text = repr(npy.dtype_to_descr(dtype))
        if len(text) > DTYPE_TEXT_MAX:
            raise _NotPlain
    precision = _precision(text)
    if _dtype_of(text, precision) != dtype:
        raise _NotPlain
    return text, precision


def _precision(text: str) -> int:
    """Mantissa bits where a long double is involved: 63 on x86, 112 on 64-bit ARM."""
    if "f16" not in text and "c32" not in text:
        return 0
    import numpy

    return int(numpy.finfo(numpy.longdouble).nmant)


@functools.lru_cache(maxsize=256)
def _dtype_of(text: str, precision: int) -> Any:
    import numpy
    from numpy.lib import format as npy

    if len(text) > DTYPE_TEXT_MAX:
        raise ValueError("dtype too long")
    if precision != _precision(text):
        raise ValueError("a long double of another kind of machine; send float64")
    if text.startswith("["):
        dtype = npy.descr_to_dtype(ast.literal_eval(text))
    elif _SIMPLE_DTYPE.fullmatch(text):
        dtype = numpy.dtype(text)
    else:
        raise ValueError("unknown dtype")
    if dtype.hasobject:
        raise ValueError("object dtype")
    return dtype


def _scalar_bytes(value: Any, numpy: Any) -> bytes:
    kind = type(value)
    if kind is numpy.str_:
        text = value[:]  # str() would leave out NULs at the end
        return msgspec.msgpack.encode(("str", 0, text.encode("utf-8", "surrogatepass")))
    if kind is numpy.bytes_:
        return msgspec.msgpack.encode(("bytes", 0, bytes(value)))
    dtype = value.dtype
    text, precision = _dtype_text(dtype)
    if not dtype.itemsize or numpy.dtype(text if dtype.fields is None else dtype).type is not kind:
        raise _NotPlain
    return msgspec.msgpack.encode((text, precision, value.tobytes()))


_scalar_decoder = msgspec.msgpack.Decoder(tuple[str, int, bytes])
_array_decoder = msgspec.msgpack.Decoder(tuple[str, int, bool, list[int], int | bytes])

# --- values, incoming ---------------------------------------------------------------------------


def decode(buffer: bytes | bytearray | memoryview | mmap, *, allow_pickle: bool = True) -> Any:
    """Give back the value.

    Arrays can always be written to: a writable buffer (a bytearray, a private mapping) serves
    large ones in place, anything else is copied.
    Raises  RemoteProtocolError for damaged bytes, and for pickles unless `allow_pickle`; opening
            a pickle may raise anything, and runs code: never do it in a daemon.
    """
    size = len(buffer)
    if _FIXED.size < size < _SMALL_BYTES and buffer[1] == PLAIN and buffer[0] == _ARRAY2:
        kind = buffer[_FIXED.size]
        if kind in _SCALAR_KINDS or kind == _CALL_KIND:
            found = _decode_small(bytes(buffer), size)
            if found is not _LARGER:
                return found
    view = memoryview(buffer)
    codec, body, buffers = _parts(view)
    if codec == PLAIN:
        return _decode_plain(body, buffers)
    if codec == RAW:
        return bytes(body)
    if not allow_pickle:
        raise RemoteProtocolError(
            "the payload is a pickle",
            hint="only task processes and clients open pickles; ask for the task's result",
        )
    return pickle.loads(body, buffers=[_writable(piece) for piece in buffers])


_LARGER: Final = object()
_SCALAR_KINDS: Final = frozenset(
    {
        *range(0x80),  # small int
        *range(0xA0, 0xC1),  # short text, nil
        *(0xC2, 0xC3, 0xCA, 0xCB),  # bool, float
        *range(0xCC, 0xD4),  # int
        *(0xD9, 0xDA, 0xDB),  # text
        *range(0xE0, 0x100),  # small negative int
    }
)
_CALL_KIND: Final = _CALL_BEGINS[0][0]
_LISTS: Final = {**dict.fromkeys(range(0x90, 0xA0), 1), 0xDC: 3, 0xDD: 5}  # bytes of the head
_Scalar = int | float | str | bool | None
_read_scalar = msgspec.msgpack.Decoder(_Scalar).decode
_read_scalars = msgspec.msgpack.Decoder(list[_Scalar]).decode


def _decode_small(data: bytes, size: int) -> Any:
    """Open one scalar, or the arguments of a call that are scalars; anything else is _LARGER.

    What does not fit in the least is left to the thorough way, which also says what is wrong.
    """
    start = _FIXED.size
    if data[:start] != _SMALL_HEADS[size - start]:
        return _LARGER
    try:
        if data[start] != _CALL_KIND:
            return _read_scalar(data[start:])
        items = start + _CALL_BYTES - 1
        count = data[start + 4] - 0x91 if size > items else -1
        if 0 <= count < _FEW and data[start:items] == _CALL_BEGINS[count] and data[-1] == 0x80:
            return tuple(_read_scalars(bytes((0x90 + count,)) + data[items:-1])), {}
    except (msgspec.MsgspecError, ValueError):
        pass
    return _LARGER


def _list_of_scalars(body: memoryview) -> list[Any] | None:
    """Open a list that holds nothing but scalars; None where it is something else, or damaged."""
    head = _LISTS.get(body[0], 0) if len(body) else 0
    if not head or len(body) <= head or body[head] not in _SCALAR_KINDS:
        return None
    try:
        return _read_scalars(body)
    except (msgspec.MsgspecError, ValueError):
        return None


def codec_of(buffer: bytes | bytearray | memoryview) -> int:
    """Tell how a payload is written, from its first bytes: PLAIN, PICKLE, CLOUDPICKLE or RAW.

    Raises  RemoteProtocolError where they begin no payload.
    """
    if len(buffer) < _FIXED.size or buffer[0] not in (_ARRAY2, _ARRAY3) or buffer[1] > RAW:
        raise RemoteProtocolError("these bytes are no payload")
    return buffer[1]


def _parts(view: memoryview) -> tuple[int, memoryview, list[memoryview]]:
    """Cut a payload into codec, body and buffers; every length is checked."""
    try:
        mark, codec, kind, body_bytes = _FIXED.unpack_from(view)
        end = _FIXED.size
        lengths: list[int] = []
        if mark == _ARRAY3:
            end, lengths = _lengths(view)
        elif mark != _ARRAY2:
            raise ValueError
        if kind != _UINT64 or codec > RAW:
            raise ValueError
    except (struct.error, ValueError):
        raise RemoteProtocolError("these bytes are no payload") from None
    body = view[end : end + body_bytes]
    end += body_bytes
    buffers = []
    for length in lengths:
        end += -end % ALIGNMENT_BYTES
        buffers.append(view[end : end + length])
        end += length
    if end != len(view):
        raise RemoteProtocolError(f"a payload of {end} bytes came as {len(view)}")
    return codec, body, buffers


def _lengths(view: memoryview) -> tuple[int, list[int]]:
    mark, count = _COUNT.unpack_from(view, _FIXED.size)
    start = _FIXED.size + _COUNT.size
    if mark != _ARRAY16 or count > BUFFERS_MAX:
        raise ValueError
    fields = struct.unpack_from(">" + "BQ" * count, view, start)
    if any(kind != _UINT64 for kind in fields[::2]):
        raise ValueError
    return start + 9 * count, list(fields[1::2])


def _writable(piece: memoryview) -> memoryview | bytearray:
    if piece.readonly or len(piece) < IN_PLACE_BYTES_MIN:
        return bytearray(piece)
    return piece


_skim = msgspec.msgpack.Decoder(msgspec.Raw)


def _decode_plain(body: memoryview, buffers: list[memoryview]) -> Any:
    if len(body) > PLAIN_BODY_BYTES_MAX:
        raise RemoteProtocolError(f"plain data of {len(body)} bytes is above the limit")
    if not buffers and (items := _list_of_scalars(body)) is not None:
        return items
    reader = _PlainReader(buffers)
    try:
        # The unpacker makes room for what a header claims; this proves every claim beforehand.
        _skim.decode(body)
        value = msgpack.unpackb(
            body, ext_hook=reader.extension, list_hook=reader.container, strict_map_key=False
        )
    except MemoryError:
        raise
    except Exception as error:
        text = str(error)[:200] or type(error).__name__
        raise RemoteProtocolError(f"damaged plain data: {text}") from None
    if reader.open:
        raise RemoteProtocolError("damaged plain data: a container mark stands alone")
    return value


class _PlainReader:
    """Builds what MessagePack has no form for; counts marks that no list has used up."""

    __slots__ = ("_buffers", "open")

    def __init__(self, buffers: list[memoryview]) -> None:
        self._buffers = buffers
        self.open = 0

    def container(self, items: list[Any]) -> Any:
        if items and type(items[0]) is _Opening:
            self.open -= 1
            build = items[0].build
            del items[0]
            return build(items)
        return items

    def extension(self, code: int, data: bytes) -> Any:
        opening = _OPENINGS.get(code)
        if opening is not None:
            self.open += 1
            return opening
        if code == _INT_CODE:
            return int.from_bytes(data, "little", signed=True)
        if code == _COMPLEX_CODE:
            return complex(*_COMPLEX.unpack(data))
        if code == _DATETIME_CODE:
            return _datetime_from(data)
        if code == _ARRAY_CODE:
            return self._array(data)
        if code == _SCALAR_CODE:
            return _scalar_from(data)
        raise ValueError(f"unknown extension {code}")

    def _array(self, data: bytes) -> Any:
        import numpy

        text, precision, fortran, shape, place = _array_decoder.decode(data)
        dtype = _dtype_of(text, precision)
        source = place if isinstance(place, bytes) else self._buffer(place)
        if len(shape) > DIMENSIONS_MAX or any(length < 0 for length in shape):
            raise ValueError("impossible shape")
        if math.prod(shape) * dtype.itemsize != len(source):
            raise ValueError("shape and bytes of an array differ")
        if not source:
            return numpy.empty(shape, dtype, "F" if fortran else "C")
        flat = numpy.frombuffer(source, dtype)
        in_place = flat.flags.writeable and flat.flags.aligned and flat.nbytes >= IN_PLACE_BYTES_MIN
        array = flat.reshape(shape, order="F" if fortran else "C")
        return array if in_place else array.copy("K")

    def _buffer(self, index: int) -> memoryview:
        if not 0 <= index < len(self._buffers):
            raise ValueError("an array refers to a buffer that is not there")
        return self._buffers[index]


def _datetime_from(data: bytes) -> dt.datetime:
    year, month, day, hour, minute, second, microsecond, fold, aware, offset = _DATETIME.unpack(
        data
    )
    zone = None
    if aware:
        zone = dt.timezone(dt.timedelta(seconds=offset)) if offset else dt.UTC
    return dt.datetime(year, month, day, hour, minute, second, microsecond, tzinfo=zone, fold=fold)


def _scalar_from(data: bytes) -> Any:
    import numpy

    text, precision, raw = _scalar_decoder.decode(data)
    if text == "str":
        return numpy.str_(raw.decode("utf-8", "surrogatepass"))
    if text == "bytes":
        return numpy.bytes_(raw)
    dtype = _dtype_of(text, precision)
    if len(raw) != dtype.itemsize:
        raise ValueError("wrong size of a scalar")
    return numpy.frombuffer(bytearray(raw), dtype)[0]
