"""Whom the view asks and when, and that it goes on when nobody answers."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from blackroad.errors import BlackroadError, NoDaemon, Unreachable, UsageError
from blackroad.tui import rota
from blackroad.tui.feed import Feed, Session, look_twice
from blackroad.tui.model import Model
from blackroad.tui.rota import Rota
from tests.tui.fakes import FakeMesh, beat, node_id, task_row, work

LIMIT_S = 20.0

# --- whom to ask --------------------------------------------------------------------------------


def test_owners_with_tasks_are_asked_in_turn() -> None:
    beats = [beat(at, owned=1) for at in range(20)]
    turns = Rota()
    asked = []
    for second in range(5):
        turn = turns.turn(beats, node_id(0), second * 1_000)
        assert len(turn.owners) == rota.BUSY_MAX
        asked += turn.owners
    # Nobody is asked again before all have been.
    assert len(set(asked[:20])) == 20
    assert max(asked.count(owner) for owner in asked) <= 3


def test_others_are_asked_now_and_then() -> None:
    beats = [beat(at) for at in range(6)]
    turns = Rota()
    rounds = [turns.turn(beats, node_id(0), second * 1_000).owners for second in range(5)]
    # The daemon that is asked for everything, and two more each time, until all have told.
    assert [len(one) for one in rounds] == [3, 3, 2, 1, 1]
    assert {owner for one in rounds for owner in one} == {node_id(at) for at in range(6)}
    assert len(turns.turn(beats, node_id(0), 40_000).owners) == 3


def test_who_was_silent_is_left_alone_for_a_while() -> None:
    beats = [beat(0), beat(1, owned=5)]
    turns = Rota()
    assert node_id(1) in turns.turn(beats, node_id(0), 0).owners
    turns.silent(node_id(1), 0)
    assert turns.turn(beats, node_id(0), 1_000).owners == (node_id(0),)
    assert node_id(1) in turns.turn(beats, node_id(0), rota.REST_MS).owners


def test_nobody_asks_the_dead_and_everyone_means_everyone_else() -> None:
    beats = [beat(0), *(beat(at, owned=at % 2) for at in range(1, 40)), beat(40, state="dead")]
    turn = Rota().turn(beats, node_id(0), 0, everyone=True)
    assert set(turn.owners) == {node_id(at) for at in range(40)}
    assert turn.rows == rota.ROWS_MIN


def test_few_owners_may_tell_much() -> None:
    assert Rota().turn([beat(0, owned=9)], node_id(0), 0).rows == rota.ROWS


# --- looking ------------------------------------------------------------------------------------


def changed_by(feed: Feed, model: Model) -> Any:
    """Start a feed; return what waits for its next look."""
    changed = threading.Event()
    feed.start(changed.set)

    def wait() -> Model:
        assert changed.wait(LIMIT_S)
        changed.clear()
        feed.drain(model)
        return model

    return wait


def test_it_looks_again_and_again_and_takes_in_all() -> None:
    mesh = FakeMesh(beat(0, owned=1))
    mesh.works[node_id(0)] = work(0, task_row(1))
    mesh.happened = [{"id": "a", "at_ms": 1, "name": "node.joined", "facts": {"node": "x"}}]
    feed, model = Feed(mesh, 0.01), Model()
    try:
        wait = changed_by(feed, model)
        while not (model.looks >= 3 and model.tasks() and model.happenings):
            wait()
        assert model.problem == ""
    finally:
        feed.close()
    assert mesh.closed
    assert [thread for thread in feed._threads if thread.is_alive()] == []


def test_it_goes_on_when_the_daemon_is_away_and_when_another_leads() -> None:
    mesh = FakeMesh(beat(0), beat(1))
    feed, model = Feed(mesh, 0.01), Model()
    try:
        wait = changed_by(feed, model)
        wait()
        mesh.away = True
        while not model.problem:
            wait()
        assert model.problem.startswith("no daemon answers (for ")
        # What was known stays on the screen.
        assert len(model.beats()) == 2
        mesh.coordinator, mesh.epoch, mesh.away = 1, 4, False
        while model.problem:
            wait()
        assert model.mesh is not None
        assert (model.mesh.coordinator, model.mesh.epoch) == (node_id(1), 4)
    finally:
        feed.close()


def test_one_silent_owner_does_not_hide_the_others() -> None:
    mesh = FakeMesh(*(beat(at, owned=1) for at in range(3)))
    mesh.works[node_id(1)] = Unreachable("no answer within 2 s")
    mesh.works[node_id(0)] = UsageError("this daemon knows no query `work`")
    mesh.works[node_id(2)] = work(2, task_row(1))
    feed, model = Feed(mesh, 0.01), Model()
    feed.look()
    feed.ask_owners(Rota(), mesh.mesh())
    feed.drain(model)
    assert [one.owner for one in model.tasks()] == ["loft"]
    assert model.counts() == {"running": 1, "untold": 2}


def test_whatever_a_daemon_refuses_is_shown_and_asked_again() -> None:
    mesh = FakeMesh(beat(0))
    feed, model = Feed(mesh, 0.01), Model()
    try:
        wait = changed_by(feed, model)
        wait()
        mesh.refusal = BlackroadError("the daemon refused: version")
        while not model.problem:
            wait()
        assert "refused: version" in model.problem
        mesh.refusal = None
        while model.problem:
            wait()
    finally:
        feed.close()


def test_nobody_tells_of_another_owners_tasks() -> None:
    mesh = FakeMesh(*(beat(at, owned=1) for at in range(2)))
    mesh.works[node_id(0)] = work(0, task_row(1))
    mesh.works[node_id(1)] = work(0, task_row(7), task_row(8), task_row(9))
    feed, model = Feed(mesh, 0.01), Model()
    feed.look()
    feed.ask_owners(Rota(), mesh.mesh())
    feed.drain(model)
    assert model.counts() == {"running": 1, "untold": 1}


def test_what_is_wrong_at_the_first_look_is_an_error() -> None:
    mesh = FakeMesh(beat(0))
    mesh.away = True
    with pytest.raises(NoDaemon):
        Feed(mesh, 1.0).first()


def test_one_answer_has_two_looks_and_all_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blackroad.tui.feed.ONCE_S", 0.0)
    mesh = FakeMesh(*(beat(at) for at in range(30)))
    mesh.works[node_id(29)] = work(29, task_row(1))
    feed, model = Feed(mesh, 0.0), Model()
    look_twice(feed, model)
    assert model.looks == 2
    assert {asked[1] for asked in mesh.asked} == {node_id(at) for at in range(30)}
    assert len(model.tasks()) == 1


# --- sessions -----------------------------------------------------------------------------------


class Client:
    """As much of a client as a session uses."""

    def __init__(self, replies: list[Any]) -> None:
        self.replies = replies
        self.closed = False
        self._connection = self

    def query(self, name: str, args: bytes, target: bytes, timeout_s: float) -> bytes:
        reply = self.replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        assert isinstance(reply, bytes)
        return reply

    def cancel(self, task: str) -> str:
        return f"cancel {task}"

    def close(self) -> None:
        self.closed = True


def test_a_lost_session_is_made_anew() -> None:
    import msgspec

    from tests.tui.fakes import view

    answer = msgspec.msgpack.encode(view(beat(0)))
    first, second = Client([answer, Unreachable("gone")]), Client([answer])
    clients = [first, second]
    waits: list[float | None] = []

    def connect(timeout_s: float | None) -> Any:
        waits.append(timeout_s)
        return clients.pop(0)

    session = Session(connect)
    assert session.mesh().nodes[0].name == "attic"
    with pytest.raises(Unreachable):
        session.mesh()
    assert first.closed
    assert session.mesh().nodes[0].name == "attic"
    assert waits == [None, 0.5]
    assert session.ask("cancel", "x") == "cancel x"
    session.close()
    assert second.closed


def test_an_answer_of_another_version_is_no_crash() -> None:
    session = Session(lambda _timeout: Client([b"\x93\x01\x02\x03"]))
    with pytest.raises(Unreachable, match="another way"):
        session.mesh()


def test_a_silent_owner_does_not_end_the_session() -> None:
    client = Client([Unreachable("no answer")])
    session = Session(lambda _timeout: client)
    with pytest.raises(Unreachable):
        session.work(node_id(1), 10)
    assert not client.closed
