"""Simulate clusters with faults.

`python -m tests.sim --seeds 1000` runs as many new histories, `--seed 42` plays one again, and
`python -m tests.sim mutants` breaks one rule after the other and looks for a history that notices.
"""

from __future__ import annotations

import argparse
import json
import random
import sys

from tests.sim import mutants, search, shrink
from tests.sim.swarm import Swarm

PROGRESS_S = 15.0


def main(words: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    words = sys.argv[1:] if words is None else words
    if words and words[0] == "mutants":
        return _mutants(words[1:])
    return _sim(words)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    return parser


# --- seeds --------------------------------------------------------------------------------------


def _sim(words: list[str]) -> int:
    parser = _parser("tests.sim")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--start", type=int, help="the first of them (default: a random one)")
    parser.add_argument("--seed", type=int, help="play this one again")
    parser.add_argument("--trace", action="store_true", help="print its whole history")
    parser.add_argument("--options", action="store_true", help="print what it drew")
    parser.add_argument("--mutant", choices=sorted(mutants.MUTANTS), help="break this rule")
    parser.add_argument("--drop", default="", help="faults, clients, submits, tasks to leave out")
    parser.add_argument("--salt", type=int, default=0, help="another network, the same choices")
    parser.add_argument("--stop", action="store_true", help="end at the first failing seed")
    parser.add_argument("--shrink", action="store_true", help="make a failing seed small")
    args = parser.parse_args(words)
    if args.seed is not None:
        return _replay(args)
    return _many(args)


def _case(args: argparse.Namespace, seed: int) -> search.Case:
    drop = tuple(word for word in args.drop.split(",") if word)
    return search.Case(seed, args.mutant or "", drop, args.salt)


def _replay(args: argparse.Namespace) -> int:
    case = _case(args, args.seed)
    if args.options:
        with mutants.applied(args.mutant):
            shown = Swarm(case.seed, search.focus(case.mutant), case.drop, case.salt)
            print("\n".join(shown.options()))
    result = search.play(case, listen=print if args.trace else None)
    print(search.line(result))
    if result.rule and args.shrink:
        _shrink(case)
    return 1 if result.rule else 0


def _shrink(case: search.Case) -> None:
    print("making it smaller ...", file=sys.stderr, flush=True)
    print("\n".join(shrink.told(shrink.smallest(case))))


def _many(args: argparse.Namespace) -> int:
    start = random.SystemRandom().randrange(10**9) if args.start is None else args.start
    print(f"seeds from {start}", flush=True)
    tally = search.Tally(PROGRESS_S, args.seeds)
    cases = [_case(args, seed) for seed in range(start, start + args.seeds)]
    for result in search.play_all(cases, args.jobs):
        tally.take(result)
        if result.rule:
            print(search.line(result), flush=True)
            print(f"replay: {_again(args, result.seed)}", flush=True)
            if args.stop:
                break
    for failed in tally.failed[:3]:
        if args.shrink:
            _shrink(_case(args, failed.seed))
    print(json.dumps(tally.summary()))
    return 1 if tally.failed else 0


def _again(args: argparse.Namespace, seed: int) -> str:
    """The command that plays one seed once more."""
    more = f"--mutant {args.mutant} " if args.mutant else ""
    more += f"--drop {args.drop} " if args.drop else ""
    more += f"--salt {args.salt} " if args.salt else ""
    return f'make sim SEED={seed} ARGS="{more}--trace"'


# --- mutants ------------------------------------------------------------------------------------


def _mutants(words: list[str]) -> int:
    parser = _parser("tests.sim mutants")
    parser.add_argument("--only", default="", help="names, divided by commas")
    parser.add_argument("--seeds", type=int, default=4_000, help="try at most so many for each")
    parser.add_argument("--calm", type=int, default=60, help="seeds that harmless ones must pass")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--save", action="store_true", help="write what was found to mutants.txt")
    args = parser.parse_args(words)
    names = [one for one in args.only.split(",") if one] or list(mutants.MUTANTS)
    unknown = [name for name in names if name not in mutants.MUTANTS]
    if unknown:
        parser.error(f"no such mutant: {', '.join(unknown)}")
    found = []
    print(search.HEAD, flush=True)
    for name in names:
        found.append(search.hunt(mutants.MUTANTS[name], args))
        print(found[-1].line(), flush=True)
    if args.save:
        caught = mutants.saved() if args.only and mutants.SAVED.exists() else {}
        caught.update({one.name: one.kept for one in found if one.kept is not None})
        mutants.save(caught)
    wrong = [one.name for one in found if not one.as_it_should]
    print(json.dumps({"mutants": len(found), "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
