"""Topics of a few daemons without sockets: what is kept, lost, counted, asked for and told."""

from __future__ import annotations

import itertools

import pytest

from blackroad.bus import messages as m
from blackroad.bus.last_values import LastValues
from blackroad.bus.topics import LOOK_MS, Topics
from blackroad.ids import incarnation
from blackroad.limits import (
    PUBLISH_STEP,
    PUBLISH_WINDOW,
    SUBSCRIPTION_LEASE_MS,
    SUBSCRIPTIONS_OF_CLIENT_MAX,
    TOPIC_ASK_MS,
    TOPIC_ASK_TIMEOUT_MS,
    TOPIC_HOLD_MS,
    TOPIC_LINE_BYTES_MAX,
    TOPIC_LINE_VALUES_MAX,
    UPDATES_WINDOW,
)

KEEP = 4 * 1024 * 1024
WALL_MS = 1_700_000_000_000
A, B = b"a" * 16, b"b" * 16


class Program:
    """One client: what it was told, and what it acknowledges."""

    def __init__(self, home: Home, handle: bytes) -> None:
        self.home = home
        self.handle = handle
        self.serials = itertools.count(1)
        self.told: list[m.Message] = []
        self.reads = True

    def publish(self, name: str, payload: bytes = b"\x01", user: str = "ada") -> None:
        self.home.say(self.handle, m.Publish(next(self.serials), name, payload, user))

    def subscribe(self, pattern: str, sub: int = 1, snapshot: bool = True) -> None:
        self.home.say(self.handle, m.Subscribe(sub, pattern, snapshot))

    def take(self, message: m.Message) -> None:
        self.told.append(message)
        if isinstance(message, m.Updates) and self.reads:
            self.home.say(self.handle, m.Taken(message.serial))

    def got(self, sub: int = 1) -> list[tuple[str, bytes, int]]:
        """Topic, payload and `missed` of each value that came for that subscription."""
        found = []
        for one in self.told:
            if isinstance(one, m.Updates) and sub in one.subs:
                missed = one.missed[one.subs.index(sub)]
                for value in one.values:
                    found.append((value.name, value.payload, missed))
                    missed = 0
        return found

    def payloads(self, sub: int = 1) -> list[bytes]:
        return [payload for _, payload, _ in self.got(sub)]

    def errors(self) -> list[str]:
        said = [one.error for one in self.told if isinstance(one, m.Updates | m.Taken)]
        return [error for error in said if error]


class Home:
    """One daemon's topics and its programs."""

    def __init__(self, net: Net, node: bytes, counter: int = 1, keep: int = KEEP) -> None:
        self.net = net
        self.node = node
        self.topics = Topics(node, incarnation(counter, 7), keep)
        self.programs: dict[bytes, Program] = {}

    def program(self, name: str = "p") -> Program:
        handle = name.encode()
        self.programs[handle] = one = Program(self, handle)
        return one

    def say(self, handle: bytes, message: m.Message) -> None:
        self.topics.on_client(handle, message, self.net.now_ms)


class Net:
    """Daemons that hear each other as the test lets them."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.homes: dict[bytes, Home] = {}
        # (from, to): what is published does not arrive; what is sent does not.
        self.deaf: set[tuple[bytes, bytes]] = set()
        self.cut: set[tuple[bytes, bytes]] = set()
        self.asked: list[m.AskTopics] = []

    def add(self, node: bytes, counter: int = 1, keep: int = KEEP) -> Home:
        self.homes[node] = home = Home(self, node, counter, keep)
        return home

    def run(self, ms: int = 0) -> None:
        """Let time pass, and everybody work until nothing moves any more."""
        self.now_ms += ms
        for _ in range(2_000):
            moved = [self._turn(home) for home in self.homes.values()]
            if not any(moved):
                return
        raise AssertionError("it never comes to rest")

    def _turn(self, home: Home) -> bool:
        topics = home.topics
        present = {
            node: other.topics.inc
            for node, other in self.homes.items()
            if node != home.node and (home.node, node) not in self.cut
        }
        topics.turn(lambda: present, self.now_ms, WALL_MS)
        moved = bool(topics.spreads or topics.marks or topics.tells or topics.sends)
        spreads, topics.spreads = topics.spreads, []
        marks, topics.marks = topics.marks, []
        for node, mark, ask in marks:
            if (home.node, node) not in self.deaf and node in present:
                self.homes[node].topics.on_mark(home.node, mark, ask, self.now_ms)
        tells, topics.tells = topics.tells, []
        sends, topics.sends = topics.sends, []
        for value, node in itertools.product(spreads, list(present)):
            there = self.homes[node].topics
            wanted = there.prefixes and f"{value.name}/".startswith(there.prefixes)
            if wanted and (home.node, node) not in self.deaf:
                there.on_topic(home.node, topic_of(value))
        for client, message in tells:
            home.programs[client].take(message)
        for node, message in sends:
            if isinstance(message, m.AskTopics):
                self.asked.append(message)
            if (home.node, node) not in self.cut:
                self.homes[node].topics.on_peer(home.node, message, self.now_ms)
        return moved or topics.next_deadline_ms() == 0


def topic_of(value: m.Value) -> m.Topic:
    return m.Topic(*(getattr(value, field) for field in m.Topic.__struct_fields__))


@pytest.fixture
def net() -> Net:
    return Net()


# --- one daemon ---------------------------------------------------------------------------------


def test_a_subscriber_hears_what_it_chose(net: Net) -> None:
    home = net.add(A)
    one, two = home.program("one"), home.program("two")
    one.subscribe("lab/*")
    two.subscribe("#")
    net.run()
    one.publish("lab/oven", b"1")
    one.publish("shed/oven", b"2")
    net.run()
    assert one.payloads() == [b"1"]
    assert two.payloads() == [b"1", b"2"]
    update = next(x for x in one.told if isinstance(x, m.Updates) and x.values)
    value = update.values[0]
    assert (value.node, value.user, value.time_ms, value.nth) == (A, "ada", WALL_MS, 1)
    assert [x.serial for x in one.told if isinstance(x, m.Taken)][-1] == 2


def test_a_value_for_two_subscriptions_travels_once(net: Net) -> None:
    home = net.add(A)
    one = home.program()
    one.subscribe("lab/#", 1)
    one.subscribe("lab/*", 2)
    net.run()
    one.publish("lab/oven", b"1")
    net.run()
    with_values = [x for x in one.told if isinstance(x, m.Updates) and x.values]
    assert [x.subs for x in with_values] == [(1, 2)]


def test_a_late_subscriber_gets_last_values_and_then_news(net: Net) -> None:
    home = net.add(A)
    one, late = home.program("one"), home.program("late")
    for number in range(3):
        one.publish("lab/a", b"a%d" % number)
    one.publish("lab/b", b"b0")
    net.run()
    late.subscribe("lab/#", 1)
    late.subscribe("lab/#", 2, snapshot=False)
    one.publish("lab/a", b"a3")
    net.run()
    # The last value of lab/a came after the subscription: as news, once.
    assert late.got(1) == [("lab/b", b"b0", 0), ("lab/a", b"a3", 0)]
    assert late.got(2) == [("lab/a", b"a3", 0)]


def test_the_first_word_to_a_subscription_says_that_it_began(net: Net) -> None:
    home = net.add(A)
    one = home.program()
    one.subscribe("lab/#")
    net.run()
    one.subscribe("lab/#")
    net.run()
    assert [x.began for x in one.told if isinstance(x, m.Updates)] == [True]


def test_the_end_of_a_subscription(net: Net) -> None:
    home = net.add(A)
    one, two, three = home.program("one"), home.program("two"), home.program("three")
    for program in (one, two, three):
        program.subscribe("lab/#")
    net.run()
    home.say(one.handle, m.Unsubscribe(1))
    home.topics.lost(two.handle)
    net.run(SUBSCRIPTION_LEASE_MS - 1)
    three.subscribe("lab/#")
    one.publish("lab/a", b"1")
    net.run()
    assert [one.payloads(), two.payloads(), three.payloads()] == [[], [], [b"1"]]
    net.run(SUBSCRIPTION_LEASE_MS)
    one.publish("lab/a", b"2")
    net.run()
    assert three.payloads() == [b"1"]
    assert home.topics.status()["subscriptions"] == 0
    assert home.topics.status()["expired"] == 1


@pytest.mark.parametrize("name", ["sys/load", "blackroad/x", "a b", "", "lab/#"])
def test_what_may_not_be_published_is_refused_and_told(net: Net, name: str) -> None:
    home = net.add(A)
    one = home.program()
    one.subscribe("#")
    one.publish(name)
    one.publish("lab/a", b"1")
    net.run()
    assert len(one.errors()) == 1
    assert one.payloads() == [b"1"]
    assert home.topics.counters["refused"] == 1


def test_subscriptions_have_a_limit_and_bad_ones_are_told(net: Net) -> None:
    home = net.add(A)
    one = home.program()
    for number in range(SUBSCRIPTIONS_OF_CLIENT_MAX):
        one.subscribe(f"n{number}/#", number)
    net.run()
    assert one.errors() == []
    one.subscribe("more/#", SUBSCRIPTIONS_OF_CLIENT_MAX)
    one.subscribe("lab/+", SUBSCRIPTIONS_OF_CLIENT_MAX + 1)
    net.run()
    assert len(one.errors()) == 2
    assert home.topics.status()["subscriptions"] == SUBSCRIPTIONS_OF_CLIENT_MAX
    # Another pattern under a number that is in use takes its place.
    one.subscribe("other", 0)
    one.publish("other", b"1")
    one.publish("n0/x", b"2")
    net.run()
    assert one.payloads(0) == [b"1"]


def test_a_flood_of_one_program_leaves_room_for_others(net: Net) -> None:
    home = net.add(A)
    loud, quiet, ear = home.program("loud"), home.program("quiet"), home.program("ear")
    ear.subscribe("#")
    net.run()
    for number in range(PUBLISH_WINDOW):
        loud.publish("loud", number.to_bytes(2, "big"))
    quiet.publish("quiet", b"1")
    home.topics.turn(dict, net.now_ms, WALL_MS)
    published = [value.name for value in home.topics.spreads]
    assert len(published) == PUBLISH_STEP
    assert "quiet" in published
    assert home.topics.next_deadline_ms() == 0
    # Whoever does not wait for Taken is told that this is too much.
    for _ in range(PUBLISH_WINDOW):
        loud.publish("loud")
    net.run()
    assert "too many" in loud.errors()[0]
    assert home.topics.status()["waiting_bytes"] == 0


def test_a_slow_subscriber_is_bounded_and_told(net: Net) -> None:
    """R-topic-8: it loses the oldest, learns how many, and costs the others nothing."""
    home = net.add(A)
    slow, quick, source = home.program("slow"), home.program("quick"), home.program("source")
    slow.reads = False
    slow.subscribe("#")
    quick.subscribe("#")
    net.run()
    sent = 3 * TOPIC_LINE_VALUES_MAX
    for number in range(sent):
        source.publish("n", number.to_bytes(2, "big"))
        if not number % 7:
            net.run()
    net.run()
    assert len(quick.got()) == sent
    assert sum(missed for _, _, missed in quick.got()) == 0
    before = len(slow.got())
    assert len([x for x in slow.told if isinstance(x, m.Updates)]) == UPDATES_WINDOW
    assert home.topics.status()["dropped"] == sent - before - TOPIC_LINE_VALUES_MAX > 0
    slow.reads = True
    home.say(slow.handle, m.Taken(UPDATES_WINDOW))
    net.run()
    assert slow.payloads()[-1] == (sent - 1).to_bytes(2, "big")
    assert len(slow.got()) + sum(missed for _, _, missed in slow.got()) == sent
    assert home.topics.status()["waiting_bytes"] == 0


def test_large_values_are_bounded_in_bytes(net: Net) -> None:
    home = net.add(A)
    slow, source = home.program("slow"), home.program("source")
    slow.reads = False
    slow.subscribe("#")
    net.run()
    for number in range(400):
        source.publish("n", bytes(16_000) + number.to_bytes(2, "big"))
        net.run()
    assert home.topics.status()["waiting_bytes"] <= TOPIC_LINE_BYTES_MAX
    assert home.topics.status()["dropped"] > 100
    home.topics.lost(slow.handle)
    assert home.topics.status()["waiting_bytes"] == 0


# --- last values --------------------------------------------------------------------------------


def value(name: str, seq: int, payload: bytes = b"", node: bytes = A) -> m.Value:
    return m.Value(name, payload, seq, node, 1, 1, 0)


def test_the_store_is_bounded_in_number() -> None:
    kept = LastValues(KEEP, 3)
    for seq, name in enumerate("abcad", 1):
        kept.put(value(name, seq))
    assert [name for _, name in kept.names()] == ["c", "a", "d"]
    assert kept.evicted == 1


def test_the_store_is_bounded_in_bytes() -> None:
    kept = LastValues(100_000, 10_000)
    for seq in range(1, 200):
        kept.put(value(f"n{seq}", seq, bytes(1_000)))
        assert kept.bytes <= 100_000
    assert kept.get(A, "n199") is not None
    assert kept.get(A, "n1") is None
    assert kept.evicted == 199 - len(kept)
    kept.narrow(("n199/",))
    assert [name for _, name in kept.names()] == ["n199"]
    kept.narrow(())
    assert (len(kept), kept.bytes) == (0, 0)


def test_a_page_goes_on_after_the_last_of_it() -> None:
    kept = LastValues(KEEP, 10_000)
    for seq in range(1, 41):
        kept.put(value(f"n/{seq}", seq, bytes(3_000)))
    kept.put(value("other", 41))
    found, more, since = [], True, 0
    pages = 0
    while more:
        values, more = kept.page(("n/",), since)
        assert values
        found += [one.seq for one in values]
        since, pages = found[-1], pages + 1
    assert found == list(range(1, 41))
    assert pages > 2
    assert kept.page(("n/",), 40) == ((), False)


# --- several daemons ----------------------------------------------------------------------------


def test_values_reach_other_daemons_only_where_somebody_listens(net: Net) -> None:
    a, b = net.add(A), net.add(B)
    source, ear = a.program(), b.program()
    source.publish("lab/x", b"0")
    net.run()
    assert b.topics.prefixes == ()
    ear.subscribe("lab/*")
    net.run()
    source.publish("lab/x", b"1")
    source.publish("shed/x", b"2")
    net.run()
    assert ear.payloads() == [b"0", b"1"]
    assert b.topics.status()["kept_heard"] == 1
    b.say(ear.handle, m.Unsubscribe(1))
    net.run()
    assert (b.topics.prefixes, b.topics.status()["kept_heard"]) == ((), 0)


def test_a_daemon_that_comes_late_has_last_values(net: Net) -> None:
    source = net.add(A).program()
    for number in range(700):
        source.publish(f"lab/{number}", bytes(200))
        if not number % 100:
            net.run()
    net.run()
    ear = net.add(B).program()
    ear.subscribe("lab/#")
    net.run()
    assert {name for name, _, _ in ear.got()} == {f"lab/{number}" for number in range(700)}
    assert len(ear.got()) == 700


def test_who_wants_no_last_values_gets_none_but_what_is_lost_later(net: Net) -> None:
    a, b = net.add(A), net.add(B)
    source, ear = a.program(), b.program()
    source.publish("x", b"0")
    net.run()
    ear.subscribe("#", snapshot=False)
    net.run()
    assert ear.payloads() == []
    net.deaf.add((A, B))
    source.publish("x", b"1")
    source.publish("y", b"2")
    net.run()
    net.deaf.clear()
    net.run(TOPIC_ASK_MS)
    assert sorted(ear.payloads()) == [b"1", b"2"]


def test_doubles_and_old_values_are_dropped(net: Net) -> None:
    a, b = net.add(A), net.add(B)
    ear = b.program()
    ear.subscribe("#")
    net.run()
    inc = a.topics.inc
    newer = incarnation(2, 1)
    for topic in (
        m.Topic("x", b"2", 2, A, inc, 2),
        m.Topic("x", b"2", 2, A, inc, 2),
        m.Topic("x", b"1", 1, A, inc, 1),
        m.Topic("x", b"new", 1, A, newer, 1),
        m.Topic("x", b"3", 3, A, inc, 3),
    ):
        b.topics.on_topic(A, topic)
    net.run()
    assert ear.payloads() == [b"2", b"new"]
    assert (b.topics.counters["doubles"], b.topics.counters["old"]) == (2, 1)


def test_nobody_speaks_for_another_node(net: Net) -> None:
    net.add(A)
    b = net.add(B)
    ear = b.program()
    ear.subscribe("#")
    net.run()
    b.topics.on_topic(A, m.Topic("x", b"1", 1, b"c" * 16, 1, 1))
    b.topics.on_topic(A, m.Topic("x x", b"1", 1, A, 1, 1))
    net.run()
    assert ear.payloads() == []
    assert b.topics.counters["breach"] == 2


def test_gaps_are_counted_and_told(net: Net) -> None:
    a, b = net.add(A), net.add(B)
    source, ear = a.program(), b.program()
    ear.subscribe("#")
    net.run()
    source.publish("x", b"1")
    net.run()
    net.deaf.add((A, B))
    for _ in range(5):
        source.publish("x", b"lost")
    net.run()
    net.deaf.clear()
    source.publish("y", b"y")
    source.publish("x", b"7")
    net.run()
    assert ear.got() == [("x", b"1", 0), ("y", b"y", 5), ("x", b"7", 0)]
    assert b.topics.counters["missed"] == 5


def test_the_last_value_is_repaired_when_nothing_follows(net: Net) -> None:
    """R-topic-7: lost for good is only what was followed by something newer."""
    a, b = net.add(A), net.add(B)
    source, ear = a.program(), b.program()
    ear.subscribe("#")
    net.run()
    net.run(TOPIC_ASK_MS)
    net.deaf.add((A, B))
    source.publish("x", b"1")
    source.publish("x", b"2")
    net.run()
    net.deaf.clear()
    assert ear.payloads() == []
    net.run(TOPIC_ASK_MS)
    assert ear.got() == [("x", b"2", 1)]
    # Asked is only for what changed since.
    assert net.asked[-1].since == 0
    net.run(TOPIC_ASK_MS)
    assert net.asked[-1].since == 2


def test_where_pub_stays_cut_links_bring_last_values(net: Net) -> None:
    a, b = net.add(A), net.add(B)
    source, ear = a.program(), b.program()
    net.deaf.add((A, B))
    source.publish("x", b"1")
    ear.subscribe("#")
    net.run()
    # What was published before is there at once; that it is subscribed is said later.
    assert ear.payloads() == [b"1"]
    assert not any(one.began for one in ear.told if isinstance(one, m.Updates))
    net.run(TOPIC_HOLD_MS)
    assert any(one.began for one in ear.told if isinstance(one, m.Updates))
    net.run(TOPIC_ASK_TIMEOUT_MS)
    source.publish("x", b"2")
    net.run(LOOK_MS)
    assert ear.payloads() == [b"1", b"2"]


def test_an_answer_does_not_overtake_what_is_on_its_way(net: Net) -> None:
    """R-topic-7: PUB and link are two paths; the mark tells what the first one has lost."""
    a, b = net.add(A), net.add(B)
    source, ear = a.program(), b.program()
    ear.subscribe("#")
    source.publish("x", b"0")
    net.run()
    # The question is asked, and what is published stays on its way: only the answer comes.
    net.now_ms += TOPIC_ASK_MS
    a.topics.turn(dict, net.now_ms, WALL_MS)
    b.topics.turn(lambda: {A: a.topics.inc}, net.now_ms, WALL_MS)
    ask = b.topics.sends.pop()[1]
    for number in range(1, 6):
        source.publish("x", b"%d" % number)
    a.topics.on_peer(B, ask, net.now_ms)
    a.topics.turn(dict, net.now_ms, WALL_MS)
    b.topics.on_peer(A, a.topics.sends.pop()[1], net.now_ms)
    net.deaf.add((A, B))
    under_way, a.topics.spreads = a.topics.spreads, []
    marks, a.topics.marks = a.topics.marks, []
    assert len(under_way) == 5
    net.run()
    assert ear.payloads() == [b"0"]
    for late in under_way[:-1]:
        b.topics.on_topic(A, topic_of(late))
    # The last of them is lost for good: the answer has it.
    b.topics.on_mark(A, marks[0].mark, marks[0].ask, net.now_ms)
    net.run()
    assert ear.got() == [("x", b"%d" % number, 0) for number in range(6)]


def test_a_new_life_begins_from_nothing(net: Net) -> None:
    a, b = net.add(A), net.add(B)
    source, ear = a.program(), b.program()
    ear.subscribe("#")
    for number in range(5):
        source.publish("x", b"%d" % number)
    net.run()
    again = net.add(A, counter=2)
    again.program().publish("x", b"new")
    net.run(TOPIC_ASK_MS)
    assert ear.payloads()[-1] == b"new"
    assert sum(missed for _, _, missed in ear.got()) == 0


def test_an_answer_that_does_not_come_is_asked_for_again(net: Net) -> None:
    a, b = net.add(A), net.add(B)
    a.program().publish("x", b"1")
    net.run()
    ear = b.program()
    net.cut.add((A, B))
    ear.subscribe("#")
    net.run()
    assert ear.payloads() == []
    net.cut.clear()
    net.run(TOPIC_ASK_TIMEOUT_MS)
    assert ear.payloads() == [b"1"]


def test_a_further_pattern_is_asked_for_alone(net: Net) -> None:
    a, b = net.add(A), net.add(B)
    source, ear = a.program(), b.program()
    source.publish("lab/x", b"1")
    source.publish("shed/x", b"2")
    net.run()
    ear.subscribe("lab/#", 1)
    net.run()
    ear.subscribe("shed/#", 2)
    net.run()
    assert [one.prefixes for one in net.asked] == [("lab/",), ("shed/",)]
    assert (ear.payloads(1), ear.payloads(2)) == ([b"1"], [b"2"])


def test_an_answer_nobody_asked_for_is_dropped(net: Net) -> None:
    net.add(A)
    b = net.add(B)
    ear = b.program()
    ear.subscribe("#")
    net.run()
    b.topics.on_peer(A, m.Topics(99, 1, False, (value("x", 1),)), net.now_ms)
    net.run()
    assert ear.payloads() == []
    assert b.topics.counters["answers.unasked"] == 1


def test_evicted_values_do_not_come_twice(net: Net) -> None:
    a, b = net.add(A), net.add(B, keep=2_000)
    source, ear = a.program(), b.program()
    ear.subscribe("#")
    net.run()
    for number in range(50):
        source.publish(f"n{number}", b"%d" % number)
    net.run()
    net.run(TOPIC_ASK_MS)
    net.run(TOPIC_ASK_MS)
    assert ear.payloads() == [b"%d" % number for number in range(50)]
    assert b.topics.status()["evicted"] > 0


def test_an_idle_daemon_has_nothing_to_do(net: Net) -> None:
    a, b = net.add(A), net.add(B)
    ear = b.program()
    ear.subscribe("#")
    net.run()
    b.say(ear.handle, m.Unsubscribe(1))
    for _ in range(3):
        net.run(TOPIC_ASK_MS)
    idle = 2**60
    assert a.topics.next_deadline_ms() > idle
    assert b.topics.next_deadline_ms() > idle
