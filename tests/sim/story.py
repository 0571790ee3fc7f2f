"""Scenarios: commands in plain text, and below them the history that they lead to.

A file is a sequence of blocks, divided by blank lines: commands, a line of dashes, and what
happened.  `python -m tests.sim.story --rewrite` writes down what happens now; the difference is
then read by a person.  Lines that begin with `#` are the story's own words.

Commands (several on a line, divided by `;`):
  nodes NAME [slots=N] [label], NAME ...   the cluster; the first may be `owner`-less, all are equal
  settle                                   let a coordinator be elected and clocks be heard
  submit TASK [at NODE] [run=MS] [fate=F] [durable] [pure] [once] [gang=N] [exclusive] [retries=N]
         [lease=S] [tries=N] [pinned] [name=WORD]
  cancel TASK | drain NODE | resume NODE | leave NODE | crash NODE | power NODE | start NODE
  pause NODE | wake NODE | cut A B | heal A B | hold KIND A B | release | lose KIND A B | die NODE
  advance TIME | show KIND ... | disk TIME (of one flush)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.requirements import Needs
from tests.sim.clients import Client
from tests.sim.cluster import Cluster
from tests.sim.machine import Machine, Plan
from tests.sim.network import PATHS

FOLDER = Path(__file__).parent / "scenarios"
SHOWN = {
    *("Grant", "Refused", "Recall", "Outcome", "OutcomeAck", "Accepted", "Rejected", "Ended"),
    *("Goodbye",),
}
NOTES = {"node.suspected", "node.died", "node.left", "task.isolated", "coordinator.changed"}


class Story:
    """One scenario while it is told."""

    def __init__(self) -> None:
        self.world = Cluster(1, listen=self._hear)
        self.world.flush_ms = lambda: self.disk_ms  # type: ignore[method-assign]
        self.world.kill_ms_max = 0
        self.disk_ms = 1
        self.lines: list[str] = []
        self.shown = set(SHOWN)
        self.clients: dict[str, Client] = {}
        self.tasks: dict[str, tuple[Client, bytes]] = {}
        self.traps: list[tuple[str, int, int, bool]] = []
        self.held: list[tuple[Machine, n.FromPeer]] = []
        self._began_ms = 0

    # --- what is written down ---------------------------------------------------------------------

    def _hear(self, line: str) -> None:
        stamp, _, text = line.strip().partition("  ")
        words = text.split()
        if "->" in words or "=>" in words:
            if words[3] in self.shown:
                self._write(int(stamp), text)
        elif len(words) > 1 and words[1] == "note":
            if words[2] in NOTES:
                self._write(int(stamp), text)
        else:
            self._write(int(stamp), text)

    def _write(self, now_ms: int, text: str) -> None:
        self.lines.append(f"{now_ms - self._began_ms:>7}  {text}")

    # --- commands ---------------------------------------------------------------------------------

    def do(self, line: str) -> None:
        """Carry out one line of commands."""
        for command in line.split(";"):
            words = command.split()
            getattr(self, "do_" + words[0].replace("-", "_"))(*words[1:])

    def do_nodes(self, *words: str) -> None:
        """Put machines on the shelf and start them."""
        for number, text in enumerate(" ".join(words).split(",")):
            name, *more = text.split()
            given = dict(one.partition("=")[::2] for one in more)
            labels = {"disk": "ssd"} if "ssd" in given else None
            node_id = bytes([number + 1]) * 16
            machine = self.world.add_machine(
                name, int(given.get("slots", "1")), node_id, labels=labels
            )
            machine.start()
        self.world.network.copies = self._copies  # type: ignore[method-assign]
        self._send, self.world.send = self.world.send, self._trap  # type: ignore[method-assign]

    def _copies(self, source: int, target: int, path: int) -> tuple[int, ...]:
        return (2,) if self.world.network.connected(source, target, path) else ()

    def _trap(self, source: Machine, to: bytes, message: m.Message) -> None:
        """Hold or lose what a command asked for; the rest goes its way."""
        target = self.world.by_id[to]
        kind = type(message).__name__
        for trap in self.traps:
            if trap[:3] != (kind, source.index, target.index):
                continue
            text = self.world.names.message(message)
            how = "held" if trap[3] else "lost"
            self._write(self.world.now, f"{source.name} -> {target.name}  {text}   ({how})")
            if trap[3]:
                inc = source.node.inc if source.node else 0
                self.held.append((target, n.FromPeer(source.id, (message,), inc)))
            return
        self._send(source, to, message)

    def do_settle(self) -> None:
        """Let everybody find each other; nothing of that is written down."""
        self.world.run(self.world.now + 6_000)
        for machine in self.world.machines:
            client = self.world.add_client(machine)
            client.open()
            self.clients[machine.name] = client
        self.world.run(self.world.now + 1_000)
        self.lines.clear()
        self._began_ms = self.world.now

    def do_submit(self, name: str, *words: str) -> None:
        """Submit one task."""
        given = dict(one.partition("=")[::2] for one in words)
        at = words[words.index("at") + 1] if "at" in words else self.world.machines[0].name
        client = self.clients[at]
        needs = Needs(labels={"disk": "ssd"}) if "pinned" in given else Needs()
        spec = m.ClassSpec(
            needs.to_wire(),
            gang=int(given.get("gang", "1")),
            exclusive="exclusive" in given,
            pure="pure" in given,
            once="once" in given,
            retries=int(given.get("retries", "0")),
            lease_ms=1000 * int(given.get("lease", "0")),
            name=given.get("name", "pi"),
        )
        task = name.encode().ljust(16, b".")
        self.world.names.tasks[task] = name
        tries = int(given.get("tries", "1000"))
        self.world.plans[task] = Plan(int(given.get("run", "10")), given.get("fate", "done"), tries)
        items = (m.Item(task, b"work"),)
        submit = m.Submit(client.session, spec, None, "durable" in given, True, items)
        self.world.observer.submitted(client.machine.index, client.session, submit)
        self.tasks[name] = (client, task)
        client.submit(submit)

    def do_cancel(self, name: str) -> None:
        """Wish that a task ends."""
        client, task = self.tasks[name]
        client.cancel((task,))

    def do_again(self, name: str) -> None:
        """Submit a task a second time, as a client does that had no answer."""
        client, task = self.tasks[name]
        client.say(client.tasks[task].submit)

    def _machine(self, name: str) -> Machine:
        return next(one for one in self.world.machines if one.name == name)

    def do_drain(self, name: str) -> None:
        """Take nothing new there."""
        self._machine(name).feed(n.Drain(True))

    def do_resume(self, name: str) -> None:
        """Take work again there."""
        self._machine(name).feed(n.Drain(False))

    def do_leave(self, name: str) -> None:
        """Stop a node in order."""
        self._machine(name).leave()

    def do_crash(self, name: str) -> None:
        """Kill a daemon."""
        machine = self._machine(name)
        machine.crash(power=False, keep=len(machine.disk.pending))

    def do_power(self, name: str) -> None:
        """Cut the power of a machine."""
        self._machine(name).crash(power=True)

    def do_start(self, name: str) -> None:
        """Start a daemon."""
        self._machine(name).start()

    def do_pause(self, name: str) -> None:
        """Let a daemon stand still."""
        self._machine(name).pause()

    def do_wake(self, name: str) -> None:
        """Let it go on."""
        self._machine(name).resume()

    def do_die(self, name: str) -> None:
        """A client vanishes."""
        self.clients[name].die()

    def _links(self, one: str, other: str) -> list[tuple[int, int, int]]:
        a, b = self._machine(one).index, self._machine(other).index
        return [(x, y, path) for x, y in ((a, b), (b, a)) for path in PATHS]

    def do_cut(self, one: str, other: str) -> None:
        """Cut everything between two machines."""
        for link in self._links(one, other):
            self.world.network.cut(*link)

    def do_heal(self, one: str, other: str) -> None:
        """Connect them again."""
        for link in self._links(one, other):
            self.world.network.heal(*link)

    def do_hold(self, kind: str, source: str, target: str) -> None:
        """The network keeps messages of this kind until `release`."""
        self.traps.append((kind, self._machine(source).index, self._machine(target).index, True))

    def do_lose(self, kind: str, source: str, target: str) -> None:
        """The network loses messages of this kind until `release`."""
        self.traps.append((kind, self._machine(source).index, self._machine(target).index, False))

    def do_release(self) -> None:
        """What was held arrives now, and nothing more is held or lost."""
        self.traps.clear()
        for target, event in self.held:
            self.world.told(f"{target.name} gets what was held")
            target.feed(event)
        self.held.clear()

    def do_disk(self, text: str) -> None:
        """From now on a flush takes so long."""
        self.disk_ms = int(text[:-2])

    def do_show(self, *kinds: str) -> None:
        """Write down these kinds of messages, too."""
        self.shown.update(kinds)

    def do_advance(self, text: str) -> None:
        """Let time pass."""
        ms = int(text[:-2]) if text.endswith("ms") else int(float(text[:-1]) * 1000)
        self.world.run(self.world.now + ms)


def told(text: str) -> str:
    """Play a scenario; return the file as it should be."""
    story = Story()
    blocks = []
    for block in text.strip().split("\n\n"):
        commands = block.split("----")[0].rstrip("\n").split("\n")
        story.lines = []
        for line in commands:
            if line and not line.startswith("#"):
                story.do(line)
        blocks.append("\n".join([*commands, "----", *story.lines]))
    return "\n\n".join(blocks) + "\n"


def main(write: Callable[[str], object] = print) -> int:
    """Compare all scenarios with their files, or rewrite them."""
    rewrite = "--rewrite" in sys.argv
    different = 0
    for path in sorted(FOLDER.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        now = told(text)
        if now != text:
            different += 1
            write(f"{path.name} differs")
            if rewrite:
                path.write_text(now, encoding="utf-8")
    return 0 if rewrite else min(different, 1)


if __name__ == "__main__":
    sys.exit(main())
