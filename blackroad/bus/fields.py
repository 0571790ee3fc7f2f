"""The types of fields that several messages share, with the limits that make them valid.

This file knows no message.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from blackroad.ids import DIGEST_BYTES, HEARD_BYTES
from blackroad.limits import INLINE_BYTES_MAX, LEASE_MS_MAX, LEASE_MS_MIN

OptionalNode = Annotated[bytes, Meta(max_length=16)]
OptionalDigest = Annotated[bytes, Meta(max_length=DIGEST_BYTES)]
Inline = Annotated[bytes, Meta(max_length=INLINE_BYTES_MAX)]
Name = Annotated[str, Meta(max_length=128)]
User = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=512)]
Endpoint = Annotated[str, Meta(max_length=128)]
NeedsWire = Annotated[bytes, Meta(max_length=1024)]
LeaseMs = Annotated[int, Meta(ge=LEASE_MS_MIN, le=LEASE_MS_MAX)]
HeardId = Annotated[bytes, Meta(min_length=HEARD_BYTES, max_length=HEARD_BYTES)]
