"""What is wrong with one machine, found in what was gathered there.

Pure.  Each finding says what to do.  This file must not know how the facts were gathered, nor
anything of other machines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from blackroad.cli.doctor_checks import NOTE, PROBLEM, Finding
from blackroad.limits import MIB
from blackroad.units import format_bytes, format_ms

# The first release is younger: a clock before that has not been set.
OLDEST_WALL_MS: Final = 1_767_225_600_000
FLUSH_SLOW_MS: Final = 50.0
FLUSH_HUNG_MS: Final = 500.0
FREE_BYTES_MIN: Final = 64 * MIB
FREE_BYTES_FEW: Final = 512 * MIB
FREE_FILES_MIN: Final = 256
FILES_MIN: Final = 4_096
PROCESSES_MIN: Final = 512
HOT_C: Final = 80
LOADED_PERCENT: Final = 400
LAG_MS: Final = 750
DESCRIPTORS_PERCENT: Final = 80
OTHERS_READ: Final = 0o077
OTHERS_IN: Final = 0o027
UNIT: Final = "blackroad-node"

Facts = Mapping[str, Any]


def findings(name: str, facts: Facts) -> list[Finding]:
    """Judge the facts of one machine; a part that an older version does not tell is passed over."""
    found: list[Finding] = []
    for part, judge in _JUDGES.items():
        told = facts.get(part)
        if told:
            found += judge(name, told, facts)
    return found


def _problem(kind: str, text: str, *do: str) -> Finding:
    return Finding(kind, PROBLEM, text, do)


def _note(kind: str, text: str, *do: str) -> Finding:
    return Finding(kind, NOTE, text, do)


# --- configuration, keys, directories -------------------------------------------------------------


def _config(name: str, told: Facts, _: Facts) -> list[Finding]:
    found = []
    mode = int(told["mode"] or "0", 8)
    if told["holds_secret"] and mode & OTHERS_READ & ~0o040:
        found.append(
            _problem(
                "configuration",
                f"{name}: {told['file']} holds a password, and any user of the machine can read it "
                f"(mode {told['mode']})",
                f"chmod 640 {told['file']}, and change the password",
            )
        )
    elif mode & 0o022:
        found.append(
            _problem(
                "configuration",
                f"{name}: {told['file']} can be written by others (mode {told['mode']})",
                f"chmod 640 {told['file']}: who writes it decides what runs here",
            )
        )
    return found


def _keys(name: str, told: Facts, _: Facts) -> list[Finding]:
    found = []
    if told["problem"]:
        found.append(_problem("keys", f"{name}: {told['problem']}", told["hint"]))
    for path in told["open"]:
        text = f"{name}: other users of the machine can read the key {path}"
        if path.partition(" (")[0] not in told["problem"]:
            do = f"chmod 600 {path.partition(' (')[0]}, then `blackroad rotate`"
            found.append(_problem("keys", text, do))
    if told["closed"] and told["role"] == "none":
        found.append(
            _problem(
                "keys",
                f"{name}: its key is not on the list of members of {told['cluster']}",
                "on a member: `blackroad token create`; here: `blackroad join TOKEN`",
            )
        )
    elif told["closed"] and told.get("admins") == 0:
        found.append(
            _note(
                "keys",
                f"{name}: the cluster {told['cluster']} has no admin: nobody can let others in",
                "where `blackroad init` ran, restore cluster/root.json from its copy",
            )
        )
    return found


def _directories(name: str, told: Any, facts: Facts) -> list[Finding]:
    found = []
    for one in told:
        key, path = one["key"], one["path"]
        if one["problem"]:
            text = f"{name}: {key} {path} cannot be looked at: {one['problem']}"
            found.append(_problem("directory", text, f"let this user in, or set {key}"))
        elif not one["there"]:
            # It is made at the first start.
            continue
        elif one["owner"] != facts.get("user"):
            text = f"{name}: {key} {path} belongs to user {one['owner']}, not {facts.get('user')}"
            do = "run the daemon (and this command) as that user, or give the directory away"
            found.append(_problem("directory", text, do))
        elif int(one["mode"], 8) & OTHERS_IN:
            text = f"{name}: {key} {path} is open to others (mode {one['mode']})"
            found.append(_problem("directory", text, f"chmod 700 {path}"))
        elif not one["writable"]:
            text = f"{name}: {key} {path} is not writable for this user"
            found.append(_problem("directory", text, f"make it writable, or set {key}"))
    return found


# --- clock, disk ----------------------------------------------------------------------------------


def _clock(name: str, told: Facts, _: Facts) -> list[Finding]:
    if told["wall_ms"] < OLDEST_WALL_MS:
        return [
            _problem(
                "clock",
                f"{name}: the clock has not been set: it says a date before this program was made",
                "timedatectl set-ntp true; a board without a clock chip needs the network for it",
                "tokens and memberships expire by it, so others may refuse this node",
            )
        ]
    if told["synchronised"] is False:
        return [
            _note(
                "clock",
                f"{name}: nothing keeps the clock right (the kernel calls it unsynchronised)",
                "timedatectl set-ntp true, or `apt install chrony`",
            )
        ]
    return []


def _disk(name: str, told: Facts, _: Facts) -> list[Finding]:
    path, kind = told["path"], told["kind"]
    found = []
    if kind in _KINDS:
        level, is_bad, advice = _KINDS[kind]
        found.append(Finding("disk", level, f"{name}: the state directory {path} {is_bad}", advice))
    if told.get("mounted_read_only"):
        do = "`dmesg | grep -i error` tells why; a card that does that is to be replaced"
        found.append(_problem("disk", f"{name}: {path} is mounted read-only", do))
    free, size = told.get("free_bytes"), told.get("size_bytes", 0)
    if free is not None and free < FREE_BYTES_FEW and size:
        text = f"{name}: {format_bytes(free)} of {format_bytes(size)} are free below {path}"
        level = PROBLEM if free < FREE_BYTES_MIN else NOTE
        do = "make room; durable tasks are refused there while it is full (`no_space`)"
        found.append(Finding("disk", level, text, (do,)))
    files = told.get("free_files", -1)
    if 0 <= files < FREE_FILES_MIN:
        text = f"{name}: only {files} more files fit below {path}"
        found.append(_problem("disk", text, "`df -i` shows it; remove small files"))
    return found


_KINDS: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = {
    "sd": (
        NOTE,
        "is on an SD card: it wears out, and a power cut may damage it",
        (
            "better on an SSD (USB is enough): mount one, and set `state_dir` to a directory there",
            "else submit durable tasks at another node: only they are journaled, and an idle node "
            "writes nothing",
        ),
    ),
    "memory": (
        PROBLEM,
        "is in memory: accepted tasks and this node's identity are lost at the next start",
        ("set `state_dir` to a directory on a disk",),
    ),
    "network": (
        PROBLEM,
        "is on a network file system: the journal's locks and flushes do not hold there",
        ("set `state_dir` to a directory on a disk of this machine",),
    ),
    "container": (
        NOTE,
        "is in a container's own layer: it is gone when the container is removed",
        ("mount a volume there, or set `state_dir` to one",),
    ),
}


def _flush(name: str, told: Facts, facts: Facts) -> list[Finding]:
    path = (facts.get("disk") or {}).get("path", "the state directory")
    if told["problem"]:
        places = {one["key"]: one["there"] for one in facts.get("directories", ())}
        if not places.get("state_dir", True):
            return []
        text = f"{name}: a file below {path} cannot be written and flushed: {told['problem']}"
        return [_problem("flush", text, "is the disk full, mounted read-only, or failing? `dmesg`")]
    median, longest = told["median_ms"], told["longest_ms"]
    if median < FLUSH_SLOW_MS and longest < FLUSH_HUNG_MS:
        return []
    text = (
        f"{name}: the disk of {path} flushes slowly: {format_ms(round(median))} in the middle, "
        f"{format_ms(round(longest))} at worst"
    )
    do = (
        "each durable submit waits for one flush: put `state_dir` on an SSD",
        "a card or disk that was faster before may be failing: `dmesg`, `smartctl -a`",
    )
    return [Finding("flush", PROBLEM if median >= FLUSH_HUNG_MS else NOTE, text, do)]


# --- memory, limits, programs ---------------------------------------------------------------------


def _memory(name: str, told: Facts, _: Facts) -> list[Finding]:
    found = []
    offered, allowed = told["offered_bytes"], told["allowed_bytes"]
    if offered and allowed and offered > allowed:
        found.append(
            _problem(
                "memory",
                f"{name}: the node offers {format_bytes(offered)} to tasks, and only "
                f"{format_bytes(allowed)} may be used here",
                f"set `memory` to less than {format_bytes(allowed)}, or raise MemoryMax of the "
                "service or the limit of the container",
            )
        )
    if told["swap_on_sd"]:
        found.append(
            _note(
                "memory",
                f"{name}: it swaps to an SD card, which wears the card out and freezes the machine",
                "`apt install zram-tools` instead, and `dphys-swapfile swapoff`",
            )
        )
    total, available = told["total_bytes"], told["available_bytes"]
    if total and available < total // 20:
        text = f"{name}: only {format_bytes(available)} of {format_bytes(total)} memory are left"
        found.append(_note("memory", text, "`blackroad tasks`, or `top` sorted by memory (M)"))
    return found


def _cgroup(name: str, told: Facts, _: Facts) -> list[Finding]:
    if told["switched_off"] and told["is_pi"]:
        return [
            _note(
                "cgroup",
                f"{name}: the kernel was started without limits of memory",
                "add `cgroup_enable=memory cgroup_memory=1` to the one line of "
                "/boot/firmware/cmdline.txt, and reboot",
            )
        ]
    if not told["memory"]:
        return [
            _note(
                "cgroup",
                f"{name}: no limits of memory can be set: "
                + ("no control groups are mounted" if not told["version"] else "not switched on"),
                "a task that takes all memory may end others with it; the key `memory` still "
                "bounds what is placed here",
            )
        ]
    if not told["delegated"]:
        return [
            _note(
                "cgroup",
                f"{name}: the daemon has no control groups of its own for its tasks",
                f"run it as the service {UNIT}, whose unit says Delegate=yes",
            )
        ]
    return []


def _limits(name: str, told: Facts, _: Facts) -> list[Finding]:
    found = []
    for key, least, words, setting in (
        ("files", FILES_MIN, "open files", "LimitNOFILE"),
        ("processes", PROCESSES_MIN, "processes", "LimitNPROC"),
    ):
        hard = told[key][1]
        if 0 <= hard < least:
            found.append(
                _note(
                    "limits",
                    f"{name}: only {hard} {words} are allowed",
                    f"raise {setting} of the service, or the hard limit of the user (`ulimit -a`)",
                )
            )
    return found


def _unmet(name: str, told: Any, _: Facts) -> list[Finding]:
    found = []
    for one in told:
        package, least = one["package"], one["least"]
        what = f"{one['installed']} is too old" if one["installed"] else "is missing"
        found.append(
            _problem(
                "packages",
                f"{name}: {package} {what}: {least} or newer is needed",
                f"in the environment of the daemon: pip install '{package}>={least}'",
            )
        )
    return found


# --- devices and servers --------------------------------------------------------------------------


def _devices(name: str, told: Facts, _: Facts) -> list[Finding]:
    if not told["closed"]:
        return []
    text = f"{name}: this user may not open {', '.join(told['closed'])}"
    do = "`usermod -aG render,video USER` (the service's user is blackroad), then start it again"
    return [_problem("devices", text, do)]


def _sensors(name: str, told: Facts, _: Facts) -> list[Finding]:
    found = []
    if told.get("under_voltage"):
        text = f"{name}: the power supply is too weak (under voltage)"
        do = "use the maker's supply and a short cable; such a machine loses data and slows down"
        found.append(_problem("power", text, do))
    degrees = told.get("temperature_c", 0)
    if told.get("throttled") or degrees >= HOT_C:
        heat = f" at {degrees:g} °C" if degrees else ""
        slow = "is slowed down by its firmware or kernel" if told.get("throttled") else "is hot"
        found.append(_note("heat", f"{name}: it {slow}{heat}", "give it air or a heat sink"))
    return found


def _redis(name: str, told: Facts, _: Facts) -> list[Finding]:
    if not told["on"]:
        if not told["mirror"]:
            return []
        text = f"{name}: `redis_mirror` is on, and no server is named"
        return [_problem("redis", text, "set `redis_url`, or `redis_mirror = false`")]
    found = []
    if told["state"] != "up":
        text = f"{name}: {told['place']} is {_STATES.get(told['state'], told['state'])}"
        if told["problem"]:
            text += f": {told['problem']}"
        found.append(_problem("redis", text, *_REDIS_DO.get(told["state"], ("see `redis_url`",))))
    if told.get("old"):
        found.append(
            _note(
                "redis",
                f"{name}: {told['place']} is {told['product']} {told['version']}, which may have "
                "known holes",
                "update it, unless the distribution has repaired its package; let an ACL forbid "
                "scripts, CONFIG and KEYS",
            )
        )
    limit = told.get("limit_bytes", 0)
    if limit and told.get("used_bytes", 0) > limit * 9 // 10:
        text = f"{name}: {told['place']} has used {format_bytes(told['used_bytes'])} of its "
        do = "raise maxmemory, or choose a policy that drops the keys which expire (volatile-ttl)"
        found.append(_note("redis", f"{text}{format_bytes(limit)}", do))
    return found


_STATES: Final = {
    "down": "not reachable",
    "slow": "too slow to answer",
    "denied": "closed for this node",
    "off": "not usable",
    "open": "open to anybody",
    "broken": "not usable",
}
_REDIS_DO: Final[Mapping[str, tuple[str, ...]]] = {
    "down": ("is the server running, and is `redis_url` its host and port?",),
    "slow": ("is it overloaded, or a firewall in between? `redis-cli --latency -h HOST`",),
    "denied": (
        "check user and password in `redis_url`; the ACL needs +@read +@write +ping +info on the "
        "keys blackroad:*",
    ),
    "read-only": ("name the primary in `redis_url`, not a replica",),
    "loading": ("it is starting; ask again in a moment",),
    "off": ("pip install 'blackroad[redis]'",),
    "open": ("give it a password, or use rediss://",),
}


def _history(name: str, told: Facts, _: Facts) -> list[Finding]:
    if not told["on"] or told["state"] in ("up", "unknown"):
        return []
    what = f"{told['place']} is {_STATES.get(told['state'], told['state'])}"
    do = {
        "down": "is the server running, and is `history_url` its host and port?",
        "denied": "check user, password and rights: the user needs CREATE on the schema once",
        "refused": "make the database once: createdb NAME",
        "read-only": "name the primary in `history_url`, not a standby",
        "off": "pip install 'blackroad[postgres]'",
    }.get(told["state"], "see `history_url`")
    text = f"{name}: {what}" + (f": {told['problem']}" if told["problem"] else "")
    kept = "events are kept in the state directory meanwhile, within bounds, and written later"
    return [_problem("history", text, do, kept)]


_JUDGES: Final[Mapping[str, Callable[[str, Any, Facts], list[Finding]]]] = {
    "config": _config,
    "keys": _keys,
    "directories": _directories,
    "clock": _clock,
    "disk": _disk,
    "flush": _flush,
    "memory": _memory,
    "cgroup": _cgroup,
    "limits": _limits,
    "unmet": _unmet,
    "devices": _devices,
    "sensors": _sensors,
    "redis": _redis,
    "history": _history,
}
