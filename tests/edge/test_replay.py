"""What a member said once and says again, with the same bytes: nobody hears it twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from blackroad.bus import messages as m
from blackroad.bus import sockets
from blackroad.bus import transport as moving
from tests.edge.closed_nets import ClosedNet, ClosedSpeaker

pytestmark = pytest.mark.edge


@pytest.fixture
def net() -> Iterator[ClosedNet]:
    made = ClosedNet()
    yield made
    made.close()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, list[bytes]]]:
    """Every multipart that any link sends, with the socket it left on."""
    kept: list[tuple[Any, list[bytes]]] = []

    def send(socket: Any, frames: Any) -> bool:
        done = sockets.send(socket, frames)
        if done:
            kept.append((socket, [bytes(one) for one in frames]))
        return done

    monkeypatch.setattr(moving, "send", send)
    return kept


def said(one: ClosedSpeaker, number: int) -> bool:
    return any(message == m.Goodbye(number) for _, message in one.heard)


def dropped(one: ClosedSpeaker) -> int:
    counters = one.transport.counters
    return counters.get("sequence.old", 0) + counters.get("session.unknown", 0)


def test_what_was_recorded_has_no_effect_a_second_time(
    net: ClosedNet, recorded: list[tuple[Any, list[bytes]]]
) -> None:
    """Row 42: at once, an hour later, and to the next life of the one who heard it."""
    ear, mouth = net.node(), net.node()
    net.meet(ear, mouth)
    recorded.clear()
    for number in range(1, 21):
        mouth.transport.send(ear.node, m.Goodbye(number))
        net.until(lambda number=number: said(ear, number))
    tape = [frames for _, frames in recorded]
    assert len(tape) >= 20

    def play() -> int:
        """Say all of it again, and something new behind it; return how much of it was heard."""
        ear.heard.clear()
        for frames in tape:
            assert sockets.send(mouth.transport._sockets[ear.node], frames)

        def heard_something_new() -> bool:
            # Said again and again: who does not know a session has it greeted anew.
            mouth.transport.send(ear.node, m.Goodbye(999))
            return said(ear, 999)

        net.until(heard_something_new, skip_ms=20)
        return sum(message != m.Goodbye(999) for _, message in ear.heard)

    assert play() == 0
    assert dropped(ear) == len(tape)
    # An hour later the link is made anew: the tape may end with the old connection.
    net.skip(3_600_000)
    assert play() == 0

    own = ear.own
    net.end(ear)
    again = net.node(own, counter=2)
    again.transport.hint(mouth.endpoint, net.now_ms())
    net.until(lambda: again.knows(mouth) and mouth.knows(again))
    ear = again
    assert play() == 0
    assert dropped(again) > 0
