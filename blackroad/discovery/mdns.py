"""The parent's end of mDNS: a child that announces and listens, and its reports as hints.

Edge.  Everything strangers send is parsed in the child (`mdns_child.py`); this file checks what
the child reports, starts it again a few times when it ends, and never imports zeroconf.  mDNS
tells where peers may be, never whether they live.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from blackroad.capabilities import printable
from blackroad.discovery.children import command, end, environment
from blackroad.discovery.hints import Announcement, Hint, from_txt

RESTARTS_MAX: Final = 3
BACK_OFF_S: Final = (1.0, 5.0, 25.0)
STEADY_S: Final = 600.0
GOODBYE_S: Final = 1.0
READ_BYTES_MAX: Final = 64 * 1024
LINE_BYTES_MAX: Final = 16 * 1024

_Short = Annotated[str, Meta(max_length=256)]


class _SeenNode(Struct):
    txt: Annotated[dict[_Short, _Short], Meta(max_length=16)] = {}
    addresses: Annotated[list[_Short], Meta(max_length=32)] = []


class _Report(Struct):
    """One line of the child."""

    seen: _SeenNode | None = None
    gone: _Short = ""
    ready: Annotated[list[_Short], Meta(max_length=64)] = []
    problem: Annotated[str, Meta(max_length=600)] = ""
    final: bool = False


class Mdns:
    """Announce this daemon and collect hints, for a poll loop.

    Wait until `fileno()` is readable, then call `read()`; call it about once a second as well,
    so that a child which ended is started again.

    `interfaces` names interfaces or own addresses; None takes all but container bridges.
    """

    def __init__(
        self,
        announcement: Announcement,
        interfaces: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._announcement = announcement
        self._interfaces = None if interfaces is None else list(interfaces)
        self._env = environment({}, env)
        # Stays the same descriptor while children come and go.
        self._epoll = select.epoll()
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._problem = ""
        self._told = ""
        self._gone: list[str] = []
        self._loopback = False
        self._restarts = 0
        self._started = 0.0
        self._start_at: float | None = None
        self._closed = False
        self.refused = 0
        self._spawn()

    def fileno(self) -> int:
        """Return the descriptor to wait for; the same one until `close`."""
        return self._epoll.fileno()

    @property
    def pid(self) -> int:
        """The child's process id, or 0 while none runs."""
        return self._process.pid if self._process else 0

    def read(self) -> list[Hint]:
        """Return new and changed hints; never waits.

        Cost  at most 64 KiB a call, so that a flood cannot hold the loop.
        """
        if self._closed:
            return []
        if self._process is None:
            if self._start_at is not None and time.monotonic() >= self._start_at:
                self._spawn()
            return []
        stream = self._process.stdout
        assert stream is not None
        try:
            data = os.read(stream.fileno(), READ_BYTES_MAX)
        except BlockingIOError:
            return []
        self._buffer += data
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        hints = [hint for line in lines if (hint := self._take(line)) is not None]
        if not data:
            self._ended("ended")
        elif len(self._buffer) > LINE_BYTES_MAX:
            self._ended("wrote a line without end")
        return hints

    def take_problem(self) -> str:
        """Return what is wrong, once; "" while nothing new is."""
        if self._problem == self._told:
            return ""
        self._told = self._problem
        return self._problem

    def take_gone(self) -> list[str]:
        """Return the ids of nodes that said goodbye since the last call."""
        gone, self._gone = self._gone, []
        return gone

    def announce(self, announcement: Announcement) -> None:
        """Say something else of this daemon, such as a new digest of its capabilities."""
        if announcement != self._announcement:
            self._announcement = announcement
            self._tell()

    def close(self) -> None:
        """Say goodbye to the network, for at most a second, and end the child."""
        if self._closed:
            return
        self._closed = True
        process = self._process
        if process is not None:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GOODBYE_S)
        self._drop()
        self._epoll.close()

    def _spawn(self) -> None:
        self._start_at = None
        self._buffer.clear()
        self._started = time.monotonic()
        try:
            self._process = subprocess.Popen(
                command("blackroad.discovery.mdns_child", "--parent", str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._env,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._again(f"could not be started ({error})")
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        self._epoll.register(self._process.stdout.fileno(), select.EPOLLIN)
        self._tell()

    def _tell(self) -> None:
        """Write the whole wish; the child acts on the newest."""
        if self._process is None or self._process.stdin is None:
            return
        wish = {"announce": self._announcement, "interfaces": self._interfaces}
        line = msgspec.json.encode(wish) + b"\n"
        try:
            whole = os.write(self._process.stdin.fileno(), line) == len(line)
        except OSError:
            whole = False
        if not whole:
            self._ended("does not listen")

    def _take(self, line: bytes) -> Hint | None:
        try:
            report = msgspec.json.decode(line, type=_Report)
        except (msgspec.MsgspecError, ValueError):
            self.refused += 1
            return None
        if report.ready:
            self._loopback = all(_is_loopback(text) for text in report.ready)
        if report.gone:
            self._gone.append(printable(report.gone, 64))
            del self._gone[:-256]
        if report.problem:
            self._problem = printable(report.problem, 400)
        if report.final:
            self._restarts = RESTARTS_MAX + 1
        if report.seen is None:
            return None
        hint = from_txt(
            report.seen.txt,
            report.seen.addresses,
            own=self._announcement,
            loopback=self._loopback,
        )
        self.refused += hint is None
        return hint

    def _ended(self, how: str) -> None:
        self._drop()
        if time.monotonic() - self._started > STEADY_S and self._restarts <= RESTARTS_MAX:
            self._restarts = 0
        self._again(how)

    def _again(self, how: str) -> None:
        """Plan the next start, or give up and say so."""
        if self._restarts < RESTARTS_MAX:
            self._start_at = time.monotonic() + BACK_OFF_S[self._restarts]
            self._restarts += 1
        elif self._restarts == RESTARTS_MAX:
            self._restarts += 1
            before = f" (last: {self._problem})" if self._problem else ""
            self._problem = (
                f"mDNS is off: its process {how}, {RESTARTS_MAX + 1} times in a row{before}; "
                "name peers in the configuration"
            )

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdout is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(process.stdout.fileno())
        end(process)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False
