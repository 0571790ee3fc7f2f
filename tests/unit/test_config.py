"""The configuration: what counts, in which order, and how a mistake is answered."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest

from blackroad import config as config_module
from blackroad import directories, limits
from blackroad.config import Config, check_exposure, client_sockets, load, paths, resolved
from blackroad.config_keys import KEYS, TABLES
from blackroad.errors import ConfigError, StateDirectoryProblem


@pytest.fixture(autouse=True)
def _no_machine_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config_module, "SYSTEM_FILE", tmp_path / "no-such-machine-file.toml")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "blackroad.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text), environ={})
    return caught.value


def plain(config: Config) -> Config:
    return dataclasses.replace(config, source=None)


# --- agreement ----------------------------------------------------------------------------------


def test_each_key_is_a_field_and_each_field_a_key() -> None:
    fields = {item.name for item in dataclasses.fields(Config)}
    assert {key.attribute for key in KEYS.values()} == fields - {"source"}


def test_each_default_is_a_value_that_its_own_reader_would_give() -> None:
    spelt = {
        "lease": "20s",
        "object_limit": "4GiB",
        "topics_keep": "4MiB",
        "redis_keep": "1d",
        "labels": {},
        "metrics_port": "off",
        "metrics_token_file": "off",
        **{
            name: []
            for name in ("endpoints", "peers", "mdns_interfaces", "programs", "metrics_names")
        },
    }
    for key in KEYS.values():
        default = getattr(Config(), key.attribute)
        given = spelt.get(key.name, "auto" if default is None else default)
        assert key.read(given) == default, key.name


# --- precedence ---------------------------------------------------------------------------------


def test_without_a_file_the_defaults_count() -> None:
    assert load(environ={}) == Config()


def test_places_are_tried_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, variable = tmp_path / "named.toml", tmp_path / "variable.toml"
    home, machine = tmp_path / "home", tmp_path / "machine.toml"
    user = home / ".config/blackroad/blackroad.toml"
    user.parent.mkdir(parents=True)
    for place, name in ((named, "a"), (variable, "b"), (user, "c"), (machine, "d")):
        place.write_text(f'name = "{name}"\n', encoding="utf-8")
    monkeypatch.setattr(config_module, "SYSTEM_FILE", machine)
    environ = {"HOME": str(home), "BLACKROAD_CONFIG": str(variable)}

    assert load(named, environ=environ).name == "a"
    assert load(environ=environ).name == "b"
    assert load(environ={"HOME": str(home)}).name == "c"
    assert load(environ={}).name == "d"
    assert load(environ={}).source == machine


def test_xdg_config_home_moves_the_users_file(tmp_path: Path) -> None:
    (tmp_path / "blackroad").mkdir()
    (tmp_path / "blackroad/blackroad.toml").write_text('name = "moved"\n', encoding="utf-8")
    assert load(environ={"XDG_CONFIG_HOME": str(tmp_path), "HOME": "/nowhere"}).name == "moved"


def test_a_variable_wins_over_the_file_and_an_empty_one_restores_the_default(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, 'port = 9000\npeers = ["attic"]\nname = "x"\n')
    assert load(file, environ={"BLACKROAD_PORT": "9001"}).port == 9001
    emptied = load(file, environ={"BLACKROAD_PORT": "", "BLACKROAD_PEERS": " "})
    assert (emptied.port, emptied.peers, emptied.name) == (7701, (), "x")


def test_keys_may_stand_in_their_table_or_above_all(tmp_path: Path) -> None:
    flat = load(written(tmp_path, 'port = 9000\nlease = "1m"\nlabels = {a = "b"}'), environ={})
    text = '[network]\nport = 9000\n[timing]\nlease = "1m"\n[work.labels]\na = "b"\n'
    assert plain(load(written(tmp_path, text), environ={})) == plain(flat)
    assert (flat.port, flat.lease_ms, flat.labels) == (9000, 60_000, {"a": "b"})


VARIABLES: dict[str, tuple[str, Any]] = {
    "name": ("attic", "attic"),
    "user": ("Zoë", "Zoë"),
    "coordinate": ("no", False),
    "priority": ("-3", -3),
    "arch": ("aarch64", "aarch64"),
    "cluster": ("lab-2", "lab-2"),
    "listen": ("::1", "::1"),
    "insecure_open": ("TRUE", True),
    "port": ("0", 0),
    "telemetry_port": ("65535", 65_535),
    "bulk_port": ("1", 1),
    "join_port": ("7799", 7_799),
    "pending_joins": ("off", False),
    "redis_url": ("rediss://me:word@shelf:6379/0", "rediss://me:word@shelf:6379/0"),
    "redis_mirror": ("on", True),
    "redis_keep": ("1h", 3_600_000),
    "topics_keep": ("1MiB", limits.MIB),
    "endpoints": (
        "attic, [fe80::1]:9 ,ipc:///run/x",
        ("attic:7701", "[fe80::1]:9", "ipc:///run/x"),
    ),
    "peers": ("tcp://10.0.0.2:7801,attic,attic", ("10.0.0.2:7801", "attic:7701")),
    "mdns": ("off", False),
    "mdns_interfaces": ("127.0.0.1", ("127.0.0.1",)),
    "state_dir": ("/a", Path("/a")),
    "runtime_dir": ("/b", Path("/b")),
    "cache_dir": ("/c", Path("/c")),
    "slots": ("3", 3),
    "memory": ("2GiB", 2 * limits.GIB),
    "opencl": ("Iris Xe", "Iris Xe"),
    "labels": ("rack=3, ups=a=b", {"rack": "3", "ups": "a=b"}),
    "programs": ("ffmpeg", ("ffmpeg",)),
    "object_limit": ("1MiB", limits.MIB),
    "heartbeat": ("500ms", 500),
    "lease": ("10m", 600_000),
    "metrics_port": ("7710", 7_710),
    "metrics_listen": ("192.0.2.7", "192.0.2.7"),
    "metrics_names": ("attic.example.org", ("attic.example.org",)),
    "metrics_token_file": ("/etc/blackroad/token", Path("/etc/blackroad/token")),
    "otel_url": ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
    "history_url": ("postgresql://me:word@shelf/lab", "postgresql://me:word@shelf/lab"),
    "history_keep_days": ("30", 30),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
}


@pytest.mark.parametrize("name", list(KEYS))
def test_every_key_has_a_variable_that_works(name: str) -> None:
    text, value = VARIABLES[name]
    key = KEYS[name]
    config = load(environ={f"BLACKROAD_{name.upper()}": text})
    assert getattr(config, key.attribute) == value
    assert plain(dataclasses.replace(config, **{key.attribute: value})) == config
    assert getattr(Config(), key.attribute) != value


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("attic", "attic:7701"),
        ("attic.lan:80", "attic.lan:80"),
        ("::1", "[::1]:7701"),
        ("[::1]", "[::1]:7701"),
        ("[::1]:80", "[::1]:80"),
        ("tcp://10.0.0.1:080", "10.0.0.1:80"),
    ],
)
def test_endpoints_get_one_spelling(text: str, endpoint: str) -> None:
    assert load(environ={"BLACKROAD_PEERS": text}).peers == (endpoint,)


@pytest.mark.parametrize(
    "text",
    [
        "attic:0",
        "attic:65536",
        "attic:",
        "attic:x",
        "[::1",
        "[::1]80",
        "-a:1",
        "a b",
        "a:1:2",
        ":1",
    ],
)
def test_wrong_endpoints_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="BLACKROAD_PEERS"):
        load(environ={"BLACKROAD_PEERS": text})


def test_only_endpoints_may_be_sockets_of_this_machine() -> None:
    with pytest.raises(ConfigError, match="not of the allowed form"):
        load(environ={"BLACKROAD_PEERS": "ipc:///run/x"})


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\nprot = 1", 2, "did you mean `port`?"),
        ("[network]\nport = 1\n[node]\nslots = 3", 4, "does not belong in [node]"),
        ("[netwrok]\nport = 1", 1, "did you mean `network`?"),
        ("network = 3", 1, "is a table, not a key"),
        ("port = 1\n[network]\nport = 2", 3, "set twice"),
        ('port = "7701"', 1, "must be a whole number"),
        ("port = true", 1, "must be a whole number"),
        ("port = 65536", 1, "out of range"),
        ("port = -1", 1, "out of range"),
        ("mdns = 1", 1, "must be true or false"),
        ("name = 3", 1, "must be text"),
        ('name = ""', 1, "not of the allowed form"),
        ('name = "a b"', 1, "not of the allowed form"),
        ('peers = "attic"', 1, "must be a list"),
        ("peers = [3]", 1, "must be text"),
        ('state_dir = "here"', 1, "must be an absolute path"),
        ('state_dir = "~nobody-of-this-name/x"', 1, "not known"),
        ('memory = "2G"', 1, "is no size"),
        ('memory = "1MiB"', 1, "out of range"),
        ('lease = "4999ms"', 1, "out of range"),
        ('lease = "soon"', 1, "is no duration"),
        ("heartbeat = 250", 1, "a bare number is seconds"),
        ('log_level = "loud"', 1, "none of the allowed words"),
        ("labels = {rack = 3}", 1, 'write rack = "3"'),
        ('labels = {"a b" = "c"}', 1, "has a b"),
        ("labels = 3", 1, "must be a table"),
        ("slots = -1", 1, "out of range"),
        ('listen = "localhost"', 1, "is no IP address"),
        ('opencl = ""', 1, "is empty"),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    error = refusal(tmp_path, text)
    assert error.message.startswith(f"{tmp_path}/blackroad.toml:{line}: ")
    assert words in error.message
    assert error.hint


def test_a_refusal_says_what_is_allowed(tmp_path: Path) -> None:
    assert refusal(tmp_path, 'lease = "1s"').hint == "allowed is a duration, 5 s to 1 d"


def test_long_lists_are_refused(tmp_path: Path) -> None:
    text = f"peers = {[f'h{number}' for number in range(257)]}"
    assert "has 257 items, more than 256" in refusal(tmp_path, text).message
    labels = ", ".join(f'l{number} = "x"' for number in range(limits.LABELS_MAX + 1))
    assert "has 65 labels" in refusal(tmp_path, f"labels = {{{labels}}}").message


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"port = ", "not valid TOML"),
        (b"name = \xff", "not UTF-8 text (byte 7)"),
        (b"# " + b"x" * config_module.FILE_BYTES_MAX, "larger than 1 MiB"),
        (b"a = " + b"[" * 5000, "not valid TOML"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, raw: bytes, words: str) -> None:
    file = tmp_path / "raw.toml"
    file.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load(file, environ={})
    assert words in caught.value.message


def test_a_named_file_must_exist_and_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file \(named by --config\)"):
        load(tmp_path / "missing.toml", environ={})
    with pytest.raises(ConfigError, match=r"no such file \(named by BLACKROAD_CONFIG\)"):
        load(environ={"BLACKROAD_CONFIG": str(tmp_path / "missing.toml")})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, environ={})


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("BLACKROAD_PORT", "http", "BLACKROAD_PORT=http: must be a whole number"),
        ("BLACKROAD_PORT", "auto", "must be a whole number"),
        ("BLACKROAD_PORT", "9" * 5000, "must be a whole number"),
        ("BLACKROAD_MDNS", "maybe", "must be true or false"),
        ("BLACKROAD_LABELS", "rack", "write name=text"),
        ("BLACKROAD_PROT", "1", "did you mean BLACKROAD_PORT?"),
        ("BLACKROAD_ENDPOINT", "attic", "did you mean BLACKROAD_ENDPOINTS?"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ={variable: text})
    assert words in caught.value.message


def test_variables_of_tasks_and_tools_are_let_alone() -> None:
    others = {"BLACKROAD_TASK_ID": "x", "BLACKROAD_TOKEN": "1/2", "BLACKROAD_ATTEMPT": "1"}
    assert load(environ=others) == Config()


# --- safety -------------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "192.168.1.5"])
def test_open_to_the_network_needs_keys_or_the_users_word(listen: str) -> None:
    with pytest.raises(
        ConfigError, match="anybody on the network could run programs here"
    ) as caught:
        load(environ={"BLACKROAD_LISTEN": listen})
    assert "insecure_open = true" in caught.value.hint
    assert load(environ={"BLACKROAD_LISTEN": listen}, keys_exist=lambda _: True).listen == listen
    accepted = {"BLACKROAD_LISTEN": listen, "BLACKROAD_INSECURE_OPEN": "1"}
    assert load(environ=accepted).listen == listen


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.8.0.2", "::1"])
def test_loopback_needs_no_keys(listen: str) -> None:
    check_exposure(Config(listen=listen), keys_exist=False)


def test_listening_follows_the_keys() -> None:
    assert load(environ={}).listen is None
    assert resolved(Config(), environ={}).listen == "127.0.0.1"
    everywhere = resolved(Config(), environ={}, keys_exist=lambda _: True).listen
    assert everywhere in ("::", "0.0.0.0")
    named = resolved(Config(listen="127.0.0.1"), environ={}, keys_exist=lambda _: True)
    assert named.listen == "127.0.0.1"


def test_a_bad_redis_address_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="no address of a Redis server") as caught:
        load(environ={"BLACKROAD_REDIS_URL": "http://me:sesame@shelf"})
    assert "sesame" not in f"{caught.value} {caught.value.hint}"


def test_a_lease_is_at_least_four_heartbeats_long() -> None:
    with pytest.raises(ConfigError, match="lease only 20 s") as caught:
        load(environ={"BLACKROAD_HEARTBEAT": "6s"})
    assert "4 heartbeats" in caught.value.hint
    both = {"BLACKROAD_HEARTBEAT": "6s", "BLACKROAD_LEASE": "24s"}
    assert load(environ=both).heartbeat_ms == 6_000


def test_two_sockets_do_not_share_a_port() -> None:
    with pytest.raises(ConfigError, match="two of them are the same"):
        load(environ={"BLACKROAD_PORT": "7702"})
    free = load(environ={f"BLACKROAD_{key}PORT": "0" for key in ("", "TELEMETRY_", "BULK_")})
    assert (free.port, free.telemetry_port, free.bulk_port) == (0, 0, 0)


def test_figures_beyond_loopback_ask_for_a_token() -> None:
    wide = {"BLACKROAD_METRICS_PORT": "7710", "BLACKROAD_METRICS_LISTEN": "0.0.0.0"}
    with pytest.raises(ConfigError, match="there is no token") as caught:
        load(environ=wide)
    assert "metrics_token_file" in caught.value.hint
    assert load(environ={**wide, "BLACKROAD_METRICS_TOKEN_FILE": "/t"}).metrics_port == 7_710
    assert load(environ={**wide, "BLACKROAD_METRICS_PORT": "off"}).metrics_port is None
    assert load(environ={"BLACKROAD_METRICS_PORT": "0"}).metrics_port == 0


# --- directories and this machine ---------------------------------------------------------------


def placed(tmp_path: Path) -> Config:
    return Config(
        state_dir=tmp_path / "deep/state", runtime_dir=tmp_path / "run", cache_dir=tmp_path / "c"
    )


def test_directories_are_made_for_this_user_alone(tmp_path: Path) -> None:
    made = paths(placed(tmp_path), environ={})
    assert made.client_socket == tmp_path / "run/client.sock"
    modes = [place.stat().st_mode & 0o777 for place in (made.state, made.runtime, made.cache)]
    assert modes == [0o700, 0o700, 0o700]
    assert paths(placed(tmp_path), environ={}) == made


@pytest.mark.parametrize(("mode", "allowed"), [(0o750, True), (0o770, False), (0o701, False)])
def test_open_directories_are_refused(tmp_path: Path, mode: int, allowed: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    if allowed:
        paths(placed(tmp_path), environ={})
        return
    with pytest.raises(StateDirectoryProblem, match=r"runtime_dir: .* is open to others") as caught:
        paths(placed(tmp_path), environ={})
    assert caught.value.hint == f"chmod 700 {tmp_path}/run"


def test_somebody_elses_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths(placed(tmp_path), environ={})
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_001)
    with pytest.raises(StateDirectoryProblem, match="belongs to user"):
        paths(placed(tmp_path), environ={})


def test_a_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("", encoding="utf-8")
    with pytest.raises(StateDirectoryProblem, match="state_dir: cannot make"):
        paths(placed(tmp_path), environ={})


def test_a_socket_path_too_long_for_linux_is_refused(tmp_path: Path) -> None:
    base = Path("/") / ("x" * (limits.PATH_BYTES_MAX - len("/") - len("/client.sock")))
    assert len(str(directories.client_socket(base))) == limits.PATH_BYTES_MAX
    with pytest.raises(ConfigError, match="a path of 108 bytes, and Linux allows 107"):
        directories.client_socket(Path(f"{base}x"))


def test_defaults_follow_the_kind_of_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    root = resolved(Config(), environ={})
    assert root.state_dir == Path("/var/lib/blackroad")
    assert root.runtime_dir == Path("/run/blackroad")
    assert root.cache_dir == Path("/var/cache/blackroad")

    monkeypatch.setattr(os, "geteuid", lambda: 4_000_001)
    environ = {"HOME": "/home/zoe", "XDG_CACHE_HOME": "/fast"}
    user = resolved(Config(), environ=environ)
    assert user.state_dir == Path("/home/zoe/.local/state/blackroad")
    assert user.runtime_dir == Path("/tmp/blackroad-4000001")
    assert user.cache_dir == Path("/fast/blackroad")
    assert resolved(
        Config(), environ={**environ, "XDG_RUNTIME_DIR": "/run/user/7"}
    ).runtime_dir == (Path("/run/user/7/blackroad"))
    with pytest.raises(ConfigError, match="no home directory"):
        resolved(Config(), environ={})


def test_systemds_directories_count_when_they_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_001)
    ours = {
        "STATE_DIRECTORY": "/srv/lib/blackroad",
        "RUNTIME_DIRECTORY": "/run/blackroad:/run/other",
        "CACHE_DIRECTORY": "/var/cache/somebody",
        "HOME": "/h",
    }
    found = resolved(Config(), environ=ours)
    assert found.state_dir == Path("/srv/lib/blackroad")
    assert found.runtime_dir == Path("/run/blackroad")
    assert found.cache_dir == Path("/h/.cache/blackroad")


def test_clients_look_at_their_own_daemon_and_then_at_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_001)
    found = client_sockets(Config(), environ={"XDG_RUNTIME_DIR": "/run/user/7"})
    assert found == (
        Path("/run/user/7/blackroad/client.sock"),
        Path("/run/blackroad/client.sock"),
    )
    assert client_sockets(placed(tmp_path), environ={}) == (tmp_path / "run/client.sock",)


def test_what_is_set_is_kept_and_what_is_not_is_found(tmp_path: Path) -> None:
    given = dataclasses.replace(placed(tmp_path), name="attic", user="zoe", slots=7)
    given = dataclasses.replace(given, memory_bytes=limits.GIB, listen="::1")
    assert resolved(given, environ={}) == given

    found = resolved(placed(tmp_path), environ={})
    assert found.slots == len(os.sched_getaffinity(0))
    none = dataclasses.replace(placed(tmp_path), slots=0)
    assert resolved(none, environ={}).slots == 0
    assert found.memory_bytes is not None
    assert found.memory_bytes >= 64 * limits.MIB
    assert KEYS["name"].read(found.name) == found.name


@pytest.mark.parametrize(
    ("host", "name"),
    [("attic.lan", "attic"), ("Zoë's Pi", "Zo--s-Pi"), ("...", "node"), ("x" * 99, "x" * 64)],
)
def test_host_names_become_node_names(
    host: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = os.uname()
    renamed = os.uname_result((system.sysname, host, *tuple(system)[2:]))
    monkeypatch.setattr(os, "uname", lambda: renamed)
    assert resolved(Config(state_dir=Path("/a")), environ={"HOME": "/h"}).name == name


def test_tables_have_no_name_in_common_with_keys() -> None:
    assert not set(TABLES) & set(KEYS)
    assert all(re.fullmatch(r"[a-z_]+", name) for name in (*TABLES, *KEYS))
