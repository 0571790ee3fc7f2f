"""Every key a person can set: where it belongs, what it may hold, and who reads it.

A reader takes one value as TOML has it and returns what Config stores, or raises BadValue; a
variable's text is first turned into what TOML would have.  configs/blackroad.toml explains the
keys.  This file knows no files, no variables and no machine.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from blackroad import limits
from blackroad.errors import UnitError
from blackroad.units import BYTES_MAX, format_bytes, format_ms, parse_bytes, parse_ms

AUTO: Final = "auto"
OFF: Final = "off"
PORT: Final = 7701
JOIN_PORT: Final = 7700
TOPICS_BYTES: Final = 4 * limits.MIB
MEMORY_BYTES_MIN: Final = 64 * limits.MIB
MEMORY_SHARE_PERCENT: Final = 80
LIST_MAX: Final = 256
TEXT_MAX: Final = 128

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,63}")
_ARCH = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PORT_NUMBER = re.compile(r"[0-9]{1,5}")
_HISTORY_URL = re.compile(r"(sqlite:///|postgres(ql)?://)[!-~]{1,500}")
_REDIS = re.compile(r"(rediss?|unix)://[!-~]{1,500}")
_HTTP = re.compile(r"https?://[!-~]{1,500}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

Reader = Callable[[object], Any]


class BadValue(Exception):
    """A value that its reader refuses; whoever asked adds where the value stands."""


# --- readers ------------------------------------------------------------------------------------


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise BadValue("must be text in quotes")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadValue("must be true or false, without quotes")
    return value


def _integer(low: int, high: int) -> Reader:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValue("must be a whole number, without quotes")
        if not low <= value <= high:
            raise BadValue("is out of range")
        return value

    return read


def _or_auto(read: Reader) -> Reader:
    def read_or_none(value: object) -> Any:
        return None if value == AUTO else read(value)

    return read_or_none


def _or_off(read: Reader) -> Reader:
    def read_or_none(value: object) -> Any:
        return None if value == OFF else read(value)

    return read_or_none


def _one_of(*choices: str) -> Reader:
    def read(value: object) -> str:
        text = _string(value)
        if text not in choices:
            raise BadValue("is none of the allowed words")
        return text

    return read


def _matching(pattern: re.Pattern[str]) -> Reader:
    def read(value: object) -> str:
        text = _string(value)
        if pattern.fullmatch(text) is None:
            raise BadValue(f"has {text!r}, which is not of the allowed form")
        return text

    return read


def _text(value: object) -> str:
    text = _string(value)
    if not text or len(text.encode()) > limits.NAME_BYTES_MAX or not text.isprintable():
        raise BadValue("is empty, too long or not printable")
    return text


def _size(low: int, high: int) -> Reader:
    def read(value: object) -> int:
        try:
            size_bytes = parse_bytes(value)
        except UnitError as error:
            raise BadValue("is no size") from error
        if not low <= size_bytes <= high:
            raise BadValue("is out of range (a bare number is bytes)")
        return size_bytes

    return read


def _duration(low: int, high: int) -> Reader:
    def read(value: object) -> int:
        try:
            duration_ms = parse_ms(value)
        except UnitError as error:
            raise BadValue("is no duration") from error
        if not low <= duration_ms <= high:
            raise BadValue("is out of range (a bare number is seconds)")
        return duration_ms

    return read


def _list_of(read_item: Reader) -> Reader:
    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise BadValue("must be a list in square brackets")
        if len(value) > LIST_MAX:
            raise BadValue(f"has {len(value)} items, more than {LIST_MAX}")
        return tuple(dict.fromkeys(read_item(item) for item in value))

    return read


def _labels(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BadValue("must be a table of names and texts")
    if len(value) > limits.LABELS_MAX:
        raise BadValue(f"has {len(value)} labels, more than {limits.LABELS_MAX}")
    for name, text in value.items():
        if _LABEL.fullmatch(name) is None or not isinstance(text, str):
            raise BadValue(f'has {name} = {text!r}; write {name} = "{text}"')
        if len(text.encode()) > limits.NAME_BYTES_MAX or not text.isprintable():
            raise BadValue(f"has a text at {name} that is too long or not printable")
    return dict(sorted(value.items()))


def _directory(value: object) -> Path:
    text = _string(value)
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise BadValue("names a home directory that is not known") from error
    if not path.is_absolute() or not text.isprintable():
        raise BadValue("must be an absolute path, or begin with ~")
    return path


def _address(value: object) -> str:
    text = _string(value).removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise BadValue("is no IP address") from error


def _endpoint(value: object) -> str:
    """Read host, host:port, [ipv6], [ipv6]:port or bare ipv6; the answer always has a port."""
    text = _string(value).removeprefix("tcp://")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        right = bool(bracket) and _is_ipv6(host) and colon in ("", ":")
    elif _is_ipv6(text):
        host, colon, port, right = text, "", "", True
    else:
        host, colon, port = text.partition(":")
        right = _HOST.fullmatch(host) is not None
    port = port if colon else str(PORT)
    if not right or _PORT_NUMBER.fullmatch(port) is None:
        raise BadValue(f"has {text!r}, which is not of the allowed form")
    if not 1 <= int(port) <= 65_535:
        raise BadValue(f"has {text!r}, whose port is not in 1..65535")
    return f"[{host}]:{int(port)}" if ":" in host else f"{host}:{int(port)}"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _endpoint_or_ipc(value: object) -> str:
    text = _string(value)
    return text if text.startswith("ipc:///") and text.isprintable() else _endpoint(value)


def _history_url(value: object) -> str:
    text = _string(value)
    if text not in ("auto", "off", "sqlite") and _HISTORY_URL.fullmatch(text) is None:
        # Not shown: it may hold a password.
        raise BadValue("is no address of a database")
    return text


def _redis_url(value: object) -> str:
    text = _string(value)
    if text and _REDIS.fullmatch(text) is None:
        # Not shown: it may hold a password.
        raise BadValue("is no address of a Redis server")
    return text


def _http_url(value: object) -> str:
    text = _string(value)
    if text and _HTTP.fullmatch(text) is None:
        # Not shown: it may hold a password.
        raise BadValue("is no address that begins with http:// or https://")
    return text


# --- the text of a variable, turned into what TOML would have -----------------------------------


def _boolean_text(text: str) -> object:
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise BadValue("must be true or false")
    return word in _TRUE


def _integer_text(text: str) -> object:
    stripped = text.strip()
    if stripped in (AUTO, OFF):
        return stripped
    if _INTEGER.fullmatch(stripped) is None:
        raise BadValue("must be a whole number")
    return int(stripped)


def _list_text(text: str) -> object:
    return [item.strip() for item in text.split(",") if item.strip()]


def _labels_text(text: str) -> object:
    labels: dict[str, str] = {}
    for item in text.split(","):
        name, equals, value = item.partition("=")
        if item.strip() and not equals:
            raise BadValue(f"has {item.strip()!r}; write name=text,name=text")
        if item.strip():
            labels[name.strip()] = value.strip()
    return labels


# --- the keys -----------------------------------------------------------------------------------


class Key(NamedTuple):
    """One key: its name, its table in a file, the allowed values in words, and its readers.

    `attribute` is the field of Config, which carries the unit that the key's text spells out.
    What is `secret` is not repeated in messages.
    """

    name: str
    table: str
    allowed: str
    read: Reader
    from_text: Callable[[str], object] = str.strip
    unit: str = ""
    secret: bool = False

    @property
    def attribute(self) -> str:
        return self.name + self.unit

    @property
    def variable(self) -> str:
        return "BLACKROAD_" + self.name.upper()


def _flag(name: str, table: str) -> Key:
    return Key(name, table, "true or false", _boolean, _boolean_text)


def _port(name: str) -> Key:
    allowed = "a port, 1 to 65535, or 0 for any free one"
    return Key(name, "network", allowed, _integer(0, 65_535), _integer_text)


def _whole(name: str, table: str, low: int, high: int) -> Key:
    return Key(name, table, f"a whole number, {low} to {high}", _integer(low, high), _integer_text)


def _list(name: str, table: str, allowed: str, read_item: Reader) -> Key:
    return Key(name, table, f"a list of {allowed}", _list_of(read_item), _list_text)


def _path(name: str) -> Key:
    allowed = '"auto", an absolute path or one that begins with ~'
    return Key(name, "directories", allowed, _or_auto(_directory))


def _span(low: int, high: int) -> str:
    return f"a duration, {format_ms(low)} to {format_ms(high)}"


_HOSTS = f'"host:port" (port {PORT} where none is given)'
_SLOTS = f'"auto" (the usable cores) or a whole number, 0 to {limits.SLOTS_MAX}'
_METRICS_PORT = '"off", a port, 1 to 65535, or 0 for any free one'
_MEMORY = f'"auto" ({MEMORY_SHARE_PERCENT} % of the RAM) or a size from 64 MiB'
_OBJECT = f"a size, 1 MiB to {format_bytes(limits.OBJECT_BYTES_LIMIT)}"
_BEATS = (limits.HEARTBEAT_MS_MIN, limits.HEARTBEAT_MS_MAX)
_LEASES = (limits.LEASE_MS_MIN, limits.LEASE_MS_MAX)
_MIRRORED = (60_000, 30 * 86_400_000)
_HISTORY = '"auto", "off", "sqlite", "sqlite:////path" or "postgresql://user:password@host/name"'
_FORMATS = ("auto", "json", "text")
_LEVELS = ("debug", "info", "warning", "error")

_ALL = (
    Key(
        "name",
        "node",
        '"auto" (the host name) or 1 to 64 letters, digits, and "_.+-" after the first',
        _or_auto(_matching(_WORD)),
    ),
    Key("user", "node", '"auto" (the login name) or 1 to 64 bytes of text', _or_auto(_text)),
    Key(
        "cluster",
        "node",
        '1 to 64 letters, digits, and "_.+-" after the first',
        _matching(_WORD),
    ),
    _flag("coordinate", "node"),
    _whole("priority", "node", limits.PRIORITY_MIN, limits.PRIORITY_MAX),
    Key(
        "arch",
        "node",
        '"auto" or a machine name such as "aarch64" or "x86_64"',
        _or_auto(_matching(_ARCH)),
    ),
    Key(
        "listen",
        "network",
        '"auto" (all with keys, else loopback) or an IP address of this machine',
        _or_auto(_address),
    ),
    _flag("insecure_open", "network"),
    _port("port"),
    _port("telemetry_port"),
    _port("bulk_port"),
    _port("join_port"),
    _flag("pending_joins", "network"),
    _list("endpoints", "network", f'{_HOSTS} or "ipc:///path"', _endpoint_or_ipc),
    _list("peers", "network", _HOSTS, _endpoint),
    _flag("mdns", "network"),
    _list("mdns_interfaces", "network", "IP addresses of this machine", _address),
    Key(
        "redis_url",
        "network",
        '"" or an address such as "rediss://host:6379/0"',
        _redis_url,
        secret=True,
    ),
    _flag("redis_mirror", "network"),
    Key("redis_keep", "network", _span(*_MIRRORED), _duration(*_MIRRORED), unit="_ms"),
    _path("state_dir"),
    _path("runtime_dir"),
    _path("cache_dir"),
    Key("slots", "work", _SLOTS, _or_auto(_integer(0, limits.SLOTS_MAX)), _integer_text),
    Key("memory", "work", _MEMORY, _or_auto(_size(MEMORY_BYTES_MIN, BYTES_MAX)), unit="_bytes"),
    Key("opencl", "work", '"auto", "off" or a part of a device\'s name', _text),
    Key("labels", "work", 'a table of name = "text"', _labels, _labels_text),
    _list("programs", "work", "program names", _matching(_WORD)),
    Key(
        "object_limit",
        "work",
        _OBJECT,
        _size(limits.MIB, limits.OBJECT_BYTES_LIMIT),
        unit="_bytes",
    ),
    Key(
        "topics_keep",
        "work",
        "a size, 0 to 1 GiB",
        _size(0, limits.GIB),
        unit="_bytes",
    ),
    Key(
        "heartbeat",
        "timing",
        f'"auto" or {_span(*_BEATS)}',
        _or_auto(_duration(*_BEATS)),
        unit="_ms",
    ),
    Key("lease", "timing", _span(*_LEASES), _duration(*_LEASES), unit="_ms"),
    Key("metrics_port", "metrics", _METRICS_PORT, _or_off(_integer(0, 65_535)), _integer_text),
    Key("metrics_listen", "metrics", "an IP address of this machine", _address),
    _list("metrics_names", "metrics", "host names", _matching(_HOST)),
    Key(
        "metrics_token_file",
        "metrics",
        '"off", an absolute path or one that begins with ~',
        _or_off(_directory),
    ),
    Key(
        "otel_url",
        "metrics",
        '"" or an address such as "http://127.0.0.1:4318"',
        _http_url,
        secret=True,
    ),
    Key("history_url", "history", _HISTORY, _history_url, secret=True),
    _whole("history_keep_days", "history", 1, 3650),
    Key("log_format", "log", '"auto", "json" or "text"', _one_of(*_FORMATS)),
    Key("log_level", "log", '"debug", "info", "warning" or "error"', _one_of(*_LEVELS)),
)

KEYS: Final[Mapping[str, Key]] = {key.name: key for key in _ALL}
TABLES: Final = tuple(dict.fromkeys(key.table for key in _ALL))
