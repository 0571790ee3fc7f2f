"""A node between an honest peer and a hostile one, which has keys and says what it likes.

The hostile peer's frames are real messages, with the ids and tokens of other people's work in
them, broken by chance: bits, cuts, copies, other lengths, other ids.  They take the way of
every frame, through the decoder into the node.  Whatever they say, the work between the node and
its honest peer goes on and ends as that peer says.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from blackroad import capabilities
from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.errors import RemoteProtocolError
from blackroad.happenings import Event
from blackroad.ids import Epoch, Token, incarnation
from blackroad.node import Finished, Flushed, FromClient, FromPeer, Heard, Node, Tick
from blackroad.requirements import Needs
from blackroad.router.effects import Kill, Persist, Send, Start, Tell
from tests.unit.builders import CLIENT, INC, SESSION, beat, caps, digest, grant, spec, task_id

ME, HONEST, HOSTILE = (bytes([number]) * 16 for number in (1, 2, 3))
NAMES: Final = {HONEST: "honest", HOSTILE: "hostile"}
BEAT_MS: Final = 250
FRAMES_PER_BEAT: Final = 200
# Fewer than a node has cores: all of them run at once.
TASKS: Final = 3
FOREIGN: Final = Token(INC, 1)


class World:
    """The node in the middle, its honest peer, and what they have in hand together."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now_ms = 10_000
        self.node = Node(ME, INC, caps("me"), 4, self.now_ms, election_priority=100)
        self.granted: dict[bytes, m.Grant] = {}
        self.ended: dict[bytes, m.Ended] = {}
        self.started = False
        self.killed = False
        self.refused = self.decoded = self.said = 0
        self._beats(4)
        for peer, name in NAMES.items():
            body = caps(name)
            told = m.Capabilities(peer, INC, body.digest(), capabilities.encode(body))
            self.handle(FromPeer(peer, [told], INC))
        self.handle(FromClient(CLIENT, [m.Open(SESSION, 600_000, "somebody")]))
        self._submit(Needs(node="honest"), range(1, 1 + TASKS))
        self._submit(Needs(node="hostile"), range(101, 101 + TASKS))
        self._beats(40)
        assert len(self.granted) == TASKS, "the honest peer has its tasks"
        mine = grant(
            1, inc=INC, echo_ms=self.now_ms, lease_ms=86_400_000, task=task_id(500), spec=spec()
        )
        self.mine = mine.token
        self.handle(FromPeer(HONEST, [mine], INC))
        assert self.started, "the node runs something for its honest peer"

    def _submit(self, needs: Needs, numbers: range) -> None:
        items = tuple(m.Item(task_id(number), b"work") for number in numbers)
        kind = spec(needs.to_wire(), lease_ms=86_400_000)
        self.handle(FromClient(CLIENT, [m.Submit(SESSION, kind, None, False, True, items)]))

    # --- the world --------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """One event, and what it brings about outside."""
        for effect in self.node.handle(event, self.now_ms):  # type: ignore[arg-type]
            match effect:
                case Send(to=to, message=m.Grant() as given) if to == HONEST:
                    self.granted[given.task] = given
                case Tell(message=m.Ended() as ended):
                    self.ended[ended.task] = ended
                case Start(key=(owner, _)) if owner == HONEST:
                    self.started = True
                case Kill(key=(owner, _)) if owner == HONEST:
                    self.killed = True
                case Start(key=key):
                    done = Finished(key, m.Status.DONE, b"x", m.Facts())
                    self.handle(done)
                case Persist():
                    self.handle(Flushed(effect.mark))

    def _beats(self, count: int) -> None:
        for _ in range(count):
            self.now_ms += BEAT_MS
            follows = ME if self.node.election.claim is not None else b""
            for peer, name in NAMES.items():
                told = beat(peer, self.now_ms, follows=follows, caps_digest=caps(name).digest())
                self.handle(Heard(told))
            tokens = tuple(
                m.Listed(one.token, m.AttemptState.RUNNING) for one in self.granted.values()
            )
            self.handle(FromPeer(HONEST, [m.Renew(INC, self.now_ms, tokens)], INC))
            self.handle(FromClient(CLIENT, [m.Alive(SESSION)]))
            self.handle(Tick())

    # --- what is said -----------------------------------------------------------------------------

    def _any_token(self) -> Token:
        tokens = [one.token for one in self.granted.values()]
        tokens += [self.mine, FOREIGN, *self.node.owner.attempts]
        return self.chance.choice(tokens)

    def _any_task(self) -> bytes:
        return self.chance.choice([*self.granted, task_id(101), task_id(500), task_id(9_999)])

    def _any_node(self) -> bytes:
        return self.chance.choice([ME, HONEST, HOSTILE, bytes(16)])

    def _any_inc(self) -> int:
        return self.chance.choice([INC, INC + 1, incarnation(8, 1), incarnation(6, 1), 0])

    def _message(self) -> m.Message:
        chance = self.chance
        token, task, inc = self._any_token(), self._any_task(), self._any_inc()
        stamp = self.now_ms + chance.choice([0, -30_000, 10**9])
        epoch = Epoch(chance.choice([1, 2, 10**6]), self._any_node())
        made: list[Callable[[], m.Message]] = [
            lambda: m.Goodbye(inc),
            lambda: m.Busy("Grant", 1_000, (task,)),
            lambda: m.AskCapabilities(caps().digest()),
            lambda: m.Capabilities(
                self._any_node(), inc, caps("x").digest(), capabilities.encode(caps("x"))
            ),
            lambda: m.Demand(inc, chance.randrange(99), (), (HONEST,)),
            lambda: m.Allocation(
                epoch, chance.randrange(99), inc, 10**6, (m.Row(1, self._any_node(), 4),)
            ),
            lambda: grant(chance.randrange(99), token=token, task=task, inc=inc, echo_ms=stamp),
            lambda: m.Refused(token, inc, 1, chance.choice(list(m.Reason))),
            lambda: m.Recall(token, chance.random() < 0.5),
            lambda: m.Renew(inc, stamp, (m.Listed(token, m.AttemptState.RUNNING),)),
            lambda: m.Renewed(inc, stamp, (token,)),
            lambda: m.Outcome(
                token, task, inc, chance.choice(list(m.Status)), b"forged", m.Facts()
            ),
            lambda: m.OutcomeAck((token,)),
            lambda: m.Query(1, self._any_node(), "cancel", b"\x80"),
            lambda: m.Reply(1, self._any_node(), 0, True, b"\x80", ""),
            lambda: m.Want(digest(1), 0, 8),
        ]
        return chance.choice(made)()

    def _broken(self, frame: bytearray) -> bytes:
        chance = self.chance
        for _ in range(chance.choice((0, 1, 1, 2, 4))):
            at = chance.randrange(len(frame)) if frame else 0
            match chance.randrange(5):
                case 0 if frame:
                    frame[at] ^= 1 << chance.randrange(8)
                case 1:
                    del frame[at:]
                case 2:
                    frame[at:at] = chance.randbytes(chance.randrange(1, 9))
                case 3:
                    frame[at:at] = frame[at : at + 24]
                case _ if frame:
                    frame[at] = chance.choice((0xDD, 0xDF, 0xC6, 0xDB, 0x90, 0xC0, 0xCF, 0xFF))
        return bytes(frame)

    def hostile_frame(self) -> None:
        """One frame from the hostile peer, on the way of every frame."""
        messages = [self._message() for _ in range(self.chance.choice((1, 1, 2, 5)))]
        frame = self._broken(bytearray(codec.frame_of([codec.encode(one) for one in messages])))
        self.said += 1
        if self.said % 16 == 0:
            self._hostile_beat()
            return
        try:
            found, _ = codec.PEER.decode(frame)
        except RemoteProtocolError:
            self.refused += 1
            return
        self.decoded += len(found)
        if found:
            self.handle(FromPeer(HOSTILE, found, INC))

    def _hostile_beat(self) -> None:
        """A Heartbeat of the hostile peer's own, which is all that its connection lets through."""
        chance = self.chance
        claim = Epoch(chance.randrange(2**40), HOSTILE) if chance.random() < 0.3 else None
        told = beat(
            HOSTILE,
            self.now_ms + chance.choice([0, -5_000, 2**40]),
            chance.choice([INC, INC, INC + 1, incarnation(6, 1)]),
            claim=claim,
            follows=self._any_node(),
            served=chance.random() < 0.5,
            heard=tuple(chance.randbytes(8) for _ in range(chance.randrange(4))),
            priority=chance.choice([-128, 0, 127]),
            interval_ms=chance.choice([100, 250, 60_000]),
            journal_mark=chance.randrange(2**40),
        )
        frame = self._broken(bytearray(codec.frame_of([codec.encode(told)])))
        try:
            found, _ = codec.TELEMETRY.decode(frame)
        except RemoteProtocolError:
            self.refused += 1
            return
        self.decoded += len(found)
        for one in found:
            if isinstance(one, m.Heartbeat) and one.node == HOSTILE:
                self.handle(Heard(one))

    # --- judgement --------------------------------------------------------------------------------

    def turn(self) -> None:
        """A quarter of a second: the hostile peer talks, everybody else lives."""
        for _ in range(FRAMES_PER_BEAT):
            self.hostile_frame()
        self._beats(1)
        self.node.owner.check()

    def undisturbed(self) -> str:
        """What the hostile peer has managed to disturb; empty where nothing is."""
        touched = [task for task in self.granted if task in self.ended]
        if touched:
            return f"{len(touched)} tasks of the honest peer ended: {self.ended[touched[0]]}"
        live = {attempt.task.id for attempt in self.node.owner.attempts.values()}
        gone = [task for task in self.granted if task not in live]
        if gone:
            return f"{len(gone)} attempts on the honest peer are given up"
        if self.killed:
            return "what runs here for the honest peer was killed"
        return ""

    def finish(self) -> str:
        """The honest peer reports its results: they are what the client is told."""
        for one in self.granted.values():
            done = m.Outcome(one.token, one.task, INC, m.Status.DONE, b"true", m.Facts())
            self.handle(FromPeer(HONEST, [done], INC))
        self._beats(2)
        wrong = [
            task
            for task in self.granted
            if task not in self.ended or self.ended[task].result != b"true"
        ]
        return f"{len(wrong)} results of the honest peer are not told" if wrong else ""
