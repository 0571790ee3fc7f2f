"""Taking secrets out of text that a person is going to send to somebody else.

Two ways, and both are always gone: what is known to be a secret here goes wherever it stands; and
what looks like one goes, whatever it is.  Pure but for reading what is known.  This file must not
know what the text is about.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

HIDDEN: Final = "***"
LENGTH_MIN: Final = 4
LOOKS_SECRET: Final = re.compile(
    r"(?i)pass(word|wd|phrase)?|secret|token|credential|auth|api_?key|private|dsn|cookie"
)
FILE_BYTES_MAX: Final = 1024 * 1024

# Up to the last @: people write passwords with / and @ in them as they are.
_URL_LOGIN = re.compile(r"""(?i)\b([a-z][a-z0-9+.-]*://)([^\s'"<>]*)@""")
_URL_QUERY = re.compile(r"(?i)([?&](?:[^=&\s]*(?:pass|secret|token|key|sig)[^=&\s]*)=)[^&\s'\"]+")
_INVITE = re.compile(r"(?i)\bbr1-[a-z2-7]{16,}")
_HEX = re.compile(r"(?i)\b[0-9a-f]{64,}\b")
_PEM = re.compile(r"-----BEGIN [^-]+-----.*?(?:-----END [^-]+-----|\Z)", re.DOTALL)
_BEARER = re.compile(r"(?i)\b(bearer|basic|digest)\s+[A-Za-z0-9._~+/=-]{6,}")
_NAMED = re.compile(
    r"""(?ix)
    ( ["']? [\w.-]* (?: passw(?:or)?d | passphrase | passwd | secret | token | credential
      | api[_-]?key | private[_-]?key | requirepass | masterauth ) [\w.-]* ["']?
      (?: \s*[=:]\s* | \s+ (?=["']) ) )
    ( "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | [^\s,;&}\]"']+ )
    """
)
# `--password hunter2`, as command lines have it.
_OPTION = re.compile(
    r"(?i)(--?[\w-]*(?:password|passwd|passphrase|secret|token|api-?key)[\w-]*)(\s+|=)(?!-)\S+"
)


class Scrubber:
    """Takes out what is known, then what looks like it."""

    def __init__(self, known: Iterable[str]) -> None:
        forms: set[str] = set()
        for one in known:
            stripped = one.strip()
            if len(stripped) >= LENGTH_MIN:
                forms |= {stripped, quote(stripped, safe=""), unquote(stripped)}
                # As it stands inside JSON.
                forms.add(json.dumps(stripped)[1:-1])
                forms.add(json.dumps(stripped, ensure_ascii=False)[1:-1])
        # Longer ones first: one may be a part of another.
        ordered = sorted((one for one in forms if len(one) >= LENGTH_MIN), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def text(self, text: str) -> str:
        """The text without them."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        text = _PEM.sub(HIDDEN, text)
        text = _URL_LOGIN.sub(rf"\1{HIDDEN}@", text)
        text = _URL_QUERY.sub(rf"\1{HIDDEN}", text)
        text = _INVITE.sub(HIDDEN, text)
        text = _HEX.sub(HIDDEN, text)
        text = _BEARER.sub(rf"\1 {HIDDEN}", text)
        text = _OPTION.sub(rf"\1\2{HIDDEN}", text)
        return _NAMED.sub(rf"\1{HIDDEN}", text)

    def data(self, value: Any) -> Any:
        """The same for data: every text in it, and every key."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self._under(str(key), one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(one) for one in value]
        return value

    def _under(self, key: str, value: Any) -> Any:
        if isinstance(value, str) and value and _IS_SECRET.search(key):
            return HIDDEN
        return self.data(value)


_IS_SECRET: Final = re.compile(r"(?i)passw|passphrase|secret|token|credential|api_?key|private")


# --- what is known --------------------------------------------------------------------------------


def of_environment(environ: Mapping[str, str]) -> list[str]:
    """Values of variables whose names say that they are secret, and logins in any of them."""
    found = []
    for name, value in environ.items():
        # The place of a secret is none.
        is_place = value.startswith("/") and Path(value).exists()
        if LOOKS_SECRET.search(name) and not is_place:
            found.append(value)
        found += of_url(value)
    return found


def of_url(text: str) -> list[str]:
    """The password in an address, and the whole of what stands before its last @."""
    found = _URL_LOGIN.search(text)
    if found is None:
        return []
    return [one for one in (found[2].partition(":")[2], found[2]) if one]


def of_keys(state: Path) -> list[str]:
    """All keys in a node's state directory that can be read here."""
    found: list[str] = []
    for path in [state / "identity.json", *sorted((state / "cluster").glob("*.json"))]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found += _texts(json.loads(path.read_bytes()[:FILE_BYTES_MAX]), "")
    return found


def of_file(path: Path) -> list[str]:
    """What a file holds that is one secret."""
    with contextlib.suppress(OSError, ValueError):
        return [path.read_bytes()[:65_536].decode("utf-8", "strict").strip()]
    return []


def _texts(value: Any, key: str) -> list[str]:
    """Texts under names that say secret."""
    if isinstance(value, dict):
        return [text for name, one in value.items() for text in _texts(one, str(name))]
    return [value] if isinstance(value, str) and "secret" in key and value else []
