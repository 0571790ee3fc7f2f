"""The text that lets a machine into a cluster: what it holds, and how it is written and read.

Pure.  A token tells the joiner whom it may trust before it shows the secret: the cluster's
fingerprint and the key of the door, which only admins hold.  This file must not know who made
the token, nor whether it still counts.
"""

from __future__ import annotations

import base64
import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from blackroad.bus.admission import (
    DOOR_ENDPOINTS_MAX,
    INVITE_BYTES,
    SECRET_BYTES,
    Key,
)
from blackroad.bus.parts import Part
from blackroad.digest import blake2b
from blackroad.errors import UsageError
from blackroad.ids import text32

PREFIX: Final = "br1-"
SUM_BYTES: Final = 5
TEXT_MAX: Final = 2048
_GROUPS = re.compile(r"[a-z2-7]*")
_HINT: Final = "copy the whole line that `blackroad init` or `blackroad token create` printed"


class InviteText(Part, frozen=True, array_like=True, gc=False):
    """What a token says: which cluster, the door's key, the invite, its secret, where to knock."""

    cluster: Annotated[bytes, Meta(min_length=16, max_length=16)]
    door_key: Key
    id: Annotated[bytes, Meta(min_length=INVITE_BYTES, max_length=INVITE_BYTES)]
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    endpoints: Annotated[
        tuple[Annotated[str, Meta(max_length=128)], ...], Meta(max_length=DOOR_ENDPOINTS_MAX)
    ]

    def text(self) -> str:
        """Write the token: "br1-", then base32 of its contents and of a check sum."""
        body = msgspec.msgpack.encode(self)
        return PREFIX + text32(body + _sum(body))

    def __repr__(self) -> str:
        """Without the secret: logs and tracebacks show this."""
        return f"InviteText({text32(self.id)} of {text32(self.cluster)}, {self.endpoints})"


_decoder = msgspec.msgpack.Decoder(InviteText)


def parse_token(text: str) -> InviteText:
    """Read a token as people paste it: with line breaks, spaces or capitals.

    Raises  UsageError saying whether it is no token, of another version, cut off, or altered.
    """
    plain = "".join(text.split()).lower()
    if not plain.startswith(PREFIX):
        version = re.match(r"br[0-9]+-", plain)
        if version:
            raise UsageError(
                f"a token of version {version[0][2:-1]}, and this program reads version 1",
                hint="install the version of blackroad that the cluster runs",
            )
        raise UsageError(f"this is no token: it must begin with `{PREFIX}`", hint=_HINT)
    body = plain.removeprefix(PREFIX)
    if len(plain) > TEXT_MAX or not _GROUPS.fullmatch(body):
        raise UsageError("the token has characters that no token has", hint=_HINT)
    raw = _decoded(body)
    told = raw[:-SUM_BYTES]
    if _sum(told) != raw[-SUM_BYTES:] or text32(raw) != body:
        if _is_cut(told):
            raise UsageError("the token is cut off: its end is missing", hint=_HINT)
        raise UsageError(
            "the token was altered: its check sum does not fit",
            hint=f"{_HINT}; a single wrong letter is enough",
        )
    try:
        return _decoder.decode(told)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UsageError("the token cannot be read, though it is whole", hint=_HINT) from None


def _decoded(body: str) -> bytes:
    """Read base32; of a text that was cut in the middle of a byte, what is whole."""
    length = len(body) - (1 if len(body) % 8 in (1, 3, 6) else 0)
    padded = body[:length].upper() + "=" * (-length % 8)
    return base64.b32decode(padded)


def _is_cut(told: bytes) -> bool:
    """Does what is there end before the contents do?"""
    try:
        # What was cut off began like this and lacks only its end.
        _decoder.decode(told)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return "truncated" in str(error)
    return False


def _sum(body: bytes) -> bytes:
    return blake2b(body, digest_size=SUM_BYTES, person=b"blackroad-token").digest()
