"""One system, one workload, one repeat: a process of its own, `python -m bench.cell`.

Figures go to a file line by line, so that those told before an accident are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from bench import jobs, peers, proc, works
from bench.systems import REGISTRY, System, processes_of

ROUNDS = 50


def main() -> None:
    """Start the system, run the workload, end everything that was started."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("work")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--began", type=float, required=True)
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--cap", type=float, required=True)
    given = parser.parse_args()
    assert peers
    proc.adopt_orphans()
    proc.end_in_order()
    sizes = tuple(int(word) for word in given.sizes.split(","))
    effort = works.Effort(sizes=sizes, cap_s=given.cap)
    with given.out.open("a", buffering=1) as file:

        def tell(metric: str, value: Any, unit: str, work: str = given.work) -> None:
            row = {"work": work, "metric": metric, "value": value, "unit": unit}
            file.write(json.dumps(row) + "\n")

        system = REGISTRY[given.system]()
        try:
            system.start(effort.workers)
            system.value(system.submit(jobs.noop, 0))
            if not system.only:
                tell("first result", time.monotonic() - given.began, "s", "start")
            if given.work != "start":
                _warm(system, effort)
                proc.settle(lambda: processes_of(system))
                works.WORKS[given.work](system, tell, effort)
        except Exception as error:
            traceback.print_exc()
            text = str(error).strip().partition("\n")[0]
            tell("failed", f"{type(error).__name__}: {text[:160]}", "")
        except SystemExit:
            # Whoever ended this waits for no more than what was started to be gone.
            tell("failed", "ended from outside", "")
    with contextlib.suppress(Exception):
        system.stop()
    proc.end_all_below(os.getpid())
    # What a library left behind, such as a thread that waits for ever, must not hold this up.
    sys.stderr.flush()
    os._exit(0)


def _warm(system: System, effort: works.Effort) -> None:
    """Go on until every worker has worked."""
    seen: set[int] = set()
    for _ in range(ROUNDS if "bulk" not in system.only or "pair" in system.only else 0):
        handles = [system.submit(jobs.whoami, number) for number in range(3 * effort.workers)]
        seen.update(system.values(handles))
        if len(seen) >= effort.workers:
            return


if __name__ == "__main__":
    main()
