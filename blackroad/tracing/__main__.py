"""The process that sends traces: reads ended tasks from its input, sends them by OTLP over HTTP.

Edge.  It ends with its daemon.  A collector that is away for a while costs memory up to a bound,
then the oldest tasks; every second it says on its output, in one line of JSON, how it stands.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Final

import msgspec

from blackroad.discovery.children import die_with_parent, limit_memory, private_stdout
from blackroad.tracing.line import Line
from blackroad.tracing.story import Setup, Story, bodies

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

WAIT_S: Final = 1.0
WAIT_S_MAX: Final = 30.0
LAST_S: Final = 3.0
ASK_S: Final = 5.0
MEMORY_BYTES: Final = 1024 * 1024 * 1024
_READ_BYTES: Final = 256 * 1024


class Sender:
    """Tasks that wait to be sent, and the thread that sends them."""

    def __init__(self, send: Callable[[list[Story]], str], report: Callable[..., None]) -> None:
        self._send = send
        self._report = report
        self._line = Line()
        self._change = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def add(self, stories: list[Story]) -> None:
        """Take more; the oldest go where there are too many."""
        with self._change:
            self._line.add(stories)
            self._change.notify()

    def close(self) -> None:
        """Send what is left, if that goes quickly."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(LAST_S)

    def _run(self) -> None:
        wait_s = WAIT_S
        while True:
            batch = self._next()
            if not batch:
                return
            problem = self._send(batch)
            with self._change:
                if problem:
                    self._line.refused(batch)
                else:
                    self._line.took(batch)
                told = (self._line.sent, self._line.dropped, len(self._line))
            self._report(*told, problem)
            if not problem:
                wait_s = WAIT_S
                continue
            with self._change:
                if self._closing:
                    return
                self._change.wait_for(lambda: self._closing, wait_s)
            wait_s = min(2 * wait_s, WAIT_S_MAX)

    def _next(self) -> list[Story]:
        with self._change:
            self._change.wait_for(lambda: len(self._line) or self._closing)
            return self._line.next()


def sending(setup: Setup) -> Callable[[list[Story]], str]:
    """Return what sends a batch, and says in a few words why it could not."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    from blackroad.tracing.spans import resource_of, spans

    # It would repeat the address, which may hold a password.
    logging.disable(logging.CRITICAL)
    url = setup.url.rstrip("/")
    url = url if url.endswith("/v1/traces") else f"{url}/v1/traces"
    exporter = OTLPSpanExporter(url, timeout=ASK_S)
    resource = resource_of(setup)

    def send(stories: list[Story]) -> str:
        made = [span for story in stories for span in spans(story, resource)]
        try:
            done = exporter.export(made) is SpanExportResult.SUCCESS
        except Exception as error:
            return type(error).__name__
        return "" if done else "the collector does not take them"

    return send


def main() -> int:
    """Read and send until the input ends."""
    die_with_parent(int(sys.argv[1]))
    limit_memory(MEMORY_BYTES)
    out = private_stdout()
    buffer = bytearray()
    decode = msgspec.msgpack.Decoder(Story).decode
    sender: Sender | None = None
    while data := os.read(0, _READ_BYTES):
        buffer += data
        found = list(bodies(buffer))
        if sender is None and found:
            setup = msgspec.msgpack.decode(found.pop(0), type=Setup)
            sender = Sender(sending(setup), _reporter(out))
            sender.start()
        if sender is not None and found:
            sender.add([decode(one) for one in found])
    if sender is not None:
        sender.close()
    return 0


def _reporter(out: IO[str]) -> Callable[..., None]:
    def report(sent: int, dropped: int, waiting: int, problem: str) -> None:
        told = {"sent": sent, "dropped": dropped, "waiting": waiting, "problem": problem}
        out.write(msgspec.json.encode(told).decode() + "\n")

    return report


if __name__ == "__main__":
    # Threads of the exporter must not keep it: everything was sent, or will not be.
    code = main()
    sys.stdout.flush()
    os._exit(code)
