"""What is wrong among machines, or with daemons: versions that differ, states, counters.

Pure.  This file must not know how anything was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from blackroad.cli import doctor_machine as alone
from blackroad.cli.doctor_checks import NOTE, PROBLEM, Finding
from blackroad.units import format_ms

if TYPE_CHECKING:
    from blackroad.client.checkups import Machine

NAMED_MAX: Final = 4
# Of these another version may give other results, or not read what was sent.
COMPARED: Final = ("numpy", "scipy", "cloudpickle", "msgpack", "msgspec", "pyopencl", "torch")


def findings(machines: Sequence[Machine], coordinator: str | None) -> list[Finding]:
    """Judge all machines: each by itself, then what only shows beside the others."""
    found: list[Finding] = []
    for one in machines:
        if one.facts is not None:
            found += alone.findings(one.name, one.facts)
        found += _daemon(one)
    found += _versions(machines)
    found += _pythons(machines)
    found += _packages(machines)
    found += _presence(machines, coordinator)
    return found


def _several(names: Sequence[str]) -> str:
    """Some names as words: "a, b and c", or "12 nodes"."""
    if len(names) > NAMED_MAX:
        return f"{len(names)} nodes"
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


# --- daemons --------------------------------------------------------------------------------------


def _daemon(one: Machine) -> list[Finding]:
    """What one daemon says of itself."""
    row, found = one.row, []
    for device in row.get("devices", ()):
        if device.get("problem"):
            text = f"{one.name}: the device {device['name']} is not used: {device['problem']}"
            found.append(Finding("devices", PROBLEM, text, (_DEVICE_DO,)))
    for note in row.get("notes", ()):
        found.append(Finding("devices", NOTE, f"{one.name}: {note}"))
    if row.get("loop_lag_ms", 0) > alone.LAG_MS:
        text = f"{one.name}: its daemon lags {format_ms(row['loop_lag_ms'])} behind"
        do = "the machine is overloaded or swaps: fewer `slots`, or less beside the daemon"
        found.append(Finding("load", NOTE, text, (do,)))
    return found + _node(one, one.node or {}) + _driver(one, one.driver or {}) + _outdated(one)


def _outdated(one: Machine) -> list[Finding]:
    """Does the daemon still go by what the file said before?"""
    facts, node = one.facts or {}, one.node or {}
    changed_ms = facts.get("config", {}).get("changed_ms", 0)
    if not changed_ms or "uptime_ms" not in node:
        return []
    if changed_ms <= facts["clock"]["wall_ms"] - node["uptime_ms"]:
        return []
    text = f"{one.name}: {facts['config']['file']} was changed after the daemon read it"
    return [Finding("configuration", NOTE, text, ("restart the daemon there, and it counts",))]


_DEVICE_DO: Final = "`python -m blackroad.discovery.probe` on that machine tries its drivers again"


def _node(one: Machine, node: dict[str, Any]) -> list[Finding]:
    found = []
    if node.get("full"):
        text = f"{one.name}: its disk is full, and it refuses durable tasks (`no_space`)"
        found.append(Finding("disk", PROBLEM, text, ("make room below `state_dir`",)))
    if node.get("draining"):
        text = f"{one.name}: it drains, and takes nothing new"
        found.append(Finding("draining", NOTE, text, (f"`blackroad resume {one.name}` ends it",)))
    return found


def _driver(one: Machine, driver: dict[str, Any]) -> list[Finding]:
    found = []
    used = driver.get("descriptors", {})
    limit = used.get("limit", 0)
    if limit and used.get("used", 0) * 100 >= limit * alone.DESCRIPTORS_PERCENT:
        text = f"{one.name}: {used['used']} of {limit} open files are used up"
        do = f"raise LimitNOFILE of {alone.UNIT}; `blackroad doctor net` shows who connects"
        found.append(Finding("limits", PROBLEM, text, (do,)))
    journal = driver.get("journal", {})
    if journal.get("damaged"):
        text = f"{one.name}: {journal['damaged']} rows of its journal were damaged and set aside"
        do = "the disk or a power cut did that: `smartctl -a`, and see docs/journal.md"
        found.append(Finding("journal", PROBLEM, text, (do,)))
    keeper = driver.get("gate", {}).get("keeper", {})
    if keeper.get("problem"):
        text = f"{one.name}: the list of members cannot be kept: {keeper['problem']}"
        found.append(Finding("keys", PROBLEM, text, ("is the disk full or read-only?",)))
    history = driver.get("history", {})
    if history.get("problem"):
        text = f"{one.name}: the history is not written: {history['problem']}"
        do = "events wait in the state directory, within bounds; see `history_url`"
        found.append(Finding("history", PROBLEM, text, (do,)))
    if history.get("lost"):
        text = f"{one.name}: {history['lost']} records of the history were lost for want of room"
        found.append(Finding("history", NOTE, text, ("have the database back earlier",)))
    mirror = driver.get("mirror", {})
    if mirror.get("dropped"):
        text = (
            f"{one.name}: {mirror['dropped']} results were not mirrored to Redis, for more came "
            "than is kept while the server is away"
        )
        do = "the results themselves are not lost: `blackroad result ID`"
        found.append(Finding("redis", NOTE, text, (do,)))
    return found


# --- versions -------------------------------------------------------------------------------------


def _told(machines: Sequence[Machine], part: str, name: str) -> dict[str, list[str]]:
    """Names of the machines by what they tell there; who tells nothing is left out."""
    found: dict[str, list[str]] = {}
    for one in machines:
        value = ((one.facts or {}).get(part) or {}).get(name)
        if value:
            found.setdefault(str(value), []).append(one.name)
    return found


def _spread(found: dict[str, list[str]]) -> str:
    """Who has which: "2.1 on a and b, 1.26 on c"."""
    most = sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return ", ".join(f"{version} on {_several(names)}" for version, names in most)


def _versions(machines: Sequence[Machine]) -> list[Finding]:
    found = _told(machines, "versions", "blackroad")
    if len(found) < 2:
        return []
    text = f"versions of blackroad are mixed: {_spread(found)}"
    ranges = [
        (one.name, one.facts["versions"]["protocol"])
        for one in machines
        if one.facts is not None and one.facts.get("versions", {}).get("protocol")
    ]
    newest_low = max(span[0] for _, span in ranges)
    oldest_high = min(span[1] for _, span in ranges)
    if newest_low > oldest_high:
        behind = [name for name, span in ranges if span[1] < newest_low]
        do = f"update {_several(behind)}: they share no version of the protocol with the others"
        return [Finding("versions", PROBLEM, text, (do,))]
    do = "they work together while you update one node after the other; do not leave it so"
    return [Finding("versions", NOTE, text, (do,))]


def _pythons(machines: Sequence[Machine]) -> list[Finding]:
    found = _told(machines, "versions", "python")
    if len(found) < 2:
        return []
    do = (
        "functions that travel as code run only on nodes with the Python of their client; "
        "functions that can be imported there, kernels and commands run everywhere",
        "`blackroad why ID` shows which node lacks the Python",
    )
    return [Finding("python", NOTE, f"versions of Python are mixed: {_spread(found)}", do)]


def _packages(machines: Sequence[Machine]) -> list[Finding]:
    lines = []
    for package in COMPARED:
        found = _told(machines, "packages", package)
        majors = {".".join(version.split(".")[: _PARTS.get(package, 1)]) for version in found}
        if len(majors) > 1:
            lines.append((package, _spread(found)))
    return [
        Finding(
            "packages",
            NOTE,
            f"versions of {package} are mixed: {spread}",
            ("results may differ, or values not be readable: install one version everywhere",),
        )
        for package, spread in lines
    ]


# How many numbers of a version have to be the same; one for those not named.
_PARTS: Final = {"msgspec": 2, "torch": 2, "pyopencl": 1, "numpy": 1}


# --- who is there ---------------------------------------------------------------------------------


def _presence(machines: Sequence[Machine], coordinator: str | None) -> list[Finding]:
    found = []
    gone = [one.name for one in machines if one.row.get("state") == "dead"]
    if gone:
        do = "is the machine on, and its daemon running? `blackroad doctor net` looks at the ways"
        found.append(Finding("presence", PROBLEM, f"not heard any more: {_several(gone)}", (do,)))
    if machines and coordinator is None:
        text = "no node coordinates at the moment"
        do = "one is elected within seconds; if not, is `coordinate` false on all of them?"
        found.append(Finding("coordinator", PROBLEM, text, (do,)))
    silent = [one for one in machines if one.problem]
    for one in silent:
        text = f"{one.name} was not looked at: {one.problem}"
        old = "knows no query" in one.problem
        do = "its version is older: update it" if old else "run `blackroad doctor` there as well"
        found.append(Finding("unexamined", NOTE, text, (do,)))
    return found
