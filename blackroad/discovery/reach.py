"""Whether ports of other machines can be connected, and what that says of the way there.

Edge.  Connects plain TCP and says nothing; who answers is found out elsewhere.  This file must
not know peers, keys or ZeroMQ.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

Target = tuple[str, int]

OPEN: Final = "open"
REFUSED: Final = "refused"
SILENT: Final = "no answer"
NO_ROUTE: Final = "no route"
ABSENT: Final = "no machine there"
NO_NAME: Final = "unknown name"
# One SYN may be lost: the kernel repeats it after a second.
LIMIT_S: Final = 1.4
TARGETS_MAX: Final = 512
_NFT_S: Final = 2.0


def reach(targets: Iterable[Target], limit_s: float = LIMIT_S) -> dict[Target, str]:
    """Connect to all targets at once; return what came of each.

    Cost  at most `limit_s`, and what the resolver takes for names.
    """
    results: dict[Target, str] = {}
    waiting: dict[int, tuple[Target, socket.socket]] = {}
    poller = select.poll()
    for target in list(dict.fromkeys(targets))[:TARGETS_MAX]:
        found = _begin(target)
        if isinstance(found, str):
            results[target] = found
        else:
            waiting[found.fileno()] = (target, found)
            poller.register(found, select.POLLOUT)
    until = time.monotonic() + limit_s
    while waiting and (left_s := until - time.monotonic()) > 0:
        for fd, _ in poller.poll(left_s * 1000):
            target, found = waiting.pop(fd)
            poller.unregister(fd)
            results[target] = _result(found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            found.close()
    for target, found in waiting.values():
        results[target] = SILENT
        found.close()
    return results


def _begin(target: Target) -> socket.socket | str:
    try:
        found = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return NO_NAME
    family, kind, protocol, _, address = found[0]
    made: socket.socket | None = None
    try:
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        code = made.connect_ex(address)
    except OSError as error:
        code = error.errno or errno.EIO
    if made is None or code not in (0, errno.EINPROGRESS):
        if made is not None:
            made.close()
        return _result(code)
    return made


def _result(code: int) -> str:
    if code == 0:
        return OPEN
    if code == errno.ECONNREFUSED:
        return REFUSED
    if code == errno.ETIMEDOUT:
        return SILENT
    if code == errno.EHOSTUNREACH:
        # Nobody in the network next door has that address.
        return ABSENT
    if code in (errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.EINVAL):
        return NO_ROUTE
    return os.strerror(code).lower()


class Reacher:
    """Does that beside a poll loop: one thread at a time, for as long as it takes."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._waiting: list[tuple[list[Target], Callable[[dict[Target, str]], None]]] = []
        self._done: Callable[[dict[Target, str]], None] | None = None
        self._results: dict[Target, str] = {}

    def fileno(self) -> int:
        """Readable when `read` has something to do."""
        return self._fd

    def ask(self, targets: Iterable[Target], done: Callable[[dict[Target, str]], None]) -> bool:
        """Have `done` called with the results, by `read`; return False where too much waits."""
        if len(self._waiting) >= 16:
            return False
        self._waiting.append((list(targets)[:TARGETS_MAX], done))
        self._next()
        return True

    def read(self) -> None:
        """Hand over what is finished."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        thread, done = self._thread, self._done
        if thread is None or done is None or thread.is_alive():
            # It writes to the descriptor as its last deed; the rest takes microseconds.
            if thread is None or done is None:
                return
            thread.join(0.05)
        self._thread = self._done = None
        done(self._results)
        self._next()

    def close(self) -> None:
        """Forget whoever waits; a thread that still runs ends by itself."""
        self._waiting.clear()
        thread = self._thread
        if thread is not None:
            thread.join(LIMIT_S + 0.5)
        os.close(self._fd)
        self._fd = -1

    def _next(self) -> None:
        if self._thread is not None or not self._waiting:
            return
        targets, self._done = self._waiting.pop(0)
        self._thread = threading.Thread(target=self._run, args=(targets,), daemon=True)
        self._thread.start()

    def _run(self, targets: list[Target]) -> None:
        self._results = reach(targets)
        with contextlib.suppress(OSError):
            os.eventfd_write(self._fd, 1)


# --- firewalls ------------------------------------------------------------------------------------


def firewall(root: Path = Path("/")) -> str:
    """Name the firewall that is in charge of this machine, as far as one can see: "" for none."""
    if (root / "run/firewalld.pid").exists() or (root / "var/run/firewalld.pid").exists():
        return "firewalld"
    with contextlib.suppress(OSError):
        if "ENABLED=yes" in (root / "etc/ufw/ufw.conf").read_text("utf-8", "replace"):
            return "ufw"
    if shutil.which("nft"):
        return "nft"
    return "iptables" if shutil.which("iptables") else ""


def input_chain() -> tuple[str, str, str]:
    """Return family, table and name of the nft chain for what comes in; empty where not known.

    Cost  runs `nft` once, where this user may ask it.
    """
    if os.geteuid() or not shutil.which("nft"):
        return "", "", ""
    try:
        told = subprocess.run(
            ["nft", "-a", "list", "chains"],
            capture_output=True,
            text=True,
            timeout=_NFT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "", "", ""
    return find_input_chain(told)


def find_input_chain(listing: str) -> tuple[str, str, str]:
    """Find the first chain with the hook `input` in what `nft list chains` prints."""
    family = table = chain = ""
    for line in listing.splitlines():
        words = line.replace("{", " ").split()
        if words[:1] == ["table"] and len(words) >= 3:
            family, table = words[1], words[2]
        elif words[:1] == ["chain"] and len(words) >= 2:
            chain = words[1]
        elif "hook input" in line and family in ("ip", "ip6", "inet") and chain:
            return family, table, chain
    return "", "", ""
