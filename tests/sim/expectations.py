"""What a scenario expects beyond its recorded history, so that it fails for a reason in words.

  expect TASKS done | failed | cancelled | expired | quarantined | unknown [REASON]
  expect TASKS open | lost | runs on NODE ... | runs nowhere
  expect starts TASKS COUNT                of processes since the story began
  expect COUNT KIND [WORD ...] [from NODE] [to NODE]      of lines since this block began
  expect coordinator NODE everywhere | at NODE ...
  expect NAME at-least PERCENT% of NAME    of two tallies (`begin NAME`, `end NAME`)

TASKS are names with commas and `*`; COUNT is `no`, `some`, N, N+ (at least) or N- (at most); KIND
is a message, a note, or the verb of a line (`runs`, `ends`, `dies`).  Lines count whether or not
they are shown.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from blackroad.bus import messages as m
from tests.sim.words import KINDS, WORDS

if TYPE_CHECKING:
    from tests.sim.story import Story

ENDS = {end.name.lower(): end for end in m.End}
TOKEN = re.compile(r"\d+/\d+")


class Mistake(Exception):
    """The text of a scenario cannot be understood."""


class Unmet(Exception):
    """What a scenario expects is not so."""


class Line(NamedTuple):
    """One thing that happened."""

    kind: str
    source: str
    target: str
    words: tuple[str, ...]


def line_of(text: str) -> Line:
    """Take a line of the history apart."""
    words = [word.removeprefix("token=") for word in text.split()]
    if len(words) > 3 and words[1] in ("->", "=>"):
        return Line(words[3], words[0], words[2], tuple(words[4:]))
    if len(words) > 2 and words[1] == "note":
        return Line(words[2], words[0], "", tuple(words[3:]))
    return Line(words[1] if len(words) > 1 else words[0], words[0], "", tuple(words))


def fits(count: str, number: int) -> bool:
    """Is this number what COUNT says?"""
    if count in ("no", "some"):
        return (number > 0) == (count == "some")
    digits = count.rstrip("+-")
    if not digits.isdigit() or len(count) - len(digits) > 1:
        raise Mistake(f"{count!r} is no count: `no`, `some`, 3, 3+ (at least) or 3- (at most)")
    if count.endswith("+"):
        return number >= int(digits)
    return number <= int(digits) if count.endswith("-") else number == int(digits)


def expect(story: Story, words: tuple[str, ...]) -> None:
    """Check one expectation; raise Unmet with what is the case instead."""
    match words:
        case ("starts", tasks, count):
            _starts(story, tasks, count)
        case ("coordinator", name, *where) if where:
            _coordinator(story, name, where)
        case (name, "at-least", percent, "of", other):
            _tallies(story, name, percent, other)
        case (tasks, "runs", "nowhere"):
            _running(story, tasks, [])
        case (tasks, "runs", "on", *nodes) if nodes:
            _running(story, tasks, nodes)
        case (tasks, state, *reason) if state in (*ENDS, "open", "lost"):
            _state(story, tasks, state, " ".join(reason))
        case (count, kind, *rest) if kind in KINDS:
            _lines(story, count, kind, rest)
        case _:
            text = " ".join(words)
            raise Mistake(f"`expect {text}` says nothing: see tests/sim/expectations.py")


def chosen(story: Story, pattern: str) -> list[str]:
    """Names of the tasks that a pattern names."""
    names = []
    for part in pattern.split(","):
        found = [name for name in story.tasks if fnmatchcase(name, part)]
        if not found:
            raise Mistake(f"there is no task {part!r}; there are {', '.join(story.tasks)}")
        names += found
    return names


def _starts(story: Story, tasks: str, count: str) -> None:
    for name in chosen(story, tasks):
        truth = story.world.observer.tasks[story.tasks[name][1]]
        number = sum(len(lives) for lives in truth.starts.values())
        if not fits(count, number):
            raise Unmet(f"{name} started {number} times")


def _running(story: Story, tasks: str, nodes: list[str]) -> None:
    for name in chosen(story, tasks):
        truth = story.world.observer.tasks[story.tasks[name][1]]
        where = sorted(process.machine.name for process in truth.running)
        if where != sorted(nodes):
            raise Unmet(f"{name} runs on {', '.join(where) or 'no node'}")


def _state(story: Story, tasks: str, state: str, reason: str) -> None:
    for name in chosen(story, tasks):
        client, task = story.tasks[name]
        one = client.tasks[task]
        now = "lost" if one.lost else "open"
        why = ""
        if one.ended is not None:
            now, why = one.ended.end.name.lower(), one.ended.reason
        if now != state or (reason and why != reason):
            raise Unmet(f"{name} is {now} {why}".rstrip())


def _coordinator(story: Story, name: str, where: list[str]) -> None:
    leader = story.machine(name)
    if where == ["everywhere"]:
        places = [one for one in story.world.machines if one.up and not one.paused]
    elif where[0] == "at" and where[1:]:
        places = [story.machine(one) for one in where[1:]]
    else:
        raise Mistake("a coordinator is expected `everywhere` or `at NODE ...`")
    for machine in places:
        node = machine.node
        follows = node.election.follows if node is not None else b""
        if follows != leader.id:
            raise Unmet(f"{machine.name} follows {story.world.names.node(follows)}")


def _tallies(story: Story, name: str, percent: str, other: str) -> None:
    for one in (name, other):
        if one not in story.tallies:
            raise Mistake(f"nothing was counted as {one!r}")
    if not percent.endswith("%") or not percent[:-1].isdigit():
        raise Mistake(f"{percent!r} is no share: 80% is one")
    mine, theirs = story.tallies[name], story.tallies[other]
    if not theirs or 100 * mine < int(percent[:-1]) * theirs:
        raise Unmet(f"{name} is {mine}, and {other} is {theirs}")


def _lines(story: Story, count: str, kind: str, rest: list[str]) -> None:
    source = target = ""
    words = []
    left = iter(rest)
    for word in left:
        if word in ("from", "to"):
            name = next(left, "")
            if name != "client":
                story.machine(name)
            source, target = (name, target) if word == "from" else (source, name)
        else:
            words.append(word)
    for word in words:
        names = {*WORDS, *story.tasks, *(one.name for one in story.world.machines)}
        if word not in names and not TOKEN.fullmatch(word):
            raise Mistake(f"{word!r} is no task, node, token (1/3) or word of a line")
    number = sum(
        1
        for line in story.happened
        if line.kind == kind
        and source in ("", line.source)
        and target in ("", line.target)
        and all(word in line.words for word in words)
    )
    if not fits(count, number):
        raise Unmet(f"there are {number} of {' '.join((kind, *rest))}")
