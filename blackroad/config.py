"""What the person who runs a node has decided: one frozen Config, read once at start.

Order of precedence, highest first: BLACKROAD_<KEY> variables, then one file (the --config path,
else $BLACKROAD_CONFIG, else the user's, else the machine's), then the defaults below.
This file reads that one file and asks this machine for its name, cores, memory and directories.
It knows no sockets, no tasks and no peers.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from blackroad import directories, limits
from blackroad.config_keys import (
    JOIN_PORT,
    KEYS,
    MEMORY_BYTES_MIN,
    MEMORY_SHARE_PERCENT,
    PORT,
    TABLES,
    TOPICS_BYTES,
    BadValue,
    Key,
)
from blackroad.directories import Paths
from blackroad.errors import ConfigError
from blackroad.units import format_bytes, format_ms

PREFIX: Final = "BLACKROAD_"
FILE_VARIABLE: Final = "BLACKROAD_CONFIG"
SYSTEM_FILE: Final = Path("/etc/blackroad/blackroad.toml")
FILE_BYTES_MAX: Final = 1 * limits.MIB
LOOPBACK: Final = "127.0.0.1"
INTERFACES6_FILE: Final = Path("/proc/net/if_inet6")

_PAIR = re.compile(r"\s*([A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')\s*(?:=|\.)")
_TABLE = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every decision, checked; None means "work it out on this machine" (see `resolved`).

    Units  `*_ms` milliseconds, `*_bytes` bytes.
    """

    name: str | None = None
    user: str | None = None
    cluster: str = "default"
    coordinate: bool = True
    priority: int = 0
    arch: str | None = None

    listen: str | None = None
    insecure_open: bool = False
    port: int = PORT
    telemetry_port: int = PORT + 1
    bulk_port: int = PORT + 2
    join_port: int = JOIN_PORT
    pending_joins: bool = True
    endpoints: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    mdns: bool = True
    mdns_interfaces: tuple[str, ...] = ()
    redis_url: str = ""
    redis_mirror: bool = False
    redis_keep_ms: int = 86_400_000

    state_dir: Path | None = None
    runtime_dir: Path | None = None
    cache_dir: Path | None = None

    slots: int | None = None
    memory_bytes: int | None = None
    opencl: str = "auto"
    labels: Mapping[str, str] = field(default_factory=dict)
    programs: tuple[str, ...] = ()
    object_limit_bytes: int = limits.OBJECT_BYTES_MAX
    topics_keep_bytes: int = TOPICS_BYTES

    heartbeat_ms: int | None = None
    lease_ms: int = limits.LEASE_MS

    metrics_port: int | None = None
    metrics_listen: str = LOOPBACK
    metrics_names: tuple[str, ...] = ()
    metrics_token_file: Path | None = None
    otel_url: str = ""

    history_url: str = "auto"
    history_keep_days: int = 7

    log_format: str = "auto"
    log_level: str = "info"

    # Not a key: which file was read, for messages.
    source: Path | None = None


def _no_keys(_config: Config) -> bool:
    return False


def load(
    path: str | Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    keys_exist: Callable[[Config], bool] = _no_keys,
) -> Config:
    """Read the configuration that counts here.

    `keys_exist` tells whether this node can prove who it is and ask its peers for the same;
    without keys it may only listen on loopback.

    Raises  ConfigError naming the file and line or the variable, the key, and what is allowed.
    """
    environ = os.environ if environ is None else environ
    source = _find_file(path, environ)
    values = _read_file(source) if source is not None else {}
    values.update(_read_variables(environ))
    config = Config(source=source, **values)
    check_ports(config)
    check_timing(config)
    check_metrics(config)
    check_exposure(config, keys_exist=keys_exist(config))
    return config


def check_metrics(config: Config) -> None:
    """Raise ConfigError when anybody on the network could read this node's figures."""
    if config.metrics_port is None or config.metrics_token_file is not None:
        return
    if not ipaddress.ip_address(config.metrics_listen).is_loopback:
        raise ConfigError(
            f"metrics_listen = {config.metrics_listen!r} is open to other machines, and there is "
            "no token: anybody on the network could read what runs here",
            hint="name a file with a token of at least 16 characters in metrics_token_file, and "
            "have Prometheus send it; or leave metrics_listen at loopback",
        )


def check_exposure(config: Config, *, keys_exist: bool) -> None:
    """Refuse to be reachable from other machines by anybody who cares to connect.

    Raises  ConfigError when `listen` is not loopback, there are no keys, and the risk was not
            accepted in so many words.
    """
    if config.listen is None or ipaddress.ip_address(config.listen).is_loopback:
        return
    if keys_exist or config.insecure_open:
        return
    raise ConfigError(
        f"listen = {config.listen!r} is open to other machines, and this node has no keys: "
        "anybody on the network could run programs here",
        hint="make keys with `blackroad init`, or `blackroad join TOKEN` where others have them; "
        "or, on a network with no other machine and no other user on it, accept the risk with "
        "insecure_open = true",
    )


def check_ports(config: Config) -> None:
    """Raise ConfigError when two sockets are given the same port."""
    ports = [config.port, config.telemetry_port, config.bulk_port, config.join_port]
    ports += [config.metrics_port] if config.metrics_port is not None else []
    fixed = [port for port in ports if port]
    if len(set(fixed)) != len(fixed):
        raise ConfigError(
            f"port, telemetry_port, bulk_port, join_port and metrics_port are {ports}: two of "
            "them are the same",
            hint="give each its own number, or 0 for any free one",
        )


def check_timing(config: Config) -> None:
    """Raise ConfigError when a node's stamps would be too old for its leases (R-lease-4)."""
    if config.heartbeat_ms and config.heartbeat_ms * limits.LEASE_BEATS_MIN > config.lease_ms:
        raise ConfigError(
            f"heartbeat is {format_ms(config.heartbeat_ms)} and lease only "
            f"{format_ms(config.lease_ms)}: nodes would refuse much work as late",
            hint=f"make the lease at least {limits.LEASE_BEATS_MIN} heartbeats long",
        )


# --- the file -----------------------------------------------------------------------------------


def _find_file(path: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the file to read; one that was named must exist, the usual places need not."""
    named = str(path) if path else environ.get(FILE_VARIABLE, "")
    if named:
        whose = "--config" if path else FILE_VARIABLE
        if not Path(named).exists():
            raise ConfigError(
                f"{named}: no such file (named by {whose})",
                hint=f"check the path, or leave {whose} out to use the defaults",
            )
        return Path(named)
    candidates = [SYSTEM_FILE]
    if environ.get("XDG_CONFIG_HOME") or environ.get("HOME"):
        home = directories.xdg(environ, "XDG_CONFIG_HOME", ".config")
        candidates.insert(0, home / "blackroad/blackroad.toml")
    for candidate in candidates:
        try:
            candidate.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(
                f"{candidate}: cannot be read: {error.strerror}",
                hint=f"make it readable for this user, or name another with {FILE_VARIABLE}",
            ) from error
        return candidate
    return None


def _read_file(source: Path) -> dict[str, Any]:
    try:
        with source.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise ConfigError(
                f"{source}: larger than {format_bytes(FILE_BYTES_MAX)}",
                hint="this is no configuration file; check the path",
            )
        text = raw.decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"{source}: cannot be read: {error.strerror}",
            hint=f"make it a readable file, or name another with {FILE_VARIABLE}",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source}: not UTF-8 text (byte {error.start})", hint="save the file as UTF-8"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{source}: not valid TOML: {error}", hint='a line reads key = value, texts in "quotes"'
        ) from error
    return _read_document(document, source, _line_numbers(text))


Lines = Mapping[tuple[str, str], int]


def _read_document(document: Mapping[str, Any], source: Path, lines: Lines) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for table, name, value in _flattened(document, source, lines):
        where = _place(source, lines, table, name)
        key = KEYS.get(name)
        if key is None or table not in ("", key.table):
            raise _unknown(where, table, name)
        if key.attribute in values:
            raise ConfigError(
                f"{where}: `{name}` is set twice, inside [{key.table}] and outside",
                hint="keep one of them",
            )
        values[key.attribute] = _judge(key, value, f"{where}: `{name}`")
    return values


def _flattened(
    document: Mapping[str, Any], source: Path, lines: Lines
) -> list[tuple[str, str, object]]:
    """List (table, key, value), table "" for what stands above the first table."""
    rows: list[tuple[str, str, object]] = []
    for name, value in document.items():
        if name not in TABLES:
            rows.append(("", name, value))
        elif isinstance(value, dict):
            rows += [(name, inner, item) for inner, item in value.items()]
        else:
            raise ConfigError(
                f"{_place(source, lines, '', name)}: `{name}` is a table, not a key",
                hint=f"write [{name}] on a line of its own, and its keys below",
            )
    return rows


def _line_numbers(text: str) -> dict[tuple[str, str], int]:
    """Find the line of each (table, key), as far as plain layout shows it.

    tomllib keeps no positions.  A key inside a multi-line value could be taken for a real one, so
    only the first find counts, and a missing one just leaves the number out.
    """
    found: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TABLE.match(line):
            table = header[1].strip("\"'")
            above, _, below = table.rpartition(".")
            found.setdefault((above, below), number)
        elif pair := _PAIR.match(line):
            found.setdefault((table, pair[1].strip("\"'")), number)
    return found


def _place(source: Path, lines: Lines, table: str, name: str) -> str:
    line = lines.get((table, name))
    return f"{source}:{line}" if line else str(source)


def _unknown(where: str, table: str, name: str) -> ConfigError:
    key = KEYS.get(name)
    if key is not None:
        return ConfigError(
            f"{where}: `{name}` does not belong in [{table}]",
            hint=f"move it into [{key.table}], or above the first [table]",
        )
    import difflib

    near = difflib.get_close_matches(name, [*KEYS, *TABLES], n=1)
    meant = f"; did you mean `{near[0]}`?" if near else ""
    return ConfigError(
        f"{where}: no key is called `{name}`{meant}",
        hint="configs/blackroad.toml lists every key with its meaning",
    )


# --- variables ----------------------------------------------------------------------------------


def _read_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """Read BLACKROAD_<KEY>; an empty one means the default, whatever a file says."""
    values: dict[str, Any] = {}
    names = {key.variable: key for key in KEYS.values()}
    for variable, text in sorted(environ.items()):
        key = names.get(variable)
        if key is not None:
            values[key.attribute] = _read_variable(key, text)
        elif variable.startswith(PREFIX) and variable != FILE_VARIABLE:
            _refuse_near_miss(variable, list(names))
    return values


def _read_variable(key: Key, text: str) -> Any:
    if not text.strip():
        return getattr(Config(), key.attribute)
    where = f"{key.variable}:" if key.secret else f"{key.variable}={text}:"
    try:
        value = key.from_text(text)
    except BadValue as error:
        raise _refusal(key, where, error) from error
    return _judge(key, value, where)


def _refuse_near_miss(variable: str, known: list[str]) -> None:
    """Refuse a misspelt key; other variables with our prefix belong to tasks and tools."""
    import difflib

    short = variable.removeprefix(PREFIX)
    near = difflib.get_close_matches(short, [name.removeprefix(PREFIX) for name in known], n=1)
    if near and difflib.SequenceMatcher(None, short, near[0]).ratio() >= 0.75:
        raise ConfigError(
            f"{variable}: no key has that name; did you mean {PREFIX}{near[0]}?",
            hint=f"rename or unset {variable}",
        )


def _judge(key: Key, value: object, where: str) -> Any:
    try:
        return key.read(value)
    except BadValue as error:
        raise _refusal(key, where, error) from error


def _refusal(key: Key, where: str, why: BadValue) -> ConfigError:
    return ConfigError(f"{where} {why}", hint=f"allowed is {key.allowed}")


# --- what this machine answers ------------------------------------------------------------------


def resolved(
    config: Config,
    *,
    environ: Mapping[str, str] | None = None,
    keys_exist: Callable[[Config], bool] = _no_keys,
) -> Config:
    """Fill in every None that this machine can answer: name, user, cores, memory, directories.

    `listen` becomes loopback, or every address once keys tell members from strangers.
    `arch` and `heartbeat_ms` may stay None: the hardware probe and the number of members decide.

    Precision  `memory_bytes` is a share of the physical RAM; a tighter limit of the service is
               the hardware probe's to find.
    """
    environ = os.environ if environ is None else environ
    filled = dataclasses.replace(
        config,
        name=config.name or _host_name(),
        user=config.user or _login_name(),
        slots=usable_cores() if config.slots is None else config.slots,
        memory_bytes=config.memory_bytes or _memory_share_bytes(),
        state_dir=config.state_dir or directories.default_state(environ),
        runtime_dir=config.runtime_dir or directories.default_runtime(environ),
        cache_dir=config.cache_dir or directories.default_cache(environ),
    )
    if filled.listen is not None:
        return filled
    listen = _everywhere() if keys_exist(filled) else LOOPBACK
    return dataclasses.replace(filled, listen=listen)


def _everywhere() -> str:
    """Return the address that means all addresses of this machine, of both families if it has."""
    return "::" if INTERFACES6_FILE.exists() else "0.0.0.0"


def paths(config: Config, *, environ: Mapping[str, str] | None = None) -> Paths:
    """Return the daemon's directories, made if missing and closed to everybody else.

    Raises  StateDirectoryProblem when one cannot be made, belongs to somebody else or is open to
            others; ConfigError when the path of the client socket is too long for Linux.
    """
    environ = os.environ if environ is None else environ
    state = config.state_dir or directories.default_state(environ)
    runtime = config.runtime_dir or directories.default_runtime(environ)
    cache = config.cache_dir or directories.default_cache(environ)
    socket = directories.client_socket(runtime)
    directories.make_private(state, "state_dir")
    directories.make_private(runtime, "runtime_dir")
    directories.make_private(cache, "cache_dir")
    return Paths(state, runtime, cache, socket)


def client_sockets(config: Config, *, environ: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """List where a client on this machine may find a daemon: the user's own, then the machine's.

    Raises  ConfigError when the path of the client socket is too long for Linux.
    """
    if config.runtime_dir is not None:
        return (directories.client_socket(config.runtime_dir),)
    own = directories.default_runtime(os.environ if environ is None else environ)
    machine = directories.SYSTEM_RUNTIME
    return tuple(directories.client_socket(place) for place in dict.fromkeys((own, machine)))


def usable_cores() -> int:
    """Count the cores this process may use, which is less than all under taskset or a cpuset."""
    return max(1, min(len(os.sched_getaffinity(0)), limits.SLOTS_MAX))


def _memory_share_bytes() -> int:
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(MEMORY_BYTES_MIN, total_bytes * MEMORY_SHARE_PERCENT // 100)


def _host_name() -> str:
    """Return the host's name without its domain, in the letters a node name may have."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", os.uname().nodename.partition(".")[0])
    return plain.lstrip(".-")[:64] or "node"


def _login_name() -> str:
    """Return the name of the user this runs as; the number where the machine knows no name."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
