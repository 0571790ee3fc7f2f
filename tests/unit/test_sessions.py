"""Sessions: who is connected, what is attached, what was not seen yet."""

from __future__ import annotations

from itertools import pairwise

import pytest

from blackroad.bus import messages as m
from blackroad.limits import SESSION_TASKS_MAX, SESSIONS_MAX
from blackroad.router.effects import Effect, Outbox, Tell
from blackroad.router.sessions import Sessions
from tests.unit.builders import CLIENT, INC, ME, NO_FACTS, SESSION, task_id

ANOTHER = b"client-2"


class Bench:
    """The sessions of node ME; `do` returns what leaves."""

    def __init__(self) -> None:
        self.out = Outbox(ME)
        self.it = Sessions(ME, INC, self.out)
        self.it.name = "attic"

    def open(self, client: bytes = CLIENT, now_ms: int = 0, **changes: object) -> list[Effect]:
        fields = {"session": SESSION, "lease_ms": 30_000, "user": "ada", **changes}
        self.it.open(client, m.Open(**fields), now_ms)
        return self.out.take()

    def tick(self, now_ms: int) -> tuple[list[bytes], list[Effect]]:
        over = self.it.tick(now_ms)
        return over, self.out.take()


def ended(number: int) -> m.Ended:
    return m.Ended(task_id(number), m.End.DONE, "", b"", NO_FACTS, ME, 1)


OPENED = m.Opened(SESSION, ME, INC, SESSION_TASKS_MAX, "attic")


def test_open_is_answered() -> None:
    """Section 5: -, Open, room: open, Opened."""
    bench = Bench()
    assert bench.open() == [Tell(CLIENT, OPENED)]
    assert bench.it.sessions[SESSION].user == "ada"


def test_open_again_moves_the_session_to_the_newest_connection() -> None:
    """R-frame-6: a daemon answers where the session spoke last."""
    bench = Bench()
    bench.open()
    bench.it.ended(SESSION, ended(1), 10)
    bench.out.take()
    assert bench.open(ANOTHER, 20) == [Tell(ANOTHER, OPENED), Tell(ANOTHER, ended(1))]
    assert bench.it.of_client(CLIENT) is None
    assert bench.it.of_client(ANOTHER) is bench.it.sessions[SESSION]


def test_too_many_sessions_are_put_off() -> None:
    """Section 5: -, Open, 1024 sessions there: Busy; those that are open may open again."""
    bench = Bench()
    for number in range(SESSIONS_MAX):
        bench.open(session=number.to_bytes(16, "big"))
    [told] = bench.open()
    assert told.message.what == "sessions"
    assert bench.open(session=bytes(16))[0].message.session == bytes(16)
    assert len(bench.it.sessions) == SESSIONS_MAX


def test_another_version_is_rejected() -> None:
    """R-life-9: none in common: Reject."""
    [told] = Bench().open(version=99)
    assert (told.message.reason, "99" in told.message.text) == ("version", True)


def test_a_lease_ends_and_any_message_extends_it() -> None:
    """Section 5: open, any message: lease counts from now; lease over: the session ends."""
    bench = Bench()
    bench.open()
    assert bench.tick(29_999)[0] == []
    assert bench.it.touch(SESSION, CLIENT, 29_999) is not None
    assert bench.tick(59_998)[0] == []
    assert bench.tick(61_000)[0] == [SESSION]
    assert bench.it.touch(b"x" * 16, CLIENT, 0) is None


def test_open_again_sets_the_lease() -> None:
    """Section 5: open, Open: Opened again; the lease is the one asked for last."""
    bench = Bench()
    bench.open()
    bench.open(now_ms=5000, lease_ms=1000)
    assert bench.tick(5999)[0] == []
    assert bench.tick(7000)[0] == [SESSION]


def test_unseen_outcomes_are_repeated() -> None:
    """R-submit-8: Ended is repeated after 2 s, then ever more rarely, until Seen."""
    bench = Bench()
    bench.open(lease_ms=600_000)
    assert bench.it.ended(SESSION, ended(1), 0) is True
    assert bench.it.ended(SESSION, ended(2), 1500) is True
    assert bench.out.take() == [Tell(CLIENT, ended(1)), Tell(CLIENT, ended(2))]
    assert bench.tick(2000)[1] == [Tell(CLIENT, ended(1))]
    assert bench.tick(5499)[1] == []
    assert bench.tick(6500)[1] == [Tell(CLIENT, ended(2)), Tell(CLIENT, ended(1))]
    assert bench.tick(14_499)[1] == []
    # Who reads again is told again soon.
    bench.it.seen(SESSION, (task_id(1),))
    assert bench.tick(15_500)[1] == [Tell(CLIENT, ended(2))]


def test_a_client_that_reads_nothing_is_not_buried() -> None:
    """R-submit-8: at least 30 s apart in the end, whatever has ended meanwhile."""
    bench = Bench()
    bench.open(lease_ms=600_000)
    bench.it.ended(SESSION, ended(1), 0)
    told = [now_ms for now_ms in range(0, 300_000, 1000) if bench.tick(now_ms)[1]]
    gaps = [later - now for now, later in pairwise(told)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 30_000


def test_nobody_listens_where_there_is_no_session() -> None:
    """R-submit-8: or until the session is over."""
    bench = Bench()
    assert bench.it.ended(SESSION, ended(1), 0) is False
    assert bench.out.take() == []


def test_a_dropped_session_gives_its_attached_tasks() -> None:
    """R-submit-2: an attached task belongs to its session; what was seen does not any more."""
    bench = Bench()
    bench.open()
    bench.it.attach(SESSION, [m.Item(task_id(n), b"") for n in (1, 2)])
    bench.it.seen(SESSION, (task_id(1),))
    assert tuple(bench.it.drop(SESSION)) == (task_id(2),)
    assert tuple(bench.it.drop(SESSION)) == ()
    assert bench.it.of_client(CLIENT) is None


@pytest.mark.parametrize("opened", [False, True])
def test_the_next_deadline(opened: bool) -> None:
    """Without sessions nothing is ever due."""
    bench = Bench()
    if opened:
        bench.open()
        bench.tick(100)
    assert (bench.it.next_deadline_ms() < 2**62) is opened
