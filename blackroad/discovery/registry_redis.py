"""A registry of nodes in Redis, for sites that have a server and no multicast: more hints.

Edge.  Keys that expire say who is there; what they say is believed no more than an advertisement.
The server is spoken to in a child with a memory limit, so that a slow, absent or hostile one
never holds the daemon.  This file must not know who answers at an address.

Each node writes `blackroad:<cluster>:node:<node>` and adds itself to `blackroad:<cluster>:nodes`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from blackroad.capabilities import printable
from blackroad.discovery import redis_server
from blackroad.discovery.children import die_with_parent, limit_memory, private_stdout
from blackroad.discovery.hints import Announcement, Hint, from_registry, registry_entry
from blackroad.discovery.line_child import LineChild
from blackroad.discovery.redis_server import UP, check_url
from blackroad.limits import HINTS_MAX

EXPIRY_S: Final = 30
REFRESH_S: Final = 10.0
REFRESH_S_MAX: Final = 60.0
INDEX_EXPIRY_S: Final = 86_400
ENTRY_BYTES_MAX: Final = 2_048
MEMORY_BYTES_MAX: Final = 256 * 1024 * 1024
NICENESS: Final = 10

_NODE = re.compile(r"[a-z2-7]{26}")


class _Report(Struct):
    """One line of the child."""

    entry: Annotated[str, Meta(max_length=ENTRY_BYTES_MAX)] = ""
    state: Annotated[str, Meta(max_length=32)] = ""
    problem: Annotated[str, Meta(max_length=600)] = ""
    final: bool = False


class Registry:
    """The daemon's end: says where this node is, collects hints, for a poll loop.

    Used like `Mdns`: wait for `fileno()`, call `read()` then and about once a second.

    Raises  ConfigError where the server would be open to anybody.
    """

    def __init__(
        self,
        url: str,
        own: Announcement,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
    ) -> None:
        check_url(url)
        self._url = url
        self._own = own
        self._child = LineChild("blackroad.discovery.registry_redis", args, env)
        self._told = ""
        # "up", or in one word what is wrong; "" before the server was asked.
        self.state = ""
        self.problem = ""
        self.refused = 0
        self.heard: dict[str, None] = {}

    def fileno(self) -> int:
        """Return the descriptor to wait for; the same one until `close`."""
        return self._child.fileno()

    @property
    def pid(self) -> int:
        """The child's process id, or 0 while none runs."""
        return self._child.pid

    def announce(self, endpoints: Sequence[str]) -> None:
        """Say that this node listens there."""
        entry = registry_entry(self._own, endpoints).decode()
        wish = {"url": self._url, "cluster": self._own.cluster, "node": self._own.node}
        self._child.tell(msgspec.json.encode({**wish, "entry": entry}))

    def read(self) -> list[Hint]:
        """Return where the registry says that others are; never waits."""
        hints = [hint for line in self._child.lines() if (hint := self._take(line)) is not None]
        if self._child.given_up and self.state != "off":
            self.state, self.problem = "off", f"{self._child.given_up}; it is not asked any more"
        return hints

    def take_note(self) -> tuple[str, str] | None:
        """Return the state and what is wrong, once for each change of the state."""
        if self.state == self._told:
            return None
        self._told = self.state
        return self.state, self.problem

    def close(self) -> None:
        """Take this node out of the registry, for at most a second, and end the child."""
        self._child.close()

    def _take(self, line: bytes) -> Hint | None:
        try:
            report = msgspec.json.decode(line, type=_Report)
        except (msgspec.MsgspecError, ValueError):
            self.refused += 1
            return None
        if report.state:
            self.state = printable(report.state, 32)
            self.problem = printable(report.problem, 400)
        if report.final:
            self._child.give_up(self.problem)
            self.state = "off"
        if not report.entry:
            return None
        hint = from_registry(report.entry.encode(), own=self._own)
        if hint is None:
            self.refused += 1
            return None
        self.heard.pop(hint.node, None)
        self.heard[hint.node] = None
        if len(self.heard) > HINTS_MAX:
            del self.heard[next(iter(self.heard))]
        return hint


# --- the child ------------------------------------------------------------------------------------


class Wish(Struct):
    """What the daemon wants: which server, which cluster, and what to say there."""

    url: str
    cluster: str
    node: str
    entry: str


def main() -> int:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--refresh", type=float, default=REFRESH_S)
    options = parser.parse_args()
    die_with_parent(options.parent)
    out = private_stdout()
    limit_memory(MEMORY_BYTES_MAX)
    os.nice(NICENESS)
    problem = redis_server.missing()
    if problem:
        _say(out, {"state": "off", "problem": problem, "final": True})
        return 0
    with contextlib.suppress(BrokenPipeError):
        _Keeper(out, options.refresh).run()
    return 0


def _say(out: IO[str], message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


class _Keeper:
    """Keeps this node's entry alive and reads those of the others."""

    def __init__(self, out: IO[str], refresh_s: float) -> None:
        self._out = out
        self._refresh_s = refresh_s
        self._wish: Wish | None = None
        self._server: Any | None = None
        self._state = ""
        self._said: dict[str, str] = {}
        self._pause_s = refresh_s

    def run(self) -> None:
        due = 0.0
        buffer = b""
        while True:
            wait_s = None if self._wish is None else max(0.0, due - time.monotonic())
            if select.select([0], [], [], wait_s)[0]:
                data = os.read(0, 65_536)
                if not data:
                    self._leave()
                    return
                *lines, buffer = (buffer + data).split(b"\n")
                if lines:
                    self._wish = msgspec.json.decode(lines[-1], type=Wish)
                    due = 0.0
            if self._wish is not None and time.monotonic() >= due:
                self._refresh(self._wish)
                due = time.monotonic() + self._pause_s

    def _connect(self, wish: Wish) -> Any:
        if self._server is None:
            self._server = redis_server.connect(wish.url)
        return self._server

    def _refresh(self, wish: Wish) -> None:
        """Write, then read; a server that takes nothing may still tell."""
        state, problem = UP, ""
        try:
            server = self._connect(wish)
            try:
                self._write(server, wish)
            except Exception as error:
                state, problem = redis_server.judged(error)
                if state not in redis_server.TAKES_NOTHING:
                    raise
            self._read(server, wish)
        except MemoryError:
            raise
        except Exception as error:
            # Whatever the server or its library came up with: this node goes on without it.
            if state == UP:
                state, problem = redis_server.judged(error)
            self._hang_up()
        rarely_s = min(REFRESH_S_MAX, 2 * self._pause_s)
        self._pause_s = self._refresh_s if state == UP else rarely_s
        if state != self._state:
            self._state = state
            place = redis_server.place(wish.url)
            _say(self._out, {"state": state, "problem": problem and f"{place}: {problem}"[:400]})

    def _write(self, server: Any, wish: Wish) -> None:
        pipe = server.pipeline(transaction=False)
        pipe.set(_key(wish.cluster, wish.node), wish.entry, ex=EXPIRY_S)
        pipe.sadd(_index(wish.cluster), wish.node)
        pipe.expire(_index(wish.cluster), INDEX_EXPIRY_S)
        pipe.execute()

    def _read(self, server: Any, wish: Wish) -> None:
        """Tell the daemon what is new; a bounded part of a list that somebody has filled up."""
        drawn: Any = server.srandmember(_index(wish.cluster), HINTS_MAX)
        nodes = sorted({one.decode("ascii", "replace") for one in drawn} - {wish.node})
        nodes = [node for node in nodes if _NODE.fullmatch(node)]
        pipe = server.pipeline(transaction=False)
        for node in nodes:
            pipe.getrange(_key(wish.cluster, node), 0, ENTRY_BYTES_MAX - 1)
        entries: list[bytes] = pipe.execute() if nodes else []
        gone = []
        for node, entry in zip(nodes, entries, strict=True):
            text = entry.decode("utf-8", "replace")
            if not text:
                gone.append(node)
            elif self._said.get(node) != text:
                _say(self._out, {"entry": text})
            self._said[node] = text
        while len(self._said) > 2 * HINTS_MAX:
            del self._said[next(iter(self._said))]
        if gone and self._state in ("", UP):
            # Whoever lives adds itself again.
            server.srem(_index(wish.cluster), *gone)

    def _leave(self) -> None:
        wish = self._wish
        if wish is None or self._state != UP:
            return
        with contextlib.suppress(Exception):
            server = self._connect(wish)
            server.delete(_key(wish.cluster, wish.node))
            server.srem(_index(wish.cluster), wish.node)

    def _hang_up(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            with contextlib.suppress(Exception):
                server.close()


def _key(cluster: str, node: str) -> str:
    return f"blackroad:{cluster}:node:{node}"


def _index(cluster: str) -> str:
    return f"blackroad:{cluster}:nodes"


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
