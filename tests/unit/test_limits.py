"""The three bounds that are computed, against the table of the protocol."""

from __future__ import annotations

import pytest

from blackroad import limits


@pytest.mark.parametrize(
    ("members", "beat_ms"), [(1, 250), (20, 250), (21, 1000), (100, 1000), (101, 1010)]
)
def test_heartbeat_grows_in_steps(members: int, beat_ms: int) -> None:
    assert limits.heartbeat_ms(members) == beat_ms


@pytest.mark.parametrize(
    ("lease_ms", "bound_ms"), [(20_000, 24_000), (5_000, 7_500), (5_001, 7_502)]
)
def test_bound_is_rounded_up(lease_ms: int, bound_ms: int) -> None:
    assert limits.bound_ms(lease_ms) == bound_ms


@pytest.mark.parametrize("lease_ms", [limits.LEASE_MS_MIN, limits.LEASE_MS, limits.LEASE_MS_MAX])
def test_an_attempt_has_ended_before_its_owner_concludes_so(lease_ms: int) -> None:
    # The worker's clock may be the slower one by the whole rate, and the kill takes its guard.
    longest_ms = lease_ms * (100 + limits.CLOCK_RATE_PERCENT) / 100 + limits.KILL_GUARD_MS
    assert limits.bound_ms(lease_ms) >= longest_ms + limits.MARGIN_MS


@pytest.mark.parametrize("lease_ms", [limits.LEASE_MS_MIN, limits.LEASE_MS, limits.LEASE_MS_MAX])
def test_a_lease_sees_at_least_four_renewals(lease_ms: int) -> None:
    assert 4 * limits.renew_ms(lease_ms) <= lease_ms


def test_whatever_fits_a_message_fits_its_frame_and_batch() -> None:
    largest_parts = (
        limits.INLINE_BYTES_MAX + limits.NEEDS_BYTES_MAX,
        limits.DEMAND_BYTES_MAX,
        limits.SUBMIT_BYTES_MAX + limits.NEEDS_BYTES_MAX,
        limits.REPLY_PAGE_BYTES_MAX,
        limits.CAPABILITIES_BYTES_MAX,
    )
    assert max(largest_parts) < limits.MESSAGE_BYTES_MAX
    assert limits.MESSAGE_BYTES_MAX < limits.FRAME_BYTES_MAX
    assert limits.MESSAGE_BYTES_MAX < limits.BATCH_BYTES_MAX
    assert limits.CHUNK_BYTES < limits.BULK_FRAME_BYTES_MAX
