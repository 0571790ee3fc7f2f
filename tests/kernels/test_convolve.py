"""`convolve` against sums written out pixel by pixel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackroad.kernels import convolve, registry
from blackroad.kernels.backend import Backend, Device

KERNEL = registry.get("convolve")
Array = npt.NDArray[Any]

LOPSIDED = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
FILTERS: dict[str, Any] = {
    "blur": "blur",
    "gaussian": "gaussian",
    "sharpen": "sharpen",
    "edges": "edges",
    "lopsided": [[0.5, -1, 2, 0, 3], [0, 0.25, -0.5, 1, -2], [1, 0, 0, 0, 0.125]],
    "row": [[0.25, 0.5, 0.25]],
    "point": [[2]],
    "nothing": [[0]],
}


def image(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    if dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return (rng.standard_normal(shape) * 100).astype(np.float32)


def beyond(i: int, size: int, border: str) -> int | None:
    """Return which pixel stands for index `i` of a line, or None for zero."""
    if border == "zero":
        return i if 0 <= i < size else None
    if border == "nearest":
        return min(max(i, 0), size - 1)
    if border == "wrap":
        return i % size
    if border == "reflect":
        i %= 2 * size
        return min(i, 2 * size - 1 - i)
    i %= max(1, 2 * size - 2)
    return min(i, 2 * size - 2 - i)


def convolved(plane: Array, matrix: list[list[float]], border: str) -> Array:
    """Convolve one channel in Python's floats."""
    rows, columns = plane.shape
    middle_row, middle_column = len(matrix) // 2, len(matrix[0]) // 2
    result = np.zeros((rows, columns))
    for r in range(rows):
        for c in range(columns):
            for i, weights in enumerate(matrix):
                for j, weight in enumerate(weights):
                    y = beyond(r - (i - middle_row), rows, border)
                    x = beyond(c - (j - middle_column), columns, border)
                    if y is not None and x is not None:
                        result[r, c] += weight * float(plane[y, x])
    return result


def expected(picture: Array, chosen: Any, border: str, sigma: float = 1.0) -> Array:
    if picture.ndim == 3:
        planes = [expected(picture[..., c], chosen, border, sigma) for c in range(picture.shape[2])]
        return np.stack(planes, axis=-1)
    if chosen == "edges":
        across = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
        down = [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]
        result = np.hypot(convolved(picture, across, border), convolved(picture, down, border))
    else:
        result = convolved(picture, matrix_of(chosen, sigma), border)
    return np.clip(np.rint(result), 0, 255) if picture.dtype == np.uint8 else result


def matrix_of(chosen: Any, sigma: float) -> list[list[float]]:
    if chosen == "blur":
        return [[1 / 9] * 3] * 3
    if chosen == "sharpen":
        return [[0, -1, 0], [-1, 5, -1], [0, -1, 0]]
    if chosen == "gaussian":
        reach = range(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
        bell = [[math.exp(-(i * i + j * j) / (2 * sigma * sigma)) for j in reach] for i in reach]
        total = sum(map(sum, bell))
        return [[value / total for value in row] for row in bell]
    return [list(map(float, row)) for row in chosen]


def far_off(params: dict[str, Any], result: Array, wanted: Array) -> str | None:
    return KERNEL.agrees(params, result, wanted.astype(result.dtype))


@pytest.mark.parametrize("border", convolve.BORDERS)
@pytest.mark.parametrize("chosen", FILTERS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_every_filter_and_border(backend: Backend, dtype: str, chosen: str, border: str) -> None:
    picture = image((11, 7), dtype)
    params = {"image": picture, "filter": FILTERS[chosen], "border": border}
    result: Any = KERNEL.run(params, backend)
    assert (result.shape, result.dtype) == (picture.shape, picture.dtype)
    assert far_off(params, result, expected(picture, FILTERS[chosen], border)) is None


@pytest.mark.parametrize("border", convolve.BORDERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 3), (3, 2, 1), (4, 5, 3)])
def test_images_smaller_than_the_filter(
    backend: Backend, shape: tuple[int, ...], border: str
) -> None:
    picture = image(shape, "float32")
    params = {"image": picture, "filter": "gaussian", "sigma": 2.0, "border": border}
    result: Any = KERNEL.run(params, backend)
    assert far_off(params, result, expected(picture, "gaussian", border, 2.0)) is None


def test_a_point_becomes_the_filter(backend: Backend) -> None:
    picture = np.zeros((5, 5), np.uint8)
    picture[2, 2] = 1
    result: Any = KERNEL.run({"image": picture, "filter": LOPSIDED}, backend)
    assert result[1:4, 1:4].tolist() == LOPSIDED
    assert result.sum() == 45


def test_a_step_has_one_edge(backend: Backend) -> None:
    picture = np.zeros((4, 6), np.float32)
    picture[:, 3:] = 10
    result: Any = KERNEL.run({"image": picture, "filter": "edges"}, backend)
    assert result.tolist() == [[0, 0, 40, 40, 0, 0]] * 4


def test_bytes_are_rounded_and_clipped(backend: Backend) -> None:
    picture = np.array([[0, 255], [1, 3]], np.uint8)
    half: Any = KERNEL.run({"image": picture, "filter": [[0.5]]}, backend)
    assert half.tolist() == [[0, 128], [0, 2]]
    negative: Any = KERNEL.run({"image": picture, "filter": [[-1]]}, backend)
    assert negative.tolist() == [[0, 0], [0, 0]]
    double: Any = KERNEL.run({"image": picture, "filter": [[2]]}, backend)
    assert double.tolist() == [[0, 255], [2, 6]]
    infinite: Any = KERNEL.run({"image": picture, "filter": [[3e38, -3e38, 3e38]]}, backend)
    assert infinite.dtype == np.uint8


def test_a_flat_image_stays_flat(backend: Backend) -> None:
    picture = np.full((9, 10, 3), 77, np.uint8)
    for chosen in ("blur", "gaussian", "sharpen"):
        result: Any = KERNEL.run({"image": picture, "filter": chosen}, backend)
        assert np.array_equal(result, picture)
    edges: Any = KERNEL.run({"image": picture, "filter": "edges"}, backend)
    assert not edges.any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_where_it_is(backend: Backend, value: float) -> None:
    picture = image((8, 9), "float32")
    picture[4, 4] = value
    params = {"image": picture, "filter": "blur"}
    result: Any = KERNEL.run(params, backend)
    assert (~np.isfinite(result)).sum() == 9
    assert KERNEL.agrees(params, result, KERNEL.reference(params)) is None


def test_foreign_byte_order_and_strides_are_read() -> None:
    picture = image((6, 8), "float32")
    plain: Any = KERNEL.reference({"image": picture, "filter": "blur"})
    swapped: Any = KERNEL.reference({"image": picture.astype(">f4"), "filter": "blur"})
    turned = np.asfortranarray(picture)
    assert np.array_equal(plain, swapped)
    assert np.array_equal(plain, KERNEL.reference({"image": turned, "filter": "blur"}))


def test_a_filter_may_be_text_lists_or_an_array() -> None:
    picture = image((5, 6))
    forms = ["[[1,2,3],[4,5,6],[7,8,9]]", LOPSIDED, np.array(LOPSIDED), np.array(LOPSIDED, "f2")]
    results = [KERNEL.reference({"image": picture, "filter": form}) for form in forms]
    assert all(np.array_equal(results[0], result) for result in results)


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("target", [1, 2, 5, 97])
@pytest.mark.parametrize("border", convolve.BORDERS)
@pytest.mark.parametrize("chosen", ["gaussian", "edges", "row", "lopsided"])
def test_tiles_gather_to_the_whole(backend: Backend, chosen: str, border: str, target: int) -> None:
    for shape in ((1, 1), (3, 17), (53, 11, 3)):
        picture = image(shape, "float32")
        params = {"image": picture, "filter": FILTERS[chosen], "border": border, "sigma": 1.5}
        tiles = KERNEL.pieces(params, target)
        assert len(tiles) == min(target, shape[0])
        results = [KERNEL.run(tile, backend) for tile in tiles]
        gathered = KERNEL.gather(params, tiles, results)
        assert np.array_equal(gathered, KERNEL.run(params, backend))  # type: ignore[arg-type]


@pytest.mark.usefixtures("tiny_tiles")
def test_a_tile_can_be_split_again() -> None:
    params = {"image": image((40, 13)), "filter": "gaussian", "sigma": 2, "border": "wrap"}
    tile = KERNEL.pieces(params, 3)[1]
    tiles = KERNEL.pieces(tile, 4)
    results = [KERNEL.reference(part) for part in tiles]
    again: Any = KERNEL.gather(tile, tiles, results)
    assert np.array_equal(again, KERNEL.reference(tile))


def test_strips_join_to_the_whole(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"image": image((37, 19)), "filter": "edges"}
    whole = KERNEL.reference(params)
    monkeypatch.setattr(convolve, "NUMPY_CHUNK", 1)
    monkeypatch.setattr(convolve, "DEVICE_CHUNK", 40)
    assert np.array_equal(whole, KERNEL.reference(params))  # type: ignore[arg-type]
    assert KERNEL.agrees(params, whole, KERNEL.run(params, device)) is None


def test_a_difference_is_placed() -> None:
    params = {"image": image((6, 5)), "filter": "blur"}
    a: Any = KERNEL.reference(params)
    b = a.copy()
    b[2, 3] ^= 1
    assert KERNEL.agrees(params, a, b) is None
    b[2, 3] = a[2, 3] + 2
    found = KERNEL.agrees(params, a, b)
    assert found == (
        f"1 of 30 pixels differ too much, the first at (2, 3): {a[2, 3]} and {b[2, 3]}"
    )
    assert "float32" in str(KERNEL.agrees(params, a, a.astype(np.float32)))


def test_the_float32_bound_is_tight() -> None:
    params = {"image": image((16, 16), "float32"), "filter": "gaussian"}
    a: Any = KERNEL.reference(params)
    assert KERNEL.agrees(params, a, a * np.float32(1 + 1e-3)) is not None
    assert KERNEL.agrees(params, a, np.where(np.eye(16) > 0, np.nan, a).astype("f4")) is not None


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([1, 3, 5]),
    st.sampled_from(sorted(convolve.BORDERS)),
    st.integers(0, 2**32 - 1),
)
def test_any_filter(
    rows: int, columns: int, height: int, width: int, border: str, seed: int
) -> None:
    picture = image((rows, columns), "float32", seed)
    chosen = (image((height, width), "float32", seed + 1) / 100).tolist()
    params = {"image": picture, "filter": chosen, "border": border}
    result: Any = KERNEL.reference(params)
    assert far_off(params, result, expected(picture, chosen, border)) is None
