"""Two programs with one routing id: `python -m tests.chaos.twins ENDPOINT` tells how they fare.

Only over TCP is a program known by such an id, so this one runs in a machine's network.
"""

from __future__ import annotations

import sys
import time

from blackroad.client import Client, wire
from blackroad.client.futures import TaskFuture
from blackroad.errors import NoDaemon
from tests.chaos.machines import until

RIGHT = [-number for number in range(200)]


class Bus(wire.Bus):
    """Gives every client socket the same routing id."""

    def client(self, server_key: bytes = b""):  # type: ignore[no-untyped-def]
        socket = super().client(server_key)
        socket.routing_id = b"the same for all"
        return socket


def _check(what: str, futures: list[TaskFuture]) -> None:
    until(lambda: all(future.done() for future in futures), "all results", 60)
    if [future.result() for future in futures] != RIGHT:
        raise AssertionError(f"{what} lost results")


def main(endpoint: str) -> None:
    """A second client comes with a routing id that is taken, and again when it is free."""
    wire.Bus = Bus  # type: ignore[misc]
    first = Client(endpoint, user="chaos", connect_timeout=10)
    futures = [first.submit("operator:neg", number) for number in range(100)]
    began = time.perf_counter()
    try:
        second = Client(endpoint, user="chaos", connect_timeout=2)
    except NoDaemon:
        told = f"told that nobody answers after {time.perf_counter() - began:.1f} s"
    else:
        told = "served as well"
        _check("the second", [second.submit("operator:neg", number) for number in range(200)])
        second.close()
    futures += [first.submit("operator:neg", number) for number in range(100, 200)]
    _check("the first", futures)
    first.close()
    third = until(lambda: Client(endpoint, user="chaos", connect_timeout=2), "the id free", 30)
    _check("the one that came later", [third.submit("operator:neg", n) for n in range(200)])
    third.close()
    print(told)


if __name__ == "__main__":
    main(sys.argv[1])
