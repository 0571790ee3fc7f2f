"""The process that writes the mirror: keeps what it wrote for a while, and writes it again.

Edge.  A server may be away, slow, wiped, read-only or closed: what comes meanwhile waits here,
within bounds, and what was lost there is written again.  This file must not know the daemon.

    mirror:result:<task>   an outcome, until `redis_keep` is over
    mirror:ended           ids of outcomes by the time of their end, the newest 10,000
    mirror:node:<node>     a row about a node, for 30 s; mirror:nodes: all nodes by when they spoke
    mirror:mark:<node>     gone where somebody wiped the server
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import sys
import time
from collections import OrderedDict
from typing import IO, Any, Final, NamedTuple

import msgspec

from blackroad import chance
from blackroad.discovery import redis_server
from blackroad.discovery.children import die_with_parent, limit_memory, private_stdout
from blackroad.ids import bytes32, task_text
from blackroad.mirror import rows
from blackroad.mirror.feed import HEAD_BYTES

REFRESH_S: Final = 10.0
NODE_EXPIRY_S: Final = 30
NODES_KEPT_S: Final = 86_400
PAUSE_S: Final = 0.5
PAUSE_S_MAX: Final = 10.0
KEPT_MAX: Final = 50_000
KEPT_BYTES_MAX: Final = 32 * 1024 * 1024
ENDED_MAX: Final = 10_000
PIPELINE: Final = 500
PIPELINE_BYTES: Final = 1024 * 1024
# What a server took shortly before it went away may be lost with it.
AGAIN_S: Final = 60.0
READ_BYTES: Final = 256 * 1024
MEMORY_BYTES_MAX: Final = 1024 * 1024 * 1024
NICENESS: Final = 10

_decode = msgspec.msgpack.Decoder(rows.Message).decode


class Kept(NamedTuple):
    """One outcome as it is written."""

    data: bytes
    ended_ms: int


class Shelf:
    """Outcomes that were written or are to be, the oldest first, within bounds."""

    def __init__(self, count_max: int = KEPT_MAX, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._count_max, self._bytes_max = count_max, bytes_max
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0
        # Not written since they came, or since the server lost them; in the order of their ends.
        self.waiting: OrderedDict[str, None] = OrderedDict()
        # Of those that wait, these have been there before.
        self._again: set[str] = set()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, task: str, kept: Kept) -> None:
        """Keep one more; the oldest ones go where there is no room."""
        old = self._kept.pop(task, None)
        if old is not None:
            self._bytes -= len(old.data)
        self._kept[task] = kept
        self._bytes += len(kept.data)
        self.waiting[task] = None
        while len(self._kept) > self._count_max or self._bytes > self._bytes_max:
            gone, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest.data)
            if gone in self.waiting:
                del self.waiting[gone]
                self.dropped += gone not in self._again
                self._again.discard(gone)

    def next(self, keep_ms: int, now_ms: int) -> list[tuple[str, Kept, int]]:
        """Some that wait, each with the time that it has left; the others are forgotten."""
        chosen: list[tuple[str, Kept, int]] = []
        size = 0
        for task in list(self.waiting):
            kept = self._kept[task]
            left_ms = kept.ended_ms + keep_ms - now_ms
            if left_ms <= 0:
                self.forget(task)
                continue
            chosen.append((task, kept, min(left_ms, keep_ms)))
            size += len(kept.data)
            if len(chosen) >= PIPELINE or size >= PIPELINE_BYTES:
                break
        return chosen

    def written(self, task: str) -> bool:
        """This one is there now; return whether it was for the first time."""
        self.waiting.pop(task, None)
        if task in self._again:
            self._again.remove(task)
            return False
        return True

    def forget(self, task: str) -> None:
        """Its time is over."""
        self.waiting.pop(task, None)
        self._again.discard(task)
        kept = self._kept.pop(task, None)
        if kept is not None:
            self._bytes -= len(kept.data)

    def expire(self, before_ms: int) -> None:
        """Let go of what ended before that."""
        while self._kept:
            task, kept = next(iter(self._kept.items()))
            if kept.ended_ms >= before_ms:
                return
            self.forget(task)

    def write_again(self, since_ms: int = 0) -> None:
        """The server lost what ended since then."""
        lost = [
            task
            for task, kept in self._kept.items()
            if kept.ended_ms >= since_ms and task not in self.waiting
        ]
        self._again.update(lost)
        later = self.waiting
        self.waiting = OrderedDict.fromkeys(lost)
        self.waiting.update(later)


class Writer:
    """Writes what is on the shelf, and sees that it stays there."""

    def __init__(self, out: IO[str], refresh_s: float, shelf: Shelf | None = None) -> None:
        self._out = out
        self._refresh_s = refresh_s
        self.shelf = shelf or Shelf()
        self._target: rows.Target | None = None
        self._row: dict[str, Any] | None = None
        self._server: Any | None = None
        self._keys = rows.Keys("")
        self._node = b""
        self._mark = chance.token_hex(8)
        self._marked = False
        self._broken = False
        self._broken_ms = 0
        self._state = ""
        self._pause_s = PAUSE_S
        self._try_at = 0.0
        self._refresh_at = 0.0
        self._serial = 0
        # All batches up to this one have been written.
        self._done = 0
        self._written = self._again = self._dropped_told = 0

    # --- the loop ---------------------------------------------------------------------------------

    def run(self, fd: int) -> None:
        """Serve until the other end is closed."""
        buffer = bytearray()
        while True:
            if select.select([fd], [], [], self._wait_s())[0]:
                data = os.read(fd, READ_BYTES)
                if not data:
                    break
                buffer += data
                self._take_frames(buffer)
            self.step(time.monotonic())
        self._leave()

    def _wait_s(self) -> float | None:
        if self._target is None:
            return None
        due = self._refresh_at
        if self.shelf.waiting:
            due = min(due, self._try_at)
        due = max(due, self._try_at)
        return max(0.0, due - time.monotonic())

    def _take_frames(self, buffer: bytearray) -> None:
        while len(buffer) >= HEAD_BYTES:
            end = HEAD_BYTES + int.from_bytes(buffer[:HEAD_BYTES], "big")
            if len(buffer) < end:
                return
            body = bytes(buffer[HEAD_BYTES:end])
            del buffer[:end]
            self.take(_decode(body))

    def take(self, message: rows.Message) -> None:
        """The daemon says something."""
        match message:
            case rows.Target():
                self._target = message
                self._keys = rows.Keys(message.cluster)
                self._node = bytes32(message.node)
            case rows.Row():
                first = self._row is None
                self._row = message.node
                if first:
                    self._refresh_at = 0.0
            case rows.Batch():
                self._serial = message.serial
                for row in message.rows:
                    task = task_text(self._node, row.ended.task)
                    self.shelf.put(task, Kept(rows.outcome_json(task, row), row.ended_ms))

    def step(self, now: float) -> None:
        """Do what is due."""
        if self._target is None or now < self._try_at:
            return
        refresh = now >= self._refresh_at
        if not refresh and not self.shelf.waiting:
            return
        state, problem = redis_server.UP, ""
        try:
            self._work(refresh)
        except MemoryError:
            raise
        except Exception as error:
            # Whatever the server or its library came up with: it is tried again later.
            state, problem = redis_server.judged(error)
            self._hang_up()
        self._judge(state, problem)

    def _judge(self, state: str, problem: str) -> None:
        """Tell the daemon, and decide when to try again."""
        now = time.monotonic()
        if state == redis_server.UP:
            self._pause_s = PAUSE_S
            self._try_at = 0.0
        else:
            self._try_at = now + self._pause_s
            self._pause_s = min(PAUSE_S_MAX, 2 * self._pause_s)
            if not self._broken:
                self._broken, self._broken_ms = True, time.time_ns() // 1_000_000
        told: dict[str, Any] = {}
        if state != self._state:
            self._state = state
            place = redis_server.place(self._target.url) if self._target is not None else ""
            told = {"state": state, "problem": problem and f"{place}: {problem}"[:400]}
        if not self.shelf.waiting:
            self._done = self._serial
        dropped = self.shelf.dropped - self._dropped_told
        if told or self._written or self._again or dropped:
            self._dropped_told = self.shelf.dropped
            told |= {"done": self._done, "written": self._written, "again": self._again}
            _say(self._out, {**told, "dropped": dropped})
            self._written = self._again = 0

    # --- the server -------------------------------------------------------------------------------

    def _work(self, refresh: bool) -> None:
        assert self._target is not None
        if self._server is None:
            self._server = redis_server.connect(self._target.url)
        if refresh or self._broken:
            self._refresh(self._server, self._target)
            self._refresh_at = time.monotonic() + self._refresh_s
        self._write(self._server, self._target)

    def _refresh(self, server: Any, target: rows.Target) -> None:
        """Say that this node lives, and see whether what was written is still there."""
        keys, wall_ms = self._keys, time.time_ns() // 1_000_000
        mark = keys.mark(target.node)
        there = server.get(mark) == self._mark.encode()
        if not there and self._marked:
            self.shelf.write_again()
        elif self._broken:
            self.shelf.write_again(self._broken_ms - int(AGAIN_S * 1000))
        pipe = server.pipeline(transaction=False)
        if self._row is not None:
            row = {**self._row, "at_ms": wall_ms}
            pipe.set(keys.node(target.node), msgspec.json.encode(row), ex=NODE_EXPIRY_S)
            pipe.zadd(keys.nodes, {target.node: wall_ms})
            pipe.zremrangebyscore(keys.nodes, 0, wall_ms - NODES_KEPT_S * 1000)
            pipe.expire(keys.nodes, NODES_KEPT_S)
        pipe.set(mark, self._mark, px=max(target.keep_ms, 4 * NODE_EXPIRY_S * 1000))
        pipe.execute()
        self._marked, self._broken = True, False
        self.shelf.expire(wall_ms - target.keep_ms)

    def _write(self, server: Any, target: rows.Target) -> None:
        """Write some of what waits; the loop comes back for the rest."""
        keys = self._keys
        chosen = self.shelf.next(target.keep_ms, time.time_ns() // 1_000_000)
        if not chosen:
            return
        pipe = server.pipeline(transaction=False)
        for task, kept, left_ms in chosen:
            pipe.set(keys.result(task), kept.data, px=left_ms)
        pipe.zadd(keys.ended, {task: kept.ended_ms for task, kept, _ in chosen})
        pipe.zremrangebyrank(keys.ended, 0, -ENDED_MAX - 1)
        pipe.pexpire(keys.ended, target.keep_ms)
        pipe.execute()
        for task, _, _ in chosen:
            if self.shelf.written(task):
                self._written += 1
            else:
                self._again += 1

    def _leave(self) -> None:
        """Write the rest, and take this node out of the list; for as long as the daemon waits."""
        target = self._target
        if target is None or self._state not in ("", redis_server.UP):
            return
        with contextlib.suppress(Exception):
            server = self._server or redis_server.connect(target.url)
            while self.shelf.waiting:
                before = len(self.shelf.waiting)
                self._write(server, target)
                if len(self.shelf.waiting) >= before:
                    break
            server.delete(self._keys.node(target.node))
            server.zrem(self._keys.nodes, target.node)

    def _hang_up(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            with contextlib.suppress(Exception):
                server.close()


def _say(out: IO[str], message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


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
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Writer(out, options.refresh).run(0)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
