"""Facts about this machine that files tell: processor, memory, system, sensors.

Edge: reads /proc, /sys, /etc and /dev below a root that tests may move.  Starts no process and
imports nothing heavy; OpenCL and NVIDIA are the business of `probe.py` and its children.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from blackroad.capabilities import normal_arch, printable

_FILE_BYTES_MAX: Final = 64 * 1024
_CGROUP_DEPTH_MAX: Final = 64
# Raspberry Pi firmware: now under voltage, frequency capped, throttled, soft temperature limit.
_PI_UNDER_VOLTAGE: Final = 0x1
_PI_THROTTLED: Final = 0x2 | 0x4 | 0x8


@dataclass(frozen=True)
class Host:
    """Where to look: the file system's root, and what cannot be read below it."""

    root: Path = Path("/")
    machine: str = field(default_factory=platform.machine)
    page_bytes: int = field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE"))
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def text(self, path: str) -> str:
        """Return what a small file says, without surrounding space; "" where it cannot be read."""
        try:
            with open(self.root / path, "rb") as file:
                raw = file.read(_FILE_BYTES_MAX)
        except (OSError, ValueError):
            return ""
        return raw.decode("utf-8", "replace").strip(" \t\r\n\0")

    def number(self, path: str) -> int | None:
        """Return the whole number a file holds, or None."""
        with contextlib.suppress(ValueError):
            return int(self.text(path), 10)
        return None

    def glob(self, pattern: str) -> list[Path]:
        """Return the paths below the root that match, sorted."""
        try:
            return sorted(self.root.glob(pattern))
        except OSError:
            return []

    def below(self, path: Path) -> str:
        """Return `path` as `text` and `number` take it."""
        return str(path.relative_to(self.root))

    @property
    def real(self) -> bool:
        """True unless a test moved the root."""
        return self.root == Path("/")

    @property
    def arch(self) -> str:
        """The architecture in the project's one spelling."""
        return normal_arch(self.machine)

    @cached_property
    def model(self) -> str:
        """The board, as its device tree names it; "" on a PC."""
        return printable(self.text("proc/device-tree/model"))

    @property
    def is_pi(self) -> bool:
        """True on a Raspberry Pi of any model."""
        return self.model.startswith("Raspberry Pi")

    @cached_property
    def os_release(self) -> dict[str, str]:
        """The words of /etc/os-release: ID, VERSION_ID, PRETTY_NAME."""
        text = self.text("etc/os-release") or self.text("usr/lib/os-release")
        pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
        return {key.strip(): value.strip().strip("\"'") for key, value in pairs}

    @property
    def os_name(self) -> str:
        """The system as a person would say it."""
        return printable(self.os_release.get("PRETTY_NAME", "") or platform.system())

    def render_nodes(self) -> list[Path]:
        """Return the device files through which programs reach a GPU."""
        return self.glob("dev/dri/renderD*")


def memory_bytes(host: Host) -> int:
    """Return the RAM this process may use: what is built in, or less where a cgroup says so."""
    total = 0
    for line in host.text("proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            with contextlib.suppress(ValueError, IndexError):
                total = int(line.split()[1]) * 1024
            break
    if not total and host.real:
        import psutil

        total = int(psutil.virtual_memory().total)
    limits = [total] if total else []
    for version, path in _cgroups(host, "memory"):
        names = ("memory.limit_in_bytes",) if version == 1 else ("memory.max", "memory.high")
        found = (host.number(f"{path}/{name}") for name in names)
        limits += [limit for limit in found if limit]
    return min(limits, default=0)


def cores(host: Host) -> int:
    """Return how many processors this process may keep busy, at least 1.

    Precision  a cgroup's share of 1.5 processors counts as 1.
    """
    count = _online(host)
    if host.real and hasattr(os, "sched_getaffinity"):
        count = min(count, len(os.sched_getaffinity(0)))
    for version, path in _cgroups(host, "cpu"):
        if version == 1:
            quota = host.number(f"{path}/cpu.cfs_quota_us") or 0
            period = host.number(f"{path}/cpu.cfs_period_us") or 0
        else:
            words = host.text(f"{path}/cpu.max").split()
            digits = len(words) == 2 and all(word.isdecimal() for word in words)
            quota, period = (int(words[0]), int(words[1])) if digits else (0, 0)
        if quota > 0 and period > 0:
            count = min(count, quota // period)
    return max(count, 1)


def libc_name(host: Host) -> str:
    """Return the C library and its version, such as "glibc 2.36"."""
    if host.real:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            found = os.confstr("CS_GNU_LIBC_VERSION")
            if found:
                return printable(found, 64)
    return "musl" if host.glob("lib/ld-musl-*") else ""


def programs(host: Host, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of `names` stand on the PATH, sorted.

    Cost  a few file look-ups per name.
    """
    path = host.environ.get("PATH", os.defpath)
    if not host.real:
        parts = [str(host.root) + part for part in path.split(os.pathsep) if part.startswith("/")]
        path = os.pathsep.join(parts)
    return tuple(sorted({name for name in names if shutil.which(name, path=path)}))


def cache_environment(host: Host) -> dict[str, str]:
    """Return where drivers may keep compiled kernels, for a service that has no home.

    systemd names the directory in CACHE_DIRECTORY; what the user has set stays.
    """
    directory = host.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if not directory:
        return {}
    names = ("XDG_CACHE_HOME", "POCL_CACHE_DIR", "MESA_SHADER_CACHE_DIR")
    return {name: directory for name in names if name not in host.environ}


def sensors(host: Host | None = None) -> dict[str, float | bool]:
    """Return what the machine says of its health: only the keys that it knows.

    "temperature_c" (the hottest part), "throttled" (slowed down at this moment),
    "under_voltage", "battery_percent", "on_battery".

    Cost  a few small files, no process; for every few seconds, not for every message.
    """
    host = host or _REAL
    found: dict[str, float | bool] = {}
    heat = [
        value / 1000
        for path in host.glob("sys/class/thermal/thermal_zone*/temp")
        if (value := host.number(host.below(path))) is not None and -55_000 < value < 200_000
    ]
    if heat:
        found["temperature_c"] = round(max(heat), 1)
    throttled = _throttled(host)
    if throttled is not None:
        found["throttled"] = throttled
    pi = "sys/devices/platform/soc*"
    for path in host.glob(f"{pi}/*firmware/get_throttled") + host.glob(f"{pi}firmware/get_*"):
        with contextlib.suppress(ValueError):
            bits = int(host.text(host.below(path)), 16)
            found["under_voltage"] = bool(bits & _PI_UNDER_VOLTAGE)
            found["throttled"] = bool(bits & _PI_THROTTLED) or bool(throttled)
    found.update(_battery(host))
    return found


def _throttled(host: Host) -> bool | None:
    """Tell whether the kernel holds a processor's frequency down because of heat."""
    states = [
        host.number(host.below(path.with_name("cur_state"))) or 0
        for path in host.glob("sys/class/thermal/cooling_device*/type")
        if "cpu" in host.text(host.below(path)).lower()
    ]
    return any(state > 0 for state in states) if states else None


def _battery(host: Host) -> dict[str, float | bool]:
    levels, discharging = [], False
    for path in host.glob("sys/class/power_supply/*/type"):
        # A wireless mouse has a battery too, of scope "Device".
        scope = host.text(host.below(path.with_name("scope")))
        if host.text(host.below(path)) != "Battery" or scope == "Device":
            continue
        level = host.number(host.below(path.with_name("capacity")))
        if level is not None and 0 <= level <= 100:
            levels.append(level)
        discharging |= host.text(host.below(path.with_name("status"))) == "Discharging"
    return {"battery_percent": float(min(levels)), "on_battery": discharging} if levels else {}


def _online(host: Host) -> int:
    """Count the processors in a list such as "0-3,6"."""
    text = host.text("sys/devices/system/cpu/online")
    count = 0
    for part in text.split(","):
        first, dash, last = part.partition("-")
        with contextlib.suppress(ValueError):
            count += int(last) - int(first) + 1 if dash else (1 if int(first) >= 0 else 0)
    if count < 1:
        count = (os.cpu_count() if host.real else None) or 1
    return count


def _cgroups(host: Host, controller: str) -> Iterator[tuple[int, str]]:
    """Yield (version, directory) of each cgroup around this process, innermost first."""
    for line in host.text("proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        if parts[0] == "0" and not parts[1]:
            version, base = 2, "sys/fs/cgroup"
        elif controller in parts[1].split(","):
            version, base = 1, f"sys/fs/cgroup/{controller}"
        else:
            continue
        names = [name for name in parts[2].split("/") if name not in ("", ".", "..")]
        for depth in range(min(len(names), _CGROUP_DEPTH_MAX), -1, -1):
            yield version, "/".join([base, *names[:depth]])


def python_facts() -> tuple[str, str, str]:
    """Return (minor version, full version, implementation) of this interpreter."""
    version = sys.version_info
    return f"{version[0]}.{version[1]}", platform.python_version(), platform.python_implementation()


_REAL: Final = Host()
