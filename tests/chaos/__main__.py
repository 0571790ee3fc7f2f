"""`make chaos`: the fault table with real daemons, told and written into docs/reliability.md."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from pathlib import Path

from tests.chaos import places
from tests.chaos.scene import Outcome, Row, play
from tests.chaos.table import in_words, order, write

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def main() -> int:
    """Read the command line; run outside, which starts the inside."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rows", default="", help="numbers with commas, such as 1,5,9; or all")
    parser.add_argument("--seed", type=int, default=None, help="the same seed, the same choices")
    parser.add_argument("--quick", action="store_true", help="short faults and a short lease")
    parser.add_argument("--keep", action="store_true", help="leave logs and histories in place")
    parser.add_argument("--no-write", action="store_true", help="leave docs/reliability.md alone")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(1_000_000)
    try:
        rows = _chosen(given.rows)
    except KeyError as error:
        parser.error(f"no row {error}; there are {', '.join(row.number for row in all_rows())}")
    if not given.inside:
        why = places.missing()
        if why:
            print(f"chaos is skipped: {why}")
            return 0
        words = ["--seed", str(given.seed), "--rows", ",".join(row.number for row in rows)]
        for flag in ("quick", "keep", "no_write"):
            words += [f"--{flag.replace('_', '-')}"] if getattr(given, flag) else []
        return places.inside(words)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return _run(rows, given)


def all_rows() -> tuple[Row, ...]:
    """Every row there is, in the order of the table."""
    from tests.chaos import (
        rows_clients,
        rows_clocks,
        rows_disks,
        rows_network,
        rows_nodes,
        rows_promises,
    )

    modules = (rows_nodes, rows_clients, rows_network, rows_clocks, rows_disks, rows_promises)
    rows = [row for module in modules for row in module.ROWS]
    return tuple(sorted(rows, key=lambda row: order(row.number)))


def _chosen(text: str) -> list[Row]:
    rows = {row.number: row for row in all_rows()}
    if text in ("", "all"):
        return list(rows.values())
    return [rows[word.strip()] for word in text.split(",") if word.strip()]


def _run(rows: list[Row], given: argparse.Namespace) -> int:
    print(f"seed {given.seed}{', quick' if given.quick else ''}; logs in {os.environ[places.BASE]}")
    outcomes: list[Outcome] = []
    try:
        for row in rows:
            print(f"row {row.number}: {row.fault} ...", flush=True)
            outcome = play(row, given.quick, given.seed, given.keep)
            outcomes.append(outcome)
            print(in_words(outcome), flush=True)
    except KeyboardInterrupt:
        print("interrupted: what has run is below")
    else:
        if not given.no_write:
            write(DOCUMENT, outcomes, given.quick)
    print()
    for outcome in outcomes:
        print(in_words(outcome))
    failed = [one.row.number for one in outcomes if not one.passed and not one.skipped]
    again = f"make chaos SEED={given.seed} ROWS="
    print(
        f"{len(outcomes)} rows, {len(failed)} failed"
        + (f"; again: {again}{','.join(failed)}" if failed else "")
    )
    return 1 if failed or len(outcomes) < len(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
