"""The function that chaos ships to the nodes: it works for a while and keeps a diary.

It is made inside another function, so that it travels as code and finds no name of ours on the
node; it imports what it needs itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from blackroad.digest import blake2b

KINDS: Final = ("wait", "spin", "tree")


def _diary() -> Callable[..., Any]:
    """Make a function that keeps the diary of one attempt until its time is over."""

    def keep(tell: Callable[[str], None], kind: str, run_ms: int) -> None:
        import time

        def boot_ns() -> int:
            return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

        until_ns = boot_ns() + run_ms * 1_000_000
        while (left_ns := until_ns - boot_ns()) > 0:
            step_ns = min(50_000_000, left_ns)
            turn_ns = boot_ns() + step_ns
            if kind == "spin":
                while boot_ns() < turn_ns:
                    blake2b(b"chaos" * 1_000).digest()
            else:
                time.sleep(step_ns / 1e9)
            tell("beat")

    return keep


def worker() -> Callable[[dict[str, Any]], tuple[str, bytes]]:
    """Make a function that tells its start, its beats and its stop to a history.

    It takes {"history": path, "locks": directory, "task": name, "kind", "run_ms", "result_bytes"}
    and returns its token with so many bytes made from it.  The kinds: `wait` sleeps, `spin`
    computes, `tree` leaves the diary to a child process, which must die with the task.
    """
    keep_diary = _diary()

    def work(order: dict[str, Any]) -> tuple[str, bytes]:
        import fcntl
        import json
        import os
        import time

        from blackroad.runtime.context import current

        here = current()
        if here is None:
            raise RuntimeError("this runs as a task only")
        token = f"{here.token[0]}/{here.token[1]}"

        def opened(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o666)

        def tell(what: str, **facts: Any) -> None:
            line = {
                "what": what,
                "task": order["task"],
                "attempt": here.attempt,
                "token": token,
                "node": here.node,
                "pid": os.getpid(),
                **facts,
                "boot_ms": time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
            }
            os.write(diary, (json.dumps(line, separators=(",", ":")) + "\n").encode())

        def in_a_child() -> None:
            child = os.fork()
            if not child:
                try:
                    keep_diary(tell, order["kind"], order["run_ms"])
                finally:
                    os._exit(0)
            os.waitpid(child, 0)

        diary = opened(order["history"], os.O_WRONLY | os.O_APPEND)
        lock = opened(os.path.join(order["locks"], order["task"]), os.O_RDWR)
        try:
            # The kernel gives the lock up when the last process that has it is gone, not before.
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                alone = False
            tell("start", alone=alone)
            if order["kind"] == "tree":
                in_a_child()
            else:
                keep_diary(tell, order["kind"], order["run_ms"])
            size = order["result_bytes"]
            ballast = (blake2b(token.encode()).digest() * (size // 64 + 1))[:size]
            mark = blake2b(ballast, digest_size=8).hexdigest()
            tell("stop", result=f"{token}:{mark}")
        finally:
            os.close(lock)
            os.close(diary)
        return token, ballast

    return work


def work(order: dict[str, Any]) -> tuple[str, bytes]:
    """The same by its name, so that a task submitted again has the same content, byte for byte."""
    return worker()(order)


def result_of(value: tuple[str, bytes]) -> str:
    """What a task's stop says of the value it returned: its token and a digest of its bytes."""
    token, ballast = value
    return f"{token}:{blake2b(ballast, digest_size=8).hexdigest()}"
