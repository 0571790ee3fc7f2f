"""`monte_carlo_pi` against points thrown one at a time in Python's integers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackroad.kernels import monte_carlo_pi, registry
from blackroad.kernels.backend import Backend, Device

KERNEL = registry.get("monte_carlo_pi")


def splitmix64(seed: int, count: int) -> list[int]:
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        numbers.append(z ^ (z >> 31))
    return numbers


def hits(samples: int, seed: int, first_sample: int = 0) -> int:
    points = splitmix64(splitmix64(seed, 1)[0], first_sample + samples)[first_sample:]
    return sum((z >> 33) ** 2 + (z % 2**31) ** 2 < 2**62 for z in points)


def test_the_generator_gives_the_published_sequence() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(1234567, 3) == published
    states = [1234567 + (i + 1) * monte_carlo_pi.STEP for i in range(3)]
    assert [monte_carlo_pi._mixed(state) for state in states] == published


@pytest.mark.parametrize("samples", [1, 2, 63, 64, 65, 997, 8_193, 40_009])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_hits(backend: Backend, samples: int, seed: int) -> None:
    result: Any = KERNEL.run({"samples": samples, "seed": seed}, backend)
    assert (result["samples"], result["hits"]) == (samples, hits(samples, seed))
    assert result["pi"] == 4 * result["hits"] / samples


def test_far_samples(device: Device) -> None:
    params = {"samples": 10_007, "seed": 5, "first_sample": 2**50 - 10_007}
    assert KERNEL.run(params, device) == KERNEL.reference(params)


def test_pi_is_within_its_error(backend: Backend) -> None:
    result: Any = KERNEL.run({"samples": 4_000_000, "seed": 7}, backend)
    assert result["hits"] == 3_140_971
    assert abs(result["pi"] - math.pi) < 4 * result["stderr"]
    assert result["stderr"] == pytest.approx(1.642 / 2_000, rel=0.01)


def test_several_launches_count_each_sample_once(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monte_carlo_pi, "DEVICE_CHUNK", 1_000)
    monkeypatch.setattr(monte_carlo_pi, "DEVICE_ITEMS", 128)
    result: Any = KERNEL.run({"samples": 7_919, "seed": 3}, device)
    assert result["hits"] == hits(7_919, 3)


def test_one_sample_does_not_claim_to_be_certain() -> None:
    result: Any = KERNEL.reference({"samples": 1, "seed": 1})
    assert result["stderr"] > 1


def test_seeds_give_different_points() -> None:
    found = {str(KERNEL.reference({"samples": 100_000, "seed": seed})) for seed in range(8)}
    assert len(found) == 8


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("target", [1, 2, 5, 97, 4_000])
@pytest.mark.parametrize("samples", [1, 2, 997])
def test_tiles_gather_to_the_whole(backend: Backend, samples: int, target: int) -> None:
    params = {"samples": samples, "seed": 11, "first_sample": 3}
    tiles = KERNEL.pieces(params, target)
    assert len(tiles) == min(samples, target)
    results = [KERNEL.run(tile, backend) for tile in tiles]
    assert KERNEL.gather(params, tiles, results) == KERNEL.reference(params)
    assert sum(result["hits"] for result in results) == hits(samples, 11, 3)  # type: ignore[index]


def test_a_difference_is_named() -> None:
    params = {"samples": 100}
    a: Any = KERNEL.reference(params)
    found = KERNEL.agrees(params, a, {**a, "hits": 1})
    assert found == f"`hits` is {a['hits']} in one result and 1 in the other"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_any_parameters(samples: int, seed: int, first_sample: int) -> None:
    params = {"samples": samples, "seed": seed, "first_sample": first_sample}
    result: Any = KERNEL.reference(params)
    assert result["hits"] == hits(samples, seed, first_sample)
