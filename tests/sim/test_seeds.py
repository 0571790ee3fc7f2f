"""Fresh seeds each time, and all that ever failed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.sim import search
from tests.sim.swarm import run_seed

FRESH = int(os.environ.get("BLACKROAD_SIM_SEEDS") or 2_000)
PARTS = 40
BASE = int(os.environ.get("BLACKROAD_SIM_BASE") or random.SystemRandom().randrange(10**9))
CORPUS = Path(__file__).parent / "corpus.txt"


def corpus() -> list[int]:
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("part", range(PARTS))
def test_fresh_seeds(part: int) -> None:
    """Every promise holds in histories that nobody has seen before."""
    start, end = BASE + part * FRESH // PARTS, BASE + (part + 1) * FRESH // PARTS
    print(f"seeds from {start}: make sim SEEDS={end - start} ARGS='--start {start}'")
    results = search.play_some([search.Case(seed) for seed in range(start, end)])
    broken = [
        f"{one.rule}: {one.text}; replay: make sim SEED={one.seed} ARGS='--shrink'"
        for one in results
        if one.rule
    ]
    assert broken == []


@pytest.mark.parametrize("seed", corpus())
def test_seeds_that_once_failed(seed: int) -> None:
    result = run_seed(seed)
    assert (result.rule, result.text) == ("", "")
