"""The slow half of the probe: try every driver, measure, and say what could be improved.

Edge; runs in the child that `probe.py` starts.  Drivers hang, crash and lie, so each one is
tried in a process of its own, under a time limit, with a kernel whose numbers are known; what
fails becomes a `Device` with a `problem`, and the probe goes on.  This file imports neither
pyopencl, nor numpy, nor pynvml.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

import blackroad
from blackroad.capabilities import (
    NOTE_MAX,
    NOTES_MAX,
    WORD_MAX,
    Capabilities,
    Device,
    encode,
    printable,
)
from blackroad.discovery import machine, probe_nvidia, probe_opencl
from blackroad.discovery.children import command, environment, run_limited
from blackroad.discovery.devices import Seen, merge
from blackroad.discovery.machine import Host
from blackroad.discovery.probe import PROBE_MS, Findings, quick
from blackroad.errors import LocalProtocolError

# What task processes are told as well, see `kernels/opencl.py`.
CHOICE_VARIABLE: Final = "BLACKROAD_OPENCL_DEVICE"
DRIVER_MS: Final = 20_000
SMALL_CHILD_MS: Final = 10_000

_PACKAGES: Final = ("numpy", "scipy", "pyopencl", "pocl-binary-distribution", "cloudpickle",
                    "pyzmq", "msgspec", "mpi4py", "torch")  # fmt: skip
_MESA_WITH_V3D: Final = {"debian": 13.0, "raspbian": 13.0, "ubuntu": 25.04}


def find(
    known: Capabilities,
    host: Host | None = None,
    limit_ms: int = PROBE_MS,
    scratch: Path | None = None,
) -> Findings:
    """Try every driver and measure; runs for seconds, in a process of its own."""
    host = host or Host()
    started = time.monotonic()
    budget = _Budget(started + limit_ms / 1000)
    extra = machine.cache_environment(host)
    if host.is_pi and host.render_nodes() and "RUSTICL_ENABLE" not in host.environ:
        extra["RUSTICL_ENABLE"] = "v3d"
    base = environment(extra, host.environ)
    notes: list[str] = []
    speeds = _speeds(base, budget, notes)
    nvidia = _nvidia(host, base, budget, notes)
    # Who switches it off may have a driver that hangs: none of them is so much as loaded.
    off = host.environ.get(CHOICE_VARIABLE) == "off"
    opencl, drivers = ([], []) if off else _opencl(host, base, budget)
    merged = merge(opencl, nvidia)
    notes += [] if off else advice(host, drivers, [device for device, _ in merged])
    extra |= _driver_environment(drivers, scratch, notes)
    for number, (_, gflops) in enumerate(merged):
        if gflops > 0:
            speeds[f"opencl:{number}"] = _two_digits(gflops)
    caps = msgspec.structs.replace(
        known,
        devices=tuple(device for device, _ in merged),
        speeds=speeds,
        notes=tuple(printable(note, NOTE_MAX) for note in notes[:NOTES_MAX]),
        packages=_packages(),
    )
    return Findings(_fitted(caps), extra, int((time.monotonic() - started) * 1000))


class Driver(NamedTuple):
    """How one OpenCL driver behaved; `icd` is None for "whatever the loader finds itself"."""

    icd: Path | None
    bundled: bool
    seen: tuple[Seen, ...] = ()
    failed: str = ""
    problem: str = ""


class _Budget:
    """The time left for everything together."""

    def __init__(self, until: float) -> None:
        self._until = until

    def share_ms(self, wished_ms: int) -> int:
        return max(0, min(wished_ms, int((self._until - time.monotonic()) * 1000)))


def _speeds(base: Mapping[str, str], budget: _Budget, notes: list[str]) -> dict[str, float]:
    line = command("blackroad.discovery.probe_speed", "--parent", str(os.getpid()))
    run = run_limited(line, base, budget.share_ms(SMALL_CHILD_MS))
    speeds: dict[str, float] = {}
    problem = run.problem
    for message in _messages(run.lines):
        measured = message.get("speeds", {})
        speeds |= {key: _two_digits(float(value)) for key, value in measured.items()}
        problem = problem or str(message.get("problem", ""))
    if problem:
        notes.append(f"NumPy does not run here: {problem}")
    return speeds


def _nvidia(host: Host, base: Mapping[str, str], budget: _Budget, notes: list[str]) -> list[Seen]:
    """Ask NVIDIA's library, but only where a driver is loaded."""
    signs = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")
    if not any(host.glob(sign) for sign in signs):
        return []
    line = command("blackroad.discovery.probe_nvidia", "--parent", str(os.getpid()))
    run = run_limited(line, base, budget.share_ms(SMALL_CHILD_MS))
    cards: list[Seen] = []
    for message in _messages(run.lines):
        if message.get("failed") == probe_nvidia.NO_PYNVML:
            notes.append("an NVIDIA driver is loaded; `pip install nvidia-ml-py` shows its cards")
        elif message.get("failed"):
            notes.append(f"NVIDIA driver: {message.get('text', '')}")
        elif seen := _seen(message, "cuda"):
            cards.append(seen)
    if run.problem:
        notes.append(f"NVIDIA driver: the library {run.problem}")
    return cards


def _opencl(
    host: Host, base: Mapping[str, str], budget: _Budget
) -> tuple[list[Seen], list[Driver]]:
    drivers = []
    files: list[tuple[Path | None, bool]] = [*driver_files(host)]
    for icd, bundled in files or [(None, False)]:
        driver = _try_driver(icd, bundled, base, budget)
        drivers.append(driver)
        if driver.failed == probe_opencl.NO_PYOPENCL:
            break
    seen: list[Seen] = []
    for driver in drivers:
        seen += driver.seen
        if driver.problem and not driver.seen:
            seen.append(_nameless(driver))
    return seen, drivers


def driver_files(host: Host) -> list[tuple[Path, bool]]:
    """Return the files that name OpenCL drivers, and whether pyopencl brought them along.

    Loaders read /etc/OpenCL/vendors, or what OCL_ICD_VENDORS names: a directory or one file.
    pyopencl's own loader also reads the directory it lies in, where PoCL from pip puts its
    file, but not when OCL_ICD_VENDORS names a file.
    """
    chosen = host.environ.get("OCL_ICD_VENDORS", "")
    if chosen.endswith(".icd"):
        return [(Path(chosen), False)] if Path(chosen).is_file() else []
    if chosen:
        found = sorted(Path(chosen).glob("*.icd"))
    else:
        found = host.glob("etc/OpenCL/vendors/*.icd")
        if host.real:
            found += sorted(Path(sys.prefix, "etc/OpenCL/vendors").glob("*.icd"))
    bundled: list[Path] = []
    spec = importlib.util.find_spec("pyopencl") if host.real else None
    for location in (spec.submodule_search_locations or []) if spec else []:
        bundled += sorted(Path(location, ".libs").glob("*.icd"))
        bundled += sorted(Path(location).parent.glob("pyopencl.libs/*.icd"))
    pairs = [(path, False) for path in found] + [(path, True) for path in bundled]
    unique = {path.resolve(): (path, is_bundled) for path, is_bundled in reversed(pairs)}
    return [pair for pair in pairs if pair in unique.values()]


def _try_driver(
    icd: Path | None, bundled: bool, base: Mapping[str, str], budget: _Budget
) -> Driver:
    """Run the child until each device was tried, or ended it."""
    env = dict(base)
    if icd is not None:
        env["OCL_ICD_VENDORS"] = str(icd)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            # The other common loader takes libraries, not the files that name them.
            env["OCL_ICD_FILENAMES"] = icd.read_text().strip().splitlines()[0]
    seen: list[Seen] = []
    skip, failed, problem = 0, "", ""
    while True:
        limit_ms = budget.share_ms(DRIVER_MS)
        if limit_ms <= 0:
            problem = "was not tried: no time was left"
            break
        line = command("blackroad.discovery.probe_opencl", "--parent", str(os.getpid()))
        run = run_limited([*line, "--skip", str(skip)], env, limit_ms)
        first, trying, tried = not seen, -1, set()
        for message in _messages(run.lines):
            failed = failed or str(message.get("failed", ""))
            found = _seen(message, "opencl") if first else None
            if found:
                seen.append(found)
            trying = int(message.get("trying", trying))
            number = int(message.get("tried", -1))
            if 0 <= number < len(seen):
                tried.add(number)
                seen[number].problem = str(message.get("problem", ""))
                seen[number].gflops = float(message.get("gflops", 0.0))
        problem = run.problem
        if not problem or trying in tried or not 0 <= trying < len(seen):
            break
        # This device ended the child: those after it get a child of their own.
        seen[trying].problem, problem, skip = problem, "", trying + 1
        if skip >= len(seen):
            break
    for number in range(skip, len(seen)) if problem else ():
        seen[number].problem = seen[number].problem or problem
    return Driver(icd, bundled, tuple(seen), failed, problem)


def _nameless(driver: Driver) -> Seen:
    """Describe a driver that ended the child before it named a device."""
    name = driver.icd.stem if driver.icd else "unknown driver"
    return Seen("accelerator", name, 0, 0, False, name, "", 0, "", 0, problem=driver.problem)


def _messages(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Return the JSON objects among the lines; a child that crashed may have cut its last."""
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict):
                found.append(message)
    return found


def _seen(message: Mapping[str, Any], backend: str) -> Seen | None:
    try:
        seen = msgspec.convert(message.get("seen"), Seen)
    except msgspec.ValidationError:
        return None
    seen.backend = backend
    seen.problem = str(message.get("problem", ""))
    return seen


def advice(host: Host, drivers: Sequence[Driver], devices: Sequence[Device]) -> list[str]:
    """Return what the owner of this machine could do to have its devices used."""
    if any(driver.failed == probe_opencl.NO_PYOPENCL for driver in drivers):
        return ["OpenCL devices are not used: `pip install pyopencl` in blackroad's Python"]
    notes = []
    usable = [device for device in devices if not device.problem]
    has_gpu = any(device.kind == "gpu" for device in usable)
    nodes = host.render_nodes()
    closed = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if closed and not has_gpu:
        notes.append(
            f"this user may not open {closed[0].name}: "
            "`sudo usermod -aG render,video USER`, then log in again or restart the service"
        )
    if host.is_pi and nodes and not has_gpu and not closed:
        notes.append(_pi_advice(host, drivers))
    elif not any(device.backend == "opencl" for device in usable):
        notes.append(f"no OpenCL driver works here: {_install(host, 'pocl-opencl-icd')}")
    return notes


def _pi_advice(host: Host, drivers: Sequence[Driver]) -> str:
    mesa = any(driver.icd is not None and "rusticl" in driver.icd.name for driver in drivers)
    if not _mesa_has_v3d(host):
        install = _install(host, "pocl-opencl-icd")
        return (
            f"the Mesa of {host.os_name or 'this system'} has no OpenCL for the Pi's GPU (Debian "
            f"13 has); for OpenCL on the processor: {install}"
        )
    if not mesa:
        return f"the Pi's GPU has no OpenCL driver: {_install(host, 'mesa-opencl-icd')}"
    return "Mesa's OpenCL driver is installed but shows no v3d device: `clinfo` may say why"


def _mesa_has_v3d(host: Host) -> bool:
    """Tell whether this distribution builds Mesa's OpenCL with the Pi's driver."""
    oldest = _MESA_WITH_V3D.get(host.os_release.get("ID", ""))
    try:
        return oldest is not None and float(host.os_release.get("VERSION_ID", "0")) >= oldest
    except ValueError:
        return False


def _install(host: Host, package: str) -> str:
    family = f"{host.os_release.get('ID', '')} {host.os_release.get('ID_LIKE', '')}".split()
    if {"debian", "ubuntu", "raspbian"} & set(family):
        return f"`sudo apt install {package}`"
    return "install one (PoCL runs OpenCL on any processor)"


def _driver_environment(
    drivers: Sequence[Driver], scratch: Path | None, notes: list[str]
) -> dict[str, str]:
    """Keep tasks away from drivers that end or hang every program that only lists devices."""
    bad = [driver for driver in drivers if driver.icd and driver.problem and not driver.seen]
    good = [driver.icd for driver in drivers if driver.icd and driver.seen and not driver.bundled]
    bundled = [driver.icd for driver in drivers if driver.icd and driver.seen and driver.bundled]
    if not bad:
        return {}
    if len(good) + len(bundled) <= 1:
        return {"OCL_ICD_VENDORS": str((good + bundled)[0]) if good + bundled else "/nonexistent"}
    if scratch is not None:
        folder = scratch / "opencl-drivers"
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in folder.glob("*.icd"):
                old.unlink()
            for number, icd in enumerate(good):
                (folder / f"{number}-{icd.name}").symlink_to(icd.resolve())
            return {"OCL_ICD_VENDORS": str(folder)}
    names = ", ".join(str(driver.icd) for driver in bad)
    notes.append(f"programs that use OpenCL may hang or crash here: move {names} away")
    return {}


def _two_digits(value: float) -> float:
    """Round so that two starts of one machine mostly describe it alike."""
    if not math.isfinite(value) or value <= 0:
        return 0.0
    return float(f"{min(value, 1e15):.2g}")


def _fitted(caps: Capabilities) -> Capabilities:
    """Leave out the least important parts until others may read the description."""
    slimmer: tuple[dict[str, Any], ...] = (
        {},
        {"notes": caps.notes[:2]},
        {"notes": (), "packages": {}},
        {"notes": (), "packages": {}, "programs": caps.programs[:32]},
        {"notes": (), "packages": {}, "programs": (), "labels": {}, "devices": caps.devices[:8]},
    )
    for changes in slimmer:
        fitted = msgspec.structs.replace(caps, **changes)
        with contextlib.suppress(LocalProtocolError):
            encode(fitted)
            return fitted
    return quick()


def _packages() -> dict[str, str]:
    found = {"blackroad": blackroad.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, OSError):
            found[package] = printable(importlib.metadata.version(package), WORD_MAX)
    return found
