"""Scenarios: commands in plain text, and below them the history that they lead to.

A file is a sequence of blocks, divided by blank lines: commands, a line of dashes, and what
happened.  `python -m tests.sim.story --rewrite [NAME ...]` writes down what happens now; the
difference is then read by a person.  Lines that begin with `#` are the story's own words; a line
that begins with two blanks belongs to the one above.  Names of files after `--play` are told in
full, without comparing.

Commands (several on a line, divided by `;`); TIME is 5ms, 3s or 2m:
  nodes NAME [OPTION ...], NAME ...        the cluster; ids grow in this order
    OPTION: slots=N ssd priority=N rate=PERMILLE (of its clock) newer (the next version)
  equal-lives                    every life has the same random half (before `nodes`)
  settle                         let a coordinator be elected and clocks be heard
  submit TASK [at NODE] [OPTION ...]       load TASK COUNT [at NODE] [OPTION ...]: TASK1, TASK2 ...
    OPTION: run=MS fate=F tries=N durable pure once exclusive pinned (to ssd) gang=N retries=N
            lease=S deadline=S timeout=S name=WORD user=WORD priority=N
  again TASK                     submit it once more;  cancel TASK;  die NODE (its client vanishes)
  client NODE                    another client there
  drain NODE | resume NODE | leave NODE (at once) | retire NODE (when nothing runs) | start NODE
  pause NODE | wake NODE | freeze NODE | thaw NODE         the daemon, or the whole machine
  crash NODE                     the daemon dies; what is being flushed is on disk, nobody was told
  power NODE [boot=TIME]         the machine dies with all it had not flushed; its next clock
  cut A B [PATH] | cut A to B [PATH]       both ways or one; A or B may be `*`; PATH is `direct` or
  heal A B [PATH] | heal all               `telemetry`, both where it is not named
  hold KIND A B [N] | lose KIND A B [N]    the network keeps or loses (the next N) such messages
  release [KIND ...]             what was held arrives; nothing (of these) is held or lost any more
  rows A B TASK NODE:SLOTS ...   a mad coordinator A tells owner B this table (or c2 for TASK)
  image NODE | roll-back NODE    keep a copy of its disk; the power fails, and that copy comes back
  clone NODE                     NODEx: another machine with a copy of its disk; off until `start`
  space NODE full | space NODE free        room in its state directory
  wall NODE TIME                 its wall clock jumps (-60s: back)
  disk TIME | kill TIME          how long a flush takes from now on; a kill
  advance TIME                   let time pass
  begin NAME | end NAME          count the tasks that end meanwhile
  show KIND ... | hide KIND ...  which lines are written down (`all` for all kinds)
  about WORD ...                 only lines that name one of these; alone: all lines
  expect ...                     what must hold now: tests/sim/expectations.py
`coordinator` may stand for the node that coordinates, and `down` for all that do not run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.ids import short
from blackroad.requirements import Needs
from blackroad.router.effects import Note
from tests.sim.clients import Client
from tests.sim.cluster import Broken, Cluster
from tests.sim.expectations import Line, Mistake, Unmet, expect, line_of
from tests.sim.machine import Machine, Plan
from tests.sim.network import DIRECT, PATHS, TELEMETRY
from tests.sim.processes import STATUS
from tests.sim.words import KINDS, MESSAGES

FOLDER = Path(__file__).parent / "scenarios"
SHOWN = frozenset(
    {
        *(
            "Grant",
            "Refused",
            "Recall",
            "Outcome",
            "OutcomeAck",
            "Accepted",
            "Rejected",
            "Ended",
            "Results",
            "Divided",
        ),
        *("Goodbye", "node.suspected", "node.died", "node.left", "task.isolated"),
        *("coordinator.changed", "runs", "ends", "dies", "starts", "loses", "daemon", "pauses"),
        *("resumes", "freezes", "thaws", "leaves", "takes", "gets", "counts"),
        *("forgot", "jumps", "shuns", "disk", "retires", "cannot", "node.clone"),
    }
)
PATH_NAMES = {"direct": (DIRECT,), "telemetry": (TELEMETRY,)}
CLASS = re.compile(r"c[0-9]+")
FATES = {*STATUS, "poison", "hang"}
SUBMIT_TASKS = 30
FLAGS = {"durable", "pure", "once", "exclusive", "pinned"}
NUMBERS = {
    *("run", "tries", "gang", "retries", "lease", "deadline", "timeout", "priority"),
}
NODE_OPTIONS = {"slots", "ssd", "priority", "rate", "newer"}


class Failed(Exception):
    """A scenario went wrong: its text, what it expects, or a promise; `so_far` is what was told."""

    def __init__(self, text: str, so_far: str) -> None:
        super().__init__(text)
        self.so_far = so_far


class Trap:
    """What the network does to the next messages of one kind on one link."""

    def __init__(self, kind: str, source: int, target: int, keep: bool, left: int) -> None:
        self.kind = kind
        self.link = (source, target)
        self.keep = keep
        self.left = left


class Held(NamedTuple):
    """A multipart that the network keeps, with the kind it was caught for."""

    kind: str
    target: Machine
    messages: tuple[m.Message, ...]
    arrive: Callable[..., None]
    what: tuple[Any, ...]


class Story:
    """One scenario while it is told."""

    def __init__(self) -> None:
        self.world = Cluster(1, wire=True, greets=True, listen=self._hear)
        self.world.flush_ms = lambda: self._disk_ms  # type: ignore[method-assign]
        self.world.kill_ms = lambda: self._kill_ms  # type: ignore[method-assign]
        self._carry, self.world.carry = self.world.carry, self._trap  # type: ignore[method-assign]
        self.world.noted = self._noted  # type: ignore[method-assign]
        self._over = self.world.observer.gone
        self.world.observer.gone = self._gone  # type: ignore[method-assign]
        self.clients: dict[str, Client] = {}
        self.tasks: dict[str, tuple[Client, bytes]] = {}
        self.tallies: dict[str, int] = {}
        self.happened: list[Line] = []
        self.shown = set(SHOWN)
        self.about: tuple[str, ...] = ()
        self.ended = 0
        self._lines: list[tuple[int, str]] = []
        self._repeated: dict[str, tuple[int, int, int]] = {}
        self._disk_ms = 1
        self._kill_ms = 0
        self._traps: list[Trap] = []
        self._held: list[Held] = []
        self._began_ms = 0

    # --- what is written down ---------------------------------------------------------------------

    def _hear(self, line: str) -> None:
        stamp, _, text = line.strip().partition("  ")
        self._write(int(stamp), text)

    def _write(self, now_ms: int, text: str) -> None:
        line = line_of(text)
        self.happened.append(line)
        if line.kind == "Ended":
            self.ended += 1
        elif line.kind == "Results":
            self.ended += len(line.words)
        if line.kind not in self.shown or not self._concerns(line):
            return
        at_ms = now_ms - self._began_ms
        index, times, _ = self._repeated.get(text, (len(self._lines), 0, 0))
        if not times or line.kind not in MESSAGES:
            self._lines.append((at_ms, text))
        self._repeated[text] = (index, times + 1, at_ms)

    def _concerns(self, line: Line) -> bool:
        named = {line.source, line.target, *line.words}
        return not self.about or any(fnmatchcase(one, word) for word in self.about for one in named)

    def begin_block(self) -> None:
        """From here on other lines count."""
        self._lines.clear()
        self._repeated.clear()
        self.happened.clear()

    def lines(self) -> Iterator[str]:
        """What this block is to show: what was said again and again stands there once."""
        for at_ms, text in self._lines:
            _, times, last_ms = self._repeated[text]
            again = times > 1 and line_of(text).kind in MESSAGES
            more = f"   ({times} times, last at {last_ms})" if again else ""
            yield f"{at_ms:>7}  {text}{more}"

    def _noted(self, machine: Machine, note: Note) -> None:
        """A node's own note, with the name of the node that it speaks of."""
        names = {short(one.id): one.name for one in self.world.machines}
        about = names.get(str(note.facts.get("node")), "") if "node" in note.facts else ""
        if note.name == "coordinator.changed":
            about = about or "nobody"
        self._write(self.world.now, f"{machine.name} note  {note.name} {about}".rstrip())

    def _gone(self, machine: Machine, process: object) -> None:
        name = self.world.names.task(process.start.task)  # type: ignore[attr-defined]
        self._write(self.world.now, f"{name} dies on {machine.name}")
        self._over(machine, process)  # type: ignore[arg-type]

    # --- words ------------------------------------------------------------------------------------

    def do(self, line: str) -> None:
        """Carry out one line of commands."""
        for command in line.split(";"):
            words = command.split()
            if not words:
                continue
            call = getattr(self, "do_" + words[0].replace("-", "_"), None)
            if call is None:
                raise Mistake(f"there is no command {words[0]!r}: see tests/sim/story.py")
            try:
                call(*words[1:])
            except TypeError as error:
                if call.__name__ not in str(error):
                    raise
                raise Mistake(f"`{command.strip()}`: {str(error).partition('() ')[2]}") from error
            except Unmet as unmet:
                raise Unmet(f"`{command.strip()}`: but {unmet}") from unmet

    def machine(self, name: str) -> Machine:
        """The machine of that name, or the one that coordinates."""
        machines = self.world.machines
        if name == "coordinator":
            leaders = [one for one in machines if one.node and one.node.election.claim]
            if len(leaders) != 1:
                raise Mistake(f"{len(leaders)} nodes coordinate")
            return leaders[0]
        for machine in machines:
            if machine.name == name:
                return machine
        raise Mistake(f"there is no node {name!r}; there are {', '.join(m.name for m in machines)}")

    def _machines(self, name: str, other: str = "") -> list[Machine]:
        """One machine; or all (others); or all that are down."""
        if name == "*":
            return [one for one in self.world.machines if one.name != other]
        if name == "down":
            return [one for one in self.world.machines if not one.up]
        return [self.machine(name)]

    def _task(self, name: str) -> tuple[Client, bytes]:
        if name not in self.tasks:
            raise Mistake(f"there is no task {name!r}; there are {', '.join(self.tasks)}")
        return self.tasks[name]

    # --- the cluster ------------------------------------------------------------------------------

    def do_equal_lives(self) -> None:
        """Give every life the same random half, so that two owners' tokens are equal."""
        rng = self.world.rng
        draw = rng.getrandbits
        rng.getrandbits = lambda k: 7 if k == 32 else draw(k)  # type: ignore[method-assign]

    def do_nodes(self, *words: str) -> None:
        """Put machines on the shelf and start them."""
        for number, text in enumerate(" ".join(words).split(",")):
            name, *more = text.split()
            given = _options(more, NODE_OPTIONS)
            machine = self.world.add_machine(
                name,
                _number(given.get("slots", "1")),
                bytes([number + 1]) * 16,
                labels={"disk": "ssd"} if "ssd" in given else None,
                priority=_number(given.get("priority", "0")),
                version=2 if "newer" in given else 1,
            )
            if "rate" in given:
                machine.set_clock(_number(given["rate"]), 1_000)
            machine.start()

    def do_settle(self) -> None:
        """Let everybody find each other; nothing of that is written down."""
        self.world.run(self.world.now + 6_000)
        for machine in self.world.machines:
            self.do_client(machine.name)
        self.world.run(self.world.now + 1_000)
        self.begin_block()
        self._began_ms = self.world.now

    def do_client(self, name: str) -> None:
        """A program on that machine opens a session."""
        client = self.world.add_client(self.machine(name))
        client.open()
        self.clients[name] = client

    def do_disk(self, text: str) -> None:
        """From now on a flush takes so long."""
        self._disk_ms = _time(text)

    def do_bundles(self, text: str) -> None:
        """From now on the tasks of a bundle may run so long together."""
        self.world.bundle_us = 1_000 * _time(text)
        for machine in self.world.machines:
            if machine.node is not None:
                machine.node.owner.granting.bundle_us = self.world.bundle_us

    def do_kill(self, text: str) -> None:
        """From now on a kill takes so long."""
        self._kill_ms = _time(text)

    # --- tasks ------------------------------------------------------------------------------------

    def do_submit(self, name: str, *words: str) -> None:
        """Submit one task."""
        self._submit([name], words)

    def do_load(self, name: str, count: str, *words: str) -> None:
        """Submit many tasks of one class."""
        names = [f"{name}{number + 1}" for number in range(_number(count))]
        for at in range(0, len(names), SUBMIT_TASKS):
            self._submit(names[at : at + SUBMIT_TASKS], words)

    def _submit(self, names: list[str], words: tuple[str, ...]) -> None:
        world = self.world
        at = world.machines[0].name
        if words[:1] == ("at",):
            at, words = words[1], words[2:]
        given = _options(list(words), FLAGS | NUMBERS | {"fate", "name", "user"})
        value = {name: _number(given.get(name, "0")) for name in NUMBERS}
        fate = given.get("fate", "done")
        if fate not in FATES:
            raise Mistake(f"there is no fate {fate!r}; there are {', '.join(sorted(FATES))}")
        client = self.clients[self.machine(at).name]
        needs = Needs(labels={"disk": "ssd"}) if "pinned" in given else Needs()
        spec = m.ClassSpec(
            needs.to_wire(),
            priority=value["priority"],
            user=given.get("user", ""),
            gang=value["gang"] or 1,
            exclusive="exclusive" in given,
            pure="pure" in given,
            once="once" in given,
            retries=value["retries"],
            timeout_ms=1000 * value["timeout"],
            lease_ms=1000 * value["lease"],
            name=given.get("name", "pi"),
        )
        items = []
        for name in names:
            if name in self.tasks:
                raise Mistake(f"there is a task {name!r} already")
            task = name.encode().ljust(16, b".")
            world.names.tasks[task] = name
            world.plans[task] = Plan(value["run"] or 10, fate, value["tries"] or 10**9)
            self.tasks[name] = (client, task)
            items.append(m.Item(task, b"work"))
        durable, deadline_ms = "durable" in given, 1000 * value["deadline"]
        submit = m.Submit(client.session, spec, None, durable, True, tuple(items), deadline_ms)
        world.observer.submitted(client.machine.index, client.session, submit)
        client.submit(submit)

    def do_cancel(self, name: str) -> None:
        """Wish that a task ends."""
        client, task = self._task(name)
        client.cancel((task,))

    def do_again(self, name: str) -> None:
        """Submit a task a second time, as a client does that had no answer."""
        client, task = self._task(name)
        client.say(client.tasks[task].submit)

    def do_die(self, name: str) -> None:
        """A client vanishes."""
        self.clients[self.machine(name).name].die()

    def do_begin(self, name: str) -> None:
        """Count the tasks that end from here on."""
        self.tallies[name] = -self.ended

    def do_end(self, name: str) -> None:
        """Up to here."""
        if self.tallies.get(name, 1) > 0:
            raise Mistake(f"`begin {name}` comes before `end {name}`")
        self.tallies[name] += self.ended
        self._write(self.world.now, f"{name} counts {self.tallies[name]} tasks that ended")

    # --- machines ---------------------------------------------------------------------------------

    def do_drain(self, name: str) -> None:
        """Take nothing new there."""
        self.machine(name).feed(n.Drain(True))

    def do_resume(self, name: str) -> None:
        """Take work again there."""
        self.machine(name).feed(n.Drain(False))

    def do_leave(self, name: str) -> None:
        """Stop a node in order."""
        self.machine(name).leave()

    def do_retire(self, name: str) -> None:
        """Drain a node, and let it leave when nothing runs there."""
        self.machine(name).retire()

    def do_crash(self, name: str) -> None:
        """Kill a daemon; what it was flushing is on the disk."""
        machine = self.machine(name)
        machine.crash(power=False, keep=len(machine.disk.pending))

    def do_power(self, name: str, boot: str = "boot=500ms") -> None:
        """Cut the power of a machine; its clock begins anew."""
        machine = self.machine(name)
        machine.crash(power=True)
        machine.set_clock(machine.rate_permille, _time(boot.removeprefix("boot=")))

    def do_image(self, name: str) -> None:
        """Keep a copy of the disk."""
        self.machine(name).take_image()

    def do_roll_back(self, name: str) -> None:
        """Put the copy in place of the disk, as a restored machine would."""
        machine = self.machine(name)
        if machine.image is None or not machine.up:
            raise Mistake(f"there is no image of {name}, or it does not run")
        machine.roll_back()

    def do_clone(self, name: str) -> None:
        """Copy a machine, identity and all."""
        self.world.add_clone(self.machine(name))

    def do_space(self, name: str, how: str) -> None:
        """Fill the disk, or make room."""
        if how not in ("full", "free"):
            raise Mistake(f"a disk is `full` or `free`, not {how!r}")
        machine = self.machine(name)
        machine.disk.full = how == "full"
        machine.notice_space()

    def do_wall(self, name: str, text: str) -> None:
        """Set the wall clock wrong."""
        machine = self.machine(name)
        machine.wall_ms += _time(text)
        self.world.told(f"{name} jumps by {text} on its wall clock")

    def do_start(self, name: str) -> None:
        """Start a daemon."""
        for machine in self._machines(name):
            machine.start()

    def do_pause(self, name: str) -> None:
        """Let a daemon stand still."""
        self.machine(name).pause()

    def do_wake(self, name: str) -> None:
        """Let it go on."""
        self.machine(name).resume()

    def do_freeze(self, name: str) -> None:
        """Let a whole machine stand still."""
        self.machine(name).freeze()

    def do_thaw(self, name: str) -> None:
        """Let it go on."""
        self.machine(name).thaw()

    # --- the network ------------------------------------------------------------------------------

    def _links(self, words: tuple[str, ...]) -> Iterator[tuple[int, int, int]]:
        """Directed paths that `A B`, `A to B` and a PATH name."""
        names = list(words)
        paths = PATH_NAMES[names.pop()] if names[-1:] and names[-1] in PATH_NAMES else PATHS
        both = "to" not in names
        if not both:
            names.remove("to")
        if len(names) != 2 or names[0] == names[1]:
            raise Mistake(f"`{' '.join(words)}` names no link: A B, or A to B")
        for a in self._machines(names[0], names[1]):
            for b in self._machines(names[1], names[0]):
                for path in paths:
                    yield a.index, b.index, path
                    if both:
                        yield b.index, a.index, path

    def do_cut(self, *words: str) -> None:
        """Cut what is named."""
        for link in self._links(words):
            self.world.network.cut(*link)

    def do_heal(self, *words: str) -> None:
        """Connect it again."""
        network = self.world.network
        if words == ("all",):
            network.cuts.clear()
            return
        for link in self._links(words):
            if network.connected(*link):
                raise Mistake(f"`heal {' '.join(words)}`: that is not cut")
            network.heal(*link)

    def _set_trap(self, kind: str, source: str, target: str, count: str, keep: bool) -> None:
        a, b = self.machine(source).index, self.machine(target).index
        if kind not in MESSAGES or a == b:
            raise Mistake(f"there is no {kind!r} between {source} and {target}")
        self._traps.append(Trap(kind, a, b, keep, _number(count)))

    def do_hold(self, kind: str, source: str, target: str, count: str = "999999") -> None:
        """The network keeps messages of this kind until `release`."""
        self._set_trap(kind, source, target, count, True)

    def do_lose(self, kind: str, source: str, target: str, count: str = "999999") -> None:
        """The network loses messages of this kind until `release`."""
        self._set_trap(kind, source, target, count, False)

    def _trap(
        self,
        source: Machine,
        target: Machine,
        messages: Sequence[m.Message],
        arrive: Callable[..., None],
        *what: Any,
    ) -> None:
        """Hold or lose what a command asked for; the rest goes its way."""
        kinds = {type(message).__name__ for message in messages}
        for trap in self._traps:
            if trap.kind not in kinds or trap.link != (source.index, target.index) or not trap.left:
                continue
            trap.left -= 1
            how = "held" if trap.keep else "lost"
            for message in messages:
                text = self.world.names.message(message)
                self._write(self.world.now, f"{source.name} -> {target.name}  {text}   ({how})")
            if trap.keep:
                self._held.append(Held(trap.kind, target, tuple(messages), arrive, what))
            return
        self._carry(source, target, messages, arrive, *what)

    def do_release(self, *kinds: str) -> None:
        """What was held arrives now, and nothing more (of these kinds) is held or lost."""
        self._kinds(kinds, MESSAGES)
        self._traps = [trap for trap in self._traps if kinds and trap.kind not in kinds]
        held, self._held = self._held, []
        for one in held:
            if kinds and one.kind not in kinds:
                self._held.append(one)
                continue
            for message in one.messages:
                text = self.world.names.message(message)
                self._write(self.world.now, f"{one.target.name} gets {text}")
            one.arrive(*one.what)

    def do_rows(self, coordinator: str, owner: str, task: str, *rows: str) -> None:
        """A coordinator tells an owner a table that it never computed."""
        source, target = self.machine(coordinator), self.machine(owner)
        node, claim = source.node, source.node.election.claim if source.node else None
        if node is None or claim is None or target.node is None:
            raise Mistake(f"{coordinator} does not coordinate, or {owner} does not run")
        record = None if CLASS.fullmatch(task) else target.node.owner.tasks.get(self._task(task)[1])
        if record is None and not CLASS.fullmatch(task):
            raise Mistake(f"{owner} does not know {task}, not yet or no more")
        number = record.cls.id if record is not None else int(task[1:])
        table = []
        for row in rows:
            name, _, slots = row.partition(":")
            where = b"?" * 16 if name == "nobody" else self.machine(name).id
            table.append(m.Row(number, where, _number(slots)))
        node.coordinator._seq += 1  # the honest tables that follow are newer
        seq, asked = node.coordinator._seq, target.node.owner.granting.demand_seq
        message = m.Allocation(claim, seq, target.node.inc, asked, tuple(table))
        if source is target:
            source.feed(n.FromPeer(source.id, (message,), node.inc))
        else:
            self.world.send(source, target.id, message)

    # --- telling ----------------------------------------------------------------------------------

    @staticmethod
    def _kinds(kinds: tuple[str, ...], known: frozenset[str]) -> None:
        for kind in kinds:
            if kind not in known:
                raise Mistake(f"there is no kind {kind!r} of line")

    def do_show(self, *kinds: str) -> None:
        """Write down these kinds of lines, too."""
        kinds = tuple(KINDS) if kinds == ("all",) else kinds
        self._kinds(kinds, KINDS)
        self.shown.update(kinds)

    def do_hide(self, *kinds: str) -> None:
        """Do not write down these kinds of lines."""
        kinds = tuple(KINDS) if kinds == ("all",) else kinds
        self._kinds(kinds, KINDS)
        self.shown.difference_update(kinds)

    def do_about(self, *words: str) -> None:
        """Write down only lines that name one of these."""
        self.about = words

    def do_advance(self, text: str) -> None:
        """Let time pass."""
        self.world.run(self.world.now + _time(text))

    def do_expect(self, *words: str) -> None:
        """Something must hold now."""
        expect(self, words)


def _options(words: list[str], allowed: set[str]) -> dict[str, str]:
    given = dict(one.partition("=")[::2] for one in words)
    for name in given:
        if name not in allowed:
            raise Mistake(f"there is no option {name!r}; there are {', '.join(sorted(allowed))}")
    return given


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise Mistake(f"{text!r} is no number") from error


def _time(text: str) -> int:
    """Milliseconds that 5ms, 3s or 2m mean."""
    for unit, factor in (("ms", 1), ("s", 1000), ("m", 60_000)):
        if text.endswith(unit):
            return _number(text.removesuffix(unit)) * factor
    raise Mistake(f"{text!r} is no time: 5ms, 3s and 2m are")


def _commands(lines: list[str]) -> Iterator[str]:
    """Commands of a block; a line that begins with two blanks belongs to the one above."""
    whole = ""
    for line in [*lines, ""]:
        if line.startswith("  "):
            whole += " " + line.strip()
            continue
        if whole and not whole.startswith("#"):
            yield whole
        whole = line


def told(text: str) -> str:
    """Play a scenario; return the file as it should be.

    Raises  Failed where a command cannot be understood, an expectation is not met, or a promise is
            broken.
    """
    story = Story()
    blocks = []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n----")[0].rstrip("\n").split("\n")
        story.begin_block()
        for line in _commands(lines):
            try:
                story.do(line)
            except (Mistake, Unmet, Broken) as error:
                so_far = "\n\n".join([*blocks, "\n".join([*lines, "----", *story.lines()])])
                raise Failed(f"{type(error).__name__}: {error}", so_far) from error
        blocks.append("\n".join([*lines, "----", *story.lines()]))
    return "\n\n".join(blocks) + "\n"


def main(words: list[str], write: Callable[[str], object] = print) -> int:
    """Compare scenarios with their files; or rewrite them, or only tell them."""
    names = [word for word in words if not word.startswith("--")]
    paths = [path for path in sorted(FOLDER.glob("*.txt")) if not names or path.stem in names]
    bad = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        try:
            now = told(text)
        except Failed as error:
            if "--play" in words:
                write(error.so_far)
            write(f"{path.name}: {error}")
            bad += 1
            continue
        if "--play" in words:
            write(now)
        elif now != text:
            write(f"{path.name} differs")
            bad += "--rewrite" not in words
            if "--rewrite" in words:
                path.write_text(now, encoding="utf-8")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
