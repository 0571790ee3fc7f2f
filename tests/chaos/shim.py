"""The handle on shim.c: a false clock, refused flushes and power cuts for one machine's daemon."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

from tests.chaos.machines import Lab, Machine

SOURCE = Path(__file__).with_name("shim.c")
FIELDS = (
    "real_ns", "boot_ns", "mono_ns", "rate_ppm",
    "boot_base_ns", "mono_base_ns", "flush_fails", "flushes_failed",
)  # fmt: skip


def compiler() -> str:
    """The C compiler of this machine; empty without one."""
    return shutil.which("cc") or shutil.which("gcc") or ""


class Shim:
    """What is preloaded into the processes of one machine, and the levers on it."""

    def __init__(self, lab: Lab, machine: Machine, power: bool = False) -> None:
        self._machine = machine
        self.shadow = machine.home / "shadow"
        library = lab.base / "shim.so"
        if not library.exists():
            words = [compiler(), "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
            subprocess.run([*words, "-ldl", "-lpthread"], check=True)
        control = machine.home / "shim"
        control.write_bytes(bytes(8 * len(FIELDS)))
        with control.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8 * len(FIELDS))
        machine.environ |= {"LD_PRELOAD": str(library), "CHAOS_SHIM": str(control)}
        if power:
            machine.environ |= {
                "CHAOS_STATE": str(machine.state),
                "CHAOS_SHADOW": str(self.shadow),
            }
            self.shadow.mkdir(mode=0o700)

    def set(self, **values: int) -> None:
        """Pull levers, from now on."""
        for name, value in values.items():
            struct.pack_into("q", self._memory, 8 * FIELDS.index(name), value)

    def get(self, name: str) -> int:
        """Read one of them."""
        found: int = struct.unpack_from("q", self._memory, 8 * FIELDS.index(name))[0]
        return found

    def rate(self, ppm: int) -> None:
        """Let the machine's clocks run faster (or slower) from now on, without a jump."""
        self.set(
            boot_base_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            mono_base_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            rate_ppm=ppm,
        )

    def power_cut(self) -> None:
        """Every process is gone, and so is what was not flushed."""
        self._machine.power_off()
        shutil.rmtree(self._machine.state)
        shutil.copytree(self.shadow, self._machine.state)
        os.chmod(self._machine.state, 0o700)
