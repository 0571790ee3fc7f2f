"""Child process: how fast plain Python and NumPy are here, in a few hundredths of a second.

Run as `python -m blackroad.discovery.probe_speed`.  A process of its own, since a NumPy built
for newer processors may end it with an illegal instruction.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, Final

from blackroad.capabilities import printable
from blackroad.discovery.children import die_with_parent, private_stdout

_TURNS: Final = 200_000
_SIDE: Final = 384
_ROUNDS: Final = 3


def main() -> int:
    """Write one JSON line with what was measured and what went wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    die_with_parent(parser.parse_args().parent)
    out = private_stdout()
    # The first line stands even if NumPy ends this process.
    out.write(json.dumps({"speeds": {"python": _python_speed()}}) + "\n")
    out.flush()
    out.write(json.dumps(_numpy_speed()) + "\n")
    out.flush()
    return 0


def _python_speed() -> float:
    """Return million turns a second of a small integer loop, the best of three."""
    best_s = float("inf")
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        total = 0
        for turn in range(_TURNS):
            total = (total * 3 + turn) & 0xFFFF
        best_s = min(best_s, time.perf_counter() - started)
    return _TURNS / best_s / 1e6


def _numpy_speed() -> dict[str, Any]:
    """Return GFLOP/s of a 32-bit matrix product, or why there is none."""
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        return {"missing": str(error.name)}
    except (ImportError, RuntimeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return {"problem": printable(first, 200)}
    side = _SIDE
    a = np.linspace(0.0, 1.0, side * side, dtype=np.float32).reshape(side, side)
    best_s = float("inf")
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        a @ a
        best_s = min(best_s, time.perf_counter() - started)
    return {"speeds": {"numpy": 2 * side**3 / best_s / 1e9}}


if __name__ == "__main__":
    sys.exit(main())
