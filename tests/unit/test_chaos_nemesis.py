"""What the nemesis draws: the same from the same seed, never two things to one node at once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackroad.cli.chaos_nemesis import (
    CALM_MS,
    COORDINATOR,
    FAULTS,
    FLAP_EVERY_MS,
    FLAPS,
    LONG_MS,
    MEANINGS,
    Strike,
    schedule,
)

NODES = ("mesh-1", "mesh-2", "mesh-3")
OWNERS = NODES[:2]
CLIENTS = ("client-1", "client-2")
MINUTE_MS = 60_000


def drawn(seed: str, length_ms: int = 10 * MINUTE_MS, *faults: str) -> list[Strike]:
    return schedule(seed, length_ms, NODES, OWNERS, CLIENTS, faults or tuple(FAULTS))


def test_a_seed_draws_the_same_again_and_another_seed_something_else() -> None:
    assert drawn("7") == drawn("7")
    assert drawn("7") != drawn("8")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_hits_those_it_is_meant_for(fault: str) -> None:
    meant = {
        "node": set(NODES),
        "owner": set(OWNERS),
        "client": set(CLIENTS),
        COORDINATOR: {COORDINATOR},
    }[FAULTS[fault].target]
    found = drawn("7", 10 * MINUTE_MS, fault)
    assert {strike.fault for strike in found} == {fault}
    assert {strike.target for strike in found} == meant


def test_every_fault_comes_before_any_comes_again() -> None:
    assert {strike.fault for strike in drawn("7")} == set(FAULTS)
    for seed in range(50):
        early = drawn(str(seed), 3 * MINUTE_MS)
        assert len({strike.fault for strike in early}) >= len(FAULTS) - 1


def test_a_flap_is_several_kills_in_a_row() -> None:
    found = drawn("7", MINUTE_MS, "flap coordinator")[:FLAPS]
    gaps = [after.at_ms - before.at_ms for before, after in itertools.pairwise(found)]
    assert gaps == [FLAP_EVERY_MS] * (FLAPS - 1)


def test_some_pauses_outlast_a_lease() -> None:
    for fault in ("kill", "stop daemon", "freeze node"):
        lasting = [strike.for_ms for strike in drawn("7", 30 * MINUTE_MS, fault)]
        assert any(for_ms >= LONG_MS[0] for for_ms in lasting)
        assert sum(for_ms < LONG_MS[0] for for_ms in lasting) > len(lasting) / 2


@given(st.integers(), st.integers(0, 5 * MINUTE_MS))
def test_nothing_is_struck_twice_at_once_and_all_is_over_at_the_end(
    seed: int, length_ms: int
) -> None:
    found = drawn(str(seed), length_ms)
    assert found == sorted(found)
    for strike in found:
        assert CALM_MS <= strike.at_ms <= strike.until_ms <= length_ms - CALM_MS
        others = [
            other
            for other in found
            if other.for_ms and other.target not in CLIENTS and other.fault != "drain"
            if other.at_ms <= strike.at_ms <= other.until_ms
        ]
        assert len(others) <= 2, "half of three nodes, rounded up"
    for target in {strike.target for strike in found}:
        of_one = [strike for strike in found if strike.target == target]
        for before, after in itertools.pairwise(of_one):
            assert before.until_ms < after.at_ms


def test_every_fault_is_explained() -> None:
    assert list(MEANINGS) == list(FAULTS)
