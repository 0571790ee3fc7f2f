"""What this machine has: known at once by `quick`, found out by a child process.

Edge.  The daemon keeps serving while the child tries drivers (`probe_find.py`): `start_probe`
returns a handle for its poll loop.  This file imports nothing that a daemon would pay for at
its start, and neither pyopencl, nor numpy, nor pynvml at any time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

import blackroad
from blackroad.capabilities import WORD_MAX, Capabilities, printable
from blackroad.discovery import machine
from blackroad.discovery.children import (
    command,
    die_with_parent,
    end,
    environment,
    private_stdout,
)
from blackroad.discovery.machine import Host
from blackroad.limits import LABELS_MAX, PROGRAMS_MAX

PROBE_MS: Final = 60_000
GRACE_MS: Final = 5_000
_OUTPUT_BYTES_MAX: Final = 64 * 1024

# Programs that tasks ask for often; the configuration adds others.
PROGRAMS: Final = (
    "bash", "blender", "cargo", "clang", "cmake", "convert", "curl", "docker", "exiftool",
    "ffmpeg", "ffprobe", "g++", "gcc", "gfortran", "git", "gnuplot", "go", "gs", "handbrakecli",
    "inkscape", "java", "julia", "magick", "make", "mpicc", "mpiexec", "mpirun", "mpv", "node",
    "nvcc", "nvidia-smi", "octave", "openscad", "pandoc", "pdflatex", "perl", "podman", "pypy3",
    "python3", "qemu-aarch64-static", "R", "rsync", "ruby", "rustc", "sox", "ssh", "tesseract",
    "uv", "whisper-cli", "wget", "x264", "xz", "zstd",
)  # fmt: skip


class Findings(Struct, frozen=True):
    """What a probe found; `environment` must be set for each task process on this machine."""

    capabilities: Capabilities
    environment: dict[str, str] = {}
    took_ms: int = 0
    complete: bool = True


# --- at once ------------------------------------------------------------------------------------


def quick(
    name: str = "",
    labels: Mapping[str, str] | None = None,
    programs: Sequence[str] = (),
    host: Host | None = None,
) -> Capabilities:
    """Return what files tell, without devices and speeds; `programs` are looked for as well.

    Cost  a few milliseconds, no process.
    """
    host = host or Host()
    minor, full, implementation = machine.python_facts()
    wanted = tuple(dict.fromkeys((*PROGRAMS, *programs)))
    found = machine.programs(host, wanted)
    # Programs that somebody configured come before those of our own list.
    kept = sorted(sorted(found, key=lambda item: item not in programs)[:PROGRAMS_MAX])
    pairs = list((labels or {}).items())[:LABELS_MAX]
    return Capabilities(
        name=printable(name or os.uname().nodename.split(".")[0] or "unnamed", WORD_MAX),
        arch=printable(host.arch, WORD_MAX),
        page_bytes=host.page_bytes,
        cores=machine.cores(host),
        memory_bytes=machine.memory_bytes(host),
        python=minor,
        python_full=printable(full, WORD_MAX),
        implementation=printable(implementation, WORD_MAX),
        os=host.os_name,
        libc=machine.libc_name(host),
        model=host.model,
        programs=tuple(printable(item, WORD_MAX) for item in kept),
        labels={printable(key, WORD_MAX): printable(text, WORD_MAX) for key, text in pairs},
        packages={"blackroad": blackroad.__version__},
        byte_order=sys.byteorder,
    )


# --- for the daemon -----------------------------------------------------------------------------


class Probe:
    """A probe under way, for a poll loop.

    Wait until `fileno()` is readable, then call `poll()`; call it from time to time as well, so
    that a probe which hangs is ended.  When it returns True, `finish()` has the answer.
    """

    def __init__(
        self, process: subprocess.Popen[bytes] | None, known: Capabilities, limit_ms: int
    ) -> None:
        self._process = process
        self._known = known
        self._output = bytearray()
        self._started = time.monotonic()
        self._until = self._started + (limit_ms + GRACE_MS) / 1000
        self._trouble = "" if process else "could not be started"
        if process is not None and process.stdout is not None:
            os.set_blocking(process.stdout.fileno(), False)

    def fileno(self) -> int:
        """Return the descriptor to wait for, or -1 when there is nothing left to wait for."""
        stream = self._process.stdout if self._process else None
        return -1 if stream is None or stream.closed else stream.fileno()

    def poll(self) -> bool:
        """Take in what was written; never waits.  True when the probe has ended."""
        if self.fileno() < 0:
            return True
        try:
            while data := os.read(self.fileno(), 65536):
                self._output += data
                if len(self._output) > _OUTPUT_BYTES_MAX:
                    self._stop("wrote too much")
                    return True
        except BlockingIOError:
            if time.monotonic() < self._until:
                return False
            self._stop("did not end in time")
            return True
        self._stop("")
        return True

    def finish(self) -> Findings:
        """Return what was found, or what `quick` knew and a note where the probe failed."""
        if not self.poll():
            self._stop("was ended early")
        if not self._trouble:
            try:
                return msgspec.json.decode(bytes(self._output), type=Findings)
            except (msgspec.MsgspecError, ValueError) as error:
                self._trouble = f"gave no answer ({printable(str(error), 100)})"
        note = f"the hardware probe {self._trouble}: no devices are known"
        caps = msgspec.structs.replace(self._known, notes=(note,))
        took_ms = int((time.monotonic() - self._started) * 1000)
        return Findings(caps, {}, took_ms, complete=False)

    def close(self) -> None:
        """End the probe, whatever it is doing."""
        if self.fileno() >= 0:
            self._stop("was ended early")

    def _stop(self, trouble: str) -> None:
        self._trouble = trouble
        if self._process is not None:
            end(self._process)
            if self._process.stdout is not None:
                self._process.stdout.close()


def start_probe(
    name: str = "",
    labels: Mapping[str, str] | None = None,
    programs: Sequence[str] = (),
    limit_ms: int = PROBE_MS,
    scratch: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Probe:
    """Start the probe in a child process and return at once.

    `scratch` is a directory of ours for links to the drivers that work, needed only where one
    driver ends every program that loads it.  `env` replaces this process's environment.
    """
    known = quick(name, labels, programs)
    arguments = ["--json", "--parent", str(os.getpid()), "--limit-ms", str(limit_ms)]
    # With "=", a value may begin with a dash.
    arguments += [f"--name={known.name}", f"--labels={json.dumps(dict(labels or {}))}"]
    arguments += [f"--program={program}" for program in programs]
    if scratch is not None:
        arguments.append(f"--scratch={scratch}")
    try:
        process = subprocess.Popen(
            command("blackroad.discovery.probe", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment({}, env),
            start_new_session=True,
        )
    except (OSError, ValueError):
        return Probe(None, known, limit_ms)
    return Probe(process, known, limit_ms)


def probe_now(
    timeout_ms: int = PROBE_MS,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    programs: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Findings:
    """Probe and wait for the answer; for command lines, not for daemons."""
    import select

    probe = start_probe(name, labels, programs, timeout_ms, env=env)
    while not probe.poll():
        select.select([probe.fileno()], [], [], 0.5)
    return probe.finish()


# --- inside the child ---------------------------------------------------------------------------


def main() -> int:
    """Print what was found: one JSON line, or a few lines for a person."""
    import argparse

    from blackroad.discovery.probe_find import find

    parser = argparse.ArgumentParser(prog="python -m blackroad.discovery.probe")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--parent", type=int, default=0)
    parser.add_argument("--limit-ms", type=int, default=PROBE_MS)
    parser.add_argument("--name", default="")
    parser.add_argument("--labels", type=json.loads, default={})
    parser.add_argument("--program", action="append", default=[])
    parser.add_argument("--scratch", type=Path, default=None)
    options = parser.parse_args()
    if options.parent:
        die_with_parent(options.parent)
    out = private_stdout()
    known = quick(options.name, options.labels, options.program)
    findings = find(known, limit_ms=options.limit_ms, scratch=options.scratch)
    if options.json:
        out.write(msgspec.json.encode(findings).decode() + "\n")
    else:
        out.write(_for_people(findings))
    out.flush()
    return 0


def _for_people(findings: Findings) -> str:
    caps = findings.capabilities
    lines = [f"{caps.name}: {caps.model or caps.arch}, {caps.cores} cores, {caps.os}"]
    for device in caps.devices:
        state = device.problem or ("software" if device.software else "works")
        lines.append(f"  {device.kind} {device.name} ({device.platform}): {state}")
    lines += [f"  {name}: {speed:g}" for name, speed in sorted(caps.speeds.items())]
    lines += [f"  note: {note}" for note in caps.notes]
    lines += [f"  {key}={value}" for key, value in sorted(findings.environment.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
