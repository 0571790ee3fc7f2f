"""Work is placed well (L4): makespan near the fluid bound, equal shares, whole nodes in between."""

from __future__ import annotations

import pytest

from tests.sim import quality, scale
from tests.sim.quality import SHELVES, makespan, works

# One task more than the fluid bound is nobody's fault; 5 % are the round trips.
SLACK = 1.05


@pytest.mark.parametrize("shelf", SHELVES)
@pytest.mark.parametrize(("mean_ms", "seconds"), [(2_000, 12), (100, 3)])
def test_machines_of_any_speed_end_together(shelf: str, mean_ms: int, seconds: int) -> None:
    """L4: makespan at most 1.1 x the fluid bound, where tasks are small beside it."""
    count = int(1000 * seconds * SHELVES[shelf].power() / mean_ms)
    found = makespan(shelf, SHELVES[shelf], works("even", count, mean_ms))
    assert found.ratio <= max(1.1, SLACK * found.granularity), found
    assert found.starts == count


def test_a_long_tail_costs_no_more_than_its_longest_task() -> None:
    """Lengths are not known beforehand: the longest may start last."""
    shelf = SHELVES["4 equal nodes"]
    found = makespan("tail", shelf, works("tailed", 200, 1_000))
    assert found.ratio <= SLACK * found.granularity, found


def test_users_get_equal_parts() -> None:
    """L4: whoever has more queued, and whoever came first."""
    found = {share.name: share.ratios for share in quality.shares()}
    assert set(found) == {
        "two equal",
        "one has ten times more",
        "one comes later",
        "eight equal",
    }
    for name, ratios in found.items():
        assert all(0.85 <= ratio <= 1.2 for ratio in ratios.values()), (name, ratios)


def test_a_share_is_kept_where_it_is_used() -> None:
    """R-lease-17: without it, what is sent ahead takes what the table gives to others."""
    from blackroad.router.works import Crowd

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Crowd, "full", lambda self: False)
        assert quality.late_comer().ratios["late"] > 2


def test_whole_nodes_are_found_among_small_tasks() -> None:
    """R-alloc-5: back-fill keeps the machines busy, and the large ones come to their turn."""
    found = quality.whole_nodes()
    assert found.ratio <= 1.1, found
    assert found.whole_ms <= 5 * found.whole_alone_ms, found


def test_a_coordinator_of_many_nodes_is_small() -> None:
    """Memory follows nodes and classes, never tasks."""
    few = scale.measure(200, 10, 10_000)
    many = scale.measure(200, 10, 1_000_000)
    assert many.memory_kib < 100 * 200
    assert many.memory_kib < 1.2 * few.memory_kib
    assert many.rows <= 200 * scale.SLOTS + 10
