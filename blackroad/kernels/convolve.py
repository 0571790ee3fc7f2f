"""Convolution of an image with a small filter.

A filter is a plan: branches of stages.  The stages of a branch are applied one after the other
(a Gaussian is a column, then a row); several branches are combined to a magnitude (edges).  Each
stage shrinks the image by its own size, so an image is first padded by the whole plan's radius,
and a tile carries as many rows of its neighbours instead: every pixel sees the same numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.kernels.contract import Kernel, even_parts, kernel
from blackroad.kernels.parameters import Parameter, Wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from blackroad.kernels.backend import Device

    Array = npt.NDArray[Any]

FILTERS: Final = ("blur", "gaussian", "sharpen", "edges")
BORDERS: Final = {
    "nearest": "edge",
    "reflect": "symmetric",
    "mirror": "reflect",
    "wrap": "wrap",
    "zero": "constant",
}
FILTER_SIDE_MAX: Final = 31
SIGMA_MAX: Final = 32
ELEMENTS_MAX: Final = 2**28
ROW_ELEMENTS_MAX: Final = 2**21
CHANNELS_MAX: Final = 16
NUMPY_CHUNK: Final = 1 << 15
DEVICE_CHUNK: Final = 1 << 22
ROUNDING: Final = 2.0**-23
SUBNORMAL: Final = 2.0**-126


@kernel
class Convolve(Kernel):
    """Blur, sharpen or find edges; or convolve with a filter of one's own.

    Shapes     image (H, W) or (H, W, C), uint8 or float32, C at most 16; filter a name or a matrix
               with odd sides up to 31.  The result has the image's shape without its rows of
               context, and its dtype.
    Units      sigma in pixels, for `gaussian`, which is cut at 3 sigma.  `edges` is the Sobel
               magnitude sqrt(gx*gx + gy*gy), not scaled.
    Precision  float32 sums in a fixed order; uint8 results are rounded half to even and clipped.
               Devices may round otherwise, see `tolerance`.
    Cost       0.3 ns a pixel and filter element with NumPy on one core.
    Raises     KernelInputError on a wrong shape or dtype, an even filter, or context rows that
               do not fit the filter.
    """

    name = "convolve"
    summary = "blur, sharpen, find edges in an image, or convolve with a filter of your own"
    tolerance = (
        "uint8: 1; float32: (filter elements + 4) x 2**-23 x the convolution of absolute values"
    )
    parameters = (
        Parameter(
            "image",
            "array",
            maximum=ELEMENTS_MAX,
            dtypes=("uint8", "float32"),
            shapes=("(H, W)", "(H, W, C)"),
            help="rows, columns and perhaps channels",
        ),
        Parameter(
            "filter",
            "choice or array",
            choices=FILTERS,
            maximum=FILTER_SIDE_MAX**2,
            shapes=("(h, w)",),
            help="a name, or a matrix with odd sides",
        ),
        Parameter("sigma", "float", 1.0, 0.1, SIGMA_MAX, unit="pixels", help="for `gaussian`"),
        Parameter(
            "border",
            "choice",
            "nearest",
            choices=tuple(BORDERS),
            help="what lies beyond: aaa|abc, cba|abc, dcb|abc, wrapped round, or 0",
        ),
        Parameter("rows_above", "int", 0, 0, 3 * SIGMA_MAX, help="first rows that are context"),
        Parameter("rows_below", "int", 0, 0, 3 * SIGMA_MAX, help="last rows that are context"),
    )
    opencl = """
    #pragma OPENCL FP_CONTRACT OFF
    __kernel void correlate(const uint items, const uint columns, const uint image_columns,
                            const uint taps, __global const int *offsets,
                            __global const float *weights, __global const float *image,
                            __global float *result)
    {
        const uint item = get_global_id(0);
        if (item >= items) return;
        const uint place = item / columns * image_columns + item % columns;
        float sum = weights[0] * image[place + offsets[0]];
        for (uint tap = 1; tap < taps; tap++)
            sum = sum + weights[tap] * image[place + offsets[tap]];
        result[item] = sum;
    }
    """

    def check_together(self, values: Mapping[str, Any]) -> None:
        image, chosen = values["image"], values["filter"]
        if image.ndim == 3 and image.shape[2] > CHANNELS_MAX:
            raise Wrong(
                f"`image` has {image.shape[2]} channels, but must have at most {CHANNELS_MAX}"
            )
        if image[0].size > ROW_ELEMENTS_MAX:
            raise Wrong(f"`image` has rows of {image[0].size:_} elements, but at most 2**21 can be")
        if not isinstance(chosen, str) and not all(
            side % 2 and side <= FILTER_SIDE_MAX for side in chosen.shape
        ):
            raise Wrong(
                f"`filter` has the shape {chosen.shape}, but must have odd sides of at most "
                f"{FILTER_SIDE_MAX}",
                "fill it up with zeros",
            )
        radius = _plan(values).row_radius
        for name in ("rows_above", "rows_below"):
            if values[name] not in (0, radius):
                raise Wrong(f"`{name}` is {values[name]}, but must be 0 or {radius}")
        if image.shape[0] <= values["rows_above"] + values["rows_below"]:
            raise Wrong(f"`image` has {image.shape[0]} rows, and all of them are context")

    def estimate(self, values: Mapping[str, Any]) -> float:
        return float(values["image"].size * (0.003 + 0.0004 * _plan(values).taps))

    def split(self, values: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
        radius = _plan(values).row_radius
        padded = _padded_rows(values, radius)
        whole = {**values, "rows_above": radius, "rows_below": radius}
        return [
            {**whole, "image": padded[first : first + rows + 2 * radius]}
            for first, rows in even_parts(len(padded) - 2 * radius, parts)
        ]

    def compute(self, values: Mapping[str, Any]) -> Array:
        return _in_strips(values, NUMPY_CHUNK, _correlate)

    def compute_on(self, values: Mapping[str, Any], device: Device) -> Array:
        import numpy as np

        def correlate(image: Array, stages: Sequence[Stage]) -> Array:
            buffer, (rows, columns) = device.upload(image), image.shape
            for stage in stages:
                rows, image_columns = rows - stage.rows_lost, columns
                columns -= stage.columns_lost
                offsets = np.array([r * image_columns + c for r, c, _ in stage.taps], np.int32)
                weights = np.array([weight for _, _, weight in stage.taps], np.float32)
                result = device.empty(4 * rows * columns)
                numbers = [np.uint32(n) for n in (columns, image_columns, len(stage.taps))]
                arguments = [*numbers, device.upload(offsets), device.upload(weights)]
                arguments += [buffer, result]
                device.launch(self.opencl, "correlate", rows * columns, arguments)
                buffer = result
            return device.download(buffer, rows * columns, "float32").reshape(rows, columns)

        return _in_strips(values, DEVICE_CHUNK, correlate)

    def combine(self, values: Mapping[str, Any], results: Sequence[Any]) -> Array:
        import numpy as np

        return np.concatenate(results)

    def compare(self, values: Mapping[str, Any], a: Any, b: Any) -> str | None:
        import numpy as np

        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"one result is {a.dtype} {a.shape}, the other {b.dtype} {b.shape}"
        with np.errstate(invalid="ignore"):
            distance = np.abs(a.astype(np.float64) - b.astype(np.float64))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        far = ~same & ~(distance <= (1 if a.dtype == np.uint8 else _bound(values)))
        if not far.any():
            return None
        place = tuple(int(i) for i in np.argwhere(far)[0])
        return (
            f"{int(far.sum())} of {a.size} pixels differ too much, the first at {place}: "
            f"{a[place]} and {b[place]}"
        )


class Stage(NamedTuple):
    """One correlation: (row, column, weight) of each element, columns counted in channels too."""

    taps: tuple[tuple[int, int, float], ...]
    rows_lost: int
    columns_lost: int


class Plan(NamedTuple):
    """What a filter does; `radius` is by how much the image must be padded on each side."""

    branches: tuple[tuple[Stage, ...], ...]
    row_radius: int
    column_radius: int
    taps: int


def _plan(values: Mapping[str, Any]) -> Plan:
    image = values["image"]
    channels = image.shape[2] if image.ndim == 3 else 1
    branches = _matrices(values["filter"], values["sigma"])
    stages = tuple(tuple(_stage(matrix, channels) for matrix in branch) for branch in branches)
    return Plan(
        branches=stages,
        row_radius=sum(len(matrix) // 2 for matrix in branches[0]),
        column_radius=sum(len(matrix[0]) // 2 for matrix in branches[0]),
        taps=sum(len(stage.taps) for branch in stages for stage in branch),
    )


def _matrices(chosen: Any, sigma: float) -> list[list[list[list[float]]]]:
    """Return the filter as branches of stages of matrices, ready to correlate with."""
    if not isinstance(chosen, str):
        # Convolution turns the filter round; the named ones look the same either way, or their
        # sign is lost in the magnitude.
        return [[chosen[::-1, ::-1].tolist()]]
    if chosen == "blur":
        return [[[[1 / 9] * 3] * 3]]
    if chosen == "sharpen":
        return [[[[0, -1, 0], [-1, 5, -1], [0, -1, 0]]]]
    if chosen == "edges":
        across = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
        return [[across], [[list(row) for row in zip(*across, strict=True)]]]
    radius = max(1, math.ceil(3 * sigma))
    bell = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    bell = [value / math.fsum(bell) for value in bell]
    return [[[[value] for value in bell], [bell]]]


def _stage(matrix: list[list[float]], channels: int) -> Stage:
    taps = [
        (row, column * channels, weight)
        for row, weights in enumerate(matrix)
        for column, weight in enumerate(weights)
        if weight
    ]
    return Stage(tuple(taps) or ((0, 0, 0.0),), len(matrix) - 1, (len(matrix[0]) - 1) * channels)


def _in_strips(
    values: Mapping[str, Any],
    chunk: int,
    correlate: Callable[[Array, Sequence[Stage]], Array],
) -> Array:
    """Filter a few rows at a time, so that what is worked on stays in cache or in its buffer."""
    import numpy as np

    image, plan = values["image"], _plan(values)
    padded = _padded(values, plan)
    halo = 2 * plan.row_radius
    rows = len(padded) - halo
    result = np.empty((rows, image[0].size), image.dtype)
    strip = max(1, chunk // image[0].size, halo)
    for first in range(0, rows, strip):
        part = padded[first : first + strip + halo].astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            filtered = [correlate(part, branch) for branch in plan.branches]
            result[first : first + strip] = _finished(filtered, image.dtype)
    return result.reshape(rows, *image.shape[1:])


def _padded(values: Mapping[str, Any], plan: Plan) -> Array:
    """Return the image with all its context, as rows of columns x channels."""
    import numpy as np

    rows = _padded_rows(values, plan.row_radius)
    margins = [(0, 0), (plan.column_radius, plan.column_radius)] + [(0, 0)] * (rows.ndim - 2)
    how: Any = BORDERS[values["border"]]
    padded: Array = np.pad(rows, margins, how)
    return padded.reshape(len(rows), -1)


def _padded_rows(values: Mapping[str, Any], radius: int) -> Array:
    """Complete the rows above and below: given ones are kept, others made by the border rule."""
    import numpy as np

    image = values["image"]
    margins = [(radius - values["rows_above"], radius - values["rows_below"])]
    margins += [(0, 0)] * (image.ndim - 1)
    how: Any = BORDERS[values["border"]]
    padded: Array = np.pad(image, margins, how)
    return padded


def _correlate(image: Array, stages: Sequence[Stage]) -> Array:
    import numpy as np

    for stage in stages:
        rows, columns = image.shape[0] - stage.rows_lost, image.shape[1] - stage.columns_lost
        total = np.empty((rows, columns), np.float32)
        product = np.empty_like(total)
        for number, (row, column, weight) in enumerate(stage.taps):
            seen = image[row : row + rows, column : column + columns]
            np.multiply(seen, np.float32(weight), out=product if number else total)
            if number:
                total += product
        image = total
    return image


def _finished(filtered: list[Array], dtype: np.dtype[Any]) -> Array:
    """Combine the branches, and round to bytes if the image is made of them."""
    import numpy as np

    result = filtered[0]
    if len(filtered) > 1:
        result = np.sqrt(np.sum([part * part for part in filtered], axis=0, dtype=np.float32))
    if dtype == np.uint8:
        # A filter with huge elements may give inf - inf, whose conversion is undefined.
        result = np.clip(np.rint(np.nan_to_num(result, nan=0.0)), 0, 255)
    return result.astype(dtype)


def _bound(values: Mapping[str, Any]) -> Array:
    """Return how far two float32 results may be apart, pixel by pixel."""
    import numpy as np

    plan = _plan(values)
    absolute = [
        [stage._replace(taps=tuple((r, c, abs(w)) for r, c, w in stage.taps)) for stage in branch]
        for branch in plan.branches
    ]
    padded = np.abs(_padded(values, plan))
    total = sum(_correlate(padded, branch).astype(np.float64) for branch in absolute)
    rows = len(padded) - 2 * plan.row_radius
    shape = (rows, *values["image"].shape[1:])
    return np.asarray((plan.taps + 4) * ROUNDING * total + plan.taps * SUBNORMAL).reshape(shape)
