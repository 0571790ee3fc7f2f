"""A support archive: all that helps to find a fault, and nothing that opens a door.

Edge: reads files and asks programs of the system.  What a task is called, does, gets or prints is
not in it.  This file must not know how secrets are recognised.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blackroad import __version__
from blackroad.cli import doctor_scrub as scrub
from blackroad.cli.doctor_here import UNIT, Here, command
from blackroad.cli.doctor_scrub import HIDDEN, Scrubber
from blackroad.errors import BlackroadError, EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from blackroad.client.client import Client

FOLDER: Final = "blackroad-support"
MEMBER_BYTES_MAX: Final = 2 * 1024 * 1024
LOG_LINES: Final = 4_000
TASKS_MAX: Final = 500
EVENTS_MAX: Final = 2_000
# What a row of a task may say: nothing that its user has written.
TASK_FIELDS: Final = ("id", "state", "priority", "durable", "pure", "attempts", "lost", "crashed",
                      "waited_ms", "deadline_in_ms", "nodes", "owner")  # fmt: skip
# Names and texts of tasks, in events.
USERS_WORDS: Final = frozenset({"called", "text", "error_text"})
_SAID: Final = re.compile(
    rf"""\b({"|".join(sorted(USERS_WORDS))})=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)"""
)
SYSTEM_FILES: Final = ("proc/meminfo", "proc/loadavg", "proc/uptime", "proc/version", "proc/swaps",
                       "proc/self/cgroup", "proc/self/limits", "proc/cgroups",
                       "proc/self/mountinfo", "proc/pressure/memory", "proc/pressure/io",
                       "proc/pressure/cpu", "etc/os-release",
                       "sys/fs/cgroup/cgroup.controllers")  # fmt: skip
BOOT_WORDS: Final = (
    "cgroup",
    "systemd.unified",
    "swapaccount",
    "psi",
    "isolcpus",
    "maxcpus",
    "mem=",
)
ABOUT: Final = """\
What this is: the state of a blackroad mesh as `blackroad doctor --bundle` saw it.

Left out on purpose: keys, tokens, passwords, values of variables of the environment, and what
tasks are called, do, get, print and return.  What looks like a secret in a log is shown as
{hidden}.  It does name machines, users, addresses, directories and packages: look through it before
you give it to somebody, it is all text.

Made {when} by blackroad {version}.
"""


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before all the work.

    Raises  UsageError, EnvironmentProblem.
    """
    if path.exists():
        raise UsageError(f"{path} is there already", hint="name a file that is not, or remove it")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory", hint="make it, or name another place")
    if not os.access(path.parent, os.W_OK):
        raise EnvironmentProblem(
            f"{path.parent} is not writable for this user", hint="name another place"
        )


def write(path: Path, members: Mapping[str, str]) -> int:
    """Write the archive, for its owner alone; return its size in bytes.

    Raises  EnvironmentProblem.
    """
    now = int(time.time())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in members.items():
            data = text.encode("utf-8", "replace")[-MEMBER_BYTES_MAX:]
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), now, 0o600
            archive.addfile(entry, io.BytesIO(data))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(packed.getvalue())
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write {path}: {error.strerror}", hint="is there room? name another place"
        ) from None
    return packed.tell()


def members(
    here: Here, report: Mapping[str, Any], lines: Sequence[str], client: Client | None
) -> dict[str, str]:
    """All files of the archive by name, without secrets."""
    scrubber = Scrubber(known_secrets(here))
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    made: dict[str, str] = {
        "README.txt": ABOUT.format(hidden=HIDDEN, when=when, version=__version__),
        "findings.txt": "\n".join(lines) + "\n",
        "environment.txt": environment_text(os.environ),
        "packages.txt": packages_text(),
        **{f"system/{name}": text for name, text in system_texts().items()},
        **{f"logs/{name}": text for name, text in log_texts().items()},
    }
    data: dict[str, Any] = {
        "doctor.json": report,
        "config.json": config_data(here),
        **(daemon_data(client) if client is not None else {}),
    }
    clean = {name: scrubber.text(text) for name, text in made.items()}
    for name, value in data.items():
        clean[name] = json.dumps(scrubber.data(value), indent=1, ensure_ascii=False) + "\n"
    return dict(sorted(clean.items()))


# --- secrets --------------------------------------------------------------------------------------


def known_secrets(here: Here) -> list[str]:
    """All secrets that this machine can be seen to have."""
    from blackroad.config_keys import KEYS

    found = scrub.of_environment(os.environ)
    # Even where the configuration as a whole is wrong.
    found += [os.environ.get(key.variable, "") for key in KEYS.values() if key.secret]
    if here.config is not None:
        for key in KEYS.values():
            value = getattr(here.config, key.attribute)
            if key.secret and value:
                found += [str(value), *scrub.of_url(str(value))]
            elif "token" in key.name and isinstance(value, Path | str) and value:
                found += scrub.of_file(Path(value))
    if here.paths is not None:
        found += scrub.of_keys(here.paths.state)
    return found


def config_data(here: Here) -> dict[str, Any]:
    """The configuration as it counts, read again from its values: comments stay at home."""
    if here.config is None:
        return {"problem": here.error.message if here.error is not None else ""}
    from blackroad.config_keys import KEYS

    told: dict[str, Any] = {"file": str(here.config.source or "")}
    for key in KEYS.values():
        value = getattr(here.config, key.attribute)
        if key.secret:
            value = "(set)" if value else ""
        elif not isinstance(value, bool | int | float | list | tuple | dict | type(None)):
            value = str(value)
        told[key.name] = value
    return told


def environment_text(environ: Mapping[str, str]) -> str:
    """Names of the variables that are set, and no value."""
    return "".join(f"{name}\n" for name in sorted(environ))


# --- the rest -------------------------------------------------------------------------------------


def packages_text() -> str:
    """Everything that is installed beside this program, as pip would list it."""
    found = set()
    for one in importlib.metadata.distributions():
        with contextlib.suppress(Exception):
            found.add(f"{one.metadata['Name']}=={one.version}")
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def system_texts() -> dict[str, str]:
    """What the system says of itself."""
    found = {}
    for name in SYSTEM_FILES:
        with contextlib.suppress(OSError):
            text = Path("/", name).read_bytes()[:MEMBER_BYTES_MAX].decode("utf-8", "replace")
            found[name.replace("/", "-") + ".txt"] = text
    with contextlib.suppress(OSError):
        # A Pi prints its serial number there.
        cpus = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        kept = [line for line in cpus if not line.lower().startswith("serial")]
        found["proc-cpuinfo.txt"] = "\n".join(kept) + "\n"
    for name, words in (
        ("addresses.txt", ("ip", "-brief", "address")),
        ("sockets.txt", ("ss", "-lntu")),
        ("time.txt", ("timedatectl",)),
        ("disks.txt", ("lsblk", "-o", "NAME,SIZE,TYPE,ROTA,RM,FSTYPE,MOUNTPOINT")),
        ("unit.txt", ("systemctl", "cat", UNIT)),
    ):
        text = without_values(command(*words))
        if text:
            found[name] = text
    with contextlib.suppress(OSError):
        # Anything may stand there; these words are what matters.
        words_of_boot = Path("/proc/cmdline").read_text("utf-8", "replace").split()
        kept = [word for word in words_of_boot if word.startswith(BOOT_WORDS)]
        found["boot-words.txt"] = "\n".join(kept) + "\n"
    return found


def without_values(unit: str) -> str:
    """A unit of systemd, with names of the variables that it sets, and no value."""
    lines = []
    for line in unit.splitlines(keepends=True):
        if line.lstrip().startswith(("Environment=", "SetCredential")):
            names = re.findall(r"""(?:^|[\s"'])([A-Za-z_][A-Za-z0-9_]*)=""", line.partition("=")[2])
            line = f"# {line.partition('=')[0].strip()}: {' '.join(names)}\n"
        lines.append(line)
    return "".join(lines)


def log_texts() -> dict[str, str]:
    """What the daemon and the kernel wrote lately, where this user may read it."""
    found = {}
    for name, words in (
        ("daemon.txt", ("journalctl", "-u", UNIT, "-n", str(LOG_LINES), "--no-pager", "-o", "cat")),
        ("kernel.txt", ("journalctl", "-k", "-p", "warning", "-n", "400", "--no-pager")),
    ):
        text = command(*words)
        if text:
            found[name] = without_users_words(text)
    return found


def without_users_words(log: str) -> str:
    """Lines of a log, be they JSON or for people, without what a user has written."""
    return "".join(_impersonal_line(line) for line in log.splitlines(keepends=True))


def _impersonal_line(line: str) -> str:
    if line.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.dumps(_impersonal(json.loads(line)), ensure_ascii=False) + "\n"
    return _SAID.sub(rf"\1={HIDDEN}", line)


def daemon_data(client: Client) -> dict[str, Any]:
    """What this machine's daemon knows of tasks and of what happened, without their content."""
    found: dict[str, Any] = {}
    with contextlib.suppress(BlackroadError):
        told = client.tasks(limit=TASKS_MAX)
        rows = [{name: row[name] for name in TASK_FIELDS if name in row} for row in told["tasks"]]
        found["tasks.json"] = {"counts": told["counts"], "silent": told["silent"], "tasks": rows}
    with contextlib.suppress(BlackroadError):
        from blackroad.client.happenings import past
        from blackroad.events import Wanted

        told_by_all = past(client, Wanted(), limit=EVENTS_MAX)
        found["events.json"] = {
            "silent": told_by_all.silent,
            "events": [
                {**msgspec.to_builtins(one), "facts": _impersonal(one.facts)}
                for one in told_by_all.events
            ],
        }
    return found


def _impersonal(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of an event without what a user has written."""
    return {name: value for name, value in facts.items() if name not in USERS_WORDS}
