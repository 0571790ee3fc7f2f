"""How values, functions and work travel: what comes back, and what is refused in which words."""

from __future__ import annotations

import datetime as dt
import functools
import mmap
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from blackroad.bus import code, payload, work
from blackroad.errors import NotPicklable, RemoteProtocolError, UsageError

ROOT = Path(__file__).resolve().parents[2]
ZONE = dt.timezone(dt.timedelta(hours=5, minutes=30))


def there_and_back(value: object) -> Any:
    return payload.decode(payload.join(payload.encode(value)))


def same(left: Any, right: Any) -> bool:
    """Equality with types, through all containers; NaN equals itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, b) for a, b in zip(left.items(), right.items(), strict=True)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float):
        return repr(left) == repr(right)
    return bool(left == right)


PLAIN = [
    None,
    True,
    0,
    -1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**400,
    1.5,
    float("nan"),
    -0.0,
    float("-inf"),
    "",
    "grüße \U0001f40d",
    "x" * 196,  # its length byte looks like the header of bytes
    [b"", b"\xc4\xc7"],
    [],
    [1, [2, [3]]],
    (),
    ((3,), {}),
    (1, (2, [3, (4,)])),
    {},
    {"a": 1, 2: "b", None: 3, (1, 2): [4], 1.5: (), frozenset({1}): 5},
    set(),
    {1, 2, 3},
    frozenset({("a", 1)}),
    1 + 2j,
    dt.datetime(2026, 11, 22, 9, 30, 1, 250),
    dt.datetime(2026, 10, 25, 2, 30, tzinfo=dt.UTC, fold=1),
    dt.datetime(1, 1, 1, tzinfo=ZONE),
    list(range(300)),
    {"deep": [{"er": ({"est": {1}},)}]},
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:30])
def test_plain_data_comes_back_with_its_types(value: object) -> None:
    segments = payload.encode(value)
    assert payload.codec_of(payload.join(segments)) == payload.PLAIN
    assert same(payload.decode(payload.join(segments), allow_pickle=False), value)


def test_bytes_alone_are_not_copied_into_a_body() -> None:
    data = b"\0\xc4" * 1000
    segments = payload.encode(data)
    assert segments[-1] is data
    assert payload.codec_of(segments[0]) == payload.RAW
    assert payload.decode(payload.join(segments), allow_pickle=False) == data


STRUCTURED = np.dtype([("a", "<i4"), ("b", ">f8", (2, 3)), ("c", [("d", "S5"), ("e", "U3")])])
ARRAYS = [
    np.arange(3, dtype=np.int8),
    np.arange(10_000, dtype=np.float64),
    np.arange(10_000, dtype=">i4"),
    np.asfortranarray(np.arange(6000, dtype=np.int32).reshape(20, 300)),
    np.arange(20_000)[::3],
    np.arange(24_000).reshape(20, 30, 40).transpose(1, 0, 2),
    np.zeros((0, 5)),
    np.array(7.5),
    np.ones((), dtype="c16"),
    np.ones(2000, dtype=np.longdouble),
    np.zeros(300, dtype=STRUCTURED),
    np.array(["a", "grüße", ""]),
    np.array([b"x", b"yz"]),
    np.array(["2026-11-22", "NaT"], dtype="M8[ns]"),
    np.arange(5, dtype="m8[s]"),
    np.array([True, False] * 1000),
    np.zeros(3, dtype="V7"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str[:12]}-{a.shape}")
def test_arrays_come_back_equal_and_writable(array: np.ndarray[Any, Any]) -> None:
    data = payload.join(payload.encode([array, "beside"]))
    assert payload.codec_of(data) == payload.PLAIN
    back, beside = payload.decode(data, allow_pickle=False)
    assert same(back, array)
    assert beside == "beside"
    assert back.flags.writeable
    assert back.flags.aligned
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        assert back.flags.f_contiguous


SCALARS = [
    np.int8(-3),
    np.uint64(2**64 - 1),
    np.float32(0.1),
    np.float64(0.1),
    np.complex64(1j),
    np.bool_(True),
    np.str_("grüße\0"),
    np.bytes_(b"x\0"),
    np.datetime64("2026-11-22T01:02", "m"),
    np.timedelta64(5, "ns"),
    np.longdouble(1) / 3,
    np.zeros(1, dtype=STRUCTURED)[0],
]


@pytest.mark.parametrize("value", SCALARS, ids=lambda value: type(value).__name__)
def test_numpy_scalars_keep_their_type(value: Any) -> None:
    data = payload.join(payload.encode((value,)))
    (back,) = payload.decode(data, allow_pickle=False)
    assert type(back) is type(value)
    assert back == value
    assert getattr(back, "dtype", None) == getattr(value, "dtype", None)


def test_large_arrays_are_referred_to_and_aligned() -> None:
    array = np.arange(100_000, dtype=np.float64)
    segments = payload.encode([b"odd", array, array[:5000]])
    end = 0
    starts = []
    for segment in segments:
        if isinstance(segment, memoryview):
            starts.append(end)
            assert np.shares_memory(np.frombuffer(segment, np.uint8), array)
        end += len(segment)
    assert len(starts) == 2
    assert [start % payload.ALIGNMENT_BYTES for start in starts] == [0, 0]
    assert payload.total_bytes(segments) == end == len(payload.join(segments))


def test_a_private_mapping_serves_large_arrays_in_place(tmp_path: Path) -> None:
    path = tmp_path / "object"
    data = payload.join(payload.encode({"big": np.arange(100_000), "small": np.arange(9)}))
    path.write_bytes(data)
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    whole = np.frombuffer(mapping, np.uint8)
    back = payload.decode(mapping)
    assert np.shares_memory(back["big"], whole)
    assert not np.shares_memory(back["small"], whole)
    back["big"][:] = 0
    assert path.read_bytes() == data, "what a task does to its arguments stays with the task"


def test_read_only_buffers_are_copied_from() -> None:
    data = payload.join(payload.encode(np.arange(100_000)))
    back = payload.decode(data)
    back += 1
    assert payload.decode(data)[0] == 0


class Named(tuple[int, ...]):
    __slots__ = ()


PICKLED = [
    bytearray(b"x"),
    {"inside": [bytearray(b"y")]},
    [msgpack.ExtType(1, b"")],
    OrderedDict(a=1),
    range(3),
    dt.date(2026, 11, 22),
    dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET")),
    "lone \udc80 surrogate",
    np.array([{"an": "object"}], dtype=object),
    np.ma.masked_array([1, 2], mask=[True, False]),
    np.zeros(2, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    dt.timedelta(hours=3),
]


@pytest.mark.parametrize("value", PICKLED, ids=lambda value: type(value).__name__)
def test_everything_else_is_a_pickle_of_the_same_type(value: object) -> None:
    data = payload.join(payload.encode(value))
    assert payload.codec_of(data) == payload.PICKLE
    back = payload.decode(data)
    assert type(back) is type(value)
    assert repr(back) == repr(value)
    with pytest.raises(RemoteProtocolError, match="pickle"):
        payload.decode(data, allow_pickle=False)


def test_pickled_arrays_travel_beside_the_pickle_and_can_be_written_to() -> None:
    array = np.arange(50_000)
    segments = payload.encode(OrderedDict(array=array))
    assert any(
        isinstance(s, memoryview) and np.shares_memory(np.frombuffer(s, np.uint8), array)
        for s in segments
    )
    for buffer in (payload.join(segments), bytearray(payload.join(segments))):
        back = payload.decode(buffer)["array"]
        back += 1
        assert np.array_equal(back - 1, array)


def test_classes_of_the_users_own_files_go_along() -> None:
    data = payload.join(payload.encode([Named((1, 2))]))
    assert payload.codec_of(data) == payload.CLOUDPICKLE
    (back,) = payload.decode(data)
    assert type(back) is Named, "here the class is known, so it is found again"


def test_cycles_and_shared_parts_survive() -> None:
    ring: list[Any] = []
    ring.append(ring)
    back = there_and_back(ring)
    assert back[0] is back


def test_too_deep_is_said_so() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotPicklable, match="nested too deeply"):
        payload.encode(deep)


class Holder:
    def __init__(self) -> None:
        self.name = "attic"
        self.handle = threading.Lock()


def test_the_culprit_is_named_with_its_path() -> None:
    with pytest.raises(NotPicklable) as caught:
        payload.encode(((1, {"tool": [0, Holder()]}), {}), label="arguments")
    assert "arguments[0][1]['tool'][1].handle (_thread.lock)" in caught.value.message
    assert "lock inside the function" in caught.value.hint


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: open("/dev/null"), "open the file inside"),  # noqa: SIM115
        (lambda: (x for x in ()), "make a list"),
        (socket.socket, "connect inside"),
        (lambda: sys._getframe(), "make it inside"),
    ],
)
def test_hints_say_what_to_do(make: Any, hint: str) -> None:
    item = make()
    with pytest.raises(NotPicklable) as caught:
        payload.encode([item])
    assert caught.value.message.startswith("cannot send value[0] (")
    assert hint in caught.value.hint


def test_a_failed_encode_leaves_nothing_for_the_next() -> None:
    with pytest.raises(NotPicklable):
        payload.encode([np.arange(1000), threading.Lock()])
    assert len(payload.encode([1])) == 2
    assert there_and_back([1]) == [1]


def test_threads_do_not_mix_up_their_arrays() -> None:
    failures = []

    def work_on(number: int) -> None:
        for size in range(500, 700):
            value = (np.full(size, number), number)
            if not same(there_and_back(value), value):
                failures.append((number, size))

    threads = [threading.Thread(target=work_on, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_nothing_heavy_is_imported_for_plain_data() -> None:
    script = """
        import sys
        from blackroad.bus import payload, work
        payload.decode(payload.join(payload.encode(((3, "x"), {"k": [1.5]}))))
        loaded = {"numpy", "cloudpickle", "sysconfig", "ctypes"} & set(sys.modules)
        sys.exit(f"imported {loaded}" if loaded else 0)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


# --- hostile bytes ------------------------------------------------------------------------------


def plain(body: bytes) -> bytes:
    return payload._FIXED.pack(0x92, payload.PLAIN, 0xCF, len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x92",
        b"\x92\x09\xcf" + bytes(8),
        b"\x93\x00\xcf" + bytes(8),
        plain(b"\xdd\xff\xff\xff\xff"),
        plain(b"\xdc\xff\xff" * 30),
        plain(b"\x91" * 100_000 + b"\x90"),
        plain(b"\xc1"),
        plain(b"\xa1\xff"),
        plain(b"\x81\x90\x01"),
        plain(b"\x01\x02"),
        plain(b"\xc7\x00\x01"),
        plain(b"\x92\x01\xc7\x00\x01"),
        plain(b"\x93\xc7\x00\x02\x91\x01\x01"),
        plain(b"\xd4\x63x"),
        plain(b"\xc7\x03\x05abc"),
        plain(b"\xd5\x06ab"),
        plain(b"\x01")[:-1],
        plain(b"\x01") + b"\0",
        payload._FIXED.pack(0x92, payload.PLAIN, 0xCF, 2**63) + b"\x01",
    ],
)
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        payload.decode(data, allow_pickle=False)


def test_claims_are_proven_before_room_is_made_for_them() -> None:
    claims = b"\xdd" + (900_000).to_bytes(4, "big")
    bomb = plain(claims * 500 + b"\xc0" * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            payload.decode(bomb, allow_pickle=False)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def forged_array(*fields: object) -> bytes:
    return plain(msgpack.packb(msgpack.ExtType(7, msgpack.packb(fields))))


@pytest.mark.parametrize(
    "fields",
    [
        ("|O", 0, False, [1], bytes(8)),
        ("O", 0, False, [1], bytes(8)),
        ("i4,O", 0, False, [1], bytes(12)),
        ("[('a', '|O')]", 0, False, [1], bytes(8)),
        ("[" * 5000, 0, False, [1], bytes(8)),
        ("<f8", 0, False, [2], bytes(8)),
        ("<f8", 0, False, [-1, -1], bytes(8)),
        ("<f8", 0, False, [2**40, 2**40, 0], b""),
        ("<f8", 0, False, [1] * 65, bytes(8)),
        ("<f8", 0, False, [1], 0),
        ("<f8", 0, False, [1], -1),
        ("<f8", 7, False, [1], bytes(8)),
        ("<f16", 1, False, [1], bytes(16)),
    ],
)
def test_forged_arrays_are_refused(fields: tuple[object, ...]) -> None:
    with pytest.raises((RemoteProtocolError, MemoryError)):
        payload.decode(forged_array(*fields), allow_pickle=False)


def test_long_doubles_of_another_machine_are_not_misread() -> None:
    other = 112 if np.finfo(np.longdouble).nmant != 112 else 63
    with pytest.raises(RemoteProtocolError, match="long double"):
        payload.decode(forged_array("<f16", other, False, [1], bytes(16)), allow_pickle=False)


# --- functions ----------------------------------------------------------------------------------

FACTOR = 3


def scaled(x: int) -> int:
    return helper(x) * FACTOR


def helper(x: int) -> int:
    return x + 1


def elsewhere(blob: bytes, expression: str) -> str:
    """Open a function in a process that has none of our test files."""
    script = f"import pickle, sys; f = pickle.load(sys.stdin.buffer); print({expression})"
    run = subprocess.run([sys.executable, "-I", "-c", script], input=blob, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode().strip()


def test_a_function_of_a_user_file_needs_no_installation() -> None:
    digest, blob, name = payload.encode_function(scaled)
    assert digest == payload.digest_of(blob)
    assert name == "tests.unit.test_payload.scaled"
    assert elsewhere(blob, "f(4)") == "15"


def test_installed_functions_travel_by_name() -> None:
    _, blob, name = payload.encode_function(textwrap.dedent)
    assert name == "textwrap.dedent"
    assert len(blob) < 100


def test_registration_leaves_no_trace() -> None:
    import cloudpickle

    before = cloudpickle.list_registry_pickle_by_value()
    code._encode_function(scaled)
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_a_seen_function_is_not_pickled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = payload.encode_function(scaled)
    monkeypatch.setattr(code, "_encode_function", lambda fn: pytest.fail("pickled again"))
    assert payload.encode_function(scaled) is first


def test_changed_globals_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before, _, _ = payload.encode_function(scaled)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 5)
    digest, blob, _ = payload.encode_function(scaled)
    assert digest != before
    assert elsewhere(blob, "f(4)") == "25"
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda x: x)
    _, blob, _ = payload.encode_function(scaled)
    assert elsewhere(blob, "f(4)") == "20"


def test_changed_closures_and_lists_are_noticed() -> None:
    table = [1]
    count = 1

    def looks() -> tuple[int, int]:
        return table[0], count

    assert elsewhere(payload.encode_function(looks)[1], "f()") == "(1, 1)"
    table[0], count = 2, 3
    assert elsewhere(payload.encode_function(looks)[1], "f()") == "(2, 3)"


def test_whatever_may_change_inside_a_function_is_noticed() -> None:
    def told(*, step: int = 1) -> int:
        return step

    assert told.__kwdefaults__ is not None
    _, same = payload.sealed_function(told)
    assert same is not None
    assert same()
    told.__kwdefaults__["step"] = 5
    assert not same()
    assert elsewhere(payload.encode_function(told)[1], "f()") == "5"

    part = functools.partial(max, 1, default=2)
    _, same = payload.sealed_function(part)
    assert same is not None
    assert same()
    part.keywords["default"] = 3
    assert not same()

    _, same = payload.sealed_function(scaled)
    assert same is not None
    scaled.note = "new"  # type: ignore[attr-defined]
    try:
        assert not same()
        assert payload.sealed_function(scaled)[1] is None, "what an attribute holds may change"
    finally:
        del scaled.note  # type: ignore[attr-defined]


def test_a_method_of_a_list_is_pickled_each_time() -> None:
    items = [3, 4]
    before, same = payload.sealed_function(items.index)
    assert same is None
    items.insert(0, 5)
    assert payload.sealed_function(items.index)[0] != before


def test_a_name_that_is_bound_later_is_noticed() -> None:
    def looks() -> int:
        return value

    _, same = payload.sealed_function(looks)
    assert same is not None
    value = 3
    assert not same()


def test_the_cache_is_bounded() -> None:
    for number in range(code.FUNCTIONS_CACHED_MAX + 20):
        payload.encode_function(functools.partial(max, number))
    assert len(code._function_cache) <= code.FUNCTIONS_CACHED_MAX


LOCK = threading.Lock()


def locked() -> bool:
    return LOCK.locked()


def indirectly() -> bool:
    return locked()


def test_what_a_function_holds_is_named() -> None:
    with pytest.raises(NotPicklable) as caught:
        payload.encode_function(indirectly)
    assert "global `locked`, global `LOCK` (_thread.lock)" in caught.value.message
    assert caught.value.hint == "create the lock inside the function"


def test_names_are_bounded_and_fit_for_people() -> None:
    assert payload.encode_function(functools.partial(max, 1))[2] == "builtins.max"

    def long() -> None: ...

    long.__qualname__ = "x" * 500
    assert len(code.function_name(long)) == 120
    with pytest.raises(NotPicklable, match="not callable"):
        payload.encode_function(3)  # type: ignore[arg-type]


# --- work ---------------------------------------------------------------------------------------

WORKS = [
    work.Call("module.name", b"payload"),
    work.MapCall("module.name", True, b"payload"),
    work.Module("package.module:Class.method", b"payload"),
    work.KernelRun("collatz", b"payload"),
    work.Command(["ls", "-l"], {"A": "b"}, "/tmp", b"payload"),
]


@pytest.mark.parametrize("todo", WORKS, ids=lambda todo: type(todo).__name__)
def test_work_comes_back(todo: work.Work) -> None:
    back = work.decode_work(payload.join(work.encode_work(todo)))
    assert back == todo
    assert work.work_name(back) in ("module.name", "package.module:Class.method", "collatz", "ls")


def test_the_payload_inside_work_is_aligned_and_not_copied() -> None:
    arguments = payload.encode(((np.arange(100_000),), {}))
    segments = work.encode_work(work.Call("f", arguments))
    assert segments[1:] == arguments
    assert len(segments[0]) % payload.ALIGNMENT_BYTES == 0
    buffer = bytearray(payload.join(segments))
    (array,), _ = payload.decode(work.decode_work(buffer).args)  # type: ignore[union-attr]
    assert np.shares_memory(array, np.frombuffer(buffer, np.uint8))


@pytest.mark.parametrize(
    "todo",
    [
        work.Module("no colon"),
        work.Module("os:system; ls"),
        work.Module("../x:y"),
        work.Command([]),
        work.Command(["x"] * 10_000),
        work.Call("x" * 121),
    ],
)
def test_work_out_of_bounds_is_refused_where_it_is_made(todo: work.Work) -> None:
    with pytest.raises(UsageError) as caught:
        work.encode_work(todo)
    assert caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 8,
        work._PREFIX.pack(2, 10) + b"\x91\x63",
        work._PREFIX.pack(1, 8) + b"\x01",
    ],
)
def test_damaged_work_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        work.decode_work(data)


def test_failures_are_cut_to_their_limits_and_stay_text() -> None:
    long = work.Failure("t" * 999, "x" * 9999, "ü" * 50_000 + "last line", 3)
    data = work.encode_failure(long)
    assert len(data) < 32 * 1024
    back = work.decode_failure(data)
    assert back.exit_status == 3
    assert back.traceback_text.endswith("last line")
    assert "bytes cut" in back.traceback_text
    assert work.decode_failure(work.encode_failure(work.Failure("E", "bad \udc80"))).text == (
        "bad \\udc80"
    )
    with pytest.raises(RemoteProtocolError):
        work.decode_failure(b"\x93\x01\x02\x03")


def test_a_pickle_claiming_to_be_plain_is_not_opened() -> None:
    data = plain(pickle.dumps(print))
    with pytest.raises(RemoteProtocolError):
        payload.decode(data)
