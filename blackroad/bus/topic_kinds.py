"""The messages of topics: what programs publish and subscribe to.

Source  docs/protocol.md, "Topics".  Decoding validates, as in `messages.py`, which passes these
kinds on.  This file knows no socket and no state.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from blackroad.bus.parts import Message, Part
from blackroad.ids import NODE_BYTES, U32, U63, NodeId
from blackroad.limits import (
    SUBSCRIPTIONS_OF_CLIENT_MAX,
    TOPIC_PAGE_VALUES_MAX,
    TOPIC_PAYLOAD_BYTES_MAX,
    TOPIC_PREFIXES_MAX,
    UPDATES_VALUES_MAX,
)

OptionalNode = Annotated[bytes, Meta(max_length=NODE_BYTES)]
User = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=512)]
TopicName = Annotated[str, Meta(max_length=64)]
TopicPrefix = Annotated[str, Meta(max_length=65)]
TopicPayload = Annotated[bytes, Meta(max_length=TOPIC_PAYLOAD_BYTES_MAX)]


class Value(Part, frozen=True, array_like=True, gc=False):
    """The value of a topic, as its origin published it.

    Units  `seq` counts all values of this life of the origin, `nth` those of this topic alone;
           `time_ms` is the origin's wall clock.
    """

    name: TopicName
    payload: TopicPayload
    seq: U63
    node: NodeId
    inc: U63
    nth: U63
    time_ms: U63
    user: User = ""


class AskTopics(Message, frozen=True, array_like=True, gc=False, tag=0x0A):
    """Any -> any: your last values of topics that begin like this, published after `since`.

    `mark`, where it is not 0, is to be published to me: it shows that I hear you.
    """

    ask: U32
    prefixes: Annotated[tuple[TopicPrefix, ...], Meta(min_length=1, max_length=TOPIC_PREFIXES_MAX)]
    since: U63 = 0
    mark: U32 = 0


class Topics(Message, frozen=True, array_like=True, gc=False, tag=0x0B):
    """The answer to AskTopics, oldest first; with `more`, ask again after the last of them."""

    ask: U32
    upto: U63
    more: bool
    values: Annotated[tuple[Value, ...], Meta(max_length=TOPIC_PAGE_VALUES_MAX)] = ()


class Subscribe(Message, frozen=True, array_like=True, gc=False, tag=0x3B):
    """Client -> daemon: send me values of these topics; repeated, it lives on."""

    sub: U32
    pattern: TopicName
    snapshot: bool


class Unsubscribe(Message, frozen=True, array_like=True, gc=False, tag=0x3C):
    """Client -> daemon: no more of that subscription."""

    sub: U32


class Publish(Message, frozen=True, array_like=True, gc=False, tag=0x3D):
    """Client -> daemon: a new value of a topic; `serial` counts those of this client."""

    serial: U63
    name: TopicName
    payload: TopicPayload
    user: User = ""


class Taken(Message, frozen=True, array_like=True, gc=False, tag=0x3E):
    """Both ways: Publish, or Updates, up to that serial came; `error`: one was refused."""

    serial: U63
    error: Text = ""


class Updates(Message, frozen=True, array_like=True, gc=False, tag=0x3F):
    """Daemon -> client: values for these subscriptions, and how many each of them missed.

    `began` says that the subscription is new to the daemon; `error`, that there is none.
    """

    serial: U63
    subs: Annotated[tuple[U32, ...], Meta(max_length=SUBSCRIPTIONS_OF_CLIENT_MAX)]
    missed: Annotated[tuple[U63, ...], Meta(max_length=SUBSCRIPTIONS_OF_CLIENT_MAX)]
    values: Annotated[tuple[Value, ...], Meta(max_length=UPDATES_VALUES_MAX)] = ()
    began: bool = False
    error: Text = ""


class Topic(Message, frozen=True, array_like=True, gc=False, tag=0x52):
    """PUB: a user's own message; its fields are those of a Value."""

    name: TopicName
    payload: TopicPayload
    seq: U63
    node: OptionalNode = b""
    inc: U63 = 0
    nth: U63 = 0
    time_ms: U63 = 0
    user: User = ""

    def __post_init__(self) -> None:
        if self.node and len(self.node) != NODE_BYTES:
            raise ValueError(f"node: {len(self.node)} bytes, an id has {NODE_BYTES} or none")
