"""`make fuzz FRAMES=n`: a hostile member says so many frames; the last line is JSON."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

from tests.fuzz.hostile import FRAMES_PER_BEAT, World


def main() -> int:
    """Run, and tell what was disturbed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}")
    world = World(chosen.seed)
    began = time.monotonic()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem = ""
    while world.said < chosen.frames and not problem:
        world.turn()
        problem = world.undisturbed()
        if world.said % (200 * FRAMES_PER_BEAT) == 0:
            print(f"{world.said} frames, {world.decoded} messages among them")
    problem = problem or world.finish()
    took_s = time.monotonic() - began
    facts = {
        "frames": world.said,
        "refused": world.refused,
        "messages": world.decoded,
        "seconds": round(took_s, 1),
        "frames_per_second": round(world.said / took_s),
        "rss_grown_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib,
        "problem": problem,
        "seed": chosen.seed,
    }
    print(json.dumps(facts))
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
