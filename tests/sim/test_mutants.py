"""The tester is tested: each broken rule is noticed, and what is harmless is not.

`mutants.txt` names a seed or a directed story for each; `make mutants` searches anew, and
`python -m tests.sim mutants --save` writes the file.
"""

from __future__ import annotations

import pytest

from tests.sim import mutants, scene, search
from tests.sim.mutants import COSTLY, HARMLESS, LIVENESS, SAFETY

SAVED = mutants.saved()
NOTICED = [one.name for kind in (SAFETY, LIVENESS) for one in mutants.group(kind)]
CALM = 12


def noticed(name: str, seed: int) -> str:
    """Which rule breaks under this mutant."""
    if seed < 0:
        return scene.notices(mutants.MUTANTS[name])
    return search.play(search.Case(seed, name)).rule


def healthy(name: str, seed: int) -> str:
    """Which rule breaks in the same history without it."""
    one = mutants.MUTANTS[name]
    if seed < 0:
        return scene.ending(one.story)[0]
    return search.run_seed(seed, one.focus).rule


def test_every_mutant_has_its_history() -> None:
    costly = [one.name for one in mutants.group(COSTLY)]
    assert sorted(SAVED) == sorted(NOTICED + costly)


def test_mutants_are_noticed_by_an_invariant_and_not_by_a_traceback() -> None:
    assert [name for name, one in SAVED.items() if one.rule == "crash"] == []


@pytest.mark.parametrize("name", NOTICED)
def test_a_broken_rule_is_noticed(name: str) -> None:
    seed, rule = SAVED[name]
    assert noticed(name, seed) == rule
    assert healthy(name, seed) == ""


@pytest.mark.parametrize("name", [one.name for one in mutants.group(HARMLESS)])
def test_safety_does_not_rest_on_what_is_harmless(name: str) -> None:
    results = [search.play(search.Case(seed, name)) for seed in range(CALM)]
    assert [search.line(one) for one in results if one.rule] == []


@pytest.mark.parametrize("name", [one.name for one in mutants.group(COSTLY)])
def test_what_is_costly_costs(name: str) -> None:
    healthy_cost, cost = scene.costs(mutants.MUTANTS[name])
    assert cost >= scene.COSTLY_RATIO * healthy_cost


@pytest.mark.parametrize("name", sorted(scene.STORIES))
def test_directed_histories_end_well(name: str) -> None:
    assert scene.ending(name)[0] == ""


def test_what_was_broken_is_whole_again() -> None:
    """Methods, static methods and inherited ones are all put back as they were."""
    for one in mutants.MUTANTS.values():
        places = {(place, what) for place, what, _ in one.build()}
        before = {key: vars(key[0]).get(key[1]) for key in places}
        with mutants.applied(one.name):
            pass
        assert {key: vars(key[0]).get(key[1]) for key in places} == before, one.name
