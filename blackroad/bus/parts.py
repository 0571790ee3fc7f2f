"""The two bases of everything that is written on the wire.

This file knows no message.
"""

from __future__ import annotations

from msgspec import Struct


class Part(Struct, frozen=True, array_like=True, gc=False):
    """Base of values inside messages: small, immutable, written as arrays."""


class Message(Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages."""
