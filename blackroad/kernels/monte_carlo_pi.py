"""Pi by throwing points at a quarter circle, with the same points on every backend.

Point i comes from i and the seed alone, in integers: no state is carried from point to point, so
tiles and devices may take the points in any order and still count the same hits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from blackroad.kernels.contract import Kernel, even_parts, kernel
from blackroad.kernels.parameters import Parameter, Wrong

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from blackroad.kernels.backend import Buffer, Device

SAMPLES_MAX: Final = 2**50
WORD: Final = 2**64
STEP: Final = 0x9E3779B97F4A7C15
FIRST_FACTOR: Final = 0xBF58476D1CE4E5B9
SECOND_FACTOR: Final = 0x94D049BB133111EB
RADIUS_SQUARED: Final = 2**62
NUMPY_CHUNK: Final = 1 << 15
DEVICE_CHUNK: Final = 1 << 25
DEVICE_ITEMS: Final = 1 << 13


@kernel
class MonteCarloPi(Kernel):
    """Points with 31-bit coordinates in the unit square; a hit lies within the unit circle.

    Shapes     result {samples, hits, pi, stderr}.
    Precision  hits are exact.  pi = 4 hits / samples.  stderr is its standard error, from
               (hits + 1) / (samples + 2), so that a few samples never claim to be certain.
    Cost       about 3 ns a sample with NumPy on one core.
    Raises     KernelInputError when `first_sample` + `samples` is beyond 2**50.
    Source     SplitMix64: Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195.
    """

    name = "monte_carlo_pi"
    summary = "pi from random points, the same ones on every backend"
    tolerance = "none: every backend counts the same hits"
    parameters = (
        Parameter("samples", "int", minimum=1, maximum=SAMPLES_MAX, help="points to throw"),
        Parameter("seed", "int", 0, 0, WORD - 1, help="another seed gives other points"),
        Parameter("first_sample", "int", 0, 0, SAMPLES_MAX - 1, help="number of the first point"),
    )
    opencl = """
    __kernel void count_hits(const uint items, const ulong state, const uint samples,
                             __global uint *hits)
    {
        const uint item = get_global_id(0);
        if (item >= items) return;
        uint count = 0;
        for (uint sample = item; sample < samples; sample += items) {
            ulong z = state + STEP * sample;
            z = (z ^ (z >> 30)) * FIRST_FACTOR;
            z = (z ^ (z >> 27)) * SECOND_FACTOR;
            z ^= z >> 31;
            const ulong x = z >> 33, y = z & 0x7fffffffUL;
            count += x * x + y * y < (1UL << 62);
        }
        hits[item] = count;
    }
    """

    def check_together(self, values: Mapping[str, Any]) -> None:
        end = values["first_sample"] + values["samples"]
        if end > SAMPLES_MAX:
            raise Wrong(f"`first_sample` + `samples` is {end:_}, but must be at most 2**50")

    def estimate(self, values: Mapping[str, Any]) -> float:
        return float(values["samples"] * 0.003)

    def split(self, values: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
        return [
            {**values, "first_sample": values["first_sample"] + offset, "samples": length}
            for offset, length in even_parts(values["samples"], parts)
        ]

    def compute(self, values: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        count = min(values["samples"], NUMPY_CHUNK)
        steps = np.arange(count, dtype=np.uint64) * np.uint64(STEP)
        z, other = np.empty_like(steps), np.empty_like(steps)
        hits = 0
        for offset in range(0, values["samples"], NUMPY_CHUNK):
            size = min(NUMPY_CHUNK, values["samples"] - offset)
            state = np.uint64(_state(values["seed"], values["first_sample"] + offset))
            np.add(steps, state, out=z)
            for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
                np.right_shift(z, np.uint64(shift), out=other)
                z ^= other
                z *= np.uint64(factor)
            np.right_shift(z, np.uint64(31), out=other)
            z ^= other
            np.right_shift(z, np.uint64(33), out=other)
            z &= np.uint64(2**31 - 1)
            z *= z
            other *= other
            z += other
            hits += int(np.count_nonzero(z[:size] < np.uint64(RADIUS_SQUARED)))
        return _result(values["samples"], hits)

    def compute_on(self, values: Mapping[str, Any], device: Device) -> dict[str, Any]:
        import numpy as np

        constants = {"STEP": STEP, "FIRST_FACTOR": FIRST_FACTOR, "SECOND_FACTOR": SECOND_FACTOR}
        options = tuple(f"-D{name}={value}UL" for name, value in constants.items())
        hits = 0
        arguments: list[Buffer | np.generic]
        for offset in range(0, values["samples"], DEVICE_CHUNK):
            size = min(DEVICE_CHUNK, values["samples"] - offset)
            items = min(DEVICE_ITEMS, size)
            state = _state(values["seed"], values["first_sample"] + offset)
            counts = device.empty(4 * items)
            arguments = [np.uint64(state), np.uint32(size), counts]
            device.launch(self.opencl, "count_hits", items, arguments, options)
            hits += int(device.download(counts, items, "uint32").sum(dtype=np.uint64))
        return _result(values["samples"], hits)

    def combine(self, values: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        return _result(
            sum(result["samples"] for result in results), sum(result["hits"] for result in results)
        )

    def compare(self, values: Mapping[str, Any], a: Any, b: Any) -> str | None:
        for key in ("samples", "hits"):
            if a[key] != b[key]:
                return f"`{key}` is {a[key]} in one result and {b[key]} in the other"
        return None


def _state(seed: int, sample: int) -> int:
    """Return the generator's state at a sample; the seed is mixed first, so that streams part."""
    return (_mixed(seed + STEP) + STEP * (sample + 1)) % WORD


def _mixed(z: int) -> int:
    z %= WORD
    z = (z ^ (z >> 30)) * FIRST_FACTOR % WORD
    z = (z ^ (z >> 27)) * SECOND_FACTOR % WORD
    return z ^ (z >> 31)


def _result(samples: int, hits: int) -> dict[str, Any]:
    share = (hits + 1) / (samples + 2)
    return {
        "samples": samples,
        "hits": hits,
        "pi": 4 * hits / samples,
        "stderr": 4 * math.sqrt(share * (1 - share) / samples),
    }
