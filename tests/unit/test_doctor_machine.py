"""What the doctor concludes from the facts of machines, alone and beside each other."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from blackroad.checkup.disk import disk_facts, flush_facts, mount_of
from blackroad.checkup.machine import _numbers, wish_of
from blackroad.checkup.servers import _without, history_facts, redis_facts
from blackroad.cli import doctor_machine, doctor_mesh
from blackroad.cli.doctor_checks import NOTE, PROBLEM, Finding
from blackroad.client.checkups import Machine
from blackroad.config import Config
from blackroad.discovery.machine import Host
from blackroad.discovery.redis_server import is_old

GIB = 2**30
SOUND: dict[str, Any] = {
    "schema": 1,
    "name": "attic",
    "user": 1000,
    "versions": {"blackroad": "0.6.0", "protocol": [1, 1], "python": "3.11"},
    "packages": {"numpy": "2.1.0", "msgspec": "0.19.0"},
    "unmet": [],
    "config": {"file": "/etc/b.toml", "holds_secret": True, "mode": "640", "changed_ms": 0},
    "keys": {"closed": True, "problem": "", "hint": "", "open": [], "cluster": "lab",
             "role": "work", "members": 3, "admins": 1},
    "directories": [
        {"key": "state_dir", "path": "/s", "there": True, "problem": "", "owner": 1000,
         "mode": "700", "writable": True},
    ],
    "clock": {"wall_ms": 1_800_000_000_000, "synchronised": True},
    "disk": {"path": "/s", "kind": "ssd", "mounted_read_only": False, "size_bytes": 100 * GIB,
             "free_bytes": 50 * GIB, "free_files": 10**6},
    "flush": {"problem": "", "median_ms": 2.0, "longest_ms": 9.0},
    "memory": {"total_bytes": 8 * GIB, "available_bytes": 6 * GIB, "allowed_bytes": 8 * GIB,
               "offered_bytes": 6 * GIB, "swap_on_sd": False},
    "cgroup": {"version": 2, "memory": True, "switched_off": False, "delegated": True,
               "is_pi": False},
    "limits": {"files": [1024, 524_288], "processes": [30_000, -1]},
    "devices": {"render": ["/dev/dri/renderD128"], "closed": []},
    "sensors": {"temperature_c": 50.0, "throttled": False},
    "redis": {"on": True, "mirror": True, "place": "Redis at r:1", "state": "up", "problem": "",
              "old": False, "limit_bytes": 0, "used_bytes": 1},
    "history": {"on": True, "place": "PostgreSQL at p:1/h", "state": "up", "problem": ""},
}  # fmt: skip


def broken(part: str, **changes: Any) -> dict[str, Any]:
    facts = copy.deepcopy(SOUND)
    if isinstance(facts[part], list):
        facts[part][0] |= changes
    else:
        facts[part] |= changes
    return facts


def machine(name: str, facts: dict[str, Any] | None = None, **changes: Any) -> Machine:
    row = {"name": name, "state": "alive", "devices": [], "notes": [], "loop_lag_ms": 0}
    row |= changes.pop("row", {})
    return Machine(name, name * 2, row, facts, **changes)


def test_a_sound_machine_has_nothing_to_tell() -> None:
    assert doctor_machine.findings("attic", SOUND) == []
    assert doctor_mesh.findings([machine("a", SOUND), machine("b", SOUND)], "aa") == []


def test_what_an_older_version_does_not_tell_is_passed_over() -> None:
    assert doctor_machine.findings("attic", {"schema": 1, "versions": {}}) == []


@pytest.mark.parametrize(
    ("part", "changes", "level", "words", "do"),
    [
        ("config", {"mode": "644"}, PROBLEM, "holds a password", "chmod 640 /etc/b.toml"),
        ("config", {"mode": "666", "holds_secret": False}, PROBLEM, "written by others", "640"),
        ("keys", {"problem": "identity.json is damaged", "hint": "restore it"}, PROBLEM,
         "identity.json is damaged", "restore it"),
        ("keys", {"open": ["/s/identity.json (mode 644)"]}, PROBLEM, "/s/identity.json",
         "chmod 600 /s/identity.json, then"),
        ("keys", {"role": "none"}, PROBLEM, "not on the list", "blackroad join"),
        ("keys", {"admins": 0}, NOTE, "has no admin", "root.json"),
        ("directories", {"mode": "755"}, PROBLEM, "open to others (mode 755)", "chmod 700 /s"),
        ("directories", {"owner": 0}, PROBLEM, "belongs to user 0, not 1000", "as that user"),
        ("directories", {"writable": False}, PROBLEM, "not writable", "state_dir"),
        ("directories", {"problem": "Permission denied"}, PROBLEM, "looked at", "state_dir"),
        ("clock", {"wall_ms": 0}, PROBLEM, "has not been set", "set-ntp"),
        ("clock", {"synchronised": False}, NOTE, "nothing keeps the clock right", "chrony"),
        ("disk", {"kind": "sd"}, NOTE, "SD card", "SSD"),
        ("disk", {"kind": "memory"}, PROBLEM, "is in memory", "state_dir"),
        ("disk", {"kind": "network"}, PROBLEM, "network file system", "state_dir"),
        ("disk", {"kind": "container"}, NOTE, "container", "volume"),
        ("disk", {"mounted_read_only": True}, PROBLEM, "mounted read-only", "dmesg"),
        ("disk", {"free_bytes": 300 * 2**20}, NOTE, "300 MiB of 100 GiB are free", "room"),
        ("disk", {"free_bytes": 2**20}, PROBLEM, "1 MiB of 100 GiB are free", "no_space"),
        ("disk", {"free_files": 3}, PROBLEM, "only 3 more files", "df -i"),
        ("flush", {"problem": "Input/output error"}, PROBLEM, "Input/output error", "failing"),
        ("flush", {"median_ms": 80.0, "longest_ms": 90.0}, NOTE, "80 ms in the middle", "SSD"),
        ("flush", {"longest_ms": 900.0}, NOTE, "900 ms at worst", "smartctl"),
        ("flush", {"median_ms": 700.0, "longest_ms": 900.0}, PROBLEM, "slowly", "SSD"),
        ("memory", {"allowed_bytes": 2 * GIB}, PROBLEM, "only 2 GiB may be used", "MemoryMax"),
        ("memory", {"swap_on_sd": True}, NOTE, "swaps to an SD card", "zram"),
        ("memory", {"available_bytes": 2**20}, NOTE, "only 1 MiB of 8 GiB", "top"),
        ("cgroup", {"memory": False, "switched_off": True, "is_pi": True}, NOTE,
         "without limits of memory", "cgroup_enable=memory cgroup_memory=1"),
        ("cgroup", {"memory": False, "version": 0}, NOTE, "no control groups", "memory"),
        ("cgroup", {"delegated": False}, NOTE, "no control groups of its own", "Delegate=yes"),
        ("limits", {"files": [256, 256]}, NOTE, "only 256 open files", "LimitNOFILE"),
        ("limits", {"processes": [64, 64]}, NOTE, "only 64 processes", "LimitNPROC"),
        ("devices", {"closed": ["/dev/dri/renderD128"]}, PROBLEM, "may not open", "render,video"),
        ("sensors", {"under_voltage": True}, PROBLEM, "under voltage", "supply"),
        ("sensors", {"throttled": True}, NOTE, "slowed down by its firmware or kernel at 50",
         "heat sink"),
        ("sensors", {"temperature_c": 85.5}, NOTE, "is hot at 85.5", "air"),
        ("redis", {"state": "down", "problem": "refused"}, PROBLEM, "not reachable: refused",
         "redis_url"),
        ("redis", {"state": "slow"}, PROBLEM, "too slow", "latency"),
        ("redis", {"state": "denied", "problem": "WRONGPASS"}, PROBLEM, "WRONGPASS", "password"),
        ("redis", {"state": "read-only"}, PROBLEM, "read-only", "primary"),
        ("redis", {"on": False}, PROBLEM, "no server is named", "redis_url"),
        ("redis", {"old": True, "product": "Redis", "version": "6.0.1"}, NOTE,
         "Redis 6.0.1, which may have known holes", "update"),
        ("redis", {"limit_bytes": 100, "used_bytes": 95}, NOTE, "has used", "volatile-ttl"),
        ("history", {"state": "down", "problem": "refused"}, PROBLEM, "not reachable: refused",
         "history_url"),
        ("history", {"state": "denied"}, PROBLEM, "closed for this node", "password"),
    ],
)  # fmt: skip
def test_each_thing_that_is_wrong_is_named_with_what_to_do(
    part: str, changes: dict[str, Any], level: str, words: str, do: str
) -> None:
    [found] = doctor_machine.findings("attic", broken(part, **changes))
    assert found.level == level
    assert found.text.startswith("attic: ")
    assert words in found.text
    assert do in " ".join(found.do)


def test_a_group_may_read_a_configuration_with_a_password() -> None:
    assert doctor_machine.findings("attic", broken("config", mode="640")) == []


def test_unmet_packages_are_named_with_the_command() -> None:
    facts = copy.deepcopy(SOUND)
    facts["unmet"] = [{"package": "msgpack", "installed": "1.0.2", "least": "1.2.1"}]
    [found] = doctor_machine.findings("attic", facts)
    assert "msgpack 1.0.2 is too old: 1.2.1 or newer is needed" in found.text
    assert "pip install 'msgpack>=1.2.1'" in found.do[0]


@pytest.mark.parametrize(
    ("one", "other", "newer"),
    [("1.2.1", "1.10", False), ("27", "27.0.0", True), ("4.3.5rc1", "4.3.5", True),
     ("2026.1.4", "2024.3", True), ("0.149.17", "0.149.2", True)],
)  # fmt: skip
def test_versions_are_compared_by_their_numbers(one: str, other: str, newer: bool) -> None:
    assert (_numbers(one) >= _numbers(other)) is newer


# --- machines beside each other -------------------------------------------------------------------


def kinds(found: list[Finding]) -> list[tuple[str, str]]:
    return [(one.kind, one.level) for one in found]


def test_mixed_versions_are_a_note_as_long_as_they_understand_each_other() -> None:
    newer = broken("versions", blackroad="0.7.0", protocol=[1, 2])
    found = doctor_mesh.findings([machine("a", SOUND), machine("b", newer)], "a")
    assert kinds(found) == [("versions", NOTE)]
    assert found[0].text == "versions of blackroad are mixed: 0.6.0 on a, 0.7.0 on b"
    far = broken("versions", blackroad="0.9.0", protocol=[3, 4])
    found = doctor_mesh.findings([machine("a", SOUND), machine("b", far)], "a")
    assert kinds(found) == [("versions", PROBLEM)]
    assert found[0].do[0].startswith("update a: ")


def test_mixed_pythons_and_packages_are_told_with_who_has_which() -> None:
    other = broken("versions", python="3.13")
    other["packages"] = {"numpy": "1.26.4", "msgspec": "0.19.1"}
    many = [machine(name, SOUND) for name in "abcdef"]
    found = doctor_mesh.findings([*many, machine("z", other)], "a")
    assert [one.text for one in found] == [
        "versions of Python are mixed: 3.11 on 6 nodes, 3.13 on z",
        "versions of numpy are mixed: 2.1.0 on 6 nodes, 1.26.4 on z",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"node": {"full": True}}, ("disk", PROBLEM)),
        ({"node": {"draining": True}}, ("draining", NOTE)),
        ({"driver": {"descriptors": {"used": 900, "limit": 1000}}}, ("limits", PROBLEM)),
        ({"driver": {"journal": {"damaged": 2}}}, ("journal", PROBLEM)),
        ({"driver": {"gate": {"keeper": {"problem": "No space"}}}}, ("keys", PROBLEM)),
        ({"driver": {"mirror": {"dropped": 7}}}, ("redis", NOTE)),
        ({"driver": {"history": {"problem": "down", "lost": 0}}}, ("history", PROBLEM)),
        ({"driver": {"history": {"problem": "", "lost": 3}}}, ("history", NOTE)),
        ({"row": {"devices": [{"name": "GT 710", "problem": "no memory"}]}}, ("devices", PROBLEM)),
        ({"row": {"notes": ["no OpenCL driver works here"]}}, ("devices", NOTE)),
        ({"row": {"loop_lag_ms": 2_000}}, ("load", NOTE)),
        ({"row": {"state": "dead"}}, ("presence", PROBLEM)),
        ({"problem": "this daemon knows no query `checkup`"}, ("unexamined", NOTE)),
    ],
)
def test_daemons_tell_of_their_own_trouble(
    changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    facts = None if "problem" in changes else SOUND
    [found] = doctor_mesh.findings([machine("a", facts, **changes)], "a")
    assert (found.kind, found.level) == expected
    assert found.text.startswith(("a: ", "a ", "not heard any more: a"))


def test_a_file_that_changed_after_the_start_is_told() -> None:
    facts = broken("config", changed_ms=1_799_999_999_000)
    young = machine("a", facts, node={"uptime_ms": 500})
    assert doctor_mesh.findings([young], "a") == []
    old = machine("a", facts, node={"uptime_ms": 5_000})
    assert [one.kind for one in doctor_mesh.findings([old], "a")] == ["configuration"]


def test_no_coordinator_is_a_problem() -> None:
    [found] = doctor_mesh.findings([machine("a", SOUND)], None)
    assert found.kind == "coordinator"


# --- disks ----------------------------------------------------------------------------------------


def host(root: Path, mounts: str, **files: str) -> Host:
    """A machine whose mounts and disks are these; `/` in names of files is written `__`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root, environ={})


def disk(root: Path, name: str, number: str, *parts: str, bus: str = "pci") -> None:
    """A disk and its partition, as /sys shows them."""
    device = root / f"sys/devices/{bus}/block" / name
    (device / "queue").mkdir(parents=True)
    (device / "queue/rotational").write_text("0\n")
    part = device / f"{name}p1"
    part.mkdir()
    (part / "partition").write_text("1\n")
    (root / "sys/dev/block").mkdir(parents=True, exist_ok=True)
    (root / "sys/dev/block" / number).symlink_to(part)
    (root / "sys/block").mkdir(exist_ok=True)
    (root / "sys/block" / name).symlink_to(device)


ROOT_MOUNT = "1 0 8:1 / / rw,relatime - ext4 /dev/root rw\n"


@pytest.mark.parametrize(
    ("name", "bus", "card", "kind"),
    [
        ("mmcblk0", "mmc", "SD", "sd"),
        ("mmcblk0", "mmc", "MMC", "emmc"),
        ("mmcblk0", "mmc", "", "sd"),
        ("nvme0n1", "pci", "", "nvme"),
        ("sda", "usb1", "", "usb"),
        ("sdb", "pci", "", "ssd"),
    ],
)
def test_the_kind_of_a_disk_is_found(
    tmp_path: Path, name: str, bus: str, card: str, kind: str
) -> None:
    where = host(tmp_path, ROOT_MOUNT)
    disk(tmp_path, name, "8:1", bus=bus)
    if card:
        (tmp_path / f"sys/block/{name}/device").mkdir()
        (tmp_path / f"sys/block/{name}/device/type").write_text(f"{card}\n")
    told = disk_facts(Path("/nowhere/at/all"), where)
    assert (told["kind"], told["device"]) == (kind, name)
    assert told["free_bytes"] > 0


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("2 1 0:40 / /nowhere rw - tmpfs tmpfs rw", "memory"),
        ("2 1 0:41 / /nowhere rw - nfs4 server:/export rw", "network"),
        ("2 1 0:42 / / rw - overlay overlay rw", "container"),
        ("2 1 0:43 / /elsewhere rw - nfs4 server:/export rw", "unknown"),
        ("nonsense", "unknown"),
    ],
)
def test_mounts_without_a_disk_are_told_apart(tmp_path: Path, line: str, kind: str) -> None:
    told = disk_facts(Path("/"), host(tmp_path, f"{ROOT_MOUNT}{line.replace('/nowhere', '/')}\n"))
    assert told["kind"] == kind


def test_a_disk_that_was_mounted_read_only_is_told(tmp_path: Path) -> None:
    mounts = "1 0 8:1 / / rw - ext4 /dev/root ro,errors=remount-ro\n"
    assert disk_facts(Path("/"), host(tmp_path, mounts))["mounted_read_only"] is True


def test_flushes_are_timed_and_nothing_is_left(tmp_path: Path) -> None:
    told = flush_facts(tmp_path)
    assert told["problem"] == ""
    assert 0 < told["median_ms"] <= told["longest_ms"]
    assert list(tmp_path.iterdir()) == []
    assert flush_facts(tmp_path / "missing")["problem"] == "No such file or directory"


# --- servers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "version", "old"),
    [("Redis", "7.0.15", True), ("Redis", "8.8.0", False), ("Valkey", "9.1.2", False),
     ("Valkey", "8.0.5", True), ("Valkey", "8.1.4", False), ("Redis", "", False)],
)  # fmt: skip
def test_servers_with_known_holes_are_told(product: str, version: str, old: bool) -> None:
    assert is_old(product, version) is old


def test_the_history_in_a_file_is_looked_at(tmp_path: Path) -> None:
    assert [history_facts(one)["on"] for one in ("", "off", "auto", "sqlite")] == [
        False, False, False, True,
    ]  # fmt: skip
    told = history_facts(f"sqlite:///{tmp_path}/history.sqlite")
    assert (told["on"], told["state"]) == (True, "up")
    told = history_facts(f"sqlite:///{tmp_path}/missing/history.sqlite")
    assert (told["state"], "missing is no directory" in told["problem"]) == ("refused", True)


def test_a_password_does_not_come_back_in_an_error() -> None:
    url = "postgresql://me:p%40ss@db/h"
    assert _without(url, 'bad "p@ss"\nor p%40ss') == 'bad "***" or ***'


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"history_url": "auto", "redis_url": "redis://shed:6379"}, False),
        ({"redis_url": "redis://:hush@shed:6379"}, True),
        ({"history_url": "postgresql://ann:hush@shed/lab"}, True),
    ],
)
def test_only_a_file_with_a_password_holds_one(changes: dict[str, str], expected: bool) -> None:
    assert wish_of(Config(**changes), {}).secret_in_file is expected


def test_a_password_from_the_environment_is_in_no_file() -> None:
    environ = {"BLACKROAD_REDIS_URL": "redis://:hush@shed:6379"}
    assert not wish_of(Config(redis_url=environ["BLACKROAD_REDIS_URL"]), environ).secret_in_file


@pytest.mark.parametrize(
    "url",
    ["redis://:pa/ss@host:6379/0", "redis://:12/ss@host:6379/0", "redis://:p@host:99999/0"],
)
def test_an_address_of_redis_that_cannot_be_read_is_told_and_not_shown(url: str) -> None:
    told = redis_facts(url, False)
    assert told["state"] == "broken"
    assert "redis_url" in told["problem"]
    assert told["place"] == "the server of redis_url"
    [found] = doctor_machine.findings("attic", {"redis": told})
    assert not {"pa", "ss@", "12"} & set(re.split(r"[ /:]", found.text))


@pytest.mark.parametrize("password", ["12/x", "pa/ss", "p%2Fq"])
def test_a_password_as_people_write_it_is_no_part_of_the_place(password: str) -> None:
    pytest.importorskip("psycopg")
    told = history_facts(f"postgresql://me:{password}@127.0.0.1:1/events")
    assert told["place"] == "PostgreSQL at 127.0.0.1:1/events"
    assert told["state"] == "down"
    assert "127.0.0.1" in told["problem"], "that host was asked, and no other"


def test_a_mount_with_letters_beyond_ascii_is_found(tmp_path: Path) -> None:
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    green = "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"
    lines = f"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /srv/{green}\\040x rw - ext4 /dev/b rw\n"
    (proc / "mountinfo").write_text(lines, "utf-8")
    place = Path(f"/srv/{green} x/state")
    found = mount_of(place, Host(tmp_path))
    assert found is not None
    assert found.source == "/dev/b"
