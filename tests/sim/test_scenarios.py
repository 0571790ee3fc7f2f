"""Each scenario in plain text leads to the history that is written below its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sim import mutants
from tests.sim.story import FOLDER, Failed, told

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
STORIES = sorted(FOLDER.glob("*.txt"))
# What slips through random search is told on purpose: the mutant, and what goes wrong with it.
# Other stories are here as well, for they must fail where the rule that they are about is broken.
DIRECTED = {
    "node-not-avoided": ("node_not_avoided", "1 Grant t1 to loft"),
    "reservation-without-end": ("reservation_without_end", "t* done"),
    "dead-tokens-confirmed": ("dead_tokens_confirmed", "t1 runs nowhere"),
    "absence-is-no-proof": ("absence_is_proof", "starts t* 1"),
    "grant-held-by-the-network": ("lease_from_receipt", "1 dies t1"),
    "late-answer": ("any_done_accepted", "I3"),
    "leftovers-die-first": ("leftovers_alive", "I3"),
    "lost-worker": ("silence_is_proof", "no Grant"),
    "s01-late-grant-after-restart": ("incarnation_of_grant_not_checked", "I5"),
    "s02-grant-after-its-recall": ("recall_without_tombstone", "I3"),
    "s03-refused-lost": ("refused_without_tombstone", "1 Refused draining from shed"),
    "s04-renewed-of-an-earlier-boot": ("any_renewed_extends", "1 dies t1"),
    "s05-attempt-adopted": ("journal_issued_again", "1 Renewed all to shed"),
    "s09-daemon-stopped-beside-its-task": ("no_supervisor", "1 dies t1"),
    "s11-clocks-apart": ("bound_not_moved_by_renewed", "I3"),
    "s13-deaf-node-claims": ("one_way_claimants_accepted", "coordinator attic at attic shed"),
    "s14-deaf-coordinator": ("no_distrust", "coordinator shed at shed loft"),
    "s14-deaf-coordinator-restates": ("any_table_answers", "coordinator loft at shed loft"),
    "s19-cancel-in-each-state": ("cancel_before_proof", "I3"),
    "s21-poison-at-home": ("go_not_journaled", "I10"),
    "s22-innocents-beside-poison": ("no_isolation", "I10"),
    "s23-owner-restarts-before-go": ("held_for_ever", "1 Recall stop"),
    "s23-worker-restarts-before-go": ("crash_before_go_blamed", "2+ Grant t1 hold to shed"),
    "s24-gang-members-fail": ("gang_before_all_held", "I11"),
    "s25-two-gangs-overlap": ("token_without_owner", "t* done"),
    "s27-table-shrinks": ("recall_becomes_stop", "no dies"),
    "s28-sleeper-wakes": ("sleeper_judges_first", "L3"),
    "session-ends": ("sessions_ignored", "1 Recall stop to shed"),
}
NODES = "nodes attic, shed ssd\nsettle\n"


def part(title: str) -> str:
    """One section of the page."""
    return PAGE.split(f" {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(path: Path) -> None:
    """Rewrite them with `python -m tests.sim.story --rewrite`, and read the difference."""
    text = path.read_text(encoding="utf-8")
    assert told(text).splitlines() == text.splitlines()


def test_every_scenario_of_the_page_is_told() -> None:
    numbers = re.findall(r"^\| S(\d+) \|", part("Scenarios"), re.MULTILINE)
    assert len(numbers) >= 31
    told_of = {path.stem[:3] for path in STORIES}
    assert [one for one in numbers if f"s{int(one):02}" not in told_of] == []


def test_every_story_of_the_page_is_told() -> None:
    titles = re.findall(r"^\*\*([A-Z][a-z ]+)\*\*", part("Five stories"), re.MULTILINE)
    assert len(titles) == 5
    names = {path.stem for path in STORIES}
    assert [one for one in titles if one.lower().replace(" ", "-") not in names] == []


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_a_story_expects_something(path: Path) -> None:
    """A history that only changed is read by a person; what must hold stands in words."""
    text = path.read_text(encoding="utf-8")
    assert "expect " in text
    assert text.startswith("#")


@pytest.mark.parametrize("name", sorted(DIRECTED))
def test_a_story_fails_where_its_rule_is_broken(name: str) -> None:
    """It passes without the mutant: that is `test_story`."""
    mutant, broken = DIRECTED[name]
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    ends = (f"Broken: {broken}: ", f"Unmet: `expect {broken}`: but ")
    with mutants.applied(mutant), pytest.raises(Failed) as caught:
        told(text)
    assert str(caught.value).startswith(ends)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("sbumit t1", "no command 'sbumit'"),
        ("submit t1 pined", "no option 'pined'"),
        ("submit t1 fate=explode", "no fate 'explode'"),
        ("submit t1; submit t1", "a task 't1' already"),
        ("submit t1 run=fast", "'fast' is no number"),
        ("cancel t9", "no task 't9'"),
        ("crash barn", "no node 'barn'"),
        ("crash", "missing 1 required"),
        ("crash attic now", "takes 2 positional arguments"),
        ("advance 5", "'5' is no time"),
        ("advance 5h", "'5h' is no time"),
        ("hold Grnat attic shed", "no 'Grnat' between"),
        ("hold Grant attic attic", "no 'Grant' between"),
        ("cut attic", "names no link"),
        ("cut attic attic", "names no link"),
        ("heal attic shed", "not cut"),
        ("release Grnat", "no kind 'Grnat'"),
        ("show runns", "no kind 'runns'"),
        ("end storm", "`begin storm` comes before"),
        ("rows shed attic c1 shed:1", "shed does not coordinate"),
        ("rows attic shed t1 shed:1", "no task 't1'"),
        ("expect t1 done", "no task 't1'"),
        ("expect 1 Grnat", "says nothing"),
        ("expect 1+- Grant", "is no count"),
        ("expect few Grant", "is no count"),
        ("expect no Grant barn", "'barn' is no task"),
        ("expect no Grant from barn", "no node 'barn'"),
        ("expect coordinator attic", "says nothing"),
        ("expect coordinator attic somewhere", "is expected `everywhere`"),
        ("expect storm at-least 80% of calm", "nothing was counted"),
        ("clone barn", "no node 'barn'"),
    ],
)
def test_a_mistake_is_named(line: str, answer: str) -> None:
    with pytest.raises(Failed, match=re.escape(answer)) as caught:
        told(NODES + line + "\n")
    assert str(caught.value).startswith("Mistake")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("submit t1; advance 1s; expect t1 failed", "t1 is done"),
        (
            "submit t1 fate=fail; advance 1s; expect t1 failed OutOfMemory",
            "t1 is failed TaskFailed",
        ),
        ("submit t1; advance 1s; expect starts t1 2", "t1 started 1 times"),
        ("submit t1 run=5000; advance 1s; expect t1 runs nowhere", "t1 runs on attic"),
        ("submit t1 pinned; advance 1s; expect no Grant t1 to shed", "there are 1 of Grant t1"),
        ("expect coordinator shed everywhere", "attic follows attic"),
        (
            "begin a; advance 1s; end a; begin b; end b; expect b at-least 80% of a",
            "b is 0, and a is 0",
        ),
    ],
)
def test_what_is_expected_can_be_unmet(line: str, answer: str) -> None:
    with pytest.raises(Failed, match=re.escape(answer)) as caught:
        told(NODES + line + "\n")
    assert str(caught.value).startswith("Unmet")
    assert caught.value.so_far.startswith("nodes attic")
