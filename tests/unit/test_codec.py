"""The codec's scopes: who may say what on which socket."""

from __future__ import annotations

import pytest

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.errors import RemoteProtocolError
from tests.protocol.shapes import SCOPES, kind_of, plain, values
from tests.unit.builders import INC, SESSION, beat, grant, submit


def frame(*said: m.Message) -> bytes:
    return codec.frame_of([codec.encode(one) for one in said])


def test_messages_arrive_in_order() -> None:
    """R-path-5: what one turn produces for one peer leaves together."""
    said = (grant(1), m.Recall(grant(1).token, True), grant(2))
    assert codec.PEER.decode(frame(*said)) == (list(said), 0)


def test_an_empty_frame_says_nothing() -> None:
    assert codec.PEER.decode(b"\x90") == ([], 0)


def test_a_memoryview_is_as_good() -> None:
    """Frames are read in place."""
    data = frame(grant())
    assert codec.PEER.decode(memoryview(data)) == codec.PEER.decode(data)
    with pytest.raises(RemoteProtocolError):
        codec.PEER.decode(memoryview(data)[:-1])


@pytest.mark.parametrize(
    ("scope", "one"),
    [
        (codec.PEER, submit(1)),
        (codec.PEER, beat(SESSION)),
        (codec.CLIENT, grant()),
        (codec.CLIENT, m.Goodbye(INC)),
        (codec.OWNER, submit(1)),
        (codec.BULK, grant()),
        (codec.TELEMETRY, grant()),
    ],
)
def test_what_is_not_said_there_is_not_heard(scope: codec.Scope, one: m.Message) -> None:
    """Section 17: from whom to whom; a kind of another socket is skipped as unknown."""
    assert scope.decode(frame(one)) == ([], 1)


def test_every_kind_is_heard_somewhere() -> None:
    """Section 17: all message kinds."""
    heard = set().union(*(scope._tags for scope in SCOPES))
    assert heard == {kind_of(cls) for cls in m.ALL_MESSAGES}
    assert len(m.ALL_MESSAGES) == len({kind_of(cls) for cls in m.ALL_MESSAGES})


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 128])
def test_frames_of_any_length(count: int) -> None:
    """Section 19: each body frame is a MessagePack array of messages."""
    found, _ = codec.PEER.decode(frame(*[m.Goodbye(n) for n in range(count)]))
    assert [one.inc for one in found] == list(range(count))


def test_the_error_names_the_socket_and_the_fault() -> None:
    """R-link-7: who breaks a limit is counted, and a person can see what it was."""
    whole = values(m.Goodbye)
    whole[1] = "x"
    with pytest.raises(RemoteProtocolError, match=r"link: .*int"):
        codec.PEER.decode(codec.frame_of([codec._encoder.encode(whole)]))


def test_plain_values_are_valid() -> None:
    """What the other tests build their messages from is itself within all limits."""
    for cls in m.ALL_MESSAGES:
        assert values(cls)[0] == kind_of(cls)
    assert plain(codec.msgspec.inspect.type_info(bool)) is False
