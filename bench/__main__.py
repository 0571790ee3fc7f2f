"""`python -m bench`: this project beside other task systems, on the machine it runs on.

    python -m bench                                 everything that is installed, with targets
    python -m bench --systems blackroad,zmq-raw --work noop,latency --quick
    python -m bench --list                          systems and workloads, and what is missing
    python -m bench --table FILE                    the tables of a former run
    python -m bench --growth                        cost against size, with plots for the docs
    python -m bench --write-docs                    put the last run into docs/performance.md
    python -m bench presence failover stream        parts that have no peer

Absolute figures belong to one machine; compare ratios, and only those of one run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import limits, peers, proc, table
from bench.parts import LONG_PARTS, PARTS
from bench.runner import Plan, Row, machine, run, skipped
from bench.systems import REGISTRY
from bench.works import WORKS

RESULTS = Path(__file__).absolute().parent / "results"
LAST = RESULTS / "last.json"
# What the machine can do is no workload of a system, but chosen like one.
LIMITS = "limits"
QUICK = {"repeats": 1, "sizes": (1_000, 10_000), "cap_s": 10.0, "quiet_s": 0.0, "again": 0}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(PARTS | LONG_PARTS)
    made.add_argument("part", nargs="*", metavar="PART", help=f"one of {names}")
    made.add_argument("--systems", default="all", metavar="A,B")
    made.add_argument("--work", default="all", metavar="A,B")
    made.add_argument("--repeat", type=int, default=3, metavar="N")
    made.add_argument("--quick", action="store_true", help="once, fewer tasks, no waiting")
    made.add_argument("--quiet", type=float, default=20.0, metavar="S", help="wait for idle cores")
    made.add_argument("--again", type=int, default=1, metavar="N", help="rerun disturbed cells")
    made.add_argument("--json", type=Path, metavar="FILE", help=f"default: {LAST.name}")
    made.add_argument("--list", action="store_true")
    made.add_argument("--table", type=Path, metavar="FILE")
    made.add_argument("--growth", action="store_true")
    made.add_argument("--write-docs", action="store_true")
    return made


def main() -> int:
    """Do what was asked for; 2 where that cannot be."""
    assert peers
    proc.end_in_order()
    command = parser()
    given = command.parse_args()
    unknown = sorted(set(given.part) - set(PARTS | LONG_PARTS))
    if unknown:
        command.error(f"there is no part {unknown[0]}; there are: {', '.join(PARTS | LONG_PARTS)}")
    if given.part:
        return _parts(given)
    if given.list:
        return _list()
    if given.table:
        print(table.whole(json.loads(given.table.read_text())))
        return 0
    if given.growth:
        from bench import growth

        return growth.main(quick=given.quick)
    if given.write_docs:
        from bench import docs

        return docs.write(LAST)
    return _compare(command, given)


def _compare(command: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    systems = _chosen(command, "system", given.systems, list(REGISTRY))
    works = _chosen(command, "workload", given.work, [*WORKS, LIMITS])
    plan = Plan(
        systems,
        tuple(one for one in works if one != LIMITS),
        repeats=given.repeat,
        quiet_s=given.quiet,
        again=given.again,
    )
    if given.quick:
        plan = plan._replace(**QUICK)
    report: dict[str, Any] = {"machine": machine(), "skipped": skipped(plan)}
    report["quick"] = given.quick
    out = given.json or LAST
    out.parent.mkdir(parents=True, exist_ok=True)

    def save(rows: list[Row]) -> None:
        out.write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")

    # First, so that a run which is broken off has them.
    stands = limits.run(plan.repeats) if LIMITS in works else []
    report["rows"] = stands + run(plan, lambda rows: save(stands + rows))
    report["whole"] = True
    save(report["rows"])
    print(table.whole(report))
    print(f"\nwritten to {out}")
    return 0


def _chosen(
    command: argparse.ArgumentParser, what: str, text: str, known: list[str]
) -> tuple[str, ...]:
    if text == "all":
        return tuple(known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in known]
    if wrong:
        command.error(f"there is no {what} {wrong[0]}; there are: {', '.join(known)}")
    return tuple(names)


def _list() -> int:
    for name, system in REGISTRY.items():
        print(f"{name:22} {system.missing() or 'ready'}")
    print()
    for name, work in WORKS.items():
        print(f"{name:22} {(work.__doc__ or '').partition('.')[0]}")
    print(f"{LIMITS:22} {(limits.__doc__ or '').partition('.')[0]}")
    return 0


def _parts(given: argparse.Namespace) -> int:
    results: dict[str, Any] = {}
    for part in given.part:
        results[part] = (PARTS | LONG_PARTS)[part](given.repeat)
        for name, value in results[part].items():
            print(f"{part:11} {name:22} {value}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
