"""The tester is tested: each broken rule is noticed, and what is harmless is not.

The seeds were found by counting from 0 (`python -m tests.sim --mutant NAME --stop`).
"""

from __future__ import annotations

import pytest

from tests.sim import mutants
from tests.sim.swarm import run_seed

CAUGHT = {
    "bound_shorter": (10, "I3"),
    "lease_from_receipt": (35, "I3"),
    "no_self_kill": (220, "I3"),
    "no_supervisor": (230, "I3"),
    "token_not_remembered": (42, "I5"),
    "no_floor": (19, "I3"),
    "recall_without_tombstone": (19, "I3"),
    "any_done_accepted": (625, "I3"),
    "accepted_before_flush": (0, "I1"),
    "ended_before_flush": (0, "I2"),
    "grant_before_flush": (0, "I3"),
    "absence_is_proof": (26, "I3"),
    "silence_is_proof": (2, "I3"),
    "incarnation_not_checked": (127, "I3"),
    "future_stamps": (41, "I3"),
    "bound_not_moved": (2, "L2"),
    "leftovers_alive": (9, "I4"),
    "journal_issued_again": (39, "I3"),
    "ledger_ignored": (0, "I4"),
    "gang_before_all_held": (0, "I11"),
    "gang_before_last_proof": (34, "I3"),
    "cancel_before_proof": (10, "I3"),
    "sessions_ignored": (67, "I12"),
}


def test_every_mutant_has_its_seed() -> None:
    assert sorted(CAUGHT) == sorted(mutants.SAFETY)


@pytest.mark.parametrize("name", sorted(CAUGHT))
def test_a_broken_rule_is_noticed(name: str) -> None:
    seed, rule = CAUGHT[name]
    force = mutants.FOCUS.get(name, ())
    with mutants.applied(name):
        assert run_seed(seed, force).rule == rule
    assert run_seed(seed, force).rule == ""


@pytest.mark.parametrize("name", sorted(mutants.HARMLESS))
def test_safety_does_not_rest_on_what_is_harmless(name: str) -> None:
    with mutants.applied(name):
        assert [run_seed(seed).rule for seed in range(12)] == [""] * 12
