"""Handing ahead: what starts next lies with the process that comes free next, before it does.

Source  docs/protocol.md, "Handing ahead".  Pure.  A process that has to wait until the daemon has
read its last word and answered idles for longer than a small task takes.  This file must not know
how a process is reached, nor whether it has begun: that only the process and its pool settle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus.messages import GrantFlag
from blackroad.limits import AHEAD_LATE_MS, AHEAD_RUN_US_MAX
from blackroad.router.effects import HandAhead, Start, TakeBack
from blackroad.router.works import State

_DURABLE = int(GrantFlag.DURABLE)

if TYPE_CHECKING:
    from blackroad.bus.messages import Early, Facts
    from blackroad.router.effects import Outbox
    from blackroad.router.works import Work


def start_of(work: Work) -> Start:
    """What a process needs to run that attempt."""
    grant, lease = work.grant, work.lease
    devices = tuple(index for index, _ in lease.gpus) if lease is not None and lease.gpus else ()
    return Start(
        work.key,
        grant.task,
        grant.spec,
        grant.code,
        grant.work,
        grant.attempt,
        devices,
        work.deadline_ms,
        grant.more,
    )


def opened(work: Work) -> None:
    """An attempt begins: another one may be handed to its process."""
    if work.crowd.may_follow and not work.ask.gpu:
        work.crowd.open[work.key] = work


def learn(work: Work, facts: Facts, before: tuple[Early, ...]) -> None:
    """Note whether the next one should be handed ahead; bundles are small by what they are."""
    work.crowd.quick = bool(before) or facts.run_us <= AHEAD_RUN_US_MAX


def leader_of(work: Work, now_ms: int) -> Work | None:
    """Whose process may have this waiting attempt, which takes over all that the other one held.

    Not one that may run for longer than the attempt may: its deadline is the one that is watched.
    """
    crowd = work.crowd
    if not crowd.quick or crowd.over() or work.missing or work.grant.flags & ~_DURABLE:
        return None
    while crowd.open:
        key = next(iter(crowd.open))
        leader = crowd.open[key]
        if now_ms - leader.started_ms < AHEAD_LATE_MS:
            fits = leader.deadline_ms <= work.deadline_ms and leader.ask == work.ask
            return leader if fits else None
        del crowd.open[key]
    return None


def hand(work: Work, leader: Work, out: Outbox, now_ms: int) -> None:
    """Let it follow that one."""
    del leader.crowd.open[leader.key]
    leader.follower, work.after = work, leader
    work.handed_ms = now_ms
    out.add(HandAhead(start_of(work), leader.key))


def ask_back(work: Work, out: Outbox) -> None:
    """Have it not begin where it lies, unless it has; asked once."""
    if not work.asked_back:
        work.asked_back = True
        out.add(TakeBack(work.key))


def parted(work: Work) -> None:
    """It follows nobody any more."""
    leader, work.after = work.after, None
    work.asked_back = False
    if leader is not None:
        leader.follower = None


def returned(work: Work) -> None:
    """It has not begun, so another one may be handed to the process where it lay."""
    leader = work.after
    parted(work)
    if leader is not None and leader.state is State.RUNNING:
        opened(leader)
