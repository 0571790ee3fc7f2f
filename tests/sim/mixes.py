"""The work of one history: who submits what and when, all of it drawn beforehand.

This file must not know which faults there are beyond those that clients commit themselves.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from blackroad.bus import messages as m
from blackroad.requirements import Needs
from tests.sim.processes import Plan, object_bytes

NEEDS = Needs().to_wire()
SSD_NEEDS = Needs(labels={"disk": "ssd"}).to_wire()
LEASES_MS = (0, 5_000, 5_000, 5_000, 5_000, 8_000, 40_000)
SHORT_MS = 200
RUNS_MS = (1, 1, 20, 200, 2_000, 6_000, 20_000)
FATES = ("done",) * 8 + ("fail", "crash", "oom", "poison", "hang")
FIRST_MS = 3_200
# Of all tasks together, run one after the other: patience must be enough for one slot.
WORK_MS = 250_000
LONG_MS = 4_000


class Piece(NamedTuple):
    """One task of a submit."""

    name: str
    task: bytes
    work: m.Payload
    plan: Plan
    cancelled: bool


class Submission(NamedTuple):
    """One submit of one client.

    Units  `cancel_ms` counts from the submit; below 0 nothing is cancelled.
    """

    name: str
    client: str
    when_ms: int
    spec: m.ClassSpec
    durable: bool
    wait_for_node: bool
    deadline_ms: int
    code: m.Ref | None
    pieces: tuple[Piece, ...]
    cancel_ms: int

    def told(self) -> str:
        """One line for people."""
        spec = self.spec
        flags = [name for name in ("exclusive", "pure", "once") if getattr(spec, name)]
        if self.durable:
            flags.append("durable")
        if spec.gang > 1:
            flags.append(f"gang of {spec.gang}")
        if self.deadline_ms:
            flags.append(f"deadline {self.deadline_ms} ms")
        if self.cancel_ms >= 0:
            flags.append(f"cancel after {self.cancel_ms} ms")
        plan = self.pieces[0].plan
        names = f"{self.pieces[0].name}..{self.pieces[-1].name}"
        return (
            f"at {self.when_ms} ms: {self.client} submits {names}, {plan.fate} after "
            f"{plan.run_ms} ms, {', '.join(flags) or 'attached'}"
        )


class Member(NamedTuple):
    """One client.

    Units  `dies_ms` is a true time, below 0 for never; `heir_ms` counts from there.
    """

    name: str
    machine: int
    session: bytes
    opens_ms: int
    dies_ms: int
    heir_ms: int
    slow_ms: int
    says_seen: bool

    def told(self) -> str:
        """One line for people."""
        text = f"at {self.opens_ms} ms: opens a session on n{self.machine}"
        if self.dies_ms >= 0:
            text += f", dies at {self.dies_ms} ms"
        if self.heir_ms >= 0:
            text += f", its heir comes {self.heir_ms} ms later"
        if self.slow_ms:
            text += f", reads {self.slow_ms} ms late"
        return text if self.says_seen else text + ", never says Seen"


class Mix(NamedTuple):
    """One kind of task."""

    spec: m.ClassSpec
    durable: bool
    plans: tuple[Plan, ...]


class Work:
    """Everything that clients do in one history."""

    def __init__(self, rng: Random, faults: frozenset[str], nodes: int, fault_ms: int) -> None:
        self._rng = rng
        self._faults = faults
        self._nodes = nodes
        self._fault_ms = fault_ms
        self._left_ms = WORK_MS
        self._tasks = 0
        self.members: list[Member] = []
        self.submissions: list[Submission] = []
        many = "many_users" in faults
        for index in range(rng.choice((3, 6)) if many else rng.choice((1, 1, 2, 3))):
            self._member(index)

    def _when(self) -> int:
        return self._rng.randrange(FIRST_MS, FIRST_MS + self._fault_ms)

    def _member(self, index: int) -> None:
        rng, on = self._rng, self._faults.__contains__
        name = f"client#{index}"
        machine = rng.randrange(self._nodes)
        session, opens_ms = rng.randbytes(16), rng.randrange(FIRST_MS)
        dies, heir = rng.random() < 0.5, rng.choice((0, 300, 4_000, 40_000))
        dies_ms, slow_ms = self._when(), rng.choice((300, 5_000, 35_000))
        slow, silent = rng.random() < 0.5, rng.random() < 0.5
        retried = on("client_retry")
        dies = dies and (on("client_death") or retried)
        self.members.append(
            Member(
                name,
                machine,
                session,
                opens_ms,
                dies_ms if dies else -1,
                heir if dies and retried else -1,
                slow_ms if slow and on("slow_reader") else 0,
                not (silent and on("unseen")),
            )
        )
        mixes = [self._mix() for _ in range(rng.choice((1, 1, 2, 3)))]
        for _ in range(rng.choice((1, 2, 3, 6))):
            self._submission(name, rng.choice(mixes))

    def _mix(self) -> Mix:
        rng = self._rng
        run_ms = rng.choice(RUNS_MS)
        fate = rng.choice(FATES)
        needs = SSD_NEEDS if rng.random() < 0.15 else NEEDS
        gang = min(self._nodes, rng.choice((2, 2, 3))) if rng.random() < 0.12 else 1
        timeout_ms = run_ms // 2 + 2_000 if fate == "hang" or rng.random() < 0.1 else 0
        users: tuple[str, ...] = ("", "ann", "bob")
        if "many_users" in self._faults:
            users = (*users, *(f"user{number}" for number in range(9)))
        spec = m.ClassSpec(
            needs,
            priority=rng.choice((0, 0, 0, 5, -3)),
            user=rng.choice(users),
            gang=gang,
            exclusive=gang == 1 and rng.random() < 0.08,
            pure=gang == 1 and rng.random() < 0.25,
            once=rng.random() < 0.08,
            retries=rng.choice((0, 0, 2)),
            timeout_ms=timeout_ms,
            lease_ms=rng.choice(LEASES_MS),
            name=rng.choice(("pi", "fib", "wave")),
        )
        bad = rng.choice((1, 2, 3, 10**9))
        large = rng.random() < 0.2
        plans = tuple(
            Plan(max(1, int(run_ms * rng.choice((0.5, 1, 1, 2)))), fate, bad, large)
            for _ in range(3)
        )
        return Mix(spec, rng.random() < 0.5, plans)

    def _submission(self, client: str, mix: Mix) -> None:
        rng = self._rng
        spec = mix.spec
        code = self._object(5_000) if rng.random() < 0.2 else None
        count = rng.choice((1, 1, 2, 5, 12))
        if mix.plans[0].run_ms > LONG_MS or spec.gang > 1 or spec.exclusive:
            count = min(count, 2)
        heavy = "heavy_work" in self._faults
        if "bundles" in self._faults and mix.plans[0].run_ms <= SHORT_MS and not heavy:
            # Enough of them that some still wait when the first ones were measured.
            count *= 4
        cancelled = "cancel" in self._faults and rng.random() < 0.5
        pieces = []
        for _ in range(count):
            self._tasks += 1
            work: m.Payload = rng.randbytes(rng.choice((4, 900, 5_000)) if heavy else 4)
            if rng.random() < 0.1:
                work = self._object(0)
            pieces.append(
                Piece(
                    f"t{self._tasks}",
                    rng.randbytes(16),
                    work,
                    self._afford(rng.choice(mix.plans)),
                    cancelled and rng.random() < 0.7,
                )
            )
        self.submissions.append(
            Submission(
                f"submit#{len(self.submissions)}",
                client,
                self._when(),
                spec,
                mix.durable,
                rng.random() < 0.5,
                rng.choice((1_000, 20_000)) if rng.random() < 0.08 else 0,
                code,
                tuple(pieces),
                rng.choice((0, 5, 300, 5_000)) if cancelled else -1,
            )
        )

    def company(self, rng: Random) -> None:
        """One class of many small tasks, which travel in bundles, and now and then an odd one."""
        client = rng.choice(self.members).name
        spec = m.ClassSpec(
            NEEDS,
            pure=rng.random() < 0.3,
            retries=rng.choice((0, 0, 2)),
            lease_ms=rng.choice(LEASES_MS),
            name="small",
        )
        run_ms, odd = rng.choice((1, 5, 20)), rng.choice((0, 0.04, 0.15, 0.4))
        wishes = odd and rng.random() < 0.5
        code = self._object(5_000) if rng.random() < 0.2 else None
        first_ms = FIRST_MS + rng.choice((0, 100, 2_000))
        for wave in range(rng.choice((3, 4, 6))):
            pieces = []
            # The first few say how long they take; the later ones are many.
            for _ in range(rng.choice((8, 25, 60)) if wave else 2):
                self._tasks += 1
                plan, wished = Plan(run_ms), False
                if wave and rng.random() < odd:
                    plan = self._odd(rng, run_ms)
                    wished = wishes or plan.fate == "hang"
                piece = Piece(f"t{self._tasks}", rng.randbytes(16), rng.randbytes(4), plan, wished)
                pieces.append(piece._replace(plan=self._afford(plan)))
            when_ms = first_ms + (rng.randrange(300, self._fault_ms) if wave else 0)
            name = f"submit#{len(self.submissions)}"
            cancel_ms = rng.choice((0, 5, 60, 300, 5_000))
            self.submissions.append(
                Submission(
                    *(name, client, when_ms, spec, False, rng.random() < 0.5, 0, code),
                    *(tuple(pieces), cancel_ms if any(one.cancelled for one in pieces) else -1),
                )
            )

    def _odd(self, rng: Random, run_ms: int) -> Plan:
        """A task that is not as the others in its bundle."""
        match rng.randrange(8):
            case 0 | 1:
                return Plan(rng.choice((60, 300, 2_000)))
            case 2:
                return Plan(run_ms, large=True)
            case 3:
                # A wish ends it; but nobody wishes for the end of one that is tried again.
                return Plan(run_ms, "hang" if "retry_order" not in self._faults else "fail")
            case 4 if rng.random() < 0.3:
                return Plan(run_ms, "poison")
            case _:
                return Plan(run_ms, rng.choice(("fail", "crash", "oom")), rng.choice((1, 10**9)))

    def _object(self, size: int) -> m.Ref:
        digest = self._rng.randbytes(32)
        return m.Ref(digest, size or object_bytes(digest))

    def _afford(self, plan: Plan) -> Plan:
        """Make long tasks short once there are enough of them."""
        worst_ms = 3 * plan.run_ms
        if worst_ms > self._left_ms:
            return Plan(min(plan.run_ms, 200), plan.fate, plan.bad_tries, plan.large)
        self._left_ms -= worst_ms
        return plan
