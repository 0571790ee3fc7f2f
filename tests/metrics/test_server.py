"""The HTTP server on real sockets: hostile, slow and too many clients, with a clock of the test."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator

import pytest

from blackroad.errors import ConfigError, PortInUse
from blackroad.metrics import server as serving
from blackroad.metrics.rules import HEAD_BYTES_MAX, Answer, Door, Request, Routes
from blackroad.metrics.server import Server, bind

pytestmark = pytest.mark.edge

GET = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LARGE = b"x" * 20_000_000


class Bench:
    """A server, the clock it sees, and the clients of one test."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.body = b"figures\n"
        self.clients: list[socket.socket] = []
        routes = Routes(
            Door((), "", loopback=True), {"/metrics": self._metrics}, open_path="/health"
        )
        self.server = Server(bind("127.0.0.1", 0), routes, lambda: self.now_ms)

    def _metrics(self, request: Request, proves: bool) -> Answer:
        return Answer(200, self.body)

    def client(self, said: bytes = b"") -> socket.socket:
        one = socket.create_connection(("127.0.0.1", self.server.port), timeout=10)
        one.setblocking(False)
        self.clients.append(one)
        if said:
            one.send(said)
        return one

    def turns(self, until: Callable[[], object]) -> None:
        """Let the server work until that is so; the wait is for the kernel, not for a time."""
        for _ in range(20_000):
            if until():
                return
            select.select([self.server.fileno()], [], [], 0.01)
            self.server.turn()
        raise AssertionError("it did not come to that")

    def read(self, one: socket.socket) -> bytes:
        """All that a client gets until the server closes."""
        got: list[bytes] = []

        def over() -> bool:
            try:
                data = one.recv(1 << 20)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            got.append(data)
            return not data

        self.turns(over)
        return b"".join(got)

    def gone(self, one: socket.socket) -> bool:
        """Whether the server has closed that connection, with nothing said."""
        try:
            return one.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def pass_ms(self, span_ms: int) -> None:
        self.now_ms += span_ms
        self.server.tick(self.now_ms)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    for one in made.clients:
        one.close()
    made.server.close()


# --- answers ------------------------------------------------------------------------------------


def test_it_answers_and_closes(bench: Bench) -> None:
    answer = bench.read(bench.client(GET))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nfigures\n")
    assert b"Content-Length: 8\r\n" in answer
    bench.clients.pop().close()
    bench.turns(lambda: not len(bench.server))
    assert bench.server.codes == {200: 1}


def test_head_gives_the_length_and_no_body(bench: Bench) -> None:
    answer = bench.read(bench.client(GET.replace(b"GET", b"HEAD")))
    assert b"Content-Length: 8\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_request_may_come_letter_by_letter(bench: Bench) -> None:
    one = bench.client()
    for letter in GET[:-1]:
        one.send(bytes([letter]))
        bench.turns(lambda: len(bench.server))
        bench.server.turn()
    assert not bench.server.codes
    one.send(GET[-1:])
    assert bench.read(one).startswith(b"HTTP/1.1 200")


def test_who_says_goodbye_before_the_answer_still_gets_it(bench: Bench) -> None:
    one = bench.client(GET)
    one.shutdown(socket.SHUT_WR)
    assert bench.read(one).startswith(b"HTTP/1.1 200")


# --- too much -----------------------------------------------------------------------------------


def test_headers_of_100_kb_are_refused_when_8_kb_are_there(bench: Bench) -> None:
    one = bench.client(b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 100_000)
    answer = bench.read(one)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert bench.server.codes == {431: 1}


def test_a_head_that_is_long_and_whole_is_refused_as_well(bench: Bench) -> None:
    long = b"GET /metrics HTTP/1.1\r\nX: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n"
    assert bench.read(bench.client(long)).startswith(b"HTTP/1.1 431 ")


def test_a_body_of_1_gb_is_refused_before_it_comes_and_is_not_read(bench: Bench) -> None:
    head = b"POST /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000\r\n\r\n"
    one = bench.client(head)
    sent = 0

    def cut_off() -> bool:
        nonlocal sent
        try:
            sent += one.send(b"z" * 65_536)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    bench.turns(cut_off)
    assert bench.server.codes == {413: 1}
    # What is read to let the answer arrive, and what the kernel's buffers hold.
    assert sent < 16_000_000
    assert not len(bench.server)


def test_of_200_idle_connections_the_oldest_go_and_an_honest_one_is_answered(bench: Bench) -> None:
    idle = []
    for _ in range(200):
        idle.append(bench.client(b"GET /met"))
        bench.turns(lambda: True)
        bench.server.turn()
    bench.turns(lambda: bench.server.dropped["crowded"] == 200 - serving.CONNECTIONS_MAX)
    assert len(bench.server) == serving.CONNECTIONS_MAX
    assert bench.read(bench.client(GET)).startswith(b"HTTP/1.1 200")
    assert bench.gone(idle[0])
    assert not bench.gone(idle[-1])


def test_a_flood_of_connections_gets_so_many_a_second(bench: Bench) -> None:
    bench.turns(lambda: True)
    for _ in range(serving.ACCEPTS_MAX):
        bench.client().close()
        bench.turns(lambda: True)
        bench.server.turn()
    late = bench.client(GET)
    for _ in range(50):
        bench.server.turn()
    assert not bench.server.codes
    assert not select.select([bench.server.fileno()], [], [], 0)[0], "a paused server must not spin"
    bench.pass_ms(serving.ACCEPTS_MS)
    assert bench.read(late).startswith(b"HTTP/1.1 200")


# --- too slow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTT"])
def test_a_request_that_does_not_come_is_dropped_by_its_deadline(bench: Bench, said: bytes) -> None:
    one = bench.client(said)
    bench.turns(lambda: len(bench.server))
    bench.pass_ms(serving.REQUEST_MS - 1)
    assert len(bench.server) == 1
    bench.pass_ms(1)
    assert not len(bench.server)
    assert bench.server.dropped["slow"] == 1
    bench.turns(lambda: bench.gone(one))


def test_a_letter_now_and_then_gains_no_time(bench: Bench) -> None:
    one = bench.client(b"G")
    bench.turns(lambda: len(bench.server))
    for _ in range(5):
        one.send(b"E")
        bench.server.turn()
        bench.pass_ms(serving.REQUEST_MS // 5)
    assert not len(bench.server)


def test_who_does_not_read_is_dropped_and_holds_no_copy(bench: Bench) -> None:
    bench.body = LARGE
    for _ in range(20):
        bench.client(GET)
    bench.turns(lambda: bench.server.codes.get(200) == 20)
    lefts = [one.left for one in bench.server._connections.values()]
    assert len(lefts) == 20
    assert all(left and left[-1].obj is bench.body for left in lefts)
    bench.pass_ms(serving.ANSWER_MS)
    assert not len(bench.server)
    assert bench.server.dropped["slow"] == 20


def test_who_takes_the_answer_and_stays_is_let_go(bench: Bench) -> None:
    one = bench.client(GET)
    bench.read(one)
    assert len(bench.server) == 1
    bench.pass_ms(serving.LINGER_MS)
    assert not len(bench.server)
    assert not any(bench.server.dropped.values())


def test_who_vanishes_is_forgotten(bench: Bench) -> None:
    bench.body = LARGE
    reset = bench.client(GET)
    bench.turns(lambda: bench.server.codes)
    # A close that resets the connection.
    reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    reset.close()
    bench.turns(lambda: not len(bench.server))


# --- the port -----------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named(bench: Bench) -> None:
    with pytest.raises(PortInUse, match=f"metrics_port = {bench.server.port} on") as caught:
        bind("127.0.0.1", bench.server.port)
    assert "ss -ltnp" in caught.value.hint


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1") as caught:
        bind("192.0.2.1", 0)
    assert "metrics_listen" in caught.value.hint
