#!/usr/bin/python3
"""Speak to systemd like a node, and do nothing else: for the service, not for the program."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path


def notify(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


def main() -> int:
    if "nonsense" in Path(sys.argv[-1]).read_text(encoding="utf-8"):
        return 2
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, lambda *_: None)
    # A task that ignores SIGTERM, in a session of its own: nothing but its cgroup holds it.
    subprocess.Popen(
        ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 100; done"], start_new_session=True
    )
    notify("READY=1")
    beat_s = int(os.environ["WATCHDOG_USEC"]) / 2_000_000
    while not select.select([reader], [], [], beat_s)[0]:
        notify("WATCHDOG=1")
    notify("STOPPING=1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
