"""The parent's end of mDNS: a child that announces and listens, and its reports as hints.

Edge.  Everything strangers send is parsed in the child (`mdns_child.py`); this file checks what
the child reports, and never imports zeroconf.  mDNS tells where peers may be, never whether they
live.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from blackroad.capabilities import printable
from blackroad.discovery.hints import Announcement, Door, Hint, door_from_txt, from_txt
from blackroad.discovery.line_child import LineChild
from blackroad.limits import HINTS_MAX

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
    # What was wrong before is so no longer.
    sound: bool = False
    final: bool = False


class Mdns:
    """Announce this daemon and collect hints, for a poll loop.

    Wait until `fileno()` is readable, then call `read()`; call it about once a second as well,
    so that a child which ended is started again.

    Without an announcement it only listens, for the doors of any cluster.  `interfaces` names
    interfaces or own addresses; None takes all but container bridges.
    """

    def __init__(
        self,
        announcement: Announcement | None,
        interfaces: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._announcement = announcement
        self._interfaces = None if interfaces is None else list(interfaces)
        self._child = LineChild("blackroad.discovery.mdns_child", env=env)
        self._problem = ""
        self._told = ""
        self._off_said = False
        self._gone: list[str] = []
        self._doors: list[Door] = []
        self._loopback = False
        self.refused = 0
        # On which addresses it is sent and heard, empty before it is.
        self.places: tuple[str, ...] = ()
        # Whom it heard of in this life, the newest last, at most HINTS_MAX.
        self.heard: dict[str, None] = {}
        self._tell()

    def fileno(self) -> int:
        """Return the descriptor to wait for; the same one until `close`."""
        return self._child.fileno()

    @property
    def pid(self) -> int:
        """The child's process id, or 0 while none runs."""
        return self._child.pid

    @property
    def restarts(self) -> int:
        """How often the child had to be started again."""
        return self._child.restarts

    @property
    def problem(self) -> str:
        """What is wrong, as far as that is known."""
        return self._problem

    def read(self) -> list[Hint]:
        """Return new and changed hints; never waits."""
        lines = self._child.lines()
        hints = [hint for line in lines if (hint := self._take(line)) is not None]
        for hint in hints:
            self.heard.pop(hint.node, None)
            self.heard[hint.node] = None
        while len(self.heard) > HINTS_MAX:
            del self.heard[next(iter(self.heard))]
        if self._child.given_up and not self._off_said:
            self._off_said = True
            before = f" (last: {self._problem})" if self._problem else ""
            self._problem = (
                f"mDNS is off: {self._child.given_up}{before}; name peers in the configuration"
            )
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

    def take_doors(self) -> list[Door]:
        """Return the doors that were heard of since the last call, of any cluster."""
        doors, self._doors = self._doors, []
        return doors

    def announce(self, announcement: Announcement) -> None:
        """Say something else of this daemon, such as a new digest of its capabilities."""
        if announcement != self._announcement:
            self._announcement = announcement
            self._tell()

    def close(self) -> None:
        """Say goodbye to the network, for at most a second, and end the child."""
        self._child.close()

    def _tell(self) -> None:
        wish = {"announce": self._announcement, "interfaces": self._interfaces}
        self._child.tell(msgspec.json.encode(wish))

    def _take(self, line: bytes) -> Hint | None:
        try:
            report = msgspec.json.decode(line, type=_Report)
        except (msgspec.MsgspecError, ValueError):
            self.refused += 1
            return None
        if report.ready:
            self.places = tuple(printable(text, 64) for text in report.ready)
            self._loopback = all(_is_loopback(text) for text in report.ready)
        if report.gone:
            self._gone.append(printable(report.gone, 64))
            del self._gone[:-256]
        if report.sound:
            self._problem = ""
        if report.problem:
            self._problem = printable(report.problem, 400)
        if report.final:
            self._off_said = True
            self._child.give_up(self._problem)
        if report.seen is None:
            return None
        return self._seen(report.seen)

    def _seen(self, seen: _SeenNode) -> Hint | None:
        if self._announcement is None:
            door = door_from_txt(seen.txt, seen.addresses, loopback=self._loopback)
            if door is not None and len(self._doors) < HINTS_MAX:
                self._doors.append(door)
            return None
        hint = from_txt(seen.txt, seen.addresses, own=self._announcement, loopback=self._loopback)
        self.refused += hint is None
        return hint


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False
