"""The messages of large objects: asked for in chunks, or over a line of their own.

Source  docs/protocol.md, "Objects".  Decoding validates, as in `messages.py`, which passes these
kinds on.  This file knows no socket and no state.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from blackroad.bus.parts import Message
from blackroad.ids import U32, U63, Digest
from blackroad.limits import CHUNK_BYTES


class Want(Message, frozen=True, array_like=True, gc=False, tag=0x40):
    """Puller -> holder: send these chunks of that object."""

    digest: Digest
    offset: U63
    chunks: Annotated[int, Meta(ge=1, le=8)]


class Chunk(Message, frozen=True, array_like=True, gc=False, tag=0x41):
    """Holder -> puller: bytes of an object, at an offset."""

    digest: Digest
    offset: U63
    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]


class Gone(Message, frozen=True, array_like=True, gc=False, tag=0x42):
    """Holder -> puller: that object is not here."""

    digest: Digest


class Dial(Message, frozen=True, array_like=True, gc=False, tag=0x44):
    """Puller -> holder: let me pull large objects over a stream.

    Units  MB/s at which the puller opens what was sealed with AES and with ChaCha20; 0 in an open
           mesh, where nothing is sealed.
    """

    aes: U32
    chacha: U32


class Line(Message, frozen=True, array_like=True, gc=False, tag=0x45):
    """Holder -> puller: where that stream is, and what only the two of them know of it.

    `keys` are those of both directions, the puller's first; none in an open mesh.
    """

    port: Annotated[int, Meta(ge=1, le=65535)]
    token: Annotated[bytes, Meta(min_length=16, max_length=16)]
    cipher: Annotated[int, Meta(ge=0, le=2)]
    keys: Annotated[bytes, Meta(max_length=64)]
