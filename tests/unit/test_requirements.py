"""Needs, what is missing for them, and the ledger."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackroad.capabilities import Capabilities, Device
from blackroad.errors import InvariantBroken, RemoteProtocolError, UsageError
from blackroad.limits import NEEDS_BYTES_MAX
from blackroad.requirements import (
    DIFFERENT,
    MISSING,
    TOO_LITTLE,
    Ask,
    Ledger,
    Needs,
    Requirement,
    explain,
    fits,
    from_wire,
    shortfall,
)

GIB = 2**30


def gpu(memory_gib: float = 1, **changes: Any) -> Device:
    device = Device(
        kind="gpu",
        name="card",
        backend="opencl",
        memory_bytes=int(memory_gib * GIB),
        compute_units=8,
        fp64=False,
        software=False,
        platform="maker",
        driver="1",
        index=0,
    )
    return msgspec.structs.replace(device, **changes)


def caps(name: str = "attic", **changes: Any) -> Capabilities:
    base = Capabilities(
        name=name,
        arch="aarch64",
        page_bytes=16_384,
        cores=4,
        memory_bytes=8 * GIB,
        python="3.11",
        python_full="3.11.2",
        implementation="CPython",
        os="Debian",
        libc="glibc 2.41",
        model="",
        programs=("ffmpeg", "git"),
        labels={"disk": "nvme"},
    )
    return msgspec.structs.replace(base, **changes)


def lacks(needs: Needs, node: Capabilities, node_id: str = "") -> list[tuple[str, ...]]:
    return [tuple(row) for row in shortfall(needs.requirement, node, node_id)]


# --- writing ------------------------------------------------------------------------------------


def test_needs_become_whole_numbers() -> None:
    needs = Needs(
        cpu=0.1,
        memory="2GiB",
        gpu=1,
        gpu_memory="900MB",
        arch=("arm64", "amd64", "aarch64"),
        python=">=3.11, <3.14",
        labels={"room": "attic", "disk": "ssd"},
        node="Attic",
        programs=("git", "ffmpeg", "git"),
    )
    assert needs.requirement.alternatives == (
        Ask(
            cpu_units=1000,
            memory_bytes=2 * GIB,
            gpu=1,
            gpu_memory_bytes=900_000_000,
            arch=("aarch64", "x86_64"),
            python="<3.14,>=3.11",
            labels=(("disk", "ssd"), ("room", "attic")),
            node="attic",
            programs=("ffmpeg", "git"),
        ),
    )


def test_none_means_the_default() -> None:
    assert Needs(None, None, None, None, None, None, None, None, None) == Needs()
    assert Needs().requirement == Requirement((Ask(),))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("cpu", 0, "no share of a core"),
        ("cpu", "many", "cannot read"),
        ("cpu", 5000, "more than any machine"),
        ("memory", "2G", "powers of 1000"),
        ("memory", -1, "below 0"),
        ("gpu", 0.5, 'gpu=1, gpu_memory="900MB"'),
        ("gpu", 65, "whole number from 0 to 64"),
        ("gpu", True, "whole number"),
        ("gpu_memory", "1GiB", "gpu is 0"),
        ("arch", "x86 64", "not the name of an architecture"),
        ("arch", ["a"] * 9, "at most 8"),
        ("arch", 64, "not a text"),
        ("python", "3.x", "cannot read '3.x'"),
        ("python", 3.11, "is not a version"),
        ("python", "~=3.11", "cannot read"),
        ("labels", ["ssd"], "not a mapping"),
        ("labels", {"a b": "c"}, "not the name of a label"),
        ("labels", {"a": 1}, "not a text of one line"),
        ("labels", {"a": "x\ny"}, "not a text of one line"),
        ("labels", {"a": "é" * 33}, "at most 64 bytes"),
        ("node", " ", "not the name of a node"),
        ("node", "n" * 65, "not the name of a node"),
        ("programs", "/bin/sh", "no path"),
        ("programs", [b"sh"], "not a text or a sequence"),
        ("programs", [f"p{number}" for number in range(17)], "at most 16"),
    ],
)
def test_wrong_needs_are_refused_with_their_name(field: str, value: object, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Needs(**{field: value})  # type: ignore[arg-type]
    assert caught.value.message.startswith(f"{field}: ")
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_needs_cannot_change_and_can_be_keys() -> None:
    needs = Needs(memory="1GiB")
    with pytest.raises(AttributeError, match="immutable"):
        needs.requirement = Needs().requirement
    with pytest.raises(AttributeError, match="immutable"):
        del needs.requirement
    assert {needs: 1}[Needs(memory=GIB)] == 1
    assert needs != Needs()
    assert pickle.loads(pickle.dumps(needs)) == needs


def test_needs_are_shown_as_they_are_written() -> None:
    either = Needs.any(Needs(gpu=1, gpu_memory="900MB"), Needs(cpu=8, arch="arm64"))
    assert repr(either) == (
        "Needs.any(Needs(gpu=1, gpu_memory='900 MB'), Needs(cpu='8', arch='aarch64'))"
    )
    assert eval(repr(either), {"Needs": Needs}) == either
    assert repr(Needs(memory=2**30 + 1)) == "Needs(memory=1073741825)"


def test_alternatives_keep_their_order_and_count_once() -> None:
    one, two = Needs(gpu=1), Needs(cpu=8)
    assert Needs.any(Needs.any(one, two), one).requirement.alternatives == (
        *one.requirement.alternatives,
        *two.requirement.alternatives,
    )
    with pytest.raises(UsageError, match="1 to 8 alternatives, not 0"):
        Needs.any()
    with pytest.raises(UsageError, match="not 9"):
        Needs.any(*(Needs(cpu=number) for number in range(1, 10)))
    with pytest.raises(UsageError, match="not dict"):
        Needs.any({"cpu": 1})  # type: ignore[arg-type]


def test_narrowing_adds_to_every_alternative() -> None:
    either = Needs.any(Needs(gpu=1, python=">=3.10"), Needs(cpu=8)).requirement
    narrow = either.narrowed(python="3.11", programs=["ffmpeg"])
    assert [ask.python for ask in narrow.alternatives] == ["3.11,>=3.10", "3.11"]
    assert {ask.programs for ask in narrow.alternatives} == {("ffmpeg",)}
    assert either.narrowed() == either
    with pytest.raises(UsageError, match="programs"):
        either.narrowed(programs=["a/b"])


# --- the wire -----------------------------------------------------------------------------------

needs_strategy = st.builds(
    Needs,
    cpu=st.integers(1, 40_000_000).map(lambda units: units / 10_000),
    memory=st.integers(0, 2**53 - 1),
    gpu=st.integers(1, 64),
    gpu_memory=st.integers(0, 2**53 - 1),
    arch=st.lists(st.sampled_from(["arm64", "x86_64", "riscv64"]), max_size=3),
    python=st.sampled_from([None, "3.11", ">=3.11,<3.14", "3"]),
    labels=st.dictionaries(
        st.text("abcXYZ09_./-", min_size=1, max_size=8).filter(lambda key: key[0] not in "./-"),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
        max_size=4,
    ),
    node=st.sampled_from([None, "attic", "k3f9", "Ünder"]),
    programs=st.lists(st.sampled_from(["git", "g++", "ffmpeg"]), max_size=3),
)


@given(st.lists(needs_strategy, min_size=1, max_size=4))
def test_there_and_back(alternatives: list[Needs]) -> None:
    requirement = Needs.any(*alternatives).requirement
    data = requirement.to_wire()
    assert len(data) <= NEEDS_BYTES_MAX
    assert from_wire(data) == requirement
    assert from_wire(data).to_wire() == data
    # The same again comes from memory.
    assert from_wire(bytes(bytearray(data))) is from_wire(data)


def test_equal_needs_give_equal_bytes() -> None:
    one = Needs(labels={"a": "1", "b": "2"}, arch=["amd64", "arm64"], python="==3.11")
    two = Needs(labels={"b": "2", "a": "1"}, arch=["aarch64", "x86_64"], python=" 3.11")
    assert one.to_wire() == two.to_wire()


def test_needs_that_are_too_long_to_travel_are_refused() -> None:
    long = {f"label{number:02}": "x" * 64 for number in range(16)}
    with pytest.raises(UsageError, match="the limit is 1024"):
        Needs(labels=long)


def wire(*fields: object) -> bytes:
    return msgspec.msgpack.encode([[list(fields)]])


PLAIN: tuple[object, ...] = (10_000, 0, 0, 0, [], "", [], "", [])


def test_the_plain_needs_are_what_the_hostile_ones_below_differ_from() -> None:
    assert from_wire(wire(*PLAIN)) == Needs().requirement


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, 0),
        (0, 40_960_001),
        (0, 1.5),
        (1, -1),
        (1, 2**53),
        (2, 65),
        (3, 1),
        (4, ["x86_64", "aarch64"]),
        (4, ["arm64"]),
        (4, ["x86_64"] * 9),
        (5, ">=3.12, <4"),
        (5, "latest"),
        (6, [["b", "1"], ["a", "1"]]),
        (6, [["a", "1"], ["a", "2"]]),
        (6, [["a"]]),
        (7, "ATTIC"),
        (7, "x\n"),
        (8, ["git", "git"]),
        (8, ["../sh"]),
        (8, "git"),
        (9, "an eleventh need"),
    ],
)
def test_hostile_needs_are_refused(at: int, value: object) -> None:
    fields = [*PLAIN[:at], value, *PLAIN[at + 1 :]]
    with pytest.raises(RemoteProtocolError, match=r"^needs: "):
        from_wire(wire(*fields))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc0", b"\x90", msgspec.msgpack.encode([[]]), b"\x00" * (NEEDS_BYTES_MAX + 1),
     msgspec.msgpack.encode([[list(PLAIN)] * 9]), wire(*PLAIN) + b"\x00",
     msgspec.msgpack.encode([[list(PLAIN[:8])]])],
)  # fmt: skip
def test_malformed_needs_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        from_wire(data)


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert from_wire(data).to_wire() == data


# --- does a node have it ------------------------------------------------------------------------


def test_a_node_that_has_all_lacks_nothing() -> None:
    needs = Needs(
        cpu=4,
        memory="8GiB",
        gpu=2,
        gpu_memory="1GiB",
        arch="arm64",
        python="3.11",
        labels={"disk": ""},
        node="Attic",
        programs="git",
    )
    node = caps(devices=(gpu(1), gpu(2)))
    assert lacks(needs, node) == []
    assert fits(needs.requirement, node) == 0


@pytest.mark.parametrize(
    ("needs", "rows"),
    [
        (Needs(cpu=4.5), [("cpu", "4.5", "4", TOO_LITTLE)]),
        (Needs(memory="9GiB"), [("memory", "9 GiB", "8 GiB", TOO_LITTLE)]),
        (Needs(memory=8 * GIB + 1), [("memory", "8589934593 B", "8589934592 B", TOO_LITTLE)]),
        (Needs(gpu=3), [("gpu", "3", "2", TOO_LITTLE)]),
        (Needs(gpu=2, gpu_memory="1.5GiB"),
         [("gpu-memory", "1.5 GiB each", "1 GiB", TOO_LITTLE)]),
        (Needs(arch=("x86_64", "riscv64")),
         [("arch", "riscv64 or x86_64", "aarch64", DIFFERENT)]),
        (Needs(python=">=3.12"), [("python", ">=3.12", "3.11.2", DIFFERENT)]),
        (Needs(labels={"disk": "ssd", "tape": ""}),
         [("label disk", "ssd", "nvme", DIFFERENT), ("label tape", "any value", "none", MISSING)]),
        (Needs(node="shed"), [("node", "shed", "attic", DIFFERENT)]),
        (Needs(programs=("git", "sox")), [("program", "sox", "none", MISSING)]),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_item_by_item(needs: Needs, rows: list[tuple[str, ...]]) -> None:
    node = caps(devices=(gpu(1), gpu(2)))
    assert lacks(needs, node) == rows
    assert fits(needs.requirement, node) == -1


def test_devices_that_do_not_count() -> None:
    node = caps(devices=(gpu(software=True), gpu(problem="hangs"), gpu(kind="accelerator")))
    assert lacks(Needs(gpu=1, gpu_memory=1), node) == [
        ("gpu", "1", "1 unusable", MISSING),
        ("gpu-memory", "1 B", "none", MISSING),
    ]


@pytest.mark.parametrize(
    ("asked", "there", "fine"),
    [("3.11", "3.11.2", True), ("3.11", "3.12.0", False), ("3", "3.14.1", True),
     ("3.11.2", "3.11.2", True), ("3.11.3", "3.11.2", False), (">=3.11", "3.11.2", True),
     (">3.11", "3.11.9", False), (">3.11", "3.12.0", True), ("<=3.11", "3.11.9", True),
     ("<3.12", "3.11.9", True), ("<3.9", "3.10.0", False), (">=3.11,<3.14", "3.13.1", True),
     (">=3.11,<3.14", "3.14.0", False), ("3.11,>=3.11.4", "3.11.2", False),
     (">=3.11", "3.14.0rc1", True), ("3.11", "", False)],
)  # fmt: skip
def test_python_versions(asked: str, there: str, fine: bool) -> None:
    node = caps(python=there[:4], python_full=there)
    assert (lacks(Needs(python=asked), node) == []) is fine


@pytest.mark.parametrize(
    ("asked", "fine"),
    [("attic", True), ("ATTIC", True), ("k3f9", True), ("k3f9x2ab", True), ("k3f", False),
     ("3f9x", False), ("att", False)],
)  # fmt: skip
def test_a_node_is_meant_by_name_or_by_the_start_of_its_id(asked: str, fine: bool) -> None:
    assert (lacks(Needs(node=asked), caps(), "k3f9x2abcd") == []) is fine


def test_the_first_alternative_that_fits_is_taken() -> None:
    either = Needs.any(Needs(gpu=1), Needs(cpu=4), Needs(cpu=1))
    assert fits(either.requirement, caps(devices=(gpu(),))) == 0
    assert fits(either.requirement, caps()) == 1
    assert fits(either.requirement, caps(cores=2)) == 2


def test_of_several_alternatives_the_nearest_is_explained() -> None:
    either = Needs.any(Needs(gpu=1, memory="64GiB"), Needs(cpu=8))
    assert lacks(either, caps()) == [("cpu", "8", "4", TOO_LITTLE)]


nodes_strategy = st.builds(
    caps,
    name=st.sampled_from(["attic", "shed", "loft"]),
    arch=st.sampled_from(["aarch64", "x86_64", "arm64"]),
    cores=st.integers(1, 8),
    memory_bytes=st.integers(0, 4).map(lambda gib: gib * GIB),
    python_full=st.sampled_from(["3.11.2", "3.12.0", "3.13.1"]),
    labels=st.dictionaries(st.sampled_from("ab"), st.sampled_from("12"), max_size=2),
    programs=st.lists(st.sampled_from(["git", "sox"]), unique=True, max_size=2).map(tuple),
    devices=st.lists(
        st.builds(gpu, st.integers(0, 3), problem=st.sampled_from(["", "hangs"])), max_size=3
    ).map(tuple),
)
small_needs = st.builds(
    Needs,
    cpu=st.sampled_from([0.5, 1, 2, 8]),
    memory=st.sampled_from([0, GIB, 3 * GIB]),
    gpu=st.integers(1, 2),
    gpu_memory=st.sampled_from([0, GIB, 2 * GIB]),
    arch=st.sampled_from([None, "arm64", "x86_64"]),
    python=st.sampled_from([None, "3.12", ">=3.12"]),
    labels=st.dictionaries(st.sampled_from("ab"), st.sampled_from(["1", ""]), max_size=1),
    node=st.sampled_from([None, "shed"]),
    programs=st.sampled_from([(), ("git",)]),
) | st.builds(Needs, cpu=st.sampled_from([1, 4]), memory=st.sampled_from([0, 2 * GIB]))


@settings(max_examples=300)
@given(st.lists(small_needs, min_size=1, max_size=3), st.lists(nodes_strategy, max_size=4))
def test_reasons_exist_exactly_where_nothing_fits(
    alternatives: list[Needs], pool: list[Capabilities]
) -> None:
    requirement = Needs.any(*alternatives).requirement
    nodes = [(node.name, f"id{number}", node) for number, node in enumerate(pool)]
    could = [fits(requirement, node, node_id) >= 0 for _, node_id, node in nodes]
    for (_, node_id, node), able in zip(nodes, could, strict=True):
        assert (shortfall(requirement, node, node_id) == []) is able
    rows = explain(requirement, nodes)
    assert (rows == []) is any(could)
    assert rows == explain(requirement, nodes[::-1])
    if rows:
        assert any(row.verdict for row in rows)


# --- the table for people -----------------------------------------------------------------------


def table(needs: Needs, *pool: Capabilities) -> list[tuple[str, ...]]:
    nodes = [(node.name, f"id-{node.name}", node) for node in pool]
    return [tuple(row) for row in explain(needs.requirement, nodes)]


def test_the_best_of_each_item_is_shown_with_its_node() -> None:
    needs = Needs(gpu=2, memory="24GiB", arch="riscv64")
    attic = caps("attic", memory_bytes=16 * GIB, devices=(gpu(), gpu()))
    assert table(needs, caps("shed"), attic, caps("loft", memory_bytes=12 * GIB)) == [
        ("memory", "24 GiB", "16 GiB on `attic`", TOO_LITTLE),
        ("gpu", "2", "2 on `attic`", ""),
        ("arch", "riscv64", "aarch64 on `attic`", DIFFERENT),
    ]


def test_no_node_has_everything_though_each_item_is_somewhere() -> None:
    needs = Needs(gpu=1, memory="24GiB", arch="x86_64", cpu=4)
    gpu_box = caps("tower", arch="x86_64", devices=(gpu(),))
    big_box = caps("shed", memory_bytes=32 * GIB)
    assert table(needs, big_box, gpu_box) == [
        ("together", "all on one node", "`tower` comes nearest", MISSING),
        ("cpu", "4", "4 on `tower`", ""),
        ("memory", "24 GiB", "8 GiB on `tower`", TOO_LITTLE),
        ("gpu", "1", "1 on `tower`", ""),
        ("arch", "x86_64", "x86_64 on `tower`", ""),
    ]


def test_alternatives_are_numbered() -> None:
    needs = Needs.any(Needs(gpu=1), Needs(cpu=16))
    assert table(needs, caps("attic"), caps("shed", cores=8)) == [
        ("1. gpu", "1", "none on `attic`", MISSING),
        ("2. cpu", "16", "8 on `shed`", TOO_LITTLE),
    ]


def test_without_any_node_the_table_says_so() -> None:
    assert table(Needs(gpu=1)) == [("gpu", "1", "no node answered", MISSING)]
    assert table(Needs()) == [("cpu", "1", "no node answered", MISSING)]


# --- the ledger ---------------------------------------------------------------------------------


def test_taking_and_giving() -> None:
    ledger = Ledger(40_000, 8 * GIB)
    ask = Ask(cpu_units=15_000, memory_bytes=3 * GIB)
    first, second = ledger.take(ask), ledger.take(ask)
    assert first is not None
    assert second is not None
    assert (ledger.free().cpu_units, ledger.free().memory_bytes) == (10_000, 2 * GIB)
    assert ledger.take(ask) is None
    assert ledger.room_for(ask) == 0
    ledger.give(first)
    assert ledger.room_for(ask) == 1
    ledger.give(second)
    assert ledger.free() == ledger.totals
    ledger.check()


def test_memory_that_is_not_stated_takes_nothing() -> None:
    ledger = Ledger(20_000, 0)
    assert ledger.room_for(Ask()) == 2
    assert ledger.take(Ask()) is not None
    assert ledger.take(Ask(memory_bytes=1)) is None


def test_a_lease_comes_back_once_and_to_its_own_ledger() -> None:
    ledger, other = Ledger(20_000, 0), Ledger(20_000, 0)
    lease, foreign = ledger.take(Ask()), other.take(Ask())
    assert lease is not None
    assert foreign is not None
    with pytest.raises(InvariantBroken, match="not out"):
        ledger.give(foreign)
    other.give(foreign)
    with pytest.raises(InvariantBroken, match="not out"):
        other.give(foreign)


def test_gpu_memory_is_packed_on_the_emptiest_devices() -> None:
    ledger = Ledger(100_000, 0, [2 * GIB, 4 * GIB, 4 * GIB])
    ask = Ask(gpu=1, gpu_memory_bytes=GIB)
    taken = [ledger.take(ask) for _ in range(10)]
    assert [lease.gpus[0][0] for lease in taken if lease] == [1, 2, 1, 2, 0, 1, 2, 0, 1, 2]
    assert ledger.take(ask) is None
    ledger.check()


def test_a_whole_device_is_shared_with_nobody() -> None:
    ledger = Ledger(100_000, 0, [2 * GIB, 4 * GIB])
    part, whole = Ask(gpu=1, gpu_memory_bytes=GIB), Ask(gpu=1)
    first = ledger.take(part)
    assert first is not None
    assert first.gpus == ((1, GIB),)
    second = ledger.take(whole)
    assert second is not None
    assert second.gpus == ((0, 2 * GIB),)
    assert ledger.take(whole) is None
    assert ledger.room_for(part) == 3
    ledger.give(first)
    assert ledger.room_for(whole) == 1
    ledger.check()


def test_a_device_of_unknown_memory_can_only_be_taken_whole() -> None:
    ledger = Ledger(100_000, 0, [0])
    assert ledger.take(Ask(gpu=1, gpu_memory_bytes=1)) is None
    lease = ledger.take(Ask(gpu=1))
    assert lease is not None
    assert ledger.take(Ask(gpu=1)) is None
    ledger.give(lease)
    assert ledger.room_for(Ask(gpu=1)) == 1


def test_several_devices_are_different_ones() -> None:
    ledger = Ledger(100_000, 0, [8 * GIB, GIB])
    ask = Ask(gpu=2, gpu_memory_bytes=GIB)
    assert ledger.room_for(ask) == 1
    lease = ledger.take(ask)
    assert lease is not None
    assert lease.gpus == ((0, GIB), (1, GIB))
    assert ledger.take(ask) is None


asks = st.builds(
    Ask,
    cpu_units=st.sampled_from([1000, 5000, 10_000]),
    memory_bytes=st.integers(0, 4),
    gpu=st.just(0),
) | st.builds(
    Ask,
    cpu_units=st.just(1000),
    gpu=st.integers(1, 3),
    gpu_memory_bytes=st.integers(0, 4),
)


@settings(max_examples=300)
@given(
    st.lists(st.integers(0, 9), max_size=4),
    st.lists(st.tuples(asks, st.integers(0, 5)), max_size=12),
    asks,
)
def test_the_ledger_never_gives_more_than_there_is(
    gpus: list[int], steps: list[tuple[Ask, int]], probe: Ask
) -> None:
    ledger = Ledger(60_000, 12, gpus)
    out = []
    for ask, back in steps:
        room = ledger.room_for(ask)
        lease = ledger.take(ask)
        assert (lease is not None) is (room > 0)
        if lease is not None:
            out.append(lease)
        if back < len(out):
            ledger.give(out.pop(back))
        ledger.check()
    room = ledger.room_for(probe)
    more = [ledger.take(probe) for _ in range(room + 1)]
    assert [lease is not None for lease in more] == [True] * room + [False]
    for lease in [*out, *more]:
        if lease is not None:
            ledger.give(lease)
    ledger.check()
    assert ledger.free() == ledger.totals


@settings(max_examples=200)
@given(st.lists(st.integers(0, 9), max_size=4), st.lists(asks, max_size=12))
def test_what_is_spent_is_what_would_have_been_leased(gpus: list[int], wanted: list[Ask]) -> None:
    ledger, book = Ledger(60_000, 12, gpus), Ledger(60_000, 12, gpus)
    for ask in wanted:
        assert ledger.spend(ask) is (book.take(ask) is not None)
        assert ledger.free() == book.free()
