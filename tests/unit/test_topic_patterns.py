"""Names of topics and patterns: what they match, and what is said of those that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackroad.bus.patterns import Pattern, check_name, cover, is_name, is_reserved
from blackroad.errors import UsageError
from blackroad.limits import TOPIC_PREFIXES_MAX

SEGMENTS = st.sampled_from(["a", "b", "ab", "a.b", "A-_9"])
NAMES = st.lists(SEGMENTS, min_size=1, max_size=5).map("/".join)
PATTERNS = st.builds(
    lambda parts, rest: "/".join([*parts, *(["#"] if rest or not parts else [])]),
    st.lists(SEGMENTS | st.just("*"), max_size=5),
    st.booleans(),
)


def simply(pattern: list[str], name: list[str]) -> bool:
    """The rule as it is told to people, segment by segment."""
    if not pattern:
        return not name
    if pattern == ["#"]:
        return True
    return bool(name) and pattern[0] in ("*", name[0]) and simply(pattern[1:], name[1:])


@given(PATTERNS, NAMES)
def test_a_pattern_is_its_simple_twin(pattern: str, name: str) -> None:
    assert Pattern(pattern).matches(name) == simply(pattern.split("/"), name.split("/"))


@pytest.mark.parametrize("name", ["blackroad/events/node.died", "sys/x", "blackroad"])
def test_what_daemons_publish_comes_to_who_names_it(name: str) -> None:
    """Whoever wants everything wants what programs say."""
    first, _, rest = name.partition("/")
    for pattern in ("#", "*/#", "*", "*/*", "*/events/#"):
        assert not Pattern(pattern).matches(name)
    assert Pattern(f"{first}/#").matches(name)
    assert Pattern(name).matches(name)
    assert Pattern("#").matches(f"lab/{name}")
    assert Pattern("#").matches(f"{first}x/{rest or 'y'}")


@given(PATTERNS, NAMES)
def test_what_matches_begins_like_the_prefix(pattern: str, name: str) -> None:
    """R-topic-2: what a node asks its peers for is never less than what somebody wants."""
    one = Pattern(pattern)
    if one.matches(name):
        assert f"{name}/".startswith(one.prefix)


@given(st.sets(PATTERNS, max_size=8), NAMES)
def test_a_cover_covers_and_has_nothing_twice(patterns: set[str], name: str) -> None:
    prefixes = {Pattern(one).prefix for one in patterns}
    covered = cover(prefixes)
    assert any(f"{name}/".startswith(one) for one in prefixes) == (
        f"{name}/".startswith(covered) if covered else False
    )
    assert not [a for a in covered for b in covered if a is not b and a.startswith(b)]


def test_too_many_beginnings_become_everything() -> None:
    few = {f"n{number:03}/" for number in range(TOPIC_PREFIXES_MAX)}
    assert cover(few) == tuple(sorted(few))
    assert cover({*few, "one/more/"}) == ("",)


@pytest.mark.parametrize(
    ("pattern", "name", "chosen"),
    [
        ("lab/temperature", "lab/temperature", True),
        ("lab/temperature", "lab/temperature/oven", False),
        ("lab/*", "lab/oven", True),
        ("lab/*", "lab", False),
        ("lab/*", "lab/oven/1", False),
        ("*/temperature", "attic/temperature", True),
        ("lab/#", "lab", True),
        ("lab/#", "lab/oven/1", True),
        ("lab/#", "label", False),
        ("#", "anything/at/all", True),
        ("*/#", "anything", True),
    ],
)
def test_examples(pattern: str, name: str, chosen: bool) -> None:
    assert Pattern(pattern).matches(name) is chosen


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("", "1 to 64"),
        ("x" * 65, "1 to 64"),
        ("lab/+", "`*` here"),
        ("lab/**", "`#` here"),
        ("lab*", "whole segments"),
        ("lab/#/x", "last segment"),
        ("lab//x", "empty"),
        ("/lab", "empty"),
        ("lab/", "empty"),
        ("größe", "not made of"),
        ("a b", "not made of"),
        ("lab\n", "not made of"),
    ],
)
def test_what_is_no_pattern(pattern: str, told: str) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        Pattern(pattern)
    assert told in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "1 to 64"),
        ("x" * 65, "1 to 64"),
        ("lab/#", "is a pattern"),
        ("*", "is a pattern"),
        ("lab//x", "no name"),
        ("a\x1b[31m", "no name"),
        ("sys/x", "reserved"),
        ("blackroad", "reserved"),
    ],
)
def test_what_nobody_may_publish_on(name: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert told in caught.value.message
    assert caught.value.hint


def test_names() -> None:
    assert check_name("x" * 64) == "x" * 64
    assert is_name("A.b-c_9/d")
    assert not is_name("a/b\n")
    assert is_reserved("sys")
    assert not is_reserved("system/x")
