"""What this machine can do at all: copies, pipes, codecs, ciphers, and how fast programs start."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench import jobs, proc
from bench.runner import Row
from bench.targets import HERE
from bench.works import SCALE_TASKS

MIB = 1 << 20
SMALL_BYTES = 100
SAMPLE_S = 0.2
STARTS = 9
PINGS = 5_000
HALVES = 3

Figure = tuple[str, float, str]


def rate_of(work: Callable[[], object]) -> float:
    """How often a second something can be done."""
    work()
    count = 0
    began = time.perf_counter()
    while (took_s := time.perf_counter() - began) < SAMPLE_S:
        for _ in range(8):
            work()
        count += 8
    return count / took_s


def copies() -> Iterator[Figure]:
    """Memory copied once."""
    source, target = bytearray(os.urandom(MIB) * 64), bytearray(64 * MIB)

    def copy() -> None:
        target[:] = source

    yield "copy of 64 MiB in memory", 64 * MIB * rate_of(copy) / 1e6, "MB/s"


def _answer(pipe: Any) -> None:
    with contextlib.suppress(EOFError):
        while True:
            pipe.send_bytes(pipe.recv_bytes())


def pipes() -> Iterator[Figure]:
    """Another process is woken, and wakes this one."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    other = multiprocessing.get_context("spawn").Process(target=_answer, args=(there,), daemon=True)
    other.start()
    there.close()
    trips_us = []
    for _ in range(PINGS):
        began = time.perf_counter_ns()
        here.send_bytes(b"x")
        here.recv_bytes()
        trips_us.append((time.perf_counter_ns() - began) / 1000)
    yield "pipe, there and back, p50", statistics.median(trips_us[100:]), "us"
    here.close()
    other.join()


def codecs() -> Iterator[Figure]:
    """A task of about a hundred bytes."""
    import pickle

    import msgpack
    import msgspec

    task = {"task": b"t" * 16, "name": "bench:noop", "work": b"x" * 40, "memory": 256, "rank": 5}
    packed = msgpack.packb(task)
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()
    for name, work in (
        ("msgpack, pack", lambda: msgpack.packb(task)),
        ("msgpack, unpack", lambda: msgpack.unpackb(packed)),
        ("msgspec, encode", lambda: encoder.encode(task)),
        ("msgspec, decode", lambda: decoder.decode(packed)),
        ("pickle, dump", lambda: pickle.dumps(task, 5)),
    ):
        yield f"{name} a small task", rate_of(work), "/s"


def ciphers() -> Iterator[Figure]:
    """What CURVE uses, what TLS uses, and a second libsodium where the system has one."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

    text, nonce = os.urandom(MIB), os.urandom(12)
    for kind in (AESGCM, ChaCha20Poly1305):
        cipher = kind(os.urandom(32))
        speed = MIB * rate_of(lambda one=cipher: one.encrypt(nonce, text, b"")) / 1e6
        yield f"{kind.__name__}, 1 MiB", speed, "MB/s"
    import zmq

    zmq.curve_keypair()
    maps = Path("/proc/self/maps").read_text()
    loaded = sorted({line.split()[-1] for line in maps.splitlines() if "libsodium" in line})
    others = [str(path) for path in Path("/usr/lib").glob("*/libsodium.so.23")]
    for path in loaded:
        yield from _sodium(path, "CURVE as installed (libsodium)")
    for path in others:
        if path not in loaded:
            yield from _sodium(path, "the system's libsodium")


def _sodium(path: str, name: str) -> Iterator[Figure]:
    library = ctypes.CDLL(path)
    library.sodium_init()
    seal = library.crypto_box_easy_afternm
    seal.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulonglong, ctypes.c_char_p, ctypes.c_char_p,
    ]  # fmt: skip
    nonce, key = os.urandom(24), os.urandom(32)
    for size in (SMALL_BYTES, MIB):
        sealed = ctypes.create_string_buffer(size + 16)
        often = rate_of(partial(seal, sealed, os.urandom(size), size, nonce, key))
        if size == MIB:
            yield f"{name}, 1 MiB", MIB * often / 1e6, "MB/s"
        else:
            yield f"{name}, {size} bytes", 1e6 / often, "us"


def chain() -> Iterator[Figure]:
    """The bare broker with batches, which a task system cannot be faster than for long."""
    from bench.chain import Chain

    one = Chain(2)
    try:
        one.value(one.send("noop", [(0,)])[0])
        for batch, count in ((1, 10_000), (64, 64_000), (256, 102_400)):
            began = time.perf_counter()
            numbers = []
            for first in range(0, count, batch):
                numbers += one.send("noop", [(n,) for n in range(first, first + batch)])
            for number in numbers:
                one.value(number)
            yield f"zmq-raw, {batch} in a message", count / (time.perf_counter() - began), "tasks/s"
    finally:
        one.close()


def starts() -> Iterator[Figure]:
    """How long programs take that only start: the shortest of several."""
    for name, words in (
        ("python", ["-c", "pass"]),
        ("import blackroad", ["-c", "import blackroad"]),
        ("from blackroad import Client", ["-c", "from blackroad import Client"]),
        ("blackroad --help", ["-m", "blackroad", "--help"]),
    ):
        took_ms = []
        for _ in range(STARTS):
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
            took_ms.append(1000 * (time.perf_counter() - began))
        yield name, statistics.median(took_ms), "ms"


def simulated() -> Iterator[Figure]:
    """The coordinator's events in a cluster that is only there in memory."""
    from tests.sim.scale import measure

    cost = measure(1_000, 10, 1_000_000)
    yield "full table", cost.table_ms, "ms"
    yield "changed Demand", cost.demand_ms, "ms"
    yield "memory", cost.memory_kib / 1024, "MiB"


def halves() -> Iterator[Figure]:
    """The work of `scale` in two plain processes, each with its half from the start.

    No task system can be better: what is missing is what the two take from each other, in caches,
    memory and turns of the scheduler.
    """
    spawned = multiprocessing.get_context("fork")
    jobs.pi(0)
    efficiencies = []
    for _ in range(HALVES):
        before_s = _seconds(0, SCALE_TASKS)
        middle = SCALE_TASKS // 2
        began = time.perf_counter()
        parts = [
            spawned.Process(target=_seconds, args=part)
            for part in ((0, middle), (middle, SCALE_TASKS))
        ]
        for part in parts:
            part.start()
        for part in parts:
            part.join()
        took_s = time.perf_counter() - began
        loop_s = (before_s + _seconds(0, SCALE_TASKS)) / 2
        efficiencies.append(100 * loop_s / took_s / 2)
    yield "two plain processes, Monte Carlo", statistics.median(efficiencies), "%"


def _seconds(first: int, last: int) -> float:
    began = time.perf_counter()
    for seed in range(first, last):
        jobs.pi(seed)
    return time.perf_counter() - began


PARTS: dict[str, Callable[[], Iterator[Figure]]] = {
    "memory": copies,
    "pipe": pipes,
    "codec": codecs,
    "cipher": ciphers,
    "zmq": chain,
    "import": starts,
    "simulated": simulated,
    "scale": halves,
}


def run(repeats: int) -> list[Row]:
    """All of them, as rows like those of the systems."""
    rows: list[Row] = []
    for repeat in range(repeats):
        for part, work in PARTS.items():
            others = proc.Others()
            found = list(work())
            share = round(others.percent(), 1)
            for metric, value, unit in found:
                print(f"#{repeat + 1} {part}: {metric} {value:,.1f} {unit}", file=sys.stderr)
                row: Row = {"system": HERE, "work": part, "metric": metric, "value": value}
                rows.append({**row, "unit": unit, "repeat": repeat, "others_percent": share})
    return rows
