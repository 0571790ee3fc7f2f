"""Try, as a task of the service would, what must work there and what must not.

Run by the installed Python inside the hardened unit; prints one JSON object.
"""

import ctypes
import json
import mmap
import os
import pty
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def works(action: Callable[[], Any]) -> bool:
    try:
        action()
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def set_user_id(path: Path) -> None:
    path.write_text("", encoding="utf-8")
    path.chmod(stat.S_ISUID | 0o755)
    if not path.stat().st_mode & stat.S_ISUID:
        raise PermissionError


def set_clock() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.settimeofday(ctypes.create_string_buffer(16), None) != 0:
        raise OSError(ctypes.get_errno(), "settimeofday")


def compute() -> int:
    """Compile and run a kernel; returns 6, or 0 where there is no OpenCL device."""
    import numpy as np
    import pyopencl as cl

    platforms = cl.get_platforms()
    if not platforms:
        return 0
    context = cl.Context(platforms[0].get_devices()[:1])
    queue = cl.CommandQueue(context)
    text = "__kernel void twice(__global int *x) { x[get_global_id(0)] *= 2; }"
    program = cl.Program(context, text).build()
    host = np.full(4, 3, dtype=np.int32)
    flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
    device = cl.Buffer(context, flags, hostbuf=host)
    program.twice(queue, (4,), None, device)
    cl.enqueue_copy(queue, host, device)
    return int(host[0])


def main() -> None:
    executable = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    allowed = {
        "state": lambda: Path("probe").write_text("x", encoding="utf-8"),
        "cache": lambda: Path(os.environ["XDG_CACHE_HOME"], "x").write_text("x", encoding="utf-8"),
        "tmp": lambda: Path("/tmp/x").write_text("x", encoding="utf-8"),
        "shared memory": lambda: Path("/dev/shm/x").write_text("x", encoding="utf-8"),
        "null device": lambda: Path("/dev/null").write_text("x", encoding="utf-8"),
        "terminal": pty.openpty,
        "just-in-time code": lambda: mmap.mmap(-1, 4096, prot=executable),
        "memory of the machine": lambda: Path("/proc/meminfo").read_text(encoding="utf-8"),
        "multicast": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "user namespace": lambda: subprocess.run(["unshare", "-Ur", "true"], check=True),
    }
    refused = {
        "write the system": lambda: Path("/usr/x").write_text("x", encoding="utf-8"),
        "write its own program": lambda: Path(sys.prefix, "x").write_text("x", encoding="utf-8"),
        "write configuration": lambda: Path("/etc/blackroad/x").write_text("x", encoding="utf-8"),
        "see homes": lambda: os.listdir("/root"),
        "make a setuid file": lambda: set_user_id(Path("/tmp/setuid")),
        "raw packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "kernel log": lambda: os.open("/dev/kmsg", os.O_RDONLY),
        "kernel settings": lambda: Path("/proc/sys/vm/swappiness").write_text(
            "1", encoding="utf-8"
        ),
        "set the clock": set_clock,
        "become root": lambda: os.setuid(0),
        "other users' processes": lambda: os.listdir("/proc/1"),
    }
    facts = {
        "uid": os.getuid(),
        "cannot": [name for name, action in allowed.items() if not works(action)],
        "can": [name for name, action in refused.items() if works(action)],
        "computed": compute(),
        "kernels kept": os.path.isdir(os.environ["POCL_CACHE_DIR"]),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
