"""Simulate clusters with faults: `python -m tests.sim --seeds 1000`; one again: `--seed 42`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.sim import mutants
from tests.sim.swarm import Result, Swarm, run_seed


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, help="play this one again")
    parser.add_argument("--trace", action="store_true", help="print its whole history")
    parser.add_argument("--mutant", choices=sorted(mutants.MUTANTS), help="break this rule")
    parser.add_argument("--stop", action="store_true", help="end at the first failing seed")
    args = parser.parse_args()
    if args.seed is not None:
        return _replay(args.seed, args.trace, args.mutant)
    return _search(args)


def _replay(seed: int, trace: bool, mutant: str | None) -> int:
    with mutants.applied(mutant):
        force = mutants.FOCUS.get(mutant or "", ())
        shown = Swarm(seed, force)
        print(f"seed {seed}: {len(shown.world.machines)} nodes, {sorted(shown.faults)}")
        result = run_seed(seed, force, listen=print if trace else None)
    print(_line(result))
    return 1 if result.rule else 0


def _line(result: Result) -> str:
    what = f"FAILED {result.rule}: {result.text}" if result.rule else "ok"
    return (
        f"seed {result.seed}: {what}; {result.tasks} tasks, {result.starts} starts, "
        f"{result.events} events, {result.true_ms / 1000:.0f} s, history {result.digest:08x}"
    )


def _play(mutant: str | None, seed: int) -> Result:
    with mutants.applied(mutant):
        return run_seed(seed, mutants.FOCUS.get(mutant or "", ()))


def _search(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    seeds = range(args.start, args.start + args.seeds)
    play = partial(_play, args.mutant)
    failed: list[Result] = []
    count = 0
    pool = ProcessPoolExecutor(args.jobs) if args.jobs > 1 else None
    results = pool.map(play, seeds, chunksize=8) if pool is not None else map(play, seeds)
    for result in results:
        count += 1
        if result.rule:
            failed.append(result)
            print(_line(result), flush=True)
            if args.stop:
                break
    if pool is not None:
        pool.shutdown(cancel_futures=True)
    seconds = time.perf_counter() - began
    for result in failed[:5]:
        mutant = f" --mutant {args.mutant}" if args.mutant else ""
        print(f"replay: python -m tests.sim --seed {result.seed} --trace{mutant}")
    summary = {
        "seeds": count,
        "failed": len(failed),
        "seconds": round(seconds, 1),
        "seeds_per_hour": round(count / seconds * 3600),
    }
    print(json.dumps(summary))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
