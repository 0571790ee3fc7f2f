"""The process that writes the history, as the daemon sees it: started, told, heard, ended.

Edge: a child process and its pipes, none of which the daemon ever waits for.  This file must not
know what is recorded.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

from blackroad.discovery import children

AGAIN_MS: Final = 2_000
AGAIN_MS_MAX: Final = 60_000
END_S: Final = 2.0
LINE_BYTES_MAX: Final = 64 * 1024
MODULE: Final = "blackroad.history"
LOG: Final = "writer.log"


class Child:
    """At most one process; a new one, after a while, where one has ended by itself."""

    def __init__(self, url: str, spool: Path, keep_days: int) -> None:
        self._url = url
        self._spool = spool
        self._keep_days = keep_days
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""
        self._due_ms = 0
        self._again_ms = AGAIN_MS
        self.gone_wrong = ""

    @property
    def pid(self) -> int:
        """The process, 0 where there is none."""
        return self._process.pid if self._process is not None else 0

    def tick(self, now_ms: int) -> list[dict[str, Any]]:
        """Start it where it is due; return what it said."""
        process = self._process
        if process is None:
            if now_ms >= self._due_ms:
                self._start(now_ms)
            return []
        told = self._read(process)
        if process.poll() is not None:
            told += self._read(process)
            self._ended(process, now_ms)
        return told

    def _start(self, now_ms: int) -> None:
        words = (str(os.getpid()), str(self._spool), str(self._keep_days))
        self._due_ms = now_ms + self._again_ms
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            log = os.open(self._spool / LOG, flags, 0o600)
            with os.fdopen(log, "wb") as complaint:
                process = subprocess.Popen(
                    children.command(MODULE, *words),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=complaint,
                    env=children.environment({}),
                    start_new_session=True,
                )
        except OSError as error:
            self.gone_wrong = f"it could not be started: {error.strerror or error}"
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
        self._process = process
        self._write(self._url.encode() + b"\n")

    def wake(self) -> None:
        """Say that there is something new."""
        self._write(b"\n")

    def _write(self, data: bytes) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            # One that does not read has enough to do, or has ended.
            with contextlib.suppress(OSError):
                os.write(process.stdin.fileno(), data)

    def _read(self, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        if process.stdout is None:
            return []
        with contextlib.suppress(OSError):
            while data := os.read(process.stdout.fileno(), 65_536):
                self._heard = (self._heard + data)[-LINE_BYTES_MAX:]
        *lines, self._heard = self._heard.split(b"\n")
        told = []
        for line in lines:
            with contextlib.suppress(ValueError):
                one = json.loads(line)
                if isinstance(one, dict):
                    told.append(one)
        if any("ready" in one for one in told):
            self._again_ms = AGAIN_MS
            self.gone_wrong = ""
        return told

    def _ended(self, process: subprocess.Popen[bytes], now_ms: int) -> None:
        """It ended without having been asked to: have another one after a while."""
        self.gone_wrong = f"it ended with {process.returncode}{self._last_words()}"
        self._drop()
        self._due_ms = now_ms + self._again_ms
        self._again_ms = min(AGAIN_MS_MAX, 2 * self._again_ms)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._spool / LOG).read_text("utf-8", "replace").strip().splitlines()
            return f": {lines[-1][:300]}" if lines else ""
        return ""

    def _drop(self) -> None:
        process, self._process = self._process, None
        self._heard = b""
        if process is not None:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def close(self) -> None:
        """Let it write what is left, for a moment, and see to it that it has ended."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=END_S)
        if process.poll() is None:
            children.end(process)
        self._drop()
