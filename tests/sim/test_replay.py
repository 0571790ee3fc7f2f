"""The same seed is the same history: twice in one process, and under two hash seeds."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.sim.swarm import run_seed
from tests.tidy.source import ROOT

SEEDS = (7, 11, 2024)
PLAY = f"from tests.sim.swarm import run_seed;print([run_seed(seed).digest for seed in {SEEDS}])"


def played(hash_seed: str) -> str:
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", PLAY]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_same_seed_twice() -> None:
    first, second = ([run_seed(seed).digest for seed in SEEDS] for _ in range(2))
    assert first == second


def test_other_seeds_are_other_histories() -> None:
    assert len({run_seed(seed).digest for seed in SEEDS}) == len(SEEDS)


def test_the_order_of_hashes_decides_nothing() -> None:
    assert played("0") == played("4242")
