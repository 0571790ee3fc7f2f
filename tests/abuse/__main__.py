"""`make abuse ROWS=35,38`: the table of docs/security.md, measured anew."""

from __future__ import annotations

import argparse
import sys
import traceback

from tests.abuse import bombs as bombs
from tests.abuse import revoking as revoking
from tests.abuse.rows import ROWS


def main() -> int:
    """Run the rows that were asked for; print their lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="numbers, with commas between")
    chosen = [one for one in parser.parse_args().rows.split(",") if one] or list(ROWS)
    failed = 0
    for number in chosen:
        title, run = ROWS[number]
        try:
            told = run()
        except Exception:
            failed += 1
            traceback.print_exc()
            told = "FAILED"
        print(f"| {number} | {title} | {told} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
