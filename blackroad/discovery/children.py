"""Child processes that look at things which may hang, crash or eat memory.

Edge: starts `python -m blackroad...` so that no child outlives its parent, and runs short ones
under a time limit.  This file does not know what the children look for.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import site
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

import blackroad

_PR_SET_PDEATHSIG: Final = 1
_OUTPUT_BYTES_MAX: Final = 256 * 1024
_TAIL_BYTES: Final = 2048
_REAP_S: Final = 2.0


class Run(NamedTuple):
    """How a child ended: what it wrote, and in a few words why it did not end well."""

    lines: list[str]
    problem: str


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends.

    Only Linux can; elsewhere the parent's pipes must do.
    """
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        # The parent ended before the kernel was told.
        os._exit(1)


def limit_memory(limit_bytes: int) -> None:
    """Have this process fail where it would take more memory than that."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def private_stdout() -> IO[str]:
    """Return the real standard output; whatever libraries print goes to standard error."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "w", encoding="utf-8", errors="replace", buffering=1)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of this package with this interpreter.

    `-P` keeps a file called numpy.py in the current directory from being imported.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(extra: Mapping[str, str], base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child, which must find this very package."""
    chosen = dict(os.environ if base is None else base)
    chosen.update(extra)
    root = str(Path(blackroad.__file__).resolve().parents[1])
    if root not in {*site.getsitepackages(), site.getusersitepackages()}:
        before = chosen.get("PYTHONPATH", "")
        if root not in before.split(os.pathsep):
            chosen["PYTHONPATH"] = f"{before}{os.pathsep}{root}" if before else root
    return chosen


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child with everything it started, whatever session that is in, and collect it."""
    import psutil

    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        below = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        process.kill()
    # A process that hangs inside the kernel cannot be collected now; it dies when it can.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_REAP_S)
    for one in below:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(below, timeout=_REAP_S)


def run_limited(command_line: Sequence[str], env: Mapping[str, str], limit_ms: int) -> Run:
    """Run a child to its end, or kill it when the limit is over; both outputs are bounded."""
    try:
        process = subprocess.Popen(
            list(command_line),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
    except OSError as error:
        return Run([], f"could not be started: {error.strerror or error}")
    written, complaint = bytearray(), bytearray()
    problem = ""
    try:
        for is_output, data in _read(process, limit_ms):
            if is_output:
                written += data
            else:
                complaint += data
                del complaint[:-_TAIL_BYTES]
            if len(written) > _OUTPUT_BYTES_MAX:
                problem = "wrote more than any answer can be"
                break
        if not problem:
            problem = _ending(process.wait(timeout=0.5), bytes(complaint))
    except TimeoutError:
        problem = f"did not answer within {limit_ms / 1000:g} s"
    except subprocess.TimeoutExpired:
        # It closed its output, so the answer is whole; what it still does is not awaited.
        problem = ""
    finally:
        end(process)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return Run(written.decode("utf-8", "replace").splitlines(), problem)


def _read(process: subprocess.Popen[bytes], limit_ms: int) -> Iterator[tuple[bool, bytes]]:
    """Yield what the child writes until it has closed its standard output.

    Raises  TimeoutError when the limit is over.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    until = time.monotonic() + limit_ms / 1000
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, True)
        selector.register(process.stderr, selectors.EVENT_READ, False)
        reading = True
        while reading:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            for key, _ in selector.select(left):
                data = os.read(key.fd, 65536)
                if data:
                    yield bool(key.data), data
                else:
                    selector.unregister(key.fileobj)
                    reading = reading and not key.data
        # What it complained of last explains a bad end.
        for key, _ in selector.select(0):
            yield False, os.read(key.fd, 65536)


def _ending(status: int, complaint: bytes) -> str:
    if status == 0:
        return ""
    lines = complaint.decode("utf-8", "replace").strip().splitlines()
    last = f": {lines[-1].strip()}" if lines else ""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"crashed with {signal.Signals(-status).name}{last}"
        return f"crashed with signal {-status}{last}"
    return f"ended with status {status}{last}"
