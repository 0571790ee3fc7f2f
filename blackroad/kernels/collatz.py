"""Collatz trajectories of a range of numbers, summed up.

No trajectory is walked step by step.  Ten shortcut steps depend only on the low ten bits, so
they are one jump by a table; and a number that has fallen below 2**16 is finished by a table.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache, reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.kernels.contract import Kernel, keep, kernel
from blackroad.kernels.parameters import Parameter, Wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from blackroad.kernels.backend import Device

    Array = npt.NDArray[Any]

WORD_MAX: Final = 2**64 - 1
JUMP_BITS: Final = 10
LOW_BITS: Final = 16
LOW: Final = 1 << LOW_BITS
NUMPY_CHUNK: Final = 1 << 14
DEVICE_CHUNK: Final = 1 << 19
OVERFLOWS_LISTED: Final = 16
RECORDS_MAX: Final = 4096
EXACT_WORK: Final = 8.0


@kernel
class Collatz(Kernel):
    """Steps and peaks of start, start + 1, …: halve if even, else 3n + 1, until 1.

    Shapes     result {numbers, total_steps, most_steps {number, steps}, highest_peak {number,
               peak}, records [{number, steps}], records_truncated, overflow {count, numbers,
               truncated}}.  A record is a number with more steps than all before it in the range.
               Of equals the smallest number counts.
    Units      a step is one halving or one 3n + 1; 1 has none.  A peak includes the start.
    Precision  exact.  A trajectory that leaves 64 bits is finished in Python's integers and named
               in `overflow`; its peak, if highest, is decimal text.
    Cost       about 70 ns a number below 10**6, 1 µs at 10**18, with NumPy on one core.
    Raises     KernelInputError when the last number would not fit 64 bits.
    Source     Collatz 1937; jump tables as in Oliveira e Silva 1999, doi:10.1090/S0025-5718-99-
               01031-5.
    """

    name = "collatz"
    summary = "steps and peaks of the Collatz trajectories of a range of numbers"
    tolerance = "none: every backend gives the same integers"
    parameters = (
        Parameter("start", "int", minimum=1, maximum=WORD_MAX, help="first number"),
        Parameter("count", "int", minimum=1, maximum=2**40, unit="numbers", help="how many"),
        Parameter("max_records", "int", 256, 1, RECORDS_MAX, help="step records listed at most"),
    )
    opencl = """
    __kernel void collatz(const uint items, const ulong first, __global const ulong *jumps,
                          __global const uint *low_steps, __global const ulong *low_peaks,
                          __global uint *steps, __global ulong *peaks)
    {
        const uint item = get_global_id(0);
        if (item >= items) return;
        ulong number = first + item, peak = number;
        uint count = 0;
        while (number >= LOW) {
            const ulong high = number >> JUMP_BITS;
            __global const ulong *jump = jumps + 6 * (number & ((1 << JUMP_BITS) - 1));
            if (high > jump[5]) {                      /* leaves 64 bits: the host finishes it */
                steps[item] = 0;
                peaks[item] = 0;
                return;
            }
            number = jump[0] * high + jump[1];
            peak = max(peak, jump[2] * high + jump[3]);
            count += (uint) jump[4];
        }
        steps[item] = count + low_steps[number];
        peaks[item] = max(peak, low_peaks[number]);
    }
    """

    def check_together(self, values: Mapping[str, Any]) -> None:
        last = values["start"] + values["count"] - 1
        if last > WORD_MAX:
            raise Wrong(
                f"`start` + `count` - 1 is {last:_}, but must be at most 2**64 - 1",
                f"use a `count` of at most {WORD_MAX - values['start'] + 1:_}",
            )

    def estimate(self, values: Mapping[str, Any]) -> float:
        return _work(values["start"], values["count"])

    def split(self, values: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
        # A tile lists all its records: which of them count is known only beside the others.
        whole = {**values, "max_records": RECORDS_MAX}
        start, count = values["start"], values["count"]
        share = _work(start, count) / parts
        # Larger numbers take longer: cut where the work so far reaches the next share.
        cuts = {
            bisect_left(range(count), share * part, key=lambda length: _work(start, length))
            for part in range(1, parts)
        }
        edges = sorted({0, *cuts, count})
        return [
            {**whole, "start": start + first, "count": last - first}
            for first, last in pairwise(edges)
        ]

    def compute(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return _in_chunks(values, NUMPY_CHUNK, _walk)

    def compute_on(self, values: Mapping[str, Any], device: Device) -> dict[str, Any]:
        import numpy as np

        tables = _tables()
        constant = [device.upload(a) for a in (tables.jumps, tables.low_steps, tables.low_peaks)]
        options = (f"-DJUMP_BITS={JUMP_BITS}", f"-DLOW={LOW}")

        def walk(first: int, count: int) -> tuple[Array, Array]:
            outputs = [device.empty(4 * count), device.empty(8 * count)]
            arguments = [np.uint64(first), *constant, *outputs]
            device.launch(self.opencl, "collatz", count, arguments, options)
            steps = device.download(outputs[0], count, "uint32")
            return steps, device.download(outputs[1], count, "uint64")

        return _in_chunks(values, DEVICE_CHUNK, walk)

    def combine(self, values: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        return _cut(reduce(_joined, results), values["max_records"])

    def compare(self, values: Mapping[str, Any], a: Any, b: Any) -> str | None:
        for key in sorted(a.keys() | b.keys()):
            if a[key] != b[key]:
                return f"`{key}` is {a[key]} in one result and {b[key]} in the other"
        return None


def _work(start: int, count: int) -> float:
    bits = math.log2(start + count / 2)
    each = 0.03 + 0.012 * max(0.0, bits - LOW_BITS)
    # Close to 2**64 nearly every trajectory overflows and is finished in Python.
    share_exact = min(1.0, math.exp2(bits - 63))
    return count * (each + EXACT_WORK * share_exact)


class _Tables(NamedTuple):
    """What ten shortcut steps do, by the low ten bits; and all of it, below LOW.

    With n = high * 2**10 + low, ten steps give scale * high + offset, and their peak is
    peak_scale * high + peak_offset; neither leaves 64 bits while high <= high_max.
    """

    scale: Array
    offset: Array
    peak_scale: Array
    peak_offset: Array
    steps: Array
    high_max: Array
    low_steps: Array
    low_peaks: Array
    jumps: Array
    rows: list[list[int]]


@cache
def _tables() -> _Tables:
    """Build the tables; once in a process, about 80 ms."""
    import numpy as np

    rows = [_jump(low) for low in range(1 << JUMP_BITS)]
    jumps = np.array(rows, np.uint64)
    scale, offset, peak_scale, peak_offset, steps, high_max = np.ascontiguousarray(jumps.T)
    low_steps, low_peaks = _low_tables()
    return _Tables(
        scale,
        offset,
        peak_scale,
        peak_offset,
        steps.astype(np.uint32),
        high_max,
        np.array(low_steps, np.uint32),
        np.array(low_peaks, np.uint64),
        jumps,
        rows,
    )


def _jump(low: int) -> list[int]:
    """Follow `scale * high + offset` for ten shortcut steps, `high` staying unknown."""
    scale, offset, steps = 1 << JUMP_BITS, low, JUMP_BITS
    peak = (scale, offset)
    for _ in range(JUMP_BITS):
        if offset & 1:
            scale, offset, steps = 3 * scale, 3 * offset + 1, steps + 1
            # For high >= 2**6, which holds from LOW on, the larger scale decides.
            peak = max(peak, (scale, offset))
        scale, offset = scale >> 1, offset >> 1
    high_max = min((WORD_MAX - offset) // scale, (WORD_MAX - peak[1]) // peak[0])
    return [scale, offset, *peak, steps, high_max]


def _low_tables() -> tuple[list[int], list[int]]:
    """Return steps and peaks of all numbers below LOW, each from a smaller one."""
    steps, peaks = [0] * LOW, [0] * LOW
    peaks[1] = 1
    for start in range(2, LOW):
        number, count, peak = start, 0, start
        while number >= start:
            if number & 1:
                number = 3 * number + 1
                count += 1
                peak = max(peak, number)
            number >>= 1
            count += 1
        steps[start] = count + steps[number]
        peaks[start] = max(peak, peaks[number])
    return steps, peaks


def _walk(first: int, count: int) -> tuple[Array, Array]:
    """Return steps and peaks of a range; a peak of 0 means that 64 bits were left."""
    import numpy as np

    t = _tables()
    steps, peaks = np.zeros(count, np.uint32), np.zeros(count, np.uint64)
    number: Array = np.arange(count, dtype=np.uint64) + np.uint64(first)
    index: Array = np.arange(count)
    walked: Array = steps.copy()
    peak: Array = number.copy()
    while True:
        falling = number < LOW
        if falling.any():
            done, rest = np.nonzero(falling)[0], np.nonzero(~falling)[0]
            end, home = number.take(done).astype(np.intp), index.take(done)
            steps[home] = walked.take(done) + t.low_steps.take(end)
            peaks[home] = np.maximum(peak.take(done), t.low_peaks.take(end))
            number, index, walked, peak = keep(rest, number, index, walked, peak)
        if not number.size:
            return steps, peaks
        low: Array = (number & ((1 << JUMP_BITS) - 1)).astype(np.intp)
        high: Array = number >> JUMP_BITS
        if int(number.max()) >> 56 and (leaving := high > t.high_max.take(low)).any():
            rest = np.nonzero(~leaving)[0]
            index, walked, peak, low, high = keep(rest, index, walked, peak, low, high)
        number = t.scale.take(low) * high
        number += t.offset.take(low)
        top = t.peak_scale.take(low) * high
        top += t.peak_offset.take(low)
        np.maximum(peak, top, out=peak)
        walked += t.steps.take(low)


def _walk_exactly(number: int) -> tuple[int, int]:
    """Return steps and peak of one number of any size, in Python's integers."""
    t = _tables()
    count, peak = 0, number
    while number >= LOW:
        row = t.rows[number & ((1 << JUMP_BITS) - 1)]
        high = number >> JUMP_BITS
        number = row[0] * high + row[1]
        peak = max(peak, row[2] * high + row[3])
        count += row[4]
    return count + int(t.low_steps[number]), max(peak, int(t.low_peaks[number]))


def _in_chunks(
    values: Mapping[str, Any], chunk: int, walk: Callable[[int, int], tuple[Array, Array]]
) -> dict[str, Any]:
    start, count = values["start"], values["count"]
    total: dict[str, Any] = {}
    for offset in range(0, count, chunk):
        first = start + offset
        part = _summed(first, *walk(first, min(chunk, count - offset)))
        total = _joined(total, part) if total else part
    return _cut(total, values["max_records"])


def _summed(first: int, steps: Array, peaks: Array) -> dict[str, Any]:
    """Sum up one chunk, finishing exactly what left 64 bits."""
    import numpy as np

    overflows = [first + int(i) for i in np.nonzero(peaks == 0)[0]]
    top = int(peaks.argmax())
    highest = (int(peaks[top]), first + top)
    for number in overflows:
        steps[number - first], peak = _walk_exactly(number)
        if peak > highest[0]:
            highest = (peak, number)
    running = np.maximum.accumulate(steps)
    places = np.concatenate([[0], np.nonzero(running[1:] > running[:-1])[0] + 1])
    records = [{"number": first + int(i), "steps": int(steps[i])} for i in places]
    return {
        "numbers": len(steps),
        "total_steps": int(steps.sum(dtype=np.uint64)),
        "most_steps": records[-1],
        "highest_peak": {"number": highest[1], "peak": _portable(highest[0])},
        "records": records,
        "records_truncated": False,
        "overflow": _listed(len(overflows), overflows),
    }


def _joined(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Join the summaries of two neighbouring ranges, `a` the lower one; it wins when equal."""
    above = [row for row in b["records"] if row["steps"] > a["most_steps"]["steps"]]
    named = a["overflow"]["numbers"] + b["overflow"]["numbers"]
    return {
        "numbers": a["numbers"] + b["numbers"],
        "total_steps": a["total_steps"] + b["total_steps"],
        "most_steps": max(a["most_steps"], b["most_steps"], key=lambda row: int(row["steps"])),
        "highest_peak": max(a["highest_peak"], b["highest_peak"], key=lambda row: int(row["peak"])),
        "records": a["records"] + above,
        "records_truncated": a["records_truncated"] or b["records_truncated"],
        "overflow": _listed(a["overflow"]["count"] + b["overflow"]["count"], named),
    }


def _cut(summary: dict[str, Any], most: int) -> dict[str, Any]:
    records = summary["records"]
    truncated = summary["records_truncated"] or len(records) > most
    return {**summary, "records": records[:most], "records_truncated": truncated}


def _listed(count: int, numbers: list[int]) -> dict[str, Any]:
    shown = numbers[:OVERFLOWS_LISTED]
    return {"count": count, "numbers": shown, "truncated": count > len(shown)}


def _portable(number: int) -> int | str:
    """Return an integer that fits a message, or its decimal text."""
    return number if number <= WORD_MAX else str(number)
