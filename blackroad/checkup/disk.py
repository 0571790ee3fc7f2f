"""The disk below a directory: what it is, how much room it has, how fast it flushes.

Edge: reads /proc and /sys below a root that tests may move, and writes one small file to see how
long a flush takes.  This file must not know what is kept there.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from blackroad.discovery.machine import Host

FLUSHES: Final = 12
FLUSH_BYTES: Final = 4096
FLUSHING_S: Final = 1.5
NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.glusterfs",
     "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "beegfs", "lustre"}
)  # fmt: skip
MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
# As the kernel writes a space in the table of mounts.
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of the table of mounts."""

    point: str
    device: str
    filesystem: str
    source: str
    options: frozenset[str]


def disk_facts(path: Path, host: Host | None = None) -> dict[str, Any]:
    """What the disk is that `path` is on: its kind, its file system, its room.

    Units  `*_bytes` bytes; `kind` is "sd", "emmc", "nvme", "ssd", "disk", "usb", "memory",
           "network", "container" or "unknown".
    """
    host = host or Host()
    there = _existing(path)
    facts: dict[str, Any] = {"path": str(path), "kind": "unknown", "filesystem": "", "device": ""}
    mount = mount_of(there, host)
    if mount is not None:
        facts["filesystem"] = mount.filesystem
        facts["device"] = device_name(mount, host)
        facts["kind"] = kind_of(mount, facts["device"], host)
        facts["mounted_read_only"] = "ro" in mount.options
    with contextlib.suppress(OSError):
        told = os.statvfs(there)
        facts["size_bytes"] = told.f_blocks * told.f_frsize
        free = told.f_bfree if os.geteuid() == 0 else told.f_bavail
        facts["free_bytes"] = free * told.f_frsize
        # Some file systems have no table of files, and say 0 of 0.
        facts["free_files"] = told.f_favail if told.f_files else -1
    return facts


def _existing(path: Path) -> Path:
    """The path, or what of it is there already and can be looked at."""
    while path != path.parent:
        with contextlib.suppress(PermissionError):
            if path.exists():
                break
        path = path.parent
    return path.resolve()


def mount_of(path: Path, host: Host) -> Mount | None:
    """The mount that `path` is in: the longest that fits, and the last of equal ones."""
    best: Mount | None = None
    for line in host.text("proc/self/mountinfo").splitlines():
        before, dash, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if not dash or len(left) < 6 or len(right) < 3:
            continue
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), left[4])
        inside = path == Path(point) or Path(point) in path.parents
        if inside and (best is None or len(point) >= len(best.point)):
            options = frozenset([*left[5].split(","), *right[2].split(",")])
            best = Mount(point, left[2], right[0], right[1], options)
    return best


def device_name(mount: Mount, host: Host) -> str:
    """The name of the whole disk in /sys/block, "" where it cannot be told."""
    place = host.root / "sys/dev/block" / mount.device
    if not place.exists() and mount.source.startswith("/dev/"):
        # btrfs and others invent numbers; the name of the source leads there as well.
        place = host.root / "sys/class/block" / Path(mount.source).name
    for _ in range(8):
        try:
            real = place.resolve(strict=True)
        except (OSError, RuntimeError):
            return ""
        if (real / "partition").exists():
            real = real.parent
        below = sorted((real / "slaves").glob("*")) if (real / "slaves").is_dir() else []
        if not below:
            return real.name
        # Encrypted, logical and mirrored volumes: what lies below decides.
        place = below[0]
    return ""


def kind_of(mount: Mount, device: str, host: Host) -> str:
    """One word for what such a disk is."""
    if mount.filesystem in MEMORY or device.startswith(("zram", "ram")):
        return "memory"
    if mount.filesystem in NETWORK:
        return "network"
    if mount.filesystem in ("overlay", "aufs"):
        return "container"
    if not device:
        return "unknown"
    if device.startswith("mmcblk"):
        card = host.text(f"sys/block/{device}/device/type").upper()
        return "emmc" if card == "MMC" else "sd"
    if device.startswith("nvme"):
        return "nvme"
    with contextlib.suppress(OSError, RuntimeError):
        if "/usb" in str((host.root / "sys/block" / device).resolve()):
            return "usb"
    if device.startswith("vd"):
        # What is below a virtual machine's disk is not to be seen from within.
        return "disk"
    return "disk" if host.number(f"sys/block/{device}/queue/rotational") else "ssd"


def flush_facts(directory: Path) -> dict[str, Any]:
    """Write 4 KiB again and again and flush each time, as a journal does.

    Units  milliseconds: the median and the longest of at most 12 flushes.
    Cost   48 KiB written, at most about 1.5 s.
    """
    path = directory / f".flush-{os.getpid()}"
    took_ms: list[float] = []
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            began = time.monotonic()
            while len(took_ms) < FLUSHES and time.monotonic() - began < FLUSHING_S:
                start = time.monotonic()
                os.pwrite(fd, os.urandom(FLUSH_BYTES), 0)
                os.fdatasync(fd)
                took_ms.append((time.monotonic() - start) * 1000)
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
    except OSError as error:
        return {"problem": error.strerror or str(error)}
    took_ms.sort()
    median, longest = took_ms[len(took_ms) // 2], took_ms[-1]
    return {"problem": "", "median_ms": round(median, 2), "longest_ms": round(longest, 2)}
