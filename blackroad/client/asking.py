"""Questions of a program to daemons, and their answers, which come in pages.

This file must not know what is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from blackroad.bus import messages as m
from blackroad.client.refusals import query_error
from blackroad.errors import Unreachable

if TYPE_CHECKING:
    from blackroad.bus.messages import Message

QUERY_MS = 3_000


class _Asked:
    """A Query under way."""

    __slots__ = ("future", "pages")

    def __init__(self) -> None:
        self.future: Future[bytes] = Future()
        self.pages: dict[int, bytes] = {}


class Asking:
    """What one connection asked and has no whole answer to."""

    def __init__(
        self,
        post: Callable[[Message], None],
        lead: Callable[[Callable[[], bool], float | None], float | None],
    ) -> None:
        self._post = post
        self._lead = lead
        self._lock = threading.Lock()
        self._serial = 0
        self._asked: dict[int, _Asked] = {}

    def ask(self, name: str, args: bytes, target: bytes, timeout_s: float) -> bytes:
        """Ask a daemon something and wait for the whole answer.

        Raises  Unreachable where nobody answered; TaskError or UsageError where it said no.
        """
        asked = _Asked()
        with self._lock:
            self._serial += 1
            serial = self._serial
            self._asked[serial] = asked
        self._post(m.Query(serial, target, name, args))
        try:
            left_s = self._lead(asked.future.done, timeout_s + 1)
            return asked.future.result(left_s)
        except TimeoutError:
            raise Unreachable(
                f"the daemon did not answer `{name}` within {timeout_s:g} s",
                hint="`blackroad nodes` shows who is there",
            ) from None
        finally:
            with self._lock:
                self._asked.pop(serial, None)

    def on_reply(self, reply: m.Reply) -> None:
        """One page of an answer came."""
        asked = self._asked.get(reply.query)
        if asked is None or asked.future.done():
            return
        if reply.error:
            asked.future.set_exception(query_error(reply.error))
            return
        asked.pages[reply.page] = reply.body
        last = reply.page if reply.last else None
        if last is not None and len(asked.pages) == last + 1:
            asked.future.set_result(b"".join(asked.pages[n] for n in range(last + 1)))

    def fail_all(self, error: BaseException) -> None:
        """There is nobody to answer any more."""
        for asked in list(self._asked.values()):
            if not asked.future.done():
                asked.future.set_exception(error)
