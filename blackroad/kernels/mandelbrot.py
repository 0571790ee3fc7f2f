"""Escape times of the Mandelbrot set on a grid of pixels.

Every pixel's point comes from its row and column in the whole picture, so that a tile's pixels
equal the same pixels of the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from blackroad.errors import DeviceProblem
from blackroad.kernels.contract import Kernel, even_parts, keep, kernel
from blackroad.kernels.parameters import Parameter, Wrong

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from blackroad.kernels.backend import Device

    Array = npt.NDArray[Any]

SIDE_MAX: Final = 65_536
PIXELS_MAX: Final = 2**28
NUMPY_CHUNK: Final = 1 << 14
BLOCK: Final = 8
DEVICE_ITERATIONS: Final = 1 << 30
DEVICE_CHUNK: Final = 1 << 22
SINGLE_SCALE_MIN: Final = 1.0
PIXEL_MIN: Final = 1e-15
DIFFERING_SHARE_MAX: Final = 0.02
DIFFERING_ALWAYS_ALLOWED: Final = 8


@kernel
class Mandelbrot(Kernel):
    """How often z = z*z + c is applied to 0 until |z| > 2, at most `max_iter` times.

    Shapes     result (rows, width), uint16 while max_iter < 2**16, else uint32.  Row 0 has the
               smallest imaginary part.  Points inside never escape and get max_iter.
    Units      center and scale in the complex plane; pixels are squares of side scale / width.
    Precision  float64 on NumPy and on devices that have it.  Others use float32, for which a
               scale of at least 1 is required; about the difference see `tolerance`.
    Cost       3 ns an iteration with NumPy on one core; points of the cardioid and of the largest
               disc cost none.
    Raises     KernelInputError when rows are outside the picture or pixels closer than 1e-15;
               DeviceProblem on a device without float64 when the scale is below 1.
    """

    name = "mandelbrot"
    summary = "escape times of the Mandelbrot set, one per pixel"
    tolerance = "at most 2 % of the pixels, or 8, may differ, because of rounding at the border"
    parameters = (
        Parameter("width", "int", minimum=1, maximum=SIDE_MAX, unit="pixels", help="columns"),
        Parameter("height", "int", minimum=1, maximum=SIDE_MAX, unit="pixels", help="all rows"),
        Parameter("max_iter", "int", 200, 1, 2**20, unit="iterations", help="when to give up"),
        Parameter("center_x", "float", -0.75, -4, 4, help="real part of the middle"),
        Parameter("center_y", "float", 0.0, -4, 4, help="imaginary part of the middle"),
        Parameter("scale", "float", 3.0, 1e-12, 16, help="width of the picture in the plane"),
        Parameter("first_row", "int", 0, 0, SIDE_MAX - 1, help="first row to compute"),
        Parameter("rows", "int", 0, 0, SIDE_MAX, unit="rows", help="how many; 0: all that follow"),
    )
    opencl = """
    #pragma OPENCL FP_CONTRACT OFF
    __kernel void escape_times(const uint items, const uint first, const uint width,
                               const uint max_iter, __global const REAL *xs,
                               __global const REAL *ys, __global uint *counts)
    {
        const uint item = get_global_id(0);
        if (item >= items) return;
        const REAL cx = xs[(first + item) % width], cy = ys[(first + item) / width];
        const REAL quarter = (REAL) 0.25, left = cx - quarter, right = cx + 1;
        const REAL height = cy * cy, distance = left * left + height;
        REAL x = 0, y = 0, xx = 0, yy = 0;
        uint count = 0;
        if (distance * (distance + left) <= quarter * height
            || right * right + height <= quarter * quarter)
            count = max_iter;
        while (count < max_iter && xx + yy <= 4) {
            y = y * x;
            y = y + y + cy;
            x = xx - yy + cx;
            xx = x * x;
            yy = y * y;
            count++;
        }
        counts[item] = count;
    }
    """

    def check_together(self, values: Mapping[str, Any]) -> None:
        width, height, rows = values["width"], values["height"], values["rows"]
        if width * height > PIXELS_MAX:
            raise Wrong(f"`width` x `height` is {width * height:_}, but must be at most 2**28")
        if values["first_row"] + max(1, rows) > height:
            raise Wrong(
                f"`first_row` {values['first_row']} and `rows` {rows} are outside the picture, "
                f"whose `height` is {height}"
            )
        if values["scale"] / width < PIXEL_MIN:
            raise Wrong(
                f"`scale` / `width` is {values['scale'] / width:g}, but must be at least "
                f"{PIXEL_MIN:g}, or neighbouring pixels are the same float64",
                f"use a `width` of at most {int(values['scale'] / PIXEL_MIN)}",
            )

    def estimate(self, values: Mapping[str, Any]) -> float:
        pixels = values["width"] * _rows(values)
        return float(pixels * (0.01 + 0.0004 * values["max_iter"]))

    def split(self, values: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
        return [
            {**values, "first_row": values["first_row"] + offset, "rows": length}
            for offset, length in even_parts(_rows(values), parts)
        ]

    def compute(self, values: Mapping[str, Any]) -> Array:
        import numpy as np

        xs, ys = _points(values)
        width, rows, dtype = len(xs), len(ys), _dtype(values)
        result = np.empty(width * rows, dtype)
        for first in range(0, width * rows, NUMPY_CHUNK):
            pixel = np.arange(first, min(first + NUMPY_CHUNK, width * rows))
            result[pixel[0] : pixel[-1] + 1] = _escape_times(
                xs[pixel % width], ys[pixel // width], values["max_iter"]
            )
        return result.reshape(rows, width)

    def compute_on(self, values: Mapping[str, Any], device: Device) -> Array:
        import numpy as np

        if not device.has_fp64 and values["scale"] < SINGLE_SCALE_MIN:
            raise DeviceProblem(
                f"{device.name} has no float64, which a `scale` of {values['scale']:g} needs",
                hint="use the backend `numpy`, or a `scale` of at least 1",
            )
        real, name = (np.float64, "double") if device.has_fp64 else (np.float32, "float")
        xs, ys = _points(values)
        width, pixels, dtype = len(xs), len(xs) * len(ys), _dtype(values)
        points = [device.upload(xs.astype(real)), device.upload(ys.astype(real))]
        result = np.empty(pixels, dtype)
        chunk = min(DEVICE_CHUNK, max(1, DEVICE_ITERATIONS // values["max_iter"]))
        for first in range(0, pixels, chunk):
            count = min(chunk, pixels - first)
            counts = device.empty(4 * count)
            numbers = [np.uint32(n) for n in (first, width, values["max_iter"])]
            arguments = [*numbers, *points, counts]
            device.launch(self.opencl, "escape_times", count, arguments, (f"-DREAL={name}",))
            result[first : first + count] = device.download(counts, count, "uint32")
        return result.reshape(len(ys), width)

    def combine(self, values: Mapping[str, Any], results: Sequence[Any]) -> Array:
        import numpy as np

        return np.concatenate(results)

    def compare(self, values: Mapping[str, Any], a: Any, b: Any) -> str | None:
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"one result is {a.dtype} {a.shape}, the other {b.dtype} {b.shape}"
        differing = int((a != b).sum())
        allowed = max(DIFFERING_ALWAYS_ALLOWED, int(DIFFERING_SHARE_MAX * a.size))
        if differing <= allowed:
            return None
        return f"{differing} of {a.size} pixels differ, of which {allowed} may"


def _rows(values: Mapping[str, Any]) -> int:
    rows: int = values["rows"] or values["height"] - values["first_row"]
    return rows


def _dtype(values: Mapping[str, Any]) -> str:
    return "uint16" if values["max_iter"] < 2**16 else "uint32"


def _points(values: Mapping[str, Any]) -> tuple[Array, Array]:
    """Return the real parts of the columns and the imaginary parts of the rows."""
    import numpy as np

    pixel = values["scale"] / values["width"]
    columns = np.arange(values["width"]) - (values["width"] - 1) / 2
    rows = np.arange(_rows(values)) + values["first_row"] - (values["height"] - 1) / 2
    return values["center_x"] + columns * pixel, values["center_y"] + rows * pixel


def _escape_times(cx: Array, cy: Array, max_iter: int) -> Array:
    """Iterate eight times, drop what has escaped, and so on.

    Within a block nothing is dropped: what has escaped goes on to grow, up to infinity or NaN,
    and the comparison that counts stays false.
    """
    import numpy as np

    counts = np.full(cx.size, max_iter, np.uint32)
    left, height = cx - 0.25, cy * cy
    distance = left * left + height
    inside = distance * (distance + left) <= 0.25 * height
    inside |= (cx + 1) * (cx + 1) + height <= 0.0625
    index: Array = np.nonzero(~inside)[0]
    cx, cy = keep(index, cx, cy)
    x: Array
    x, y, xx, yy = (np.zeros(index.size) for _ in range(4))
    count: Array = np.zeros(index.size, np.uint32)
    for done in range(0, max_iter, BLOCK):
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(min(BLOCK, max_iter - done)):
                count += xx + yy <= 4
                y *= x
                y += y
                y += cy
                np.subtract(xx, yy, out=x)
                x += cx
                np.multiply(x, x, out=xx)
                np.multiply(y, y, out=yy)
            escaped = ~(xx + yy <= 4)
        counts[index[escaped]] = count[escaped]
        stay = np.nonzero(~escaped)[0]
        if not stay.size:
            break
        index, cx, cy, count, x, y, xx, yy = keep(stay, index, cx, cy, count, x, y, xx, yy)
    return counts
