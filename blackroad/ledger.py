"""The book of one node's resources: what is out, what is left, how often more fits.

Pure arithmetic on `Ask`; it knows neither tasks nor what the machine really uses.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from blackroad.asks import Ask
from blackroad.errors import invariant


class Totals(Struct, frozen=True):
    """What a ledger may hand out, or has left; memory of each GPU in the order of `gpus()`."""

    cpu_units: int
    memory_bytes: int
    gpus: tuple[int, ...] = ()


class Lease:
    """What one `Ledger.take` took; `gpus` holds (index, bytes) of each device."""

    __slots__ = ("cpu_units", "gpus", "memory_bytes", "serial")

    def __init__(
        self, serial: int, cpu_units: int, memory_bytes: int, gpus: tuple[tuple[int, int], ...]
    ) -> None:
        self.serial = serial
        self.cpu_units = cpu_units
        self.memory_bytes = memory_bytes
        self.gpus = gpus

    def __repr__(self) -> str:
        return (
            f"Lease({self.serial}, cpu_units={self.cpu_units}, "
            f"memory_bytes={self.memory_bytes}, gpus={self.gpus})"
        )


class Ledger:
    """The book of one node's processor shares, memory and GPU memory.

    Never hands out more than the totals, and takes each lease back once.  A device that a task
    holds whole (a `gpu` ask that states no memory) is shared with nobody.

    Raises  InvariantBroken where a lease comes back twice or was never given.
    """

    def __init__(self, cpu_units: int, memory_bytes: int, gpus: Sequence[int] = ()) -> None:
        invariant(cpu_units >= 0 and memory_bytes >= 0, "ledger: totals below 0")
        invariant(not gpus or min(gpus) >= 0, "ledger: totals below 0", gpus)
        self.totals = Totals(cpu_units, memory_bytes, tuple(gpus))
        self._cpu_units = cpu_units
        self._memory_bytes = memory_bytes
        self._gpu_bytes = list(gpus)
        self._gpu_users = [0] * len(gpus)
        self._whole: set[int] = set()
        self._serial = 0
        self._out: dict[int, Lease] = {}

    def take(self, ask: Ask) -> Lease | None:
        """Hand out what `ask` states, or nothing at all.

        Cost  about 1 us without GPUs.
        """
        cpu_units, memory_bytes = ask.cpu_units, ask.memory_bytes
        if cpu_units > self._cpu_units or memory_bytes > self._memory_bytes:
            return None
        gpus: tuple[tuple[int, int], ...] = ()
        if ask.gpu:
            chosen = self._choose_gpus(ask)
            if chosen is None:
                return None
            gpus = chosen
            for index, size in gpus:
                self._gpu_bytes[index] -= size
                self._gpu_users[index] += 1
                if not ask.gpu_memory_bytes:
                    self._whole.add(index)
        self._cpu_units -= cpu_units
        self._memory_bytes -= memory_bytes
        self._serial = serial = self._serial + 1
        lease = self._out[serial] = Lease(serial, cpu_units, memory_bytes, gpus)
        return lease

    def spend(self, ask: Ask) -> bool:
        """Hand out what `ask` states for good: for a table, which is thrown away as a whole.

        Cost  a third of `take`, where no GPU is asked for.
        """
        if ask.gpu:
            return self.take(ask) is not None
        cpu_units, memory_bytes = ask.cpu_units, ask.memory_bytes
        if cpu_units > self._cpu_units or memory_bytes > self._memory_bytes:
            return False
        self._cpu_units -= cpu_units
        self._memory_bytes -= memory_bytes
        return True

    def give(self, lease: Lease) -> None:
        """Take a lease back into the book."""
        if self._out.pop(lease.serial, None) is not lease:
            invariant(False, "ledger: a lease that is not out came back", lease)
        self._cpu_units += lease.cpu_units
        self._memory_bytes += lease.memory_bytes
        for index, size in lease.gpus:
            self._gpu_bytes[index] += size
            self._gpu_users[index] -= 1
            self._whole.discard(index)
        if self._cpu_units > self.totals.cpu_units or self._memory_bytes > self.totals.memory_bytes:
            invariant(False, "ledger: more is free than there is", self.totals, lease)

    def free(self) -> Totals:
        """Return what is left."""
        return Totals(self._cpu_units, self._memory_bytes, tuple(self._gpu_bytes))

    @property
    def exhausted(self) -> bool:
        """Can nothing more be taken, however little?"""
        return self._cpu_units <= 0

    def leases(self) -> int:
        """Return how many leases are out."""
        return len(self._out)

    def room_for(self, ask: Ask) -> int:
        """Return how often in a row `take(ask)` would succeed now."""
        room = self._cpu_units // ask.cpu_units
        if ask.memory_bytes:
            room = min(room, self._memory_bytes // ask.memory_bytes)
        if ask.gpu and room:
            room = min(room, self._gpu_room(ask))
        return room

    def check(self) -> None:
        """Add the whole book up again.

        Cost    a few us per lease that is out.
        Raises  InvariantBroken where a sum is wrong.
        """
        out = self._out.values()
        totals = self.totals
        cpu_units = sum(lease.cpu_units for lease in out)
        memory_bytes = sum(lease.memory_bytes for lease in out)
        invariant(cpu_units + self._cpu_units == totals.cpu_units, "ledger: cpu", cpu_units)
        invariant(self._cpu_units >= 0 <= self._memory_bytes, "ledger: more given than there is")
        invariant(
            memory_bytes + self._memory_bytes == totals.memory_bytes,
            "ledger: memory",
            memory_bytes,
        )
        for index, total in enumerate(totals.gpus):
            sizes = [size for lease in out for at, size in lease.gpus if at == index]
            left = self._gpu_bytes[index]
            invariant(left >= 0 and sum(sizes) + left == total, "ledger: gpu memory", index)
            invariant(len(sizes) == self._gpu_users[index], "ledger: gpu users", index)
            invariant(len(sizes) == 1 or index not in self._whole, "ledger: shared", index)

    def _choose_gpus(self, ask: Ask) -> tuple[tuple[int, int], ...] | None:
        """Choose the devices with most free memory, the first of equals."""
        able = [at for at in range(len(self._gpu_bytes)) if self._gpu_takes(at, ask)]
        if len(able) < ask.gpu:
            return None
        able.sort(key=lambda at: (-self._gpu_bytes[at], at))
        size = ask.gpu_memory_bytes
        return tuple((at, size or self._gpu_bytes[at]) for at in sorted(able[: ask.gpu]))

    def _gpu_takes(self, at: int, ask: Ask) -> bool:
        if ask.gpu_memory_bytes:
            return at not in self._whole and self._gpu_bytes[at] >= ask.gpu_memory_bytes
        return self._gpu_users[at] == 0

    def _gpu_room(self, ask: Ask) -> int:
        able = [at for at in range(len(self._gpu_bytes)) if self._gpu_takes(at, ask)]
        if not ask.gpu_memory_bytes:
            return len(able) // ask.gpu
        # n tasks of k devices each fit when the devices, each used by a task at most once,
        # offer n * k places; more tasks never make that easier.
        places = [self._gpu_bytes[at] // ask.gpu_memory_bytes for at in able]
        low, high = 0, sum(places) // ask.gpu
        while low < high:
            tasks = (low + high + 1) // 2
            if sum(min(tasks, each) for each in places) >= tasks * ask.gpu:
                low = tasks
            else:
                high = tasks - 1
        return low
