"""Submits whose objects are still on their way here.

Source  docs/protocol.md, "Submit", R-submit-5.  Pure.  This file must not know what tasks are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.router.objects import Pins, Pulls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from blackroad.bus.messages import Ref, Submit
    from blackroad.router.effects import Outbox


class Arrival:
    """One Submit, what it lacks, and what is kept for it meanwhile."""

    __slots__ = ("client", "first", "held", "missing", "submit")

    def __init__(self, client: bytes, submit: Submit, missing: set[bytes]) -> None:
        self.client = client
        self.submit = submit
        self.first = submit.tasks[0].task
        self.missing = missing
        self.held: list[bytes] = []


class Arrivals:
    """All of them, by their first task."""

    def __init__(self, me: bytes, out: Outbox, pins: Pins) -> None:
        self._me = me
        self._pins = pins
        self._pulls: Pulls[Arrival] = Pulls(out)
        self._waiting: dict[bytes, Arrival] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def repeated(self, client: bytes, submit: Submit) -> bool:
        """Is this very Submit on its way already?  Taken twice, its tasks could run twice."""
        arrival = self._waiting.get(submit.tasks[0].task)
        if arrival is None:
            return False
        arrival.client = client
        return True

    def wait(self, client: bytes, submit: Submit, missing: Sequence[Ref]) -> None:
        """Pull from the client what is not here."""
        arrival = Arrival(client, submit, {ref.digest for ref in missing})
        self._waiting[arrival.first] = arrival
        for ref in missing:
            self._pulls.wait(ref, self._me, client, arrival)

    def fetched(self, digest: bytes) -> list[Arrival]:
        """An object is here: which submits are complete; each is to be given to `over`."""
        complete = []
        for arrival in self._pulls.over(digest):
            if self._waiting.get(arrival.first) is not arrival:
                continue
            arrival.missing.discard(digest)
            arrival.held.append(digest)
            self._pins.pin(digest)
            if not arrival.missing:
                complete.append(arrival)
        return complete

    def failed(self, digest: bytes) -> list[Arrival]:
        """An object cannot be had: which submits cannot be; each is to be given to `over`."""
        waiting = self._waiting
        return [one for one in self._pulls.over(digest) if waiting.get(one.first) is one]

    def over(self, arrival: Arrival) -> None:
        """It was answered: what its tasks need they pin themselves."""
        del self._waiting[arrival.first]
        for digest in arrival.held:
            self._pins.unpin(digest)


def missing_objects(submit: Submit, known: Mapping[bytes, object], pins: Pins) -> list[Ref]:
    """What a Submit needs that is not here; tasks that are `known` need nothing."""
    refs = [
        item.work
        for item in submit.tasks
        if not isinstance(item.work, bytes) and item.task not in known
    ]
    if (
        submit.code is not None
        and submit.code.digest not in pins
        and not all(item.task in known for item in submit.tasks)
    ):
        refs.append(submit.code)
    return [ref for ref in refs if ref.digest not in pins]
