"""`mandelbrot` against orbits in Python's floats, and against what is known of the set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackroad.errors import DeviceProblem
from blackroad.kernels import mandelbrot, registry
from blackroad.kernels.backend import Backend, Device
from tests.kernels.places import SinglePrecision

KERNEL = registry.get("mandelbrot")

VIEWS = {
    "whole": {},
    "far": {"scale": 16, "center_x": 3},
    "seahorses": {"center_x": -0.745, "center_y": 0.113, "scale": 0.02, "max_iter": 500},
    "needle": {"center_x": -1.4011, "scale": 0.01, "max_iter": 500},
    "deep": {"center_x": -0.7436438870371587, "center_y": 0.13182590420531, "scale": 1e-9},
}


def escape_time(cx: float, cy: float, max_iter: int) -> int:
    x = y = 0.0
    for count in range(max_iter):
        if x * x + y * y > 4:
            return count
        x, y = x * x - y * y + cx, 2 * x * y + cy
    return max_iter


def one_pixel(cx: float, cy: float, backend: Backend, max_iter: int = 1_000) -> int:
    params = {"width": 1, "height": 1, "center_x": cx, "center_y": cy, "max_iter": max_iter}
    result: Any = KERNEL.run(params, backend)
    assert result.shape == (1, 1)
    return int(result[0, 0])


@pytest.mark.parametrize(
    ("cx", "cy", "count"),
    [
        (0, 0, 1_000),
        (-1, 0, 1_000),
        (0.25, 0, 1_000),
        (-2, 0, 1_000),
        (0, 1, 1_000),
        (2, 0, 2),
        (1, 0, 3),
        (-2.5, 0, 1),
        (4, 4, 1),
    ],
)
def test_known_orbits(backend: Backend, cx: float, cy: float, count: int) -> None:
    assert one_pixel(cx, cy, backend) == count


@pytest.mark.parametrize("view", VIEWS)
def test_small_pictures_equal_single_orbits(backend: Backend, view: str) -> None:
    params = KERNEL.check({"width": 23, "height": 17, **VIEWS[view]})
    result: Any = KERNEL.run(params, backend)
    xs, ys = mandelbrot._points(params)
    orbits = np.array([[escape_time(x, y, params["max_iter"]) for x in xs] for y in ys])
    assert result.dtype == np.uint16
    assert KERNEL.agrees(params, result, orbits.astype(np.uint16)) is None


@pytest.mark.parametrize("view", VIEWS)
def test_a_device_agrees_with_the_reference(device: Device, view: str) -> None:
    params = {"width": 127, "height": 131, **VIEWS[view]}
    result = KERNEL.run(params, device)
    assert KERNEL.agrees(params, result, KERNEL.reference(params)) is None


@pytest.mark.parametrize("scale", [1, 3, 16])
@pytest.mark.parametrize("max_iter", [50, 2_000])
def test_float32_stays_within_its_bound(device: Device, scale: float, max_iter: int) -> None:
    params = {"width": 151, "height": 149, "scale": scale, "max_iter": max_iter}
    result = KERNEL.run(params, SinglePrecision(device))
    assert KERNEL.agrees(params, result, KERNEL.reference(params)) is None


def test_float32_refuses_a_deep_view(device: Device) -> None:
    single = SinglePrecision(device)
    with pytest.raises(DeviceProblem) as caught:
        KERNEL.run({"width": 8, "height": 8, "scale": 0.5}, single)
    assert caught.value.message == f"{single.name} has no float64, which a `scale` of 0.5 needs"


def test_area_of_the_set(backend: Backend) -> None:
    params = {"width": 420, "height": 420, "center_x": -0.5, "scale": 3, "max_iter": 2_000}
    result: Any = KERNEL.run(params, backend)
    area = float((result == 2_000).mean()) * 9
    assert area == pytest.approx(1.5066, rel=0.01)


def test_the_picture_is_symmetric() -> None:
    result: Any = KERNEL.reference({"width": 64, "height": 51})
    assert np.array_equal(result, result[::-1])
    assert result[25].max() == 200
    assert result[:, 0].max() < result[:, 32].max()


def test_more_iterations_than_sixteen_bits_hold(backend: Backend) -> None:
    params = {"width": 3, "height": 1, "max_iter": 70_000}
    result: Any = KERNEL.run(params, backend)
    assert result.dtype == np.uint32
    assert result.max() == 70_000


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("target", [1, 2, 7, 1_000])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (97, 1), (1, 97), (53, 61)])
def test_tiles_gather_to_the_whole(backend: Backend, width: int, height: int, target: int) -> None:
    params = {"width": width, "height": height, "center_y": 0.1, "scale": 2.5}
    tiles = KERNEL.pieces(params, target)
    assert len(tiles) == min(target, height)
    whole = KERNEL.run(params, backend)
    results = [KERNEL.run(tile, backend) for tile in tiles]
    gathered: Any = KERNEL.gather(params, tiles, results)
    assert np.array_equal(gathered, whole)
    assert gathered.shape == (height, width)


def test_several_launches_fill_each_pixel(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"width": 31, "height": 29}
    once: Any = KERNEL.run(params, device)
    monkeypatch.setattr(mandelbrot, "DEVICE_CHUNK", 100)
    assert np.array_equal(once, KERNEL.run(params, device))


def test_a_difference_is_counted() -> None:
    params = {"width": 40, "height": 40}
    a: Any = KERNEL.reference(params)
    b = a.copy()
    b[0, :32] += 1
    assert KERNEL.agrees(params, a, b) is None
    b[1, 0] += 1
    assert KERNEL.agrees(params, a, b) == "33 of 1600 pixels differ, of which 32 may"
    assert "(1, 40)" in str(KERNEL.agrees(params, a, a[:1]))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 40),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(1e-6, 16),
)
def test_any_view(
    width: int, height: int, max_iter: int, center_x: float, center_y: float, scale: float
) -> None:
    params = KERNEL.check(
        {
            "width": width,
            "height": height,
            "max_iter": max_iter,
            "center_x": center_x,
            "center_y": center_y,
            "scale": scale,
        }
    )
    xs, ys = mandelbrot._points(params)
    orbits = [[escape_time(x, y, max_iter) for x in xs] for y in ys]
    assert KERNEL.agrees(params, KERNEL.reference(params), np.array(orbits, np.uint16)) is None
