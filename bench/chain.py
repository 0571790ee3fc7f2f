"""The yardstick: the least that a broker of Python and ZeroMQ can do.

Client, broker and workers exchange one message for each batch of tasks, a batch being one task
unless more are asked for.  Nothing is acknowledged, tried again, matched or kept, so whoever does
more than this can be measured by it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgpack
import zmq

CREDIT = 64
AT_ONCE = 256
READY = b"ready"
Keys = dict[str, tuple[bytes, bytes]] | None


def _socket(context: zmq.Context[Any], kind: int, keys: Keys, *, serves: bool = False) -> Any:
    socket = context.socket(kind)
    for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
        socket.set(option, 0)
    if keys is not None:
        public, secret = keys["broker" if serves else "others"]
        socket.set(zmq.CURVE_PUBLICKEY, public)
        socket.set(zmq.CURVE_SECRETKEY, secret)
        if serves:
            socket.set(zmq.CURVE_SERVER, 1)
        else:
            socket.set(zmq.CURVE_SERVERKEY, keys["broker"][0])
    return socket


def broker(pipe: Any, keys: Keys) -> None:
    """Deal messages to workers in turn while they have credit, and carry the answers back."""
    context = zmq.Context()
    front, back = (_socket(context, zmq.ROUTER, keys, serves=True) for _ in range(2))
    pipe.send([socket.bind_to_random_port("tcp://127.0.0.1") for socket in (front, back)])
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    waiting: deque[list[bytes]] = deque()
    free: deque[bytes] = deque()
    credit: dict[bytes, int] = {}
    while True:
        ready = dict(poller.poll())
        if back in ready:
            for worker, *answer in _drained(back):
                if answer == [READY]:
                    credit[worker] = CREDIT
                    free.append(worker)
                    continue
                front.send_multipart(answer)
                if not credit[worker]:
                    free.append(worker)
                credit[worker] += 1
        if front in ready:
            waiting.extend(_drained(front))
        while waiting and free:
            worker = free.popleft()
            back.send_multipart([worker, *waiting.popleft()])
            credit[worker] -= 1
            if credit[worker]:
                free.append(worker)


def _drained(socket: Any) -> Iterable[list[bytes]]:
    """What waits at a socket, but not so much that the other socket has to wait for long."""
    for _ in range(AT_ONCE):
        try:
            yield socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return


def worker(port: int, keys: Keys) -> None:
    """Run the functions of `bench.jobs` that messages name."""
    from bench import jobs

    socket = _socket(zmq.Context(), zmq.DEALER, keys)
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.send(READY)
    found = {name: one for name, one in vars(jobs).items() if callable(one)}
    while True:
        *route, body = socket.recv_multipart()
        answers = {}
        for number, name, arguments in msgpack.unpackb(body):
            value = found[name](*pickle.loads(arguments))
            answers[number] = pickle.dumps(value, 5)
        socket.send_multipart([*route, msgpack.packb(answers)])


class Chain:
    """A broker and workers in processes of their own, and a client's socket here."""

    def __init__(self, workers: int, *, curve: bool = False) -> None:
        keys = None
        if curve:
            keys = {"broker": zmq.curve_keypair(), "others": zmq.curve_keypair()}
        fresh = multiprocessing.get_context("spawn")
        here, there = fresh.Pipe()
        self._processes = [fresh.Process(target=broker, args=(there, keys), daemon=True)]
        self._processes[0].start()
        front, back = here.recv()
        for _ in range(workers):
            one = fresh.Process(target=worker, args=(back, keys), daemon=True)
            one.start()
            self._processes.append(one)
        self._context = zmq.Context()
        self._socket = _socket(self._context, zmq.DEALER, keys)
        self._socket.connect(f"tcp://127.0.0.1:{front}")
        self._numbers = itertools.count()
        self._answers: dict[int, bytes] = {}

    def send(self, name: str, calls: list[tuple[Any, ...]]) -> list[int]:
        """Send calls of one function as one message; return their numbers."""
        numbers = [next(self._numbers) for _ in calls]
        rows = [
            [number, name, pickle.dumps(call, 5)]
            for number, call in zip(numbers, calls, strict=True)
        ]
        self._socket.send(msgpack.packb(rows))
        return numbers

    def value(self, number: int, timeout_s: float | None = None) -> Any:
        """Wait for the answer to one call.

        Raises  TimeoutError.
        """
        end = time.monotonic() + (sys.maxsize if timeout_s is None else timeout_s)
        while number not in self._answers:
            left_ms = None if timeout_s is None else max(0, int(1000 * (end - time.monotonic())))
            if left_ms is not None and not self._socket.poll(left_ms):
                raise TimeoutError(f"task {number} did not come back")
            self._answers.update(msgpack.unpackb(self._socket.recv(), strict_map_key=False))
        return pickle.loads(self._answers.pop(number))

    def close(self) -> None:
        """End the processes."""
        for one in self._processes:
            one.kill()
            one.join()
        self._context.destroy(linger=0)
