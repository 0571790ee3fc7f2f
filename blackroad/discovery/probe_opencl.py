"""Child process: one OpenCL driver, each of its devices tried with a kernel of known result.

Run as `python -m blackroad.discovery.probe_opencl`, with OCL_ICD_VENDORS naming one driver.  It
may hang or crash: the parent reads what was written until then.  The only file of `discovery`
that imports pyopencl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import IO, Any, Final

from blackroad.capabilities import printable
from blackroad.discovery.children import die_with_parent, private_stdout

NO_PYOPENCL: Final = "no pyopencl"
NO_PLATFORM: Final = "no platform"

_ITEMS: Final = 4096
_FLOP_PER_TURN: Final = 8
_SPEED_MS: Final = 15.0
_SPEED_ROUNDS: Final = 6
_TURNS_MAX: Final = 1 << 16

# Every number is exact in 32-bit floats, so that a right device gives the same bits as NumPy.
_SOURCE: Final = """
__kernel void check(__global const int *x, __global int *whole, __global float *real)
{
    const size_t i = get_global_id(0);
    whole[i] = x[i] * 3 + (int) i;
    real[i] = (float) x[i] * 0.5f + 1.25f;
}
__kernel void speed(__global float *out, const int turns)
{
    const size_t i = get_global_id(0);
    float a = (float) i, b = a + 1.0f, c = a + 2.0f, d = a + 3.0f;
    for (int turn = 0; turn < turns; turn++) {
        a = a * 0.5f + 1.0f; b = b * 0.5f + 1.0f; c = c * 0.5f + 1.0f; d = d * 0.5f + 1.0f;
    }
    out[i] = a + b + c + d;
}
"""


def main() -> int:
    """Write one JSON line per device seen, then one per device tried."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--skip", type=int, default=0)
    options = parser.parse_args()
    die_with_parent(options.parent)
    out = private_stdout()
    # A stored program would hide a compiler that no longer works.
    os.environ["PYOPENCL_NO_CACHE"] = "1"
    try:
        import pyopencl as cl
    except ImportError as error:
        _say(out, {"failed": NO_PYOPENCL, "text": printable(str(error), 200)})
        return 0
    try:
        platforms = cl.get_platforms()
    except cl.Error as error:
        _say(out, {"failed": NO_PLATFORM, "text": printable(str(error), 200)})
        return 0
    devices = []
    for platform in platforms:
        for index, device in enumerate(_devices(cl, platform)):
            devices.append(device)
            _say(out, {"seen": _facts(cl, platform, device, index)})
    for number, device in enumerate(devices):
        if number >= options.skip:
            _say(out, {"trying": number})
            _say(out, {"tried": number, **_try(cl, device)})
    return 0


def _say(out: IO[str], message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def _devices(cl: Any, platform: Any) -> list[Any]:
    """Return a platform's devices; a platform without any answers with an error."""
    try:
        return list(platform.get_devices())
    except cl.Error:
        return []


def _facts(cl: Any, platform: Any, device: Any, index: int) -> dict[str, Any]:
    kinds = cl.device_type
    kind = "accelerator"
    # A device may carry several type bits at once.
    if device.type & kinds.CPU:
        kind = "cpu"
    elif device.type & kinds.GPU:
        kind = "gpu"
    return {
        "kind": kind,
        "name": printable(_text(cl, device, "name")),
        "memory_bytes": int(device.global_mem_size),
        "compute_units": int(device.max_compute_units),
        "fp64": "cl_khr_fp64" in _text(cl, device, "extensions").split(),
        "platform": printable(_text(cl, platform, "name")),
        "vendor": printable(_text(cl, device, "vendor")),
        "vendor_id": int(device.vendor_id),
        "driver": printable(_text(cl, device, "driver_version")),
        "index": index,
    }


def _text(cl: Any, thing: Any, name: str) -> str:
    try:
        return str(getattr(thing, name))
    except (cl.Error, UnicodeDecodeError):
        return ""


def _try(cl: Any, device: Any) -> dict[str, Any]:
    """Build, compute, compare, then measure; what goes wrong is the device's problem."""
    try:
        context = cl.Context([device])
        queue = cl.CommandQueue(context)
        program = cl.Program(context, _SOURCE).build()
        problem = _check(cl, context, queue, program)
        speed = 0.0 if problem else _speed(cl, context, queue, program)
    except (cl.Error, RuntimeError, MemoryError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return {"problem": printable(first, 200), "gflops": 0.0}
    return {"problem": problem, "gflops": speed}


def _check(cl: Any, context: Any, queue: Any, program: Any) -> str:
    import numpy as np

    x = (np.arange(_ITEMS, dtype=np.int32) * 7919) % 65_521
    flags = cl.mem_flags
    given = cl.Buffer(context, flags.READ_ONLY | flags.COPY_HOST_PTR, hostbuf=x)
    whole, real = np.full(_ITEMS, -1, np.int32), np.full(_ITEMS, -1, np.float32)
    whole_out = cl.Buffer(context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=whole)
    real_out = cl.Buffer(context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=real)
    program.check(queue, (_ITEMS,), None, given, whole_out, real_out)
    cl.enqueue_copy(queue, whole, whole_out)
    cl.enqueue_copy(queue, real, real_out)
    queue.finish()
    wrong = int((whole != x * 3 + np.arange(_ITEMS, dtype=np.int32)).sum())
    wrong += int((real != x.astype(np.float32) * np.float32(0.5) + np.float32(1.25)).sum())
    return f"computes wrong numbers ({wrong} of {2 * _ITEMS})" if wrong else ""


def _speed(cl: Any, context: Any, queue: Any, program: Any) -> float:
    """Return GFLOP/s of 32-bit multiply-adds, from a run long enough to be measured."""
    import numpy as np

    items = 1 << 16
    out = cl.Buffer(context, cl.mem_flags.WRITE_ONLY, items * 4)
    kernel = cl.Kernel(program, "speed")

    def run_ms(turns: int) -> float:
        kernel.set_args(out, np.int32(turns))
        started = time.perf_counter()
        cl.enqueue_nd_range_kernel(queue, kernel, (items,), None)
        queue.finish()
        return (time.perf_counter() - started) * 1000

    # Some drivers compile once more at the first launch.
    run_ms(1)
    turns, best = 16, 0.0
    for _ in range(_SPEED_ROUNDS):
        took_ms = run_ms(turns)
        best = max(best, items * turns * _FLOP_PER_TURN / max(took_ms, 1e-3) / 1e6)
        if took_ms >= _SPEED_MS or turns >= _TURNS_MAX:
            break
        turns = min(_TURNS_MAX, turns * max(2, min(16, int(_SPEED_MS / max(took_ms, 0.1)) + 1)))
    return best


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # A driver's own end-of-process code is not worth a crash after the answer.
    os._exit(status)
